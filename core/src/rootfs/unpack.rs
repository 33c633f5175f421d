//! One layer into a directory of its own.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, linkat, makedev, mkdirat, mknodat, openat, renameat,
        statat, symlinkat, unlinkat,
    },
    io::Errno,
};

use crate::{
    layer::LayerSink,
    sys::namespace::in_initial_user_namespace,
    tree::{EntryPath, Kind, LayerIndex, Metadata, Row},
};

use super::{
    directories::rows_with_hidden,
    finish_directories,
    handle::{DirectoryStack, at_path, open_below, open_directory, open_file},
    metadata::{Fresh, invalid, neutral_root, reopen, set_where_it_differs},
    remove_tree,
};

const BUFFER_BYTES: usize = 256 << 10;
/// The kernel's limits on device numbers.
const MAJOR_MAX: u32 = 0xfff;
const MINOR_MAX: u32 = 0xf_ffff;

/// What a layer's directory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A lower directory of overlayfs: whiteouts, opaque marks, hard links.
    Overlay,
    /// A part of a plain tree: none of them.
    Plain,
}

/// Unpacks one layer into a directory of its own, as overlayfs takes it for a lower directory.
///
/// Later entries replace earlier ones as in [`IndexBuilder`](crate::tree::IndexBuilder), so the result equals the index
/// that is built of the same entries. What acts on lower layers (whiteouts, opaque marks) and what later entries disturb
/// (directories' metadata) is written by [`finish`](Unpacker::finish). Nothing is synced.
pub struct Unpacker {
    root: OwnedFd,
    /// At the directory that the last entry is in.
    stack: DirectoryStack,
    fresh: Fresh,
    form: Form,
    buffer: Box<[u8]>,
    /// Devices that a user namespace may not make: they are in the layer's index alone.
    left_out: HashSet<EntryPath>,
}

impl Unpacker {
    /// Into `directory`, which is empty and which nothing else works on.
    pub fn new(directory: OwnedFd) -> io::Result<Self> {
        Unpacker::with_form(directory, Form::Overlay)
    }

    /// As [`new`](Unpacker::new), for [`lay_over`](super::lay_over) or as the lowest layer of a plain tree: without
    /// whiteouts and opaque marks, and each name of a hard-link group becomes a file of its own, because overlayfs
    /// separates them at the first write too.
    pub fn plain(directory: OwnedFd) -> io::Result<Self> {
        Unpacker::with_form(directory, Form::Plain)
    }

    fn with_form(directory: OwnedFd, form: Form) -> io::Result<Self> {
        neutral_root(directory.as_fd())?;
        Ok(Unpacker {
            stack: DirectoryStack::new(reopen(&directory)?),
            fresh: Fresh::probe(directory.as_fd())?,
            root: directory,
            form,
            buffer: vec![0; BUFFER_BYTES].into(),
            left_out: HashSet::new(),
        })
    }

    /// Writes whiteouts and opaque marks and gives directories their owner, mode and mtime.
    ///
    /// `index` is that of the same entries; `inherited` gives the metadata that a directory has in the layers below,
    /// which an implied one takes (rules.md, looking up, rule 2).
    pub fn finish(
        mut self,
        index: &LayerIndex,
        inherited: &dyn Fn(&EntryPath) -> Option<Metadata>,
    ) -> io::Result<()> {
        self.finish_links(index)?;
        if self.form == Form::Overlay {
            self.finish_whiteouts(index)?;
        }
        finish_directories(self.root.as_fd(), index, inherited, self.form == Form::Overlay)
    }

    /// A hard-link member may have changed what all names of its inode have.
    fn finish_links(&mut self, index: &LayerIndex) -> io::Result<()> {
        for row in index.rows().iter().filter(|row| row.link_group > 0) {
            self.stack.go_to(&row.path.parent().unwrap_or_default())?;
            set_where_it_differs(self.stack.top(), row.path.file_name(), &row.metadata)
                .map_err(|error| at_path(&row.path, error))?;
        }
        Ok(())
    }

    fn finish_whiteouts(&mut self, index: &LayerIndex) -> io::Result<()> {
        // Below an opaque directory a whiteout would say nothing, and overlayfs would list it.
        let rows = rows_with_hidden(index).filter(|(_, hidden)| !hidden).map(|(row, _)| row);
        for row in rows.filter(|row| row.kind == Kind::Whiteout) {
            self.stack.go_to(&row.path.parent().unwrap_or_default())?;
            make_whiteout(self.stack.top(), row.path.file_name())
                .map_err(|error| at_path(&row.path, error))?;
        }
        Ok(())
    }

    /// Goes to a directory; what is missing or something else on the way becomes a directory.
    fn enter(&mut self, path: &EntryPath) -> io::Result<()> {
        for name in self.stack.ascend_towards(path)? {
            let directory = match open_directory(self.stack.top(), name) {
                Err(Errno::NOENT) => self.make_and_open(name)?,
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    unlinkat(self.stack.top(), name, AtFlags::empty())?;
                    self.make_and_open(name)?
                }
                other => other?,
            };
            self.stack.push(name, directory)?;
        }
        Ok(())
    }

    fn enter_parent(&mut self, path: &EntryPath) -> io::Result<()> {
        self.enter(&path.parent().unwrap_or_default())
    }

    fn make_and_open(&self, name: &[u8]) -> rustix::io::Result<OwnedFd> {
        mkdirat(self.stack.top(), name, Mode::from_raw_mode(0o755))?;
        open_directory(self.stack.top(), name)
    }

    fn make(&mut self, row: &Row, body: &mut dyn Read) -> io::Result<()> {
        let name = row.path.file_name();
        match &row.kind {
            Kind::Directory { .. } => self.make_directory(name),
            Kind::File { size } => self.make_file(name, *size, &row.metadata, body),
            Kind::Symlink { target } => {
                self.create(name, |at| symlinkat(&**target, at, name))?;
                self.fresh.settle_at(self.stack.top(), name, &row.metadata, false)
            }
            Kind::CharacterDevice { major, minor } => {
                self.make_device(row, FileType::CharacterDevice, (*major, *minor))
            }
            Kind::BlockDevice { major, minor } => {
                self.make_device(row, FileType::BlockDevice, (*major, *minor))
            }
            Kind::Fifo => self.make_node(name, FileType::Fifo, (0, 0), &row.metadata),
            // Made by `finish`, if it is not overtaken by an entry of this layer.
            Kind::Whiteout => Ok(()),
        }
    }

    /// Makes a name; whatever was there before goes.
    fn create<T>(
        &self,
        name: &[u8],
        make: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        match make(self.stack.top()) {
            Err(Errno::EXIST) => {
                remove_tree(self.stack.top(), name)?;
                Ok(make(self.stack.top())?)
            }
            other => Ok(other?),
        }
    }

    fn make_directory(&self, name: &[u8]) -> io::Result<()> {
        let make = |at: BorrowedFd<'_>| mkdirat(at, name, Mode::from_raw_mode(0o755));
        match make(self.stack.top()) {
            Err(Errno::EXIST) => {
                let stat = statat(self.stack.top(), name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    return Ok(());
                }
                self.create(name, make)
            }
            other => Ok(other?),
        }
    }

    fn make_file(
        &mut self,
        name: &[u8],
        size: u64,
        metadata: &Metadata,
        body: &mut dyn Read,
    ) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(metadata.mode & 0o777);
        let mut file = File::from(self.create(name, |at| openat(at, name, flags, mode))?);
        copy_exactly(body, &mut file, size, &mut self.buffer)?;
        self.fresh.settle(file.as_fd(), metadata)
    }

    /// A device that can't be made in a user namespace is left out: what reads the layer's index knows it all the same,
    /// and no step's changes can say that it is gone.
    fn make_device(
        &mut self,
        row: &Row,
        file_type: FileType,
        device: (u32, u32),
    ) -> io::Result<()> {
        match self.make_node(row.path.file_name(), file_type, device, &row.metadata) {
            Err(error) if is_refused(&error) && !in_initial_user_namespace() => {
                // Making room for it has removed what was there before.
                remove_tree(self.stack.top(), row.path.file_name())?;
                self.left_out.insert(row.path.clone());
                Ok(())
            }
            made => made,
        }
    }

    fn make_node(
        &self,
        name: &[u8],
        file_type: FileType,
        (major, minor): (u32, u32),
        metadata: &Metadata,
    ) -> io::Result<()> {
        if major > MAJOR_MAX || minor > MINOR_MAX {
            return Err(invalid("device number out of range"));
        }
        let mode = Mode::from_raw_mode(metadata.mode & 0o777);
        self.create(name, |at| mknodat(at, name, file_type, mode, makedev(major, minor)))?;
        self.fresh.settle_at(self.stack.top(), name, metadata, true)
    }

    fn link(&mut self, path: &EntryPath, target: &EntryPath) -> io::Result<()> {
        if path == target {
            return Ok(());
        }
        if self.left_out.contains(target) {
            self.enter_parent(path)?;
            remove_tree(self.stack.top(), path.file_name())?;
            self.left_out.insert(path.clone());
            return Ok(());
        }
        if path.is_within(target) || target.is_within(path) {
            return self.link_aside(path, target);
        }
        self.enter_parent(path)?;
        let (name, target_name) = (path.file_name(), target.file_name());
        let target_parent = self.open_parent(target)?;
        self.create(name, |at| linkat(&target_parent, target_name, at, name, AtFlags::empty()))
    }

    /// Another file with the content of `target`, whatever room is made for it.
    fn separate(&mut self, row: &Row, target: &EntryPath) -> io::Result<()> {
        if row.path == *target {
            return Ok(());
        }
        if !matches!(row.kind, Kind::File { .. }) {
            return self.entry(row, &mut io::empty());
        }
        let from = self.open_parent(target)?;
        let mut content = File::from(open_file(from, target.file_name())?);
        self.entry(row, &mut content)
    }

    /// Links where making room for the new name removes the old one.
    fn link_aside(&mut self, path: &EntryPath, target: &EntryPath) -> io::Result<()> {
        let aside = self.free_name()?;
        let from = self.open_parent(target)?;
        linkat(from, target.file_name(), &self.root, &*aside, AtFlags::empty())?;
        self.enter_parent(path)?;
        remove_tree(self.stack.top(), path.file_name())?;
        Ok(renameat(&self.root, &*aside, self.stack.top(), path.file_name())?)
    }

    /// A name that the root does not have.
    fn free_name(&self) -> io::Result<Vec<u8>> {
        for number in 0..u64::MAX {
            let name = format!(".link-{number}").into_bytes();
            match statat(&self.root, &*name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => return Ok(name),
                other => drop(other?),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    fn open_parent(&self, path: &EntryPath) -> io::Result<OwnedFd> {
        Ok(open_below(&self.root, &path.parent().unwrap_or_default())?)
    }
}

impl LayerSink for Unpacker {
    fn entry(&mut self, row: &Row, body: &mut dyn Read) -> io::Result<()> {
        if row.path.is_root() {
            return Ok(());
        }
        if !self.left_out.is_empty() {
            // A later entry of the layer takes the name, or that of a directory above it.
            let is_directory = row.kind.is_directory();
            self.left_out
                .retain(|path| *path != row.path && (is_directory || !path.is_within(&row.path)));
        }
        let made = self.enter_parent(&row.path).and_then(|()| self.make(row, body));
        made.map_err(|error| at_path(&row.path, error))
    }

    /// The link shows the target's metadata until `finish`.
    fn hard_link(&mut self, row: &Row, target: &EntryPath) -> io::Result<()> {
        let made = match self.form {
            Form::Overlay => self.link(&row.path, target),
            Form::Plain => self.separate(row, target),
        };
        made.map_err(|error| at_path(&row.path, error))
    }

    fn opaque(&mut self, directory: &EntryPath) -> io::Result<()> {
        self.enter(directory).map_err(|error| at_path(directory, error))
    }
}

fn is_refused(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::PERM.raw_os_error())
}

/// Makes a whiteout as overlayfs knows it.
pub(crate) fn make_whiteout(at: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    Ok(mknodat(at, name, FileType::CharacterDevice, Mode::empty(), 0)?)
}

/// Copies `size` bytes in as few writes as the buffer allows.
fn copy_exactly(
    body: &mut dyn Read,
    file: &mut File,
    size: u64,
    buffer: &mut [u8],
) -> io::Result<()> {
    let mut left = size;
    while left > 0 {
        let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        body.read_exact(&mut buffer[..want])?;
        file.write_all(&buffer[..want])?;
        left -= want as u64;
    }
    Ok(())
}
