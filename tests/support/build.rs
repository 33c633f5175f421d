//! One invocation of `bareboat build`: its context, Dockerfile, state and arguments; and what came of it.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::Read,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    Layout, Peers, Stack,
    process::{self, Io},
};

/// The binary under test: the one that cargo built with the tests, or another one (a release, say) that BAREBOAT_TEST_BINARY names.
pub fn binary() -> &'static Path {
    static BINARY: LazyLock<PathBuf> = LazyLock::new(|| {
        std::env::var_os("BAREBOAT_TEST_BINARY")
            .unwrap_or(env!("CARGO_BIN_EXE_bareboat").into())
            .into()
    });
    &BINARY
}

/// A build that can be run as often as a test likes. Context, state and outputs live in a folder of its own.
pub struct Build {
    scratch: Arc<tempfile::TempDir>,
    state: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    source: Option<OsString>,
    stdin: Option<PathBuf>,
    output: bool,
    stack: Option<&'static Stack>,
    timeout: Duration,
    runs: AtomicU32,
}

impl Build {
    /// `dockerfile` may say `{busybox}`, `{debian}` and `{registry}`.
    pub fn new(dockerfile: impl AsRef<str>) -> Build {
        let scratch =
            Arc::new(tempfile::Builder::new().prefix("bareboat-test-").tempdir().unwrap());
        fs::create_dir(scratch.path().join("context")).unwrap();
        fs::create_dir(scratch.path().join("home")).unwrap();
        let build = Build {
            state: scratch.path().join("state"),
            scratch,
            arguments: Vec::new(),
            environment: Vec::new(),
            source: None,
            stdin: None,
            output: true,
            stack: None,
            timeout: Duration::from_secs(300),
            runs: AtomicU32::new(0),
        };
        build.dockerfile(dockerfile)
    }

    /// Replaces the Dockerfile.
    pub fn dockerfile(self, text: impl AsRef<str>) -> Build {
        let text = text.as_ref();
        let text = if text.contains('{') && needs_peers(text) {
            Peers::get().expand(text)
        } else {
            text.to_owned()
        };
        fs::write(self.context().join("Dockerfile"), text).unwrap();
        self
    }

    /// A file of the context, 0644.
    pub fn file(self, path: &str, content: impl AsRef<[u8]>) -> Build {
        let path = self.context().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        self
    }

    pub fn symlink(self, target: &str, path: &str) -> Build {
        std::os::unix::fs::symlink(target, self.context().join(path)).unwrap();
        self
    }

    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Build {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Build {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    pub fn build_arg(self, pair: &str) -> Build {
        self.args(["--build-arg", pair])
    }

    /// An image in an OCI layout as the named context `name`.
    pub fn layout_context(self, name: &str, layout: &Path, digest: &str) -> Build {
        let value = format!("{name}=oci-layout://{}@{digest}", layout.display());
        self.args(["--build-context".to_owned(), value])
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Build {
        self.environment.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Another CONTEXT than the folder of files.
    pub fn source(mut self, source: impl AsRef<OsStr>) -> Build {
        self.source = Some(source.as_ref().to_owned());
        self
    }

    /// CONTEXT is `-`, with these bytes on standard input.
    pub fn stdin(mut self, bytes: &[u8]) -> Build {
        let path = self.scratch.path().join("stdin");
        fs::write(&path, bytes).unwrap();
        self.stdin = Some(path);
        self.source("-")
    }

    /// Shares a state directory with another build.
    pub fn state(mut self, directory: &Path) -> Build {
        self.state = directory.to_owned();
        self
    }

    /// No `-o` of our own: the arguments say where the result goes, or nobody does.
    pub fn without_output(mut self) -> Build {
        self.output = false;
        self
    }

    /// Runs in the stack's namespaces.
    pub fn inside(mut self, stack: &'static Stack) -> Build {
        self.stack = Some(stack);
        self
    }

    /// Docker's configuration below the build's home.
    pub fn docker_config(self, config: &serde_json::Value) -> Build {
        let directory = self.scratch.path().join("home/.docker");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("config.json"), config.to_string()).unwrap();
        self
    }

    pub fn timeout(mut self, seconds: u64) -> Build {
        self.timeout = Duration::from_secs(seconds);
        self
    }

    pub fn context(&self) -> PathBuf {
        self.scratch.path().join("context")
    }

    pub fn state_directory(&self) -> &Path {
        &self.state
    }

    /// A folder for what a test wants to have beside the context.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    pub fn run(&self) -> Outcome {
        self.spawn().wait()
    }

    /// Starts the build in a process group of its own.
    pub fn spawn(&self) -> Running {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let layout = self.scratch.path().join(format!("out-{run}"));
        let metadata = self.scratch.path().join(format!("metadata-{run}.json"));
        let mut command = self.command(&layout, &metadata);
        let mut child =
            command.spawn().unwrap_or_else(|error| panic!("{}: {error}", binary().display()));
        let (stdout, stderr) = (collect(child.stdout.take()), collect(child.stderr.take()));
        let deadline = Instant::now() + self.timeout;
        Running { child, stdout, stderr, layout, metadata, deadline, scratch: self.scratch.clone() }
    }

    fn command(&self, layout: &Path, metadata: &Path) -> Command {
        let mut command = bareboat();
        command
            .arg("build")
            .arg("--state-dir")
            .arg(&self.state)
            .arg("--metadata-file")
            .arg(metadata);
        if self.output {
            command.arg("-o").arg(format!("type=oci,dest={},tar=false", layout.display()));
        }
        command
            .args(&self.arguments)
            .arg(self.source.clone().unwrap_or_else(|| self.context().into()))
            .env("HOME", self.scratch.path().join("home"));
        for (name, value) in &self.environment {
            command.env(name, value);
        }
        if let Some(stack) = self.stack {
            command = stack.wrap(command);
        }
        let stdin = self.stdin.as_ref().map(|path| fs::File::open(path).unwrap().into());
        command
            .stdin(stdin.unwrap_or_else(Stdio::null))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        command
    }
}

/// The binary with an environment that nothing of the caller's leaks into.
pub fn bareboat() -> Command {
    let mut command = Command::new(binary());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy().to_ascii_lowercase();
        if text.starts_with("bareboat_")
            || text.ends_with("_proxy")
            || text == "source_date_epoch"
            || text == "docker_config"
            || text == "docker_auth_config"
            || text == "registry_auth_file"
            || text == "xdg_runtime_dir"
            || text == "github_token"
            || text.starts_with("ci_")
        {
            command.env_remove(&name);
        }
    }
    command
}

fn needs_peers(text: &str) -> bool {
    ["{busybox}", "{debian}", "{registry}"].iter().any(|name| text.contains(name))
}

type Collected = thread::JoinHandle<Vec<u8>>;

fn collect(stream: Option<impl Read + Send + 'static>) -> Collected {
    let mut stream = stream.expect("the stream is piped");
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        bytes
    })
}

/// A build under way.
pub struct Running {
    child: Child,
    stdout: Collected,
    stderr: Collected,
    layout: PathBuf,
    metadata: PathBuf,
    deadline: Instant,
    scratch: Arc<tempfile::TempDir>,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        process::signal(self.pid(), signal);
    }

    /// Waits for the end; kills the build if it takes longer than its timeout.
    ///
    /// # Panics
    /// On that timeout, with what the build had printed.
    pub fn wait(mut self) -> Outcome {
        let mut peak_bytes = 0;
        let in_time = process::wait_for_exit(self.pid(), self.deadline, |pid| {
            peak_bytes = process::peak_bytes(pid).unwrap_or(peak_bytes);
        });
        let io = process::io(self.pid());
        if !in_time {
            process::kill_tree(self.pid());
        }
        let status = self.child.wait().unwrap();
        let (stdout, stderr) = (text(self.stdout), text(self.stderr));
        assert!(in_time, "the build did not end in time\n{stdout}\n{stderr}");
        Outcome {
            status,
            stdout,
            stderr,
            layout: self.layout,
            metadata: self.metadata,
            io,
            peak_bytes,
            _scratch: self.scratch,
        }
    }
}

fn text(collected: Collected) -> String {
    String::from_utf8_lossy(&collected.join().unwrap()).into_owned()
}

/// What came of a build.
pub struct Outcome {
    pub status: std::process::ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub layout: PathBuf,
    pub metadata: PathBuf,
    /// Bytes that the builder and its finished children read and wrote, sockets and pipes too.
    pub io: Io,
    /// The most memory that the builder's main process held.
    pub peak_bytes: u64,
    /// Keeps what was written until the test is done with it.
    _scratch: Arc<tempfile::TempDir>,
}

/// A step as the metadata file tells of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub instruction: String,
    pub line: u64,
    pub cached: bool,
}

impl Outcome {
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// # Panics
    /// If the build failed, with its log.
    #[track_caller]
    pub fn success(self) -> Outcome {
        assert!(self.status.success(), "{}\n{}{}", self.status, self.stdout, self.stderr);
        self
    }

    /// # Panics
    /// If the exit code is another one, or the log lacks one of `words`.
    #[track_caller]
    pub fn failure(self, code: i32, words: &[&str]) -> Outcome {
        assert_eq!(self.code(), Some(code), "{}\n{}{}", self.status, self.stdout, self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in\n{}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked at"), "{}", self.stderr);
        self
    }

    /// The layout that was written, every digest verified.
    #[track_caller]
    pub fn layout(&self) -> Layout {
        Layout::open(&self.layout)
    }

    /// The tree that the image's layers make.
    #[track_caller]
    pub fn tree(&self) -> super::Tree {
        self.layout().tree()
    }

    pub fn digest(&self) -> String {
        self.layout().digest
    }

    /// The text of a file of the image.
    #[track_caller]
    pub fn text_of(&self, path: &str) -> String {
        String::from_utf8(self.layout().content(path)).unwrap()
    }

    pub fn metadata(&self) -> serde_json::Value {
        let text = fs::read_to_string(&self.metadata)
            .unwrap_or_else(|error| panic!("{}: {error}", self.metadata.display()));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}:\n{text}"))
    }

    pub fn steps(&self) -> Vec<Step> {
        let metadata = self.metadata();
        let steps = metadata["bareboat"]["steps"]
            .as_array()
            .unwrap_or_else(|| panic!("no bareboat.steps in {metadata:#}"));
        steps.iter().map(step).collect()
    }

    /// The lines of the steps that were executed, not taken from the cache.
    pub fn executed(&self) -> Vec<u64> {
        let mut lines: Vec<u64> =
            self.steps().iter().filter(|step| !step.cached).map(|step| step.line).collect();
        lines.sort_unstable();
        lines
    }
}

fn step(value: &serde_json::Value) -> Step {
    Step {
        instruction: value["instruction"]
            .as_str()
            .unwrap_or_else(|| panic!("no instruction in {value}"))
            .to_owned(),
        line: value["line"].as_u64().unwrap_or_else(|| panic!("no line in {value}")),
        cached: value["cached"].as_bool().unwrap_or_else(|| panic!("no cached in {value}")),
    }
}
