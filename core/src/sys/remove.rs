//! Removing trees that a hostile step may have made: any depth, any names, never through a link.

use std::{
    ffi::{OsStr, OsString},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{self, AtFlags, FileType, Mode},
    io::{Errno, Result},
};

use super::fs::{open_directory_handle, open_subdirectory, read_directory};

/// Permission bits that a directory needs to be emptied by its owner.
const OWNER_BITS: u32 = 0o700;

/// Removes `path` and everything below it. The path's parent is the caller's own; missing is no error.
pub fn remove_tree(path: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL);
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    match open_directory_handle(parent) {
        Err(Errno::NOENT) => Ok(()),
        parent => remove_tree_at(parent?, name),
    }
}

/// Removes `name` of `directory` and everything below it by handle: links are removed, not followed. Missing is no
/// error. Descriptors and stack do not grow with the depth. A mount point below it fails with `EBUSY`.
pub fn remove_tree_at(directory: impl AsFd, name: &OsStr) -> Result<()> {
    let directory = directory.as_fd();
    match unlink(directory, name, FileType::Unknown)? {
        Unlinked::Done => Ok(()),
        Unlinked::Filled => {
            let top = open_for_emptying(directory, name)?;
            Removal::start(top)?.run()?;
            fs::unlinkat(directory, name, AtFlags::REMOVEDIR)
        }
    }
}

/// Empties a directory and keeps it.
pub fn empty_directory(directory: OwnedFd) -> Result<()> {
    Removal::start(directory)?.run()
}

struct Level {
    /// Filled directories that are still to be removed.
    filled: Vec<OsString>,
    device: u64,
    inode: u64,
}

struct Removal {
    current: OwnedFd,
    levels: Vec<Level>,
}

impl Removal {
    fn start(top: OwnedFd) -> Result<Self> {
        let level = clear(&top)?;
        Ok(Removal { current: top, levels: vec![level] })
    }

    fn run(mut self) -> Result<()> {
        loop {
            let level = self.levels.last_mut().ok_or(Errno::INVAL)?;
            if let Some(name) = level.filled.last() {
                let below = open_for_emptying(self.current.as_fd(), name)?;
                self.levels.push(clear(&below)?);
                self.current = below;
            } else if self.levels.len() == 1 {
                return Ok(());
            } else {
                self.up()?;
            }
        }
    }

    /// Back to the parent, which must still be the directory that was left, and removes what is empty now.
    fn up(&mut self) -> Result<()> {
        let parent = open_subdirectory(&self.current, OsStr::new(".."))?;
        self.levels.pop();
        let level = self.levels.last_mut().ok_or(Errno::INVAL)?;
        let stat = fs::fstat(&parent)?;
        if (stat.st_dev, stat.st_ino) != (level.device, level.inode) {
            return Err(Errno::XDEV);
        }
        if let Some(name) = level.filled.pop() {
            fs::unlinkat(&parent, &name, AtFlags::REMOVEDIR)?;
        }
        self.current = parent;
        Ok(())
    }
}

/// Removes everything from a directory but the directories that are not empty, which are returned.
fn clear(directory: &OwnedFd) -> Result<Level> {
    let stat = fs::fstat(directory)?;
    let mut filled = Vec::new();
    for entry in read_directory(directory)? {
        if let Unlinked::Filled = unlink(directory.as_fd(), &entry.name, entry.kind)? {
            filled.push(entry.name);
        }
    }
    Ok(Level { filled, device: stat.st_dev, inode: stat.st_ino })
}

enum Unlinked {
    Done,
    Filled,
}

fn unlink(directory: impl AsFd, name: &OsStr, kind: FileType) -> Result<Unlinked> {
    let directory = directory.as_fd();
    if kind != FileType::Directory {
        match fs::unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(Unlinked::Done),
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(error),
        }
    }
    match fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(Unlinked::Done),
        // ENOTEMPTY and EEXIST both mean "not empty"; EACCES may be the directory's own bits.
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(Unlinked::Filled),
        Err(error) => Err(error),
    }
}

/// Opens a directory and gives its owner the bits to empty it, if they lack.
fn open_for_emptying(parent: impl AsFd, name: &OsStr) -> Result<OwnedFd> {
    let parent = parent.as_fd();
    let fd = match open_subdirectory(parent, name) {
        Err(Errno::ACCESS) => {
            fs::chmodat(parent, name, Mode::from_raw_mode(OWNER_BITS), AtFlags::empty())?;
            open_subdirectory(parent, name)?
        }
        fd => fd?,
    };
    let mode = fs::fstat(&fd)?.st_mode & 0o7777;
    if mode & OWNER_BITS != OWNER_BITS {
        fs::fchmod(&fd, Mode::from_raw_mode(mode | OWNER_BITS))?;
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn links_are_removed_and_not_followed() {
        let scratch = tempfile::tempdir().unwrap();
        let outside = scratch.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("canary"), "").unwrap();
        let tree = scratch.path().join("tree");
        std::fs::create_dir_all(tree.join("a/b/c")).unwrap();
        std::fs::create_dir_all(tree.join("a/d/e")).unwrap();
        std::fs::write(tree.join("a/b/file"), "").unwrap();
        symlink(&outside, tree.join("a/b/link")).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(outside.join("canary").exists());
        remove_tree(&tree).unwrap();
    }

    #[test]
    fn a_tree_deeper_than_any_path_or_descriptor_limit_goes() {
        let scratch = tempfile::tempdir().unwrap();
        let top = open_directory_handle(scratch.path()).unwrap();
        let mut current = top;
        for _ in 0..2500 {
            fs::mkdirat(&current, "d", Mode::RWXU).unwrap();
            current = open_subdirectory(&current, "d".as_ref()).unwrap();
        }
        let top = open_directory_handle(scratch.path()).unwrap();
        remove_tree_at(&top, "d".as_ref()).unwrap();
        assert!(read_directory(&top).unwrap().is_empty());
    }

    #[test]
    fn a_directory_without_bits_goes_too() {
        let scratch = tempfile::tempdir().unwrap();
        let shut = scratch.path().join("shut");
        std::fs::create_dir_all(shut.join("below")).unwrap();
        std::fs::write(shut.join("below/file"), "").unwrap();
        std::fs::set_permissions(&shut, PermissionsExt::from_mode(0o000)).unwrap();
        remove_tree(&shut).unwrap();
        assert!(!shut.exists());
    }
}
