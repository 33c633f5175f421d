//! User namespaces: which ids are mapped into a new one, and entering it.
//!
//! A namespace's maps are written from outside: by a child that was forked before and stays behind.

use std::{
    fs,
    io::Read,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::{getegid, geteuid, getpid},
    thread::UnshareFlags,
};
use sha2::{Digest as _, Sha256};

use super::{SandboxError, error::Named, wire};
use crate::sys::{
    namespace::unshare,
    process::{Fork, exit_now, fork_single_threaded, wait},
};

/// Where newuidmap and newgidmap are; PATH is not asked for programs that are set-uid root.
const HELPER_DIRECTORIES: [&str; 4] = ["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin"];

/// Of the ranges in /etc/subuid. (The kernel takes 340 in a map, and before Linux 4.15 five.)
const RANGES_MAX: usize = 4;

/// Consecutive ids of a namespace that are consecutive ids outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    pub inside: u32,
    pub outside: u32,
    pub count: u32,
}

impl IdRange {
    /// Whether the namespace has this id by this range.
    pub(super) fn holds(&self, id: u32) -> bool {
        id.checked_sub(self.inside).is_some_and(|offset| offset < self.count)
    }
}

/// Who writes a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapWriter {
    /// Root, by its own capabilities.
    Root,
    /// An ordinary user, by newuidmap and newgidmap.
    Helpers,
    /// An ordinary user who may map nobody else.
    Oneself,
}

/// The ids of a user namespace (user_namespaces(7)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMap {
    pub users: Vec<IdRange>,
    pub groups: Vec<IdRange>,
    pub writer: MapWriter,
}

/// Why an ordinary user gets one id only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OneId {
    /// No line for the user in this file.
    NoRange { file: &'static str, user: String },
    /// newuidmap or newgidmap is not installed.
    NoHelper { program: &'static str },
    /// newuidmap or newgidmap refused, for want of set-uid or because the ranges are none of this container's.
    HelperRefused,
}

impl OneId {
    /// What gives the user more ids.
    pub fn remedy(&self) -> String {
        match self {
            OneId::NoRange { file, user } => format!(
                "give the user a range of ids in {file}: as root, `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}`"
            ),
            OneId::HelperRefused => "let newuidmap work: without no_new_privs, on a file system without nosuid, and with ranges in /etc/subuid that lie within this container's own ids".to_owned(),
            OneId::NoHelper { program } => {
                format!(
                    "install {program} (Debian's and Ubuntu's package uidmap, elsewhere shadow-utils)"
                )
            }
        }
    }
}

impl IdMap {
    /// All ids of the present namespace as they are: what root may give a namespace of its own.
    pub fn identity(users: &str, groups: &str) -> Self {
        let same = |text: &str| {
            parse_map(text).into_iter().map(|range| IdRange { outside: range.inside, ..range })
        };
        IdMap {
            users: same(users).collect(),
            groups: same(groups).collect(),
            writer: MapWriter::Root,
        }
    }

    /// Only this process's own user and group, as root.
    pub fn oneself() -> Self {
        let one = |outside| vec![IdRange { inside: 0, outside, count: 1 }];
        IdMap {
            users: one(geteuid().as_raw()),
            groups: one(getegid().as_raw()),
            writer: MapWriter::Oneself,
        }
    }

    /// This process's user as root, and from 1 on the ranges that /etc/subuid and /etc/subgid give the user.
    pub fn of_user() -> Result<Self, OneId> {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        let name = user_name(uid);
        let ranges = |file: &'static str, own| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let ranges = subordinate(&text, &name, uid);
            match ranges.is_empty() {
                true => Err(OneId::NoRange { file, user: name.clone() }),
                false => Ok(behind_oneself(own, &ranges)),
            }
        };
        let map = IdMap {
            users: ranges("/etc/subuid", uid)?,
            groups: ranges("/etc/subgid", gid)?,
            writer: MapWriter::Helpers,
        };
        for program in ["newuidmap", "newgidmap"] {
            helper(program).ok_or(OneId::NoHelper { program })?;
        }
        Ok(map)
    }

    /// Whether the namespace has one user and one group only.
    pub fn is_single(&self) -> bool {
        let count =
            |ranges: &[IdRange]| ranges.iter().map(|range| u64::from(range.count)).sum::<u64>();
        count(&self.users) <= 1 || count(&self.groups) <= 1
    }

    /// Names the owners that files have on disk: trees of another map hold other owners. `surroundings` is the map of
    /// the namespace outside, as /proc/self/uid_map shows it.
    pub fn flavour(&self, surroundings: &str) -> String {
        let text = format!("{}/{}/{surroundings}", self.users_text(), self.groups_text());
        let hash = Sha256::digest(text.as_bytes());
        let short: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("map-{short}")
    }

    fn users_text(&self) -> String {
        lines(&self.users)
    }

    fn groups_text(&self) -> String {
        lines(&self.groups)
    }
}

fn lines(ranges: &[IdRange]) -> String {
    let line = |range: &IdRange| format!("{} {} {}\n", range.inside, range.outside, range.count);
    ranges.iter().map(line).collect()
}

/// The ranges of /proc/PID/uid_map.
pub(super) fn parse_map(text: &str) -> Vec<IdRange> {
    let range = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(IdRange { inside: next()?, outside: next()?, count: next()? })
    };
    text.lines().filter_map(range).collect()
}

/// What /etc/subuid or /etc/subgid (subuid(5)) gives a user, by name or number: first id and count.
fn subordinate(text: &str, name: &str, uid: u32) -> Vec<(u32, u32)> {
    let number = uid.to_string();
    let range = |line: &str| {
        let mut fields = line.split(':');
        let owner = fields.next()?.trim();
        let (first, count) =
            (fields.next()?.trim().parse().ok()?, fields.next()?.trim().parse().ok()?);
        let is_mine = owner == name || owner == number;
        (is_mine && count > 0).then_some((first, count))
    };
    text.lines().filter_map(range).take(RANGES_MAX).collect()
}

fn behind_oneself(own: u32, ranges: &[(u32, u32)]) -> Vec<IdRange> {
    let mut map = vec![IdRange { inside: 0, outside: own, count: 1 }];
    let mut inside = 1_u32;
    for (outside, count) in ranges {
        // The last id means "none".
        let count = (*count).min(u32::MAX - 1 - inside).min(u32::MAX - outside);
        if count > 0 {
            map.push(IdRange { inside, outside: *outside, count });
            inside += count;
        }
    }
    map
}

/// The name in /etc/passwd, else the number.
fn user_name(uid: u32) -> String {
    let text = fs::read(Path::new("/etc/passwd")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, number) = (fields.next()?, fields.next()?, fields.next()?);
        (number.parse() == Ok(uid)).then(|| name.to_owned())
    });
    line.unwrap_or_else(|| uid.to_string())
}

fn helper(program: &str) -> Option<PathBuf> {
    HELPER_DIRECTORIES
        .iter()
        .map(|directory| Path::new(directory).join(program))
        .find(|p| p.is_file())
}

/// Moves this process, which must have no other thread, into a new user namespace with these ids, of which it is root
/// with all capabilities. After a failure it may be in a namespace without ids: it must end then, or do nothing that
/// needs any right.
pub fn enter(map: &IdMap) -> Result<(), SandboxError> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).named("pipe", "");
    let (wait_for_turn, turn) = pipe()?;
    let (answer, report) = pipe()?;
    let process = getpid().as_raw_nonzero().get();
    let child = match fork_single_threaded().named("fork", "")? {
        Fork::Child => {
            drop((turn, answer));
            stay_outside(process, map, wait_for_turn, &report)
        }
        Fork::Parent(child) => child,
    };
    drop((wait_for_turn, report));
    let unshared = unshare(UnshareFlags::NEWUSER).named("unshare", "user namespace");
    if unshared.is_ok() {
        rustix::io::write(&turn, b"x").named("write", "pipe")?;
    }
    drop(turn);
    let mut bytes = Vec::new();
    let read = fs::File::from(answer).read_to_end(&mut bytes).named("read", "pipe");
    wait(child).named("wait4", "")?;
    unshared?;
    read?;
    match wire::receive_last(&bytes)? {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// The child that writes the maps of `process` when it is its turn, and ends.
fn stay_outside(process: i32, map: &IdMap, turn: OwnedFd, report: &OwnedFd) -> ! {
    let mut byte = [0];
    let is_our_turn = loop {
        match rustix::io::read(&turn, &mut byte) {
            Err(Errno::INTR) => {}
            result => break result == Ok(1),
        }
    };
    if is_our_turn
        && let Err(error) = write_maps(process, map)
        && let Ok(bytes) = wire::frame(&error)
    {
        // If this fails the first call that needs an id will tell.
        let _ = rustix::io::write(report, &bytes);
    }
    exit_now(0)
}

fn write_maps(process: i32, map: &IdMap) -> Result<(), SandboxError> {
    if map.writer == MapWriter::Helpers {
        run_helper("newuidmap", process, &map.users)?;
        return run_helper("newgidmap", process, &map.groups);
    }
    let file = |name: &str| format!("/proc/{process}/{name}");
    if map.writer == MapWriter::Oneself {
        let path = file("setgroups");
        fs::write(&path, "deny").named("write", "setgroups")?;
    }
    fs::write(file("uid_map"), map.users_text()).named("write", "uid_map")?;
    fs::write(file("gid_map"), map.groups_text()).named("write", "gid_map")
}

fn run_helper(program: &'static str, process: i32, ranges: &[IdRange]) -> Result<(), SandboxError> {
    let path = helper(program).ok_or(Errno::NOENT).named("execute", program)?;
    let numbers = ranges.iter().flat_map(|range| [range.inside, range.outside, range.count]);
    let done = Command::new(&path)
        .arg(process.to_string())
        .args(numbers.map(|number| number.to_string()))
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .named("execute", &path)?;
    if done.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&done.stderr);
    let problem = text.lines().next().unwrap_or("it failed without a word").to_owned();
    Err(SandboxError::IdMap { program: program.to_owned(), problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_a_user_by_name_and_number() {
        let text = "other:1:2\nme:100000:65536\n# no\nme:5\n1000:300000:10\nme:7:0\n";
        assert_eq!(subordinate(text, "me", 1000), [(100_000, 65_536), (300_000, 10)]);
        assert_eq!(subordinate(text, "you", 7), []);
        let many = "me:1:1\n".repeat(9);
        assert_eq!(subordinate(&many, "me", 1).len(), RANGES_MAX);
    }

    #[test]
    fn the_user_is_root_and_the_ranges_follow() {
        let map = behind_oneself(1000, &[(100_000, 65_536), (300_000, 10)]);
        assert_eq!(lines(&map), "0 1000 1\n1 100000 65536\n65537 300000 10\n");
        // Never beyond the ids that there are.
        let map = behind_oneself(1000, &[(1, u32::MAX), (5, 5)]);
        assert_eq!(lines(&map), format!("0 1000 1\n1 1 {}\n", u32::MAX - 2));
    }

    #[test]
    fn root_maps_what_its_own_namespace_has() {
        let all = IdMap::identity("         0          0 4294967295\n", "0 0 4294967295\n");
        assert_eq!(all.users_text(), "0 0 4294967295\n");
        let pod = IdMap::identity("0 1441792 65536\n", "0 1441792 65536\n");
        assert_eq!((pod.users_text(), pod.is_single()), ("0 0 65536\n".to_owned(), false));
    }

    #[test]
    fn a_flavour_names_the_owners_on_disk() {
        let map = IdMap::identity("0 1441792 65536\n", "0 1441792 65536\n");
        let flavour = map.flavour("0 1441792 65536\n");
        assert_eq!(flavour, map.flavour("0 1441792 65536\n"));
        assert_ne!(flavour, map.flavour("0 1507328 65536\n"));
        let user = IdMap { users: behind_oneself(1000, &[(100_000, 9)]), ..map };
        assert_ne!(flavour, user.flavour("0 1441792 65536\n"));
        assert!(flavour.starts_with("map-") && flavour.len() == 20, "{flavour}");
    }

    #[test]
    fn one_id_is_single() {
        assert!(IdMap::oneself().is_single());
        let remedy = OneId::NoRange { file: "/etc/subuid", user: "ci".into() }.remedy();
        assert!(remedy.contains("--add-subuids 100000-165535") && remedy.ends_with("ci`"));
    }
}
