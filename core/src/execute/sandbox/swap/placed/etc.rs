//! /etc/hosts and /etc/resolv.conf. Where they are mounts of the container, as Docker and Kubernetes make them, they
//! stay while a stage is at `/`: the step sees them and may write to them. Lines are added in place, and what was there
//! before comes back afterwards. Where they are not, the step gets files like every other mount.

use std::{
    ffi::OsString,
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Mode, OFlags, StatxAttributes, StatxFlags, openat, statx},
    io::Errno,
};

use super::{Placed, journal::Record};
use crate::{
    execute::sandbox::{
        SandboxError,
        error::Named,
        spec::{MountSource, StepMount},
        stubs::open_directories,
    },
    sys::resolve::Resolved,
};

/// Files that a container's runtime mounts.
const FILES: [&str; 3] = ["hosts", "resolv.conf", "hostname"];

/// Far above any real one.
const BYTES_MAX: u64 = 4 << 20;

/// What the step is to see.
pub(in super::super) struct Etc<'a> {
    /// Lines for the container's own file.
    pub added_hosts: &'a [u8],
    /// Whole files, for a container that has none of its own.
    pub hosts: &'a [u8],
    pub resolv_conf: &'a [u8],
}

impl Etc<'_> {
    pub(super) fn prepare(&self, placed: &mut Placed<'_>) -> Result<(), SandboxError> {
        for (name, whole, added) in
            [("hosts", self.hosts, self.added_hosts), ("resolv.conf", self.resolv_conf, &[])]
        {
            if is_mount(placed.places.root, name)? {
                keep(placed, name, added)?;
            } else if !whole.is_empty() {
                put_whole(placed, name, &[whole, added].concat())?;
            }
        }
        Ok(())
    }
}

fn put_whole(placed: &mut Placed<'_>, name: &str, content: &[u8]) -> Result<(), SandboxError> {
    let target = Path::new("/etc").join(name);
    let source = MountSource::File { content: content.to_vec(), mode: 0o644, uid: 0, gid: 0 };
    let notes = placed.notes.len();
    placed.put_one(&StepMount { target, source })?;
    // It is no secret.
    placed.notes.truncate(notes);
    Ok(())
}

/// Remembers what the container's file was, and adds to it.
fn keep(placed: &mut Placed<'_>, name: &str, added: &[u8]) -> Result<(), SandboxError> {
    let path = Path::new("/etc").join(name);
    let flags = if added.is_empty() { OFlags::RDONLY } else { OFlags::RDWR };
    let Some(file) = open(placed.places.root, name, flags)? else { return Ok(()) };
    let mut content = Vec::new();
    (&file).take(BYTES_MAX).read_to_end(&mut content).named("read", &path)?;
    let ends_inside_a_line = content.last().is_some_and(|last| *last != b'\n');
    placed.journal.add(&Record::Etc { name: name.to_owned(), content })?;
    if added.is_empty() {
        return Ok(());
    }
    (&file).seek(SeekFrom::End(0)).named("seek", &path)?;
    let line_end: &[u8] = if ends_inside_a_line { b"\n" } else { b"" };
    (&file).write_all(&[line_end, added].concat()).named("write", path)
}

/// Gives the file its bytes of before, in place.
pub(super) fn put_back(root: &OwnedFd, name: &str, content: &[u8]) -> Result<(), SandboxError> {
    if !FILES.contains(&name) {
        return Ok(());
    }
    let path = Path::new("/etc").join(name);
    let Some(file) = open(root, name, OFlags::RDONLY)? else { return Ok(()) };
    let mut now = Vec::new();
    file.take(BYTES_MAX + 1).read_to_end(&mut now).named("read", &path)?;
    if now == content {
        return Ok(());
    }
    let Some(mut file) = open(root, name, OFlags::WRONLY | OFlags::TRUNC)? else { return Ok(()) };
    file.write_all(content).named("write", path)
}

fn open(root: &OwnedFd, name: &str, flags: OFlags) -> Result<Option<File>, SandboxError> {
    let Some(etc) = open_directories(root, Path::new("etc")).named("open", "/etc")? else {
        return Ok(None);
    };
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match openat(etc, name, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::LOOP) => Ok(None),
        file => file.named("open", Path::new("/etc").join(name)).map(|file| Some(File::from(file))),
    }
}

/// Whether a target is one of the files that stay.
pub(super) fn is_kept_file(root: &OwnedFd, target: &Resolved) -> Result<bool, SandboxError> {
    let whole: PathBuf =
        target.real.iter().chain(target.missing.iter().map(OsString::as_os_str)).collect();
    let name = whole.strip_prefix("etc").ok().and_then(|name| name.to_str());
    match name.filter(|name| FILES.contains(name)) {
        Some(name) => is_mount(root, name),
        None => Ok(false),
    }
}

/// Whether a file of the container's /etc is a mount point.
fn is_mount(root: &OwnedFd, name: &str) -> Result<bool, SandboxError> {
    let path = Path::new("etc").join(name);
    match statx(root, &path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        stat => {
            Ok(stat.named("statx", &path)?.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
        }
    }
}
