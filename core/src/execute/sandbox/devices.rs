//! /dev of a step: a file system of its own with the nodes, links and mounts that Docker and BuildKit give.

use std::{os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{self, CWD, FileType, Mode, OFlags},
    io::Errno,
    mount::MountFlags,
};

use super::{SandboxError, error::Named, id_map::parse_map};
use crate::sys::{
    fs::make_node_at,
    mount::{bind, mount_new},
};

const NODE_MODE: u32 = 0o666;

const NODES: [(&str, (u32, u32)); 6] = [
    ("null", (1, 3)),
    ("zero", (1, 5)),
    ("full", (1, 7)),
    ("random", (1, 8)),
    ("urandom", (1, 9)),
    ("tty", (5, 0)),
];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Only where the kernel has it, as runc does.
const CORE: (&str, &str) = ("core", "/proc/kcore");

/// Group `tty`, which owns terminals.
const TTY_GROUP: u32 = 5;

/// Mounts and fills `/dev` in `root`; `dev` is the directory there.
pub(super) fn mount_dev(root: &OwnedFd, dev: &OwnedFd, shm_bytes: u64) -> Result<(), SandboxError> {
    let flags = MountFlags::NOSUID | MountFlags::STRICTATIME;
    mount_new("tmpfs", dev, flags, "mode=755,size=65536k").named("mount tmpfs", "/dev")?;
    let dev = open_below(root, "dev")?;
    for (name, device) in NODES {
        make_device(&dev, name, device)?;
    }
    for (name, target) in LINKS {
        fs::symlinkat(target, &dev, name).named("symlink", Path::new("/dev").join(name))?;
    }
    if Path::new(CORE.1).exists() {
        fs::symlinkat(CORE.1, &dev, CORE.0).named("symlink", "/dev/core")?;
    }
    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_terminals(&dev, quiet)?;
    let shm = format!("mode=1777,size={shm_bytes}");
    mount_in(&dev, "shm", "tmpfs", quiet | MountFlags::NODEV, &shm)?;
    mount_queues(&dev, quiet | MountFlags::NODEV)
}

/// Terminals belong to the group `tty`, where the user namespace has an id for it.
fn mount_terminals(dev: &OwnedFd, flags: MountFlags) -> Result<(), SandboxError> {
    let mut terminals = "newinstance,ptmxmode=0666,mode=0620".to_owned();
    let groups = std::fs::read_to_string("/proc/self/gid_map").unwrap_or_default();
    if parse_map(&groups).iter().any(|range| range.holds(TTY_GROUP)) {
        terminals.push_str(&format!(",gid={TTY_GROUP}"));
    }
    mount_in(dev, "pts", "devpts", flags, &terminals)
}

/// Message queues are a build option of the kernel.
fn mount_queues(dev: &OwnedFd, flags: MountFlags) -> Result<(), SandboxError> {
    match mount_in(dev, "mqueue", "mqueue", flags, "") {
        Err(SandboxError::Call { errno, .. }) if errno.0 == libc::ENODEV => Ok(()),
        result => result,
    }
}

fn mount_in(
    dev: &OwnedFd,
    name: &str,
    kind: &str,
    flags: MountFlags,
    options: &str,
) -> Result<(), SandboxError> {
    let path = Path::new("/dev").join(name);
    fs::mkdirat(dev, name, Mode::from_raw_mode(0o755)).named("mkdir", &path)?;
    let directory = open_below(dev, name)?;
    mount_new(kind, directory, flags, options).named(&format!("mount {kind}"), path)
}

/// Where nodes can't be made (user namespaces), the builder's own is bound.
fn make_device(dev: &OwnedFd, name: &str, device: (u32, u32)) -> Result<(), SandboxError> {
    let path = Path::new("/dev").join(name);
    match make_node_at(dev, name.as_ref(), FileType::CharacterDevice, NODE_MODE, device) {
        Err(Errno::PERM) => bind_device(dev, name, &path),
        result => result.named("mknod", path),
    }
}

fn bind_device(dev: &OwnedFd, name: &str, path: &Path) -> Result<(), SandboxError> {
    make_node_at(dev, name.as_ref(), FileType::RegularFile, NODE_MODE, (0, 0))
        .named("create", path)?;
    let source = fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    bind(source.named("open", path)?, open_below(dev, name)?, false).named("bind", path)
}

/// Opens what is mounted at `name` now.
fn open_below(directory: &OwnedFd, name: &str) -> Result<OwnedFd, SandboxError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(directory, name, flags, Mode::empty()).named("open", name)
}
