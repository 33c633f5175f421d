//! From a checkout to a plain tree, by directory handle: neutral modes, no `.git`, a folder of it.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, chmodat, fchmod, open, renameat, statat},
    io::Errno,
};

use crate::{
    rootfs::{
        handle::{DirectoryStack, Item, list, open_directory},
        metadata::set_mtime_at,
        remove_tree,
    },
    tree::{EntryPath, Timestamp},
};

/// The name of the checkout in the work directory.
pub(super) const TREE: &str = "tree";
/// The name of the wanted folder of it there.
const FOLDER: &str = "folder";

/// What the tree shall be.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) keep_git_dir: bool,
    /// The mtime of everything, instead of the time of the checkout.
    pub(super) mtime: Option<Timestamp>,
    /// The root: all of it.
    pub(super) subdirectory: EntryPath,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum TreeError {
    #[error("{0}")]
    Subdirectory(&'static str),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Shape {
    /// Gives the checkout in `work` its shape: files are 0644 or 0755, directories 0755. Returns where the wanted part
    /// of it is then.
    ///
    /// # Errors
    /// A part of the folder's path is missing, a symbolic link or a file.
    pub(super) fn apply(&self, work: &Path) -> Result<PathBuf, TreeError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = open(work, flags, Mode::empty()).map_err(io::Error::from)?;
        let tree = open_directory(&top, TREE.as_bytes()).map_err(io::Error::from)?;
        self.settle(tree)?;
        if self.subdirectory.is_root() {
            return Ok(work.join(TREE));
        }
        take_folder(top.as_fd(), &self.subdirectory)?;
        Ok(work.join(FOLDER))
    }

    fn settle(&self, root: OwnedFd) -> io::Result<()> {
        let mut pending = vec![list(root.as_fd())?];
        let mut stack = DirectoryStack::new(root);
        while let Some(items) = pending.last_mut() {
            let Some(item) = items.pop() else {
                self.settle_directory(stack.top())?;
                pending.pop();
                if !pending.is_empty() {
                    stack.pop()?;
                }
                continue;
            };
            if let Some(directory) = self.settle_item(stack.top(), &item)? {
                pending.push(list(directory.as_fd())?);
                stack.push(&item.name, directory)?;
            }
        }
        Ok(())
    }

    /// Settles what is not a directory, and opens what is one.
    fn settle_item(&self, at: BorrowedFd<'_>, item: &Item) -> io::Result<Option<OwnedFd>> {
        let name = &*item.name;
        // No repository can hold this name: it is git's own, or leads from a submodule to that.
        if name == b".git" && !self.keep_git_dir {
            remove_tree(at, name)?;
            return Ok(None);
        }
        match item.file_type {
            FileType::Directory => return Ok(Some(open_directory(at, name)?)),
            FileType::RegularFile => {
                let mode = statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode;
                // A regular file a moment ago, in a directory that is ours alone.
                chmodat(at, name, Mode::from_raw_mode(neutral(mode)), AtFlags::empty())?;
            }
            _ => {}
        }
        if let Some(mtime) = self.mtime {
            set_mtime_at(at, name, mtime)?;
        }
        Ok(None)
    }

    fn settle_directory(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        fchmod(directory, Mode::from_raw_mode(0o755))?;
        match self.mtime {
            Some(mtime) => set_mtime_at(directory, b".", mtime),
            None => Ok(()),
        }
    }
}

/// A mode whatever the umask was. Read-only files are git's own.
fn neutral(mode: u32) -> u32 {
    match (mode & 0o100, mode & 0o200) {
        (0, 0) => 0o444,
        (0, _) => 0o644,
        _ => 0o755,
    }
}

/// Moves a folder of the checkout beside it, and removes the rest.
fn take_folder(work: BorrowedFd<'_>, folder: &EntryPath) -> Result<(), TreeError> {
    let mut parent = open_directory(work, TREE.as_bytes()).map_err(part_error)?;
    let mut parts = folder.components().peekable();
    while let Some(part) = parts.next() {
        let directory = open_directory(&parent, part).map_err(part_error)?;
        if parts.peek().is_none() {
            renameat(&parent, part, work, FOLDER).map_err(io::Error::from)?;
        }
        parent = directory;
    }
    Ok(remove_tree(work, TREE.as_bytes())?)
}

fn part_error(error: Errno) -> TreeError {
    match error {
        Errno::NOENT => TreeError::Subdirectory("there is no such directory"),
        Errno::LOOP | Errno::NOTDIR => {
            TreeError::Subdirectory("a part of it is a symbolic link or a file")
        }
        other => TreeError::Io(other.into()),
    }
}
