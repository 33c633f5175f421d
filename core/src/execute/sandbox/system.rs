//! The file systems that every step has besides its root: /proc, /sys, /dev, and the network's files.

use std::{os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fstat, openat, statfs},
    io::Errno,
    mount::MountFlags,
};

use super::{
    SandboxError,
    devices::mount_dev,
    error::Named,
    spec::StepSpec,
    staging::Staging,
    stubs::{Kind, Stubs, Target},
};
use crate::sys::{
    mount::{bind, is_missing_call, make_read_only_recursive, mount_new, restrict},
    resolve::open_in_root,
};

/// Hidden as runc and BuildKit hide them: files behind /dev/null, directories behind an empty one.
const MASKED: [&str; 11] = [
    "proc/acpi",
    "proc/asound",
    "proc/interrupts",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/timer_list",
    "proc/timer_stats",
    "proc/sched_debug",
    "proc/scsi",
    "sys/firmware",
];

/// Hidden too, where there.
const MASKED_DEVICES: &str = "sys/devices/virtual/powercap";

const READ_ONLY: [&str; 5] = ["proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"];

const CGROUP2_MAGIC: i64 = 0x6367_7270;

fn quiet() -> MountFlags {
    MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC
}

/// Mounts everything but /proc, which needs a process of the new PID namespace.
pub(super) fn mount_system(
    spec: &StepSpec,
    staging: &Staging,
    stubs: &mut Stubs,
) -> Result<(), SandboxError> {
    stubs.plain_directory("proc")?;
    let sys = stubs.plain_directory("sys")?;
    let dev = stubs.plain_directory("dev")?;
    mount_dev(stubs.root(), &dev, spec.shm_bytes)?;
    mount_sys(stubs.root(), &sys, spec.insecure)?;
    let files = [("/etc/resolv.conf", &spec.resolv_conf), ("/etc/hosts", &spec.hosts)];
    for (path, content) in files {
        let file = staging.file(content, 0o644, 0, 0)?;
        let target = stubs.target(Path::new(path), Kind::File)?;
        bind_restricted(stubs, &file, &target, MountFlags::RDONLY | quiet())?;
    }
    Ok(())
}

/// Binds a file or directory (not what is mounted below it) and restricts the new mount.
pub(super) fn bind_restricted(
    stubs: &Stubs,
    source: &OwnedFd,
    target: &Target,
    flags: MountFlags,
) -> Result<(), SandboxError> {
    let shown = Path::new("/").join(&target.real);
    bind(source, &target.fd, false).named("bind", &shown)?;
    if flags.is_empty() {
        return Ok(());
    }
    restrict(mounted(stubs.root(), &target.real)?, flags).named("remount", shown)
}

/// The root of what is mounted at `real` now.
pub(super) fn mounted(root: &OwnedFd, real: &Path) -> Result<OwnedFd, SandboxError> {
    open_in_root(root, real, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()).named("open", real)
}

/// A new sysfs shows the step's network namespace; where it is refused the builder's is bound, with what is mounted there.
fn mount_sys(root: &OwnedFd, sys: &OwnedFd, insecure: bool) -> Result<(), SandboxError> {
    let read_only = if insecure { MountFlags::empty() } else { MountFlags::RDONLY };
    let flags = read_only | quiet();
    match mount_new("sysfs", sys, flags, "") {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            bind_own(root, "sys")?;
            restrict(mounted(root, Path::new("sys"))?, flags).named("remount", "/sys")?;
            if !insecure {
                make_all_read_only(root, "sys")?;
            }
        }
        result => result.named("mount sysfs", "/sys")?,
    }
    mount_cgroup(root)
}

/// Binds the builder's own directory of that name below `/` with all its mounts: those are locked in a user namespace,
/// so that none can be left out.
fn bind_own(root: &OwnedFd, name: &str) -> Result<(), SandboxError> {
    let path = Path::new("/").join(name);
    let own =
        openat(CWD, &path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).named("open", &path)?;
    bind(own, mounted(root, Path::new(name))?, true).named("bind", path)
}

/// Before Linux 5.12 what is mounted below keeps the right to be written to that it has.
fn make_all_read_only(root: &OwnedFd, name: &str) -> Result<(), SandboxError> {
    match make_read_only_recursive(mounted(root, Path::new(name))?) {
        Err(error) if is_missing_call(&error) => Ok(()),
        result => result.named("mount_setattr", name),
    }
}

/// The step's own cgroup, read-only, on machines with cgroup 2 only: runtimes read their limits there.
fn mount_cgroup(root: &OwnedFd) -> Result<(), SandboxError> {
    let path = Path::new("sys/fs/cgroup");
    #[allow(clippy::unnecessary_cast)] // The field's type differs between architectures.
    let unified = statfs("/sys/fs/cgroup").is_ok_and(|stat| stat.f_type as i64 == CGROUP2_MAGIC);
    let directory = open_in_root(root, path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
    let (true, Ok(directory)) = (unified, directory) else { return Ok(()) };
    match mount_new("cgroup2", directory, MountFlags::RDONLY | quiet(), "") {
        // Refused where no cgroup namespace could be made; what is there is as good as nothing.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EBUSY)) => Ok(()),
        result => result.named("mount cgroup2", "/sys/fs/cgroup"),
    }
}

/// Mounts a fresh /proc, or the builder's own where processes are shared, and hides what must not be seen. To be called
/// in the new PID namespace.
pub(super) fn mount_proc(root: &OwnedFd, spec: &StepSpec) -> Result<(), SandboxError> {
    if spec.share_processes {
        bind_own(root, "proc")?;
        restrict(mounted(root, Path::new("proc"))?, quiet()).named("remount", "/proc")?;
    } else {
        let proc = mounted(root, Path::new("proc"))?;
        mount_new("proc", proc, quiet(), "").named("mount proc", "/proc")?;
    }
    if spec.insecure {
        return Ok(());
    }
    for path in READ_ONLY {
        make_read_only(root, Path::new(path))?;
    }
    for path in MASKED.into_iter().chain([MASKED_DEVICES]) {
        mask(root, Path::new(path))?;
    }
    Ok(())
}

fn make_read_only(root: &OwnedFd, path: &Path) -> Result<(), SandboxError> {
    let Some(fd) = open_if_there(root, path)? else { return Ok(()) };
    bind(&fd, &fd, true).named("bind", path)?;
    restrict(mounted(root, path)?, MountFlags::RDONLY | quiet()).named("remount", path)
}

fn mask(root: &OwnedFd, path: &Path) -> Result<(), SandboxError> {
    let Some(fd) = open_if_there(root, path)? else { return Ok(()) };
    let stat = fstat(&fd).named("fstat", path)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        let flags = MountFlags::RDONLY | quiet();
        return mount_new("tmpfs", fd, flags, "size=0k,mode=555").named("mount tmpfs", path);
    }
    bind(null(root)?, fd, false).named("bind /dev/null", path)
}

/// The step's own null device, which must really be one: anything else behind a masked file would be seen there.
fn null(root: &OwnedFd) -> Result<OwnedFd, SandboxError> {
    let path = Path::new("dev/null");
    let fd = mounted(root, path)?;
    let stat = fstat(&fd).named("fstat", path)?;
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(1, 3);
    if is_null { Ok(fd) } else { Err(Errno::NODEV).named("open", path) }
}

fn open_if_there(root: &OwnedFd, path: &Path) -> Result<Option<OwnedFd>, SandboxError> {
    match open_in_root(root, path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()) {
        Err(Errno::NOENT) => Ok(None),
        fd => fd.named("open", path).map(Some),
    }
}
