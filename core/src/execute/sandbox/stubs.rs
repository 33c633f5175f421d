//! Mount points that an image lacks: made for a step, and gone without a trace afterwards.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{self, AtFlags, FileType, Mode, OFlags, Stat},
    io::{Errno, Result as IoResult},
};

use serde::{Deserialize, Serialize};

use super::{SandboxError, error::Named};
use crate::sys::{
    fs::{make_node_at, open_subdirectory, read_directory, set_directory_mtime},
    resolve::{LastLink, Resolved, open_in_root, walk_in_root},
    xattr,
};

const DIRECTORY_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;

/// What a mount point is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    Directory,
    File,
}

/// A place to mount on.
pub(super) struct Target {
    pub fd: OwnedFd,
    /// Relative to the root, free of links; empty for the root itself.
    pub real: PathBuf,
}

/// The mount points that were made in a root.
pub(super) struct Stubs {
    root: OwnedFd,
    /// The overlay's device number, by which its directories are told from those of other mounts.
    device: u64,
    made: Vec<Made>,
    /// What the directories looked like that were copied up because something was made in them.
    touched: BTreeMap<PathBuf, Stat>,
}

struct Made {
    kind: Kind,
    real: PathBuf,
    /// The directory, where it belongs to another mount than the root's overlay.
    elsewhere: Option<OwnedFd>,
}

impl Stubs {
    pub fn new(root: OwnedFd) -> Result<Self, SandboxError> {
        let device = fs::fstat(&root).named("fstat", "/")?.st_dev;
        Ok(Stubs { root, device, made: Vec::new(), touched: BTreeMap::new() })
    }

    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// A directory directly below the root that must be no link, such as /proc. If it is missing it is made and stays
    /// (BuildKit leaves /dev, /proc and /sys behind).
    pub fn plain_directory(&mut self, name: &str) -> Result<OwnedFd, SandboxError> {
        match fs::statat(&self.root, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
            Ok(_) => return Err(target_error(Path::new("/").join(name), "is not a directory")),
            Err(Errno::NOENT) => {
                let before = fs::fstat(&self.root).named("fstat", "/")?;
                make_directory(&self.root, name.as_ref()).named("mkdir", name)?;
                restore_mtime(&self.root, &before).named("utimensat", "/")?;
            }
            Err(error) => return Err(error).named("lstat", name),
        }
        open_in_root(&self.root, Path::new(name), OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())
            .named("open", name)
    }

    /// Resolves a mount target inside the root and makes what is missing of it.
    pub fn target(&mut self, target: &Path, kind: Kind) -> Result<Target, SandboxError> {
        let failed = |error: Errno| target_error(target, error);
        let mut resolved = walk_in_root(&self.root, target, LastLink::Follow).map_err(failed)?;
        if resolved.missing.is_empty() {
            check_kind(&resolved, kind, target)?;
            return Ok(Target { fd: resolved.found, real: resolved.real });
        }
        let missing = std::mem::take(&mut resolved.missing);
        self.make(resolved, missing, kind).map_err(failed)
    }

    fn make(&mut self, parent: Resolved, names: Vec<OsString>, kind: Kind) -> IoResult<Target> {
        let before = fs::fstat(&parent.found)?;
        let in_overlay = before.st_dev == self.device;
        if in_overlay {
            self.remember(&parent.real)?;
        }
        let (mut directory, mut real) = (duplicate(&parent.found)?, parent.real);
        let last = names.len() - 1;
        for (i, name) in names.iter().enumerate() {
            let kind = if i == last { kind } else { Kind::Directory };
            make_stub(&directory, name, kind)?;
            real.push(name);
            let elsewhere = if in_overlay { None } else { Some(duplicate(&directory)?) };
            self.made.push(Made { kind, real: real.clone(), elsewhere });
            directory = open_path(&directory, name)?;
        }
        restore_mtime(&parent.found, &before)?;
        Ok(Target { fd: directory, real })
    }

    /// Notes what a directory and its ancestors are like before they are copied up.
    fn remember(&mut self, directory: &Path) -> IoResult<()> {
        for path in directory.ancestors().filter(|path| !path.as_os_str().is_empty()) {
            if !self.touched.contains_key(path) && !self.made.iter().any(|made| made.real == path) {
                let stat = fs::statat(&self.root, path, AtFlags::SYMLINK_NOFOLLOW)?;
                self.touched.insert(path.to_owned(), stat);
            }
        }
        Ok(())
    }

    /// Removes what was made and is still empty, and the directories that were copied up for nothing. To be called
    /// when the step is dead and the overlay unmounted; `upper` is its upper directory. Returns the mount points that
    /// were made in the image, relative to the root.
    pub fn remove(self, upper: &OwnedFd) -> Result<Vec<PathBuf>, SandboxError> {
        for made in self.made.iter().rev() {
            remove_made(upper, made).named("remove mount point", &made.real)?;
        }
        // Deepest first: a map of paths has parents before children.
        for (path, before) in self.touched.iter().rev() {
            remove_untouched(upper, path, before).named("remove copied directory", path)?;
        }
        let in_image = self.made.into_iter().filter(|made| made.elsewhere.is_none());
        Ok(in_image.map(|made| made.real).collect())
    }
}

pub(super) fn target_error(target: impl AsRef<Path>, problem: impl ToString) -> SandboxError {
    let target = target.as_ref().display().to_string();
    SandboxError::MountTarget { target, problem: problem.to_string() }
}

pub(super) fn check_kind(found: &Resolved, kind: Kind, target: &Path) -> Result<(), SandboxError> {
    let is_directory = found.kind().map_err(|e| target_error(target, e))? == FileType::Directory;
    match (kind, is_directory) {
        (Kind::Directory, false) => Err(target_error(target, "is not a directory")),
        (Kind::File, true) => Err(target_error(target, "is a directory")),
        _ => Ok(()),
    }
}

pub(super) fn make_stub(directory: &OwnedFd, name: &OsStr, kind: Kind) -> IoResult<()> {
    match kind {
        Kind::Directory => make_directory(directory, name),
        Kind::File => make_node_at(directory, name, FileType::RegularFile, FILE_MODE, (0, 0)),
    }
}

pub(super) fn make_directory(directory: &OwnedFd, name: &OsStr) -> IoResult<()> {
    fs::mkdirat(directory, name, Mode::from_raw_mode(DIRECTORY_MODE))
}

pub(super) fn open_path(directory: &OwnedFd, name: &OsStr) -> IoResult<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(directory, name, flags, Mode::empty())
}

fn duplicate(fd: &OwnedFd) -> IoResult<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd, 0)
}

pub(super) fn restore_mtime(directory: impl AsFd, stat: &Stat) -> IoResult<()> {
    set_directory_mtime(directory, stat.st_mtime, stat.st_mtime_nsec as u32)
}

fn remove_made(upper: &OwnedFd, made: &Made) -> IoResult<()> {
    let (Some(parent), Some(name)) = (made.real.parent(), made.real.file_name()) else {
        return Ok(());
    };
    let directory = match &made.elsewhere {
        Some(directory) => Some(duplicate(directory)?),
        None => open_directories(upper, parent)?,
    };
    let Some(directory) = directory else { return Ok(()) };
    let before = fs::fstat(&directory)?;
    if remove_empty(&directory, name, made.kind)? {
        restore_mtime(&directory, &before)?;
    }
    Ok(())
}

/// Whether the name was there, empty, and is removed now.
pub(super) fn remove_empty(directory: &OwnedFd, name: &OsStr, kind: Kind) -> IoResult<bool> {
    let stat = match fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(false),
        stat => stat?,
    };
    let flags = match (kind, FileType::from_raw_mode(stat.st_mode)) {
        (Kind::Directory, FileType::Directory) => AtFlags::REMOVEDIR,
        (Kind::File, FileType::RegularFile) if stat.st_size == 0 => AtFlags::empty(),
        _ => return Ok(false),
    };
    match fs::unlinkat(directory, name, flags) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        result => result.map(|()| true),
    }
}

/// Removes a directory from the upper one that is there only because it was copied up: empty and as it was.
fn remove_untouched(upper: &OwnedFd, path: &Path, before: &Stat) -> IoResult<()> {
    let Some(directory) = open_directories(upper, path)? else { return Ok(()) };
    let now = fs::fstat(&directory)?;
    let same = (now.st_mode, now.st_uid, now.st_gid, now.st_mtime, now.st_mtime_nsec)
        == (before.st_mode, before.st_uid, before.st_gid, before.st_mtime, before.st_mtime_nsec);
    if !same || is_opaque(&directory)? || !read_directory(&directory)?.is_empty() {
        return Ok(());
    }
    let parent = path.parent().map_or(Ok(None), |parent| open_directories(upper, parent))?;
    let (Some(parent), Some(name)) = (parent, path.file_name()) else { return Ok(()) };
    let parent_before = fs::fstat(&parent)?;
    fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?;
    restore_mtime(&parent, &parent_before)
}

fn is_opaque(directory: &OwnedFd) -> IoResult<bool> {
    for name in [xattr::OVERLAY_OPAQUE, xattr::OVERLAY_OPAQUE_USER] {
        if xattr::get(directory, name)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Opens a directory below `top` without following any link; `None` where it is not there (any more).
pub(super) fn open_directories(top: &OwnedFd, path: &Path) -> IoResult<Option<OwnedFd>> {
    let mut directory = open_subdirectory(top, OsStr::new("."))?;
    for name in path.iter() {
        directory = match open_subdirectory(&directory, name) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            next => next?,
        };
    }
    Ok(Some(directory))
}
