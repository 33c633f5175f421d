//! A layer's bytes in another compression: the same tar, another blob.

use std::io::{Read, Write};

use crate::{digest::Digest, request::Compression};

use super::{
    LayerDescriptor, LayerError, ReadLimits, WriteOptions,
    compress::{self, media_type},
    source::{Source, same_format},
};

/// Whether a layer of this media type has the format that `compression` writes. Levels are not compared.
pub fn has_compression(layer_media_type: &str, compression: Compression) -> bool {
    same_format(layer_media_type, media_type(compression))
}

/// Writes the layer in `input` to `blob`, compressed as `options` say. Its tar stays as it is, byte by byte.
///
/// # Errors
/// The layer cannot be read, or its tar is not `diff_id`; `blob` then holds something that is of no use.
pub fn recompress(
    input: &mut (dyn Read + Send),
    layer_media_type: &str,
    diff_id: &Digest,
    options: &WriteOptions,
    blob: &mut (dyn Write + Send),
) -> Result<LayerDescriptor, LayerError> {
    let mut source = Source::open(input, layer_media_type, ReadLimits::default())?;
    let ((), compressed) = compress::run(options, blob, |out| {
        loop {
            let got = source.fill(out.room()?)?;
            if got == 0 {
                return Ok(());
            }
            out.advance(got);
        }
    })?;
    if compressed.diff_id != *diff_id {
        return Err(LayerError::DiffId { expected: *diff_id, actual: compressed.diff_id });
    }
    Ok(LayerDescriptor {
        media_type: media_type(options.compression).to_owned(),
        digest: compressed.digest,
        size: compressed.size,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn the_tar_stays_and_the_blob_is_another() {
        let tar = b"anything, a hundred times over. ".repeat(100_000);
        let diff_id = Digest::of(&tar);
        for compression in
            [Compression::Zstd { level: 3 }, Compression::Uncompressed, Compression::default()]
        {
            let options = WriteOptions { compression, mtime_seconds_max: None, workers: 2 };
            let mut blob = Vec::new();
            let made = recompress(&mut &gzip(&tar)[..], GZIP, &diff_id, &options, &mut blob);
            let made = made.unwrap();
            assert_eq!((made.digest, made.size), (Digest::of(&blob), blob.len() as u64));
            assert!(has_compression(&made.media_type, compression));
            let (_, mut plain) = super::super::decompress::decompressed(&blob[..]).unwrap();
            let mut read = Vec::new();
            plain.read_to_end(&mut read).unwrap();
            assert!(read == tar);
        }
        let options = WriteOptions {
            compression: Compression::default(),
            mtime_seconds_max: None,
            workers: 1,
        };
        let other =
            recompress(&mut &gzip(&tar)[..], GZIP, &Digest::of(b"x"), &options, &mut Vec::new());
        assert!(matches!(other, Err(LayerError::DiffId { .. })));
    }

    #[test]
    fn formats_are_compared_and_not_names() {
        assert!(has_compression(GZIP, Compression::Gzip { level: 1, members: true }));
        assert!(!has_compression(GZIP, Compression::Zstd { level: 1 }));
        assert!(!has_compression("text/plain", Compression::default()));
    }
}
