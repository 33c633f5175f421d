//! A directory of the machine as a tree, by handles only: no link is followed, nothing outside is reached.

use std::{
    ffi::CStr,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat, openat, openat2, statat},
    io::Errno,
};

use crate::tree::{Content, EntryPath, Kind, Metadata, Timestamp};

use super::{ContextError, Node, source::capability_version_2};

/// An open directory.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    root: Arc<OwnedFd>,
}

/// No capability is longer; the kernel knows 24 bytes.
const CAPABILITY_BYTES_MAX: usize = 64;

impl Directory {
    /// Opens a directory by its path, links followed: where the context lies is the user's choice.
    pub fn open(path: &Path) -> Result<Self, ContextError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| ContextError::Open { path: path.to_owned(), source: error.into() })?;
        Ok(Directory { root: Arc::new(root) })
    }

    pub fn node(&self, path: &EntryPath) -> Result<Option<Node>, ContextError> {
        let found = match path.is_root() {
            true => rustix::fs::fstat(&self.root).and_then(|stat| node(&self.root, &[], &stat)),
            false => self
                .open_directory(&path.parent().unwrap_or_default())
                .and_then(|directory| stat_node(&directory, path.file_name())),
        };
        match found {
            Err(error) if is_missing(error) => Ok(None),
            other => other.map_err(|error| read_error(path, error)),
        }
    }

    /// What lies in a directory, sorted. A name that vanishes meanwhile, and a socket, is not there.
    pub fn children(&self, path: &EntryPath) -> Result<Vec<(EntryPath, Node)>, ContextError> {
        let list = || -> Result<Vec<(EntryPath, Node)>, Errno> {
            let directory = self.open_directory(path)?;
            let mut children = Vec::new();
            for name in names(&directory)? {
                if let Some(node) = stat_node(&directory, &name)? {
                    children.push((path.child(&name), node));
                }
            }
            Ok(children)
        };
        list().map_err(|error| read_error(path, error))
    }

    pub fn capability(&self, path: &EntryPath) -> Result<Option<Box<[u8]>>, ContextError> {
        let mut value = [0; CAPABILITY_BYTES_MAX];
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let read = self
            .open_beneath(path, flags)
            .and_then(|file| rustix::fs::fgetxattr(file, "security.capability", &mut value));
        match read {
            Ok(length) => capability_version_2(&value[..length])
                .map(Some)
                .ok_or_else(|| ContextError::Capability(path.clone())),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
            Err(error) => Err(read_error(path, error)),
        }
    }

    pub fn content(&self, path: &EntryPath) -> Content {
        Content::Beneath { directory: self.root.clone(), path: path.clone() }
    }

    fn open_directory(&self, path: &EntryPath) -> Result<OwnedFd, Errno> {
        self.open_beneath(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    fn open_beneath(&self, path: &EntryPath, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let name = if path.is_root() { b"." } else { path.as_bytes() };
        match openat2(&self.root, name, flags, Mode::empty(), resolve) {
            Err(Errno::NOSYS | Errno::PERM) => self.open_by_steps(path, flags),
            other => other,
        }
    }

    /// For kernels and filters without openat2.
    fn open_by_steps(&self, path: &EntryPath, flags: OFlags) -> Result<OwnedFd, Errno> {
        let walk = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at: Option<OwnedFd> = None;
        for ancestor in path.parent().iter().flat_map(|parent| parent.components()) {
            let here = at.as_ref().map_or(self.root.as_fd(), |fd| fd.as_fd());
            at = Some(openat(here, ancestor, walk, Mode::empty())?);
        }
        let here = at.as_ref().map_or(self.root.as_fd(), |fd| fd.as_fd());
        let name = if path.is_root() { b"." } else { path.file_name() };
        openat(here, name, flags, Mode::empty())
    }
}

fn is_missing(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
}

fn read_error(path: &EntryPath, error: Errno) -> ContextError {
    ContextError::Read(path.clone(), error.into())
}

fn names(directory: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut buffer = Vec::with_capacity(64 * 1024);
    let mut reader = RawDir::new(directory, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while let Some(entry) = reader.next() {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name.to_bytes().to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn stat_node(directory: &OwnedFd, name: &[u8]) -> Result<Option<Node>, Errno> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
        Ok(stat) => node(directory, name, &stat),
    }
}

/// Owners of a context do not count: all is 0:0.
fn node(directory: &OwnedFd, name: &[u8], stat: &Stat) -> Result<Option<Node>, Errno> {
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Kind::DIRECTORY,
        FileType::RegularFile => Kind::File { size: stat.st_size as u64 },
        FileType::Symlink => match rustix::fs::readlinkat(directory, name, Vec::new()) {
            Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
            target => Kind::Symlink { target: target?.into_bytes().into() },
        },
        FileType::CharacterDevice => Kind::CharacterDevice { major, minor },
        FileType::BlockDevice => Kind::BlockDevice { major, minor },
        FileType::Fifo => Kind::Fifo,
        _ => return Ok(None),
    };
    let mtime = Timestamp { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 };
    let metadata = Metadata { mode: stat.st_mode & 0o7777, mtime, ..Metadata::default() };
    let linked = stat.st_nlink > 1 && matches!(kind, Kind::File { .. });
    let link = linked.then_some((stat.st_dev, stat.st_ino));
    Ok(Some(Node { link, ..Node::new(kind, metadata) }))
}
