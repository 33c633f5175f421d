//! Names and paths in the journal: bytes as text, and checked when they come back, because a step of root can write there.

use std::collections::BTreeSet;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use crate::tree::EntryPath;

/// Names of one directory.
pub(super) type Names = BTreeSet<Name>;

const ESCAPED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'.').remove(b'-').remove(b'_').remove(b'/').remove(b'+');

/// Any bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&percent_encode(&self.0, ESCAPED))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(Bytes(percent_decode_str(&text).collect()))
    }
}

/// One component of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Name(Box<[u8]>);

impl Name {
    /// `None` for what is no single name: empty, `.`, `..`, or with a slash or NUL.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let special = matches!(bytes, b"" | b"." | b"..");
        let plain = !special && !bytes.contains(&b'/') && !bytes.contains(&0);
        plain.then(|| Name(bytes.into()))
    }
}

impl std::ops::Deref for Name {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::borrow::Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&percent_encode(&self.0, ESCAPED))
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Bytes::deserialize(deserializer)?;
        Name::new(&bytes.0).ok_or_else(|| D::Error::custom("not a name"))
    }
}

/// For fields that hold a path.
pub(super) mod path {
    use super::*;

    pub fn serialize<S: Serializer>(path: &EntryPath, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&percent_encode(path.as_bytes(), ESCAPED))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<EntryPath, D::Error> {
        let bytes = Bytes::deserialize(deserializer)?;
        let path = EntryPath::clean(&bytes.0).map_err(D::Error::custom)?;
        let unchanged = path.as_bytes() == bytes.0;
        unchanged.then_some(path).ok_or_else(|| D::Error::custom("not a clean path"))
    }
}

/// The same for several.
pub(super) mod paths {
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct One(#[serde(with = "path")] EntryPath);

    pub fn serialize<S: Serializer>(paths: &[EntryPath], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(paths.iter().cloned().map(One))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<EntryPath>, D::Error> {
        Ok(Vec::<One>::deserialize(deserializer)?.into_iter().map(|one| one.0).collect())
    }
}
