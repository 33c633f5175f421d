//! One file that many contents are written to, one after the other.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    sync::Arc,
};

use crate::tree::Content;

/// Takes the bytes of archive members, and hands them out again as slices of its file.
#[derive(Debug)]
pub struct Spool {
    file: Arc<File>,
    length: u64,
    buffer: Vec<u8>,
}

impl Spool {
    /// Writes to an empty file that is open for reading and writing, and should be gone from its directory already.
    pub fn new(file: File) -> Self {
        Spool { file: Arc::new(file), length: 0, buffer: vec![0; 256 * 1024] }
    }

    /// Bytes written so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Takes all that the reader has. What was written before an error is not part of the spool.
    pub fn append(&mut self, reader: &mut dyn Read) -> io::Result<Content> {
        let offset = self.length;
        let mut length = 0;
        loop {
            let count = match reader.read(&mut self.buffer) {
                Ok(0) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            self.file.write_all_at(&self.buffer[..count], offset + length)?;
            length += count as u64;
        }
        self.length += length;
        Ok(Content::Slice { file: self.file.clone(), offset, length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_content_is_its_own_slice() {
        let mut spool = Spool::new(tempfile::tempfile().unwrap());
        let first = spool.append(&mut &b"one"[..]).unwrap();
        let empty = spool.append(&mut &b""[..]).unwrap();
        let second = spool.append(&mut &b"second"[..]).unwrap();
        let read = |content: Content| {
            let mut text = String::new();
            content.open().unwrap().read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!([read(first), read(empty), read(second)], ["one", "", "second"]);
        assert_eq!(spool.length(), 9);
    }
}
