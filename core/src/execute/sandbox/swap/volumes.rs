//! Volumes that stay where they are during a step: what is written there is in no layer, and that is said. Looked at as
//! far as their first level shows.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Stat, fstat, statat};

use super::StepNote;
use crate::{
    execute::sandbox::stubs::open_directories,
    sys::fs::{open_subdirectory, read_directory},
    tree::EntryPath,
};

/// Names of one volume that are looked at.
const NAMES_MAX: usize = 4096;

type Look = Vec<(u64, u32, i64, i64, u64)>;

pub(super) struct Volumes(Vec<(EntryPath, Option<Look>)>);

impl Volumes {
    /// Remembers what the directories among `paths` look like.
    pub fn observe(root: &OwnedFd, paths: Vec<EntryPath>) -> Self {
        let look = |path: EntryPath| {
            let seen = look(root, &path);
            (path, seen)
        };
        Volumes(paths.into_iter().map(look).collect())
    }

    pub fn changed(self, root: &OwnedFd) -> Vec<StepNote> {
        let differs = |(path, before): &(EntryPath, Option<Look>)| {
            before.is_some() && look(root, path) != *before
        };
        let changed = self.0.into_iter().filter(differs);
        let path = |path: EntryPath| {
            let bytes = std::os::unix::ffi::OsStringExt::from_vec(path.as_bytes().to_vec());
            std::path::Path::new("/").join::<std::ffi::OsString>(bytes)
        };
        changed.map(|(volume, _)| StepNote::VolumeChanged { path: path(volume) }).collect()
    }
}

/// `None` for what is no directory.
fn look(root: &OwnedFd, path: &EntryPath) -> Option<Look> {
    let path: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(path.as_bytes());
    let directory = open_directories(root, path.as_ref()).ok()??;
    let mut look = vec![seen(&fstat(&directory).ok()?)];
    let here = open_subdirectory(directory.as_fd(), ".".as_ref()).ok()?;
    for entry in read_directory(here).ok()?.into_iter().take(NAMES_MAX) {
        look.push(seen(&statat(&directory, &entry.name, AtFlags::SYMLINK_NOFOLLOW).ok()?));
    }
    look.sort_unstable();
    Some(look)
}

fn seen(stat: &Stat) -> (u64, u32, i64, i64, u64) {
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let size = if is_directory { 0 } else { u64::try_from(stat.st_size).unwrap_or(0) };
    (stat.st_ino, stat.st_mode, stat.st_mtime, stat.st_mtime_nsec as i64, size)
}
