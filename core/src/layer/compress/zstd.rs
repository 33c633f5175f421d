//! One zstd frame a block (RFC 8878): any reader takes frames in a row, and each can be read for itself.

use std::io;

use super::Packer;

pub(super) fn library() -> String {
    format!("zstd-{}", ::zstd::zstd_safe::version_string())
}

pub(super) struct Frames {
    compressor: ::zstd::bulk::Compressor<'static>,
}

impl Frames {
    pub(super) fn new(level: u8) -> io::Result<Self> {
        Ok(Frames { compressor: ::zstd::bulk::Compressor::new(level.into())? })
    }
}

impl Packer for Frames {
    fn pack(&mut self, block: &[u8], _last: bool, out: &mut Vec<u8>) -> io::Result<()> {
        out.reserve(::zstd::zstd_safe::compress_bound(block.len()));
        self.compressor.compress_to_buffer(block, out)?;
        Ok(())
    }
}
