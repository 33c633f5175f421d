//! gzip (RFC 1952) from blocks: one member of many deflate streams' worth, or one member a block.

use std::io;

use libdeflater::{CompressionLvl, Compressor};

use super::{Packer, deflate};

pub(super) const LIBRARY: &str = "libdeflate-1.26.1";

/// No name, no time, no hint at the level, unknown operating system.
pub(super) const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

/// A stored deflate block holds so much (RFC 1951, 3.2.4), behind 5 bytes of its own.
const STORED_BYTES_MAX: usize = 0xffff;
const STORED_HEADER_BYTES: usize = 5;

/// What ends a member: the checksum and the length modulo 2^32.
pub(super) fn trailer(crc: u32, length: u64) -> [u8; 8] {
    let mut trailer = [0; 8];
    trailer[..4].copy_from_slice(&crc.to_le_bytes());
    trailer[4..].copy_from_slice(&(length as u32).to_le_bytes());
    trailer
}

/// A deflate stream a block, joined to one member: each but the last is opened at its end, or stored.
pub(super) struct Single(Deflater);

impl Single {
    pub(super) fn new(level: u8) -> io::Result<Self> {
        Ok(Single(Deflater::new(level)?))
    }
}

impl Packer for Single {
    fn pack(&mut self, block: &[u8], last: bool, out: &mut Vec<u8>) -> io::Result<()> {
        let is_smaller = self.0.deflate(block, out)
            && (last || deflate::open_end(out).is_some())
            && out.len() < stored_bytes(block.len());
        if !is_smaller {
            out.clear();
            put_stored(block, last, out);
        }
        Ok(())
    }
}

/// Each block is a member of its own.
pub(super) struct Members(Deflater);

impl Members {
    pub(super) fn new(level: u8) -> io::Result<Self> {
        Ok(Members(Deflater::new(level)?))
    }
}

impl Packer for Members {
    fn pack(&mut self, block: &[u8], _last: bool, out: &mut Vec<u8>) -> io::Result<()> {
        out.extend_from_slice(&HEADER);
        if !self.0.deflate(block, out) {
            put_stored(block, true, out);
        }
        out.extend_from_slice(&trailer(crc32fast::hash(block), block.len() as u64));
        Ok(())
    }
}

/// Makes whole deflate streams.
struct Deflater {
    /// `None` at level 0.
    compressor: Option<Compressor>,
    probe: Probe,
}

impl Deflater {
    fn new(level: u8) -> io::Result<Self> {
        let compressor = if level == 0 { None } else { Some(compressor(level)?) };
        Ok(Deflater { compressor, probe: Probe::new()? })
    }

    /// Appends one whole stream to `out`; `false`, and nothing appended, where stored blocks are as good.
    fn deflate(&mut self, block: &[u8], out: &mut Vec<u8>) -> bool {
        let Some(compressor) = &mut self.compressor else { return false };
        if self.probe.is_incompressible(block) {
            return false;
        }
        let start = out.len();
        out.resize(start + stored_bytes(block.len()), 0);
        let written = compressor.deflate_compress(block, &mut out[start..]).ok();
        out.truncate(start + written.unwrap_or(0));
        written.is_some()
    }
}

fn compressor(level: u8) -> io::Result<Compressor> {
    let level = CompressionLvl::new(level.into())
        .map_err(|_| io::Error::other("libdeflate does not know this level"))?;
    Ok(Compressor::new(level))
}

fn stored_bytes(length: usize) -> usize {
    length + length.div_ceil(STORED_BYTES_MAX).max(1) * STORED_HEADER_BYTES
}

fn put_stored(block: &[u8], last: bool, out: &mut Vec<u8>) {
    out.reserve(stored_bytes(block.len()));
    let mut pieces = block.chunks(STORED_BYTES_MAX).peekable();
    while let Some(piece) = pieces.next() {
        let length = piece.len() as u16;
        out.push(u8::from(last && pieces.peek().is_none()));
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(piece);
    }
}

const PIECES: usize = 8;
const PIECE_BYTES: usize = 4 << 10;

/// Tells by a sample whether a block is worth the work: level 6 takes a hundred times as long as storing.
struct Probe {
    compressor: Compressor,
    sample: Vec<u8>,
    packed: Vec<u8>,
}

impl Probe {
    fn new() -> io::Result<Self> {
        let packed = vec![0; PIECES * PIECE_BYTES];
        Ok(Probe { compressor: compressor(1)?, sample: Vec::new(), packed })
    }

    /// Whether less than one part in 64 of the sample can be saved. Small blocks are always tried.
    fn is_incompressible(&mut self, block: &[u8]) -> bool {
        if block.len() < 2 * PIECES * PIECE_BYTES {
            return false;
        }
        self.take_sample(block);
        let room = self.sample.len() - self.sample.len() / 64;
        self.compressor.deflate_compress(&self.sample, &mut self.packed[..room]).is_err()
    }

    /// Pieces from all over the block, at uneven distances so that no layout hides between them.
    fn take_sample(&mut self, block: &[u8]) {
        self.sample.clear();
        let stride = block.len() / PIECES;
        for piece in 0..PIECES {
            let at = piece * stride + (piece * 7919) % (stride - PIECE_BYTES);
            self.sample.extend_from_slice(&block[at..at + PIECE_BYTES]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_version_is_the_one_that_is_built_in() {
        let lock = include_str!("../../../../Cargo.lock");
        let (_, version) = LIBRARY.rsplit_once('-').unwrap();
        let entry = format!("name = \"libdeflate-sys\"\nversion = \"{version}\"");
        assert!(lock.contains(&entry), "name the new version");
    }

    #[test]
    fn stored_blocks_are_as_large_as_announced() {
        for length in [1, 65_535, 65_536, 1 << 20] {
            let mut out = Vec::new();
            put_stored(&vec![7; length], true, &mut out);
            assert_eq!(out.len(), stored_bytes(length));
        }
    }
}
