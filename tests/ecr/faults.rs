//! Preflight and ECR: what is told before anything is built, together with all else.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::login;
use crate::support::{
    Build, Stack,
    stack::{CLEAN, PASSWORD, SHAPED},
};

/// Generous for a loaded machine: what is measured is that nobody waits for retries without end.
const SECONDS_MAX: u64 = 20;

/// A build for `image` whose second step lacks its source.
fn faulty(image: &str, key: &str) -> Build {
    let build = Build::new("FROM scratch\nCOPY a /a\nCOPY gone /\n")
        .file("a", image)
        .inside(Stack::shared())
        .without_output()
        .args(["--push", "-t", image]);
    match key {
        "" => build,
        key => build.env("AWS_ACCESS_KEY_ID", key).env("AWS_SECRET_ACCESS_KEY", "hunter2"),
    }
}

/// The build's faults are these words' and the missing source, and nothing is executed.
#[track_caller]
fn faults(build: &Build, words: &[&str]) {
    let began = Instant::now();
    let outcome = build.run().failure(3, &[&["/gone not found"], words].concat());
    assert!(began.elapsed() < Duration::from_secs(SECONDS_MAX), "{:?}", began.elapsed());
    let said = outcome.stderr;
    assert_eq!(said.matches("error: ").count(), 2, "{said}");
    assert!(!said.contains("] COPY a") && !said.contains("hunter2"), "{said}");
}

/// Only the missing source is a fault.
#[track_caller]
fn no_other_fault(build: &Build) {
    let said = build.run().failure(3, &["/gone not found"]).stderr;
    assert_eq!(said.matches("error: ").count(), 1, "{said}");
}

fn shaped(scope: &str, switches: Value) -> String {
    Stack::shared().set("ecr", scope, switches, json!([]));
    format!("{SHAPED}/{scope}/app:v1")
}

fn control(key: &str, rule: Value) {
    Stack::shared().set("control-plane", key, json!({}), json!([rule]));
}

fn created(key: &str) -> usize {
    let calls = Stack::shared().requests("control-plane", key);
    calls.iter().filter(|call| call.0["target"] == "CreateRepository").count()
}

#[test]
fn a_missing_repository() {
    for (closes, key) in [(false, "AKIAFAULTMISSING"), (true, "AKIAFAULTCLOSED")] {
        let scope = format!("fault-missing-{closes}");
        let image = shaped(&scope, json!({"missing": true, "missing_closes": closes}));
        let words = ["--create-repository", "ecr:InitiateLayerUpload", "AWS_ACCESS_KEY_ID"];
        faults(&faulty(&image, key), &words);
        assert_eq!(created(key), 0);
        no_other_fault(&faulty(&image, key).arg("--create-repository"));
        assert_eq!(created(key), 1);
    }
}

#[test]
fn a_repository_that_may_not_be_created() {
    let (key, image) = ("AKIAFAULTCREATE", shaped("fault-create", json!({"missing": true})));
    control(
        key,
        json!({"target": "CreateRepository", "status": 400, "code": "AccessDeniedException",
            "message": "User: arn:aws:iam::1:user/x may not"}),
    );
    let words = ["allow ecr:CreateRepository", "arn:aws:iam::1:user/x"];
    faults(&faulty(&image, key).arg("--create-repository"), &words);
}

#[test]
fn keys_that_are_refused() {
    for (number, (code, words)) in [
        ("UnrecognizedClientException", &["the keys are not valid"] as &[&str]),
        ("ExpiredTokenException", &["the keys have expired", "--aws-role-arn"]),
        ("AccessDeniedException", &["allow ecr:GetAuthorizationToken"]),
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("AKIAFAULTKEYS{number}");
        control(
            &key,
            json!({"target": "GetAuthorizationToken", "status": 400, "code": code, "message": "no"}),
        );
        let image = format!("{CLEAN}/fault-keys-{number}/app:v1");
        faults(&faulty(&image, &key), &[&["AWS_ACCESS_KEY_ID"], words].concat());
    }
}

#[test]
fn a_role_that_is_refused() {
    let key = "AKIAFAULTROLE";
    control(
        key,
        json!({"target": "AssumeRole", "status": 403, "code": "AccessDenied", "message": "no"}),
    );
    let build = faulty(&format!("{CLEAN}/fault-role/app:v1"), key);
    let build = build.args(["--aws-role-arn", "arn:aws:iam::123456789012:role/fault"]);
    faults(&build, &["AccessDenied", "trust policy"]);
}

#[test]
fn no_right_to_push() {
    let image = shaped("fault-denied", json!({"denied": "ecr:InitiateLayerUpload"}));
    let words = ["allow ecr:InitiateLayerUpload", "arn:aws:", "account 111122223333"];
    faults(&faulty(&image, "AKIAFAULTDENIED"), &words);
}

#[test]
fn tokens_that_are_refused_again() {
    // A rule of this scope alone: another test's token would end the registry's own expiry.
    let message = "Your authorization token has expired. Reauthenticate and try again.";
    let rule = json!([{"status": 403, "code": "DENIED", "message": message}]);
    Stack::shared().set("ecr", "fault-expired", json!({}), rule);
    let image = format!("{SHAPED}/fault-expired/app:v1");
    let build = faulty(&image, "").docker_config(&login(SHAPED, "AWS", PASSWORD));
    faults(&build, &["expired", "neither at first nor renewed"]);
}

#[test]
fn a_region_that_does_not_exist() {
    let image = "123456789012.dkr.ecr.eu-nowhere-9.amazonaws.com/fault-region/app:v1";
    faults(&faulty(image, "AKIAFAULTREGION"), &["eu-nowhere-9"]);
}

#[test]
fn a_registry_that_does_not_answer() {
    faults(&faulty("dead.example/fault/app:v1", ""), &["cannot connect to https://dead.example"]);
    faults(&faulty("nowhere.example/fault/app:v1", ""), &["nowhere.example"]);
    // As a base, it is told in time, too.
    let began = Instant::now();
    let base = Build::new("FROM dead.example/base\nRUN true\n").inside(Stack::shared());
    base.run().failure(4, &["cannot connect to https://dead.example", "Dockerfile:1"]);
    assert!(began.elapsed() < Duration::from_secs(SECONDS_MAX), "{:?}", began.elapsed());
}

#[test]
fn an_immutable_tag() {
    let (key, scope) = ("AKIAFAULTTAG", "fault-tag");
    let image = shaped(scope, json!({"immutable": ["*"]}));
    let body =
        json!({"repositories": [{"repositoryName": "x", "imageTagMutability": "IMMUTABLE"}]});
    control(
        key,
        json!({"target": "DescribeRepositories", "status": 200, "body": body.to_string(),
            "headers": {"Content-Type": "application/x-amz-json-1.1"}}),
    );
    let first = faulty(&image, key).file("gone", "");
    first.run().success();
    faults(&faulty(&image, key), &["the tag is immutable", "--skip-immutable"]);
    no_other_fault(&faulty(&image, key).arg("--skip-immutable"));
    // With fixed times it may turn out to be the same image.
    no_other_fault(&faulty(&image, key).env("SOURCE_DATE_EPOCH", "1"));
    // A second tag, which is free, does not save the first one.
    let both = faulty(&image, key).args(["-t", &format!("{SHAPED}/{scope}/app:v2")]);
    faults(&both, &["app:v1: the tag is immutable"]);
}

#[test]
fn several_destinations_fail_together() {
    let first = shaped("fault-several", json!({"denied": "ecr:InitiateLayerUpload"}));
    let build = faulty(&first, "AKIAFAULTSEVERAL").args(["-t", "dead.example/fault/app:v1"]);
    let words = ["/gone not found", "allow ecr:InitiateLayerUpload", "dead.example"];
    let said = build.run().failure(3, &words).stderr;
    assert_eq!(said.matches("error: ").count(), 3, "{said}");
}

#[test]
fn a_dead_registry_behind_a_mirror_is_no_fault() {
    let image = format!("{CLEAN}/fault-mirror/app:v1");
    faulty(&image, "AKIAFAULTMIRROR").file("gone", "").run().success();
    let build = Build::new("FROM dead.example/fault-mirror/app:v1\nCOPY a /b\n")
        .file("a", "")
        .inside(Stack::shared())
        .args(["--registry-mirror", &format!("dead.example={CLEAN}")])
        .env("AWS_ACCESS_KEY_ID", "AKIAFAULTMIRROR")
        .env("AWS_SECRET_ACCESS_KEY", "s");
    build.run().success();
}
