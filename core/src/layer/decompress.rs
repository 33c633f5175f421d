//! Which compression a stream has, by its first bytes, and the plain bytes of it.

use std::io::{self, BufRead, BufReader, Read};

use super::limits::XZ_MEMORY_BYTES_MAX;

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Plain,
    Gzip,
    Bzip2,
    Xz,
    Zstd,
}

/// So much is looked at before anything is decided.
const MAGIC_BYTES_MAX: usize = 6;
const BUFFER_BYTES: usize = 128 << 10;

impl Format {
    /// The format that begins with these bytes; `Plain` where none does.
    pub fn of_magic(bytes: &[u8]) -> Self {
        match bytes {
            [0x1f, 0x8b, 0x08, ..] => Format::Gzip,
            [b'B', b'Z', b'h', ..] => Format::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Format::Xz,
            // The second one is a skippable frame (RFC 8878, 3.1.2).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Format::Zstd,
            _ => Format::Plain,
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Format::Plain => "no compression",
            Format::Gzip => "gzip",
            Format::Bzip2 => "bzip2",
            Format::Xz => "xz",
            Format::Zstd => "zstd",
        })
    }
}

/// Sniffs gzip, bzip2, xz and zstd, and gives the decompressed stream. All members and frames of a file are read;
/// what follows the last one and is none, a wrong checksum and a cut end are errors while reading.
pub fn decompressed<'a>(
    reader: impl Read + Send + 'a,
) -> io::Result<(Format, Box<dyn Read + Send + 'a>)> {
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, reader);
    let mut magic = Vec::with_capacity(MAGIC_BYTES_MAX);
    reader.by_ref().take(MAGIC_BYTES_MAX as u64).read_to_end(&mut magic)?;
    let format = Format::of_magic(&magic);
    Ok((format, decoder(format, io::Cursor::new(magic).chain(reader))?))
}

fn decoder<'a>(
    format: Format,
    input: impl BufRead + Send + 'a,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    Ok(match format {
        Format::Plain => Box::new(input),
        Format::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Format::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
        Format::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
        Format::Xz => {
            let flags = liblzma::stream::CONCATENATED;
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY_BYTES_MAX, flags)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn samples() -> Vec<(Format, Vec<u8>)> {
        let text = b"some text ".repeat(1000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        gzip.write_all(&text).unwrap();
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::new(6));
        bzip2.write_all(&text).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 6);
        xz.write_all(&text).unwrap();
        let mut zstd = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        zstd.include_checksum(true).unwrap();
        zstd.write_all(&text).unwrap();
        vec![
            (Format::Gzip, gzip.finish().unwrap()),
            (Format::Bzip2, bzip2.finish().unwrap()),
            (Format::Xz, xz.finish().unwrap()),
            (Format::Zstd, zstd.finish().unwrap()),
            (Format::Plain, text),
        ]
    }

    fn read(bytes: &[u8]) -> io::Result<(Format, Vec<u8>)> {
        let (format, mut reader) = decompressed(bytes)?;
        let mut out = Vec::new();
        reader.read_to_end(&mut out)?;
        Ok((format, out))
    }

    #[test]
    fn each_format_is_recognised_and_all_its_members_are_read() {
        for (format, bytes) in samples() {
            let once = read(&bytes).unwrap();
            assert_eq!(once.0, format);
            assert_eq!(once.1, b"some text ".repeat(1000));
            let twice = read(&bytes.repeat(2)).unwrap();
            assert_eq!(twice.1, b"some text ".repeat(2000), "{format}");
        }
    }

    #[test]
    fn damage_a_cut_end_and_trailing_garbage_are_errors() {
        for (format, bytes) in samples().into_iter().filter(|(format, _)| *format != Format::Plain)
        {
            assert!(read(&bytes[..bytes.len() - 1]).is_err(), "cut {format}");
            assert!(read(&[&bytes[..], b"garbage"].concat()).is_err(), "tail of {format}");
            let mut wrong = bytes.clone();
            let at = wrong.len() - if format == Format::Gzip { 6 } else { 3 };
            wrong[at] ^= 1;
            assert!(read(&wrong).is_err(), "checksum of {format}");
        }
    }

    #[test]
    fn short_inputs_are_plain() {
        for bytes in [&b""[..], b"\x1f", b"BZ", b"abc"] {
            assert_eq!(read(bytes).unwrap(), (Format::Plain, bytes.to_vec()));
        }
    }
}
