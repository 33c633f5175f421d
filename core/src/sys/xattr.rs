//! Extended attributes by descriptor or by directory handle and name. Needs /proc: the kernel has no such calls before
//! 6.13, so the magic links of descriptors are used.

use std::{
    ffi::OsStr,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{self, XattrFlags},
    io::{Errno, Result},
};

use super::fs::descriptor_path;

/// The file capability of a program (`struct vfs_cap_data`).
pub const CAPABILITY: &str = "security.capability";

/// Marks an opaque directory of an overlay's upper directory, with real root.
pub const OVERLAY_OPAQUE: &str = "trusted.overlay.opaque";

/// The same in a user namespace (`userxattr`).
pub const OVERLAY_OPAQUE_USER: &str = "user.overlay.opaque";

/// The value of an attribute of `name` in `directory` (of a symbolic link itself); `None` where there is none or the
/// file system has no attributes.
pub fn get_at(directory: impl AsFd, name: &OsStr, attribute: &str) -> Result<Option<Vec<u8>>> {
    get_path(&member_path(directory.as_fd(), name), attribute)
}

/// Sets an attribute of `name` in `directory` (of a symbolic link itself).
pub fn set_at(directory: impl AsFd, name: &OsStr, attribute: &str, value: &[u8]) -> Result<()> {
    fs::lsetxattr(member_path(directory.as_fd(), name), attribute, value, XattrFlags::empty())
}

/// Removes an attribute of `name` in `directory`; none is no error.
pub fn remove_at(directory: impl AsFd, name: &OsStr, attribute: &str) -> Result<()> {
    ignore_missing(fs::lremovexattr(member_path(directory.as_fd(), name), attribute))
}

/// The names of all attributes of `name` in `directory`.
pub fn list_at(directory: impl AsFd, name: &OsStr) -> Result<Vec<Vec<u8>>> {
    list_path(&member_path(directory.as_fd(), name))
}

/// The value of an attribute of what a descriptor holds (`O_PATH` will do).
pub fn get(fd: impl AsFd, attribute: &str) -> Result<Option<Vec<u8>>> {
    // A trailing magic link is the descriptor's own file, also where that is a symbolic link.
    let path = descriptor_path(fd.as_fd());
    read_grown(|buffer| fs::getxattr(&path, attribute, buffer)).map_or_else(none_if_missing, Ok)
}

/// Sets an attribute of what a descriptor holds (`O_PATH` will do).
pub fn set(fd: impl AsFd, attribute: &str, value: &[u8]) -> Result<()> {
    fs::setxattr(descriptor_path(fd.as_fd()), attribute, value, XattrFlags::empty())
}

fn member_path(directory: BorrowedFd<'_>, name: &OsStr) -> PathBuf {
    descriptor_path(directory).join(name)
}

fn get_path(path: &Path, attribute: &str) -> Result<Option<Vec<u8>>> {
    read_grown(|buffer| fs::lgetxattr(path, attribute, buffer)).map_or_else(none_if_missing, Ok)
}

fn list_path(path: &Path) -> Result<Vec<Vec<u8>>> {
    let names =
        read_grown(|buffer| fs::llistxattr(path, buffer)).map_or_else(none_if_missing, Ok)?;
    let names = names.unwrap_or_default();
    Ok(names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

fn none_if_missing(error: Errno) -> Result<Option<Vec<u8>>> {
    match error {
        Errno::NODATA | Errno::OPNOTSUPP => Ok(None),
        error => Err(error),
    }
}

fn ignore_missing(result: Result<()>) -> Result<()> {
    match result {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        result => result,
    }
}

/// Calls with ever larger buffers up to the kernel's limit of 64 KiB.
fn read_grown(mut call: impl FnMut(&mut [u8]) -> Result<usize>) -> Result<Option<Vec<u8>>> {
    for size in [256, 4096, 65536] {
        let mut buffer = vec![0; size];
        match call(&mut buffer) {
            Err(Errno::RANGE) => continue,
            result => {
                buffer.truncate(result?);
                return Ok(Some(buffer));
            }
        }
    }
    Err(Errno::TOOBIG)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::sys::{
        fs::open_directory_handle,
        resolve::{LastLink, walk_in_root},
    };

    #[test]
    fn attributes_of_files_links_and_descriptors() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("f"), "").unwrap();
        symlink("f", scratch.path().join("l")).unwrap();
        let directory = open_directory_handle(scratch.path()).unwrap();
        let (file, link) = (OsStr::new("f"), OsStr::new("l"));
        assert_eq!(get_at(&directory, file, "user.a").unwrap(), None);
        set_at(&directory, file, "user.a", &[7; 3000]).unwrap();
        assert_eq!(get_at(&directory, file, "user.a").unwrap().unwrap().len(), 3000);
        assert_eq!(list_at(&directory, file).unwrap(), [b"user.a"]);
        assert_eq!(get_at(&directory, link, "user.a").unwrap(), None);
        let fd = walk_in_root(&directory, Path::new("l"), LastLink::Follow).unwrap().found;
        assert_eq!(get(&fd, "user.a").unwrap().unwrap().len(), 3000);
        remove_at(&directory, file, "user.a").unwrap();
        remove_at(&directory, file, "user.a").unwrap();
        assert_eq!(get(&fd, "user.a").unwrap(), None);
        set(&fd, "user.b", b"x").unwrap();
        assert_eq!(get_at(&directory, file, "user.b").unwrap().unwrap(), b"x");
    }
}
