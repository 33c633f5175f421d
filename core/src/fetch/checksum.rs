//! `ADD --checksum`: a digest of a URL's bytes, or a commit of a Git repository.

use std::fmt;

use crate::digest::Digest;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChecksumError {
    #[error("unsupported digest algorithm {0:?} of a checksum, only sha256 is supported")]
    Algorithm(String),
    #[error("{0:?} is not a checksum: expected sha256: and 64 lower-case hexadecimal digits")]
    Malformed(String),
    #[error("invalid checksum {0:?} for a Git URL: expected the hexadecimal digits of a commit")]
    NotACommit(String),
}

/// The checksum of a URL's bytes: `sha256:` and 64 lower-case hexadecimal digits.
///
/// # Errors
/// Another algorithm, or no digest at all. (BuildKit takes `sha384:` and `sha512:` here, and then finds that no file
/// fits.)
pub fn parse_digest(text: &str) -> Result<Digest, ChecksumError> {
    let shown = || text.chars().take(200).collect::<String>();
    let (algorithm, _) = text.split_once(':').ok_or_else(|| ChecksumError::Malformed(shown()))?;
    if algorithm != "sha256" {
        return Err(ChecksumError::Algorithm(algorithm.chars().take(40).collect()));
    }
    text.parse().map_err(|_| ChecksumError::Malformed(shown()))
}

/// The first digits of a commit's (or of an annotated tag's) object name.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CommitPrefix(String);

impl CommitPrefix {
    /// # Errors
    /// `text` holds something else than hexadecimal digits, or nothing.
    pub fn parse(text: &str) -> Result<Self, ChecksumError> {
        let hexadecimal = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if text.is_empty() || text.len() > 64 || !hexadecimal {
            return Err(ChecksumError::NotACommit(text.chars().take(200).collect()));
        }
        Ok(CommitPrefix(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the object name begins with these digits. Upper-case ones never fit, as with BuildKit.
    pub fn fits(&self, object: &str) -> bool {
        object.starts_with(&self.0)
    }
}

impl fmt::Display for CommitPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CommitPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether `text` is a whole object name: 40 (SHA-1) or 64 (SHA-256) lower-case hexadecimal digits.
pub fn is_object_name(text: &str) -> bool {
    matches!(text.len(), 40 | 64)
        && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_of_urls() {
        let good = Digest::of(b"x").to_string();
        assert_eq!(parse_digest(&good).unwrap().to_string(), good);
        let algorithm = |text: &str| ChecksumError::Algorithm(text.into());
        assert_eq!(parse_digest("md5:00").unwrap_err(), algorithm("md5"));
        let sha512 = format!("sha512:{}", "0".repeat(128));
        assert_eq!(parse_digest(&sha512).unwrap_err(), algorithm("sha512"));
        for bad in ["sha256:00", "", "abc", &good.to_uppercase(), &good[7..]] {
            assert!(parse_digest(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn commits() {
        let prefix = CommitPrefix::parse("9f4c56").unwrap();
        assert!(prefix.fits("9f4c561ed3708191d7ce0abec84c604b98921098"));
        assert!(!prefix.fits("1f4c561ed3708191d7ce0abec84c604b98921098"));
        for bad in ["", "xyz", "sha256:00", "--upload-pack=x", "9f 4c"] {
            assert!(CommitPrefix::parse(bad).is_err(), "{bad}");
        }
        assert!(is_object_name(&"a".repeat(40)) && is_object_name(&"0".repeat(64)));
        assert!(!is_object_name(&"A".repeat(40)) && !is_object_name(&"a".repeat(41)));
    }
}
