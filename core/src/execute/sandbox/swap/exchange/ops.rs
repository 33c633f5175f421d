//! The one seam through which everything is changed, so that a test can let the process die before any operation.

use std::{cell::Cell, os::fd::BorrowedFd};

use rustix::{
    fs::{self, AtFlags, Mode},
    io::{Errno, Result},
};

use crate::sys::fs::{os, rename_noreplace};

/// Counts operations down; when none is left each fails, as if the process had ended there.
pub(super) struct Ops {
    left: Cell<u64>,
}

impl Ops {
    pub fn unlimited() -> Self {
        Ops { left: Cell::new(u64::MAX) }
    }

    /// As many operations as said, none afterwards.
    #[cfg(test)]
    pub fn set_left(&self, left: u64) {
        self.left.set(left);
    }

    #[cfg(test)]
    pub fn left(&self) -> u64 {
        self.left.get()
    }

    /// Does one operation: something that changes a file system.
    pub fn run<T>(&self, operation: impl FnOnce() -> Result<T>) -> Result<T> {
        let left = self.left.get().checked_sub(1).ok_or(Errno::CANCELED)?;
        self.left.set(left);
        operation()
    }

    /// Renames; fails with `EEXIST` where the new name is taken.
    pub fn rename(
        &self,
        from: BorrowedFd<'_>,
        old: &[u8],
        to: BorrowedFd<'_>,
        new: &[u8],
    ) -> Result<()> {
        self.run(|| rename_noreplace(from, os(old), to, os(new)))
    }

    /// Makes a directory that only its owner may enter.
    pub fn make_directory(&self, at: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        self.run(|| fs::mkdirat(at, name, Mode::RWXU))
    }

    pub fn unlink(&self, at: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        self.run(|| fs::unlinkat(at, name, AtFlags::empty()))
    }

    pub fn remove_directory(&self, at: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        self.run(|| fs::unlinkat(at, name, AtFlags::REMOVEDIR))
    }
}
