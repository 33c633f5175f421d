//! What directories get once nothing is put into them any more.

use std::{io, os::fd::BorrowedFd};

use crate::tree::{EntryPath, Kind, LayerIndex, Metadata, Row};

use super::{
    handle::{DirectoryStack, at_path},
    metadata::{mark_opaque, reopen, set_directory},
};

/// Gives each directory of a layer on disk what its index says: owner, mode, mtime and opaque mark. An implied one gets
/// what the directory below it has.
///
/// `inherited` looks a path up in the layers below this one; it is asked only where nothing of this layer hides them.
pub(crate) fn finish_directories(
    root: BorrowedFd<'_>,
    index: &LayerIndex,
    inherited: &dyn Fn(&EntryPath) -> Option<Metadata>,
) -> io::Result<()> {
    let mut stack = DirectoryStack::new(reopen(root)?);
    for row in index.rows() {
        let Kind::Directory { opaque } = row.kind else { continue };
        let finish = |stack: &mut DirectoryStack| {
            stack.go_to(&row.path)?;
            if opaque {
                mark_opaque(stack.top())?;
            }
            let below = || inherited(&row.path).filter(|_| !hidden(index, &row.path));
            let below = if row.implied { below() } else { None };
            finish_one(stack, row, below)
        };
        finish(&mut stack).map_err(|error| at_path(&row.path, error))?;
    }
    Ok(())
}

fn finish_one(stack: &DirectoryStack, row: &Row, below: Option<Metadata>) -> io::Result<()> {
    if row.path.is_root() {
        return Ok(());
    }
    set_directory(stack.top(), below.as_ref().unwrap_or(&row.metadata))
}

/// Whether an opaque ancestor of the same layer hides what lower layers have at `path`.
pub(super) fn hidden(index: &LayerIndex, path: &EntryPath) -> bool {
    let parents = std::iter::successors(path.parent(), EntryPath::parent);
    parents.into_iter().any(|parent| {
        index.get(&parent).is_some_and(|row| row.kind == Kind::Directory { opaque: true })
    })
}
