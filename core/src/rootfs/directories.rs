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
/// Without `mark` there are no opaque marks. `inherited` looks a path up in the layers below this one; it is asked only where nothing of this layer hides them.
pub(crate) fn finish_directories(
    root: BorrowedFd<'_>,
    index: &LayerIndex,
    inherited: &dyn Fn(&EntryPath) -> Option<Metadata>,
    mark: bool,
) -> io::Result<()> {
    let mut stack = DirectoryStack::new(reopen(root)?);
    for (row, hidden) in rows_with_hidden(index) {
        let Kind::Directory { opaque } = row.kind else { continue };
        let finish = |stack: &mut DirectoryStack| {
            stack.go_to(&row.path)?;
            if opaque && mark {
                mark_opaque(stack.top())?;
            }
            let below = (row.implied && !hidden).then(|| inherited(&row.path)).flatten();
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

/// The rows of a layer, each with whether an opaque ancestor of the same layer hides what lower layers have there.
pub(super) fn rows_with_hidden(index: &LayerIndex) -> impl Iterator<Item = (&Row, bool)> {
    let mut opaque: Option<&EntryPath> = None;
    index.rows().iter().map(move |row| {
        opaque = opaque.filter(|ancestor| row.path.is_within(ancestor));
        let hidden = opaque.is_some();
        if !hidden && row.kind == (Kind::Directory { opaque: true }) {
            opaque = Some(&row.path);
        }
        (row, hidden)
    })
}
