//! The layer is the truth: an upper directory made equal to the layer that was written from it.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    fs::{AtFlags, FileType, statat},
    io::Errno,
};

use crate::{
    rootfs::{
        changeset_index, finish_directories,
        handle::{DirectoryStack, at_path, list, open_directory, remove_xattrs},
        make_whiteout,
        metadata::{CAPABILITY, reopen, set_mtime_at},
        remove_tree,
    },
    tree::{Changeset, EntryPath, Kind, LayerIndex, Row, Snapshot},
};

/// Makes an overlay's upper directory equal to the layer that `changeset` was written as, so that the next step sees the
/// same tree whether this one ran or came from the cache, and the directory can serve as that layer's own.
///
/// What was not emitted goes, opaque marks become whiteouts, files called `.wh.x` hide `x`, mtimes are cut to whole seconds
/// and at most `mtime_seconds_max`, extended attributes that no layer holds are removed. `parent` is the snapshot below.
/// The overlay is unmounted by now, and the contents of `changeset` are read.
pub fn settle(
    upper: BorrowedFd<'_>,
    parent: &Snapshot,
    changeset: &Changeset,
    mtime_seconds_max: Option<i64>,
) -> io::Result<()> {
    let index = changeset_index(changeset, mtime_seconds_max);
    let mut stack = DirectoryStack::new(reopen(upper)?);
    prune(&stack, &index, &EntryPath::root())?;
    for row in index.rows().iter().filter(|row| !row.path.is_root()) {
        settle_row(&mut stack, &index, row).map_err(|error| at_path(&row.path, error))?;
    }
    let inherited = |path: &EntryPath| {
        let below = parent.lookup(path)?;
        below.is_directory().then(|| below.metadata().clone())
    };
    finish_directories(upper, &index, &inherited, true)
}

fn settle_row(stack: &mut DirectoryStack, index: &LayerIndex, row: &Row) -> io::Result<()> {
    stack.go_to(&row.path.parent().unwrap_or_default())?;
    let name = row.path.file_name();
    match row.kind {
        Kind::Whiteout => settle_whiteout(stack.top(), name),
        Kind::Directory { .. } => {
            let directory = open_directory(stack.top(), name)?;
            stack.push(name, directory)?;
            prune(stack, index, &row.path)
        }
        _ => {
            remove_xattrs(stack.top(), name, |key| is_foreign(key) && !is_overlay(key))?;
            set_mtime_at(stack.top(), name, row.metadata.mtime)
        }
    }
}

/// Removes what the layer does not have of the directory that `stack` is at, its attributes and its overlay marks too.
fn prune(stack: &DirectoryStack, index: &LayerIndex, path: &EntryPath) -> io::Result<()> {
    let at = reopen(stack.top())?;
    remove_xattrs(at.as_fd(), b".", is_foreign)?;
    let kept: HashSet<&[u8]> = index.children(path).map(|row| row.path.file_name()).collect();
    for item in list(at.as_fd())?.iter().filter(|item| !kept.contains(&*item.name)) {
        remove_tree(at.as_fd(), &item.name)?;
    }
    Ok(())
}

fn settle_whiteout(at: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if is_whiteout(stat.st_mode, stat.st_rdev) => return Ok(()),
        Ok(_) => remove_tree(at, name)?,
        Err(Errno::NOENT) => {}
        Err(other) => return Err(other.into()),
    }
    make_whiteout(at, name)
}

fn is_whiteout(mode: u32, device: u64) -> bool {
    FileType::from_raw_mode(mode) == FileType::CharacterDevice && device == 0
}

/// Whether no layer holds this attribute. A label that the kernel gives is none of ours.
fn is_foreign(key: &[u8]) -> bool {
    key != CAPABILITY.as_bytes() && key != b"security.selinux"
}

/// Overlay's own notes on a file (its origin), which mean nothing in a lower directory and cost a write each to remove.
fn is_overlay(key: &[u8]) -> bool {
    key.starts_with(b"trusted.overlay.")
}
