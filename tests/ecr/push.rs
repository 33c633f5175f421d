//! Pushing to a registry that behaves, and fails, as ECR does; the credential comes from Docker's configuration.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};

use crate::support::{
    Build, Stack,
    stack::{PASSWORD, Request, SHAPED},
};

/// Three blobs: two layers and the config.
const DOCKERFILE: &str = "FROM scratch\nCOPY a /a\nCOPY b /b\n";

fn login(registry: &str, user: &str, password: &str) -> Value {
    json!({"auths": {registry: {"auth": BASE64.encode(format!("{user}:{password}"))}}})
}

/// A build that pushes to `SHAPED/SCOPE/app:v1` when it is run.
fn build(scope: &str) -> Build {
    Build::new(DOCKERFILE)
        .file("a", "one")
        .file("b", scope)
        .inside(Stack::shared())
        .docker_config(&login(SHAPED, "AWS", PASSWORD))
        .without_output()
        .args(["--push", "-t", &format!("{SHAPED}/{scope}/app:v1")])
}

fn short(requests: &[Request]) -> Vec<String> {
    requests.iter().map(Request::short).collect()
}

fn count(requests: &[Request], line: &str) -> usize {
    requests.iter().filter(|request| request.short() == line).count()
}

#[test]
fn a_blob_is_one_post_and_one_put() {
    let stack = Stack::shared();
    let build = build("one-put");
    build.run().success();
    let requests = stack.requests("ecr", "one-put");
    let lines = short(&requests);
    assert_eq!(count(&requests, "POST upload 202"), 3, "{lines:#?}");
    assert_eq!(count(&requests, "PUT upload 201"), 3, "{lines:#?}");
    assert_eq!(count(&requests, "PUT manifest 201"), 1, "{lines:#?}");
    assert!(!lines.iter().any(|line| line.starts_with("PATCH")), "{lines:#?}");

    build.run().success();
    let again = short(&stack.requests("ecr", "one-put")[requests.len()..]);
    assert!(again.iter().all(|line| line.starts_with("HEAD")), "{again:#?}");
}

#[test]
fn throttling_is_waited_out() {
    let rule = json!([{"every": 3, "status": 429, "code": "TOOMANYREQUESTS",
        "message": "Rate exceeded", "headers": {"Retry-After": "0"}}]);
    Stack::shared().set("ecr", "throttled", json!({}), rule);
    build("throttled").run().success();
    let requests = Stack::shared().requests("ecr", "throttled");
    assert!(requests.iter().filter(|request| request.status() == 429).count() >= 3);
    assert_eq!(count(&requests, "PUT upload 201"), 3);
}

#[test]
fn a_missing_repository_is_told() {
    let stack = Stack::shared();
    stack.set("ecr", "missing", json!({"missing": true}), json!([]));
    let build = build("missing");
    build.run().failure(5, &["NAME_UNKNOWN", "create it"]);
    stack.create(&["missing/app"]);
    build.run().success();
}

#[test]
fn a_closed_post_is_a_missing_repository_too() {
    let stack = Stack::shared();
    stack.set("ecr", "closing", json!({"missing": true, "missing_closes": true}), json!([]));
    let failed = build("closing").timeout(60).run();
    failed.failure(5, &["closed the connection", "repository does not exist"]);
    let posts = count(&stack.requests("ecr", "closing"), "POST upload 0");
    assert!((2..=3 * 2).contains(&posts), "{posts}");
}

#[test]
fn a_redirected_blob_is_fetched_without_the_credential() {
    let stack = Stack::shared();
    build("redirected").run().success();
    let base = format!("FROM {SHAPED}/redirected/app:v1\nRUN [\"/none\"]\n");
    let pull = Build::new(base).inside(stack).docker_config(&login(SHAPED, "AWS", PASSWORD));
    // The step can't run; its base was fetched.
    assert_ne!(pull.run().code(), Some(0));
    let fetched = stack.requests("buckets", "redirected");
    assert!(!fetched.is_empty());
    for request in fetched {
        assert_eq!((request.status(), request.authorization()), (200, None));
        let headers = request.headers();
        assert!(!headers.contains(&"authorization") && !headers.contains(&"cookie"));
    }
}
