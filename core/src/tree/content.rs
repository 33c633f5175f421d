//! Where a changed file's bytes are to be read.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    sync::Arc,
};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat, openat2};

use super::EntryPath;

/// A file's content, by reference: nothing is read before `open`.
#[derive(Clone, Debug)]
pub enum Content {
    Bytes(Arc<[u8]>),
    /// `length` bytes of an open file from `offset` on.
    Slice {
        file: Arc<File>,
        offset: u64,
        length: u64,
    },
    /// A regular file below an open directory. No link on the way is followed.
    Beneath {
        directory: Arc<OwnedFd>,
        path: EntryPath,
    },
}

impl Content {
    /// A reader over the whole content.
    pub fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        Ok(match self {
            Content::Bytes(bytes) => Box::new(io::Cursor::new(bytes.clone())),
            Content::Slice { file, offset, length } => {
                Box::new(SliceReader { file: file.clone(), offset: *offset, left: *length })
            }
            Content::Beneath { directory, path } => Box::new(open_beneath(directory, path)?),
        })
    }
}

/// Opens a regular file below `directory` for reading; a link, a FIFO or a device there is an error.
fn open_beneath(directory: &OwnedFd, path: &EntryPath) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file = match openat2(directory, path.as_bytes(), flags, Mode::empty(), resolve) {
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {
            open_by_steps(directory, path, flags)?
        }
        other => File::from(other?),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file any more"));
    }
    Ok(file)
}

/// For kernels and filters without openat2.
fn open_by_steps(directory: &OwnedFd, path: &EntryPath, flags: OFlags) -> io::Result<File> {
    let walk = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at: Option<OwnedFd> = None;
    for ancestor in path.parent().iter().flat_map(|parent| parent.components()) {
        let here = at.as_ref().map_or(directory.as_fd(), |fd| fd.as_fd());
        at = Some(openat(here, ancestor, walk, Mode::empty())?);
    }
    let here = at.as_ref().map_or(directory.as_fd(), |fd| fd.as_fd());
    Ok(File::from(openat(here, path.file_name(), flags, Mode::empty())?))
}

struct SliceReader {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for SliceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let got = self.file.read_at(&mut buffer[..want], self.offset)?;
        if got == 0 && want > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += got as u64;
        self.left -= got as u64;
        Ok(got)
    }
}
