//! Whole suites, built in one long-lived container: the golden cases, and tests/dockerfile.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use super::table;
use crate::support::places::{Container, Place, Volume};

/// Cases, results and layouts of bases come and go through it.
const VOLUME: &str = "/golden";

/// A program that does what `bareboat` does, in the container.
fn program(container: &Container) -> std::path::PathBuf {
    let folder = container.volume(VOLUME);
    let pairs = std::env::vars().map(|(name, value)| format!("{name}={value}\0"));
    fs::write(folder.join("environment"), pairs.collect::<String>()).unwrap();
    let path = folder.join("bareboat");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/in_container.py");
    let (id, folder) = (container.id(), folder.display());
    let text = format!(
        "#!/bin/sh\nexec python3 {script} {id} {folder} {VOLUME} /bareboat/bareboat \"$@\"\n"
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn start() -> Container {
    const VOLUMES: [Volume; 1] = [Volume::empty(VOLUME)];
    Place { volumes: &VOLUMES, ..table::DEFAULT.place }.start()
}

/// Runs the cases of a folder that its passing.txt lists, but those that except-FOLDER.txt names: `tests/run
/// --update-places` makes it anew.
#[track_caller]
fn assert_cases(folder: &str) {
    let container = start();
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut golden = Command::new("python3");
    golden.arg(tests.join("peers/golden.py")).arg("--root").arg(tests.join(folder));
    golden.arg("--bareboat").arg(program(&container));
    golden.arg("--except").arg(tests.join(format!("places/except-{folder}.txt")));
    golden.args(["--sample", "4"]);
    let update = std::env::var_os("BAREBOAT_TEST_UPDATE").is_some();
    golden.args(update.then_some("--update"));
    let output = golden.env("TMPDIR", container.volume(VOLUME)).output().unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    assert!(update || out.trim_end().ends_with(" passed, 0 failed"), "{out}{err}");
}

#[test]
fn golden_cases_in_the_default_container() {
    assert_cases("golden");
}

#[test]
fn our_own_cases_in_the_default_container() {
    assert_cases("cases");
}

/// The tests of tests/dockerfile once more, with a binary that runs in the container; but those that
/// except-dockerfile.txt names.
#[test]
fn dockerfile_suite_in_the_default_container() {
    let container = start();
    let mut suite = Command::new(std::env::current_exe().unwrap());
    suite.args(["dockerfile::", "--skip", "hostile::", "--skip", "places::"]);
    let exceptions = include_str!("except-dockerfile.txt");
    for name in exceptions.lines().filter(|line| !line.starts_with('#')) {
        suite.args(["--skip", name]);
    }
    suite.env("BAREBOAT_TEST_BINARY", program(&container));
    let output = suite.env("TMPDIR", container.volume(VOLUME)).output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{out}{}", String::from_utf8_lossy(&output.stderr));
}
