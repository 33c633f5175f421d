//! The index of one layer: its names, sorted, without content.

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

use super::{EntryPath, Kind, Row};

/// Contents of at most this many bytes are kept for the files that users are looked up in.
pub const SMALL_FILE_BYTES_MAX: u64 = 1 << 20;

/// Whether an index keeps this file's bytes.
pub fn is_small_file(path: &EntryPath, size: u64) -> bool {
    size <= SMALL_FILE_BYTES_MAX && matches!(path.as_bytes(), b"etc/passwd" | b"etc/group")
}

/// The names that one layer holds, sorted by path. Every row's parent has a row too (perhaps an implied one).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerIndex {
    rows: Vec<Row>,
    small_files: BTreeMap<EntryPath, Arc<[u8]>>,
    has_opaque: bool,
}

impl LayerIndex {
    /// From rows that are sorted, unique and complete in their parents.
    pub(super) fn from_parts(rows: Vec<Row>, small_files: BTreeMap<EntryPath, Arc<[u8]>>) -> Self {
        let opaque = |row: &Row| row.kind == Kind::Directory { opaque: true };
        LayerIndex { has_opaque: rows.iter().any(opaque), rows, small_files }
    }

    /// Whether the layer hides what lower layers have at `path` by an opaque ancestor.
    pub(super) fn hides_below(&self, path: &EntryPath) -> bool {
        if !self.has_opaque {
            return false;
        }
        let root = (!path.is_root()).then_some(&b""[..]);
        root.into_iter().chain(path.ancestors()).any(|ancestor| {
            let row = self.get_bytes(ancestor);
            row.is_some_and(|row| row.kind == Kind::Directory { opaque: true })
        })
    }

    /// Whether something that is no directory stands at an ancestor of `path`, which has no row itself.
    ///
    /// Every row's parents have rows, so the deepest ancestor that has one is the row before `path`, or above it.
    pub(super) fn blocks(&self, path: &EntryPath) -> bool {
        let at = self.rows.partition_point(|row| row.path < *path);
        let before = at.checked_sub(1).and_then(|at| self.rows.get(at));
        before.is_some_and(|row| !row.kind.is_directory() && path.is_within(&row.path))
    }

    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    pub fn small_files(&self) -> &BTreeMap<EntryPath, Arc<[u8]>> {
        &self.small_files
    }

    pub fn get(&self, path: &EntryPath) -> Option<&Row> {
        self.get_bytes(path.as_bytes())
    }

    pub(super) fn get_bytes(&self, path: &[u8]) -> Option<&Row> {
        let at = self
            .rows
            .binary_search_by(|row| EntryPath::compare_bytes(row.path.as_bytes(), path))
            .ok()?;
        Some(&self.rows[at])
    }

    /// The rows directly below `directory`, in order.
    pub fn children(&self, directory: &EntryPath) -> impl Iterator<Item = &Row> {
        let below = self.descendants(directory);
        let mut at = 0;
        std::iter::from_fn(move || {
            let row = below.get(at)?;
            at += subtree_length(&below[at..]);
            Some(row)
        })
    }

    /// All rows below `directory` (not itself), in order.
    pub fn descendants<'a>(&'a self, directory: &EntryPath) -> &'a [Row] {
        let first = self.rows.partition_point(|row| row.path.cmp(directory) != Ordering::Greater);
        let count = self.rows[first..].partition_point(|row| row.path.is_within(directory));
        &self.rows[first..first + count]
    }
}

/// How many of `rows` are the first one and what lies below it.
fn subtree_length(rows: &[Row]) -> usize {
    let path = &rows[0].path;
    match rows.get(1) {
        Some(next) if next.path.is_within(path) => {
            rows.partition_point(|row| row.path.is_within(path))
        }
        _ => 1,
    }
}

/// Collects rows in any order and completes them to an index.
#[derive(Debug, Default)]
pub struct IndexBuilder {
    rows: BTreeMap<EntryPath, Row>,
    small_files: BTreeMap<EntryPath, Arc<[u8]>>,
}

impl IndexBuilder {
    pub fn get(&self, path: &EntryPath) -> Option<&Row> {
        self.rows.get(path)
    }

    /// Puts a row in place of what stood at its path and makes its parents directories, implied ones where there were none.
    ///
    /// What stood below a directory that is no directory any more goes; a directory merges with the one that was there.
    /// A whiteout at a path that the layer also has makes that directory opaque, or says nothing (it acts on lower layers only).
    pub fn insert(&mut self, mut row: Row) {
        if row.path.is_root() {
            return;
        }
        self.complete_parents(&row.path);
        let old = self.rows.get(&row.path);
        match (old.map(|old| &old.kind), &row.kind) {
            (Some(Kind::Directory { .. }), Kind::Whiteout) => return self.set_opaque(&row.path),
            (Some(kind), Kind::Whiteout) if *kind != Kind::Whiteout => return,
            (Some(Kind::Whiteout), Kind::Directory { .. })
            | (Some(Kind::Directory { opaque: true }), Kind::Directory { .. }) => {
                row.kind = Kind::Directory { opaque: true };
            }
            (Some(Kind::Directory { .. }), kind) if !kind.is_directory() => {
                self.remove_below(&row.path);
            }
            _ => {}
        }
        self.small_files.remove(&row.path);
        self.rows.insert(row.path.clone(), row);
    }

    /// Marks a directory as opaque, made as an implied one where there is none.
    pub fn set_opaque(&mut self, path: &EntryPath) {
        if path.is_root() {
            self.rows.entry(EntryPath::root()).or_insert_with(|| Row::implied(EntryPath::root()));
        } else if self.rows.get(path).is_none_or(|row| !row.kind.is_directory()) {
            self.insert(Row::implied(path.clone()));
        }
        if let Some(row) = self.rows.get_mut(path) {
            row.kind = Kind::Directory { opaque: true };
        }
    }

    /// Keeps the bytes of a small file whose row was just inserted.
    pub fn keep_bytes(&mut self, path: &EntryPath, bytes: Arc<[u8]>) {
        self.small_files.insert(path.clone(), bytes);
    }

    fn complete_parents(&mut self, path: &EntryPath) {
        let Some(parent) = path.parent().filter(|parent| !parent.is_root()) else { return };
        match self.rows.get(&parent).map(|row| &row.kind) {
            Some(Kind::Directory { .. }) => {}
            Some(Kind::Whiteout) => self.set_opaque_over_whiteout(parent),
            _ => {
                self.complete_parents(&parent);
                self.small_files.remove(&parent);
                self.rows.insert(parent.clone(), Row::implied(parent));
            }
        }
    }

    /// The directory that was there is gone, so nothing of it is inherited.
    fn set_opaque_over_whiteout(&mut self, path: EntryPath) {
        let kind = Kind::Directory { opaque: true };
        let row = Row { kind, implied: false, ..Row::implied(path.clone()) };
        self.rows.insert(path, row);
    }

    fn remove_below(&mut self, path: &EntryPath) {
        let below = self.rows.range(path.clone()..).skip(1);
        let below: Vec<EntryPath> =
            below.take_while(|(p, _)| p.is_within(path)).map(|(p, _)| p.clone()).collect();
        for path in below {
            self.rows.remove(&path);
            self.small_files.remove(&path);
        }
    }

    pub fn build(self) -> LayerIndex {
        LayerIndex::from_parts(self.rows.into_values().collect(), self.small_files)
    }
}
