//! Paths inside an image.

use std::{cmp::Ordering, fmt};

/// A path inside an image: relative to its root, bytes, without empty, `.` and `..` components and NUL. The root is empty.
///
/// Ordered component by component, so that a directory's descendants follow it at once (`a`, `a/b`, `a-b`).
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct EntryPath(Box<[u8]>);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("path {} holds a NUL byte", .0.escape_ascii())]
    Nul(Vec<u8>),
    #[error("path component of {0} bytes is longer than 255 bytes")]
    LongComponent(usize),
    #[error("path of {0} bytes is longer than 4095 bytes")]
    Long(usize),
}

impl EntryPath {
    pub fn root() -> Self {
        EntryPath::default()
    }

    /// Cleans as Go's `path.Clean("/" + path)`: as text, `..` stops at the root.
    pub fn clean(path: &[u8]) -> Result<Self, PathError> {
        if path.contains(&0) {
            return Err(PathError::Nul(path.to_vec()));
        }
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in path.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => drop(parts.pop()),
                _ if part.len() > 255 => return Err(PathError::LongComponent(part.len())),
                _ => parts.push(part),
            }
        }
        let joined = parts.join(&b'/');
        if joined.len() > 4095 {
            return Err(PathError::Long(joined.len()));
        }
        Ok(EntryPath(joined.into()))
    }

    /// `self` and below it `path`, all of it cleaned as text (so `..` may leave `self`).
    pub fn join_clean(&self, path: &[u8]) -> Result<Self, PathError> {
        let mut whole = self.0.to_vec();
        whole.push(b'/');
        whole.extend_from_slice(path);
        EntryPath::clean(&whole)
    }

    /// Appends one component, which must be a plain name.
    pub fn child(&self, name: &[u8]) -> Self {
        debug_assert!(!name.is_empty() && !name.contains(&b'/') && name != b"." && name != b"..");
        let mut whole = Vec::with_capacity(self.0.len() + 1 + name.len());
        whole.extend_from_slice(&self.0);
        if !whole.is_empty() {
            whole.push(b'/');
        }
        whole.extend_from_slice(name);
        EntryPath(whole.into())
    }

    /// `self` and below it the whole of `below`.
    pub fn join(&self, below: &EntryPath) -> Self {
        if below.is_root() { self.clone() } else { self.child_path(&below.0) }
    }

    fn child_path(&self, below: &[u8]) -> Self {
        if self.is_root() {
            return EntryPath(below.into());
        }
        EntryPath([&self.0, below].join(&b'/').into())
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// `None` for the root.
    pub fn parent(&self) -> Option<EntryPath> {
        if self.is_root() {
            return None;
        }
        let cut = self.0.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        Some(EntryPath(self.0[..cut].into()))
    }

    /// The last component; empty for the root.
    pub fn file_name(&self) -> &[u8] {
        self.0.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
    }

    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|part| !part.is_empty())
    }

    /// The proper ancestors without the root, outermost first, as bytes: of `a/b/c` they are `a` and `a/b`.
    pub fn ancestors(&self) -> impl Iterator<Item = &[u8]> {
        let slashes = self.0.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        slashes.map(|(at, _)| &self.0[..at])
    }

    /// Whether `self` is `base` or lies below it.
    pub fn is_within(&self, base: &EntryPath) -> bool {
        base.is_root()
            || self.0.strip_prefix(&*base.0).is_some_and(|rest| matches!(rest, [] | [b'/', ..]))
    }

    /// What follows `base`; the root where both are equal.
    pub fn strip_prefix(&self, base: &EntryPath) -> Option<EntryPath> {
        if base.is_root() {
            return Some(self.clone());
        }
        match self.0.strip_prefix(&*base.0)? {
            b"" => Some(EntryPath::root()),
            [b'/', rest @ ..] => Some(EntryPath(rest.into())),
            _ => None,
        }
    }

    /// Compares raw path bytes in the order of `EntryPath`.
    pub fn compare_bytes(left: &[u8], right: &[u8]) -> Ordering {
        let key = |byte: u8| if byte == b'/' { 0 } else { u16::from(byte) + 1 };
        match left.iter().zip(right).position(|(left, right)| left != right) {
            Some(at) => key(left[at]).cmp(&key(right[at])),
            None => left.len().cmp(&right.len()),
        }
    }

    /// For decoders of bytes that came out of `as_bytes` and were checked then.
    pub(super) fn from_trusted(bytes: Vec<u8>) -> Self {
        EntryPath(bytes.into())
    }
}

impl Ord for EntryPath {
    fn cmp(&self, other: &Self) -> Ordering {
        EntryPath::compare_bytes(&self.0, &other.0)
    }
}

impl PartialOrd for EntryPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// With a leading slash, and what is not printable escaped.
impl fmt::Display for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/")?;
        match std::str::from_utf8(&self.0) {
            Ok(text) if !text.contains(char::is_control) => f.write_str(text),
            _ => write!(f, "{}", self.0.escape_ascii()),
        }
    }
}

impl fmt::Debug for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
