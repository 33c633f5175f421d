//! AWS keys from each of the places where a job has them, and no other word on the command line.

use std::{fs, sync::LazyLock};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde_json::json;

use crate::support::{
    Build, Stack,
    stack::{CLEAN, PASSWORD, Request, SHAPED},
};

const DOCKERFILE: &str = "FROM scratch\nCOPY a /a\nCOPY b /b\nCOPY c /c\n";
const SECRET: &str = "secret-of-a-test";
const ID_TOKENS: &str = "http://127.0.0.1:8099/token?api-version=2.0";

/// A build that pushes to `registry`.
fn push_to(stack: &'static Stack, registry: &str, scope: &str) -> Build {
    Build::new(DOCKERFILE)
        .file("a", "one")
        .file("b", scope)
        .file("c", registry)
        .inside(stack)
        .without_output()
        .args(["--push", "-t", &format!("{registry}/{scope}/app:v1")])
}

fn push(scope: &str) -> Build {
    push_to(Stack::shared(), CLEAN, scope)
}

fn with_keys(build: Build, key: &str) -> Build {
    build.env("AWS_ACCESS_KEY_ID", key).env("AWS_SECRET_ACCESS_KEY", SECRET)
}

/// The calls that were signed with `key`, and the unsigned ones for an empty one.
fn calls(key: &str, target: &str) -> Vec<Request> {
    let all = Stack::shared().requests("control-plane", key);
    all.into_iter().filter(|call| call.0["target"] == target).collect()
}

/// Calls to STS for a role: that of one test alone.
fn for_role(target: &str, role: &str) -> Vec<Request> {
    let all = Stack::shared().requests("control-plane", "");
    let wanted = |call: &Request| call.0["target"] == target && call.0["RoleArn"] == role;
    all.into_iter().filter(wanted).collect()
}

fn role(name: &str) -> String {
    format!("arn:aws:iam::123456789012:role/{name}")
}

#[test]
fn keys_in_the_environment_give_one_token_for_all_blobs() {
    let key = "AKIALOGINENVIRON";
    let done = with_keys(push("login-environment"), key).arg("-v").run().success();
    assert_eq!(calls(key, "GetAuthorizationToken").len(), 1);
    assert!(done.stderr.contains("ECR: keys from AWS_ACCESS_KEY_ID"), "{}", done.stderr);
    assert!(!done.stderr.contains(SECRET) && !done.stderr.contains(PASSWORD));
}

#[test]
fn the_region_and_the_endpoint_come_from_the_host() {
    for (number, (registry, endpoint)) in [
        ("123456789012.dkr.ecr.eu-central-1.amazonaws.com", "api.ecr.eu-central-1.amazonaws.com"),
        ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", "api.ecr.cn-north-1.amazonaws.com.cn"),
        ("123456789012.dkr-ecr.us-west-2.on.aws", "ecr.us-west-2.api.aws"),
        ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com", "fips.us-gov-west-1"),
        ("123456789012.dkr.ecr.eusc-de-east-1.amazonaws.eu", "api.ecr.eusc-de-east-1.amazonaws.eu"),
        ("123456789012.dkr.ecr.us-iso-east-1.c2s.ic.gov", "api.ecr.us-iso-east-1.c2s.ic.gov"),
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("AKIALOGINREGION{number}");
        // Another region than the host's must not matter.
        let build = push_to(Stack::shared(), registry, &format!("login-region-{number}"));
        with_keys(build, &key).env("AWS_REGION", "ap-south-1").run().success();
        let asked = calls(&key, "GetAuthorizationToken");
        assert_eq!(asked.len(), 1, "{registry}");
        let host = asked[0].0["host"].as_str().unwrap();
        assert!(host.contains(endpoint), "{registry}: {host}");
    }
}

#[test]
fn githubs_token_is_exchanged_for_a_role() {
    let arn = role("login-github");
    let build = push("login-github")
        .args(["--aws-role-arn", &arn, "--aws-role-session-name", "job-7"])
        .env("ACTIONS_ID_TOKEN_REQUEST_URL", ID_TOKENS)
        .env("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "github-request-token");
    build.run().success();
    let exchanged = for_role("AssumeRoleWithWebIdentity", &arn);
    assert_eq!(exchanged.len(), 1);
    assert_eq!(exchanged[0].0["RoleSessionName"], "job-7");
    assert_eq!(exchanged[0].0["host"], "sts.us-east-1.amazonaws.com");
    assert_eq!(exchanged[0].authorization(), None);
}

#[test]
fn an_id_token_is_exchanged_for_a_role_and_on_to_others() {
    let (first, second, third) = (role("login-gitlab"), role("login-second"), role("login-third"));
    let build = push("login-gitlab")
        .args(["--aws-role-arn", &first, "--aws-role-arn", &second])
        .args(["--aws-registry-role", &format!("{CLEAN}={third}")])
        .args(["--aws-external-id", "7", "--aws-id-token-var", "MY_TOKEN"])
        .env("MY_TOKEN", "header.claims.signature");
    build.run().success();
    let exchanged = for_role("AssumeRoleWithWebIdentity", &first);
    assert_eq!(exchanged.len(), 1);
    // It can't be had again: the session is to be as long as can be.
    assert_eq!(exchanged[0].0["DurationSeconds"], "43200");
    for next in [second, third] {
        let assumed = for_role("AssumeRole", &next);
        assert_eq!((assumed.len(), &assumed[0].0["ExternalId"]), (1, &json!("7")));
    }
}

#[test]
fn a_base_and_a_destination_may_need_different_roles() {
    let stack = Stack::shared();
    with_keys(push("login-roles"), "AKIALOGINROLES").run().success();
    let (pull, push) = (role("login-pull"), role("login-push"));
    let build = Build::new(format!("FROM {CLEAN}/login-roles/app:v1\nCOPY d /d\n"))
        .file("d", "d")
        .inside(stack)
        .without_output()
        .args(["--push", "-t", &format!("{SHAPED}/login-roles/app:v2")])
        .args(["--aws-registry-role", &format!("{CLEAN}={pull}")])
        .args(["--aws-registry-role", &format!("{SHAPED}={push}")]);
    with_keys(build, "AKIALOGINROLES").run().success();
    assert_eq!(for_role("AssumeRole", &pull).len(), 1);
    assert_eq!(for_role("AssumeRole", &push).len(), 1);
}

#[test]
fn a_token_file_and_a_role_of_a_service_account() {
    let arn = role("login-irsa");
    let build = push("login-irsa");
    let path = build.scratch().join("token");
    fs::write(&path, "header.claims.signature\n").unwrap();
    build.env("AWS_WEB_IDENTITY_TOKEN_FILE", &path).env("AWS_ROLE_ARN", &arn).run().success();
    assert_eq!(for_role("AssumeRoleWithWebIdentity", &arn).len(), 1);
}

#[test]
fn a_profile_with_its_chain_of_roles() {
    let arn = role("login-profile");
    let build = push("login-profile");
    let path = build.scratch().join("config");
    let key = "AKIALOGINPROFILE";
    let config = format!(
        "[profile ci]\nrole_arn = {arn}\nsource_profile = base\nexternal_id = x\n\
         [profile base]\naws_access_key_id = {key}\naws_secret_access_key = {SECRET}\n"
    );
    fs::write(&path, config).unwrap();
    build.env("AWS_CONFIG_FILE", &path).env("AWS_PROFILE", "ci").run().success();
    let assumed = calls(key, "AssumeRole");
    assert_eq!((assumed.len(), &assumed[0].0["ExternalId"]), (1, &json!("x")));
}

#[test]
fn a_program_that_a_profile_names() {
    let build = push("login-process");
    let path = build.scratch().join("config");
    let key = "AKIALOGINPROCESS";
    let keys =
        format!(r#"{{\"Version\":1,\"AccessKeyId\":\"{key}\",\"SecretAccessKey\":\"{SECRET}\"}}"#);
    fs::write(&path, format!("[default]\ncredential_process = echo \"{keys}\"\n")).unwrap();
    build.env("AWS_CONFIG_FILE", &path).run().success();
    assert_eq!(calls(key, "GetAuthorizationToken").len(), 1);
}

#[test]
fn roles_of_tasks_pods_and_machines() {
    let relative = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
    push("login-task").env(relative, "/v2/credentials/x").run().success();
    assert!(!calls("AKIACONTAINER", "GetAuthorizationToken").is_empty());

    for address in ["169.254.170.23", "[fd00:ec2::23]"] {
        let build = push(&format!("login-pod-{}", address.len()));
        let path = build.scratch().join("pod-token");
        // The line's end is the file's, not the token's.
        fs::write(&path, "pod-identity-token\n").unwrap();
        build
            .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("http://{address}/v1/credentials"))
            .env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &path)
            .run()
            .success();
    }
    assert!(calls("AKIAPODIDENTITY", "GetAuthorizationToken").len() >= 2);

    push("login-machine").run().success();
    assert!(!calls("AKIAINSTANCE", "GetAuthorizationToken").is_empty());
}

#[test]
fn a_source_that_is_configured_and_broken_ends_the_search() {
    // One of our own: nobody else may ask its metadata service.
    static ALONE: LazyLock<Stack> = LazyLock::new(Stack::start);
    let build = |scope| push_to(&ALONE, CLEAN, scope).timeout(120);
    let arn = role("broken");
    build("broken-profile")
        .env("AWS_PROFILE", "nobody")
        .run()
        .failure(5, &["nobody", "AWS_PROFILE"]);
    build("broken-keys").env("AWS_ACCESS_KEY_ID", "x").run().failure(5, &["AWS_SECRET_ACCESS_KEY"]);
    build("broken-github")
        .args(["--aws-role-arn", &arn])
        .env("ACTIONS_ID_TOKEN_REQUEST_URL", ID_TOKENS)
        .env("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "wrong")
        .run()
        .failure(5, &["GitHub's OIDC token", "401", "id-token: write"]);
    build("broken-gitlab")
        .env("AWS_ID_TOKEN", "x")
        .run()
        .failure(5, &["no role", "--aws-role-arn"]);
    build("broken-file")
        .env("AWS_WEB_IDENTITY_TOKEN_FILE", "/nonexistent/token")
        .env("AWS_ROLE_ARN", &arn)
        .run()
        .failure(5, &["/nonexistent/token"]);
    build("broken-pod")
        .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23/v1/credentials")
        .run()
        .failure(5, &["401"]);
    build("broken-address")
        .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://foreign.example/")
        .run()
        .failure(5, &["AWS_CONTAINER_CREDENTIALS_FULL_URI"]);
    build("disabled")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .run()
        .failure(5, &["no AWS keys were found", "AWS_EC2_METADATA_DISABLED", "--aws-role-arn"]);
    assert_eq!(ALONE.requests("imds", "").len(), 0);
    assert_eq!(ALONE.token_calls(), 0);
}

#[test]
fn a_machine_without_a_role_is_told() {
    static ALONE: LazyLock<Stack> = LazyLock::new(Stack::start);
    ALONE.set("imds", "", json!({"role": null}), json!([]));
    push_to(&ALONE, CLEAN, "no-role").run().failure(5, &["no role", "instance profile"]);
}

/// Docker's configuration with a password for `registry`.
fn docker_password(registry: &str, password: &str) -> serde_json::Value {
    json!({"auths": {registry: {"auth": BASE64.encode(format!("AWS:{password}"))}}})
}

#[test]
fn keys_of_the_build_come_before_dockers_configuration_and_those_of_the_pod_after() {
    let stale = docker_password(CLEAN, "an old one");
    with_keys(push("login-before"), "AKIALOGINBEFORE").docker_config(&stale).run().success();
    assert_eq!(calls("AKIALOGINBEFORE", "GetAuthorizationToken").len(), 1);

    // This endpoint would fail if it were asked.
    let broken = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23/v1/credentials");
    let good = docker_password(CLEAN, PASSWORD);
    push("login-after").docker_config(&good).env(broken.0, broken.1).run().success();

    let relative = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
    let helper = json!({"credHelpers": {CLEAN: "ecr-login"}, "auths": stale["auths"]});
    push("login-helper").docker_config(&helper).env(relative, "/x").run().success();
    let store = json!({"credsStore": "ecr-login"});
    push("login-store").docker_config(&store).env(relative, "/x").run().success();
}

#[test]
fn a_token_that_expires_during_the_push_is_renewed_once() {
    let (stack, key, scope) = (Stack::shared(), "AKIALOGINEXPIRES", "login-expires");
    stack.set("ecr", scope, json!({"expire_after": 5}), json!([]));
    with_keys(push_to(stack, SHAPED, scope), key).run().success();
    let refused = stack.requests("ecr", scope).iter().filter(|r| r.status() == 403).count();
    assert!(refused >= 1, "nothing expired");
    assert_eq!(calls(key, "GetAuthorizationToken").len(), 2);
}

#[test]
fn a_token_that_is_about_to_end_is_renewed_before_it_is_refused() {
    let (stack, key, scope) = (Stack::shared(), "AKIALOGINSHORT", "login-short");
    // So short that each use asks for a new one.
    let switches = json!({"token_generations": true, "expires_in_seconds": 1});
    stack.set("control-plane", key, switches, json!([]));
    let slow = json!([{"method": "POST", "wait_seconds": 2}]);
    stack.set("ecr", scope, json!({}), slow);
    with_keys(push_to(stack, SHAPED, scope), key).run().success();
    assert!(calls(key, "GetAuthorizationToken").len() >= 2);
    let statuses: Vec<u64> = stack.requests("ecr", scope).iter().map(Request::status).collect();
    assert!(!statuses.contains(&403), "{statuses:?}");
}

#[test]
fn a_token_that_is_refused_over_and_over_ends_the_push_with_the_reason() {
    let (stack, key, scope) = (Stack::shared(), "AKIALOGINREFUSED", "login-refused");
    let refuse = json!([{"method": "POST", "status": 403, "code": "DENIED",
        "message": "Your Authorization Token is invalid."}]);
    stack.set("ecr", scope, json!({}), refuse);
    let words = ["Authorization Token is invalid", "AWS_ACCESS_KEY_ID", "arn:aws:"];
    with_keys(push_to(stack, SHAPED, scope), key).run().failure(5, &words);
    let tokens = calls(key, "GetAuthorizationToken").len();
    assert!(tokens <= 3, "{tokens} tokens");
}

#[test]
fn throttling_of_the_control_plane_is_waited_out_and_a_denial_is_told() {
    let (stack, key) = (Stack::shared(), "AKIALOGINTHROTTLE");
    let rule = json!([{"target": "GetAuthorizationToken", "first": 2, "status": 400,
        "code": "ThrottlingException", "message": "Rate exceeded"}]);
    stack.set("control-plane", key, json!({}), rule);
    with_keys(push("login-throttle"), key).run().success();
    let key = "AKIALOGINDENIED";
    let rule = json!([{"target": "GetAuthorizationToken", "status": 400, "code": "AccessDeniedException",
        "message": "User x is not authorized to perform: ecr:GetAuthorizationToken on resource: *"}]);
    stack.set("control-plane", key, json!({}), rule);
    let words = ["AccessDeniedException", "allow ecr:GetAuthorizationToken", "AWS_ACCESS_KEY_ID"];
    with_keys(push("login-denied"), key).run().failure(5, &words);
}

#[test]
fn look_alikes_get_no_token() {
    let key = "AKIALOGINEVIL";
    for registry in [
        "123456789012.dkr.ecr.us-east-1.amazonaws.com.evil.example",
        "123456789012.dkr.ecr.evil.amazonaws.com",
    ] {
        let stack = Stack::shared();
        let done = with_keys(push_to(stack, registry, "login-evil"), key).timeout(60).run();
        assert_ne!(done.code(), Some(0));
        let asked = stack.requests("foreign", "");
        let asked = asked.iter().filter(|request| request.0["host"] == registry);
        assert!(asked.clone().count() > 0 && asked.clone().all(|r| r.authorization().is_none()));
    }
    assert_eq!(Stack::shared().requests("control-plane", key).len(), 0);
}

#[test]
fn a_private_name_is_ecrs_where_the_user_says_so() {
    let key = "AKIALOGINALIAS";
    let build = with_keys(push_to(Stack::shared(), "mirror.example", "login-alias"), key);
    // This server asks for no password, so none is fetched for the push; the destination is prepared all the same.
    build.args(["--ecr-registry", "mirror.example=eu-central-1"]).run().success();
    let asked = calls(key, "GetAuthorizationToken");
    assert_eq!(asked[0].0["host"], "api.ecr.eu-central-1.amazonaws.com");
}

#[test]
fn ecr_public_needs_keys_for_pushes_alone() {
    let (stack, key) = (Stack::shared(), "AKIALOGINPUBLIC");
    with_keys(push_to(stack, "public.ecr.aws", "login-public"), key).run().success();
    let tokens = calls(key, "GetAuthorizationToken");
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].0["host"], "api.ecr-public.us-east-1.amazonaws.com");
    let pull = Build::new("FROM public.ecr.aws/login-public/app:v1\nCOPY d /d\n").file("d", "d");
    with_keys(pull.inside(stack), "AKIALOGINPULL").run().success();
    assert_eq!(stack.requests("control-plane", "AKIALOGINPULL").len(), 0);
}

#[test]
fn aws_ca_bundle_is_one_more_source_of_roots() {
    let stack = Stack::shared();
    let build = with_keys(push("login-bundle"), "AKIALOGINBUNDLE");
    let none = build.scratch().join("none.pem");
    fs::write(&none, "").unwrap();
    let build = build.env("SSL_CERT_FILE", &none).timeout(60);
    assert_ne!(build.run().code(), Some(0));
    build.env("AWS_CA_BUNDLE", stack.directory().join("ca.pem")).run().success();
}

#[test]
fn a_build_without_ecr_asks_nothing_of_aws() {
    let key = "AKIALOGINUNUSED";
    let build = Build::new("FROM scratch\nCOPY a /a\n").file("a", "a").inside(Stack::shared());
    // Not even what is wrong is looked at.
    with_keys(build, key).env("AWS_PROFILE", "nobody").run().success();
    assert_eq!(Stack::shared().requests("control-plane", key).len(), 0);
}
