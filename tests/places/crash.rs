//! Builds that end early where the stage's files take the place of the container's own: whatever was killed and when, the
//! container's root is as before, nothing of the step lives on, and the next build gives the same image.

use std::{
    fs,
    io::{Seek, Write},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{
    builds::{Job, context_of},
    table,
};
use crate::support::{
    Gate, Peers,
    places::RootFiles,
    process::{self, wait_until},
};

const DOCKERFILE: &str = "FROM {busybox}
WORKDIR /work
RUN (trap '' TERM HUP; exec setsid sleep 1000 > /dev/null 2>&1) & mkdir /opt && echo one > /opt/one && rm -rf /home
RUN cat /opt/one > two && sleep 0.1 && touch /bareboat /busybox /root
RUN cat two /opt/one > /three && mv /opt /elsewhere
";

/// Where a build on this rung says how far its swap has come.
const JOURNAL: &str = "/.bareboat/swap.journal";

/// All the marks, in their order: see the journal's own table.
const MARKS: [char; 8] = ['B', 'P', 'L', 'A', 'S', 'I', 'O', 'C'];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    Builder,
    Keeper,
    Both,
}

const VICTIMS: [Victim; 3] = [Victim::Builder, Victim::Keeper, Victim::Both];

/// A container in which a build has gone well: its root, and the digest.
struct Ground {
    job: Job,
    root: RootFiles,
    digest: String,
    whole: Duration,
}

impl Ground {
    fn new() -> Ground {
        let job = Job::start(&table::DEFAULT);
        // Directories of the job image's layers are copied out once.
        job.build_text(DOCKERFILE, &["--no-cache"]).success();
        let root = job.root_files();
        let began = Instant::now();
        let digest = job.build_text(DOCKERFILE, &["--no-cache"]).success().digest();
        Ground { whole: began.elapsed(), root, digest, job }
    }

    fn start(&self, dockerfile: &str) -> Child {
        start(&self.job, dockerfile, &["--no-cache"])
    }

    /// Everything is as before, at once where something of the build had lived on, else when bareboat is started anew.
    #[track_caller]
    fn assert_sound(&self, victim: Victim, when: &str) {
        if victim == Victim::Both {
            self.job.repair();
        }
        self.assert_restored(when);
        let again = self.job.build_text(DOCKERFILE, &["--no-cache"]).success();
        assert_eq!(again.digest(), self.digest, "{when}");
        self.assert_restored(when);
    }

    #[track_caller]
    fn assert_restored(&self, when: &str) {
        self.assert_empty(when);
        let differences = self.job.root_files().differences(&self.root);
        assert!(
            differences.is_empty(),
            "{when}: the container's root changed:\n{}",
            differences.join("\n")
        );
    }

    #[track_caller]
    fn assert_empty(&self, when: &str) {
        let what = format!("{when}: the step's processes end");
        wait_until(20, &what, || self.job.container().processes().is_empty());
    }
}

fn start(job: &Job, dockerfile: &str, options: &[&str]) -> Child {
    let mut context = tempfile::tempfile().unwrap();
    context.write_all(&context_of(dockerfile)).unwrap();
    context.rewind().unwrap();
    let mut command = job.command(&Peers::get().fresh_reference("crash"), options);
    command.stdin(context).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// The builder, which the container's runtime has started.
fn builder(child: &Child) -> Option<u32> {
    let is_ours = |pid: &u32| process::program(*pid).as_deref() == Some("bareboat");
    process::descendants(child.id()).into_iter().find(is_ours)
}

/// Both are found before the first is killed, so that no time passes between the two.
fn kill(child: &Child, victim: Victim) {
    let Some(builder) = builder(child) else { return };
    let keepers = process::children(builder);
    let builders = [builder];
    let victims: &[&[u32]] = match victim {
        Victim::Builder => &[&builders],
        Victim::Keeper => &[&keepers],
        Victim::Both => &[&builders, &keepers],
    };
    victims.concat().into_iter().for_each(|pid| process::signal(pid, Signal::KILL));
}

/// Waits until the journal's last record is `mark`, which may go by unseen; or for the build's end.
fn wait_for_mark(job: &Job, child: &mut Child, mark: char) {
    let journal = job.container().path(JOURNAL);
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&journal).unwrap_or_default();
        let last = text.trim_end().rsplit('\n').next().unwrap_or_default();
        if last.chars().find(char::is_ascii_alphabetic) == Some(mark) {
            return;
        }
        thread::sleep(Duration::from_micros(20));
    }
}

#[track_caller]
fn assert_killed_at_marks(victim: Victim) {
    let ground = Ground::new();
    for mark in MARKS {
        let mut child = ground.start(DOCKERFILE);
        wait_for_mark(&ground.job, &mut child, mark);
        kill(&child, victim);
        child.wait().unwrap();
        ground.assert_sound(victim, &format!("{victim:?} killed at {mark}"));
    }
}

#[test]
fn the_builder_killed_at_the_marks_of_a_swap() {
    assert_killed_at_marks(Victim::Builder);
}

#[test]
fn the_keeper_killed_at_the_marks_of_a_swap() {
    assert_killed_at_marks(Victim::Keeper);
}

#[test]
fn both_killed_at_the_marks_of_a_swap() {
    assert_killed_at_marks(Victim::Both);
}

#[test]
fn kills_spread_over_a_whole_build() {
    let ground = Ground::new();
    for part in 1..16 {
        let victim = VICTIMS[part as usize % 3];
        let mut child = ground.start(DOCKERFILE);
        thread::sleep(ground.whole * part / 16);
        kill(&child, victim);
        child.wait().unwrap();
        ground.assert_sound(victim, &format!("{victim:?} killed at {part}/16"));
    }
}

/// A step that waits while an image is at `/`: a signal ends the build with its own exit code.
#[track_caller]
fn assert_signal(signal: Signal, code: i32) {
    let ground = Ground::new();
    let gate = Gate::closed();
    let stubborn = "(trap '' TERM INT HUP; exec setsid sleep 1000 > /dev/null 2>&1) &";
    let mut child =
        ground.start(&format!("FROM {{busybox}}\nRUN trap '' TERM; {stubborn} {}", gate.pass()));
    gate.wait_for_visitors(1);
    process::signal(builder(&child).unwrap(), signal);
    assert_eq!(child.wait().unwrap().code(), Some(code));
    assert!(ground.job.container().processes().is_empty(), "ended with the build");
    ground.job.root_files().assert_as(&ground.root);
    ground.assert_sound(Victim::Builder, "a signal");
}

#[test]
fn sigterm_restores_the_root_and_ends_with_143() {
    assert_signal(Signal::TERM, 143);
}

#[test]
fn sigint_restores_the_root_and_ends_with_130() {
    assert_signal(Signal::INT, 130);
}

/// Both are started before the first has anything at `/`.
#[track_caller]
fn assert_two_at_once(options: [&[&str]; 2]) {
    let ground = Ground::new();
    let children =
        options.map(|options| start(&ground.job, DOCKERFILE, &[&["--no-cache"], options].concat()));
    for mut child in children {
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
    ground.assert_sound(Victim::Builder, "two at once");
}

#[test]
fn two_builds_at_once_with_one_state_directory() {
    assert_two_at_once([&[], &[]]);
}

#[test]
fn two_builds_at_once_with_two_state_directories() {
    let two = ["--state-dir", "/dev/shm/state"];
    assert_two_at_once([&[], &two]);
}
