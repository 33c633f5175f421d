//! The overlay mount of a step's layers.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{Gid, Mode, Uid, fchmod, fchown, fstat, fstatfs},
    io::Errno,
    mount::MountFlags,
    process::chdir,
};

use super::{SandboxError, error::Named};
use crate::sys::{
    fs::{open_directory_handle, open_subdirectory, set_directory_mtime},
    mount::mount_new,
    namespace::in_initial_user_namespace,
};

/// statfs(2)'s number of overlayfs.
pub(super) const OVERLAYFS_MAGIC: i64 = 0x794c_7630;

/// Options from most to least wanted. What a kernel refuses is a feature that it does not have, so that the upper
/// directory is a complete diff all the same: no redirected directories, no files with metadata only.
const WRITABLE_OPTIONS: [&str; 5] = [
    ",redirect_dir=off,metacopy=off,index=off,xino=off,volatile",
    ",redirect_dir=off,metacopy=off,index=off,xino=off",
    ",redirect_dir=off,index=off,xino=off",
    ",redirect_dir=off,index=off",
    "",
];

const READ_ONLY_OPTIONS: [&str; 3] =
    [",redirect_dir=off,metacopy=off,index=off,xino=off", ",redirect_dir=off,index=off", ""];

/// In a user namespace, where only `user.*` attributes can be set. `userxattr` implies that there are no redirects and no
/// files with metadata only; where the kernel's default is to follow redirects, "off" would contradict it.
const WRITABLE_OPTIONS_IN_NAMESPACE: [&str; 4] = [
    ",userxattr,index=off,xino=off,volatile",
    ",userxattr,index=off,xino=off",
    ",userxattr,redirect_dir=nofollow,metacopy=off,index=off",
    ",userxattr",
];

const READ_ONLY_OPTIONS_IN_NAMESPACE: [&str; 2] = [",userxattr,index=off,xino=off", ",userxattr"];

/// The directories of one overlay, opened.
pub(super) struct Layers {
    /// The topmost first.
    lowers: Vec<OwnedFd>,
    /// The upper and the work directory; without them the overlay is read-only.
    upper: Option<(OwnedFd, OwnedFd)>,
}

impl Layers {
    pub fn open<P: AsRef<Path>>(
        lowers: &[P],
        upper: Option<(&Path, &Path)>,
    ) -> Result<Self, SandboxError> {
        let open = |path: &Path| open_directory_handle(path).named("open", path);
        let lowers = lowers.iter().map(|path| open(path.as_ref())).collect::<Result<_, _>>()?;
        let upper = match upper {
            None => None,
            Some((upper, work)) => {
                let pair = (open(upper)?, open(work)?);
                refuse_overlay_below(&pair.0, upper)?;
                Some(pair)
            }
        };
        Ok(Layers { lowers, upper })
    }

    /// Adds an empty directory at the bottom where the kernel wants more lower directories than there are: one below
    /// an upper directory, two without.
    pub fn pad(&mut self, empty: &Path) -> Result<(), SandboxError> {
        let least = if self.upper.is_some() { 1 } else { 2 };
        while self.lowers.len() < least {
            self.lowers.push(open_directory_handle(empty).named("open", empty)?);
        }
        Ok(())
    }

    /// Gives the upper directory the mode, owner and time of the topmost lower one's root, which would be `/`'s.
    pub fn copy_root_attributes(&self) -> Result<(), SandboxError> {
        let (Some(lower), Some((upper, _))) = (self.lowers.first(), &self.upper) else {
            return Ok(());
        };
        let stat = fstat(lower).named("fstat", "lower directory")?;
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        // An O_PATH descriptor can't be changed.
        let upper = open_subdirectory(upper, ".".as_ref()).named("open", "upper directory")?;
        fchown(&upper, Some(uid), Some(gid)).named("fchown", "upper directory")?;
        fchmod(&upper, Mode::from_raw_mode(stat.st_mode & 0o7777))
            .named("fchmod", "upper directory")?;
        set_directory_mtime(&upper, stat.st_mtime, stat.st_mtime_nsec as u32)
            .named("utimensat", "upper directory")
    }

    pub fn upper(&self) -> Option<&OwnedFd> {
        self.upper.as_ref().map(|(upper, _)| upper)
    }

    /// Mounts the overlay over `target`. The kernel takes one page of options: directories are named by descriptor,
    /// seen from /proc/self/fd, so that hundreds fit.
    pub fn mount(&self, target: impl AsFd, name: &Path) -> Result<(), SandboxError> {
        chdir("/proc/self/fd").named("chdir", "/proc/self/fd")?;
        let result = self.try_options(target.as_fd(), name);
        chdir("/").named("chdir", "/")?;
        result
    }

    fn try_options(&self, target: impl AsFd, name: &Path) -> Result<(), SandboxError> {
        let candidates: &[&str] = match (&self.upper, in_initial_user_namespace()) {
            (Some(_), true) => &WRITABLE_OPTIONS,
            (None, true) => &READ_ONLY_OPTIONS,
            (Some(_), false) => &WRITABLE_OPTIONS_IN_NAMESPACE,
            (None, false) => &READ_ONLY_OPTIONS_IN_NAMESPACE,
        };
        let mut result = Err(Errno::INVAL.into());
        for options in candidates {
            let options = format!("{}{options}", self.directories());
            result = mount_new("overlay", &target, MountFlags::empty(), &options);
            match &result {
                Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {}
                _ => break,
            }
        }
        result.named("mount overlay", name)
    }

    fn directories(&self) -> String {
        let number = |fd: &OwnedFd| fd.as_raw_fd().to_string();
        let lowers: Vec<_> = self.lowers.iter().map(number).collect();
        let mut options = format!("lowerdir={}", lowers.join(":"));
        if let Some((upper, work)) = &self.upper {
            options.push_str(&format!(",upperdir={},workdir={}", number(upper), number(work)));
        }
        options
    }
}

fn refuse_overlay_below(directory: &OwnedFd, path: &Path) -> Result<(), SandboxError> {
    let stat = fstatfs(directory).named("fstatfs", path)?;
    #[allow(clippy::unnecessary_cast)] // The field's type differs between architectures.
    if stat.f_type as i64 == OVERLAYFS_MAGIC {
        return Err(SandboxError::StateOnOverlay { directory: path.display().to_string() });
    }
    Ok(())
}
