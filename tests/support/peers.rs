//! The real parts that tests/run installed, started and named in the environment.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

/// Where the base images and the registry are.
pub struct Peers {
    /// `HOST:PORT` of the registry, on loopback, plain http.
    pub registry: String,
    /// The folder with the OCI layouts `busybox` and `debian`.
    pub bases: PathBuf,
}

impl Peers {
    /// Reads what tests/run exported.
    ///
    /// # Panics
    /// If it was not tests/run that started the tests: they need real peers and never skip silently.
    pub fn get() -> Peers {
        let read = |name| match env::var(name) {
            Ok(value) => value,
            Err(_) => panic!(
                "{name} is not set: start the tests with tests/run, or with `tests/run --peers cargo test`"
            ),
        };
        Peers {
            registry: read("BAREBOAT_TEST_REGISTRY"),
            bases: read("BAREBOAT_TEST_BASES").into(),
        }
    }

    /// The reference of the base image `name` in the registry.
    pub fn base(&self, name: &str) -> String {
        format!("{}/base/{name}:latest", self.registry)
    }

    /// The base image `name` as an OCI layout.
    pub fn layout(&self, name: &str) -> PathBuf {
        self.bases.join(name)
    }

    /// A reference in the registry that no other test uses.
    pub fn fresh_reference(&self, name: &str) -> String {
        format!("{}/test/{name}-{}:latest", self.registry, unique())
    }

    /// `{busybox}`, `{debian}` and `{registry}` in a Dockerfile or an argument become the real names.
    pub fn expand(&self, text: &str) -> String {
        text.replace("{busybox}", &self.base("busybox"))
            .replace("{debian}", &self.base("debian"))
            .replace("{registry}", &self.registry)
    }
}

/// A name that no other test of this run has.
pub fn unique() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Runs a peer and returns its stdout.
///
/// # Panics
/// If it cannot be started or fails, with everything it printed.
pub fn run<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    run_command(&mut command)
}

/// As [`run`], for a command that is set up already.
pub fn run_command(command: &mut Command) -> String {
    let output = command.stdin(std::process::Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{stdout}{stderr}", output.status);
    stdout
}

/// `skopeo inspect` of a reference in the registry.
pub fn skopeo_inspect(reference: &str) -> serde_json::Value {
    let name = format!("docker://{reference}");
    let text = run("skopeo", ["inspect", "--tls-verify=false", &name]);
    serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("skopeo inspect {reference}: {error}\n{text}"))
}

/// The image's config as `skopeo inspect --config` gives it.
pub fn skopeo_config(reference: &str) -> serde_json::Value {
    let name = format!("docker://{reference}");
    let text = run("skopeo", ["inspect", "--config", "--tls-verify=false", &name]);
    serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("skopeo inspect {reference}: {error}\n{text}"))
}

/// Copies a layout's image into the registry; skopeo verifies what it reads.
pub fn skopeo_push(layout: &Path, reference: &str) {
    let (from, to) = (format!("oci:{}", layout.display()), format!("docker://{reference}"));
    run("skopeo", ["copy", "-q", "--dest-tls-verify=false", &from, &to]);
}

/// A storage folder of podman or buildah of a test's own. Dropping it unmounts and removes it.
pub struct Storage {
    directory: tempfile::TempDir,
}

impl Storage {
    pub fn new() -> Storage {
        Storage { directory: tempfile::tempdir().unwrap() }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("--root").arg(self.directory.path().join("root"));
        command.arg("--runroot").arg(self.directory.path().join("run"));
        command.args(["--storage-driver", "overlay"]);
        command
    }

    /// What `podman load` says of an archive.
    pub fn podman_load(&self, archive: &Path) -> String {
        let mut command = self.command("podman");
        command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "none"]);
        run_command(command.args(["load", "-q", "-i"]).arg(archive))
    }

    /// Pulls `reference` and runs it; its stdout. Its limits are low because a machine may not allow podman's defaults,
    /// runc is chosen because crun refuses cgroups of mixed versions.
    pub fn podman_run(&self, reference: &str, options: &[&str], arguments: &[&str]) -> String {
        let mut command = self.command("podman");
        command.args([
            "--cgroup-manager",
            "cgroupfs",
            "--events-backend",
            "none",
            "--runtime",
            "runc",
        ]);
        command.args(["run", "--rm", "-q", "--tls-verify=false", "--network", "none"]);
        command.args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]);
        command.args(["--security-opt", "seccomp=/usr/share/containers/seccomp.json"]);
        run_command(command.args(options).arg(reference).args(arguments))
    }

    /// Builds a Dockerfile with buildah, a layer for each step, and writes the image as an OCI layout to `destination`.
    pub fn buildah(&self, dockerfile: &Path, context: &Path, destination: &Path) {
        let image = format!("localhost/oracle-{}", unique());
        let mut build = self.command("buildah");
        build.args(["build", "-q", "--format", "oci", "--layers", "--isolation", "chroot"]);
        build.args(["--cap-add", "MKNOD", "--network", "host", "--tls-verify=false"]);
        run_command(build.args(["-t", &image, "-f"]).arg(dockerfile).arg(context));
        let mut push = self.command("buildah");
        let target = format!("oci:{}:latest", destination.display());
        run_command(push.args(["push", "-q", &image, &target]));
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        let overlay = self.directory.path().join("root/overlay");
        let _ = Command::new("umount").arg("-q").arg(&overlay).output();
    }
}
