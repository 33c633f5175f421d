//! A root of busybox, and steps on it.

use std::sync::{Mutex, OnceLock};
pub use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use bareboat_core::event::OutputStream;
pub use bareboat_core::execute::sandbox::{
    MountSource, OverlayRoot, SandboxError, StepExit, StepMount, StepReport, StepSpec, run,
};
pub use tempfile::TempDir;

static BASE: OnceLock<TempDir> = OnceLock::new();

/// What a static does not do by itself at the end.
pub fn remove_base() {
    if let Some(directory) = BASE.get() {
        fs::remove_dir_all(directory.path()).unwrap();
    }
}

/// A busybox root, made once.
pub fn base() -> &'static Path {
    BASE.get_or_init(|| {
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
        let busybox = busybox.into_iter().find(|path| path.exists());
        let busybox = busybox.expect("this test needs Debian's package busybox-static");
        let directory = world_readable(tempfile::tempdir().unwrap());
        let root = directory.path();
        for name in ["bin", "etc", "tmp", "root", "dev", "proc", "sys", "opt", "home/app"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::copy(busybox, root.join("bin/busybox")).unwrap();
        let list = Command::new(busybox).arg("--list").output().unwrap().stdout;
        for applet in String::from_utf8(list).unwrap().lines().filter(|name| *name != "busybox") {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
        )
        .unwrap();
        fs::set_permissions(root.join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
        directory
    })
    .path()
}

pub fn world_readable(directory: TempDir) -> TempDir {
    fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    directory
}

/// The directories of one step.
pub struct Step {
    pub directory: TempDir,
    pub spec: StepSpec,
}

pub fn step_on(lowers: &[&Path], script: &str) -> Step {
    let directory = world_readable(tempfile::tempdir().unwrap());
    let below = |name: &str| {
        let path = directory.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let mut spec = StepSpec::new(OverlayRoot {
        lowers: lowers.iter().map(|path| path.to_path_buf()).collect(),
        upper: below("upper"),
        work: below("work"),
        scratch: below("scratch"),
    });
    spec.arguments = ["/bin/sh", "-c", script].map(Into::into).to_vec();
    spec.environment = vec!["PATH=/bin".into()];
    spec.resolv_conf = b"nameserver 192.0.2.1\n".to_vec();
    spec.hosts = b"127.0.0.1 localhost buildkitsandbox\n".to_vec();
    Step { directory, spec }
}

pub fn step(script: &str) -> Step {
    step_on(&[base()], script)
}

pub struct Done {
    pub report: StepReport,
    pub stdout: String,
    pub stderr: String,
    pub directory: TempDir,
}

impl Done {
    pub fn upper(&self) -> PathBuf {
        self.directory.path().join("upper")
    }

    /// Everything in the upper directory, by path.
    pub fn changes(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        collect(&self.upper(), Path::new(""), &mut found);
        found
    }
}

pub fn collect(root: &Path, below: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        found.insert(path.display().to_string());
        if entry.file_type().unwrap().is_dir() {
            collect(root, &path, found);
        }
    }
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

impl Step {
    pub fn try_run(self) -> Result<Done, SandboxError> {
        let outputs = Mutex::new((Vec::new(), Vec::new()));
        let take = |stream, bytes: &[u8]| {
            let mut outputs = outputs.lock().unwrap();
            match stream {
                OutputStream::Stdout => outputs.0.extend_from_slice(bytes),
                OutputStream::Stderr => outputs.1.extend_from_slice(bytes),
            }
        };
        let report = block_on(run(self.spec, take, std::future::pending()))?;
        let (stdout, stderr) = outputs.into_inner().unwrap();
        let (stdout, stderr) =
            (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
        Ok(Done { report, stdout, stderr, directory: self.directory })
    }

    pub fn run(self) -> Done {
        self.try_run().unwrap()
    }

    /// Runs a script that must succeed, and returns what it said.
    pub fn says(self) -> String {
        let done = self.run();
        assert_eq!(done.report.exit, StepExit::Code(0), "{}{}", done.stdout, done.stderr);
        done.stdout
    }

    pub fn with(mut self, change: impl FnOnce(&mut StepSpec)) -> Self {
        change(&mut self.spec);
        self
    }

    pub fn mount(self, target: &str, source: MountSource) -> Self {
        self.with(|spec| spec.mounts.push(StepMount { target: target.into(), source }))
    }
}

pub fn file(content: &[u8], mode: u32, uid: u32, gid: u32) -> MountSource {
    MountSource::File { content: content.to_vec(), mode, uid, gid }
}

/// A step of the exec form.
pub fn command(arguments: &[&str]) -> Step {
    let arguments = arguments.iter().map(Into::into).collect();
    step("").with(|spec| spec.arguments = arguments)
}
