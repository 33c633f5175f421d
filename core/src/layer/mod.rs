//! Changeset -> canonical tar -> compressed blob, and a foreign layer's bytes -> index (and entries for whoever wants them).

mod blocks;
mod compress;
pub mod decompress;
mod error;
mod extract;
mod flat;
pub mod limits;
mod names;
mod read;
mod recompress;
mod source;
pub mod tar;
mod write;

pub use compress::compressor_name;
pub use error::LayerError;
pub use extract::{extract_files, hash_files, visit_files};
pub use flat::FlatTar;
pub use limits::ReadLimits;
pub use read::read_layer;
pub use recompress::{has_compression, recompress};
pub use write::write_layer;

use std::io::{self, Read};

use crate::{
    digest::Digest,
    request::Compression,
    tree::{EntryPath, LayerIndex, Row},
};

/// A layer blob as a manifest names it (OCI image-spec, descriptor.md).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LayerDescriptor {
    pub media_type: String,
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

/// How a layer is written.
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions {
    pub compression: Compression,
    /// SOURCE_DATE_EPOCH: later mtimes are cut to it.
    pub mtime_seconds_max: Option<i64>,
    /// Compression workers, at least 1. The bytes do not depend on it.
    pub workers: usize,
}

/// What writing a layer gave.
#[derive(Clone, Debug)]
pub struct WrittenLayer {
    pub descriptor: LayerDescriptor,
    pub diff_id: Digest,
    pub uncompressed_bytes: u64,
    /// With content digests and tar offsets.
    pub index: LayerIndex,
}

/// What reading a foreign layer gave.
#[derive(Clone, Debug)]
pub struct ReadLayer {
    pub diff_id: Digest,
    pub uncompressed_bytes: u64,
    pub index: LayerIndex,
    /// What was tolerated, such as a missing end of the archive; for the log.
    pub warnings: Vec<String>,
}

/// Takes a layer's entries in the order of its tar. Paths are normalised: resolved through links that the same layer
/// brought before, never through a lower layer's. A parent that the layer has no entry for is a directory, in place of
/// whatever else an earlier entry put there.
pub trait LayerSink: Send {
    /// An entry that is no hard link, whiteouts included. It replaces what an earlier entry put at its path (a directory on
    /// a directory merges). For a regular file `body` yields exactly its bytes.
    fn entry(&mut self, row: &Row, body: &mut dyn Read) -> io::Result<()>;
    /// `row.path` becomes another name of `target`, which is an earlier entry of this layer and no directory.
    /// `row.metadata` is what the inode has from now on, under all its names: mostly what it had already.
    fn hard_link(&mut self, row: &Row, target: &EntryPath) -> io::Result<()>;
    /// Nothing that lower layers have below `directory` shows any more.
    fn opaque(&mut self, directory: &EntryPath) -> io::Result<()>;
}

#[cfg(test)]
mod tests;
