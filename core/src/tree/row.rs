//! One name of a layer.

use crate::digest::Digest;

use super::EntryPath;

/// A time as file systems and tar headers hold it. `nanoseconds` is below 1,000,000,000.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    pub seconds: i64,
    pub nanoseconds: u32,
}

impl Timestamp {
    pub fn from_seconds(seconds: i64) -> Self {
        Timestamp { seconds, nanoseconds: 0 }
    }
}

/// What a name has besides its content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Metadata {
    /// The low 12 bits. Meaningless for symbolic links.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    /// `security.capability`, as stored (version 2 in new layers).
    pub capability: Option<Box<[u8]>>,
}

impl Metadata {
    /// What a directory gets that nothing else describes: 0755 0:0.
    pub fn directory(mtime: Timestamp) -> Self {
        Metadata { mode: 0o755, mtime, ..Metadata::default() }
    }

    /// Whether mode, owner and capability are equal (the mtime is not looked at).
    pub fn same_but_mtime(&self, other: &Metadata) -> bool {
        (self.mode, self.uid, self.gid, &self.capability)
            == (other.mode, other.uid, other.gid, &other.capability)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Directory {
        /// Nothing of lower layers shows below it.
        opaque: bool,
    },
    /// Size in bytes.
    File {
        size: u64,
    },
    Symlink {
        target: Box<[u8]>,
    },
    CharacterDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
    /// Hides the name in lower layers.
    Whiteout,
}

impl Kind {
    pub const DIRECTORY: Kind = Kind::Directory { opaque: false };

    pub fn is_directory(&self) -> bool {
        matches!(self, Kind::Directory { .. })
    }
}

/// One name of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub path: EntryPath,
    pub metadata: Metadata,
    pub kind: Kind,
    /// Names of one layer with the same number above 0 are hard links of each other.
    pub link_group: u32,
    /// Of a regular file's content, where known.
    pub digest: Option<Digest>,
    /// Where a regular file's content begins in the uncompressed tar (of the group's first name, for hard links).
    pub tar_offset: u64,
    /// A parent that the layer has no entry for: a directory with the metadata of the directory below it, else 0755 0:0.
    pub implied: bool,
}

impl Row {
    pub fn new(path: EntryPath, kind: Kind, metadata: Metadata) -> Self {
        Row { path, metadata, kind, link_group: 0, digest: None, tar_offset: 0, implied: false }
    }

    /// A parent without an entry of its own.
    pub fn implied(path: EntryPath) -> Self {
        let metadata = Metadata::directory(Timestamp::default());
        Row { implied: true, ..Row::new(path, Kind::DIRECTORY, metadata) }
    }
}
