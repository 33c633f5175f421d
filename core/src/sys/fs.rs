//! Files by directory handle. Names given to these functions are single components unless said otherwise.

use std::{
    ffi::{OsStr, OsString},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        self, AtFlags, CWD, FileType, Gid, Mode, OFlags, RawDir, RenameFlags, Timespec, Timestamps,
        UTIME_OMIT, Uid,
    },
    io::{Errno, Result},
};

use super::private_root;

/// How many bytes of directory entries one system call may return.
const DIRECTORY_BUFFER_BYTES: usize = 64 * 1024;

/// Bytes as the name that the calls here take.
pub fn os(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

/// Opens a directory for use as a root or as the base of other calls (`O_PATH`). The path is the caller's own.
pub fn open_directory_handle(path: &Path) -> Result<OwnedFd> {
    fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Opens a directory of `directory` for reading, never through a symbolic link.
pub fn open_subdirectory(directory: impl AsFd, name: &OsStr) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(directory, name, flags, Mode::empty())
}

/// The magic link of a descriptor: a path that leads to exactly the file that the descriptor holds. In a private root it
/// is relative to the working directory there.
pub fn descriptor_path(fd: BorrowedFd<'_>) -> PathBuf {
    let number = fd.as_raw_fd();
    match private_root::is_entered() {
        true => PathBuf::from(number.to_string()),
        false => PathBuf::from(format!("/proc/self/fd/{number}")),
    }
}

/// Opens the file behind an `O_PATH` descriptor anew with other flags. Needs /proc.
pub fn reopen(fd: impl AsFd, flags: OFlags) -> Result<OwnedFd> {
    fs::openat(CWD, descriptor_path(fd.as_fd()), flags.difference(OFlags::NOFOLLOW), Mode::empty())
}

/// One name of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    pub name: OsString,
    /// `Unknown` where the file system does not say.
    pub kind: FileType,
    pub inode: u64,
}

/// All names of a directory but `.` and `..`, in the file system's order. The descriptor must be open for reading; its
/// position is not used (the directory is opened anew).
pub fn read_directory(directory: impl AsFd) -> Result<Vec<DirectoryEntry>> {
    let mut entries = Vec::new();
    for_each_entry(directory, |entry| entries.push(entry))?;
    Ok(entries)
}

/// As [`read_directory`], one entry at a time.
pub fn for_each_entry(directory: impl AsFd, mut each: impl FnMut(DirectoryEntry)) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = fs::openat(directory, c".", flags, Mode::empty())?;
    let mut buffer = vec![MaybeUninit::uninit(); DIRECTORY_BUFFER_BYTES];
    let mut entries = RawDir::new(fd, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            each(DirectoryEntry {
                name: OsStr::from_bytes(name).to_owned(),
                kind: entry.file_type(),
                inode: entry.ino(),
            });
        }
    }
    Ok(())
}

/// Renames and fails with `EEXIST` where the new name is taken. File systems without the flag get a checked rename,
/// which is not atomic.
pub fn rename_noreplace(
    old_directory: impl AsFd,
    old: &OsStr,
    new_directory: impl AsFd,
    new: &OsStr,
) -> Result<()> {
    let (from, to) = (old_directory.as_fd(), new_directory.as_fd());
    match fs::renameat_with(from, old, to, new, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) => match fs::statat(to, new, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => fs::renameat(from, old, to, new),
            Err(error) => Err(error),
        },
        result => result,
    }
}

/// Exchanges two names atomically.
pub fn rename_exchange(
    a_directory: impl AsFd,
    a: &OsStr,
    b_directory: impl AsFd,
    b: &OsStr,
) -> Result<()> {
    fs::renameat_with(a_directory, a, b_directory, b, RenameFlags::EXCHANGE)
}

/// Makes a device node, FIFO, socket or empty file. `mode` is set exactly, whatever the umask is.
pub fn make_node_at(
    directory: impl AsFd,
    name: &OsStr,
    kind: FileType,
    mode: u32,
    device: (u32, u32),
) -> Result<()> {
    let directory = directory.as_fd();
    let mode = Mode::from_raw_mode(mode);
    fs::mknodat(directory, name, kind, mode, fs::makedev(device.0, device.1))?;
    fs::chmodat(directory, name, mode, AtFlags::empty())
}

/// Sets the modification time (nanoseconds kept, access time left alone) of a name; of a symbolic link itself.
pub fn set_mtime_at(
    directory: impl AsFd,
    name: &OsStr,
    seconds: i64,
    nanoseconds: u32,
) -> Result<()> {
    let times = mtime_only(seconds, nanoseconds);
    fs::utimensat(directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// Sets the modification time of the directory that a descriptor holds (`O_PATH` will do).
pub fn set_directory_mtime(directory: impl AsFd, seconds: i64, nanoseconds: u32) -> Result<()> {
    fs::utimensat(directory, c".", &mtime_only(seconds, nanoseconds), AtFlags::empty())
}

fn mtime_only(seconds: i64, nanoseconds: u32) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() },
    }
}

/// Sets owner and group of a name; of a symbolic link itself. Clears set-uid and set-gid bits and file capabilities
/// of regular files, as the kernel does: set mode and capability afterwards.
pub fn set_owner_at(directory: impl AsFd, name: &OsStr, uid: u32, gid: u32) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    fs::chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

/// Sets all twelve permission bits of a name that is no symbolic link.
pub fn set_mode_at(directory: impl AsFd, name: &OsStr, mode: u32) -> Result<()> {
    fs::chmodat(directory, name, Mode::from_raw_mode(mode), AtFlags::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> (tempfile::TempDir, OwnedFd) {
        let directory = tempfile::tempdir().unwrap();
        let fd = open_directory_handle(directory.path()).unwrap();
        (directory, fd)
    }

    #[test]
    fn rename_noreplace_keeps_what_is_there() {
        let (directory, fd) = scratch();
        std::fs::write(directory.path().join("a"), "a").unwrap();
        std::fs::write(directory.path().join("b"), "b").unwrap();
        let result = rename_noreplace(&fd, "a".as_ref(), &fd, "b".as_ref());
        assert_eq!(result, Err(Errno::EXIST));
        rename_noreplace(&fd, "a".as_ref(), &fd, "c".as_ref()).unwrap();
        rename_exchange(&fd, "b".as_ref(), &fd, "c".as_ref()).unwrap();
        assert_eq!(std::fs::read(directory.path().join("b")).unwrap(), b"a");
    }

    #[test]
    fn all_names_are_read_once() {
        let (directory, fd) = scratch();
        for i in 0..5000 {
            std::fs::write(directory.path().join(format!("a-rather-long-name-{i}")), "").unwrap();
        }
        let mut names: Vec<_> = read_directory(&fd).unwrap().into_iter().map(|e| e.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 5000);
    }

    #[test]
    fn a_links_own_time_is_set_with_nanoseconds() {
        let (directory, fd) = scratch();
        std::os::unix::fs::symlink("nowhere", directory.path().join("l")).unwrap();
        set_mtime_at(&fd, "l".as_ref(), 12345, 678).unwrap();
        let stat = fs::statat(&fd, "l", AtFlags::SYMLINK_NOFOLLOW).unwrap();
        assert_eq!((stat.st_mtime, stat.st_mtime_nsec), (12345, 678));
    }
}
