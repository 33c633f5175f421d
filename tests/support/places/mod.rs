//! Places to build in: real containers as the CI systems start them, and an ordinary user of the machine.

mod container;
mod images;
mod place;
mod podman;
mod root;
mod user;

pub use container::Container;
pub use images::Image;
pub use place::{Place, Seccomp, Volume};
pub use root::RootFiles;
pub use user::OrdinaryUser;

use std::{process::Command, time::Duration};

/// What came of a command in a place.
pub struct Done {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Done {
    /// # Panics
    /// If the command failed, with everything it printed.
    #[track_caller]
    pub fn success(self) -> Done {
        assert_eq!(self.code, Some(0), "{}{}", self.stdout, self.stderr);
        self
    }
}

/// How long a command in a place may take.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Runs a command with these bytes as standard input.
///
/// # Panics
/// If it does not end within the time limit, with what it had printed.
pub fn done(mut command: Command, stdin: &[u8]) -> Done {
    use std::{fs, io::Write, process::Stdio, time::Instant};
    let mut input = tempfile::tempfile().unwrap();
    input.write_all(stdin).unwrap();
    std::io::Seek::rewind(&mut input).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let stream = |name| Stdio::from(fs::File::create(folder.path().join(name)).unwrap());
    command.stdin(input).stdout(stream("stdout")).stderr(stream("stderr"));
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let deadline = Instant::now() + TIMEOUT;
    let in_time = super::process::wait_for_exit(child.id(), deadline, |_| ());
    if !in_time {
        super::process::kill_tree(child.id());
    }
    let code = child.wait().unwrap().code();
    let text =
        |name| String::from_utf8_lossy(&fs::read(folder.path().join(name)).unwrap()).into_owned();
    let done = Done { code, stdout: text("stdout"), stderr: text("stderr") };
    assert!(in_time, "{command:?} did not end in time\n{}{}", done.stdout, done.stderr);
    done
}
