//! The end of a directory that was copied: what equals its copy is removed, what does not is moved into the copy.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::{
    fs::{FileType, Stat},
    io::Errno,
};

use super::{
    attributes::Attributes,
    directory::{is_absent, kind_of, names_but, stat_name},
    erase::erase,
    ops::Ops,
    text::{Name, Names},
};
use crate::rootfs::handle::{DirectoryStack, open_directory};

/// How often a directory that is not empty after all is read again.
const ROUNDS_MAX: usize = 8;

/// A directory and its copy, on their way.
struct Frame {
    name: Box<[u8]>,
    copy_name: Box<[u8]>,
    directories: Vec<Name>,
    /// The copy's metadata, where something was moved into it.
    attributes: Option<Attributes>,
    rounds: usize,
}

struct Settler<'s> {
    ops: &'s Ops,
    from: DirectoryStack,
    to: DirectoryStack,
}

/// Removes the directory `from.1` of `from.0`, whose complete copy is `to.1` of `to.0`. What has changed since, and what
/// was not copied, is moved into the copy. A missing original is fine.
pub(super) fn settle(
    ops: &Ops,
    from: (BorrowedFd<'_>, &[u8]),
    to: (BorrowedFd<'_>, &[u8]),
) -> std::io::Result<()> {
    let (from_stack, to_stack) = (open_directory(from.0, b".")?, open_directory(to.0, b".")?);
    let (from_stack, to_stack) = (DirectoryStack::new(from_stack), DirectoryStack::new(to_stack));
    if stat_name(from.0, from.1)?.is_none() {
        return Ok(());
    }
    Settler { ops, from: from_stack, to: to_stack }.run(from.1, to.1)
}

impl Settler<'_> {
    fn run(&mut self, name: &[u8], copy_name: &[u8]) -> std::io::Result<()> {
        let mut frames = vec![self.enter(name, copy_name)?];
        while let Some(frame) = frames.last_mut() {
            if let Some(next) = frame.directories.pop() {
                frames.push(self.enter(&next, &next)?);
                continue;
            }
            if let Some(attributes) = frame.attributes.take() {
                attributes.apply(self.ops, self.to.top())?;
            }
            self.from.pop()?;
            self.to.pop()?;
            match self.ops.remove_directory(self.from.top(), &frame.name) {
                Err(Errno::NOTEMPTY | Errno::EXIST) if frame.rounds < ROUNDS_MAX => {
                    let rounds = frame.rounds + 1;
                    *frame = Frame { rounds, ..self.enter(&frame.name, &frame.copy_name)? };
                }
                Err(error) if !is_absent(error) => return Err(error.into()),
                _ => drop(frames.pop()),
            }
        }
        Ok(())
    }

    /// Goes into both and settles all but what is a directory in both.
    fn enter(&mut self, name: &[u8], copy_name: &[u8]) -> std::io::Result<Frame> {
        let from = open_directory(self.from.top(), name)?;
        let to = open_directory(self.to.top(), copy_name)?;
        let attributes = Attributes::of(to.as_fd())?;
        let (mut directories, mut moved) = (Vec::new(), false);
        for child in names_but(&from, &Names::new())? {
            match self.entry(from.as_fd(), to.as_fd(), &child)? {
                Settled::Descend => directories.push(child),
                Settled::Moved => moved = true,
                Settled::Removed => {}
            }
        }
        self.from.push(name, from)?;
        self.to.push(copy_name, to)?;
        let attributes = moved.then_some(attributes);
        let (name, copy_name) = (name.into(), copy_name.into());
        Ok(Frame { name, copy_name, directories, attributes, rounds: 0 })
    }

    fn entry(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &Name,
    ) -> std::io::Result<Settled> {
        let Some(stat) = stat_name(from, name)? else { return Ok(Settled::Removed) };
        let copy = stat_name(to, name)?;
        let is_directory = |stat: &Stat| kind_of(stat) == FileType::Directory;
        match &copy {
            Some(copy) if is_directory(&stat) && is_directory(copy) => return Ok(Settled::Descend),
            Some(copy) if !is_directory(&stat) && is_same(&stat, copy) => {
                self.ops.unlink(from, name)?;
                return Ok(Settled::Removed);
            }
            Some(_) => erase(self.ops, to, name)?,
            None => {}
        }
        self.ops.rename(from, name, to, name)?;
        Ok(Settled::Moved)
    }
}

enum Settled {
    Removed,
    Moved,
    /// A directory in both.
    Descend,
}

/// Whether nothing has changed since the copy, which has the original's times.
fn is_same(a: &Stat, b: &Stat) -> bool {
    let values = |stat: &Stat| {
        let owner = (stat.st_uid, stat.st_gid);
        (stat.st_mode, owner, stat.st_size, stat.st_rdev, stat.st_mtime, stat.st_mtime_nsec)
    };
    values(a) == values(b)
}
