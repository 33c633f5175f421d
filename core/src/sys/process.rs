//! Processes: forking a single-threaded one, executing, signals, waiting, figures.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    process::{DumpableBehavior, Pid, WaitId, WaitIdOptions, waitid},
};

use super::{fs::read_directory, private_root};

/// Forbids other processes of this user to read this one's memory, environment and descriptors, and core dumps. To be
/// called again after every exec.
pub fn set_nondumpable() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// The largest resident set of this process so far, in bytes.
pub fn max_rss_bytes() -> u64 {
    // SAFETY: an all-zero `rusage` is a valid value, and getrusage only writes to it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024
}

/// The proportional set size of a process in bytes, from /proc/PID/smaps_rollup.
pub fn pss_bytes(pid: u32) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Which side of a fork this is.
pub enum Fork {
    Child,
    Parent(Pid),
}

/// Forks this process, which must have no other thread: checked, because locks that another thread holds would stay
/// shut in the child for ever. Fails with `EBUSY` otherwise.
pub fn fork_single_threaded() -> io::Result<Fork> {
    if thread_count()? != 1 {
        return Err(Errno::BUSY.into());
    }
    // SAFETY: there is no other thread, so the child is a full copy with no lock held.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Pid::from_raw(pid).map(Fork::Parent).ok_or_else(|| Errno::SRCH.into()),
    }
}

fn thread_count() -> io::Result<u64> {
    let status = io::read_to_string(File::from(private_root::open_own("status")?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("Threads:"));
    let count = line.and_then(|count| count.trim().parse().ok());
    count.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Replaces this process's image. Returns only on failure.
pub fn execute(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| {
        let mut pointers: Vec<_> = strings.iter().map(|string| string.as_ptr()).collect();
        pointers.push(std::ptr::null());
        pointers
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end with a null pointer and point to strings that live until the call returns.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Gives every signal its default action and empties the signal mask, as a fresh process expects.
pub fn reset_signals() -> io::Result<()> {
    for signal in 1..=KERNEL_SIGNALS {
        default_signal(signal as i32);
    }
    let empty = 0_u64;
    // SAFETY: the set is as long as said, and the kernel only reads it.
    check(unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &empty,
            std::ptr::null_mut::<u64>(),
            KERNEL_SIGNALS / 8,
        )
    })
}

/// Gives one signal its default action, by the kernel's call: the C library keeps two signals for itself. Signals that
/// can't be changed stay as they are.
pub fn default_signal(signal: i32) {
    let action = [0_u64; 4];
    // SAFETY: an all-zero `kernel_sigaction` is SIG_DFL without flags; the kernel only reads it.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            action.as_ptr(),
            std::ptr::null_mut::<u64>(),
            KERNEL_SIGNALS / 8,
        )
    };
}

/// Signals of the kernel, and the bits of its signal set.
const KERNEL_SIGNALS: libc::c_long = 64;

/// Closes every descriptor but 0, 1, 2 and `keep`. Only for a process that is about to exec or to [`exit_now`]:
/// descriptors that values own become invalid, so none of these values may be dropped afterwards.
pub fn close_all_but(keep: impl AsFd) -> io::Result<()> {
    let keep = keep.as_fd().as_raw_fd();
    let ranges = [(3, keep - 1), (keep.max(2) + 1, RawFd::MAX)];
    let mut ranges = ranges.into_iter().filter(|(first, last)| first <= last);
    if ranges.try_for_each(|(first, last)| close_range(first, last)).is_ok() {
        return Ok(());
    }
    for fd in open_descriptors()?.into_iter().filter(|fd| *fd > 2 && *fd != keep) {
        // SAFETY: the caller drops no owner any more (see above); a number that is closed already fails with EBADF.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

/// Makes sure that no descriptor but 0, 1, 2 and `keep` is open.
pub fn check_all_closed_but(keep: impl AsFd) -> io::Result<()> {
    let keep = keep.as_fd().as_raw_fd();
    // The one that the list was read through is closed by now.
    let is_open = |fd: &RawFd| rustix::io::fcntl_getfd(borrow_number(*fd)).is_ok();
    match open_descriptors()?.into_iter().filter(is_open).any(|fd| fd > 2 && fd != keep) {
        true => Err(Errno::BADF.into()),
        false => Ok(()),
    }
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: the caller drops no owner of a descriptor any more, so nothing is closed twice.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })
}

fn open_descriptors() -> io::Result<Vec<RawFd>> {
    let entries = read_directory(private_root::open_own("fd")?)?;
    Ok(entries.iter().filter_map(|entry| entry.name.to_str()?.parse().ok()).collect())
}

/// Puts `fd` at the number `number` (0, 1 or 2), inheritable. What was there is closed.
pub fn install_descriptor(fd: &OwnedFd, number: RawFd) -> io::Result<()> {
    // SAFETY: only standard descriptors are replaced, which no `OwnedFd` of the helper owns.
    let result = unsafe { libc::dup2(fd.as_raw_fd(), number) };
    check(result.min(0).into())
}

/// Takes over an inherited descriptor (0, 1 or 2): moves it to a high number that is closed on exec.
pub fn adopt_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(borrow_number(number), 10)?)
}

/// A standard or otherwise known descriptor of this process, for one call. A number that is not open makes that fail.
pub fn borrow_number(number: RawFd) -> BorrowedFd<'static> {
    // SAFETY: a call on a number that is not open fails with EBADF.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Waits for the end of a child without reaping it, at most this long, and tells whether it came. Blocks.
pub fn wait_for_end(pid: u32, patience: Duration) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return true };
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        match waitid(WaitId::Pid(pid), options) {
            Ok(None) => std::thread::sleep(Duration::from_millis(1)),
            _ => return true,
        }
    }
    false
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Code(i32),
    Signal(i32),
}

/// A child that was waited for.
#[derive(Clone, Copy, Debug)]
pub struct Waited {
    pub ended: Ended,
    /// The largest resident set of the child and of what it waited for, in bytes.
    pub max_rss_bytes: u64,
    /// Processor time of the child and of what it waited for, in microseconds.
    pub cpu_microseconds: u64,
}

/// Waits until the child has ended.
pub fn wait(pid: Pid) -> io::Result<Waited> {
    loop {
        if let Some(waited) = wait_with(pid, 0)? {
            return Ok(waited);
        }
    }
}

/// Asks whether the child has ended, and reaps it if so.
pub fn wait_now(pid: Pid) -> io::Result<Option<Waited>> {
    wait_with(pid, libc::WNOHANG)
}

fn wait_with(pid: Pid, options: libc::c_int) -> io::Result<Option<Waited>> {
    let mut status = 0;
    // SAFETY: wait4 writes to the status and the zeroed rusage, both of which live here.
    let (result, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        let result = libc::wait4(pid.as_raw_nonzero().get(), &mut status, options, &mut usage);
        (result, usage)
    };
    match result {
        -1 => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            error => Err(error),
        },
        0 => Ok(None),
        _ => Ok(ended(status).map(|ended| waited(ended, &usage))),
    }
}

fn ended(status: libc::c_int) -> Option<Ended> {
    if libc::WIFEXITED(status) {
        Some(Ended::Code(libc::WEXITSTATUS(status)))
    } else if libc::WIFSIGNALED(status) {
        Some(Ended::Signal(libc::WTERMSIG(status)))
    } else {
        None
    }
}

fn waited(ended: Ended, usage: &libc::rusage) -> Waited {
    let microseconds = |time: libc::timeval| {
        u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000
            + u64::try_from(time.tv_usec).unwrap_or(0)
    };
    Waited {
        ended,
        max_rss_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
        cpu_microseconds: microseconds(usage.ru_utime) + microseconds(usage.ru_stime),
    }
}

/// Ends this process at once, without destructors or exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Waits until one of the descriptors can be read or has been hung up, and tells which. `timeout_ms` of -1 waits for
/// ever. Interrupted waits tell none.
pub fn wait_readable<const N: usize>(
    fds: [Option<BorrowedFd<'_>>; N],
    timeout_ms: i32,
) -> io::Result<[bool; N]> {
    // A negative descriptor is skipped by the kernel.
    let mut polls = fds.map(|fd| libc::pollfd {
        fd: fd.map_or(-1, |fd| fd.as_raw_fd()),
        events: libc::POLLIN,
        revents: 0,
    });
    // SAFETY: the array has N entries and lives until the call returns.
    let result = unsafe { libc::poll(polls.as_mut_ptr(), N as libc::nfds_t, timeout_ms) };
    match check(result.into()) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(polls.map(|poll| poll.revents != 0)),
    }
}

pub(super) fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_plausible() {
        let mebibyte = 1024 * 1024;
        assert!(max_rss_bytes() > mebibyte);
        assert!(pss_bytes(std::process::id()).unwrap() > mebibyte / 4);
    }

    #[test]
    fn a_threaded_process_does_not_fork() {
        let (send, receive) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || receive.recv());
        let error = fork_single_threaded().err().unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
        drop(send);
        thread.join().unwrap().unwrap_err();
    }
}
