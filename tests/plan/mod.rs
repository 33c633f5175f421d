//! `bareboat plan`: each folder's Dockerfile is planned on `base.json`, with no registry to ask, and printed as
//! `expected.txt` and `expected.json` say. BAREBOAT_UPDATE_PLANS=1 writes those anew.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::support::binary;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plan")
}

/// A plan with an empty environment, state in a new directory, and every registry behind a port where nobody listens.
fn plan(arguments: &[&str]) -> Output {
    let state = tempfile::tempdir().unwrap();
    Command::new(binary())
        .arg("plan")
        .args(["--platform", "linux/amd64", "--state-dir"])
        .arg(state.path())
        .args(arguments)
        .env_clear()
        .env("HTTPS_PROXY", "http://127.0.0.1:1")
        .current_dir(folder())
        .output()
        .unwrap()
}

fn planned(arguments: &[&str]) -> String {
    let output = plan(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && stderr.is_empty(), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn refused(arguments: &[&str]) -> (i32, String) {
    let output = plan(arguments);
    assert!(output.stdout.is_empty());
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

const BASE: &str = "--base-config=base:1=base.json";

fn is_as_expected(case: &str, options: &[&str]) {
    for (format, file) in [("human", "expected.txt"), ("json", "expected.json")] {
        let mut arguments = vec!["--format", format];
        arguments.extend(options.iter().chain(&[case]));
        let text = planned(&arguments);
        let path = folder().join(case).join(file);
        if std::env::var_os("BAREBOAT_UPDATE_PLANS").is_some() {
            fs::write(&path, &text).unwrap();
        }
        assert_eq!(text, fs::read_to_string(&path).unwrap(), "{}", path.display());
    }
}

#[test]
fn stages_in_order_and_only_what_the_target_needs() {
    is_as_expected(
        "stages",
        &[BASE, "--build-arg", "VERSION=1", "--label", "built=here", "-t", "x"],
    );
}

#[test]
fn a_target_without_images_needs_no_configuration() {
    let text = planned(&["--target", "tools", "stages"]);
    assert!(text.starts_with("Dockerfile for linux/amd64, target tools\n"), "{text}");
    assert!(!text.contains("base:1"), "{text}");
}

#[test]
fn triggers_run_where_the_base_was_named() {
    is_as_expected("triggers", &[BASE]);
}

#[test]
fn mounts_and_every_kind_of_source() {
    is_as_expected("sources", &["--build-context", "extra=."]);
}

#[test]
fn one_configuration_for_every_name_of_an_image() {
    for name in ["docker.io/library/base:1", "index.docker.io/base:1", "library/base:1"] {
        planned(&["--base-config", &format!("{name}=base.json"), "triggers"]);
    }
}

#[test]
fn what_is_wrong_is_told() {
    let (code, text) = refused(&["triggers"]);
    assert!(
        code == 4 && text.contains("Dockerfile:1") && text.contains("base:1"),
        "{code}: {text}"
    );
    let (code, text) = refused(&["--base-config", "base:1=none.json", "triggers"]);
    assert!(code == 2 && text.contains("none.json"), "{code}: {text}");
    let (code, text) = refused(&["--base-config", "base:1=triggers/Dockerfile", "triggers"]);
    assert!(code == 2 && text.contains("triggers/Dockerfile"), "{code}: {text}");
    let (code, text) =
        refused(&["--target", "app2", "--base-config", "base:1=base.json", "stages"]);
    assert!(code == 3 && text.contains("app2"), "{code}: {text}");
    let output = plan(&["--base-config", "other=base.json", "--target", "tools", "stages"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && told.contains("docker.io/library/other:latest"), "{told}");
}
