//! Mounts whose source and target are given by descriptor. Needs /proc.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, AsRawFd},
};

use rustix::{
    fs::{StatVfsMountFlags, fstatvfs},
    io::Errno,
    mount::{self, MountFlags},
};

use super::fs::descriptor_path;

/// Mounts a new file system of type `kind` over what `target` holds.
pub fn mount_new(
    kind: &str,
    target: impl AsFd,
    flags: MountFlags,
    options: &str,
) -> io::Result<()> {
    let options = CString::new(options)?;
    let options: Option<&CStr> = (!options.is_empty()).then_some(options.as_c_str());
    Ok(mount::mount(kind, descriptor_path(target.as_fd()), kind, flags, options)?)
}

/// Binds what `source` holds over what `target` holds: with `recursive`, its mounts too.
pub fn bind(source: impl AsFd, target: impl AsFd, recursive: bool) -> io::Result<()> {
    let (source, target) = (descriptor_path(source.as_fd()), descriptor_path(target.as_fd()));
    let result = match recursive {
        true => mount::mount_bind_recursive(source, target),
        false => mount::mount_bind(source, target),
    };
    Ok(result?)
}

/// Adds restrictions to the mount that `mounted` is the root of (opened after mounting). What it has already stays:
/// in a user namespace such flags are locked.
pub fn restrict(mounted: impl AsFd, flags: MountFlags) -> io::Result<()> {
    let mounted = mounted.as_fd();
    let flags = flags | present_flags(fstatvfs(mounted)?.f_flag) | MountFlags::BIND;
    Ok(mount::mount_remount(descriptor_path(mounted), flags, c"")?)
}

fn present_flags(flags: StatVfsMountFlags) -> MountFlags {
    [
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ]
    .into_iter()
    .filter(|(present, _)| flags.contains(*present))
    .fold(MountFlags::empty(), |all, (_, flag)| all | flag)
}

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace_fd: u64,
}

const MOUNT_ATTR_RDONLY: u64 = 1;
const AT_RECURSIVE: libc::c_uint = 0x8000;

/// Makes the mount that `mounted` is the root of, and all mounts below it, read-only. Fails with `ENOSYS` before
/// Linux 5.12.
pub fn make_read_only_recursive(mounted: impl AsFd) -> io::Result<()> {
    let attributes =
        MountAttributes { set: MOUNT_ATTR_RDONLY, clear: 0, propagation: 0, user_namespace_fd: 0 };
    let flags = libc::AT_EMPTY_PATH as libc::c_uint | AT_RECURSIVE;
    // SAFETY: the path is a C string, the structure is as long as said, and the kernel only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mounted.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &attributes,
            size_of::<MountAttributes>(),
        )
    };
    super::process::check(result)
}

/// Whether an error says that the kernel, or a filter before it, does not have the call.
pub fn is_missing_call(error: &io::Error) -> bool {
    [Errno::NOSYS, Errno::PERM]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
