//! One 512-byte header block.

use super::{BLOCK_BYTES, TarError};

/// A header block whose checksum is right.
pub(super) struct Header {
    raw: tar::Header,
    /// Where it stands, for messages.
    offset: u64,
}

/// Whether `block` (512 bytes) is a tar header with a right checksum, which is how ADD knows an archive.
pub fn is_tar_header(block: &[u8]) -> bool {
    <&[u8; BLOCK_BYTES]>::try_from(block)
        .is_ok_and(|block| !is_zero(block) && has_right_checksum(block))
}

pub(super) fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

/// The sum of all bytes, the checksum's own taken as spaces. Some old writers summed signed bytes.
fn has_right_checksum(block: &[u8; BLOCK_BYTES]) -> bool {
    let mut header = tar::Header::new_old();
    header.as_mut_bytes().copy_from_slice(block);
    header.as_old_mut().cksum = *b"        ";
    let bytes = header.as_bytes();
    let unsigned: i64 = bytes.iter().map(|byte| i64::from(*byte)).sum();
    let signed: i64 = bytes.iter().map(|byte| i64::from(*byte as i8)).sum();
    number(&block[148..156]).is_some_and(|sum| sum == unsigned || sum == signed)
}

impl Header {
    pub(super) fn parse(block: &[u8; BLOCK_BYTES], offset: u64) -> Result<Self, TarError> {
        if !has_right_checksum(block) {
            return Err(TarError::Header { offset, what: "the checksum is wrong" });
        }
        let mut raw = tar::Header::new_old();
        raw.as_mut_bytes().copy_from_slice(block);
        Ok(Header { raw, offset })
    }

    pub(super) fn typeflag(&self) -> u8 {
        self.raw.as_old().linkflag[0]
    }

    /// With the prefix that ustar (and star, which cuts it at 131 bytes) has and GNU tar has not.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = until_nul(&self.raw.as_old().name);
        let Some(ustar) = self.raw.as_ustar() else { return name.to_vec() };
        let is_star = self.raw.as_bytes().ends_with(b"tar\0");
        let prefix = until_nul(if is_star { &ustar.prefix[..131] } else { &ustar.prefix });
        if prefix.is_empty() { name.to_vec() } else { [prefix, name].join(&b'/') }
    }

    pub(super) fn link_name(&self) -> Vec<u8> {
        until_nul(&self.raw.as_old().linkname).to_vec()
    }

    pub(super) fn size(&self) -> Result<u64, TarError> {
        let size = self.field(&self.raw.as_old().size, "its size is no number")?;
        u64::try_from(size).map_err(|_| self.error("its size is negative"))
    }

    pub(super) fn mode(&self) -> Result<u32, TarError> {
        Ok(self.field(&self.raw.as_old().mode, "its mode is no number")? as u32 & 0o7777)
    }

    pub(super) fn uid(&self) -> Result<i64, TarError> {
        self.field(&self.raw.as_old().uid, "its uid is no number")
    }

    pub(super) fn gid(&self) -> Result<i64, TarError> {
        self.field(&self.raw.as_old().gid, "its gid is no number")
    }

    pub(super) fn mtime(&self) -> Result<i64, TarError> {
        self.field(&self.raw.as_old().mtime, "its mtime is no number")
    }

    /// Major and minor number; 0 in headers that have no such fields.
    pub(super) fn device(&self) -> Result<(u32, u32), TarError> {
        let Some((major, minor)) = (match (self.raw.as_ustar(), self.raw.as_gnu()) {
            (Some(ustar), _) => Some((&ustar.dev_major, &ustar.dev_minor)),
            (_, Some(gnu)) => Some((&gnu.dev_major, &gnu.dev_minor)),
            _ => None,
        }) else {
            return Ok((0, 0));
        };
        let what = "its device number is out of range";
        let get = |field| u32::try_from(self.field(field, what)?).map_err(|_| self.error(what));
        Ok((get(major)?, get(minor)?))
    }

    fn field(&self, field: &[u8], what: &'static str) -> Result<i64, TarError> {
        number(field).ok_or_else(|| self.error(what))
    }

    fn error(&self, what: &'static str) -> TarError {
        TarError::Header { offset: self.offset, what }
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits between spaces and NULs, or GNU's base-256: two's complement behind a set first bit.
fn number(field: &[u8]) -> Option<i64> {
    if field.first().is_some_and(|byte| byte & 0x80 != 0) {
        return base256(field);
    }
    let padding = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !padding(byte)).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(padding).unwrap_or(digits.len());
    if !digits[end..].iter().all(padding) {
        return None;
    }
    digits[..end].iter().try_fold(0i64, |sum, digit| match digit {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

fn base256(field: &[u8]) -> Option<i64> {
    let first = (field[0] << 1) as i8 >> 1;
    field[1..]
        .iter()
        .try_fold(i64::from(first), |sum, byte| sum.checked_mul(256)?.checked_add(i64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777777\0", Some(8_589_934_591)),
            (b"12\x009\0", None),
            (b"-1\0", None),
            (b"0x1f\0", None),
            (b"\x80\0\0\0\0\0\0\x01", Some(1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfb", Some(-5)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\x80\x01\0\0\0\0\0\0\0\0\0\0", None),
        ] {
            assert_eq!(number(field), expected, "{}", field.escape_ascii());
        }
    }
}
