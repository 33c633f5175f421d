//! Removal of whole trees.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    fs::{AtFlags, FileType, RenameFlags, renameat_with, unlinkat},
    io::Errno,
};

use super::handle::{DirectoryStack, Item, list, open_directory};

/// How often a directory that is not empty after all is read again.
const ROUNDS_MAX: usize = 8;

/// Removes `name` in `parent` and all that is below it; a missing name is fine.
///
/// Links are removed, never followed, mount points never entered (they are an error), and depth costs neither stack nor
/// handles.
pub fn remove_tree(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => remove_directory(parent, name),
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(other) => Err(other.into()),
    }
}

/// Renames `name` into `work`, a directory of the same file system, and removes it there: at once out of the way, also
/// if the removal is interrupted. A missing name is fine.
pub fn discard(parent: BorrowedFd<'_>, name: &[u8], work: BorrowedFd<'_>) -> io::Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let new = format!("discard-{}-{number}", std::process::id());
        match renameat_with(parent, name, work, new.as_bytes(), RenameFlags::NOREPLACE) {
            Ok(()) => return remove_tree(work, new.as_bytes()),
            Err(Errno::EXIST) => {}
            Err(Errno::NOENT) => return Ok(()),
            Err(other) => return Err(other.into()),
        }
    }
}

/// Removes all that is in a directory, not the directory itself.
pub(super) fn remove_contents(directory: BorrowedFd<'_>) -> io::Result<()> {
    for item in list(super::metadata::reopen(directory)?.as_fd())? {
        remove_tree(directory, &item.name)?;
    }
    Ok(())
}

/// A directory that is being emptied.
struct Level {
    name: Box<[u8]>,
    directories: Vec<Item>,
    rounds: usize,
}

fn remove_directory(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let mut stack = DirectoryStack::new(super::metadata::reopen(parent)?);
    let mut levels = vec![enter(&mut stack, name)?];
    while let Some(level) = levels.last_mut() {
        if let Some(next) = level.directories.pop() {
            levels.push(enter(&mut stack, &next.name)?);
            continue;
        }
        stack.pop()?;
        match unlinkat(stack.top(), &*level.name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) if level.rounds < ROUNDS_MAX => {
                let rounds = level.rounds + 1;
                *level = Level { rounds, ..enter(&mut stack, &level.name)? };
            }
            Ok(()) | Err(Errno::NOENT) => drop(levels.pop()),
            Err(other) => return Err(other.into()),
        }
    }
    Ok(())
}

/// Goes into a directory and removes all but its directories.
fn enter(stack: &mut DirectoryStack, name: &[u8]) -> io::Result<Level> {
    let directory = open_directory(stack.top(), name)?;
    let mut items = list(directory.as_fd())?;
    stack.push(name, directory)?;
    items.retain(|item| item.file_type == FileType::Directory || !unlinked(stack.top(), item));
    Ok(Level { name: name.into(), directories: items, rounds: 0 })
}

/// Whether a name could be removed as something else than a directory; if not, opening it says why.
fn unlinked(directory: BorrowedFd<'_>, item: &Item) -> bool {
    matches!(unlinkat(directory, &*item.name, AtFlags::empty()), Ok(()) | Err(Errno::NOENT))
}
