//! Whether two contents are equal, read only where all else is.

use std::{
    io::{self, Read},
    os::fd::OwnedFd,
    sync::Arc,
};

use sha2::{Digest as _, Sha256};

use crate::{
    digest::Digest,
    tree::{Content, Row},
};

const CHUNK_BYTES: usize = 64 << 10;

/// Reads files of the layers below a step.
pub trait LowerContent {
    /// The whole content of a regular file: `row` of the `layer`-th layer, counted from the lowest.
    fn open(&self, layer: usize, row: &Row) -> io::Result<Box<dyn Read>>;
}

/// The layers' directories in overlay's form, lowest first: the unpacked ones themselves, or for merged layers, for each
/// of them, the directory that they were merged into.
pub struct LowerDirectories(pub Vec<Arc<OwnedFd>>);

impl LowerContent for LowerDirectories {
    fn open(&self, layer: usize, row: &Row) -> io::Result<Box<dyn Read>> {
        let directory = self.0.get(layer).ok_or(io::ErrorKind::NotFound)?.clone();
        Ok(Content::Beneath { directory, path: row.path.clone() }.open()?)
    }
}

/// The digest of all that is read.
pub(super) fn digest_of(mut reader: impl Read) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match fill(&mut reader, &mut buffer)? {
            0 => return Ok(Digest::from_bytes(hash.finalize().into())),
            got => hash.update(&buffer[..got]),
        }
    }
}

pub(super) fn same_bytes(mut left: impl Read, mut right: impl Read) -> io::Result<bool> {
    let (mut a, mut b) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    loop {
        let (got_a, got_b) = (fill(&mut left, &mut a)?, fill(&mut right, &mut b)?);
        if a[..got_a] != b[..got_b] {
            return Ok(false);
        }
        if got_a == 0 {
            return Ok(true);
        }
    }
}

/// Reads until the buffer is full or nothing is left.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(got) => filled += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
