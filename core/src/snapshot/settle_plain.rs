//! The layer is the truth: a plain tree made equal to the layer that was written from it, and its baseline with it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    fs::{AtFlags, FileType, fstat, statat},
    io::Errno,
};

use crate::{
    rootfs::{
        LayerName, changeset_index,
        handle::{DirectoryStack, at_path, list, remove_xattrs},
        layer_name,
        metadata::{metadata_of, reopen, set_directory, set_mtime_at, set_where_it_differs},
        remove_tree, rows_with_hidden, separate,
    },
    tree::{EntryPath, Kind, LayerIndex, Metadata, Row, Snapshot},
};

use super::{
    Baseline, BaselineError, PlainChanges, Stamp, baseline::stamp_of_root, plain::Touched,
    settle::is_foreign,
};

#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// Names the path.
    #[error("the tree cannot be made equal to the step's layer: {0}")]
    Tree(#[from] io::Error),
    #[error(transparent)]
    Baseline(#[from] BaselineError),
}

/// Makes a plain tree equal to the layer that `changes` were written as, so that the next step sees the same tree whether
/// this one ran or came from the cache, and gives the tree's baseline, without another walk.
///
/// What was not emitted goes or is as it was before, mtimes are cut to whole seconds and at most `mtime_seconds_max`,
/// extended attributes that no layer holds are removed, files called `.wh.x` hide `x`. Hard links become files of their own,
/// as overlayfs makes of inherited ones at the first write. `parent` is the snapshot below; the contents of the changeset are
/// read by now. An error leaves the tree spoilt.
pub fn settle_plain(
    root: BorrowedFd<'_>,
    parent: &Snapshot,
    changes: PlainChanges,
    mtime_seconds_max: Option<i64>,
    threads: usize,
) -> Result<Baseline, SettleError> {
    let PlainChanges { changeset, touched, mut baseline, root: root_before } = changes;
    let index = changeset_index(&changeset, mtime_seconds_max);
    let mut tree =
        Settler { stack: DirectoryStack::new(reopen(root)?), disturbed: BTreeSet::new() };
    for dropped in touched.iter().rev().filter(|touched| touched.dropped) {
        tree.remove(&dropped.path)?;
    }
    let odd = changeset.changes().iter().map(|change| &change.path);
    let odd: Vec<_> = odd.filter(|path| layer_name(path) != LayerName::Plain).collect();
    if !odd.is_empty() {
        tree.hide(&odd, &index)?;
    }
    tree.settle_names(&touched, &index, parent)?;
    let mut directories: BTreeSet<EntryPath> = std::mem::take(&mut tree.disturbed);
    let settled = tree.settle_directories(&touched, &directories, &index, parent)?;
    directories.extend(settled);
    let before = &root_before;
    let metadata = Metadata {
        mode: before.mode & 0o7777,
        uid: before.uid,
        gid: before.gid,
        mtime: before.mtime,
        capability: None,
    };
    remove_xattrs(root, b".", is_foreign)?;
    set_directory(root, &metadata)?;
    if !odd.is_empty() {
        // What is hidden by name may have been anywhere.
        return Ok(baseline.retake(root, threads)?);
    }
    let patches = tree.patches(touched, directories, &baseline)?;
    baseline.patch(stamp_of_root(root)?, patches.into_iter())?;
    Ok(baseline)
}

struct Settler {
    stack: DirectoryStack,
    /// Directories, but the root, that a file was put into here.
    disturbed: BTreeSet<EntryPath>,
}

impl Settler {
    /// Removes a name and all below it; a missing one is fine.
    fn remove(&mut self, path: &EntryPath) -> io::Result<()> {
        let removed = match self.stack.go_to(&path.parent().unwrap_or_default()) {
            Err(error) if is_missing(&error) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => remove_tree(self.stack.top(), path.file_name()),
        };
        removed.map_err(|error| at_path(path, error))
    }

    /// Lets names of another meaning have it: they hide others and are nothing themselves.
    fn hide(&mut self, odd: &[&EntryPath], index: &LayerIndex) -> io::Result<()> {
        for path in odd.iter().filter(|path| index.get(path).is_none()) {
            self.remove(path)?;
        }
        for (row, hidden) in rows_with_hidden(index) {
            match row.kind {
                Kind::Whiteout => self.remove(&row.path)?,
                Kind::Directory { opaque } if opaque || hidden => {
                    self.prune(row, index).map_err(|error| at_path(&row.path, error))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes what the layer itself does not have of a directory.
    fn prune(&mut self, row: &Row, index: &LayerIndex) -> io::Result<()> {
        self.stack.go_to(&row.path)?;
        let at = reopen(self.stack.top())?;
        let kept: HashSet<&[u8]> =
            index.children(&row.path).map(|row| row.path.file_name()).collect();
        for item in list(at.as_fd())?.iter().filter(|item| !kept.contains(&*item.name)) {
            remove_tree(at.as_fd(), &item.name)?;
        }
        Ok(())
    }

    /// All that was touched and is no directory: as the layer has it, or else as it was below.
    fn settle_names(
        &mut self,
        touched: &[Touched],
        index: &LayerIndex,
        parent: &Snapshot,
    ) -> io::Result<()> {
        for Touched { path, .. } in touched.iter().filter(|touched| !touched.dropped) {
            let settled = match self.stat(path) {
                Ok(Some(FileType::Directory) | None) => Ok(()),
                Ok(Some(_)) => self.settle_name(path, index, parent),
                Err(error) => Err(error),
            };
            settled.map_err(|error| at_path(path, error))?;
        }
        Ok(())
    }

    fn settle_name(
        &mut self,
        path: &EntryPath,
        index: &LayerIndex,
        parent: &Snapshot,
    ) -> io::Result<()> {
        let (at, name) = (self.stack.top(), path.file_name());
        if statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?.st_nlink > 1 {
            separate(at, name)?;
            self.disturbed.extend(path.parent().filter(|parent| !parent.is_root()));
        }
        remove_xattrs(at, name, is_foreign)?;
        match (index.get(path), parent.lookup(path)) {
            (Some(row), _) => set_mtime_at(at, name, row.metadata.mtime),
            (None, Some(below)) => set_where_it_differs(at, name, below.metadata()),
            (None, None) => Ok(()),
        }
    }

    /// Goes to where a name is and gives its type.
    fn stat(&mut self, path: &EntryPath) -> io::Result<Option<FileType>> {
        let stamp = self.stamp(path)?;
        Ok(stamp.map(|stamp| FileType::from_raw_mode(stamp.mode)))
    }

    fn stamp(&mut self, path: &EntryPath) -> io::Result<Option<Stamp>> {
        let there = self.stack.go_to(&path.parent().unwrap_or_default());
        match there.and_then(|()| Stamp::at(self.stack.top(), path.file_name())) {
            Err(error) if is_missing(&error) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Directories, once nothing is put into them any more. Gives those that were changed here.
    fn settle_directories(
        &mut self,
        touched: &[Touched],
        disturbed: &BTreeSet<EntryPath>,
        index: &LayerIndex,
        parent: &Snapshot,
    ) -> io::Result<Vec<EntryPath>> {
        let touched = touched.iter().filter(|touched| !touched.dropped);
        let mut paths: BTreeSet<&EntryPath> = touched.map(|touched| &touched.path).collect();
        paths.extend(disturbed);
        let rows = rows_with_hidden(index);
        let hidden: HashSet<&EntryPath> =
            rows.filter(|(_, hidden)| *hidden).map(|(row, _)| &row.path).collect();
        let rows = index.rows().iter().filter(|row| row.kind.is_directory());
        paths.extend(rows.map(|row| &row.path).filter(|path| !path.is_root()));
        let mut changed = Vec::new();
        for path in paths {
            let below = || {
                let below = parent.lookup(path).filter(|entry| entry.is_directory());
                below.map(|entry| entry.metadata().clone())
            };
            let wanted = match index.get(path) {
                Some(row) if row.implied && !hidden.contains(path) => {
                    below().unwrap_or_else(|| row.metadata.clone())
                }
                Some(row) if row.kind.is_directory() => row.metadata.clone(),
                Some(_) => continue,
                None => match below() {
                    Some(metadata) => metadata,
                    None => continue,
                },
            };
            let settled = self.settle_directory(path, &wanted);
            if settled.map_err(|error| at_path(path, error))? {
                changed.push(path.clone());
            }
        }
        Ok(changed)
    }

    /// Whether there was anything to do.
    fn settle_directory(&mut self, path: &EntryPath, wanted: &Metadata) -> io::Result<bool> {
        match self.stack.go_to(path) {
            Err(error) if is_missing(&error) => return Ok(false),
            other => other?,
        }
        remove_xattrs(self.stack.top(), b".", is_foreign)?;
        let found = metadata_of(&fstat(self.stack.top()).map_err(io::Error::from)?);
        if found == *wanted {
            return Ok(false);
        }
        set_directory(self.stack.top(), wanted).map(|()| true)
    }

    /// The stamps of all that was touched, by the step or here, with where they belong.
    fn patches(
        &mut self,
        touched: Vec<Touched>,
        directories: BTreeSet<EntryPath>,
        baseline: &Baseline,
    ) -> Result<Vec<(u64, Option<Stamp>)>, SettleError> {
        let mut places: BTreeMap<EntryPath, Option<u64>> =
            directories.into_iter().map(|path| (path, None)).collect();
        places.extend(touched.into_iter().map(|touched| (touched.path, Some(touched.offset))));
        let (mut locator, mut patches) = (baseline.locator(), Vec::new());
        for (path, offset) in places {
            let offset = match offset {
                Some(offset) => offset,
                None => locator.offset(&path)?.ok_or(BaselineError::Damaged)?,
            };
            let stamp = self.stamp(&path).map_err(|error| at_path(&path, error))?;
            patches.push((offset, stamp));
        }
        Ok(patches)
    }
}

fn is_missing(error: &io::Error) -> bool {
    let missing = [Errno::NOENT, Errno::NOTDIR, Errno::LOOP].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| missing.contains(&code))
}
