//! Directories by handle: one name at a time, no link followed, no mount point entered.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, fgetxattr, fstat, lgetxattr,
        llistxattr, lremovexattr, openat, openat2, statat,
    },
    io::Errno,
};

use crate::{sys::fs::descriptor_path, tree::EntryPath};

/// Ancestors kept open while a walk is deeper; those further up are reopened on the way back.
const OPEN_ANCESTORS_MAX: usize = 64;
const LISTING_BYTES: usize = 32 << 10;
/// The kernel's own limit on one value and on one list of names.
const XATTR_BYTES_MAX: usize = 64 << 10;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens a directory for listing, by a single name (or `.`). A link or a mount point there is an error.
pub(crate) fn open_directory(at: impl AsFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match openat2(&at, name, DIRECTORY, Mode::empty(), resolve) {
        // Where a filter refuses openat2, it refuses mounts too.
        Err(Errno::NOSYS | Errno::PERM) => openat(&at, name, DIRECTORY, Mode::empty()),
        other => other,
    }
}

/// Opens the directory at `path` below `root`, name by name.
pub(crate) fn open_below(root: impl AsFd, path: &EntryPath) -> rustix::io::Result<OwnedFd> {
    let mut at = open_directory(root, b".")?;
    for name in path.components() {
        at = open_directory(&at, name)?;
    }
    Ok(at)
}

/// Opens a regular file for reading. The caller knows that it is one.
pub(crate) fn open_file(at: impl AsFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

/// One name of a directory.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub name: Box<[u8]>,
    pub file_type: FileType,
}

/// The names of a directory that was opened for this and not read yet, in the order of its file system.
pub(crate) fn list(directory: BorrowedFd<'_>) -> io::Result<Vec<Item>> {
    let mut buffer: Vec<u8> = Vec::with_capacity(LISTING_BYTES);
    let mut raw = RawDir::new(directory, buffer.spare_capacity_mut());
    let mut items = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            items.push(Item { name: name.into(), file_type: entry.file_type() });
        }
    }
    for item in items.iter_mut().filter(|item| item.file_type == FileType::Unknown) {
        let stat = statat(directory, &*item.name, AtFlags::SYMLINK_NOFOLLOW)?;
        item.file_type = FileType::from_raw_mode(stat.st_mode);
    }
    Ok(items)
}

/// The handles from a root down to where work goes on, at most [`OPEN_ANCESTORS_MAX`] of them and the last one open.
pub(crate) struct DirectoryStack {
    top: OwnedFd,
    ancestors: Vec<Ancestor>,
    names: Vec<Box<[u8]>>,
}

enum Ancestor {
    Open(OwnedFd),
    /// To be reopened as `..` and known by its device and inode number.
    Closed(u64, u64),
}

impl DirectoryStack {
    pub fn new(root: OwnedFd) -> Self {
        DirectoryStack { top: root, ancestors: Vec::new(), names: Vec::new() }
    }

    pub fn top(&self) -> BorrowedFd<'_> {
        self.top.as_fd()
    }

    /// Goes down into `directory`, which is `name` in the present one.
    pub fn push(&mut self, name: &[u8], directory: OwnedFd) -> io::Result<()> {
        let parent = std::mem::replace(&mut self.top, directory);
        self.ancestors.push(Ancestor::Open(parent));
        self.names.push(name.into());
        let Some(last) = self.ancestors.len().checked_sub(OPEN_ANCESTORS_MAX + 1) else {
            return Ok(());
        };
        if let Ancestor::Open(fd) = &self.ancestors[last] {
            let stat = fstat(fd)?;
            self.ancestors[last] = Ancestor::Closed(stat.st_dev, stat.st_ino);
        }
        Ok(())
    }

    /// Goes up by one; at the root it does nothing.
    pub fn pop(&mut self) -> io::Result<()> {
        self.names.pop();
        self.top = match self.ancestors.pop() {
            None => return Ok(()),
            Some(Ancestor::Open(fd)) => fd,
            Some(Ancestor::Closed(device, inode)) => {
                let fd = openat(&self.top, "..", DIRECTORY, Mode::empty())?;
                let stat = fstat(&fd)?;
                if (stat.st_dev, stat.st_ino) != (device, inode) {
                    return Err(io::Error::other("a directory was moved while it was in use"));
                }
                fd
            }
        };
        Ok(())
    }

    /// Goes up to the deepest directory that is `path` or above it, and gives the names that lead from there to `path`.
    pub fn ascend_towards<'p>(
        &mut self,
        path: &'p EntryPath,
    ) -> io::Result<impl Iterator<Item = &'p [u8]> + use<'p>> {
        let shared = self.names.iter().zip(path.components());
        let shared = shared.take_while(|(have, want)| have[..] == **want).count();
        while self.names.len() > shared {
            self.pop()?;
        }
        Ok(path.components().skip(shared))
    }

    /// Goes to the directory at `path`, which must exist.
    pub fn go_to(&mut self, path: &EntryPath) -> io::Result<()> {
        for name in self.ascend_towards(path)? {
            let directory = open_directory(self.top(), name)?;
            self.push(name, directory)?;
        }
        Ok(())
    }
}

/// An extended attribute of a name, links not followed. `None` where there is none.
pub(crate) fn xattr(at: BorrowedFd<'_>, name: &[u8], key: &str) -> io::Result<Option<Box<[u8]>>> {
    let mut buffer = [0; 256];
    let read = |got: rustix::io::Result<usize>, buffer: &[u8]| match got {
        Ok(length) => Ok(Some(buffer[..length].into())),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(other) => Err(other),
    };
    match read(lgetxattr(proc_path(at, name), key, &mut buffer[..]), &buffer) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => {
            let file = open_file(at, name)?;
            Ok(read(fgetxattr(file, key, &mut buffer[..]), &buffer)?)
        }
        Err(Errno::RANGE) => {
            let mut large = vec![0; XATTR_BYTES_MAX];
            Ok(read(lgetxattr(proc_path(at, name), key, &mut large[..]), &large)?)
        }
        other => Ok(other?),
    }
}

/// An extended attribute of an open file or directory. `None` where there is none, or one of more than 64 bytes.
pub(crate) fn short_xattr(file: BorrowedFd<'_>, key: &str) -> io::Result<Option<Box<[u8]>>> {
    let mut buffer = [0; 64];
    match fgetxattr(file, key, &mut buffer[..]) {
        Ok(length) => Ok(Some(buffer[..length].into())),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

/// Removes the extended attributes of a name (or of `.`) for which `remove` says so, links not followed.
pub(crate) fn remove_xattrs(
    at: BorrowedFd<'_>,
    name: &[u8],
    remove: impl Fn(&[u8]) -> bool,
) -> io::Result<()> {
    let path = proc_path(at, name);
    let mut small = [0; 512];
    let mut large = Vec::new();
    let list = match llistxattr(&*path, &mut small[..]) {
        Ok(length) => &small[..length],
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(Errno::RANGE) => {
            large.resize(XATTR_BYTES_MAX, 0);
            let length = llistxattr(&*path, &mut large[..])?;
            &large[..length]
        }
        Err(other) => return Err(other.into()),
    };
    for key in list.split(|byte| *byte == 0).filter(|key| !key.is_empty() && remove(key)) {
        lremovexattr(&*path, key)?;
    }
    Ok(())
}

/// A way to name a directory's entry to the calls that take no handle; only its last part is looked up.
fn proc_path(at: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = descriptor_path(at).into_os_string().into_vec();
    path.push(b'/');
    path.extend_from_slice(name);
    path
}

#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
struct At {
    path: EntryPath,
    source: io::Error,
}

/// The error with the path that it happened at.
pub(crate) fn at_path(path: &EntryPath, source: io::Error) -> io::Error {
    io::Error::new(source.kind(), At { path: path.clone(), source })
}
