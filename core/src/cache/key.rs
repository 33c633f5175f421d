//! Cache keys: SHA-256 over typed, length-framed parts, so that no two lists of parts share a key (invariant 6).

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;

/// Names the meaning of all parts; another meaning needs another scheme.
const SCHEME: &[u8] = b"bareboat cache key 1";

/// Identifies a step's result by all that it depends on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CacheKey(Digest);

impl CacheKey {
    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.hex())
    }
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.short())
    }
}

/// Collects the parts of a key. Each part is framed by a tag and its length.
#[derive(Clone, Debug)]
pub struct KeyBuilder(Sha256);

impl KeyBuilder {
    /// A key of one kind of thing, such as `run`.
    pub fn new(kind: &str) -> Self {
        let mut builder = KeyBuilder(Sha256::new());
        builder.frame(b'S', SCHEME);
        builder.frame(b'K', kind.as_bytes());
        builder
    }

    fn frame(&mut self, tag: u8, bytes: &[u8]) {
        self.0.update([tag]);
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
    }

    pub fn bytes(mut self, name: &str, value: &[u8]) -> Self {
        self.frame(b'N', name.as_bytes());
        self.frame(b'B', value);
        self
    }

    /// Adds bytes that are framed already.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub fn text(self, name: &str, value: &str) -> Self {
        self.bytes(name, value.as_bytes())
    }

    pub fn number(mut self, name: &str, value: u64) -> Self {
        self.frame(b'N', name.as_bytes());
        self.frame(b'I', &value.to_be_bytes());
        self
    }

    pub fn flag(self, name: &str, value: bool) -> Self {
        self.number(name, value.into())
    }

    /// `None` and an empty text are different.
    pub fn optional(mut self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.text(name, value),
            None => {
                self.frame(b'N', name.as_bytes());
                self.frame(b'-', b"");
                self
            }
        }
    }

    pub fn list<'a>(mut self, name: &str, values: impl IntoIterator<Item = &'a str>) -> Self {
        let values: Vec<&str> = values.into_iter().collect();
        self = self.number(name, values.len() as u64);
        for value in values {
            self.frame(b'L', value.as_bytes());
        }
        self
    }

    pub fn key(self, name: &str, value: &CacheKey) -> Self {
        self.bytes(name, value.0.as_bytes())
    }

    pub fn finish(self) -> CacheKey {
        CacheKey(Digest::from_bytes(self.0.finalize().into()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    enum Part {
        Text(String, String),
        Number(String, u64),
        Optional(String, Option<String>),
        List(String, Vec<String>),
    }

    fn word() -> impl Strategy<Value = String> {
        prop_oneof![Just(String::new()), "[a=\\-\u{0}|]{0,3}"]
    }

    fn part() -> impl Strategy<Value = Part> {
        prop_oneof![
            (word(), word()).prop_map(|(n, v)| Part::Text(n, v)),
            (word(), 0..3u64).prop_map(|(n, v)| Part::Number(n, v)),
            (word(), proptest::option::of(word())).prop_map(|(n, v)| Part::Optional(n, v)),
            (word(), proptest::collection::vec(word(), 0..3)).prop_map(|(n, v)| Part::List(n, v)),
        ]
    }

    fn key(parts: &[Part]) -> CacheKey {
        let build = |builder: KeyBuilder, part: &Part| match part {
            Part::Text(name, value) => builder.text(name, value),
            Part::Number(name, value) => builder.number(name, *value),
            Part::Optional(name, value) => builder.optional(name, value.as_deref()),
            Part::List(name, values) => builder.list(name, values.iter().map(String::as_str)),
        };
        parts.iter().fold(KeyBuilder::new("test"), build).finish()
    }

    /// A text and an optional text that is there are one thing under one name; all else differs.
    fn normal(parts: &[Part]) -> Vec<Part> {
        let plain = |part: &Part| match part {
            Part::Optional(name, Some(value)) => Part::Text(name.clone(), value.clone()),
            other => other.clone(),
        };
        parts.iter().map(plain).collect()
    }

    proptest! {
        #[test]
        fn is_injective(
            a in proptest::collection::vec(part(), 0..4),
            b in proptest::collection::vec(part(), 0..4),
        ) {
            prop_assert_eq!(key(&a) == key(&b), normal(&a) == normal(&b));
        }
    }
}
