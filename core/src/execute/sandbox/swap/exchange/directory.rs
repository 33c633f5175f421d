//! Directories of the container's root, the stage and the side, opened name by name.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    fs::{self, AtFlags, FileType, Stat},
    io::{Errno, Result},
};

use super::{
    error::{Named, SwapError},
    ops::Ops,
    text::{Name, Names},
};
use crate::{
    rootfs::handle::open_directory,
    sys::fs::{open_subdirectory, os, read_directory},
    tree::EntryPath,
};

/// Whether an error says that there is no directory of that name: nothing, or something else.
pub(super) fn is_absent(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
}

/// `None` where a call found nothing, or something that is no directory.
pub(super) fn present<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(error) if is_absent(error) => Ok(None),
        result => result.map(Some),
    }
}

/// Opens a directory below another; `None` where it is not there, or no directory.
pub(super) fn find(base: impl AsFd, path: &EntryPath) -> Result<Option<OwnedFd>> {
    let mut at = open_directory(base, b".")?;
    for name in path.components() {
        let Some(next) = present(open_directory(&at, name))? else { return Ok(None) };
        at = next;
    }
    Ok(Some(at))
}

/// Opens a directory that may be the root of another mount.
pub(super) fn enter(at: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    open_subdirectory(at, os(name))
}

/// Opens a directory of `at`, which is made if it is missing.
pub(super) fn find_or_make(ops: &Ops, at: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    match open_directory(at, name) {
        Err(Errno::NOENT) => {
            ops.make_directory(at, name)?;
            open_directory(at, name)
        }
        found => found,
    }
}

/// The same for a whole path below `base`.
pub(super) fn find_or_make_path(
    ops: &Ops,
    base: BorrowedFd<'_>,
    path: &EntryPath,
) -> Result<OwnedFd> {
    let mut at = open_directory(base, b".")?;
    for name in path.components() {
        at = find_or_make(ops, at.as_fd(), name)?;
    }
    Ok(at)
}

/// What a name is, a link itself; `None` where it is not there.
pub(super) fn stat_name(at: impl AsFd, name: &[u8]) -> Result<Option<Stat>> {
    present(fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW))
}

pub(super) fn kind_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// The names of a directory without those that stay, in the order of bytes.
pub(super) fn names_but(directory: impl AsFd, kept: &Names) -> Result<Vec<Name>> {
    let mut names = Vec::new();
    for entry in read_directory(directory)? {
        let name = Name::new(entry.name.as_encoded_bytes()).ok_or(Errno::ILSEQ)?;
        if !kept.contains(&name) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// A path without its last name, and that name; the root has none.
pub(super) fn split(path: &EntryPath) -> std::result::Result<(EntryPath, Name), SwapError> {
    let parts = path.parent().zip(Name::new(path.file_name()));
    parts.ok_or(Errno::INVAL).named("split", path)
}
