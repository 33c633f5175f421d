//! Whole suites, built in one long-lived container: the golden cases, and tests/dockerfile.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use super::table;
use crate::support::{
    peers,
    places::{Container, Place, Volume},
};

/// Cases, results and layouts of bases come and go through it.
const VOLUME: &str = "/golden";

const VOLUMES: [Volume; 1] = [Volume::empty(VOLUME)];
const PLACE: Place = Place { volumes: &VOLUMES, ..table::DEFAULT.place };

/// Containers that share a volume, one command at a time in each.
struct Containers(Vec<Container>);

impl Containers {
    fn start(count: usize) -> Containers {
        let first = PLACE.start();
        let git = first.volume(VOLUME).join("git");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/portable_git.py");
        peers::run("python3", [script, git.to_str().unwrap(), &format!("{VOLUME}/git")]);
        let others: Vec<_> = (1..count).map(|_| first.start_another(&PLACE)).collect();
        Containers(std::iter::once(first).chain(others).collect())
    }

    /// The volume as the machine sees it.
    fn folder(&self) -> PathBuf {
        self.0[0].volume(VOLUME)
    }

    /// A program that does what `bareboat` does, in one of the containers.
    fn program(&self) -> PathBuf {
        let folder = self.folder();
        let pairs = std::env::vars().map(|(name, value)| format!("{name}={value}\0"));
        fs::write(folder.join("environment"), pairs.collect::<String>()).unwrap();
        let path = folder.join("bareboat");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/in_container.py");
        let ids: Vec<&str> = self.0.iter().map(Container::id).collect();
        let (ids, folder) = (ids.join(","), folder.display());
        let text = format!(
            "#!/bin/sh\nexec python3 {script} {ids} {folder} {VOLUME} /bareboat/bareboat \"$@\"\n"
        );
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

/// Runs the cases of a folder that its passing.txt lists, but those that except-FOLDER.txt names: `tests/run
/// --update-places` makes it anew.
#[track_caller]
fn assert_cases(folder: &str) {
    let containers = Containers::start(2);
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut golden = Command::new("python3");
    golden.arg(tests.join("peers/golden.py")).arg("--root").arg(tests.join(folder));
    golden.arg("--bareboat").arg(containers.program());
    golden.arg("--except").arg(tests.join(format!("places/except-{folder}.txt")));
    let update = std::env::var_os("BAREBOAT_TEST_UPDATE").is_some();
    golden.args(if update { &["--update"][..] } else { &["--sample", "10"] });
    let output = golden.env("TMPDIR", containers.folder()).output().unwrap();
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
    // A test's builds share a state, which is in the container.
    let containers = Containers::start(1);
    let mut suite = Command::new(std::env::current_exe().unwrap());
    suite.args(["dockerfile::", "--skip", "hostile::", "--skip", "places::"]);
    let exceptions = include_str!("except-dockerfile.txt");
    let names = exceptions.lines().filter_map(|line| line.split('#').next());
    for name in names.map(str::trim).filter(|name| !name.is_empty()) {
        suite.args(["--skip", name]);
    }
    suite.env("BAREBOAT_TEST_BINARY", containers.program());
    let output = suite.env("TMPDIR", containers.folder()).output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{out}{}", String::from_utf8_lossy(&output.stderr));
}
