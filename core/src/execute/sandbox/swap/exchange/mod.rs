//! The exchange: a stage's tree and the children of the container's root change places, by rename, for the time of one
//! RUN.
//!
//! ```text
//! /                     level 0: its children move, but mount points, levels and the side directory
//! /etc                  a level, because /etc/hosts is mounted below it
//! /.bareboat            the side directory, on the same mount as /
//!   swap.lock           held from [`Exchange::lock`] on: two builds in one container take turns; shared by those that are
//!                       at the container's own root
//!   swap.journal        what a repair needs to know (see `journal.rs`)
//!   host/               the container's own children while a stage is at /
//!   strays/             what was in the way of the container's own when that came back
//!   work/…/tree         a stage
//! ```
//!
//! [`Exchange::repair`] comes first, then for each RUN [`Exchange::delayer`], [`Exchange::plan`], [`Plan::swap_in`], the
//! step, the end of all its processes, [`SwappedIn::swap_out`]. Whatever happens at any point, also to the repair:
//! another repair makes the container's root whole again. All of it is synchronous and needs no thread.
//!
//! Paths are resolved by directory handle and never through a link, because what is at `/` meanwhile is the image's.

mod attributes;
mod copy;
mod delayer;
mod directory;
mod engine;
mod erase;
mod error;
mod journal;
mod layout;
mod mounts;
mod ops;
mod repair;
mod settle;
mod survey;
mod swap;
#[cfg(test)]
mod tests;
mod text;
mod volume;

use std::{io, os::fd::OwnedFd};

use rustix::{
    fs::{AtFlags, FlockOperation, Mode, OFlags, Stat, flock, fstat, openat, statat},
    io::Errno,
};
use serde::{Deserialize, Serialize};

pub use self::{
    delayer::Delayered,
    engine::HOST,
    error::SwapError,
    mounts::{Mount, MountInfoError, MountTable},
    repair::Repaired,
    swap::{LevelOutcome, Plan, SwappedIn, SwappedOut},
};
use self::{error::Named, ops::Ops};
use crate::tree::{EntryPath, Timestamp};

pub(in super::super) const LOCK: &str = "swap.lock";

/// The container's root, and the side directory in it.
pub struct Place {
    /// The container's root, open for reading.
    pub root: OwnedFd,
    /// The side directory, directly below the root and on the same mount; open for reading. Only its owner may enter.
    pub side: OwnedFd,
    /// Its name.
    pub side_name: Vec<u8>,
    /// Reads the mounts as they are now, with paths from the root on: [`MountTable::read`] where the root is `/`.
    pub mounts: Box<dyn Fn() -> io::Result<MountTable> + Send>,
}

impl Place {
    /// The process's own root, whose directory `side_name` exists.
    pub fn of_root(root: OwnedFd, side_name: &[u8]) -> Result<Self, SwapError> {
        let side = directory::enter(&root, side_name).named("open", side_name.escape_ascii())?;
        let own = root.try_clone().named("dup", "/")?;
        let mounts = Box::new(move || MountTable::read(&own));
        Ok(Place { root, side, side_name: side_name.to_vec(), mounts })
    }
}

/// What an exchange is to respect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Where the step works, in the stage, its links resolved.
    #[serde(with = "text::path")]
    pub working_directory: EntryPath,
    /// Mounts of the container that the step is to see wherever they are, such as /etc/hosts. What is no mount point
    /// moves like everything else.
    #[serde(with = "text::paths")]
    pub wanted: Vec<EntryPath>,
    /// Directories of other processes, such as a runner's tools: they stay where they are, also for the step, if something
    /// is mounted at or below them and the stage has no content there.
    #[serde(with = "text::paths")]
    pub owned: Vec<EntryPath>,
}

/// The files that every container runtime mounts.
const RUNTIME_FILES: [&[u8]; 3] = [b"etc/hosts", b"etc/resolv.conf", b"etc/hostname"];

impl Options {
    /// A step that works in this directory and sees the files that every runtime mounts.
    pub fn new(working_directory: EntryPath) -> Self {
        let wanted = RUNTIME_FILES.iter().filter_map(|path| EntryPath::clean(path).ok()).collect();
        Options { working_directory, wanted, owned: Vec::new() }
    }
}

/// What the kernel says of an entry. A rename moves its change time, so these values replace the baseline's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryStat {
    pub inode: u64,
    pub size: u64,
    /// With the type.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime_seconds: i64,
    pub mtime_nanoseconds: u32,
    pub ctime_seconds: i64,
    pub ctime_nanoseconds: u32,
}

impl EntryStat {
    /// When anything of it was last changed.
    pub fn changed_at(&self) -> Timestamp {
        Timestamp { seconds: self.ctime_seconds, nanoseconds: self.ctime_nanoseconds }
    }
}

impl From<&Stat> for EntryStat {
    fn from(stat: &Stat) -> Self {
        EntryStat {
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime_seconds: stat.st_mtime,
            // Both below 1,000,000,000.
            mtime_nanoseconds: stat.st_mtime_nsec as u32,
            ctime_seconds: stat.st_ctime,
            ctime_nanoseconds: stat.st_ctime_nsec as u32,
        }
    }
}

/// An entry that was renamed from the stage into the container's root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenamedEntry {
    /// From the stage's root on.
    #[serde(with = "text::path")]
    pub path: EntryPath,
    pub stat: EntryStat,
}

/// The right to exchange, held by this process alone until it is dropped.
pub struct Exchange {
    place: Place,
    ops: Ops,
    journal: journal::Journal,
    _lock: OwnedFd,
}

impl Exchange {
    /// Takes the lock of the container's root. Where another build holds it, calls `waiting` again and again, which is to
    /// let some time pass.
    pub fn lock(place: Place, waiting: impl FnMut()) -> Result<Self, SwapError> {
        Exchange::lock_with(place, Ops::unlimited(), waiting)
    }

    fn lock_with(place: Place, ops: Ops, waiting: impl FnMut()) -> Result<Self, SwapError> {
        let lock = take_lock(&place, waiting)?;
        let journal = journal::Journal::open(&place.side, &ops)?;
        Ok(Exchange { place, ops, journal, _lock: lock })
    }

    /// Whether an exchange was cut off, and a repair is needed.
    pub fn is_interrupted(&self) -> Result<bool, SwapError> {
        Ok(!matches!(self.journal.read()?, journal::State::Clean))
    }

    /// Fails where a repair has to come first.
    fn require_clean(&self) -> Result<(), SwapError> {
        if self.is_interrupted()? { Err(SwapError::Unrepaired) } else { Ok(()) }
    }
}

/// Locks the file that has the lock's name when it is locked: a step could have removed another one.
fn take_lock(place: &Place, mut waiting: impl FnMut()) -> Result<OwnedFd, SwapError> {
    loop {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = match openat(&place.side, LOCK, flags, mode) {
            Err(Errno::ROFS) => return Err(SwapError::ReadOnlyRoot),
            file => file.named("open", LOCK)?,
        };
        if let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != Errno::WOULDBLOCK {
                return Err(error).named("lock", LOCK);
            }
            waiting();
            continue;
        }
        let named = statat(&place.side, LOCK, AtFlags::SYMLINK_NOFOLLOW);
        let own = fstat(&file).named("stat", LOCK)?.st_ino;
        if named.is_ok_and(|named| named.st_ino == own) {
            return Ok(file);
        }
    }
}
