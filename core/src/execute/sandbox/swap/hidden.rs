//! The stage's directories at whose paths the container's own mounts stay, /dev, /proc and /sys above all. In the box of the
//! overlay rung nothing reaches what a mount hides. Here it stays in the stage's tree, where a command that walks the whole
//! root comes past: what it did there is undone.

use std::{collections::BTreeSet, ffi::OsString, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{Gid, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, fchmod, fchown, fstat, futimens},
    io::Result,
};

use crate::{
    execute::sandbox::stubs::open_directories,
    sys::{
        fs::{open_subdirectory, read_directory},
        remove::remove_tree_at,
    },
};

pub(super) struct Hidden(Vec<Directory>);

struct Directory {
    handle: OwnedFd,
    before: Stat,
    names: BTreeSet<OsString>,
}

impl Hidden {
    /// Remembers those of `paths` that are directories of the tree.
    pub fn observe<'p>(tree: &OwnedFd, paths: impl Iterator<Item = &'p Path>) -> Result<Self> {
        let mut directories = Vec::new();
        for path in paths {
            if let Some(handle) = open_directories(tree, path)? {
                let before = fstat(&handle)?;
                directories.push(Directory { names: names(&handle)?, before, handle });
            }
        }
        Ok(Hidden(directories))
    }

    /// Takes out what is new and gives the metadata back where anything has changed.
    pub fn restore(self) -> Result<()> {
        let change = |stat: &Stat| (stat.st_ctime, stat.st_ctime_nsec);
        for directory in self.0 {
            let now = fstat(&directory.handle)?;
            // A step that deleted it has spoilt the tree, which is told elsewhere.
            if now.st_nlink > 0 && change(&now) != change(&directory.before) {
                directory.restore()?;
            }
        }
        Ok(())
    }
}

impl Directory {
    fn restore(&self) -> Result<()> {
        for name in names(&self.handle)?.difference(&self.names) {
            remove_tree_at(&self.handle, name)?;
        }
        let before = &self.before;
        let owner = (Some(Uid::from_raw(before.st_uid)), Some(Gid::from_raw(before.st_gid)));
        fchown(&self.handle, owner.0, owner.1)?;
        fchmod(&self.handle, Mode::from_raw_mode(before.st_mode))?;
        let modified = Timespec { tv_sec: before.st_mtime, tv_nsec: before.st_mtime_nsec as _ };
        let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        futimens(&self.handle, &Timestamps { last_access, last_modification: modified })
    }
}

fn names(directory: &OwnedFd) -> Result<BTreeSet<OsString>> {
    let here = open_subdirectory(directory, ".".as_ref())?;
    Ok(read_directory(here)?.into_iter().map(|entry| entry.name).collect())
}
