//! A changeset as a directory in overlay's form or laid over a plain tree, without a detour over its tar.

use std::{
    collections::HashMap,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use sha2::{Digest as _, Sha256};

use crate::{
    digest::Digest,
    layer::LayerSink,
    tree::{Change, Changeset, EntryPath, LayerIndex},
};

use super::{
    Unpacker,
    handle::at_path,
    lay_over,
    metadata::reopen,
    view::{LayerName, changeset_index, layer_name, row_of, whiteout},
};

/// Writes a changeset into an empty directory, as unpacking its written layer would: mtimes in whole seconds and at most
/// `mtime_seconds_max`, names that begin with `.wh.` as what they mean to readers.
///
/// A content that is shorter or longer than its entry says, or has another digest than a known one, is an error.
pub fn apply_changeset(
    directory: OwnedFd,
    changeset: &Changeset,
    mtime_seconds_max: Option<i64>,
) -> io::Result<()> {
    let index = changeset_index(changeset, mtime_seconds_max);
    apply_by(Unpacker::new(directory)?, changeset, &index, mtime_seconds_max)
}

/// The same onto a plain tree: `staging` is an empty directory of the same file system, for the time of the call.
///
/// An error leaves the tree spoilt.
pub fn apply_changeset_plain(
    staging: OwnedFd,
    tree: BorrowedFd<'_>,
    changeset: &Changeset,
    mtime_seconds_max: Option<i64>,
) -> io::Result<()> {
    let index = changeset_index(changeset, mtime_seconds_max);
    let staged = reopen(&staging)?;
    apply_by(Unpacker::plain(staging)?, changeset, &index, mtime_seconds_max)?;
    lay_over(staged.as_fd(), &index, tree)
}

fn apply_by(
    mut unpacker: Unpacker,
    changeset: &Changeset,
    index: &LayerIndex,
    mtime_seconds_max: Option<i64>,
) -> io::Result<()> {
    let mut groups: HashMap<u32, &EntryPath> = HashMap::new();
    for change in changeset.changes() {
        match layer_name(&change.path) {
            LayerName::Plain => {
                let first = (change.link_group > 0)
                    .then(|| *groups.entry(change.link_group).or_insert(&change.path));
                match first.filter(|first| **first != change.path) {
                    Some(first) => unpacker.hard_link(&row_of(change, mtime_seconds_max), first)?,
                    None => write(&mut unpacker, change, mtime_seconds_max)?,
                }
            }
            LayerName::Whiteout(path) => unpacker.entry(&whiteout(path), &mut io::empty())?,
            LayerName::Opaque(path) => unpacker.opaque(&path)?,
            LayerName::Invalid => {
                let error = io::Error::new(io::ErrorKind::InvalidData, "names no whiteout");
                return Err(at_path(&change.path, error));
            }
        }
    }
    unpacker.finish(index, &|_| None)
}

fn write(
    unpacker: &mut Unpacker,
    change: &Change,
    mtime_seconds_max: Option<i64>,
) -> io::Result<()> {
    let row = row_of(change, mtime_seconds_max);
    let Some(content) = &change.content else {
        return unpacker.entry(&row, &mut io::empty());
    };
    let reader = content.open().map_err(|error| at_path(&change.path, error))?;
    let mut reader = HashingReader { reader, hash: change.digest.map(|_| Sha256::new()) };
    unpacker.entry(&row, &mut reader)?;
    let longer = reader.reader.read(&mut [0])? > 0;
    let digest = reader.hash.map(|hash| Digest::from_bytes(hash.finalize().into()));
    if longer || digest != change.digest {
        let error = io::Error::new(io::ErrorKind::InvalidData, "changed during the build");
        return Err(at_path(&change.path, error));
    }
    Ok(())
}

struct HashingReader<R> {
    reader: R,
    /// Where the digest is known and to be compared.
    hash: Option<Sha256>,
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.reader.read(buffer)?;
        if let Some(hash) = &mut self.hash {
            hash.update(&buffer[..got]);
        }
        Ok(got)
    }
}
