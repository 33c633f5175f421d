//! A directory that is reached by its handle when the process has left the machine's root.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use crate::sys::{fs::descriptor_path, private_root};

/// An open directory and its name.
#[derive(Debug)]
pub(super) struct Anchor {
    real: PathBuf,
    handle: OwnedFd,
}

impl Anchor {
    /// `path` is absolute.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Anchor { real: path.to_owned(), handle: File::open(path)?.into() })
    }

    /// The name at the machine's own root.
    pub fn real(&self) -> &Path {
        &self.real
    }

    /// A name that leads there now: by descriptor where the process has a root of its own.
    pub fn path(&self) -> PathBuf {
        match private_root::is_entered() {
            true => descriptor_path(self.handle.as_fd()),
            false => self.real.clone(),
        }
    }
}
