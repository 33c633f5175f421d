//! A layer blob's plain bytes.

use std::{
    io::{self, Read},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    LayerError, ReadLimits,
    decompress::{Format, decompressed},
};

/// The compression that a layer's media type names (OCI image-spec, layer.md; Docker's schema 2).
fn format_of(media_type: &str) -> Result<Format, LayerError> {
    Ok(match media_type {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar" => Format::Plain,
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Format::Gzip,
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Format::Zstd,
        _ => return Err(LayerError::MediaType(media_type.to_owned())),
    })
}

/// Whether both media types are of layers of one compression.
pub(super) fn same_format(one: &str, other: &str) -> bool {
    matches!((format_of(one), format_of(other)), (Ok(one), Ok(other)) if one == other)
}

/// Decompresses within the limits on the ratio.
pub(super) struct Source<'a> {
    reader: Box<dyn Read + Send + 'a>,
    compressed_bytes: Arc<AtomicU64>,
    bytes: u64,
    limits: ReadLimits,
}

impl<'a> Source<'a> {
    /// Bytes of another compression than the media type names are refused.
    pub(super) fn open(
        input: &'a mut (dyn Read + Send),
        media_type: &str,
        limits: ReadLimits,
    ) -> Result<Self, LayerError> {
        let expected = format_of(media_type)?;
        let compressed_bytes = Arc::new(AtomicU64::new(0));
        let counter = Counter { input, count: compressed_bytes.clone() };
        let (found, reader) = decompressed(counter).map_err(LayerError::Read)?;
        if found != expected {
            return Err(LayerError::FormatMismatch { media_type: media_type.to_owned(), found });
        }
        Ok(Source { reader, compressed_bytes, bytes: 0, limits })
    }

    /// Fills as much of `buffer` as there is; less only at the end.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, LayerError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.reader.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(LayerError::Read(error)),
            }
        }
        self.bytes += filled as u64;
        self.check_ratio()?;
        Ok(filled)
    }

    fn check_ratio(&self) -> Result<(), LayerError> {
        let ratio = self.limits.ratio_max;
        let compressed = self.compressed_bytes.load(Ordering::Relaxed);
        let allowed = compressed.saturating_mul(ratio).saturating_add(self.limits.ratio_free_bytes);
        if self.bytes > allowed {
            return Err(LayerError::Ratio { ratio });
        }
        Ok(())
    }
}

struct Counter<'a> {
    input: &'a mut (dyn Read + Send),
    count: Arc<AtomicU64>,
}

impl Read for Counter<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.input.read(buffer)?;
        self.count.fetch_add(got as u64, Ordering::Relaxed);
        Ok(got)
    }
}
