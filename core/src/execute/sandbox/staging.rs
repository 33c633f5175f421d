//! The step's scratch directory while the step runs: a file system in memory that only the step's mount namespace has,
//! for the mount points and files that the box is put together from. It goes with the namespace.

use std::{
    cell::Cell,
    fs::{DirBuilder, File, OpenOptions},
    io::Write,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::PathBuf,
};

use rustix::{
    fs::{Gid, Mode, OFlags, Uid, fchmod, fchown, open},
    mount::MountFlags,
};

use super::{
    SandboxError,
    error::Named,
    spec::{MountSource, StepSpec},
};
use crate::sys::{fs::open_directory_handle, mount::mount_new, namespace::detach};

/// Room for directories and pages that are not full, besides the files' bytes.
const ROOM_BYTES: u64 = 4 * 1024 * 1024;

pub(super) struct Staging {
    path: PathBuf,
    names: Cell<u32>,
}

impl Staging {
    /// Covers the directory `path`.
    pub fn mount(path: PathBuf, spec: &StepSpec) -> Result<Self, SandboxError> {
        let directory = open_directory_handle(&path).named("open", &path)?;
        let options = format!("mode=700,size={}", ROOM_BYTES + file_bytes(spec));
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount_new("tmpfs", directory, flags, &options).named("mount tmpfs", &path)?;
        Ok(Staging { path, names: Cell::new(0) })
    }

    /// A new empty directory.
    pub fn directory(&self, name: Option<&str>) -> Result<PathBuf, SandboxError> {
        let path = name.map_or_else(|| self.fresh(), |name| self.path.join(name));
        DirBuilder::new().mode(0o755).create(&path).named("mkdir", &path)?;
        Ok(path)
    }

    /// A new file with these bytes, mode and owner, as a handle to bind.
    pub fn file(
        &self,
        content: &[u8],
        mode: u32,
        uid: u32,
        gid: u32,
    ) -> Result<OwnedFd, SandboxError> {
        let path = self.fresh();
        let options = OpenOptions::new().write(true).create_new(true).mode(0o600).clone();
        let mut file: File = options.open(&path).named("create", &path)?;
        file.write_all(content).named("write", &path)?;
        fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).named("fchown", &path)?;
        fchmod(&file, Mode::from_raw_mode(mode)).named("fchmod", &path)?;
        open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).named("open", &path)
    }

    /// Takes everything down, the step's root too.
    pub fn unmount(self) -> Result<(), SandboxError> {
        detach(&self.path).named("umount", &self.path)
    }

    fn fresh(&self) -> PathBuf {
        let number = self.names.get();
        self.names.set(number + 1);
        self.path.join(number.to_string())
    }
}

fn file_bytes(spec: &StepSpec) -> u64 {
    let mounted = spec.mounts.iter().map(|mount| match &mount.source {
        MountSource::File { content, .. } => content.len(),
        _ => 0,
    });
    let bytes = mounted.sum::<usize>() + spec.hosts.len() + spec.resolv_conf.len();
    u64::try_from(bytes).unwrap_or(u64::MAX - ROOM_BYTES)
}
