//! Pushing to a registry that behaves, and fails, as ECR does; the credential comes from Docker's configuration.

use serde_json::json;

use super::login;
use crate::support::{
    Build, Stack,
    stack::{PASSWORD, Request, SHAPED},
};

/// Three blobs: two layers and the config.
const DOCKERFILE: &str = "FROM scratch\nCOPY a /a\nCOPY b /b\n";

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

#[test]
fn an_expired_password_is_asked_for_again_once() {
    let stack = Stack::shared();
    // Refused after the second blob; another token call makes it good again.
    stack.set("ecr", "expiring", json!({"expire_after": 8}), json!([]));
    let failed = build("expiring").run().failure(5, &["expired", "config.json", "log in again"]);
    assert!(!failed.stderr.contains(PASSWORD));
    let refused = count(&stack.requests("ecr", "expiring"), "POST upload 403");
    assert!(refused <= 4, "{refused}");
}

#[test]
fn a_helper_that_knows_a_new_password_ends_an_expiry() {
    let stack = Stack::shared();
    stack.set("ecr", "helper", json!({"expire_after": 8}), json!([]));
    let build = build("helper").docker_config(&json!({"credHelpers": {SHAPED: "counting"}}));
    let directory = build.scratch().join("bin");
    std::fs::create_dir(&directory).unwrap();
    let program = directory.join("docker-credential-counting");
    // Each call gives the next password.
    let script = format!(
        "#!/bin/sh\necho call >>{0}/calls\nn=$(wc -l <{0}/calls)\nprintf '{{\"Username\":\"AWS\",\"Secret\":\"{PASSWORD}#%s\"}}' $n\n",
        directory.display()
    );
    std::fs::write(&program, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).unwrap();
    let path = format!("{}:/usr/bin:/bin", directory.display());
    let _kept = build.env("PATH", path).run().success();
    let calls = std::fs::read_to_string(directory.join("calls")).unwrap();
    assert_eq!(calls.lines().count(), 2, "one credential, one renewal");
}

#[test]
fn a_lost_upload_starts_again() {
    let rule = json!([{"method": "PUT", "path": "/blobs/uploads/", "at": 2, "status": 404,
        "code": "BLOB_UPLOAD_UNKNOWN", "message": "blob upload unknown to registry"}]);
    Stack::shared().set("ecr", "lost", json!({}), rule);
    build("lost").run().success();
    let requests = Stack::shared().requests("ecr", "lost");
    assert_eq!(count(&requests, "POST upload 202"), 4);
    assert_eq!(count(&requests, "PUT upload 201"), 3);
}

#[test]
fn a_location_elsewhere_gets_no_credential() {
    let stack = Stack::shared();
    for (scope, kind) in [("at-foreign", "foreign"), ("at-userinfo", "userinfo")] {
        stack.set("ecr", scope, json!({"upload_location": kind}), json!([]));
        assert_ne!(build(scope).run().code(), Some(0));
    }
    for (scope, kind) in [("at-plain", "plain"), ("at-metadata", "metadata")] {
        stack.set("ecr", scope, json!({"upload_location": kind}), json!([]));
        build(scope).run().failure(5, &["redirects to"]);
    }
    let elsewhere = stack.requests("foreign", "");
    assert!(elsewhere.iter().all(|request| request.authorization().is_none()), "{elsewhere:#?}");
    assert!(
        stack
            .requests("imds", "")
            .iter()
            .all(|request| request.method() != "PUT" || request.path().starts_with("/latest"))
    );
}

#[test]
fn an_upload_without_a_location_is_told() {
    Stack::shared().set("ecr", "nowhere", json!({"upload_location": "none"}), json!([]));
    build("nowhere").run().failure(5, &["there is no Location"]);
}

#[test]
fn mounts_where_the_registry_does_and_uploads_into_the_session_where_not() {
    let stack = Stack::shared();
    for (scope, mount, posts) in [("mount-on", "on", 201), ("mount-off", "off", 202)] {
        stack.set("ecr", scope, json!({"mount": mount}), json!([]));
        let build = build(scope);
        build.run().success();
        let before = stack.requests("ecr", scope).len();
        build.args(["-t", &format!("{SHAPED}/{scope}/other:v1")]).run().success();
        let requests = &stack.requests("ecr", scope)[before..];
        let mounts: Vec<&Request> =
            requests.iter().filter(|one| one.path().contains("mount=")).collect();
        assert_eq!(mounts.len(), 3, "{requests:#?}");
        assert!(mounts.iter().all(|one| one.status() == posts), "{requests:#?}");
        // A session is used, not thrown away.
        let uploads = if posts == 201 { 0 } else { 3 };
        assert_eq!(count(requests, "PUT upload 201"), uploads, "{requests:#?}");
        assert_eq!(requests.iter().filter(|one| one.method() == "POST").count(), 3);
    }
}

#[test]
fn a_refused_mount_is_an_upload() {
    let stack = Stack::shared();
    stack.set("ecr", "mount-refused", json!({"mount": "refuse"}), json!([]));
    let build = build("mount-refused");
    build.run().success();
    build.args(["-t", &format!("{SHAPED}/mount-refused/other:v1")]).run().success();
    assert_eq!(count(&stack.requests("ecr", "mount-refused"), "PUT manifest 201"), 2);
}

#[test]
fn the_reason_of_a_bare_403_is_found() {
    let stack = Stack::shared();
    for (scope, action) in [("deny-start", "ecr:InitiateLayerUpload"), ("deny-put", "ecr:PutImage")]
    {
        stack.set("ecr", scope, json!({"head_403": true, "denied": action}), json!([]));
        build(scope).run().failure(5, &["DENIED", action]);
        let denied = stack
            .requests("ecr", scope)
            .iter()
            .filter(|one| one.status() == 403 && one.method() != "HEAD")
            .count();
        assert!(denied <= 4, "a denial is not tried again: {denied}");
    }
    stack.set("ecr", "head-only", json!({"head_403": true}), json!([]));
    build("head-only").run().success();
    stack.set("ecr", "deny-pull", json!({"denied": "ecr:BatchGetImage"}), json!([]));
    let pull = Build::new(format!("FROM {SHAPED}/deny-pull/app:v1\n")).inside(stack);
    pull.docker_config(&login(SHAPED, "AWS", PASSWORD)).run().failure(4, &["ecr:BatchGetImage"]);
}

#[test]
fn a_full_repository_is_told() {
    Stack::shared().set("ecr", "full", json!({"quota": true}), json!([]));
    build("full").run().failure(5, &["maximum allowed number", "a quota of the repository"]);
}

#[test]
fn connections_that_end_are_tried_again() {
    let stack = Stack::shared();
    let rules = json!([
        {"method": "PUT", "path": "/blobs/uploads/", "at": 1, "close": true},
        {"method": "PUT", "path": "/blobs/uploads/", "at": 3, "status": 503, "body": "<html>"},
        {"method": "PUT", "path": "/manifests/", "at": 1, "close": true},
        {"method": "HEAD", "at": 2, "status": 502},
    ]);
    stack.set("ecr", "flaky", json!({}), rules);
    build("flaky").run().success();
    let requests = stack.requests("ecr", "flaky");
    assert_eq!(count(&requests, "PUT manifest 201"), 1, "{:#?}", short(&requests));
}

#[test]
fn a_cut_download_goes_on_where_it_was() {
    let stack = Stack::shared();
    let image = Build::new("FROM scratch\nCOPY big /big\n").inside(stack).without_output();
    let noise: Vec<u8> =
        (0_u32..700_000).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let image = image.file("big", noise).docker_config(&login(SHAPED, "AWS", PASSWORD));
    image.args(["--push", "-t", &format!("{SHAPED}/cut/app:v1")]).run().success();
    let cut = json!([{"method": "GET", "first": 2, "cut_bytes": 300_000}]);
    stack.set("bucket", "cut", json!({}), cut);
    let dockerfile = "AS base\nFROM scratch\nCOPY --from=base /big /again\n";
    let pull = Build::new(format!("FROM {SHAPED}/cut/app:v1 {dockerfile}"));
    pull.inside(stack).docker_config(&login(SHAPED, "AWS", PASSWORD)).run().success();
    let requests = stack.requests("buckets", "cut");
    assert!(requests.iter().any(|one| one.headers().contains(&"range")), "{requests:#?}");
}
