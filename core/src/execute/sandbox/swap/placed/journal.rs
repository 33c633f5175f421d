//! What was put into a stage's tree for a step, so that it is taken out again whoever dies: one JSON record a line,
//! written before the thing is done. A torn last line is ignored. It guards against killed processes, so that nothing
//! is synced.

use std::{
    cell::RefCell,
    fs::File,
    io::Read,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use rustix::{
    fs::{AtFlags, Mode, OFlags, openat, unlinkat},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::execute::sandbox::{SandboxError, error::Named, stubs::Kind, wire};

const NAME: &str = "placed.journal";

/// More than any step writes; a step of root could have put anything there.
const BYTES_MAX: u64 = 16 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Record {
    /// The first one: the stage's tree, relative to the side directory.
    Begin {
        #[serde(with = "wire::bytes")]
        tree: PathBuf,
    },
    /// An empty name is about to be made in the tree.
    Stub {
        kind: Kind,
        #[serde(with = "wire::bytes")]
        path: PathBuf,
    },
    Exchange(Exchange),
    /// The exchange before this was refused.
    Refused,
    /// Something is about to be made in a mount of the container that stays, such as /dev.
    Kept {
        #[serde(with = "wire::bytes")]
        path: PathBuf,
        /// Where a directory is copied back to.
        home: Option<Home>,
    },
    /// A file of /etc that stays is about to be changed; this is what it was.
    Etc {
        name: String,
        #[serde(with = "wire::bytes")]
        content: Vec<u8>,
    },
}

/// An object and a name of the tree change places.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Exchange {
    /// Absolute, as seen from the container's root.
    #[serde(with = "wire::bytes")]
    pub object: PathBuf,
    /// Relative to the tree, free of links.
    #[serde(with = "wire::bytes")]
    pub target: PathBuf,
    pub inode: u64,
    pub kind: Kind,
    /// Nothing was at the target: a stub was made for it.
    pub on_stub: bool,
    pub fate: Fate,
}

/// What becomes of an object afterwards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Fate {
    /// It belongs to somebody: a cache, something prepared, a socket.
    Stay,
    Remove,
    /// Overwritten first.
    Shred,
    /// Its content replaces that of the directory that it is a copy of; then it is removed.
    Return(Home),
}

/// A cache on another mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Home {
    #[serde(with = "wire::bytes")]
    pub path: PathBuf,
}

/// The open journal. What was written is also kept: a step of root may do to the file what it likes.
pub(super) struct Journal {
    file: OwnedFd,
    records: RefCell<Vec<Record>>,
}

impl Journal {
    /// Begins a new one: there must be none left.
    pub fn begin(side: impl AsFd, tree: PathBuf) -> Result<Self, SandboxError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::APPEND | OFlags::CLOEXEC;
        let file = openat(side, NAME, flags, Mode::RUSR | Mode::WUSR).named("create", NAME)?;
        let journal = Journal { file, records: RefCell::default() };
        journal.add(&Record::Begin { tree })?;
        Ok(journal)
    }

    pub fn add(&self, record: &Record) -> Result<(), SandboxError> {
        let mut bytes = serde_json::to_vec(record).map_err(wire::protocol)?;
        bytes.push(b'\n');
        let mut bytes = bytes.as_slice();
        while !bytes.is_empty() {
            let written = rustix::io::write(&self.file, bytes).named("write", NAME)?;
            bytes = &bytes[written..];
        }
        self.records.borrow_mut().push(record.clone());
        Ok(())
    }

    /// What was written to it.
    pub fn into_records(self) -> Vec<Record> {
        self.records.into_inner()
    }

    /// The records that were left behind; `None` where there is no journal.
    pub fn read(side: impl AsFd) -> Result<Option<Vec<Record>>, SandboxError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(side, NAME, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            file => file.named("open", NAME)?,
        };
        let mut bytes = Vec::new();
        File::from(file).take(BYTES_MAX).read_to_end(&mut bytes).named("read", NAME)?;
        parse(&bytes).map(Some)
    }

    pub fn remove(side: impl AsFd) -> Result<(), SandboxError> {
        match unlinkat(side, NAME, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            result => result.named("unlink", NAME),
        }
    }
}

fn parse(bytes: &[u8]) -> Result<Vec<Record>, SandboxError> {
    let complete = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let lines = bytes[..complete].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let failed = |error| wire::protocol(format!("{NAME}: {error}"));
    lines.map(|line| serde_json::from_slice(line).map_err(failed)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fs::open_directory_handle;

    #[test]
    fn records_come_back_and_a_torn_one_is_ignored() {
        let scratch = tempfile::tempdir().unwrap();
        let side = open_directory_handle(scratch.path()).unwrap();
        assert_eq!(Journal::read(&side).unwrap(), None);
        let journal = Journal::begin(&side, "t".into()).unwrap();
        assert!(Journal::begin(&side, "u".into()).is_err());
        let stub = Record::Stub { kind: Kind::File, path: "a b/\n".into() };
        journal.add(&stub).unwrap();
        rustix::io::write(&journal.file, b"{\"Stub\"").unwrap();
        let expected = vec![Record::Begin { tree: "t".into() }, stub];
        assert_eq!(Journal::read(&side).unwrap(), Some(expected));
        Journal::remove(&side).unwrap();
        Journal::remove(&side).unwrap();
        assert_eq!(Journal::read(&side).unwrap(), None);
    }
}
