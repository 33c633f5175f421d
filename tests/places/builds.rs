//! A job's builds: the context comes on standard input, the image goes to the registry, so that a place needs no mount
//! for the test's sake.

use std::{
    collections::HashMap,
    fs,
    process::Command,
    sync::{Mutex, OnceLock},
};

use serde_json::Value;

use super::table::Row;
use crate::support::{
    Build, Layout, Member, Peers, TarForge, http, peers,
    places::{Container, Done, OrdinaryUser, RootFiles, Volume, done},
};

/// Written on the tmpfs that every container has, so that the root stays untouched.
const METADATA: &str = "/dev/shm/metadata.json";
/// Fixed, so that digests can be compared.
pub const EPOCH: &str = "1700000000";
/// Where bareboat keeps its state in a container: not part of what must stay as it was.
const STATE: [&str; 3] = ["/var/lib/bareboat", "/bareboat/home", "/.bareboat"];

/// The Dockerfile of that name.
fn dockerfile(name: &str) -> String {
    let path = format!("{}/tests/places/{name}.Dockerfile", env!("CARGO_MANIFEST_DIR"));
    Peers::get()
        .expand(&fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")))
}

/// A context with the Dockerfile of that name, as a tar.
pub fn context(name: &str) -> Vec<u8> {
    context_of(&dockerfile(name))
}

/// The same with a Dockerfile of the test's own, which may say `{busybox}`, `{debian}` and `{registry}`.
pub fn context_of(dockerfile: &str) -> Vec<u8> {
    TarForge::of([
        Member::file("Dockerfile", Peers::get().expand(dockerfile)).mtime(1),
        Member::file("file", "of the context\n").mtime(1),
    ])
}

/// What the machine itself makes of a Dockerfile, with the overlay of a real root.
pub fn host_digest(name: &'static str) -> String {
    static DIGESTS: OnceLock<Mutex<HashMap<&str, String>>> = OnceLock::new();
    let mut digests = DIGESTS.get_or_init(Mutex::default).lock().unwrap();
    let made = || {
        let build = Build::new("").stdin(&context(name)).env("SOURCE_DATE_EPOCH", EPOCH);
        build.run().success().digest()
    };
    digests.entry(name).or_insert_with(made).clone()
}

/// What came of a build in a place.
pub struct Outcome {
    done: Done,
    reference: String,
    metadata: Value,
    scratch: tempfile::TempDir,
}

impl Outcome {
    /// A build that failed wrote no metadata.
    fn new(done: Done, reference: String, metadata: &[u8]) -> Outcome {
        let metadata = serde_json::from_slice(metadata).unwrap_or_default();
        Outcome { done, reference, metadata, scratch: tempfile::tempdir().unwrap() }
    }

    pub fn log(&self) -> &str {
        &self.done.stderr
    }

    #[track_caller]
    pub fn success(mut self) -> Outcome {
        self.done = self.done.success();
        self
    }

    /// # Panics
    /// If the exit code is another one, or the log lacks one of `words`.
    #[track_caller]
    pub fn failure(&self, code: i32, words: &[&str]) {
        let Done { code: found, stdout, stderr } = &self.done;
        assert_eq!(*found, Some(code), "{stdout}{stderr}");
        for word in words {
            assert!(stderr.contains(word), "no {word:?} in\n{stderr}");
        }
    }

    /// The rung that its steps ran on.
    pub fn sandbox(&self) -> Option<String> {
        self.metadata["bareboat"]["sandbox"].as_str().map(str::to_owned)
    }

    /// The digest that it printed, which the registry's manifest has too.
    #[track_caller]
    pub fn digest(&self) -> String {
        let digest = self.done.stdout.trim();
        assert_eq!(http::manifest(&self.reference).0, digest);
        digest.to_owned()
    }

    /// The image as the registry gives it; gone with this outcome.
    pub fn layout(&self) -> Layout {
        http::pull(&self.reference, self.scratch.path())
    }
}

/// A container in which builds run one after another.
pub struct Job {
    container: Container,
    state: Option<&'static str>,
    volumes: &'static [Volume],
}

impl Job {
    pub fn start(row: &Row) -> Job {
        Job { container: row.place.start(), state: row.state, volumes: row.place.volumes }
    }

    pub fn build(&self, name: &str, options: &[&str]) -> Outcome {
        self.build_context(&context(name), options)
    }

    /// Builds a Dockerfile of the test's own.
    pub fn build_text(&self, dockerfile: &str, options: &[&str]) -> Outcome {
        self.build_context(&context_of(dockerfile), options)
    }

    fn build_context(&self, context: &[u8], options: &[&str]) -> Outcome {
        let reference = Peers::get().fresh_reference("place");
        let metadata = ["--metadata-file", METADATA];
        let _ = fs::remove_file(self.container.path(METADATA));
        let command = self.command(&reference, &[&metadata, options].concat());
        let done = done(command, context);
        let metadata = fs::read(self.container.path(METADATA)).unwrap_or_default();
        Outcome::new(done, reference, &metadata)
    }

    /// A build that begins when the step of another one has the root: with a binary and a state of its own.
    pub fn build_beside(&self, name: &str) -> (Done, String) {
        const WAIT: &str = "mkdir -p /.bareboat && cp /bareboat/bareboat /.bareboat/beside && echo > /dev/shm/ready
while [ -e /bareboat ]; do :; done
exec /.bareboat/beside build --state-dir /beside -t \"$0\" --push -";
        let reference = Peers::get().fresh_reference(name);
        let arguments = ["sh", "-c", WAIT, &reference];
        let epoch = [("SOURCE_DATE_EPOCH", EPOCH)];
        (done(self.container.command(&epoch, &arguments), &context(name)), reference)
    }

    /// Whether [`Job::build_beside`] waits by now.
    pub fn has_one_beside(&self) -> bool {
        self.container.path("/dev/shm/ready").exists()
    }

    /// A build that is not started yet. The context is to come on standard input.
    pub fn command(&self, reference: &str, options: &[&str]) -> Command {
        let mut env = vec![("SOURCE_DATE_EPOCH", EPOCH)];
        env.extend(self.state.map(|state| ("BAREBOAT_STATE_DIR", state)));
        let mut arguments = vec!["/bareboat/bareboat", "build", "-t", reference, "--push"];
        arguments.extend(options);
        arguments.push("-");
        self.container.command(&env, &arguments)
    }

    /// Any build puts the container's root in order. The program may lie with the rest of the container's own files.
    #[track_caller]
    pub fn repair(&self) {
        let places = ["/bareboat/bareboat", "/.bareboat/host/bareboat/bareboat"];
        let program = places.into_iter().find(|path| self.container.path(path).exists());
        let reference = Peers::get().fresh_reference("repair");
        let program = program.expect("the program is somewhere");
        let mut command = self.container.command_at_root(&[program, "build", "-t", &reference]);
        command.args(["--push", "-"]);
        done(command, &context("copy")).success();
    }

    pub fn container(&self) -> &Container {
        &self.container
    }

    fn holds_state(&self, volume: &Volume) -> bool {
        self.state.is_some_and(|state| state.starts_with(volume.path))
    }

    /// The names in its volumes but the one for the state: a build leaves nothing there.
    pub fn volume_files(&self) -> Vec<String> {
        let volumes = self.volumes.iter().filter(|volume| !self.holds_state(volume));
        let listing = |path| {
            peers::run(
                "find",
                [self.container.volume(path), "-printf".into(), "%P %m %i %T@\n".into()],
            )
        };
        volumes.map(|volume| listing(volume.path)).collect()
    }

    /// The container's root without the builder's state.
    pub fn root_files(&self) -> RootFiles {
        self.container.root_files(&STATE)
    }
}

/// A build of the ordinary user.
pub fn as_user(user: &OrdinaryUser, name: &str) -> Outcome {
    let reference = Peers::get().fresh_reference(name);
    let metadata = user.home().join("metadata.json");
    let epoch = format!("SOURCE_DATE_EPOCH={EPOCH}");
    let arguments = ["env", &epoch, "bareboat", "build", "-t", &reference, "--push"];
    let rest = ["--metadata-file", "/mnt/home/metadata.json", "-"];
    let _ = fs::remove_file(&metadata);
    let done = user.run_with_input(&[&arguments[..], &rest].concat(), &context(name));
    let metadata = fs::read(&metadata).unwrap_or_default();
    Outcome::new(done, reference, &metadata)
}
