//! Several layers as one directory, for chains of more layers than overlayfs takes well.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    vec,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, fstat, linkat, mkdirat, statat},
    io::Errno,
};

use crate::tree::Metadata;

use super::{
    handle::{DirectoryStack, Item, list, open_directory, short_xattr},
    metadata::{OPAQUE, metadata_of, neutral_root, reopen, set_directory},
    remove::{remove_contents, remove_tree},
};

/// Merges the *oldest* layers of a chain, lowest first, into the empty directory `into` on the same file system.
///
/// Whiteouts and opaque marks have done their work then and are not in the result. Files are hard links of the layers'
/// own, which nothing may write to (lower directories are read-only); directories are new, with the topmost metadata.
pub fn merge(layers: &[OwnedFd], into: OwnedFd) -> io::Result<()> {
    neutral_root(into.as_fd())?;
    layers.iter().try_for_each(|layer| lay_over(layer.as_fd(), into.as_fd()))
}

/// A directory of the layer on its way over the merged one.
struct Level {
    name: Box<[u8]>,
    items: vec::IntoIter<Item>,
    metadata: Metadata,
}

struct Walk {
    layer: DirectoryStack,
    merged: DirectoryStack,
    levels: Vec<Level>,
}

fn lay_over(layer: BorrowedFd<'_>, into: BorrowedFd<'_>) -> io::Result<()> {
    let layer = DirectoryStack::new(reopen(layer)?);
    let mut walk = Walk { layer, merged: DirectoryStack::new(reopen(into)?), levels: Vec::new() };
    walk.begin(b"")?;
    while let Some(level) = walk.levels.last_mut() {
        match level.items.next() {
            Some(item) if item.file_type == FileType::Directory => walk.enter(&item.name)?,
            Some(item) => walk.place(&item)?,
            None => walk.leave()?,
        }
    }
    Ok(())
}

impl Walk {
    /// Begins with the directories that both stacks are at.
    fn begin(&mut self, name: &[u8]) -> io::Result<()> {
        let here = self.layer.top();
        for key in OPAQUE {
            if short_xattr(here, key)?.as_deref() == Some(b"y") {
                remove_contents(self.merged.top())?;
            }
        }
        let metadata = metadata_of(&fstat(here)?);
        self.levels.push(Level { name: name.into(), items: list(here)?.into_iter(), metadata });
        Ok(())
    }

    fn enter(&mut self, name: &[u8]) -> io::Result<()> {
        let directory = open_directory(self.layer.top(), name)?;
        let merged = match open_directory(self.merged.top(), name) {
            Err(Errno::NOENT) => make_directory(self.merged.top(), name)?,
            Err(Errno::NOTDIR | Errno::LOOP) => {
                remove_tree(self.merged.top(), name)?;
                make_directory(self.merged.top(), name)?
            }
            other => other?,
        };
        self.layer.push(name, directory)?;
        self.merged.push(name, merged)?;
        self.begin(name)
    }

    /// Puts a name that is no directory, or what it hides, in its place.
    fn place(&mut self, item: &Item) -> io::Result<()> {
        let (from, to, name) = (self.layer.top(), self.merged.top(), &*item.name);
        if item.file_type == FileType::CharacterDevice
            && statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?.st_rdev == 0
        {
            return remove_tree(to, name);
        }
        match linkat(from, name, to, name, AtFlags::empty()) {
            Err(Errno::EXIST) => {
                remove_tree(to, name)?;
                Ok(linkat(from, name, to, name, AtFlags::empty())?)
            }
            other => Ok(other?),
        }
    }

    fn leave(&mut self) -> io::Result<()> {
        let Some(level) = self.levels.pop() else { return Ok(()) };
        if !level.name.is_empty() {
            set_directory(self.merged.top(), &level.metadata)?;
        }
        self.layer.pop()?;
        self.merged.pop()
    }
}

fn make_directory(at: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    mkdirat(at, name, Mode::from_raw_mode(0o755))?;
    open_directory(at, name)
}
