//! Owner, mode, times and capability of what is on disk.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat,
        fchmod, fchown, fremovexattr, fsetxattr, fstat, futimens, openat, statat, unlinkat,
        utimensat,
    },
    io::Errno,
};

use crate::tree::{Metadata, Timestamp};

use super::handle::{open_file, xattr};

pub(crate) const CAPABILITY: &str = "security.capability";
/// Overlay's mark of an opaque directory: the first as root, the second in a user namespace (mount option `userxattr`).
pub(crate) const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];

/// Owner and mode bits that a new file has before anything is set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fresh {
    uid: u32,
    gid: u32,
    /// Of the low nine bits, those that are not taken away.
    kept: u32,
}

impl Fresh {
    /// Tries it in an empty directory, because umask, set-group-id bits and default ACLs all have a say.
    pub fn probe(directory: BorrowedFd<'_>) -> io::Result<Self> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(directory, "probe", flags, Mode::from_raw_mode(0o777))?;
        let stat = fstat(&file)?;
        unlinkat(directory, "probe", AtFlags::empty())?;
        Ok(Fresh { uid: stat.st_uid, gid: stat.st_gid, kept: stat.st_mode & 0o777 })
    }

    /// Settles a new file that was made with the low nine bits of its mode. The owner goes first: a change of it clears
    /// set-id bits and the capability.
    pub fn settle(&self, file: BorrowedFd<'_>, metadata: &Metadata) -> io::Result<()> {
        if !self.owns(metadata) {
            let (uid, gid) = owner(metadata)?;
            fchown(file, Some(uid), Some(gid)).map_err(|error| unmapped(error, metadata))?;
        }
        if metadata.mode != metadata.mode & self.kept {
            fchmod(file, mode(metadata))?;
        }
        if let Some(capability) = &metadata.capability {
            fsetxattr(file, CAPABILITY, capability, XattrFlags::empty())?;
        }
        Ok(futimens(file, &times(metadata.mtime)?)?)
    }

    /// The same for a new name that can't be opened: a device, a FIFO or a link (which has no mode).
    pub fn settle_at(
        &self,
        at: BorrowedFd<'_>,
        name: &[u8],
        metadata: &Metadata,
        has_mode: bool,
    ) -> io::Result<()> {
        if !self.owns(metadata) {
            let (uid, gid) = owner(metadata)?;
            chownat(at, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| unmapped(error, metadata))?;
        }
        if has_mode && metadata.mode != metadata.mode & self.kept {
            set_node_mode(at, name, metadata)?;
        }
        set_mtime_at(at, name, metadata.mtime)
    }

    fn owns(&self, metadata: &Metadata) -> bool {
        (metadata.uid, metadata.gid) == (self.uid, self.gid)
    }
}

/// Of a name that is known to be no link: nothing else works there, so that none can be followed.
fn set_node_mode(at: BorrowedFd<'_>, name: &[u8], metadata: &Metadata) -> io::Result<()> {
    Ok(rustix::fs::chmodat(at, name, mode(metadata), AtFlags::empty())?)
}

/// Gives an open directory owner and mode where they differ, then its mtime.
pub(crate) fn set_directory(directory: BorrowedFd<'_>, metadata: &Metadata) -> io::Result<()> {
    let stat = fstat(directory)?;
    if (stat.st_uid, stat.st_gid) != (metadata.uid, metadata.gid) {
        let (uid, gid) = owner(metadata)?;
        fchown(directory, Some(uid), Some(gid)).map_err(|error| unmapped(error, metadata))?;
    }
    if fstat(directory)?.st_mode & 0o7777 != metadata.mode {
        fchmod(directory, mode(metadata))?;
    }
    Ok(futimens(directory, &times(metadata.mtime)?)?)
}

/// Gives a name that is no directory owner, mode, capability and mtime, as far as it has others. Nothing else works there.
pub(crate) fn set_where_it_differs(
    at: BorrowedFd<'_>,
    name: &[u8],
    wanted: &Metadata,
) -> io::Result<()> {
    let stat = statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let file_type = FileType::from_raw_mode(stat.st_mode);
    let is_file = file_type == FileType::RegularFile;
    let mut found = metadata_of(&stat);
    if file_type == FileType::Symlink {
        found.mode = wanted.mode;
    }
    if is_file {
        found.capability = xattr(at, name, CAPABILITY)?;
    }
    if found == *wanted {
        return Ok(());
    }
    if (found.uid, found.gid) != (wanted.uid, wanted.gid) {
        let (uid, gid) = owner(wanted)?;
        chownat(at, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    if file_type != FileType::Symlink {
        set_node_mode(at, name, wanted)?;
    }
    if is_file {
        let file = open_file(at, name)?;
        match &wanted.capability {
            Some(value) => fsetxattr(file, CAPABILITY, value, XattrFlags::empty())?,
            None if found.capability.is_some() => match fremovexattr(file, CAPABILITY) {
                // The new owner has taken it away already.
                Err(Errno::NODATA) => {}
                other => other?,
            },
            None => {}
        }
    }
    set_mtime_at(at, name, wanted.mtime)
}

/// Sets a name's times without following a link.
pub(crate) fn set_mtime_at(at: BorrowedFd<'_>, name: &[u8], mtime: Timestamp) -> io::Result<()> {
    Ok(utimensat(at, name, &times(mtime)?, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Marks an open directory as opaque, by the name that this process may set.
pub(crate) fn mark_opaque(directory: BorrowedFd<'_>) -> io::Result<()> {
    let [trusted, user] = OPAQUE;
    match fsetxattr(directory, trusted, b"y", XattrFlags::empty()) {
        Err(Errno::PERM) => Ok(fsetxattr(directory, user, b"y", XattrFlags::empty())?),
        other => Ok(other?),
    }
}

/// Frees a layer's root from what its surroundings hand down: 0755, without a default ACL.
pub(super) fn neutral_root(directory: BorrowedFd<'_>) -> io::Result<()> {
    match fremovexattr(directory, "system.posix_acl_default") {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
        Err(other) => return Err(other.into()),
    }
    Ok(fchmod(directory, Mode::from_raw_mode(0o755))?)
}

/// Owner, mode and mtime as a file system has them.
pub(crate) fn metadata_of(stat: &Stat) -> Metadata {
    Metadata {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        // Below 1,000,000,000, so nothing is lost.
        mtime: Timestamp { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 },
        capability: None,
    }
}

fn mode(metadata: &Metadata) -> Mode {
    Mode::from_raw_mode(metadata.mode & 0o7777)
}

/// -1 means "leave it" to the kernel, so it is no owner.
fn owner(metadata: &Metadata) -> io::Result<(Uid, Gid)> {
    if metadata.uid == u32::MAX || metadata.gid == u32::MAX {
        return Err(invalid("4294967295 is not a valid owner"));
    }
    Ok((Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid)))
}

/// An owner for whom this user namespace has no id.
#[derive(Debug, thiserror::Error)]
#[error(
    "its owner {uid}:{gid} has no id in this user namespace: give the user a larger range in /etc/subuid and /etc/subgid, or run as root"
)]
pub(crate) struct UnmappedOwner {
    pub uid: u32,
    pub gid: u32,
}

/// EINVAL of a change of owner says that the namespace has no such id.
fn unmapped(error: Errno, metadata: &Metadata) -> io::Error {
    match error {
        Errno::INVAL => {
            let (uid, gid) = (metadata.uid, metadata.gid);
            io::Error::new(io::ErrorKind::InvalidInput, UnmappedOwner { uid, gid })
        }
        error => error.into(),
    }
}

fn times(mtime: Timestamp) -> io::Result<Timestamps> {
    // Beyond it lie the kernel's special values (now, leave as it is).
    if mtime.nanoseconds >= 1_000_000_000 {
        return Err(invalid("nanoseconds out of range"));
    }
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds.into() };
    Ok(Timestamps { last_access: time, last_modification: time })
}

pub(super) fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Opens a directory again, with a position of its own.
pub(crate) fn reopen(directory: impl AsFd) -> io::Result<std::os::fd::OwnedFd> {
    Ok(super::handle::open_directory(directory, b".")?)
}
