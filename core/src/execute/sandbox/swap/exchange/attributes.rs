//! Owner, mode, modification time and extended attributes of one file: taken, kept in the journal, given back.

use std::{collections::BTreeMap, os::fd::BorrowedFd};

use rustix::{
    fs::{
        AtFlags, Gid, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chownat,
        fchmod, fchown, fgetxattr, flistxattr, fremovexattr, fsetxattr, fstat, futimens, statat,
        utimensat,
    },
    io::{Errno, Result},
};
use serde::{Deserialize, Serialize};

use super::{ops::Ops, text::Bytes};
use crate::sys::{
    fs::{os, set_mode_at},
    xattr,
};

/// All of a file's metadata that can be set. Access time is not among it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime_seconds: i64,
    mtime_nanoseconds: u32,
    xattrs: BTreeMap<Bytes, Bytes>,
}

impl Attributes {
    /// Of an open directory or file (opened for reading, not by `O_PATH`).
    pub fn of(file: BorrowedFd<'_>) -> Result<Self> {
        Ok(Attributes { xattrs: xattrs_of(file)?, ..Attributes::from_stat(&fstat(file)?) })
    }

    /// Of a name, a symbolic link itself.
    pub fn of_name(at: BorrowedFd<'_>, name: &[u8]) -> Result<Self> {
        let mut xattrs = BTreeMap::new();
        for key in xattr::list_at(at, os(name))? {
            let Ok(text) = std::str::from_utf8(&key) else { continue };
            if let Some(value) = xattr::get_at(at, os(name), text)? {
                xattrs.insert(Bytes(key.clone()), Bytes(value));
            }
        }
        let stat = statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Attributes { xattrs, ..Attributes::from_stat(&stat) })
    }

    /// Of a mount point that is made where an image has none: 0755 of root, this directory's time.
    pub fn neutral(file: BorrowedFd<'_>) -> Result<Self> {
        let stat = fstat(file)?;
        Ok(Attributes { mode: 0o755, uid: 0, gid: 0, ..Attributes::from_stat(&stat) })
    }

    fn from_stat(stat: &Stat) -> Self {
        Attributes {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime_seconds: stat.st_mtime,
            // Below 1,000,000,000.
            mtime_nanoseconds: stat.st_mtime_nsec as u32,
            xattrs: BTreeMap::new(),
        }
    }

    /// Gives them to an open directory or file; what differs not is not touched, but for the time.
    pub fn apply(&self, ops: &Ops, file: BorrowedFd<'_>) -> Result<()> {
        let stat = fstat(file)?;
        if (stat.st_uid, stat.st_gid) != (self.uid, self.gid) {
            ops.run(|| fchown(file, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid))))?;
        }
        self.apply_xattrs(ops, file)?;
        // An access ACL has set the group's bits, a change of owner has cleared others.
        if fstat(file)?.st_mode & 0o7777 != self.mode {
            ops.run(|| fchmod(file, Mode::from_raw_mode(self.mode)))?;
        }
        ops.run(|| futimens(file, &self.times()))
    }

    fn apply_xattrs(&self, ops: &Ops, file: BorrowedFd<'_>) -> Result<()> {
        let present = xattrs_of(file)?;
        for key in present.keys().filter(|key| !self.xattrs.contains_key(key)) {
            tolerate(key, ops.run(|| fremovexattr(file, &*key.0)))?;
        }
        let differs = |(key, value): &(&Bytes, &Bytes)| present.get(key) != Some(value);
        for (key, value) in self.xattrs.iter().filter(differs) {
            tolerate(key, ops.run(|| fsetxattr(file, &*key.0, &value.0, XattrFlags::empty())))?;
        }
        Ok(())
    }

    /// Gives them to a new name that can't be opened: a link (which has no mode of its own) or a node.
    pub fn apply_to_name(
        &self,
        ops: &Ops,
        at: BorrowedFd<'_>,
        name: &[u8],
        is_link: bool,
    ) -> Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        ops.run(|| chownat(at, name, Some(uid), Some(gid), flags))?;
        for (key, value) in &self.xattrs {
            let Ok(text) = std::str::from_utf8(&key.0) else { continue };
            tolerate(key, ops.run(|| xattr::set_at(at, os(name), text, &value.0)))?;
        }
        if !is_link {
            ops.run(|| set_mode_at(at, os(name), self.mode))?;
        }
        ops.run(|| utimensat(at, name, &self.times(), flags))
    }

    fn times(&self) -> Timestamps {
        let (tv_sec, tv_nsec) = (self.mtime_seconds, self.mtime_nanoseconds.into());
        Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec, tv_nsec },
        }
    }
}

/// Labels of a security module are given by its policy: what may not set them keeps what the policy gave. File
/// capabilities are not among them.
fn tolerate(key: &Bytes, result: Result<()>) -> Result<()> {
    let label = key.0.starts_with(b"security.") && key.0 != b"security.capability";
    match result {
        Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL) if label => Ok(()),
        result => result,
    }
}

fn xattrs_of(file: BorrowedFd<'_>) -> Result<BTreeMap<Bytes, Bytes>> {
    let mut xattrs = BTreeMap::new();
    let names = read_grown(|buffer| flistxattr(file, buffer))?.unwrap_or_default();
    for key in names.split(|byte| *byte == 0).filter(|key| !key.is_empty()) {
        if let Some(value) = read_grown(|buffer| fgetxattr(file, key, buffer))? {
            xattrs.insert(Bytes(key.to_vec()), Bytes(value));
        }
    }
    Ok(xattrs)
}

/// Calls with ever larger buffers up to the kernel's limit of 64 KiB; `None` where there is nothing.
fn read_grown(mut call: impl FnMut(&mut [u8]) -> Result<usize>) -> Result<Option<Vec<u8>>> {
    for size in [0x100, 0x1000, 0x10000] {
        let mut buffer = vec![0; size];
        match call(&mut buffer) {
            Err(Errno::RANGE) => continue,
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            result => {
                buffer.truncate(result?);
                return Ok(Some(buffer));
            }
        }
    }
    Err(Errno::TOOBIG)
}
