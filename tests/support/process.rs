//! What the kernel says of processes and mounts.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

/// Bytes read and written by a process and the children that it has waited for (`rchar` and `wchar` of /proc/PID/io).
#[derive(Clone, Copy, Debug, Default)]
pub struct Io {
    pub read_bytes: u64,
    pub written_bytes: u64,
}

pub fn io(pid: u32) -> Io {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let field = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
    };
    Io { read_bytes: field("rchar:"), written_bytes: field("wchar:") }
}

/// The largest resident set that a living process has had.
pub fn peak_bytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

fn pid_of(pid: u32) -> Pid {
    Pid::from_raw(pid as i32).expect("a process id is not zero")
}

pub fn signal(pid: u32, signal: Signal) {
    let _ = kill_process(pid_of(pid), signal);
}

/// Waits for our child to end without reaping it, so that its /proc entry can still be read. False past the deadline.
/// `look` is called every few milliseconds.
pub fn wait_for_exit(pid: u32, deadline: Instant, mut look: impl FnMut(u32)) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    while Instant::now() < deadline {
        if matches!(waitid(WaitId::Pid(pid_of(pid)), options), Ok(Some(_)) | Err(_)) {
            return true;
        }
        look(pid);
        thread::sleep(Duration::from_millis(5));
    }
    false
}

/// Waits until `condition` holds.
///
/// # Panics
/// If it does not within `seconds`.
#[track_caller]
pub fn wait_until(seconds: u64, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !condition() {
        assert!(Instant::now() < deadline, "not within {seconds} seconds: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The living descendants of `pid`, itself excluded.
pub fn descendants(pid: u32) -> Vec<u32> {
    let parents = all_parents();
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(child, _)| *child));
        next += 1;
    }
    found.split_off(1)
}

/// The living children of `pid`.
pub fn children(pid: u32) -> Vec<u32> {
    all_parents().into_iter().filter(|(_, of)| *of == pid).map(|(child, _)| child).collect()
}

fn all_parents() -> Vec<(u32, u32)> {
    processes().into_iter().filter_map(|pid| Some((pid, parent(pid)?))).collect()
}

fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// The parent of a process that is not a zombie.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    (fields.next()? != "Z").then(|| fields.next()?.parse().ok())?
}

pub fn is_alive(pid: u32) -> bool {
    parent(pid).is_some()
}

/// Processes whose command line holds `needle`.
pub fn with_argument(needle: &str) -> Vec<u32> {
    let holds = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(needle)
    };
    processes().into_iter().filter(holds).filter(|pid| is_alive(*pid)).collect()
}

/// The living processes in the PID namespace of `first`, which is left out.
pub fn with_namespace_of(first: u32) -> Vec<u32> {
    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let wanted = namespace(first);
    let others = processes().into_iter().filter(|pid| *pid != first && namespace(*pid) == wanted);
    others.filter(|pid| is_alive(*pid)).collect()
}

/// The program that a process executes, as far as its name.
pub fn program(pid: u32) -> Option<String> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    Some(path.file_name()?.to_str()?.to_owned())
}

/// Kills `pid` and everything below it.
pub fn kill_tree(pid: u32) {
    let below = descendants(pid);
    for one in std::iter::once(pid).chain(below) {
        signal(one, Signal::KILL);
    }
}

/// Lines of any process's mount table that name `directory`.
pub fn mounts_below(directory: &Path) -> Vec<String> {
    let needle = directory.to_str().unwrap();
    let mut found: Vec<String> =
        processes().into_iter().flat_map(|pid| mount_lines(pid, needle)).collect();
    found.sort();
    found.dedup();
    found
}

fn mount_lines(pid: u32, needle: &str) -> Vec<String> {
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    table.lines().filter(|line| line.contains(needle)).map(str::to_owned).collect()
}
