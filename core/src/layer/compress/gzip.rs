//! gzip (RFC 1952) from blocks: one member of many deflate streams' worth, or one member a block.

use std::io;

use flate2::{Compress, FlushCompress, Status};
use libdeflater::{CompressionLvl, Compressor};

use super::Packer;

pub(super) const SINGLE_LIBRARY: &str = "zlib-rs-0.6.8";
pub(super) const MEMBERS_LIBRARY: &str = "libdeflate-1.26.1";

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

/// Raw deflate blocks for one member: each but the last ends at a byte with a sync flush or a stored block.
pub(super) struct Single {
    compress: Option<Compress>,
    probe: Probe,
}

impl Single {
    pub(super) fn new(level: u8) -> io::Result<Self> {
        let level = u32::from(level);
        let compress = (level > 0).then(|| Compress::new(flate2::Compression::new(level), false));
        Ok(Single { compress, probe: Probe::new()? })
    }
}

impl Packer for Single {
    fn pack(&mut self, block: &[u8], last: bool, out: &mut Vec<u8>) -> io::Result<()> {
        let worth = !self.probe.is_incompressible(block);
        if let Some(compress) = self.compress.as_mut().filter(|_| worth)
            && deflate(compress, block, last, out)?
        {
            return Ok(());
        }
        out.clear();
        put_stored(block, last, out);
        Ok(())
    }
}

/// In one call, so that the bytes do not depend on how the block came in. `false` where it does not become smaller.
fn deflate(
    compress: &mut Compress,
    block: &[u8],
    last: bool,
    out: &mut Vec<u8>,
) -> io::Result<bool> {
    let room = stored_bytes(block.len());
    out.resize(room, 0);
    compress.reset();
    let flush = if last { FlushCompress::Finish } else { FlushCompress::Sync };
    let status = compress.compress(block, out, flush).map_err(io::Error::other)?;
    let written = compress.total_out() as usize;
    let complete = compress.total_in() == block.len() as u64 && written < room;
    out.truncate(written);
    Ok(complete && (!last || status == Status::StreamEnd))
}

/// Each block is a member of its own.
pub(super) struct Members {
    compressor: Option<Compressor>,
    probe: Probe,
}

impl Members {
    pub(super) fn new(level: u8) -> io::Result<Self> {
        let compressor = if level == 0 { None } else { Some(compressor(level)?) };
        Ok(Members { compressor, probe: Probe::new()? })
    }
}

impl Packer for Members {
    fn pack(&mut self, block: &[u8], _last: bool, out: &mut Vec<u8>) -> io::Result<()> {
        out.extend_from_slice(&HEADER);
        let worth = !self.probe.is_incompressible(block);
        let room = stored_bytes(block.len());
        let body = HEADER.len();
        out.resize(body + room, 0);
        let packed = self.compressor.as_mut().filter(|_| worth);
        match packed.and_then(|c| c.deflate_compress(block, &mut out[body..]).ok()) {
            Some(written) => out.truncate(body + written),
            None => {
                out.truncate(body);
                put_stored(block, true, out);
            }
        }
        out.extend_from_slice(&trailer(crc32fast::hash(block), block.len() as u64));
        Ok(())
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
    fn the_named_versions_are_those_that_are_built_in() {
        let lock = include_str!("../../../../Cargo.lock");
        for named in [SINGLE_LIBRARY, MEMBERS_LIBRARY] {
            let (name, version) = named.rsplit_once('-').unwrap();
            let name = if name == "libdeflate" { "libdeflate-sys" } else { name };
            let entry = format!("name = \"{name}\"\nversion = \"{version}\"");
            assert!(lock.contains(&entry), "{entry}: name the new version");
        }
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
