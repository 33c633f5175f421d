//! Repositories that are missing, tags that can't be moved, and what ECR's refusals mean.

use std::fs;

use serde_json::{Value, json};

use crate::support::{
    Build, Stack,
    stack::{Request, SHAPED},
};

const DOCKERFILE: &str = "FROM scratch\nCOPY a /a\nCOPY b /b\n";

fn push(scope: &str, key: &str) -> Build {
    Build::new(DOCKERFILE)
        .file("a", "one")
        .file("b", scope)
        .inside(Stack::shared())
        .without_output()
        .args(["--push", "-t", &format!("{SHAPED}/{scope}/app:v1")])
        .env("AWS_ACCESS_KEY_ID", key)
        .env("AWS_SECRET_ACCESS_KEY", "s")
}

fn calls(key: &str, target: &str) -> usize {
    let all = Stack::shared().requests("control-plane", key);
    all.iter().filter(|call| call.0["target"] == target).count()
}

fn shaped(scope: &str, switches: Value) {
    Stack::shared().set("ecr", scope, switches, json!([]));
}

fn uploads(scope: &str) -> usize {
    let requests = Stack::shared().requests("ecr", scope);
    requests.iter().map(Request::short).filter(|line| line.starts_with("POST upload")).count()
}

#[test]
fn a_missing_repository_is_created_where_that_is_asked_for() {
    let (scope, key) = ("created", "AKIACREATED");
    shaped(scope, json!({"missing": true}));
    let without = push(scope, key);
    without
        .run()
        .failure(5, &["NAME_UNKNOWN", "--create-repository", "arn:aws:", "AWS_ACCESS_KEY_ID"]);
    assert_eq!(calls(key, "CreateRepository"), 0);

    let build = push(scope, key);
    let policy = build.scratch().join("lifecycle.json");
    let rules = json!({"rules": [{"rulePriority": 1, "selection": {"tagStatus": "any",
        "countType": "imageCountMoreThan", "countNumber": 9}, "action": {"type": "expire"}}]});
    fs::write(&policy, rules.to_string()).unwrap();
    let settings = format!(
        "--create-repository=mutability=immutable,except=latest|dev-*,encryption=aes256,scan=true,tag.Team=a,lifecycle={}",
        policy.display()
    );
    let build = build.arg(settings);
    build.run().success();
    // Once, although four uploads met its absence.
    assert_eq!((calls(key, "CreateRepository"), calls(key, "PutLifecyclePolicy")), (1, 1));
    build.run().success();
    assert_eq!(calls(key, "CreateRepository"), 1);
}

#[test]
fn a_closed_connection_is_a_missing_repository_too() {
    let (scope, key) = ("created-closing", "AKIACLOSING");
    shaped(scope, json!({"missing": true, "missing_closes": true}));
    push(scope, key).arg("--create-repository").timeout(120).run().success();
    assert_eq!(calls(key, "CreateRepository"), 1);
}

#[test]
fn a_repository_that_is_there_is_not_created() {
    let key = "AKIANOTCREATED";
    push("not-created", key).arg("--create-repository").run().success();
    assert_eq!(calls(key, "CreateRepository"), 0);
}

#[test]
fn a_creation_that_is_denied_names_the_action() {
    let (scope, key) = ("create-denied", "AKIACREATEDENIED");
    shaped(scope, json!({"missing": true}));
    let rule = json!([{"target": "CreateRepository", "status": 400, "code": "AccessDeniedException",
        "message": "User x is not authorized to perform: ecr:CreateRepository"}]);
    Stack::shared().set("control-plane", key, json!({}), rule);
    let words = ["AccessDeniedException", "allow ecr:CreateRepository", "AWS_ACCESS_KEY_ID"];
    push(scope, key).arg("--create-repository").run().failure(5, &words);
}

/// ECR's answer on a repository whose tags can't be moved.
fn immutable(key: &str, mutability: &str) {
    let body = json!({"repositories": [{"repositoryName": "x", "imageTagMutability": mutability}]});
    let rule = json!([{"target": "DescribeRepositories", "status": 200, "body": body.to_string(),
        "headers": {"Content-Type": "application/x-amz-json-1.1"}}]);
    Stack::shared().set("control-plane", key, json!({}), rule);
}

#[test]
fn an_immutable_tag_is_known_before_any_layer_is_sent() {
    let (scope, key) = ("immutable", "AKIAIMMUTABLE");
    shaped(scope, json!({"immutable": ["*"]}));
    immutable(key, "IMMUTABLE");
    let first = push(scope, key);
    first.run().success();
    let (before, requests) = (uploads(scope), Stack::shared().requests("ecr", scope).len());
    // The same content is success, and nothing is sent.
    first.run().success();
    let again = Stack::shared().requests("ecr", scope).split_off(requests);
    assert!(again.iter().all(|request| request.method() == "HEAD"), "{again:#?}");

    let other = || push(scope, key).file("b", "other content");
    other().run().failure(5, &["immutable", "v1", "--skip-immutable"]);
    assert_eq!(uploads(scope), before);
    let skipped = other().arg("--skip-immutable").run().success();
    assert!(skipped.stderr.contains("it was not pushed"), "{}", skipped.stderr);
    assert_eq!(uploads(scope), before);
}

#[test]
fn an_immutable_tag_that_nobody_told_of_is_understood_in_each_wording() {
    for wording in ["tag", "repository"] {
        let (scope, key) = (format!("immutable-{wording}"), format!("AKIAIMM{wording}"));
        shaped(&scope, json!({"immutable": ["*"], "immutable_wording": wording}));
        let denied = json!([{"target": "DescribeRepositories", "status": 400,
            "code": "AccessDeniedException", "message": "no"}]);
        Stack::shared().set("control-plane", &key, json!({}), denied);
        push(&scope, &key).run().success();
        let other = || push(&scope, &key).file("b", "other content");
        other().run().failure(5, &["TAG_INVALID", "--skip-immutable"]);
        let skipped = other().arg("--skip-immutable").run().success();
        assert!(skipped.stderr.contains("it was not pushed"), "{}", skipped.stderr);
    }
}

#[test]
fn a_mutable_tag_moves() {
    let (scope, key) = ("mutable", "AKIAMUTABLE");
    immutable(key, "MUTABLE");
    push(scope, key).run().success();
    push(scope, key).file("b", "other content").run().success();
}

#[test]
fn denials_name_the_action_the_caller_and_the_account() {
    for (number, action) in ["ecr:InitiateLayerUpload", "ecr:CompleteLayerUpload", "ecr:PutImage"]
        .into_iter()
        .enumerate()
    {
        let scope = format!("denied-{number}");
        shaped(&scope, json!({"denied": action}));
        let allow = format!("allow {action}");
        let words = [action, &allow, "arn:aws:", "account 111122223333", "repository policy"];
        push(&scope, &format!("AKIADENIED{number}")).run().failure(5, &words);
    }
}

#[test]
fn a_quota_is_not_taken_for_a_permission() {
    shaped("quota", json!({"quota": true}));
    push("quota", "AKIAQUOTA").run().failure(5, &["maximum allowed number of images", "quota"]);
}

#[test]
fn a_base_that_may_not_be_pulled_names_the_action() {
    let scope = "pull-denied";
    push(scope, "AKIAPULLDENIED").run().success();
    shaped(scope, json!({"denied": "ecr:BatchGetImage"}));
    let build = Build::new(format!("FROM {SHAPED}/{scope}/app:v1\n"))
        .inside(Stack::shared())
        .env("AWS_ACCESS_KEY_ID", "AKIAPULLDENIED")
        .env("AWS_SECRET_ACCESS_KEY", "s");
    build.run().failure(4, &["allow ecr:BatchGetImage", "arn:aws:"]);
}

#[test]
fn a_pull_through_cache_is_filled_by_tag() {
    let scope = "pull-through";
    let done = push(scope, "AKIAPULLTHROUGH").run().success();
    let digest = done.metadata()["containerimage.digest"].as_str().unwrap().to_owned();
    shaped(scope, json!({"pull_through": true}));
    for (at, base) in [format!("app:v1@{digest}"), "app:v1".to_owned()].into_iter().enumerate() {
        let dockerfile = format!("FROM {SHAPED}/{scope}/{base}\nCOPY a /{at}\n");
        let build = Build::new(dockerfile)
            .file("a", "a")
            .inside(Stack::shared())
            .env("AWS_ACCESS_KEY_ID", "AKIAPULLTHROUGH")
            .env("AWS_SECRET_ACCESS_KEY", "s");
        build.run().success();
    }
}
