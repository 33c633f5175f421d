//! Layers written and read back, by us and by others; hostile ones from a forge of raw blocks.

mod forge;
mod hostile;
mod peers;
mod properties;
mod round_trip;

use std::{
    collections::BTreeMap,
    io::{self, Read},
    sync::Arc,
};

use super::*;
use crate::tree::{Change, Changeset, Content, IndexBuilder, Kind, Metadata, Timestamp};

pub(super) const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

pub(super) fn path(text: &str) -> EntryPath {
    EntryPath::clean(text.as_bytes()).unwrap()
}

pub(super) fn metadata(mode: u32) -> Metadata {
    Metadata { mode, mtime: Timestamp::from_seconds(1_700_000_000), ..Metadata::default() }
}

pub(super) fn directory(name: &str) -> Change {
    Change::new(path(name), Kind::DIRECTORY, metadata(0o755))
}

pub(super) fn file(name: &str, bytes: impl Into<Arc<[u8]>>) -> Change {
    let bytes = bytes.into();
    let kind = Kind::File { size: bytes.len() as u64 };
    let content = Some(Content::Bytes(bytes));
    Change { content, ..Change::new(path(name), kind, metadata(0o644)) }
}

pub(super) fn symlink(name: &str, target: &str) -> Change {
    let kind = Kind::Symlink { target: target.as_bytes().into() };
    Change::new(path(name), kind, metadata(0o777))
}

pub(super) fn options(compression: Compression, workers: usize) -> WriteOptions {
    WriteOptions { compression, mtime_seconds_max: None, workers }
}

pub(super) fn write(changes: Vec<Change>, options: WriteOptions) -> (Vec<u8>, WrittenLayer) {
    let mut blob = Vec::new();
    let written = write_layer(&Changeset::new(changes), &options, &mut blob).unwrap();
    (blob, written)
}

/// Compresses well, but not to nothing.
pub(super) fn text(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let words = ["layer ", "blob ", "digest ", "of ", "the ", "whiteout ", "\n", "0x1f8b "];
    let mut out = Vec::with_capacity(length + 16);
    while out.len() < length {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.extend_from_slice(words[(state >> 61) as usize].as_bytes());
    }
    out.truncate(length);
    out
}

/// Does not compress.
pub(super) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut out: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| next().to_le_bytes()).collect();
    out.truncate(length);
    out
}

/// What an unpacker is told, kept in memory by the rules of `LayerSink`.
#[derive(Default)]
pub(super) struct Model {
    pub(super) index: IndexBuilder,
    pub(super) bodies: BTreeMap<EntryPath, Vec<u8>>,
}

impl LayerSink for Model {
    fn entry(&mut self, row: &Row, body: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        body.read_to_end(&mut bytes)?;
        if let Kind::File { size } = row.kind {
            assert_eq!(bytes.len() as u64, size, "{}", row.path);
        }
        self.index.insert(row.clone());
        self.bodies.retain(|path, _| !path.is_within(&row.path) || row.kind.is_directory());
        self.bodies.insert(row.path.clone(), bytes);
        Ok(())
    }

    fn hard_link(&mut self, row: &Row, target: &EntryPath) -> io::Result<()> {
        let bytes = self.bodies.get(target).cloned().unwrap_or_default();
        assert!(self.index.get(target).is_some_and(|row| !row.kind.is_directory()), "{target}");
        self.index.insert(row.clone());
        self.bodies.insert(row.path.clone(), bytes);
        Ok(())
    }

    fn opaque(&mut self, directory: &EntryPath) -> io::Result<()> {
        self.index.set_opaque(directory);
        Ok(())
    }
}

pub(super) fn read(blob: &[u8], media_type: &str) -> Result<ReadLayer, LayerError> {
    read_layer(&mut { blob }, media_type, ReadLimits::default(), None)
}

/// Rows as a foreign reader's index has them: without digests.
pub(super) fn without_digests(index: &LayerIndex) -> Vec<Row> {
    index.rows().iter().map(|row| Row { digest: None, ..row.clone() }).collect()
}
