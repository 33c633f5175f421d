//! Layers laid over a plain tree: all of a chain in one directory, without whiteouts and marks.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    fs::{AtFlags, fstat, renameat, unlinkat},
    io::Errno,
};

use crate::tree::{EntryPath, Kind, LayerIndex, Metadata, Row};

use super::{
    handle::{DirectoryStack, at_path, open_directory},
    metadata::{metadata_of, reopen, set_directory},
    remove::{remove_contents, remove_tree},
};

/// Moves a layer over a plain tree of the same file system, so that the tree equals the layers' snapshot with this one on
/// top: whiteouts and opaque marks of `index` act on what the tree had, other types are replaced, directories merge, an
/// implied one keeps what it had (rules.md, looking up, rule 2).
///
/// `layer` was unpacked by [`Unpacker::plain`](super::Unpacker::plain) and finished with the same index; it is left with
/// what merged. The lowest layer's directory needs no call: it is a tree. Layers may be unpacked side by side and laid over
/// in order. An error leaves the tree spoilt.
pub fn lay_over(layer: BorrowedFd<'_>, index: &LayerIndex, tree: BorrowedFd<'_>) -> io::Result<()> {
    let (layer, tree) = (DirectoryStack::new(reopen(layer)?), DirectoryStack::new(reopen(tree)?));
    let mut laying = Laying { layer, tree, open: Vec::new() };
    let mut rows = index.rows();
    while let Some((row, rest)) = rows.split_first() {
        laying.leave_to(&row.path)?;
        let placed = laying.place(row).map_err(|error| at_path(&row.path, error))?;
        rows = match placed {
            Placed::Merges => rest,
            Placed::Whole => &rest[rest.partition_point(|below| below.path.is_within(&row.path))..],
        };
    }
    laying.leave_all()
}

enum Placed {
    /// What lies below it is still to be placed, if it has that.
    Merges,
    /// With all that the layer has below it.
    Whole,
}

struct Laying {
    layer: DirectoryStack,
    tree: DirectoryStack,
    /// Directories that both have, outermost first, and what they get when all is in them.
    open: Vec<(EntryPath, Metadata)>,
}

impl Laying {
    fn place(&mut self, row: &Row) -> io::Result<Placed> {
        let opaque = row.kind == Kind::Directory { opaque: true };
        let Some(parent) = row.path.parent() else {
            if opaque {
                remove_contents(self.tree.top())?;
            }
            return Ok(Placed::Merges);
        };
        self.layer.go_to(&parent)?;
        self.tree.go_to(&parent)?;
        let name = row.path.file_name();
        match row.kind {
            Kind::Whiteout => remove_tree(self.tree.top(), name)?,
            Kind::Directory { .. } => return self.place_directory(row, opaque),
            _ => self.move_in(name)?,
        }
        Ok(Placed::Merges)
    }

    fn place_directory(&mut self, row: &Row, opaque: bool) -> io::Result<Placed> {
        let name = row.path.file_name();
        let below = match open_directory(self.tree.top(), name) {
            Err(Errno::NOENT) => return self.move_in(name).map(|()| Placed::Whole),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                unlinkat(self.tree.top(), name, AtFlags::empty())?;
                return self.move_in(name).map(|()| Placed::Whole);
            }
            other => other?,
        };
        let before = metadata_of(&fstat(&below)?);
        if opaque {
            remove_contents(below.as_fd())?;
        }
        self.tree.push(name, below)?;
        let metadata = if row.implied { before } else { row.metadata.clone() };
        self.open.push((row.path.clone(), metadata));
        Ok(Placed::Merges)
    }

    /// Renames the layer's own over what the tree has.
    fn move_in(&self, name: &[u8]) -> io::Result<()> {
        let (from, to) = (self.layer.top(), self.tree.top());
        match renameat(from, name, to, name) {
            Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {
                remove_tree(to, name)?;
                Ok(renameat(from, name, to, name)?)
            }
            other => Ok(other?),
        }
    }

    /// Finishes the directories that `path` is not in.
    fn leave_to(&mut self, path: &EntryPath) -> io::Result<()> {
        while let Some((directory, metadata)) = self.open.pop() {
            if path.is_within(&directory) {
                self.open.push((directory, metadata));
                break;
            }
            self.finish(&directory, &metadata)?;
        }
        Ok(())
    }

    fn leave_all(&mut self) -> io::Result<()> {
        while let Some((directory, metadata)) = self.open.pop() {
            self.finish(&directory, &metadata)?;
        }
        Ok(())
    }

    fn finish(&mut self, directory: &EntryPath, metadata: &Metadata) -> io::Result<()> {
        let set = self.tree.go_to(directory);
        set.and_then(|()| set_directory(self.tree.top(), metadata))
            .map_err(|error| at_path(directory, error))
    }
}
