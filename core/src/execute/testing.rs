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

/// One member of a tar: name, type, mode, owner and mtime, and its text or link target.
pub struct TarMember<'m>(
    pub &'m str,
    pub tar::EntryType,
    pub u32,
    pub (u64, u64),
    pub u64,
    pub &'m str,
);

/// A ustar archive with its end.
pub fn tar_of(members: &[TarMember<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for TarMember(name, kind, mode, (uid, gid), mtime, text) in members {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_uid(*uid);
        header.set_gid(*gid);
        header.set_mtime(*mtime);
        let has_body = kind.is_file() || kind.is_pax_local_extensions();
        let body = if has_body { text.as_bytes() } else { b"" };
        header.set_size(body.len() as u64);
        if !has_body {
            header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(body);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}
