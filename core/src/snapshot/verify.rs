//! Whether a tree that waited is still what its last baseline says, and whether anything went through the state directory.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::fs::{Mode, OFlags, fchmod, openat};

use crate::{
    rootfs::{
        metadata::reopen,
        walk::{Visited, Visitor, walk},
    },
    tree::EntryPath,
};

use super::{
    Baseline, BaselineError, Stamp,
    baseline::{ROOT, Record, stamp_of_root},
};

/// How many differences each thread tells: one spoils the tree.
const DIFFERENCES_MAX: usize = 20;

/// A name that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    pub path: EntryPath,
    pub kind: DifferenceKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DifferenceKind {
    New,
    Gone,
    Changed,
}

/// Compares a tree with its baseline, before each use where a step of another stage could have reached it. Any difference
/// spoils the tree: it is made anew. Not all of many are told. Threads: at most `threads`.
pub fn verify(
    root: BorrowedFd<'_>,
    baseline: &Baseline,
    threads: usize,
) -> Result<Vec<Difference>, BaselineError> {
    let mut differences = Vec::new();
    // A tree that was handed on was renamed.
    if !stamp_of_root(root)?.same_but_ctime(baseline.root()) {
        let kind = DifferenceKind::Changed;
        differences.push(Difference { path: EntryPath::root(), kind });
    }
    let verifier = || Verifier { baseline, differences: Vec::new(), buffer: Vec::new() };
    match walk(root, threads, ROOT, verifier) {
        Ok(verifiers) => differences.extend(verifiers.into_iter().flat_map(|v| v.differences)),
        // The tree itself was deleted: its handle has no name any more.
        Err(BaselineError::Walk(error)) if error.source.kind() == io::ErrorKind::NotFound => {
            differences.push(Difference { path: error.path, kind: DifferenceKind::Gone });
        }
        Err(error) => return Err(error),
    }
    differences.sort_unstable();
    Ok(differences)
}

struct Verifier<'a> {
    baseline: &'a Baseline,
    differences: Vec<Difference>,
    buffer: Vec<u8>,
}

impl Verifier<'_> {
    fn tell(&mut self, directory: &EntryPath, name: &[u8], kind: DifferenceKind) {
        if self.differences.len() < DIFFERENCES_MAX {
            self.differences.push(Difference { path: directory.child(name), kind });
        }
    }

    fn compare(&mut self, directory: &Visited<'_>, before: &[Record<'_>]) -> Vec<(EntryPath, u32)> {
        let mut below = Vec::new();
        let mut before = before.iter().peekable();
        for listed in directory.entries {
            while let Some(gone) = before.next_if(|record| *record.name < *listed.name) {
                self.tell(directory.path, gone.name, DifferenceKind::Gone);
            }
            let stamp = Stamp::of(&listed.stat);
            match before.next_if(|record| *record.name == *listed.name) {
                None => self.tell(directory.path, &listed.name, DifferenceKind::New),
                Some(record) if record.stamp != stamp => {
                    self.tell(directory.path, &listed.name, DifferenceKind::Changed);
                }
                Some(record) if stamp.is_directory() => {
                    below.push((directory.path.child(&listed.name), record.number));
                }
                Some(_) => {}
            }
        }
        before.for_each(|gone| self.tell(directory.path, gone.name, DifferenceKind::Gone));
        below
    }
}

impl Visitor for Verifier<'_> {
    type State = u32;
    type Error = BaselineError;

    fn visit(
        &mut self,
        directory: Visited<'_>,
        number: u32,
    ) -> Result<Vec<(EntryPath, u32)>, BaselineError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let before = self.baseline.block(number, &mut buffer)?;
        let below = self.compare(&directory, &before);
        drop(before);
        self.buffer = buffer;
        // A tree that is spoilt already need not be read to its end.
        Ok(if self.differences.is_empty() { below } else { Vec::new() })
    }
}

/// A set-uid and set-gid file beside the tree that a step has no business with. Whatever goes through the whole container
/// (`find / -perm /6000 -exec chmod a-s`, `chown -R`, `rm -rf /`) changes it too.
#[derive(Debug)]
pub struct Canary {
    directory: OwnedFd,
    name: Box<[u8]>,
    stamp: Stamp,
}

impl Canary {
    /// Puts one into a directory that has no such name.
    pub fn place(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<Self> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = File::from(openat(directory, name, flags, Mode::from_raw_mode(0o755))?);
        fchmod(file.as_fd(), Mode::from_raw_mode(0o6755))?;
        let stamp = Stamp::at(directory, name)?;
        Ok(Canary { directory: reopen(directory)?, name: name.into(), stamp })
    }

    /// Whether it is still there and as it was.
    pub fn is_alive(&self) -> bool {
        Stamp::at(self.directory.as_fd(), &self.name).is_ok_and(|stamp| stamp == self.stamp)
    }
}
