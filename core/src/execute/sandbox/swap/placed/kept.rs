//! Targets in a mount of the container that stays at its place while a stage is at `/`, such as /dev and /dev/shm: what
//! is to be there is copied there, and removed afterwards.

use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{self, AtFlags, Mode, OFlags, StatVfsMountFlags, openat},
    io::Errno,
};

use super::{
    Placed, is_plain,
    journal::{Home, Record},
    objects,
};
use crate::{
    execute::sandbox::{
        SandboxError,
        error::Named,
        spec::{MountSource, StepMount},
        stubs::{make_directory, open_directories, target_error},
        wire,
    },
    sys::{
        fs::descriptor_path,
        remove::remove_tree_at,
        resolve::{LastLink, Resolved, open_in_root, walk_in_root},
    },
};

/// The directories that hold the kernel's and the container's own file systems.
const KEPT: [&str; 2] = ["dev", "sys"];

/// Where programs are that have a name in a mount that forbids them.
const BESIDE: &str = "/.bareboat-programs";

/// The mount that stays and holds this target, if one does.
pub(super) fn mount_above(
    root: &OwnedFd,
    target: &Resolved,
) -> Result<Option<PathBuf>, SandboxError> {
    let first = target.real.iter().chain(target.missing.iter().map(OsString::as_os_str)).next();
    let Some(name) = first.filter(|first| KEPT.iter().any(|kept| first == kept)) else {
        return Ok(None);
    };
    let own = fs::fstat(root).named("fstat", "/")?.st_dev;
    match fs::statat(root, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if stat.st_dev != own => Ok(Some(name.into())),
        _ => Ok(None),
    }
}

impl Placed<'_> {
    /// Makes the target in the mount `stays`. Something that is there already is not replaced.
    pub(super) fn put_kept(
        &mut self,
        mount: &StepMount,
        stays: &Path,
        target: &Resolved,
    ) -> Result<(), SandboxError> {
        let failed = |problem: &dyn ToString| target_error(&mount.target, problem.to_string());
        let inside: PathBuf = target
            .real
            .iter()
            .chain(target.missing.iter().map(OsString::as_os_str))
            .skip(1)
            .collect();
        let top =
            open_in_root(self.places.root, stays, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())
                .named("open", stays)?;
        let resolved =
            walk_in_root(&top, &inside, LastLink::Follow).map_err(|error| failed(&error))?;
        let Some((last, parents)) = resolved.missing.split_last() else {
            return Err(failed(&"is in a mount of this container, which stays as it is"));
        };
        let mut real = stays.join(&resolved.real);
        let outermost = real.join(parents.first().unwrap_or(last));
        self.journal.add(&Record::Kept { path: outermost, home: None })?;
        let mut directory = resolved.found;
        for name in parents {
            real.push(name);
            make_directory(&directory, name).named("mkdir", &real)?;
            directory = open_directories(&directory, Path::new(name))
                .named("open", &real)?
                .ok_or(Errno::NOENT)
                .named("open", &real)?;
        }
        self.note(mount);
        self.fill_kept(mount, &directory, real.join(last))
    }

    /// Puts a program into the tree, and a link to it where it was to be: its name remains the one that it is called by.
    fn put_beside(
        &mut self,
        mount: &StepMount,
        directory: &OwnedFd,
        name: &OsStr,
    ) -> Result<(), SandboxError> {
        let target = Path::new(BESIDE).join(name);
        fs::symlinkat(&target, directory, name).named("symlink", &mount.target)?;
        self.put_one(&StepMount { target, source: mount.source.clone() })
    }

    fn fill_kept(
        &mut self,
        mount: &StepMount,
        directory: &OwnedFd,
        real: PathBuf,
    ) -> Result<(), SandboxError> {
        let name = real.file_name().unwrap_or_default();
        let path = descriptor_path(directory.as_fd()).join(name);
        match &mount.source {
            MountSource::Bind { root, path: inside, writable } => {
                let source = objects::source_path(root, inside, &mount.target)?;
                if *writable && source.is_dir() {
                    let home = Some(Home { path: source.clone() });
                    self.journal.add(&Record::Kept { path: real.clone(), home })?;
                }
                if is_program(&source) && forbids_programs(directory)? {
                    return self.put_beside(mount, directory, name);
                }
                objects::copy(&source, &path)
            }
            MountSource::Prepared { path: source, .. } => objects::copy(source, &path),
            MountSource::Tree { .. } => {
                Err(wire::protocol("a tree of layers must be prepared for a swap"))
            }
            MountSource::Tmpfs { mode, uid, gid, .. } => {
                objects::make_directory(&path, *mode, *uid, *gid).map(drop)
            }
            MountSource::File { content, mode, uid, gid } => {
                let file = objects::write_file(&path, content, *mode, *uid, *gid)?;
                self.secrets.push(file);
                Ok(())
            }
        }
    }
}

/// Whether it is a file that is to be executed, as a here-document's script is.
fn is_program(source: &Path) -> bool {
    let metadata = source.metadata();
    metadata.is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Some runtimes, podman for one, mount /dev so that nothing in it can be executed.
fn forbids_programs(directory: &OwnedFd) -> Result<bool, SandboxError> {
    let flags = fs::fstatvfs(directory).named("fstatvfs", "/dev")?.f_flag;
    Ok(flags.contains(StatVfsMountFlags::NOEXEC))
}

/// Removes what was made, or, with a home, takes it there first.
pub(super) fn remove(root: &OwnedFd, path: &Path, home: Option<&Home>) -> Result<(), SandboxError> {
    let (Some(parent), Some(name), true) = (path.parent(), path.file_name(), is_plain(path)) else {
        return Ok(());
    };
    let Some(directory) = open_directories(root, parent).named("open", parent)? else {
        return Ok(());
    };
    if let Some(home) = home {
        match openat(
            &directory,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Err(Errno::NOENT) => return Ok(()),
            found => found.named("open", path)?,
        };
        objects::send_home(&descriptor_path(directory.as_fd()).join(name), &home.path)?;
    }
    remove_tree_at(&directory, name).named("remove", path)
}
