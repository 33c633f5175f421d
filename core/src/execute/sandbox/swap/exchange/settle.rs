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
use crate::{
    rootfs::handle::{DirectoryStack, open_directory},
    tree::EntryPath,
};

/// How often a directory that is not empty after all is read again.
const ROUNDS_MAX: usize = 8;

/// A directory and its copy, on their way.
struct Frame {
    name: Box<[u8]>,
    copy_name: Box<[u8]>,
    directories: Vec<Name>,
    /// From the copied directory on.
    path: EntryPath,
    rounds: usize,
}

/// A directory of a copy into which something was or will be moved, with the metadata that it is to have at the end.
pub(super) type Touched = (EntryPath, Attributes);

struct Settler<'s> {
    ops: &'s Ops,
    from: DirectoryStack,
    to: DirectoryStack,
    touched: Vec<EntryPath>,
    /// Is told of a directory of the copy before the first move into it.
    touch: &'s mut dyn FnMut(Touched) -> std::io::Result<()>,
}

/// Removes the directory `from.1` of `from.0`, whose complete copy is `to.1` of `to.0`. What has changed since, and what
/// was not copied, is moved into the copy, whose directories' times move then: `touch` is told before, but of none that
/// is in `touched`. A missing original is fine.
pub(super) fn settle(
    ops: &Ops,
    from: (BorrowedFd<'_>, &[u8]),
    to: (BorrowedFd<'_>, &[u8]),
    touched: Vec<EntryPath>,
    touch: &mut dyn FnMut(Touched) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let (from_stack, to_stack) = (open_directory(from.0, b".")?, open_directory(to.0, b".")?);
    let (from_stack, to_stack) = (DirectoryStack::new(from_stack), DirectoryStack::new(to_stack));
    if stat_name(from.0, from.1)?.is_none() {
        return Ok(());
    }
    Settler { ops, from: from_stack, to: to_stack, touched, touch }.run(from.1, to.1)
}

impl Settler<'_> {
    fn run(&mut self, name: &[u8], copy_name: &[u8]) -> std::io::Result<()> {
        let mut frames = vec![self.enter(name, copy_name, EntryPath::root())?];
        while let Some(frame) = frames.last_mut() {
            if let Some(next) = frame.directories.pop() {
                let path = frame.path.child(&next);
                frames.push(self.enter(&next, &next, path)?);
                continue;
            }
            self.from.pop()?;
            self.to.pop()?;
            match self.ops.remove_directory(self.from.top(), &frame.name) {
                Err(Errno::NOTEMPTY | Errno::EXIST) if frame.rounds < ROUNDS_MAX => {
                    let (rounds, path) = (frame.rounds + 1, frame.path.clone());
                    *frame = Frame { rounds, ..self.enter(&frame.name, &frame.copy_name, path)? };
                }
                Err(error) if !is_absent(error) => return Err(error.into()),
                _ => drop(frames.pop()),
            }
        }
        Ok(())
    }

    /// Goes into both and settles all but what is a directory in both.
    fn enter(&mut self, name: &[u8], copy_name: &[u8], path: EntryPath) -> std::io::Result<Frame> {
        let from = open_directory(self.from.top(), name)?;
        let to = open_directory(self.to.top(), copy_name)?;
        let mut directories = Vec::new();
        for child in names_but(&from, &Names::new())? {
            if self.entry(from.as_fd(), to.as_fd(), &child, &path)? == Settled::Descend {
                directories.push(child);
            }
        }
        self.from.push(name, from)?;
        self.to.push(copy_name, to)?;
        Ok(Frame { name: name.into(), copy_name: copy_name.into(), directories, path, rounds: 0 })
    }

    /// To be called before something is moved into a directory of the copy.
    fn will_touch(&mut self, to: BorrowedFd<'_>, path: &EntryPath) -> std::io::Result<()> {
        if self.touched.contains(path) {
            return Ok(());
        }
        (self.touch)((path.clone(), Attributes::of(to)?))?;
        self.touched.push(path.clone());
        Ok(())
    }

    fn entry(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &Name,
        path: &EntryPath,
    ) -> std::io::Result<Settled> {
        let Some(stat) = stat_name(from, name)? else { return Ok(Settled::Done) };
        let copy = stat_name(to, name)?;
        let is_directory = |stat: &Stat| kind_of(stat) == FileType::Directory;
        match &copy {
            Some(copy) if is_directory(&stat) && is_directory(copy) => return Ok(Settled::Descend),
            Some(copy) if !is_directory(&stat) && is_same(&stat, copy) => {
                self.ops.unlink(from, name)?;
                return Ok(Settled::Done);
            }
            _ => self.will_touch(to, path)?,
        }
        if copy.is_some() {
            erase(self.ops, to, name)?;
        }
        self.ops.rename(from, name, to, name)?;
        Ok(Settled::Done)
    }
}

#[derive(PartialEq, Eq)]
enum Settled {
    Done,
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
