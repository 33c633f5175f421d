//! Registries with bearer tokens: Docker Hub's and GHCR's ways.

use serde_json::{Value, json};

use super::login;
use crate::support::{Build, Stack, stack::Request};

/// A build with `layers` layers that pushes to `docker.io/SCOPE/app:v1`.
fn push(scope: &str, layers: usize) -> Build {
    let mut dockerfile = "FROM scratch\n".to_owned();
    for at in 0..layers {
        dockerfile += &format!("COPY f{at} /f{at}\n");
    }
    let mut build = Build::new(dockerfile).inside(Stack::shared()).without_output();
    for at in 0..layers {
        build = build.file(&format!("f{at}"), format!("{scope} {at}"));
    }
    build.docker_config(&login("https://index.docker.io/v1/", "someone", "hub-password")).args([
        "--push",
        "-t",
        &format!("{scope}/app:v1"),
    ])
}

fn requests(scope: &str) -> Vec<Request> {
    Stack::shared().requests("hub", scope)
}

fn token_calls(requests: &[Request]) -> Vec<&Request> {
    requests.iter().filter(|request| request.path().starts_with("/token")).collect()
}

fn set(scope: &str, switches: Value) {
    // The state of a scope is its own: the users are Docker Hub's.
    Stack::shared().set("hub", scope, switches, json!([]));
}

fn count(requests: &[Request], line: &str) -> usize {
    requests.iter().filter(|request| request.short() == line).count()
}

#[test]
fn many_parallel_blobs_take_one_token() {
    push("one-token", 8).run().success();
    let requests = requests("one-token");
    assert_eq!(count(&requests, "PUT upload 201"), 9);
    assert_eq!(token_calls(&requests).len(), 1, "{requests:#?}");
    // What was sent before the first challenge, at most one each of what runs at once.
    assert!(requests.iter().filter(|one| one.status() == 401).count() <= 5);
}

#[test]
fn a_token_that_dies_early_is_renewed() {
    set("dying", json!({"dead_after": 8}));
    push("dying", 4).run().success();
    let requests = requests("dying");
    let calls = token_calls(&requests).len();
    assert!((2..=12).contains(&calls), "{calls}");
    assert_eq!(count(&requests, "PUT manifest 201"), 1);
}

#[test]
fn a_short_life_is_believed() {
    // Renewed before its end: the registry never has to refuse it.
    set("short", json!({"expires_in": 1, "lifetime_seconds": 1, "field": "access_token"}));
    push("short", 2).run().success();
    let requests = requests("short");
    assert_eq!(count(&requests, "PUT manifest 201"), 1);
}

#[test]
fn an_identity_token_is_exchanged() {
    set(
        "identity",
        json!({"post_status": null, "identity_tokens": ["the-identity"], "refresh_tokens": true,
            "dead_after": 3, "users": {}}),
    );
    let config = json!({"auths": {"https://index.docker.io/v1/": {
        "username": "00000000-0000-0000-0000-000000000000", "password": "", "identitytoken": "the-identity"}}});
    push("identity", 2).docker_config(&config).run().success();
    let requests = requests("identity");
    let calls = token_calls(&requests);
    assert!(calls.len() >= 2);
    for call in calls {
        assert_eq!((call.method(), call.0["grant"].as_str()), ("POST", Some("refresh_token")));
    }
}

#[test]
fn a_password_grant_where_the_get_is_closed() {
    set("grant", json!({"post_status": null, "get_status": 405}));
    push("grant", 1).run().success();
    let requests = requests("grant");
    let last = token_calls(&requests).pop().unwrap().0["grant"].clone();
    assert_eq!(last, "password");
}

#[test]
fn a_server_that_reads_one_scope_only() {
    set("first-scope", json!({"first_scope_only": true}));
    let stack = Stack::shared();
    let build = push("first-scope", 1);
    build.run().success();
    // A second repository may mount from the first, if the token's scopes allow it.
    build.args(["-t", "first-scope/second:v1"]).run().success();
    let puts = stack.requests("hub", "first-scope");
    assert_eq!(count(&puts, "PUT manifest 201"), 2);
}

#[test]
fn a_wrong_password_is_told_and_never_falls_back_to_anonymous() {
    let config = login("https://index.docker.io/v1/", "someone", "wrong-hunter2");
    let outcome = push("wrong", 1).docker_config(&config).run();
    let outcome = outcome.failure(5, &["config.json", "incorrect username or password"]);
    assert!(!outcome.stderr.contains("hunter2"));
    let requests = requests("wrong");
    assert!(token_calls(&requests).iter().all(|call| call.authorization() == Some("Basic")));
    // The question whether a push is allowed is asked without a credential first, as all are.
    let mut posts = requests.iter().filter(|request| request.method() == "POST");
    assert!(posts.all(|request| request.status() == 401), "{requests:#?}");
}

#[test]
fn an_anonymous_pull_with_opaque_tokens_and_redirects() {
    let stack = Stack::shared();
    let build = Build::new("FROM scratch\nCOPY a /a\n").file("a", "ghcr").inside(stack);
    build
        .without_output()
        .docker_config(&login("ghcr.io", "someone", "ghcr-password"))
        .args(["--push", "-t", "ghcr.io/opaque/app:v1"])
        .run()
        .success();
    let before = stack.requests("ghcr", "opaque").len();
    let dockerfile = "FROM ghcr.io/opaque/app:v1 AS base\nFROM scratch\nCOPY --from=base /a /b\n";
    Build::new(dockerfile).inside(stack).run().success();
    let pulled = &stack.requests("ghcr", "opaque")[before..];
    let tokens = token_calls(pulled);
    assert!(tokens.iter().all(|call| call.authorization().is_none()) && !tokens.is_empty());
    for request in stack.requests("buckets", "opaque") {
        assert_eq!((request.status(), request.authorization()), (200, None));
    }
}
