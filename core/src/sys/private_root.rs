//! A root of this process's own, empty directory, for the time that an image's files may be at `/`: no name that this
//! process looks up can lead to them.
//!
//! The working directory becomes /proc/self/fd, so that `descriptor_path` has a way to name descriptors (`N`, `N/name`)
//! where there is no /proc in the root. Programs are started at the real root, and only between two swaps: see
//! [`programs`], [`swap`] and [`command_at_real_root`].

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::{
    fs::{CWD, Mode, OFlags, open, openat},
    io::Errno,
    process::{chroot, fchdir},
};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{
    fs::{open_directory_handle, open_subdirectory, read_directory},
    resolve::open_in_root,
};

static HELD: OnceLock<Held> = OnceLock::new();
static ENTERED: AtomicBool = AtomicBool::new(false);
static GATE: RwLock<()> = RwLock::const_new(());

/// What leads back.
struct Held {
    root: OwnedFd,
    /// /proc/self and /proc/self/fd.
    process: OwnedFd,
    descriptors: OwnedFd,
    null: OwnedFd,
}

/// Why the root can't be changed.
#[derive(Debug, thiserror::Error)]
pub enum PrivateRootError {
    #[error("a private root needs CAP_SYS_CHROOT, which this container does not have")]
    NoCapability,
    #[error("the private root {directory} is not empty")]
    NotEmpty { directory: PathBuf },
    #[error("private root: {call}: {source}")]
    Call { call: &'static str, source: io::Error },
}

fn failed<E: Into<io::Error>>(call: &'static str) -> impl Fn(E) -> PrivateRootError {
    move |error| PrivateRootError::Call { call, source: error.into() }
}

/// Changes the root of the whole process, all its threads, to an empty directory of its own. Paths mean nothing
/// afterwards: what is needed must be open. Does nothing where it was done already.
pub fn enter(directory: &Path) -> Result<(), PrivateRootError> {
    if is_entered() {
        return Ok(());
    }
    let private = open_directory_handle(directory).map_err(failed("open"))?;
    let content = open_subdirectory(&private, ".".as_ref()).map_err(failed("open"))?;
    if !read_directory(content).map_err(failed("read"))?.is_empty() {
        return Err(PrivateRootError::NotEmpty { directory: directory.to_owned() });
    }
    let held = held().map_err(failed("open /proc/self/fd"))?;
    let before = open_directory_handle(Path::new(".")).map_err(failed("open"))?;
    if let Err(error) = change_for_all(held, &private) {
        fchdir(&before).map_err(failed("chdir"))?;
        return Err(match error {
            Errno::PERM => PrivateRootError::NoCapability,
            error => failed("chroot")(error),
        });
    }
    ENTERED.store(true, Ordering::SeqCst);
    Ok(())
}

/// Goes back to the real root. The working directory stays, so that names by descriptor that are in use remain good;
/// relative paths of before mean nothing.
pub fn leave() -> Result<(), PrivateRootError> {
    let (true, Some(held)) = (is_entered(), HELD.get()) else { return Ok(()) };
    change_for_all(held, &held.root).map_err(failed("chroot"))?;
    ENTERED.store(false, Ordering::SeqCst);
    Ok(())
}

/// Whether this process is in its private root.
pub fn is_entered() -> bool {
    ENTERED.load(Ordering::SeqCst)
}

/// Other threads open names by descriptor meanwhile, so the working directory never is another one than /proc/self/fd,
/// from which the new root has a name, too.
fn change_for_all(held: &Held, root: &OwnedFd) -> rustix::io::Result<()> {
    fchdir(&held.descriptors)?;
    chroot(root.as_raw_fd().to_string())
}

fn held() -> rustix::io::Result<&'static Held> {
    if let Some(held) = HELD.get() {
        return Ok(held);
    }
    let held = Held {
        root: open_directory_handle(Path::new("/"))?,
        process: open_directory_handle(Path::new("/proc/self"))?,
        descriptors: open_directory_handle(Path::new("/proc/self/fd"))?,
        null: open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?,
    };
    Ok(HELD.get_or_init(|| held))
}

/// Waits until no image is at `/`, and keeps it so: for as long as a program runs that this process started.
pub async fn programs() -> RwLockReadGuard<'static, ()> {
    GATE.read().await
}

/// Waits until no program runs that this process started, and keeps it so: for as long as an image may be at `/`.
pub async fn swap() -> RwLockWriteGuard<'static, ()> {
    GATE.write().await
}

/// Lets a program start at the real root, in `working_directory` there. Its path is looked up there, too.
pub fn command_at_real_root(command: &mut Command, working_directory: &Path) {
    let Some(held) = HELD.get().filter(|_| is_entered()) else {
        command.current_dir(working_directory);
        return;
    };
    let working_directory = working_directory.to_owned();
    let hook = move || {
        fchdir(&held.root)?;
        chroot(".")?;
        Ok(rustix::process::chdir(&working_directory)?)
    };
    // SAFETY: between fork and exec only three system calls are made; chdir copies a short path to the stack, and a
    // long one by malloc, which the C library keeps usable in a forked child.
    unsafe { command.pre_exec(hook) };
}

/// The null device for a program, in place of `Stdio::null`, which opens it by its path.
pub fn null() -> io::Result<Stdio> {
    match HELD.get().filter(|_| is_entered()) {
        Some(held) => Ok(Stdio::from(held.null.try_clone()?)),
        None => Ok(Stdio::null()),
    }
}

/// Opens a path at the real root for reading, as it was before [`enter`]. Only between two swaps.
pub fn open_at_real_root(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    match HELD.get().filter(|_| is_entered()) {
        // Absolute links must lead on from the real root.
        Some(held) => open_in_root(&held.root, path, flags, Mode::empty()),
        None => open(path, flags, Mode::empty()),
    }
}

/// Mode and kind of a path at the real root, links followed.
pub fn mode_at_real_root(path: &Path) -> rustix::io::Result<u32> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let file = match HELD.get().filter(|_| is_entered()) {
        Some(held) => open_in_root(&held.root, path, flags, Mode::empty()),
        None => open(path, flags, Mode::empty()),
    };
    Ok(rustix::fs::fstat(file?)?.st_mode)
}

/// A file of /proc/self, wherever the root is.
pub fn open_own(name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    match HELD.get().filter(|_| is_entered()) {
        Some(held) => openat(&held.process, name, flags, Mode::empty()),
        None => openat(CWD, Path::new("/proc/self").join(name), flags, Mode::empty()),
    }
}

/// The path of a descriptor for a program that is started at the real root.
pub fn descriptor_path_for_programs(fd: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}
