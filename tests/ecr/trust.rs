//! Certificates, mirrors and plain http, by flags and by the folders of Docker and the containers tools.

use std::{fs, path::Path};

use serde_json::json;

use super::login;
use crate::support::{Build, Stack};

/// A build that can only read the configuration of its base: `check` of a FROM would need no registry.
fn pull(reference: &str) -> Build {
    Build::new(format!("FROM {reference}\nLABEL a=b\n")).inside(Stack::shared())
}

/// Puts an image under `NAME:v1` of the registry that Docker Hub, GHCR and the mirror share.
fn publish(name: &str) {
    let build = Build::new("FROM scratch\nCOPY a /a\n")
        .file("a", name)
        .inside(Stack::shared())
        .docker_config(&login("ghcr.io", "someone", "ghcr-password"))
        .without_output();
    build.args(["--push", "-t", &format!("ghcr.io/{name}:v1")]).run().success();
}

fn statuses(service: &str, scope: &str) -> Vec<u64> {
    Stack::shared().requests(service, scope).iter().map(|request| request.status()).collect()
}

#[test]
fn a_certificate_of_somebody_else_is_refused_until_told_otherwise() {
    let stack = Stack::shared();
    publish("unknown-ca/app");
    let pull = |flags: &[&str]| pull("untrusted.example/unknown-ca/app:v1").args(flags).run();
    pull(&[]).failure(4, &["certificate", "--registry-certificate"]);
    let authority = stack.directory().join("other-ca.pem");
    let named = format!("untrusted.example={}", authority.display());
    pull(&["--registry-certificate", &named]).success();
    pull(&["--registry-certificate", &format!("untrusted.example:443={}", authority.display())])
        .success();
    pull(&["--skip-tls-verify-registry", "untrusted.example"]).success();
    // Of another registry they say nothing.
    let other = format!("other.example={}", authority.display());
    pull(&["--registry-certificate", &other]).failure(4, &["certificate"]);
    pull(&["--skip-tls-verify-registry", "other.example"]).failure(4, &["certificate"]);
    pull(&["--skip-tls-verify-registry", "untrusted.example:5000"]).failure(4, &["certificate"]);
    // An insecure registry may speak plain http, no more.
    pull(&["--insecure-registry", "untrusted.example"]).failure(4, &["certificate"]);
}

#[test]
fn a_client_certificate_by_flag() {
    let stack = Stack::shared();
    publish("client-flag/app");
    let pull = |flags: &[&str]| pull("client-certificate.example/client-flag/app:v1").args(flags);
    let failed = pull(&[]).run();
    failed.failure(4, &["--registry-client-cert"]);
    let directory = stack.directory().display();
    let pair = format!("client-certificate.example={directory}/client.pem,{directory}/client.key");
    pull(&["--registry-client-cert", &pair]).run().success();
    let swapped = format!("client-certificate.example={directory}/client.key,{directory}/ca.key");
    pull(&["--registry-client-cert", &swapped]).run().failure(2, &["client.key"]);
}

/// Copies into `FOLDER/HOST` what the stack has, under the names that certs.d wants.
fn certs_d(folder: &Path, host: &str, files: &[(&str, &str)]) {
    let folder = folder.join(host);
    fs::create_dir_all(&folder).unwrap();
    for (from, to) in files {
        fs::copy(Stack::shared().directory().join(from), folder.join(to)).unwrap();
    }
}

#[test]
fn certificates_of_the_folders_of_the_containers_tools() {
    publish("certs-home/app");
    let client = pull("client-certificate.example/certs-home/app:v1");
    let folder = client.scratch().join("home/.config/containers/certs.d");
    let pair = [("client.pem", "a.cert"), ("client.key", "a.key")];
    certs_d(&folder, "client-certificate.example", &pair[..1]);
    client.run().failure(4, &["a.key is missing"]);
    // What is wrong for one registry does not disturb the others.
    publish("certs-other/app");
    certs_d(&folder, "client-certificate.example", &pair);
    client.run().success();
    let untrusted = pull("untrusted.example/certs-home/app:v1");
    let folder = untrusted.scratch().join("home/.config/containers/certs.d");
    certs_d(&folder, "untrusted.example", &[("other-ca.pem", "ca.crt")]);
    untrusted.run().success();
}

#[test]
fn certificates_of_dockers_folder() {
    let stack = Stack::shared();
    publish("certs-docker/app");
    let source = stack.directory().join("other-ca.pem");
    let target = "/etc/docker/certs.d/folder.example:443";
    let script = format!("mkdir -p {target} && cp {} {target}/ca.crt", source.display());
    // Of the stack's own /etc.
    crate::support::peers::run_command(stack.command("sh").args(["-c", &script]));
    let pulled = pull("folder.example:443/certs-docker/app:v1").run();
    crate::support::peers::run_command(stack.command("rm").args(["-r", target]));
    pulled.success();
}

#[test]
fn mirrors_are_asked_in_order_and_then_the_origin() {
    let stack = Stack::shared();
    publish("mirrored/app");
    let pull = |flags: &[&str]| {
        let before = [statuses("mirror", "mirrored").len(), statuses("ghcr", "mirrored").len()];
        pull("ghcr.io/mirrored/app:v1").args(flags).run().success();
        (
            statuses("mirror", "mirrored")[before[0]..].to_vec(),
            statuses("ghcr", "mirrored")[before[1]..].to_vec(),
        )
    };
    let (mirror, origin) = pull(&["--registry-mirror", "ghcr.io=mirror.example"]);
    assert!(mirror.iter().all(|status| *status == 200) && !mirror.is_empty(), "{mirror:?}");
    assert!(origin.is_empty(), "{origin:?}");
    // A dead one, one of another registry, one that has nothing: each leads on.
    let (mirror, origin) = pull(&[
        "--registry-mirror",
        "ghcr.io=dead.example",
        "--registry-mirror",
        "docker.io=foreign.example",
        "--registry-mirror",
        "ghcr.io=foreign.example/nothing",
        "--registry-mirror",
        "ghcr.io=mirror.example",
    ]);
    assert!(!mirror.is_empty() && origin.is_empty(), "{mirror:?} {origin:?}");
    for status in [401, 403, 404, 500, 503] {
        stack.set("mirror", "mirrored", json!({"status": status}), json!([]));
        let (mirror, origin) = pull(&["--registry-mirror", "ghcr.io=mirror.example"]);
        assert!(mirror.iter().all(|answer| *answer == status), "{mirror:?}");
        assert!(origin.contains(&200), "{status}: {origin:?}");
    }
}

#[test]
fn a_mirrors_prefix_and_its_own_credential() {
    publish("prefix/library/app");
    // Docker Hub's own name stands for it where none is given.
    let pull = pull("app:v1")
        .docker_config(&json!({"auths": {
            "mirror.example": {"username": "m", "password": "p"},
            "https://index.docker.io/v1/": {"username": "someone", "password": "hub-password"}}}))
        .args(["--registry-mirror", "mirror.example/prefix/"]);
    Stack::shared().set(
        "mirror",
        "prefix",
        json!({}),
        json!([{"first": 1, "status": 401, "code": "UNAUTHORIZED",
            "headers": {"WWW-Authenticate": "Basic realm=\"mirror\""}}]),
    );
    pull.run().success();
    let requests = Stack::shared().requests("mirror", "prefix");
    assert!(requests.iter().all(|one| one.path().starts_with("/v2/prefix/library/app/")));
    assert_eq!(requests[1].authorization(), Some("Basic"));
    assert!(Stack::shared().requests("hub", "library").is_empty());
}
