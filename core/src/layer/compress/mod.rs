//! A stream of bytes, cut into 1 MiB blocks, each compressed for itself by one of several workers; both digests on the way.
//!
//! The bytes that come out depend on nothing but the bytes that go in: blocks end at multiples of `BLOCK_BYTES`, whatever
//! the number of workers and the size of the writes.

mod deflate;
mod gzip;
mod pipeline;
mod zstd;

pub(super) use pipeline::{BlockWriter, run};

use std::io;

use crate::request::Compression;

use super::LayerError;

pub(super) const BLOCK_BYTES: usize = 1 << 20;

/// Part of `compressor_name`: another number wherever the same library makes other bytes through a change here.
const SCHEME: u32 = 1;

/// Names what makes the compressed bytes, for cache records: equal names, equal bytes.
pub fn compressor_name(compression: Compression) -> String {
    let (shape, library) = match compression {
        Compression::Gzip { level, members } => {
            let shape = if members { "gzip-members" } else { "gzip" };
            (format!("{shape}-{level}"), gzip::LIBRARY.to_owned())
        }
        Compression::Zstd { level } => (format!("zstd-{level}"), zstd::library()),
        Compression::Uncompressed => return "uncompressed".to_owned(),
    };
    format!("{shape} {library} scheme-{SCHEME}")
}

/// The media type of a new layer (OCI image-spec, layer.md).
pub(super) fn media_type(compression: Compression) -> &'static str {
    match compression {
        Compression::Gzip { .. } => "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression::Zstd { .. } => "application/vnd.oci.image.layer.v1.tar+zstd",
        Compression::Uncompressed => "application/vnd.oci.image.layer.v1.tar",
    }
}

pub(super) fn check_level(compression: Compression) -> Result<(), LayerError> {
    match compression {
        Compression::Gzip { level, .. } if level > 9 => {
            Err(LayerError::Level { name: "gzip", level, range: "0 to 9" })
        }
        Compression::Zstd { level } if !(1..=22).contains(&level) => {
            Err(LayerError::Level { name: "zstd", level, range: "1 to 22" })
        }
        _ => Ok(()),
    }
}

/// Compresses block after block; what it did before does not show in what it does next.
trait Packer: Send {
    /// Appends the compressed block to `out`, which is empty.
    fn pack(&mut self, block: &[u8], last: bool, out: &mut Vec<u8>) -> io::Result<()>;
}

/// `None`: the blocks are written as they are.
fn packer(compression: Compression) -> io::Result<Option<Box<dyn Packer>>> {
    Ok(match compression {
        Compression::Gzip { level, members: false } => Some(Box::new(gzip::Single::new(level)?)),
        Compression::Gzip { level, members: true } => Some(Box::new(gzip::Members::new(level)?)),
        Compression::Zstd { level } => Some(Box::new(zstd::Frames::new(level)?)),
        Compression::Uncompressed => None,
    })
}
