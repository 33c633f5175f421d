//! Content hashes of a context's files, kept between builds by (path, inode, size, mtime, ctime), so that an unchanged
//! context is not read again.

use std::{collections::HashMap, time::SystemTime};

use rustix::fs::Stat;
use serde::{Deserialize, Serialize};

use crate::{digest::Digest, store::Store};

/// A file that changed this shortly before it was hashed may change again within the same tick of the file system's
/// clock, and is hashed anew next time.
const TICK_NANOSECONDS: i128 = 20_000_000;

/// What identifies a version of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: i64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl From<&Stat> for Stamp {
    fn from(stat: &Stat) -> Self {
        Stamp {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size,
            mtime: (stat.st_mtime, stat.st_mtime_nsec as i64),
            ctime: (stat.st_ctime, stat.st_ctime_nsec as i64),
        }
    }
}

/// The hashes of one context directory.
#[derive(Debug, Default)]
pub struct ContentHashes {
    /// Empty: nothing is kept.
    name: String,
    known: HashMap<Vec<u8>, (Stamp, Digest)>,
    changed: bool,
}

impl ContentHashes {
    /// Those of the directory that `place` names; none where they are missing or damaged.
    pub fn load(store: &Store, place: &[u8]) -> Self {
        let name = Digest::of(place).hex();
        let bytes = store.read_document("contexts", &name).unwrap_or_default();
        let rows: Vec<(String, Stamp, Digest)> = serde_json::from_slice(&bytes).unwrap_or_default();
        let known = rows
            .into_iter()
            .filter_map(|(path, stamp, digest)| Some((unescape(&path)?, (stamp, digest))));
        ContentHashes { name, known: known.collect(), changed: false }
    }

    /// Of a context whose files are made anew for each build.
    pub fn forgetful() -> Self {
        ContentHashes::default()
    }

    /// The digest that this very version of a file had.
    pub fn get(&self, path: &[u8], stamp: &Stamp) -> Option<Digest> {
        self.known.get(path).filter(|(known, _)| known == stamp).map(|(_, digest)| *digest)
    }

    /// Remembers the digest of a file that was read after `stamp` was taken.
    pub fn put(&mut self, path: &[u8], stamp: Stamp, digest: Digest) {
        if settled(&stamp) {
            self.known.insert(path.to_vec(), (stamp, digest));
            self.changed = true;
        }
    }

    /// Writes the hashes if any is new. What cannot be written is hashed again next time.
    pub fn save(&mut self, store: &Store) {
        if !std::mem::take(&mut self.changed) || self.name.is_empty() {
            return;
        }
        let rows: Vec<(String, Stamp, Digest)> = self
            .known
            .iter()
            .map(|(path, (stamp, digest))| (path.escape_ascii().to_string(), *stamp, *digest))
            .collect();
        let saved =
            serde_json::to_vec(&rows).map_err(|error| error.to_string()).and_then(|bytes| {
                store
                    .put_document("contexts", &self.name, &bytes)
                    .map_err(|error| error.to_string())
            });
        if let Err(error) = saved {
            tracing::warn!(error, "content hashes not kept");
        }
    }
}

fn settled(stamp: &Stamp) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let changed = i128::from(stamp.ctime.0) * 1_000_000_000 + i128::from(stamp.ctime.1);
    now.as_nanos() as i128 - changed > TICK_NANOSECONDS
}

/// Reads what `escape_ascii` wrote.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        out.push(match bytes.next()? {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'x' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_survives() {
        let all: Vec<u8> = (1..=255).collect();
        assert_eq!(unescape(&all.escape_ascii().to_string()), Some(all));
    }

    #[test]
    fn only_the_same_version_is_known() {
        let stamp = Stamp { device: 1, inode: 2, size: 3, mtime: (4, 5), ctime: (6, 7) };
        let mut hashes = ContentHashes::default();
        let digest = Digest::of(b"x");
        hashes.put(b"f", stamp, digest);
        assert_eq!(hashes.get(b"f", &stamp), Some(digest));
        for other in [
            Stamp { inode: 9, ..stamp },
            Stamp { size: 9, ..stamp },
            Stamp { mtime: (4, 6), ..stamp },
            Stamp { ctime: (6, 8), ..stamp },
        ] {
            assert_eq!(hashes.get(b"f", &other), None);
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let fresh = Stamp { ctime: (now.as_secs() as i64, i64::from(now.subsec_nanos())), ..stamp };
        hashes.put(b"g", fresh, digest);
        assert_eq!(hashes.get(b"g", &fresh), None, "written in this very tick");
    }
}
