//! A Landlock domain that changes nothing about files: for what every domain brings along. The processes in it can't
//! trace those outside, nor read their memory, environment and descriptors by /proc.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use super::{fs::open_directory_handle, process::check};

/// Making block devices and moving between directories: both handled, and both granted below `/`.
const HANDLED: u64 = 1 << 11 | 1 << 13;

/// Signals to processes outside of the domain.
const SCOPE_SIGNAL: u64 = 1 << 1;

/// The first ABI that can grant moving between directories, which all domains forbid otherwise.
const ABI_MIN: i64 = 2;
const ABI_WITH_SCOPES: i64 = 6;

const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: i32 = 1;

/// `struct landlock_ruleset_attr`
#[repr(C)]
struct RulesetAttributes {
    handled_files: u64,
    handled_network: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

/// Puts this process and its future children in a domain, and sets no_new_privs, which that needs without CAP_SYS_ADMIN:
/// set-uid programs do not gain any more. Fails with `EOPNOTSUPP` or `ENOSYS` where the kernel has no Landlock, and with
/// `ENOTSUP` where it has a first version.
pub fn enter_domain() -> io::Result<()> {
    let abi = abi()?;
    if abi < ABI_MIN {
        return Err(io::Error::from_raw_os_error(libc::ENOTSUP));
    }
    let scoped = if abi >= ABI_WITH_SCOPES { SCOPE_SIGNAL } else { 0 };
    let ruleset =
        create(&RulesetAttributes { handled_files: HANDLED, handled_network: 0, scoped })?;
    grant(&ruleset, Path::new("/"))?;
    rustix::thread::set_no_new_privs(true)?;
    // SAFETY: the descriptor lives until the call returns; there are no pointers.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) })
}

fn abi() -> io::Result<i64> {
    // SAFETY: with this flag the kernel takes no attributes.
    let version = unsafe {
        let none = std::ptr::null::<RulesetAttributes>();
        libc::syscall(libc::SYS_landlock_create_ruleset, none, 0_usize, CREATE_RULESET_VERSION)
    };
    check(version).map(|()| version)
}

fn create(attributes: &RulesetAttributes) -> io::Result<OwnedFd> {
    // Older kernels take the longer structure as long as what they don't know is zero.
    let size = size_of::<RulesetAttributes>();
    // SAFETY: the structure is as long as said and is only read.
    let fd = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, attributes, size, 0) };
    check(fd)?;
    // SAFETY: a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn grant(ruleset: &OwnedFd, path: &Path) -> io::Result<()> {
    let directory = open_directory_handle(path)?;
    let rule = PathBeneath { allowed: HANDLED, parent: directory.as_raw_fd() };
    // SAFETY: the structure is the one of this kind of rule and is only read; both descriptors are open.
    let result = unsafe {
        let number = ruleset.as_raw_fd();
        libc::syscall(libc::SYS_landlock_add_rule, number, RULE_PATH_BENEATH, &rule, 0)
    };
    check(result)
}
