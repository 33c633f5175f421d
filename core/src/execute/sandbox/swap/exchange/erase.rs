//! Removing trees operation by operation.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::{
    fs::FileType,
    io::{Errno, Result},
};

use super::ops::Ops;
use crate::rootfs::handle::{DirectoryStack, list, open_directory};

/// How often a directory that is not empty after all is read again.
const ROUNDS_MAX: usize = 8;

/// A directory that is being emptied.
struct Frame {
    name: Box<[u8]>,
    directories: Vec<Box<[u8]>>,
    rounds: usize,
}

/// Removes `name` of `parent` and all below it: links themselves, mount points never (they are an error). A missing name
/// is fine. Neither stack nor descriptors grow with the depth.
pub(super) fn erase(ops: &Ops, parent: BorrowedFd<'_>, name: &[u8]) -> std::io::Result<()> {
    match remove_plain(ops, parent, name)? {
        Removed::Yes => Ok(()),
        Removed::Directory => erase_directory(ops, parent, name),
    }
}

fn erase_directory(ops: &Ops, parent: BorrowedFd<'_>, name: &[u8]) -> std::io::Result<()> {
    let mut stack = DirectoryStack::new(open_directory(parent, b".")?);
    let mut frames = vec![enter(ops, &mut stack, name)?];
    while let Some(frame) = frames.last_mut() {
        if let Some(next) = frame.directories.pop() {
            frames.push(enter(ops, &mut stack, &next)?);
            continue;
        }
        stack.pop()?;
        match ops.remove_directory(stack.top(), &frame.name) {
            Err(Errno::NOTEMPTY | Errno::EXIST) if frame.rounds < ROUNDS_MAX => {
                let rounds = frame.rounds + 1;
                *frame = Frame { rounds, ..enter(ops, &mut stack, &frame.name)? };
            }
            Ok(()) | Err(Errno::NOENT) => drop(frames.pop()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Goes into a directory and removes all but its directories.
fn enter(ops: &Ops, stack: &mut DirectoryStack, name: &[u8]) -> std::io::Result<Frame> {
    let directory = open_directory(stack.top(), name)?;
    let mut directories = Vec::new();
    for item in list(directory.as_fd())? {
        let is_directory = item.file_type == FileType::Directory;
        if is_directory
            || matches!(remove_plain(ops, directory.as_fd(), &item.name)?, Removed::Directory)
        {
            directories.push(item.name);
        }
    }
    stack.push(name, directory)?;
    Ok(Frame { name: name.into(), directories, rounds: 0 })
}

enum Removed {
    Yes,
    Directory,
}

fn remove_plain(ops: &Ops, at: BorrowedFd<'_>, name: &[u8]) -> Result<Removed> {
    match ops.unlink(at, name) {
        Ok(()) | Err(Errno::NOENT) => Ok(Removed::Yes),
        Err(Errno::ISDIR) => Ok(Removed::Directory),
        Err(error) => Err(error),
    }
}
