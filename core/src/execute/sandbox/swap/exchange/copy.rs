//! Copies of trees with everything that can be said of a file: owner, mode, times, attributes, ACLs, capabilities, hard
//! links, holes.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    vec,
};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, SeekFrom, Stat, copy_file_range, fstat, ftruncate, linkat,
        mknodat, openat, readlinkat, seek, symlinkat,
    },
    io::{Errno, Result, pread, pwrite},
};

use super::{
    attributes::Attributes,
    directory::{kind_of, names_but, stat_name},
    ops::Ops,
    survey::is_layered,
    text::{Name, Names},
};
use crate::rootfs::handle::{DirectoryStack, open_directory, open_file};

/// How much is copied by one call.
const CHUNK_BYTES: u64 = 64 << 20;
const BUFFER_BYTES: u64 = 128 << 10;

/// What a copy held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Copied {
    pub entries: u64,
    /// Of contents, without holes.
    pub bytes: u64,
}

/// A copy of one directory's contents into another directory.
pub(super) struct Copier<'c> {
    ops: &'c Ops,
    from: DirectoryStack,
    to: DirectoryStack,
    frames: Vec<Frame>,
    /// The names that lead to where the copy is, from its root on.
    names: Vec<Name>,
    /// Where the first name of each inode with several went.
    links: HashMap<(u64, u64), Vec<Name>>,
    /// Where given (see [`is_layered`]), directories that can be renamed are left out, and sockets.
    layers_only: Option<BorrowedFd<'c>>,
    copied: Copied,
}

struct Frame {
    names: vec::IntoIter<Name>,
    /// `None` for the topmost, which belongs to the caller.
    attributes: Option<Attributes>,
}

impl<'c> Copier<'c> {
    pub fn new(ops: &'c Ops, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<Self> {
        Ok(Copier {
            ops,
            from: DirectoryStack::new(open_directory(from, b".")?),
            to: DirectoryStack::new(open_directory(to, b".")?),
            frames: Vec::new(),
            names: Vec::new(),
            links: HashMap::new(),
            layers_only: None,
            copied: Copied::default(),
        })
    }

    /// Leaves out what can be renamed later.
    pub fn layers_only(mut self, probe: BorrowedFd<'c>) -> Self {
        self.layers_only = Some(probe);
        self
    }

    /// Copies everything but the names in `kept`. None of the names may be there already.
    pub fn run(mut self, kept: &Names) -> io::Result<Copied> {
        let names = names_but(self.from.top(), kept)?.into_iter();
        self.frames.push(Frame { names, attributes: None });
        while let Some(frame) = self.frames.last_mut() {
            match frame.names.next() {
                Some(name) => self.entry(&name)?,
                None => self.leave()?,
            }
        }
        Ok(self.copied)
    }

    fn entry(&mut self, name: &Name) -> io::Result<()> {
        // What is gone by now needs no copy.
        let Some(stat) = stat_name(self.from.top(), name)? else { return Ok(()) };
        let kind = kind_of(&stat);
        if self.is_left_out(name, kind)? {
            return Ok(());
        }
        self.copied.entries += 1;
        match kind {
            FileType::Directory => self.enter(name),
            _ if stat.st_nlink > 1 && self.link(name, &stat)? => Ok(()),
            FileType::RegularFile => self.file(name),
            FileType::Symlink => Ok(self.symlink(name)?),
            _ => Ok(self.node(name, kind, &stat)?),
        }
    }

    fn is_left_out(&self, name: &Name, kind: FileType) -> Result<bool> {
        match (self.layers_only, kind) {
            (Some(_), FileType::Socket) => Ok(true),
            (Some(probe), FileType::Directory) => Ok(!is_layered(self.from.top(), name, probe)?),
            _ => Ok(false),
        }
    }

    fn enter(&mut self, name: &Name) -> io::Result<()> {
        let from = open_directory(self.from.top(), name)?;
        self.ops.make_directory(self.to.top(), name)?;
        let to = open_directory(self.to.top(), name)?;
        let attributes = Some(Attributes::of(from.as_fd())?);
        let names = names_but(&from, &Names::new())?.into_iter();
        self.frames.push(Frame { names, attributes });
        self.from.push(name, from)?;
        self.to.push(name, to)?;
        self.names.push(name.clone());
        Ok(())
    }

    fn leave(&mut self) -> io::Result<()> {
        let frame = self.frames.pop();
        if let Some(attributes) = frame.and_then(|frame| frame.attributes) {
            attributes.apply(self.ops, self.to.top())?;
            self.from.pop()?;
            self.to.pop()?;
            self.names.pop();
        }
        Ok(())
    }

    /// Whether the name became another one of a file that was copied before.
    fn link(&mut self, name: &Name, stat: &Stat) -> Result<bool> {
        let (mut here, inode) = (self.names.clone(), (stat.st_dev, stat.st_ino));
        here.push(name.clone());
        let Some(first) = self.links.get(&inode) else {
            self.links.insert(inode, here);
            return Ok(false);
        };
        let Some((last, parents)) = first.split_last() else { return Ok(false) };
        let directory = self.ancestor(parents)?;
        let link = || linkat(&directory, &**last, self.to.top(), &**name, AtFlags::empty());
        self.ops.run(link).map(|()| true)
    }

    /// A directory of the copy, from its root on.
    fn ancestor(&self, names: &[Name]) -> Result<OwnedFd> {
        let shared = self.names.iter().zip(names).take_while(|(a, b)| a == b).count();
        let mut at = open_directory(self.to.top(), b".")?;
        for _ in shared..self.names.len() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            at = openat(&at, "..", flags, Mode::empty())?;
        }
        for name in &names[shared..] {
            at = open_directory(&at, name)?;
        }
        Ok(at)
    }

    fn file(&mut self, name: &Name) -> io::Result<()> {
        let from = open_file(self.from.top(), name)?;
        let stat = fstat(&from)?;
        if kind_of(&stat) != FileType::RegularFile {
            return Err(Errno::AGAIN.into());
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let create = || openat(self.to.top(), &**name, flags, Mode::RUSR | Mode::WUSR);
        let to = self.ops.run(create)?;
        let attributes = Attributes::of(from.as_fd())?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.copied.bytes += copy_contents(self.ops, from.as_fd(), to.as_fd(), size)?;
        Ok(attributes.apply(self.ops, to.as_fd())?)
    }

    fn symlink(&mut self, name: &Name) -> Result<()> {
        let (from, to) = (self.from.top(), self.to.top());
        let target = readlinkat(from, &**name, Vec::new())?;
        self.ops.run(|| symlinkat(&target, to, &**name))?;
        Attributes::of_name(from, name)?.apply_to_name(self.ops, to, name, true)
    }

    fn node(&mut self, name: &Name, kind: FileType, stat: &Stat) -> Result<()> {
        let (from, to) = (self.from.top(), self.to.top());
        let mode = Mode::RUSR | Mode::WUSR;
        self.ops.run(|| mknodat(to, &**name, kind, mode, stat.st_rdev))?;
        Attributes::of_name(from, name)?.apply_to_name(self.ops, to, name, false)
    }
}

/// Copies the data of a file and leaves its holes. Returns how much there was.
fn copy_contents(ops: &Ops, from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: u64) -> Result<u64> {
    let (mut at, mut copied) = (0, 0);
    while at < size {
        let Some((start, end)) = next_data(from, at, size)? else { break };
        copied += copy_range(ops, from, to, start, end)?;
        at = end;
    }
    if size > 0 {
        ops.run(|| ftruncate(to, size))?;
    }
    Ok(copied)
}

/// The next stretch that is no hole; the rest of the file where the file system can't tell.
fn next_data(file: BorrowedFd<'_>, at: u64, size: u64) -> Result<Option<(u64, u64)>> {
    let start = match seek(file, SeekFrom::Data(at)) {
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, size))),
        start => start?,
    };
    let end = seek(file, SeekFrom::Hole(start)).unwrap_or(size).min(size);
    Ok((start < end).then_some((start, end)))
}

fn copy_range(
    ops: &Ops,
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    start: u64,
    end: u64,
) -> Result<u64> {
    let mut at = start;
    while at < end {
        let length = (end - at).min(CHUNK_BYTES);
        let copied = ops.run(|| copy_chunk(from, to, at, length))?;
        if copied == 0 {
            break;
        }
        at += copied;
    }
    Ok(at - start)
}

fn copy_chunk(from: BorrowedFd<'_>, to: BorrowedFd<'_>, at: u64, length: u64) -> Result<u64> {
    let (mut source, mut target) = (at, at);
    // Beyond the address space of no machine, see CHUNK_BYTES.
    match copy_file_range(from, Some(&mut source), to, Some(&mut target), length as usize) {
        Ok(copied) if copied > 0 => Ok(copied as u64),
        // Some file systems say "nothing" for what they can't copy.
        Ok(_) | Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
            read_and_write(from, to, at, length.min(BUFFER_BYTES))
        }
        Err(error) => Err(error),
    }
}

fn read_and_write(from: BorrowedFd<'_>, to: BorrowedFd<'_>, at: u64, length: u64) -> Result<u64> {
    let mut buffer = vec![0; length as usize];
    let read = pread(from, &mut buffer, at)?;
    let mut written = 0;
    while written < read {
        match pwrite(to, &buffer[written..read], at + written as u64)? {
            0 => return Err(Errno::IO),
            more => written += more,
        }
    }
    Ok(read as u64)
}
