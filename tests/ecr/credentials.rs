//! Each place where credentials may lie: alone, before others, and wrong.

use std::{fs, os::unix::fs::PermissionsExt, process::Output};

use serde_json::{Value, json};

use super::login;
use crate::support::{
    Build, Stack,
    stack::{CLEAN, PASSWORD, SHAPED},
};

const RIGHT: &str = "hub-password";
/// Wrong passwords; nothing that is printed may hold them.
const CANARY: &str = "hunter2";

/// A home and what is around a call.
struct Place {
    home: tempfile::TempDir,
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
}

impl Place {
    fn new() -> Place {
        Place { home: tempfile::tempdir().unwrap(), arguments: Vec::new(), environment: Vec::new() }
    }

    fn path(&self, name: &str) -> String {
        self.home.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, content: &Value) -> String {
        let path = self.home.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content.to_string()).unwrap();
        path.display().to_string()
    }

    fn env(&mut self, name: &'static str, value: impl Into<String>) {
        self.environment.push((name, value.into()));
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.home.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn doctor(&self, reference: &str) -> Output {
        let mut command = Stack::shared().bareboat();
        command.args(["doctor", "--json", "--registry", reference]).args(&self.arguments);
        command.env("HOME", self.home.path());
        command.envs(self.environment.iter().map(|(name, value)| (*name, value)));
        let output = command.output().unwrap();
        for text in [&output.stdout, &output.stderr] {
            let text = String::from_utf8_lossy(text);
            for secret in [RIGHT, CANARY, PASSWORD] {
                assert!(!text.contains(secret), "{text}");
            }
        }
        output
    }

    /// What doctor says of a registry that answers.
    #[track_caller]
    fn source(&self, reference: &str) -> String {
        let output = self.doctor(reference);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        let answer = answer(&output);
        assert_eq!(answer["error"], Value::Null);
        answer["credentials"].as_str().unwrap_or("nowhere").to_owned()
    }

    /// What doctor says of one that can't be used.
    #[track_caller]
    fn failure(&self, reference: &str, words: &[&str]) {
        let output = self.doctor(reference);
        assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
        let text = answer(&output).to_string();
        for word in words {
            assert!(text.contains(word), "no {word:?} in {text}");
        }
    }
}

fn answer(output: &Output) -> Value {
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["registries"][0].clone()
}

fn hub(password: &str) -> Value {
    login("https://index.docker.io/v1/", "someone", password)
}

/// A source: puts a password there, and tells what messages call it.
type Source = fn(&mut Place, &str) -> String;

/// All for docker.io, in the order in which they are asked.
const SOURCES: &[Source] = &[
    |place, password| {
        let path = place.write("typed.json", &hub(password));
        place.arguments.extend(["--authfile".to_owned(), path.clone()]);
        path
    },
    |place, password| {
        let path = place.write("variable.json", &hub(password));
        place.env("REGISTRY_AUTH_FILE", &path);
        path
    },
    |place, password| {
        let path = place.write("docker/config.json", &hub(password));
        place.env("DOCKER_CONFIG", place.path("docker"));
        path
    },
    |place, password| {
        place.env("XDG_RUNTIME_DIR", place.path("run"));
        place.write("run/containers/auth.json", &hub(password))
    },
    |place, password| place.write(".config/containers/auth.json", &hub(password)),
    |place, password| {
        place.env("DOCKER_AUTH_CONFIG", hub(password).to_string());
        "DOCKER_AUTH_CONFIG".into()
    },
    |place, password| {
        place.env("CI_REGISTRY", "docker.io");
        place.env("CI_REGISTRY_USER", "someone");
        place.env("CI_REGISTRY_PASSWORD", password);
        "CI_REGISTRY_USER and CI_REGISTRY_PASSWORD".into()
    },
    |place, password| {
        place.env("CI_DEPENDENCY_PROXY_SERVER", "docker.io");
        place.env("CI_DEPENDENCY_PROXY_USER", "someone");
        place.env("CI_DEPENDENCY_PROXY_PASSWORD", password);
        "CI_DEPENDENCY_PROXY_USER and CI_DEPENDENCY_PROXY_PASSWORD".into()
    },
];

#[test]
fn each_source_is_enough_alone() {
    for source in SOURCES {
        let mut place = Place::new();
        let name = source(&mut place, RIGHT);
        assert_eq!(place.source("credentials/app:v1"), name);
    }
    let place = Place::new();
    let path = place.write(".docker/config.json", &hub(RIGHT));
    assert_eq!(place.source("credentials/app:v1"), path);
    assert_eq!(Place::new().source("credentials/app:v1"), "nowhere");
}

#[test]
fn the_first_source_counts_whatever_is_behind_it() {
    for (at, first) in SOURCES.iter().enumerate() {
        let mut place = Place::new();
        for later in &SOURCES[at + 1..] {
            later(&mut place, CANARY);
        }
        let name = first(&mut place, RIGHT);
        assert_eq!(place.source("credentials/app:v1"), name);
    }
}

#[test]
fn a_wrong_source_is_told_although_a_later_one_is_right() {
    for (at, first) in SOURCES.iter().enumerate() {
        let mut place = Place::new();
        for later in &SOURCES[at + 1..] {
            later(&mut place, RIGHT);
        }
        let name = first(&mut place, CANARY);
        place.failure("credentials/app:v1", &["incorrect username or password", &name]);
    }
}

#[test]
fn sources_for_other_registries_are_passed_over() {
    let mut place = Place::new();
    let other = login("other.example", "someone", CANARY);
    place.write(".docker/config.json", &other);
    place.env("DOCKER_AUTH_CONFIG", other.to_string());
    place.env("CI_REGISTRY", "other.example");
    place.env("CI_JOB_TOKEN", CANARY);
    place.env("GITHUB_ACTOR", "someone");
    place.env("GITHUB_TOKEN", CANARY);
    assert_eq!(place.source("credentials/app:v1"), "nowhere");
    let path = place.write(".config/containers/auth.json", &hub(RIGHT));
    assert_eq!(place.source("credentials/app:v1"), path);
}

#[test]
fn a_jobs_token() {
    let stack = Stack::shared();
    stack.set("hub", "job-token", json!({"users": {"gitlab-ci-token": RIGHT}}), json!([]));
    let mut place = Place::new();
    place.env("CI_REGISTRY", "docker.io");
    place.env("CI_JOB_TOKEN", RIGHT);
    assert_eq!(place.source("job-token/app:v1"), "CI_JOB_TOKEN");
    let mut place = Place::new();
    place.env("GITHUB_ACTOR", "someone");
    place.env("GITHUB_TOKEN", "ghcr-password");
    assert_eq!(place.source("ghcr.io/job-token/app:v1"), "GITHUB_TOKEN");
    // It goes to nobody else.
    assert_eq!(place.source("job-token/app:v1"), "nowhere");
}

#[test]
fn files_that_are_wrong_are_told() {
    let mut place = Place::new();
    place.arguments = ["--authfile", "/nonexistent/auth.json"].map(str::to_owned).into();
    let output = place.doctor("credentials/app:v1");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("--authfile /nonexistent"), "{said}");
    let place = Place::new();
    let path = place.write(".config/containers/auth.json", &json!([CANARY]));
    let output = place.doctor("credentials/app:v1");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains(&path), "{said}");
}

#[test]
fn helpers_are_asked_and_their_failures_told() {
    let mut place = Place::new();
    let path = std::env::var("PATH").unwrap();
    place.env("PATH", format!("{}:{path}", place.home.path().display()));
    let config = json!({"credHelpers": {"docker.io": "one"}, "auths": {"docker.io": {}}});
    let file = place.write(".docker/config.json", &config);
    place.program(
        "docker-credential-one",
        r#"echo '{"Username":"someone","Secret":"hub-password"}'"#,
    );
    let name = format!("docker-credential-one (named in {file})");
    assert_eq!(place.source("credentials/app:v1"), name);
    place.program("docker-credential-one", "echo hunter2 >&2; echo the keyring is locked; exit 1");
    place.failure("credentials/app:v1", &["the keyring is locked", &file]);
    let none = "echo credentials not found in native keychain; exit 1";
    place.program("docker-credential-one", none);
    assert_eq!(place.source("credentials/app:v1"), "nowhere");
}

fn with_keys(key: &str) -> Place {
    let mut place = Place::new();
    place.env("AWS_ACCESS_KEY_ID", key);
    place.env("AWS_SECRET_ACCESS_KEY", CANARY);
    place
}

#[test]
fn doctor_tells_whose_keys_ecr_gets() {
    let reference = format!("{CLEAN}/doctor/app:v1");
    let place = with_keys("AKIADOCTOR");
    // Keys that were given for this call come before a file that may be old.
    place.write(".docker/config.json", &login(CLEAN, "AWS", CANARY));
    assert_eq!(place.source(&reference), "ECR with keys from AWS_ACCESS_KEY_ID");
    let place = Place::new();
    let path = place.write(".docker/config.json", &login(CLEAN, "AWS", PASSWORD));
    assert_eq!(place.source(&reference), path);
    // A file that was named for this call comes before the keys.
    let mut place = with_keys("AKIADOCTOR");
    let path = place.write("named.json", &login(CLEAN, "AWS", PASSWORD));
    place.env("REGISTRY_AUTH_FILE", &path);
    assert_eq!(place.source(&reference), path);
}

#[test]
fn doctor_tells_what_ecr_refuses_and_to_whom() {
    let stack = Stack::shared();
    let rule = json!([{"target": "GetAuthorizationToken", "status": 400,
        "code": "AccessDeniedException", "message": "User: arn:aws:iam::1:user/x is not authorized"}]);
    stack.set("control-plane", "AKIADOCTORDENIED", json!({}), rule);
    let words = ["AWS_ACCESS_KEY_ID", "allow ecr:GetAuthorizationToken", "arn:aws:iam::1:user/x"];
    with_keys("AKIADOCTORDENIED").failure(&format!("{CLEAN}/doctor/app:v1"), &words);

    let scope = "doctor-pull";
    let push = Build::new("FROM scratch\nCOPY a /a\n").file("a", scope).inside(stack);
    let push = push.env("AWS_ACCESS_KEY_ID", "AKIADOCTORPULL").env("AWS_SECRET_ACCESS_KEY", "s");
    let reference = format!("{SHAPED}/{scope}/app:v1");
    push.without_output().args(["--push", "-t", &reference]).run().success();
    stack.set("ecr", scope, json!({"denied": "ecr:BatchGetImage"}), json!([]));
    let words = ["allow ecr:BatchGetImage", "AWS_ACCESS_KEY_ID", "arn:aws:"];
    with_keys("AKIADOCTORPULL").failure(&reference, &words);
}
