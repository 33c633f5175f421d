//! What one step changes, before it is written as a layer.

use crate::digest::Digest;

use super::{Content, EntryPath, Kind, Metadata};

/// One changed name.
#[derive(Clone, Debug)]
pub struct Change {
    pub path: EntryPath,
    pub kind: Kind,
    pub metadata: Metadata,
    /// Names of this changeset with the same number above 0 are hard links of each other; each of them carries the content.
    pub link_group: u32,
    /// For regular files, `None` only where the size is 0.
    pub content: Option<Content>,
    /// The content's digest where it is known already: another content ends the build ("changed during the build").
    pub digest: Option<Digest>,
}

impl Change {
    pub fn new(path: EntryPath, kind: Kind, metadata: Metadata) -> Self {
        Change { path, kind, metadata, link_group: 0, content: None, digest: None }
    }

    /// A whiteout has mode 0 and mtime 0 (rules.md, what goes into a layer).
    pub fn whiteout(path: EntryPath) -> Self {
        Change::new(path, Kind::Whiteout, Metadata::default())
    }
}

/// Sorted by path, each path once, ancestors before descendants. The root is never in it.
///
/// A changeset is complete in itself: it holds the ancestors of each of its entries.
#[derive(Clone, Debug, Default)]
pub struct Changeset {
    changes: Vec<Change>,
}

impl Changeset {
    /// Sorts; of two changes of one path the later one counts.
    pub fn new(mut changes: Vec<Change>) -> Self {
        changes.retain(|change| !change.path.is_root());
        changes.reverse();
        changes.sort_by(|a, b| a.path.cmp(&b.path));
        changes.dedup_by(|later, first| later.path == first.path);
        Changeset { changes }
    }

    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}
