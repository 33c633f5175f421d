//! JSON that every reader understands alike: what different parsers resolve differently is refused.

use std::{collections::HashSet, fmt};

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

#[derive(Debug, thiserror::Error)]
#[error("the document is not clean JSON: {0}")]
pub struct JsonError(String);

/// Deeper than any OCI document.
const DEPTH_MAX: usize = 64;
/// The integers that every JSON reader keeps exactly.
const INTEGER_MAX: u64 = 1 << 53;

/// Refuses duplicate keys, a byte order mark, nesting over 64, numbers that are no exact integers below 2^53 or
/// decimals of that size, NaN, and bytes after the document.
///
/// # Errors
/// The first thing found, with line and column.
pub fn check(bytes: &[u8]) -> Result<(), JsonError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let strict = Strict { depth: 0 };
    serde::de::DeserializeSeed::deserialize(strict, &mut deserializer)
        .and_then(|()| deserializer.end())
        .map_err(|error| JsonError(super::error::printable(&error.to_string(), 300)))
}

struct Strict {
    depth: usize,
}

impl Strict {
    fn deeper<E: serde::de::Error>(&self) -> Result<Strict, E> {
        if self.depth >= DEPTH_MAX {
            return Err(E::custom("nested too deeply"));
        }
        Ok(Strict { depth: self.depth + 1 })
    }
}

impl<'de> serde::de::DeserializeSeed<'de> for Strict {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<(), E> {
        check_number(number as f64)
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<(), E> {
        check_number(number as f64)
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<(), E> {
        check_number(number)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(self.deeper()?)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(Key(key)) = fields.next_key()? {
            fields.next_value_seed(self.deeper()?)?;
            if let Some(key) = seen.replace(key) {
                return Err(A::Error::custom(format!("the key {key:?} appears twice")));
            }
        }
        Ok(())
    }
}

fn check_number<E: serde::de::Error>(number: f64) -> Result<(), E> {
    if number.abs() >= INTEGER_MAX as f64 {
        return Err(E::custom("a number is too large to be read alike everywhere"));
    }
    Ok(())
}

struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_documents_pass() {
        for good in ["{}", "[1,2.5,-3,null,true,\"x\"]", r#"{"a":{"b":1},"b":1}"#, " {} \n"] {
            check(good.as_bytes()).unwrap();
        }
    }

    #[test]
    fn ambiguous_documents_do_not() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let shallow = format!("{}{}", "[".repeat(100), "]".repeat(100));
        for bad in [
            r#"{"a":1,"a":2}"#,
            r#"{"x":{"a":1,"\u0061":2}}"#,
            "\u{feff}{}",
            &deep,
            &shallow,
            r#"{"size":18446744073709551616}"#,
            r#"{"size":9007199254740993}"#,
            r#"{"size":1e400}"#,
            r#"{"size":NaN}"#,
            "{} {}",
            "",
            "{",
            r#"{"a":"\ud800"}"#,
        ] {
            assert!(check(bad.as_bytes()).is_err(), "{bad:.60}");
        }
        assert!(check(b"\"\xff\"").is_err());
    }
}
