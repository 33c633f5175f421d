//! Independent copies of trees and of files.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, Read, Seek},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, SeekFrom, Stat, fstat, ftruncate, ioctl_ficlone, linkat,
        mkdirat, mknodat, openat, readlinkat, seek, symlinkat,
    },
    io::Errno,
};

use crate::tree::{EntryPath, Metadata};

use super::{
    handle::{DirectoryStack, open_file, xattr},
    metadata::{CAPABILITY, Fresh, metadata_of, neutral_root, reopen, set_directory},
    walk::{Listed, Visited, Visitor, WalkError, walk},
};

/// Copies a plain tree that nothing writes to into an empty directory, with at most `threads` threads: owner, mode, mtime,
/// file capability; no other extended attributes, as in layers. Hard links inside stay hard links; none leads to the
/// original. Holes stay holes. Nothing is synced.
pub fn copy_tree(from: BorrowedFd<'_>, to: OwnedFd, threads: usize) -> Result<(), WalkError> {
    let at_root = |source| WalkError { path: EntryPath::root(), source };
    neutral_root(to.as_fd()).map_err(at_root)?;
    let fresh = Fresh::probe(to.as_fd()).map_err(at_root)?;
    let stacks = (0..threads.max(1)).map(|_| reopen(&to).map(DirectoryStack::new));
    let stacks = stacks.collect::<io::Result<Vec<_>>>().map_err(at_root)?;
    let stacks = std::sync::Mutex::new(stacks);
    let copier = || {
        let mut stacks = stacks.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        Copier { to: stacks.pop(), fresh, linked: Vec::new(), directories: Vec::new() }
    };
    let copiers = walk(from, threads, (), copier)?;
    let (mut linked, mut directories) = (Vec::new(), Vec::new());
    for copier in copiers {
        linked.extend(copier.linked);
        directories.extend(copier.directories);
    }
    copy_linked(from, &to, fresh, linked)?;
    finish(from, &to, directories)
}

struct Copier {
    /// There is one for each thread.
    to: Option<DirectoryStack>,
    fresh: Fresh,
    /// Names of inodes with several, by device and number.
    linked: Vec<((u64, u64), EntryPath, Stat)>,
    directories: Vec<(EntryPath, Metadata)>,
}

impl Visitor for Copier {
    type State = ();
    type Error = WalkError;

    fn visit(&mut self, directory: Visited<'_>, (): ()) -> Result<Vec<(EntryPath, ())>, WalkError> {
        let error = |path: &EntryPath, source| WalkError { path: path.clone(), source };
        let mut below = Vec::new();
        let (Some(to), path) = (&mut self.to, directory.path) else { return Ok(below) };
        to.go_to(path).map_err(|source| error(path, source))?;
        for listed in directory.entries {
            let here = || path.child(&listed.name);
            if listed.file_type() == FileType::Directory {
                let made = mkdirat(to.top(), &*listed.name, Mode::from_raw_mode(0o755));
                made.map_err(|source| error(&here(), source.into()))?;
                self.directories.push((here(), metadata_of(&listed.stat)));
                below.push((here(), ()));
            } else if listed.stat.st_nlink > 1 {
                let inode = (listed.stat.st_dev, listed.stat.st_ino);
                self.linked.push((inode, here(), listed.stat));
            } else {
                copy_name(directory.at, to.top(), listed, self.fresh)
                    .map_err(|source| error(&here(), source))?;
            }
        }
        Ok(below)
    }
}

fn copy_name(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    listed: &Listed,
    fresh: Fresh,
) -> io::Result<()> {
    let (name, metadata) = (&*listed.name, metadata_of(&listed.stat));
    let mode = Mode::from_raw_mode(metadata.mode & 0o777);
    match listed.file_type() {
        FileType::RegularFile => {
            let capability = xattr(from, name, CAPABILITY)?;
            let source = File::from(open_file(from, name)?);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = File::from(openat(to, name, flags, mode)?);
            copy_content(&source, &file)?;
            fresh.settle(file.as_fd(), &Metadata { capability, ..metadata })
        }
        FileType::Symlink => {
            symlinkat(&*readlinkat(from, name, Vec::new())?, to, name)?;
            fresh.settle_at(to, name, &metadata, false)
        }
        kind => {
            mknodat(to, name, kind, mode, listed.stat.st_rdev)?;
            fresh.settle_at(to, name, &metadata, true)
        }
    }
}

/// Copies the first name of each inode and links the others to it.
fn copy_linked(
    from: BorrowedFd<'_>,
    to: &OwnedFd,
    fresh: Fresh,
    mut linked: Vec<((u64, u64), EntryPath, Stat)>,
) -> Result<(), WalkError> {
    linked.sort_by(|a, b| a.1.cmp(&b.1));
    let mut first: HashMap<(u64, u64), EntryPath> = HashMap::new();
    for (inode, path, stat) in linked {
        let original = first.entry(inode).or_insert_with(|| path.clone());
        let copied = if *original == path {
            copy_first(from, to, fresh, &path, stat)
        } else {
            link(to, original, &path)
        };
        copied.map_err(|source| WalkError { path, source })?;
    }
    Ok(())
}

fn copy_first(
    from: BorrowedFd<'_>,
    to: &OwnedFd,
    fresh: Fresh,
    path: &EntryPath,
    stat: Stat,
) -> io::Result<()> {
    let (from, to) = (parent_of(from, path)?, parent_of(to.as_fd(), path)?);
    let listed = Listed { name: path.file_name().into(), stat };
    copy_name(from.top(), to.top(), &listed, fresh)
}

fn link(to: &OwnedFd, original: &EntryPath, path: &EntryPath) -> io::Result<()> {
    let (old, new) = (parent_of(to.as_fd(), original)?, parent_of(to.as_fd(), path)?);
    let (old_name, name) = (original.file_name(), path.file_name());
    Ok(linkat(old.top(), old_name, new.top(), name, AtFlags::empty())?)
}

fn parent_of(root: BorrowedFd<'_>, path: &EntryPath) -> io::Result<DirectoryStack> {
    let mut stack = DirectoryStack::new(reopen(root)?);
    stack.go_to(&path.parent().unwrap_or_default())?;
    Ok(stack)
}

/// Directories get their metadata when nothing is put into them any more.
fn finish(
    from: BorrowedFd<'_>,
    to: &OwnedFd,
    directories: Vec<(EntryPath, Metadata)>,
) -> Result<(), WalkError> {
    let error = |path: &EntryPath, source| WalkError { path: path.clone(), source };
    let root = EntryPath::root();
    let directories: BTreeMap<EntryPath, Metadata> = directories.into_iter().collect();
    let mut stack = DirectoryStack::new(reopen(to).map_err(|source| error(&root, source))?);
    for (path, metadata) in &directories {
        let set = stack.go_to(path).and_then(|()| set_directory(stack.top(), metadata));
        set.map_err(|source| error(path, source))?;
    }
    let metadata = fstat(from).map(|stat| metadata_of(&stat));
    let set = metadata.map_err(io::Error::from).and_then(|m| set_directory(to.as_fd(), &m));
    set.map_err(|source| error(&root, source))
}

/// Copies a whole file into an empty one: shared blocks where the file system can, else in the kernel, holes left out.
pub(crate) fn copy_content(from: &File, to: &File) -> io::Result<()> {
    let size = from.metadata()?.len();
    if size == 0 || ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let mut at = 0;
    while at < size {
        let (start, end) = match data_range(from, at, size) {
            Ok(Some(range)) => range,
            Ok(None) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => (at, size),
            Err(other) => return Err(other.into()),
        };
        copy_range(from, to, start, end)?;
        at = end;
    }
    Ok(ftruncate(to, size)?)
}

/// The next bytes that are no hole, from `at` on.
fn data_range(file: &File, at: u64, size: u64) -> rustix::io::Result<Option<(u64, u64)>> {
    let start = match seek(file, SeekFrom::Data(at)) {
        Err(Errno::NXIO) => return Ok(None),
        other => other?,
    };
    let end = seek(file, SeekFrom::Hole(start))?;
    Ok(Some((start, end.clamp(start, size))).filter(|_| start < size))
}

fn copy_range(mut from: &File, mut to: &File, start: u64, end: u64) -> io::Result<()> {
    from.seek(io::SeekFrom::Start(start))?;
    to.seek(io::SeekFrom::Start(start))?;
    match io::copy(&mut from.take(end - start), &mut to)? {
        copied if copied == end - start => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
