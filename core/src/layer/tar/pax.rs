//! PAX extended headers: records of `LENGTH KEY=VALUE\n` (POSIX.1-2017, pax, "pax Extended Header").

use crate::tree::Timestamp;

pub(super) const CAPABILITY_KEY: &[u8] = b"SCHILY.xattr.security.capability";

/// Version 3, the longest (linux/capability.h).
const CAPABILITY_BYTES_MAX: usize = 24;

/// What one member's PAX header says.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) capability: Option<Box<[u8]>>,
    pub(super) sparse: bool,
    /// Extended attributes, ACLs and file flags that no layer keeps.
    pub(super) dropped: u64,
}

impl Extensions {
    /// Reads a member's own header. An empty value takes back what the member's header block says, that is: nothing.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let mut extensions = Extensions::default();
        for record in Records(bytes) {
            let (key, value) = record?;
            extensions.set(key, value)?;
        }
        Ok(extensions)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        match key {
            b"path" => set_once(&mut self.path, text(value)?),
            b"linkpath" => set_once(&mut self.link_path, text(value)?),
            b"size" => set_once(&mut self.size, decimal(value)?.map(i64::unsigned_abs)),
            b"uid" => set_once(&mut self.uid, decimal(value)?),
            b"gid" => set_once(&mut self.gid, decimal(value)?),
            b"mtime" => set_once(&mut self.mtime, time(value)?),
            CAPABILITY_KEY if value.len() > CAPABILITY_BYTES_MAX => {
                Err("a file capability is too long")
            }
            CAPABILITY_KEY => {
                set_once(&mut self.capability, (!value.is_empty()).then(|| value.into()))
            }
            _ => {
                self.sparse |= key.starts_with(b"GNU.sparse.");
                self.dropped += u64::from(is_attribute(key));
                Ok(())
            }
        }
    }
}

/// A global header must not speak for members: readers do not agree on what it means.
pub(super) fn check_global(bytes: &[u8]) -> Result<(), &'static str> {
    for record in Records(bytes) {
        let (key, _) = record?;
        if matches!(key, b"path" | b"linkpath" | b"size") || key.starts_with(b"GNU.sparse.") {
            return Err("a global header sets the path, link or size of members");
        }
    }
    Ok(())
}

fn is_attribute(key: &[u8]) -> bool {
    [
        &b"SCHILY.xattr."[..],
        b"LIBARCHIVE.xattr.",
        b"SCHILY.acl.",
        b"RHT.security.",
        b"SCHILY.fflags",
    ]
    .iter()
    .any(|prefix| key.starts_with(prefix))
}

fn set_once<T>(place: &mut Option<T>, value: Option<T>) -> Result<(), &'static str> {
    match value {
        Some(_) if place.is_some() => Err("a key is set twice"),
        Some(_) => {
            *place = value;
            Ok(())
        }
        None => Ok(()),
    }
}

fn text(value: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    if value.contains(&0) {
        return Err("a path holds a NUL byte");
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn decimal(value: &[u8]) -> Result<Option<i64>, &'static str> {
    if value.is_empty() {
        return Ok(None);
    }
    digits(value).map(Some).ok_or("a number is malformed")
}

fn digits(value: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(value).ok()?;
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// `[-]SECONDS[.FRACTION]`, to the nanosecond below.
fn time(value: &[u8]) -> Result<Option<Timestamp>, &'static str> {
    if value.is_empty() {
        return Ok(None);
    }
    seconds_and_fraction(value).map(Some).ok_or("a time is malformed")
}

fn seconds_and_fraction(value: &[u8]) -> Option<Timestamp> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let seconds = digits(parts.next()?)?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |at: usize| u32::from(fraction.get(at).map_or(0, |byte| byte - b'0'));
    let nanoseconds = (0..9).fold(0, |sum, at| sum * 10 + digit(at));
    Some(match (negative, nanoseconds) {
        (false, _) => Timestamp { seconds, nanoseconds },
        (true, 0) => Timestamp { seconds: -seconds, nanoseconds },
        (true, _) => Timestamp { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

/// Splits by the records' own lengths, never at newlines: a value may hold any byte.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = split_record(self.0);
        self.0 = record.as_ref().map_or(&[], |(_, rest)| *rest);
        Some(record.map(|(record, _)| record))
    }
}

type Split<'a> = ((&'a [u8], &'a [u8]), &'a [u8]);

fn split_record(bytes: &[u8]) -> Result<Split<'_>, &'static str> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ');
    let space = space.ok_or("a record has no length")?;
    let length = digits(&bytes[..space]).and_then(|length| usize::try_from(length).ok());
    let length = length.filter(|length| *length > space + 1 && *length <= bytes.len());
    let (record, rest) = bytes.split_at(length.ok_or("a record's length is wrong")?);
    let record = record[space + 1..].strip_suffix(b"\n").ok_or("a record does not end its line")?;
    let equals = record.iter().position(|byte| *byte == b'=').ok_or("a record has no value")?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    if key.is_empty() || key.contains(&0) {
        return Err("a record's key is malformed");
    }
    Ok(((key, value), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_hold_newlines_and_nul() {
        let value = b"\x01\0\0\x02\n16 path=evil\n\0";
        let mut bytes = format!("{} ", CAPABILITY_KEY.len() + value.len() + 5).into_bytes();
        bytes.extend_from_slice(CAPABILITY_KEY);
        bytes.push(b'=');
        bytes.extend_from_slice(value);
        bytes.extend_from_slice(b"\n9 path=a\n");
        let extensions = Extensions::parse(&bytes).unwrap();
        assert_eq!(extensions.capability.as_deref(), Some(&value[..]));
        assert_eq!(extensions.path.as_deref(), Some(&b"a"[..]));
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"8 path=a\n"[..],
            b"11 path=a\n",
            b"9 path=a ",
            b"9 path=a\n9 path=b\n",
            b"11 path=a\0\n",
            b"0 \n",
            b"7 path\n",
            b"5 =a\n",
            b"9path=a\n\n",
            b"99999999999999999999 path=a\n",
            b"11 size=-1\n",
            b"13 mtime=1-2\n",
            b"12 size=0x1\n",
            b"+9 path=a\n",
            b"\0",
        ] {
            assert!(Extensions::parse(bad).is_err(), "{}", bad.escape_ascii());
        }
        assert!(check_global(b"9 path=a\n").is_err());
        assert!(check_global(b"16 comment=abcd\n").is_ok());
    }

    #[test]
    fn times() {
        let time =
            |text: &str| seconds_and_fraction(text.as_bytes()).map(|t| (t.seconds, t.nanoseconds));
        assert_eq!(time("12.5"), Some((12, 500_000_000)));
        assert_eq!(time("-1"), Some((-1, 0)));
        assert_eq!(time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time("1.0000000019"), Some((1, 1)));
        assert_eq!(time("."), None);
        assert_eq!(time("--1"), None);
    }
}
