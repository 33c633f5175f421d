//! Registries that lie and lead astray: what comes out, and what they never get.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::login;
use crate::support::{
    Build, Outcome, Stack,
    oci::MANIFEST,
    stack::{PASSWORD, SHAPED},
};

fn push(scope: &str) -> Build {
    Build::new("FROM scratch\nCOPY a /a\n")
        .file("a", scope)
        .inside(Stack::shared())
        .docker_config(&login(SHAPED, "AWS", PASSWORD))
        .without_output()
        .args(["--push", "-t", &format!("{SHAPED}/{scope}/app:v1")])
}

/// Pulls what [`push`] pushed and reads its layer, while the registry follows `rules`.
fn pull(scope: &str, rules: Value) -> Outcome {
    push(scope).run().success();
    Stack::shared().set("ecr", scope, json!({}), rules);
    let dockerfile = "AS base\nFROM scratch\nCOPY --from=base /a /b\n";
    Build::new(format!("FROM {SHAPED}/{scope}/app:v1 {dockerfile}"))
        .inside(Stack::shared())
        .docker_config(&login(SHAPED, "AWS", PASSWORD))
        .run()
}

fn blob_leads_to(location: &str) -> Value {
    json!([{"method": "GET", "path": "/blobs/sha256", "status": 307, "headers": {"Location": location}}])
}

#[test]
fn other_bytes_after_the_push_fail_it() {
    let rule = json!([{"method": "GET", "path": "/manifests/", "status": 200, "body": "{}",
        "headers": {"Content-Type": MANIFEST}}]);
    Stack::shared().set("ecr", "liar", json!({}), rule);
    push("liar").run().failure(5, &["cannot push to"]);
}

#[test]
fn a_wait_of_a_year_is_not_waited() {
    let rule =
        json!([{"status": 429, "code": "TOOMANYREQUESTS", "headers": {"Retry-After": "31536000"}}]);
    Stack::shared().set("ecr", "year", json!({}), rule);
    let began = Instant::now();
    push("year").run().failure(5, &["asks to wait 31536000 seconds", "120 seconds"]);
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[test]
fn throttling_that_says_nothing_is_waited_out_with_growing_pauses() {
    let rule = json!([{"method": "PUT", "first": 3, "status": 429}]);
    Stack::shared().set("ecr", "silent-limit", json!({}), rule);
    push("silent-limit").run().success();
}

#[test]
fn a_login_page_is_no_manifest() {
    let page = json!([{"path": "/manifests/", "status": 200, "body": "<html>log in</html>",
        "headers": {"Content-Type": "text/html"}}]);
    pull("page", page).failure(4, &["page/app:v1"]);
}

#[test]
fn redirects_end() {
    let address = format!("https://{SHAPED}/v2/circle/app/blobs/sha256:{}", "0".repeat(64));
    pull("circle", blob_leads_to(&address)).failure(4, &["more than 8 redirects"]);
}

#[test]
fn a_challenge_from_elsewhere_is_not_answered() {
    let stack = Stack::shared();
    stack.set("foreign", "", json!({"challenge": true}), json!([]));
    pull("asked", blob_leads_to("https://foreign.example/asked-blob")).failure(4, &["401"]);
    let requests = stack.requests("foreign", "");
    let asked: Vec<_> = requests.iter().filter(|one| one.path() == "/asked-blob").collect();
    assert!(!asked.is_empty());
    assert!(asked.iter().all(|request| request.authorization().is_none()), "{asked:#?}");
}

#[test]
fn nothing_leads_to_the_metadata_service() {
    for (scope, location) in [
        ("to-imds", "https://169.254.169.254/latest/meta-data/redirected"),
        ("to-imds-plain", "http://169.254.169.254/latest/meta-data/redirected"),
        ("to-imds-mapped", "https://[::ffff:169.254.169.254]/latest/meta-data/redirected"),
        ("to-user", "https://user:secret@foreign.example/redirected"),
    ] {
        let refused = pull(scope, blob_leads_to(location)).failure(4, &["redirects to"]);
        assert!(!refused.stderr.contains("user:secret"), "{}", refused.stderr);
    }
    let asked = Stack::shared().requests("imds", "");
    assert!(!asked.iter().any(|request| request.path().contains("redirected")));
}

/// Names that begin as a registry's do are nobody's but their own.
#[test]
fn a_look_alike_gets_no_credential() {
    let stack = Stack::shared();
    for host in [
        "123456789012.dkr.ecr.us-east-1.amazonaws.com.evil.example",
        "123456789012.dkr.ecr.evil.amazonaws.com",
    ] {
        let build = Build::new(format!("FROM {host}/look/app:v1\n")).inside(stack);
        build.docker_config(&login(SHAPED, "AWS", PASSWORD)).run().failure(4, &[host]);
    }
    let asked = stack.requests("foreign", "look");
    assert!(!asked.is_empty() && asked.iter().all(|one| one.authorization().is_none()));
}

#[test]
fn an_unknown_host_is_told_at_once() {
    let began = Instant::now();
    let build = Build::new("FROM nowhere.example/app:v1\n").inside(Stack::shared());
    build.run().failure(4, &["nowhere.example", "127.0.0.1"]);
    assert!(began.elapsed() < Duration::from_secs(30));
}
