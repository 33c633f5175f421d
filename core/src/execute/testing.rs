//! Snapshots for tests.

use std::sync::Arc;

use crate::{
    context::{ContentsError, SnapshotContents},
    digest::Digest,
    tree::{
        Content, EntryPath, IndexBuilder, Kind, Metadata, Row, Snapshot, SnapshotLayer, Timestamp,
    },
};

pub fn path(text: &str) -> EntryPath {
    EntryPath::clean(text.as_bytes()).unwrap()
}

pub fn file() -> Kind {
    Kind::File { size: 3 }
}

pub fn link(target: &str) -> Kind {
    Kind::Symlink { target: target.as_bytes().into() }
}

/// A snapshot of one layer. All is 0755 (files 0644), 0:0, mtime 1.
pub fn snapshot(rows: &[(&str, Kind)]) -> Snapshot {
    let rows = rows.iter().map(|(name, kind)| {
        let mode = if kind.is_directory() { 0o755 } else { 0o644 };
        row(name, kind.clone(), mode, 0, 0)
    });
    Snapshot::default().with(layer(rows.collect()))
}

pub fn row(name: &str, kind: Kind, mode: u32, uid: u32, gid: u32) -> Row {
    let mtime = Timestamp::from_seconds(1);
    Row::new(path(name), kind, Metadata { mode, uid, gid, mtime, capability: None })
}

pub fn layer(rows: Vec<Row>) -> SnapshotLayer {
    let mut builder = IndexBuilder::default();
    rows.into_iter().for_each(|row| builder.insert(row));
    SnapshotLayer { diff_id: Digest::of(b"layer"), index: Arc::new(builder.build()) }
}

/// Puts a layer with one file whose bytes the index keeps on top.
pub fn with_small_file(snapshot: &mut Snapshot, name: &str, text: &str) {
    let mut builder = IndexBuilder::default();
    builder.insert(row(name, Kind::File { size: text.len() as u64 }, 0o644, 0, 0));
    builder.keep_bytes(&path(name), text.as_bytes().into());
    let index = Arc::new(builder.build());
    *snapshot = snapshot.with(SnapshotLayer { diff_id: Digest::of(text.as_bytes()), index });
}

/// Has no contents at all.
pub struct NoContents;

impl SnapshotContents for NoContents {
    fn contents(&self, _: &[(usize, &Row)]) -> Result<Vec<Content>, ContentsError> {
        Err("no contents here".into())
    }
}

/// Each file's content is its path.
pub struct PathContents;

impl SnapshotContents for PathContents {
    fn contents(&self, wanted: &[(usize, &Row)]) -> Result<Vec<Content>, ContentsError> {
        Ok(wanted.iter().map(|(_, row)| Content::Bytes(row.path.as_bytes().into())).collect())
    }
}
