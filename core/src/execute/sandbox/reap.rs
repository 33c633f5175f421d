//! Ending a step where no PID namespace does it: this process is the sub-reaper of all that it starts, so that every
//! orphan comes to it, and "no child left" proves that nothing of the step is alive.
//!
//! Processes are stopped before they are killed: what is stopped can't fork away from the killer. Nothing is ever killed
//! by group, session or name, which a daemon leaves.

use std::{
    collections::BTreeSet,
    ffi::CString,
    io::Read,
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    fs::{Mode, OFlags, openat},
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, WaitOptions, getpid, kill_process, pidfd_open, pidfd_send_signal,
        set_child_subreaper, wait,
    },
};

use super::{SandboxError, error::Named};
use crate::sys::fs::{open_directory_handle, read_directory};

/// How long a step's processes may take to die.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Passes over /proc until nothing new is found, before what was found is killed.
const PASSES_MAX: usize = 3;

/// The longest pause between two rounds.
const PAUSE_MILLISECONDS_MAX: u64 = 20;

/// More than the fields of /proc/PID/stat that are read; a name has 15 bytes at most.
const STAT_BYTES: usize = 256;

/// The processes below this one.
pub(super) struct Reaper {
    proc: OwnedFd,
    own: Pid,
}

impl Reaper {
    /// Makes this process the sub-reaper of what it starts from now on. It must have no children that it wants to
    /// keep, and /proc must be the one of its PID namespace.
    pub fn adopt_orphans() -> Result<Self, SandboxError> {
        let reaper = Self::observe()?;
        set_child_subreaper(Some(reaper.own)).named("prctl", "PR_SET_CHILD_SUBREAPER")?;
        Ok(reaper)
    }

    /// Only looks at /proc, for processes of others.
    pub fn observe() -> Result<Self, SandboxError> {
        let proc = open_directory_handle(Path::new("/proc")).named("open", "/proc")?;
        let own = getpid();
        let shown =
            rustix::fs::readlinkat(&proc, "self", Vec::new()).named("readlink", "/proc/self")?;
        if shown.to_bytes() != own.as_raw_nonzero().to_string().as_bytes() {
            // Its numbers are those of another PID namespace: killing by them would hit others.
            return Err(Errno::STALE).named("readlink", "/proc/self");
        }
        Ok(Reaper { proc, own })
    }

    /// Kills and reaps all descendants of this process. Fails with [`SandboxError::Unkillable`] when some are left
    /// after `patience`.
    pub fn end_all(&self, patience: Duration) -> Result<(), SandboxError> {
        let started = Instant::now();
        let mut pause = Duration::from_millis(1);
        while !reap()? {
            let alive = self.kill_below(self.own, &BTreeSet::new())?;
            if started.elapsed() > patience {
                return Err(unkillable(alive.len(), patience));
            }
            if reap()? {
                break;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(PAUSE_MILLISECONDS_MAX));
        }
        Ok(())
    }

    /// Kills all descendants of another process, such as a sub-reaper that the orphans of a dead child came to. `spared`
    /// and what is below them stay, and so does this process. The other one reaps its children: they are returned.
    pub fn end_below(
        &self,
        ancestor: Pid,
        spared: &BTreeSet<i32>,
        patience: Duration,
    ) -> Result<Vec<i32>, SandboxError> {
        let started = Instant::now();
        let mut children = BTreeSet::new();
        loop {
            let alive = self.kill_below(ancestor, spared)?;
            if alive.is_empty() {
                children.extend(self.zombies_of(ancestor, spared)?);
                return Ok(children.into_iter().collect());
            }
            if started.elapsed() > patience {
                return Err(unkillable(alive.len(), patience));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Kills what the steps of keepers that were killed have left: every process of this mount namespace that can never
    /// have `capability`, which no step has and none gets back. Where this process can't have it either, nothing is known
    /// of the others.
    pub fn end_without(&self, capability: u32, patience: Duration) -> Result<(), SandboxError> {
        let Some(here) = self.confines(self.own.as_raw_nonzero().get()) else { return Ok(()) };
        if here.bounding & 1 << capability == 0 {
            return Ok(());
        }
        let is_left = |pid: i32| {
            self.confines(pid).is_some_and(|confines| {
                confines.mounts == here.mounts && confines.bounding & 1 << capability == 0
            })
        };
        let started = Instant::now();
        loop {
            let mut left = BTreeSet::new();
            for _ in 0..PASSES_MAX {
                let found = self.processes()?.into_iter().filter(|pid| is_left(*pid));
                let new: Vec<i32> = found.filter(|pid| left.insert(*pid)).collect();
                new.iter().for_each(|pid| signal_if(*pid, Signal::STOP, is_left));
                if new.is_empty() {
                    break;
                }
            }
            if left.is_empty() {
                return Ok(());
            }
            left.iter().for_each(|pid| signal_if(*pid, Signal::KILL, is_left));
            if started.elapsed() > patience {
                return Err(unkillable(left.len(), patience));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// `None` where there is no such living process.
    fn confines(&self, pid: i32) -> Option<Confines> {
        if self.status(pid)?.dead {
            return None;
        }
        let path = format!("{pid}/status");
        let file = openat(&self.proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let mut text = Vec::new();
        std::fs::File::from(file.ok()?).read_to_end(&mut text).ok()?;
        let text = String::from_utf8_lossy(&text);
        let bounding = text.lines().find_map(|line| line.strip_prefix("CapBnd:"))?;
        let mounts = rustix::fs::readlinkat(&self.proc, format!("{pid}/ns/mnt"), Vec::new());
        Some(Confines {
            bounding: u64::from_str_radix(bounding.trim(), 16).ok()?,
            mounts: mounts.ok()?,
        })
    }

    /// Stops, then kills everything below `ancestor` once; returns what was there.
    fn kill_below(
        &self,
        ancestor: Pid,
        spared: &BTreeSet<i32>,
    ) -> Result<BTreeSet<i32>, SandboxError> {
        let ancestor = ancestor.as_raw_nonzero().get();
        let mut family = BTreeSet::from([ancestor]);
        for _ in 0..PASSES_MAX {
            if !self.stop_new(&mut family, spared)? {
                break;
            }
        }
        let mut alive = family.clone();
        alive.remove(&ancestor);
        // Children first, as far as the numbers say: they keep their parents until they are dead.
        for pid in alive.iter().rev() {
            self.signal_member(*pid, &family, Signal::KILL);
        }
        Ok(alive)
    }

    /// One ascending pass: whatever has a parent in the family joins it and is stopped. Whether there was anything new.
    fn stop_new(
        &self,
        family: &mut BTreeSet<i32>,
        spared: &BTreeSet<i32>,
    ) -> Result<bool, SandboxError> {
        let before = family.len();
        for pid in self.processes()? {
            if family.contains(&pid) || spared.contains(&pid) || self.is_own(pid) {
                continue;
            }
            if self
                .status(pid)
                .is_some_and(|status| !status.dead && family.contains(&status.parent))
            {
                family.insert(pid);
                self.signal_member(pid, family, Signal::STOP);
            }
        }
        Ok(family.len() > before)
    }

    fn signal_member(&self, pid: i32, family: &BTreeSet<i32>, signal: Signal) {
        signal_if(pid, signal, |pid| {
            self.status(pid).is_some_and(|status| family.contains(&status.parent))
        });
    }

    fn zombies_of(&self, ancestor: Pid, spared: &BTreeSet<i32>) -> Result<Vec<i32>, SandboxError> {
        let ancestor = ancestor.as_raw_nonzero().get();
        let is_zombie = |pid: &i32| {
            !spared.contains(pid)
                && self.status(*pid).is_some_and(|status| status.dead && status.parent == ancestor)
        };
        Ok(self.processes()?.into_iter().filter(is_zombie).collect())
    }

    fn processes(&self) -> Result<Vec<i32>, SandboxError> {
        let entries = read_directory(&self.proc).named("read", "/proc")?;
        let numbers = entries.iter().filter_map(|entry| entry.name.to_str()?.parse().ok());
        let mut numbers: Vec<i32> = numbers.collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// `None` where there is no such process (any more).
    fn status(&self, pid: i32) -> Option<Status> {
        let path = format!("{pid}/stat");
        let file = openat(&self.proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let mut buffer = [0; STAT_BYTES];
        let length = rustix::io::read(file.ok()?, &mut buffer).ok()?;
        Status::parse(&buffer[..length])
    }

    fn is_own(&self, pid: i32) -> bool {
        pid == self.own.as_raw_nonzero().get()
    }
}

/// Reaps what has ended; whether no child is left.
fn reap() -> Result<bool, SandboxError> {
    loop {
        // __WALL: also those that tell their end by another signal than SIGCHLD.
        let options = WaitOptions::NOHANG | WaitOptions::from_bits_retain(libc::__WALL as u32);
        match wait(options) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return Ok(false),
            Err(Errno::CHILD) => return Ok(true),
            Err(error) => return Err(error).named("waitpid", "-1"),
        }
    }
}

/// By a descriptor where the kernel has them: between the look and the signal the number may become another process's.
/// What is gone already is no error.
fn signal_if(pid: i32, signal: Signal, is_wanted: impl Fn(i32) -> bool) {
    let Some(pid) = Pid::from_raw(pid) else { return };
    let held = pidfd_open(pid, PidfdFlags::empty());
    if !is_wanted(pid.as_raw_nonzero().get()) {
        return;
    }
    let result = match held {
        Ok(held) => pidfd_send_signal(held, signal),
        Err(error) => Err(error),
    };
    if let Err(Errno::NOSYS | Errno::PERM | Errno::MFILE | Errno::NFILE) = result {
        let _ = kill_process(pid, signal);
    }
}

/// What a process can't leave.
struct Confines {
    /// The capabilities that it may ever have.
    bounding: u64,
    /// The name of its mount namespace.
    mounts: CString,
}

fn unkillable(processes: usize, patience: Duration) -> SandboxError {
    SandboxError::Unkillable { processes, seconds: patience.as_secs() }
}

struct Status {
    parent: i32,
    /// A zombie, which only waits to be reaped.
    dead: bool,
}

impl Status {
    /// `PID (NAME) STATE PARENT …`, where the name may hold anything, parentheses too (proc_pid_stat(5)).
    fn parse(text: &[u8]) -> Option<Self> {
        let name_end = text.iter().rposition(|byte| *byte == b')')?;
        let text = str::from_utf8(&text[name_end + 1..]).ok()?;
        let mut fields = text.split_ascii_whitespace();
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        Some(Status { parent, dead: matches!(state, "Z" | "X" | "x") })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        process::{Command, Stdio},
    };

    use super::*;

    /// Set in the process that a test starts for itself: a reaper ends all children, other tests' too.
    const ALONE: &str = "BAREBOAT_TEST_REAPER";

    /// Runs one test of this module again in a process of its own; true in that process.
    fn alone(name: &str) -> bool {
        if std::env::var_os(ALONE).is_some() {
            return true;
        }
        let path = format!("execute::sandbox::reap::tests::{name}");
        let program = std::env::current_exe().unwrap();
        let output =
            Command::new(program).args(["--exact", &path]).env(ALONE, "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        false
    }

    fn shell(script: &str) -> std::process::Child {
        Command::new("/bin/sh")
            .args(["-c", script])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn alive_below_self(reaper: &Reaper) -> usize {
        alive_below(reaper, reaper.own)
    }

    fn alive_below(reaper: &Reaper, ancestor: Pid) -> usize {
        let mut family = BTreeSet::from([ancestor.as_raw_nonzero().get()]);
        loop {
            let before = family.len();
            for pid in reaper.processes().unwrap() {
                let status = reaper.status(pid);
                if status.is_some_and(|status| !status.dead && family.contains(&status.parent)) {
                    family.insert(pid);
                }
            }
            if family.len() == before {
                return before - 1;
            }
        }
    }

    #[test]
    fn stubborn_daemons_end() {
        if !alone("stubborn_daemons_end") {
            return;
        }
        let reaper = Reaper::adopt_orphans().unwrap();
        let daemon = "(setsid sh -c 'trap \"\" TERM HUP INT QUIT; while :; do sleep 1; done' &)";
        let mut main = shell(&format!("for i in 1 2 3 4 5 6 7 8 9 10; do {daemon}; done"));
        main.wait().unwrap();
        assert!(alive_below_self(&reaper) >= 10);
        let started = Instant::now();
        reaper.end_all(PATIENCE).unwrap();
        assert!(started.elapsed() < Duration::from_secs(20));
        assert_eq!(alive_below_self(&reaper), 0);
        assert!(reap().unwrap());
        reaper.end_all(Duration::ZERO).unwrap();
    }

    #[test]
    fn chains_of_forks_end() {
        if !alone("chains_of_forks_end") {
            return;
        }
        let reaper = Reaper::adopt_orphans().unwrap();
        // Each one starts its successor and ends: never the same numbers twice.
        let mut main = shell("f() { f & }; f & f & f & f & wait");
        std::thread::sleep(Duration::from_millis(200));
        reaper.end_all(PATIENCE).unwrap();
        assert_eq!(alive_below_self(&reaper), 0);
        main.wait().unwrap_err();
    }

    #[test]
    fn a_tree_that_grows_ends() {
        if !alone("a_tree_that_grows_ends") {
            return;
        }
        let reaper = Reaper::adopt_orphans().unwrap();
        // Doubles until there are 2^8 of them.
        let script =
            "f() { [ $1 -gt 0 ] && { f $(($1-1)) & f $(($1-1)) & }; while :; do :; done; }; f 8";
        let mut main = shell(script);
        std::thread::sleep(Duration::from_millis(100));
        reaper.end_all(PATIENCE).unwrap();
        assert_eq!(alive_below_self(&reaper), 0);
        main.wait().unwrap_err();
    }

    #[test]
    fn another_processes_descendants_end_and_the_spared_stay() {
        let mut main = shell("sleep 1000 & echo $!; (sleep 1000; :) & (sleep 1000; :) & wait");
        let mut other = shell("exec sleep 1000");
        let mut line = String::new();
        BufReader::new(main.stdout.take().unwrap()).read_line(&mut line).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let reaper = Reaper::observe().unwrap();
        let parent = Pid::from_child(&main);
        let spared: i32 = line.trim().parse().unwrap();
        assert_eq!(alive_below(&reaper, parent), 5);
        reaper.end_below(parent, &BTreeSet::from([spared]), PATIENCE).unwrap();
        assert_eq!(alive_below(&reaper, parent), 1);
        assert!(main.try_wait().unwrap().is_none() && other.try_wait().unwrap().is_none());
        reaper.end_below(parent, &BTreeSet::new(), PATIENCE).unwrap();
        assert_eq!(alive_below(&reaper, parent), 0);
        main.wait().unwrap();
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn names_with_parentheses_are_read_right() {
        let status = Status::parse(b"12 (a) Z 7 (b)) S 34 1 1").unwrap();
        assert_eq!((status.parent, status.dead), (34, false));
        assert!(Status::parse(b"12 (a) Z 7 ").unwrap().dead);
        assert!(Status::parse(b"12 (a").is_none());
    }
}
