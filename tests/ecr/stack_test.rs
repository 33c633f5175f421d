//! The stack itself, by readers that are not ours.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{
    Peers, Stack,
    peers::run_command,
    stack::{CLEAN, PASSWORD, SHAPED},
};

fn skopeo(stack: &Stack, arguments: &[&str]) -> String {
    let mut command = stack.command("skopeo");
    run_command(command.arg("--insecure-policy").args(arguments))
}

/// Pushes the busybox base, reads it back, and returns the digest that it has there.
fn there_and_back(stack: &Stack, reference: &str, credentials: &str) -> String {
    let layout = format!("oci:{}:latest", Peers::get().layout("busybox").display());
    let target = format!("docker://{reference}");
    let back = tempfile::tempdir().unwrap();
    let directory = format!("dir:{}", back.path().display());
    skopeo(stack, &["copy", "-q", "--dest-creds", credentials, &layout, &target]);
    skopeo(stack, &["copy", "-q", "--src-creds", credentials, &target, &directory]);
    let text = skopeo(stack, &["inspect", "--creds", credentials, &target]);
    assert!(back.path().join("manifest.json").exists());
    serde_json::from_str::<Value>(&text).unwrap()["Digest"].as_str().unwrap().to_owned()
}

#[test]
fn both_data_planes_serve_skopeo() {
    let stack = Stack::shared();
    let credentials = format!("AWS:{PASSWORD}");
    let clean = there_and_back(stack, &format!("{CLEAN}/skopeo/app:v1"), &credentials);
    let shaped = there_and_back(stack, &format!("{SHAPED}/skopeo/app:v1"), &credentials);
    assert_eq!(clean, shaped);
    let requests = stack.requests("ecr", "skopeo");
    let short: Vec<String> = requests.iter().map(|request| request.short()).collect();
    // A PATCH is answered 201, a blob is had by a redirect, and nobody is let in without the password.
    for line in ["PATCH upload 201", "GET blob 307", "PUT manifest 201"] {
        assert!(short.iter().any(|known| known == line), "no {line:?} in {short:#?}");
    }
    assert!(requests.iter().all(|request| request.authorization() == Some("Basic")));
    assert!(stack.requests("buckets", "skopeo").iter().all(|one| one.authorization().is_none()));
}

#[test]
fn token_registries_serve_skopeo() {
    let stack = Stack::shared();
    for (registry, service) in [("docker.io", "hub"), ("ghcr.io", "ghcr")] {
        let credentials = format!("someone:{service}-password");
        there_and_back(stack, &format!("{registry}/skopeo-{service}/app:v1"), &credentials);
        let requests = stack.requests(service, &format!("skopeo-{service}"));
        assert!(requests.iter().any(|one| one.path().starts_with("/token")), "{requests:#?}");
        assert!(requests.iter().any(|one| one.authorization() == Some("Bearer")));
    }
}

/// moto looks at the signature's scope, not at the signature.
fn token_call(stack: &Stack, key: &str) -> Value {
    let mut command = stack.command("curl");
    let authorization = format!(
        "Authorization: AWS4-HMAC-SHA256 Credential={key}/20260101/us-east-1/ecr/aws4_request, SignedHeaders=host, Signature=0"
    );
    command.args(["-sS", "-X", "POST", "https://api.ecr.us-east-1.amazonaws.com/", "-d", "{}"]);
    command.args(["-H", "Content-Type: application/x-amz-json-1.1", "-H", &authorization]);
    let target = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken";
    let text = run_command(command.args(["-H", &format!("X-Amz-Target: {target}")]));
    serde_json::from_str(&text).unwrap()
}

#[test]
fn moto_gives_tokens_and_the_control_plane_fails_on_demand() {
    let stack = Stack::shared();
    let before = stack.token_calls();
    let answer = token_call(stack, "AKIASTACKTEST1");
    let token = answer["authorizationData"][0]["authorizationToken"].as_str().unwrap();
    assert!(stack.token_calls() > before);
    assert_eq!(token, "QVdTOjEyMzQ1Njc4OTAxMi1hdXRoLXRva2Vu");
    let throttled = json!([{"target": "GetAuthorizationToken", "first": 2, "status": 400,
        "code": "ThrottlingException", "message": "Rate exceeded"}]);
    stack.set("control-plane", "AKIASTACKTEST2", json!({}), throttled);
    for expected in [true, true, false] {
        let answer = token_call(stack, "AKIASTACKTEST2");
        let kind = answer["__type"].as_str().unwrap_or_default();
        assert_eq!(kind.ends_with("ThrottlingException"), expected, "{answer}");
    }
    assert_eq!(stack.requests("control-plane", "AKIASTACKTEST2").len(), 3);
}

#[test]
fn the_product_runs_inside() {
    let text = run_command(Stack::shared().bareboat().arg("--version"));
    assert!(text.starts_with("bareboat "), "{text}");
}

#[test]
fn a_stack_leaves_nothing() {
    let stack = Stack::start();
    let directory = stack.directory().to_owned();
    let metadata = ["http://169.254.170.2/v2/credentials/x", "http://169.254.169.254/"];
    for url in metadata {
        run_command(stack.command("curl").args(["-sS", "-o", "/dev/null", url]));
    }
    drop(stack);
    assert!(!directory.exists());
    let left = crate::support::process::with_argument(directory.to_str().unwrap());
    assert!(left.is_empty(), "{left:?}");
    assert!(crate::support::process::mounts_below(Path::new(&directory)).is_empty());
}
