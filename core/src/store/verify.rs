//! A reader that yields a blob's bytes only as long as they can still be the blob, and an error at its end if they were not.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use crate::digest::Digest;

/// Checks size and digest of what passes through. The error comes with the read that would have reported the end.
pub struct VerifyingReader<R> {
    inner: R,
    hasher: Option<Sha256>,
    expected: Digest,
    left: u64,
}

impl<R: Read> VerifyingReader<R> {
    pub fn new(inner: R, expected: Digest, size: u64) -> Self {
        VerifyingReader { inner, hasher: Some(Sha256::new()), expected, left: size }
    }

    pub fn into_inner(self) -> R {
        self.inner
    }

    fn finish(&mut self) -> io::Result<usize> {
        let mut probe = [0];
        if self.inner.read(&mut probe)? != 0 {
            return Err(self.wrong("has more bytes than its descriptor says"));
        }
        let Some(hasher) = self.hasher.take() else { return Ok(0) };
        let found = Digest::from_bytes(hasher.finalize().into());
        if found == self.expected { Ok(0) } else { Err(self.wrong("has another digest")) }
    }

    fn wrong(&self, what: &str) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, format!("blob {} {what}", self.expected))
    }
}

impl<R: Read> Read for VerifyingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.left == 0 {
            return self.finish();
        }
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let got = self.inner.read(&mut buffer[..want])?;
        if got == 0 {
            return Err(self.wrong("has fewer bytes than its descriptor says"));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..got]);
        }
        self.left -= got as u64;
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], digest_of: &[u8], size: u64) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        VerifyingReader::new(bytes, Digest::of(digest_of), size).read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn only_the_very_bytes_pass() {
        assert_eq!(read(b"hello", b"hello", 5).unwrap(), b"hello");
        assert_eq!(read(b"", b"", 0).unwrap(), b"");
        assert!(read(b"hellO", b"hello", 5).is_err());
        assert!(read(b"hell", b"hello", 5).is_err());
        assert!(read(b"hello!", b"hello", 5).is_err());
        assert!(read(b"hello", b"hello", 4).is_err());
    }
}
