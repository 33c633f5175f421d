//! `RUN --mount`: what a step sees besides its root.

use std::{
    ffi::OsString,
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, OFlags, fstat, open as open_path},
    io::Errno,
    mount::MountFlags,
};

use super::{
    SandboxError,
    error::Named,
    overlay::Layers,
    spec::{Discard, MountSource, StepMount},
    staging::Staging,
    stubs::{Kind, Stubs, Target, target_error},
    system::{bind_restricted, mounted},
};
use crate::sys::{
    fs::{descriptor_path, open_directory_handle},
    mount::{bind, is_missing_call, make_read_only_recursive, mount_new},
    namespace::detach,
    resolve::{LastLink, open_in_root, walk_in_root},
};

/// Mounts all of them, the outermost target first.
pub(super) fn mount_all(
    mounts: &[StepMount],
    staging: &Staging,
    stubs: &mut Stubs,
) -> Result<(), SandboxError> {
    let mut sorted: Vec<&StepMount> = mounts.iter().collect();
    sorted.sort_by_key(|mount| mount.target.components().count());
    sorted.into_iter().try_for_each(|step_mount| mount_one(step_mount, staging, stubs))
}

fn mount_one(
    step_mount: &StepMount,
    staging: &Staging,
    stubs: &mut Stubs,
) -> Result<(), SandboxError> {
    let path = &step_mount.target;
    match &step_mount.source {
        MountSource::Bind { root, path: inside, writable } => {
            let root_fd = open_directory_handle(root).map_err(source_error(root, path))?;
            let source = open_source(&root_fd, inside, path)?;
            let target = target(stubs, path, kind_of(&source)?)?;
            if *writable {
                bind(source, target.fd, true).named("bind", path)
            } else {
                bind_read_only(stubs, &source, &target)
            }
        }
        MountSource::Tree { lowers, path: inside, discard } => {
            let tree = mount_tree(lowers, discard.as_ref(), staging)?;
            let source = open_source(&tree, inside, path)?;
            let target = target(stubs, path, kind_of(&source)?)?;
            let restricted =
                if discard.is_none() { MountFlags::RDONLY } else { MountFlags::empty() };
            bind_restricted(stubs, &source, &target, restricted)
        }
        MountSource::Prepared { path: source_path, read_only } => {
            let source = open_path(source_path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                .map_err(source_error(source_path, path))?;
            let target = target(stubs, path, kind_of(&source)?)?;
            let restricted = if *read_only { MountFlags::RDONLY } else { MountFlags::empty() };
            bind_restricted(stubs, &source, &target, restricted)
        }
        MountSource::Tmpfs { bytes_max, mode, uid, gid } => {
            let target = target(stubs, path, Kind::Directory)?;
            let size = bytes_max.map(|bytes| format!(",size={bytes}")).unwrap_or_default();
            let options = format!("mode={mode:o},uid={uid},gid={gid}{size}");
            mount_new("tmpfs", target.fd, MountFlags::NOSUID, &options).named("mount tmpfs", path)
        }
        MountSource::File { content, mode, uid, gid } => {
            let target = target(stubs, path, Kind::File)?;
            let file = staging.file(content, *mode, *uid, *gid)?;
            let flags =
                MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            bind_restricted(stubs, &file, &target, flags)
        }
    }
}

/// The target in the root. What would cover the root is refused, and so is /proc, which is mounted last and must be the
/// kernel's own.
fn target(stubs: &mut Stubs, path: &Path, kind: Kind) -> Result<Target, SandboxError> {
    if !path.is_absolute() {
        return Err(target_error(path, "must be absolute"));
    }
    if !path.components().any(|component| matches!(component, Component::Normal(_))) {
        return Err(target_error(path, "must not be /"));
    }
    let resolved = walk_in_root(stubs.root(), path, LastLink::Follow)
        .map_err(|error| target_error(path, error))?;
    match resolved.real.iter().chain(resolved.missing.iter().map(OsString::as_os_str)).next() {
        None => Err(target_error(path, "must not be /")),
        Some(first) if first == "proc" => Err(target_error(path, "must not be in /proc")),
        Some(_) => stubs.target(path, kind),
    }
}

/// Read-only with all that is mounted below the source; before Linux 5.12 without it, so that nothing stays writable.
fn bind_read_only(stubs: &Stubs, source: &OwnedFd, target: &Target) -> Result<(), SandboxError> {
    let shown = Path::new("/").join(&target.real);
    bind(source, &target.fd, true).named("bind", &shown)?;
    match make_read_only_recursive(mounted(stubs.root(), &target.real)?) {
        Err(error) if is_missing_call(&error) => {
            let covered = mounted(stubs.root(), &target.real)?;
            detach(&descriptor_path(covered.as_fd())).named("umount", &shown)?;
            bind_restricted(stubs, source, target, MountFlags::RDONLY)
        }
        result => result.named("mount_setattr", shown),
    }
}

fn mount_tree(
    lowers: &[PathBuf],
    discard: Option<&Discard>,
    staging: &Staging,
) -> Result<OwnedFd, SandboxError> {
    let upper = discard.map(|discard| (discard.upper.as_path(), discard.work.as_path()));
    let mut layers = Layers::open(lowers, upper)?;
    layers.pad(&staging.directory(None)?)?;
    layers.copy_root_attributes()?;
    let path = staging.directory(None)?;
    let target = open_directory_handle(&path).named("open", &path)?;
    layers.mount(target, &path)?;
    open_directory_handle(&path).named("open", &path)
}

fn open_source(root: &OwnedFd, inside: &Path, target: &Path) -> Result<OwnedFd, SandboxError> {
    let shown = Path::new("/").join(inside);
    open_in_root(root, inside, OFlags::PATH, Mode::empty()).map_err(source_error(&shown, target))
}

fn source_error<'a>(source: &'a Path, target: &'a Path) -> impl FnOnce(Errno) -> SandboxError + 'a {
    move |errno| SandboxError::MountSource {
        source_path: source.display().to_string(),
        target: target.display().to_string(),
        errno: super::error::Errno(errno.raw_os_error()),
    }
}

fn kind_of(source: &OwnedFd) -> Result<Kind, SandboxError> {
    let stat = fstat(source).named("fstat", "mount source")?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Ok(Kind::Directory),
        _ => Ok(Kind::File),
    }
}
