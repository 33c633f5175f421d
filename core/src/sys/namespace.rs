//! Namespaces, and the change of root.

use std::{io, os::fd::AsFd, path::Path};

use rustix::{
    io::Errno,
    mount::{MountPropagationFlags, UnmountFlags, mount_change, mount_move, unmount},
    process::{chdir, chroot, fchdir, pivot_root},
    thread::{UnshareFlags, unshare_unsafe},
};

/// Moves this process into new namespaces. `NEWPID` counts for children only. Fails with `EINVAL` in a threaded
/// process where a namespace can't be split by thread.
pub fn unshare(flags: UnshareFlags) -> io::Result<()> {
    if flags.contains(UnshareFlags::FILES) {
        return Err(Errno::INVAL.into());
    }
    // SAFETY: only a split descriptor table could break other threads, and that is refused above.
    Ok(unsafe { unshare_unsafe(flags) }?)
}

/// Cuts this mount namespace off: no mount or unmount travels in or out.
pub fn make_mounts_private() -> io::Result<()> {
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(mount_change("/", flags)?)
}

/// How the root was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootChange {
    PivotRoot,
    /// Where pivot_root is refused (Docker's seccomp filter, a root on rootfs): the new root covers the old one.
    MoveAndChroot,
}

/// Makes the mount at `root` this mount namespace's root and leaves nothing of the old one in reach.
pub fn change_root(root: impl AsFd) -> io::Result<RootChange> {
    fchdir(root)?;
    match pivot_root(".", ".") {
        Ok(()) => {
            // The old root lies over the new one now; `.` is the old one.
            unmount(".", UnmountFlags::DETACH)?;
            chdir("/")?;
            Ok(RootChange::PivotRoot)
        }
        Err(Errno::PERM | Errno::INVAL | Errno::NOSYS) => {
            mount_move(".", "/")?;
            chroot(".")?;
            chdir("/")?;
            Ok(RootChange::MoveAndChroot)
        }
        Err(error) => Err(error.into()),
    }
}

/// Sets the host name of this UTS namespace.
pub fn set_host_name(name: &str) -> io::Result<()> {
    Ok(rustix::system::sethostname(name.as_bytes())?)
}

/// Unmounts everything at and below `path`, at once for this namespace.
pub fn detach(path: &Path) -> io::Result<()> {
    Ok(unmount(path, UnmountFlags::DETACH)?)
}

/// The numbers that the kernel gives its first user and PID namespace, on every machine.
const INITIAL_USER_NAMESPACE: u64 = 0xefff_fffd;
const INITIAL_PID_NAMESPACE: u64 = 0xefff_fffc;

/// Whether this process is in the machine's own user namespace, so that its root is the machine's. Needs /proc; without
/// it the answer is no.
pub fn in_initial_user_namespace() -> bool {
    is_namespace("/proc/self/ns/user", INITIAL_USER_NAMESPACE)
}

/// Whether this process is in the machine's own PID namespace: not so in a container, unless it was asked for.
pub fn in_initial_pid_namespace() -> bool {
    is_namespace("/proc/self/ns/pid", INITIAL_PID_NAMESPACE)
}

fn is_namespace(link: &str, number: u64) -> bool {
    rustix::fs::stat(link).is_ok_and(|stat| stat.st_ino == number)
}
