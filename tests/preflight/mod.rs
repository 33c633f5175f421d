//! Preflight: what is known to fail is told at once and together, before anything is pulled or executed.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::support::{Build, FakeRegistry, ImageForge, fake_registry::Answer, forge::Forged};

/// Generous for a loaded machine; what is measured is that nobody waits for retries without end.
const SECONDS_MAX: u64 = 20;

/// Runs a build that must not begin: no step, no blob of a layer.
#[track_caller]
fn faults(build: &Build, code: i32, words: &[&str]) -> String {
    let started = Instant::now();
    let outcome = build.run().failure(code, words);
    assert!(started.elapsed() < Duration::from_secs(SECONDS_MAX), "{:?}", started.elapsed());
    assert!(!outcome.stderr.contains("from the registry"), "pulled:\n{}", outcome.stderr);
    assert!(!outcome.stderr.contains("] RUN touch /began"), "executed:\n{}", outcome.stderr);
    outcome.stderr
}

/// A step before the faulty one, which must not be executed.
fn after_a_run(rest: &str) -> Build {
    Build::new(format!("FROM {{busybox}}\nRUN touch /began\n{rest}"))
}

#[test]
fn sources_of_the_context_that_are_not_there() {
    for (rest, file, words) in [
        ("COPY gone /", "", &["/gone not found", "Dockerfile:3", "build context"] as &[&str]),
        ("ADD gone /", "", &["/gone not found", "Dockerfile:3"]),
        ("COPY a gone b /x/", "", &["/gone not found"]),
        ("COPY secret.pem /", "*.pem", &["/secret.pem not found", "leaves secret.pem out"]),
        ("COPY a/b/gone /", "", &["/a is not a directory"]),
        ("COPY gone/*.c /", "", &["Dockerfile:3"]),
        ("COPY --parents ./gone /", "", &["gone not found"]),
        ("COPY [[ /", "", &["Dockerfile:3", "malformed wildcard"]),
    ] {
        let build = after_a_run(rest).file("a", "").file("secret.pem", "").file("b", "");
        let build = build.file(".dockerignore", file);
        if rest.contains("gone/*") {
            // A wildcard's front is only looked for when it is read: as in BuildKit, this is told by the step.
            build.run().failure(3, words);
        } else {
            faults(&build, 3, words);
        }
    }
}

#[test]
fn sources_of_a_named_context_that_are_not_there() {
    let build = after_a_run("COPY --from=other gone /");
    let other = build.scratch().join("other");
    std::fs::create_dir(&other).unwrap();
    let build = build.arg("--build-context").arg(format!("other={}", other.display()));
    faults(&build, 3, &["/gone not found", "Dockerfile:3"]);
}

#[test]
fn secrets_and_keys_that_are_not_given() {
    let secret = "RUN --mount=type=secret,id=token,required=true true";
    faults(&after_a_run(secret), 1, &["secret token is required", "--secret id=token"]);
    let ssh = "RUN --mount=type=ssh,required=true true";
    faults(&after_a_run(ssh), 1, &["no SSH key", "--ssh default"]);
    // One that is not required may be missing.
    after_a_run("RUN --mount=type=secret,id=token true").run().success();
}

/// Steps that are in no stage of the target, or whose record is there, need nothing.
#[test]
fn what_is_not_executed_needs_nothing() {
    let build = Build::new(
        "FROM {busybox} AS unneeded\nCOPY gone /\nRUN --mount=type=secret,id=x,required=true true\nFROM {busybox}\nRUN touch /began\n",
    );
    build.run().success();
    let text = "FROM {busybox}\nRUN --mount=type=secret,id=x,required=true touch /began\n";
    let build = Build::new(text);
    let state = build.state_directory().to_owned();
    let secret = build.scratch().join("secret");
    std::fs::write(&secret, "s").unwrap();
    let given = build.arg("--secret").arg(format!("id=x,src={}", secret.display()));
    given.run().success();
    Build::new(text).state(&state).run().success();
}

/// An index with one image, for arm64.
fn index() -> String {
    let digest = format!("sha256:{}", "0".repeat(64));
    let platform = json!({"os": "linux", "architecture": "arm64"});
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let entry = json!({"mediaType": media_type, "digest": digest, "size": 7, "platform": platform});
    let media_type = "application/vnd.oci.image.index.v1+json";
    json!({"schemaVersion": 2, "mediaType": media_type, "manifests": [entry]}).to_string()
}

fn registry(fault: impl Fn(&str, usize) -> Option<Answer> + Send + Sync + 'static) -> FakeRegistry {
    FakeRegistry::with_faults(
        [
            ("app".to_owned(), ImageForge::scratch().forge()),
            ("several".to_owned(), Forged::new(index().into_bytes(), BTreeMap::new())),
        ],
        Box::new(move |path, seen| fault(path, seen)),
    )
}

fn refusal(status: u16, code: &str, message: &str) -> Answer {
    let body = json!({"errors": [{"code": code, "message": message}]}).to_string();
    Answer::new(status, "application/json", body)
}

#[test]
fn images_that_can_not_be_had() {
    let registry = registry(|path, _| {
        let denied = path.contains("/secret/");
        denied.then(|| refusal(403, "DENIED", "requested access to the resource is denied"))
    });
    let address = &registry.address;
    for (image, words) in [
        (format!("{address}/app:gone"), &["MANIFEST_UNKNOWN", "Dockerfile:1"] as &[&str]),
        (format!("{address}/secret/app"), &["403", "Dockerfile:1"]),
        ("localhost:1/app".to_owned(), &["cannot connect", "Dockerfile:1"]),
    ] {
        let build = Build::new(format!("FROM {image}\nRUN touch /began\n"));
        faults(&build, 4, words);
    }
    let build = Build::new(format!("FROM {address}/several\nRUN touch /began\n"));
    let build = build.args(["--platform", "linux/s390x"]);
    faults(&build, 4, &["linux/s390x", "linux/arm64", "Dockerfile:1"]);
}

#[test]
fn repositories_that_can_not_be_pushed_to() {
    let expired = "Your authorization token has expired. Reauthenticate and try again.";
    for (status, code, message, words) in [
        (404, "NAME_UNKNOWN", "The repository does not exist", &["NAME_UNKNOWN"] as &[&str]),
        (
            403,
            "DENIED",
            "User: x is not authorized to perform ecr:InitiateLayerUpload",
            &["ecr:InitiateLayerUpload"],
        ),
        (403, "DENIED", expired, &["expired"]),
        (403, "DENIED", "the repository has reached its image quota", &["quota"]),
        (401, "UNAUTHORIZED", "authentication required", &["401"]),
        (405, "UNSUPPORTED", "the registry is read-only", &["read-only"]),
        (400, "NAME_INVALID", "invalid repository name", &["invalid repository name"]),
    ] {
        let registry = registry(move |path, _| {
            path.contains("/uploads/").then(|| refusal(status, code, message))
        });
        let name = format!("{}/team/image:1", registry.address);
        let build = after_a_run("").args(["-t", &name, "--push"]).without_output();
        let said = format!("cannot push to {}/team/image", registry.address);
        faults(&build, 5, &[&[said.as_str()], words].concat());
        let blobs =
            registry.requests().iter().filter(|request| request.contains("sha256:")).count();
        assert_eq!(blobs, 0, "{:?}", registry.requests());
    }
}

/// A registry that closes the connection at the start of an upload is how ECR says that the repository is missing.
#[test]
fn a_closed_connection_is_explained() {
    let registry = registry(|path, _| {
        let mut closed = refusal(500, "", "");
        closed.cut = Some(0);
        closed.headers.push(("Content-Length".into(), "100".into()));
        path.contains("/uploads/").then_some(closed)
    });
    let name = format!("{}/team/image:1", registry.address);
    let build = after_a_run("").args(["-t", &name, "--push"]).without_output();
    faults(&build, 5, &["cannot push to"]);
}

#[test]
fn a_full_disk() {
    let build = after_a_run("");
    let small = build.scratch().join("small");
    std::fs::create_dir(&small).unwrap();
    let mount = |arguments: &[&str]| {
        let done = std::process::Command::new(arguments[0]).args(&arguments[1..]).status();
        assert!(done.unwrap().success(), "{arguments:?}");
    };
    let place = small.to_str().unwrap();
    mount(&["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place]);
    let outcome = after_a_run("").state(&small.join("state")).run();
    mount(&["umount", place]);
    let outcome = outcome.failure(7, &["the base images need about", "MB are free", "--state-dir"]);
    assert!(!outcome.stderr.contains("from the registry"), "{}", outcome.stderr);
}

#[test]
fn all_faults_are_told_together_and_nothing_else_is_done() {
    let rest = "COPY gone /\nRUN --mount=type=secret,id=token,required=true true\nCOPY a.log /\n";
    let registry = registry(|path, _| {
        path.contains("/uploads/").then(|| refusal(404, "NAME_UNKNOWN", "no such repository"))
    });
    let name = format!("{}/team/image:1", registry.address);
    let build = || {
        let build = after_a_run(rest).file("a.log", "").file(".dockerignore", "*.log");
        build.args(["-t", &name, "--push"]).without_output()
    };
    let words = [
        "/gone not found",
        "Dockerfile:3",
        "secret token is required",
        "Dockerfile:4",
        "leaves a.log out",
        "Dockerfile:5",
        "NAME_UNKNOWN",
    ];
    let said = faults(&build(), 3, &words);
    assert_eq!(said.matches("error: ").count(), 4, "{said}");
    let only = faults(&build().arg("--preflight-only"), 3, &words);
    assert_eq!(only.matches("error: ").count(), 4, "{only}");
    // Without it the first step is executed, and the first fault ends the build.
    let outcome = build().arg("--no-preflight").run().failure(3, &["/gone not found"]);
    assert!(outcome.stderr.contains("RUN touch /began") && !outcome.stderr.contains("a.log out"));
}

#[test]
fn a_good_build_pays_with_nothing_but_the_upload_that_it_makes_anyway() {
    let build = after_a_run("").without_output();
    let name = crate::support::Peers::get().fresh_reference("preflight");
    let build = build.args(["-t", &name, "--push"]);
    build.run().success();
    // Nothing to do: nothing is asked of the repository but its tag.
    let again = build.run().success();
    assert!(again.stderr.contains("CACHED"), "{}", again.stderr);
    let only = build.arg("--preflight-only").run().success();
    assert!(!only.stderr.contains("RUN"), "{}", only.stderr);
}
