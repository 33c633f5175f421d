//! The layers below a step, one directory at a time.
//!
//! A walk that goes down with it looks each name up only in the layers that have its directory, so that a new directory's
//! names cost nothing, however many layers there are. It sees what [`Snapshot::lookup`] sees.

use std::collections::BTreeMap;

use crate::tree::{EntryPath, Kind, Metadata, Row, Snapshot};

/// A directory of the layers below.
#[derive(Clone, Debug)]
pub(super) struct LowerDirectory<'a> {
    views: Vec<View<'a>>,
}

/// What one layer has below the directory, topmost layer first.
#[derive(Clone, Copy, Debug)]
struct View<'a> {
    layer: usize,
    rows: &'a [Row],
}

/// A name of the layers below.
#[derive(Clone, Debug)]
pub(super) struct LowerEntry<'a> {
    /// The layer that `row` is of, counted from the lowest.
    pub layer: usize,
    pub row: &'a Row,
    pub metadata: &'a Metadata,
    /// Where it is one.
    pub directory: Option<LowerDirectory<'a>>,
}

impl<'a> LowerDirectory<'a> {
    pub fn root(snapshot: &'a Snapshot) -> Self {
        let mut views = Vec::new();
        for (layer, rows) in snapshot.layers().iter().map(|l| l.index.rows()).enumerate().rev() {
            let root = rows.first().filter(|row| row.path.is_root());
            views.push(View { layer, rows: &rows[usize::from(root.is_some())..] });
            if root.is_some_and(is_opaque) {
                break;
            }
        }
        LowerDirectory { views }
    }

    /// The entry at `path`, which is directly below this directory.
    pub fn child(&self, path: &EntryPath) -> Option<LowerEntry<'a>> {
        let mut rows = self.views.iter().filter_map(|view| view.find(path));
        let (first, row) = rows.next().filter(|(_, row)| row.kind != Kind::Whiteout)?;
        let mut entry =
            LowerEntry { layer: first.layer, row, metadata: &row.metadata, directory: None };
        if !row.kind.is_directory() {
            return Some(entry);
        }
        let (mut opaque, mut implied) = (is_opaque(row), row.implied);
        let mut views = vec![first];
        for (view, row) in rows.take_while(|(_, row)| row.kind.is_directory()) {
            if implied && !row.implied {
                (entry.metadata, implied) = (&row.metadata, false);
            }
            if !opaque {
                views.push(view);
                opaque = is_opaque(row);
            }
            if opaque && !implied {
                break;
            }
        }
        entry.directory = Some(LowerDirectory { views });
        Some(entry)
    }

    /// The paths directly below this directory, in order.
    pub fn children(&self) -> impl Iterator<Item = &'a EntryPath> {
        let mut names: BTreeMap<&EntryPath, bool> = BTreeMap::new();
        for view in &self.views {
            let mut rows = view.rows;
            while let Some((row, rest)) = rows.split_first() {
                names.entry(&row.path).or_insert(row.kind != Kind::Whiteout);
                rows = &rest[below(rest, &row.path)..];
            }
        }
        names.into_iter().filter(|(_, visible)| *visible).map(|(path, _)| path)
    }
}

impl<'a> View<'a> {
    /// The row at `path` and the view of what is below it.
    fn find(&self, path: &EntryPath) -> Option<(View<'a>, &'a Row)> {
        let at = self.rows.binary_search_by(|row| row.path.cmp(path)).ok()?;
        let rest = &self.rows[at + 1..];
        let rows = &rest[..below(rest, path)];
        Some((View { layer: self.layer, rows }, &self.rows[at]))
    }
}

fn is_opaque(row: &Row) -> bool {
    row.kind == Kind::Directory { opaque: true }
}

/// How many of `rows` lie below `path`, which comes right before them.
fn below(rows: &[Row], path: &EntryPath) -> usize {
    let is_below = |row: &Row| {
        let rest = row.path.as_bytes().strip_prefix(path.as_bytes());
        rest.is_some_and(|rest| rest.first() == Some(&b'/'))
    };
    match rows.first() {
        Some(first) if is_below(first) => rows.partition_point(is_below),
        _ => 0,
    }
}
