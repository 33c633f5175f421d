//! podman with a storage of the tests' own, shared by all tests of this process.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use crate::support::peers::{self, run_command};

/// Below the tests' temporary folder, which tests/run unmounts and removes. podman wants no more than 50 characters.
static STORAGE: LazyLock<PathBuf> = LazyLock::new(|| {
    let directory = std::env::temp_dir().join(format!("podman-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    directory
});

/// runc is chosen because crun refuses cgroups of mixed versions.
pub fn command() -> Command {
    let mut command = Command::new("podman");
    command.arg("--root").arg(STORAGE.join("s")).arg("--runroot").arg(STORAGE.join("r"));
    command.args(["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs"]);
    command.args(["--events-backend", "none", "--runtime", "runc"]);
    command
}

/// Runs podman and returns its stdout.
pub fn run<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> String {
    run_command(command().args(arguments))
}

/// As [`run`], whatever comes of it.
pub fn try_run<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) {
    let _ = command().args(arguments).output();
}

/// Gives the image in an OCI layout a name in the storage.
pub fn import(layout: &Path, name: &str) {
    let place = format!("[overlay@{0}/s+{0}/r]", STORAGE.display());
    let target = format!("containers-storage:{place}{name}");
    peers::run("skopeo", ["copy", "-q", &format!("oci:{}", layout.display()), &target]);
}
