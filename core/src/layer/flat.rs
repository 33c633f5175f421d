//! A whole file system as one tar: what an image's layers make together, written member by member.

use std::io::{self, Read, Write};

use tar::EntryType;

use crate::tree::{EntryPath, Kind, Metadata, Row, Timestamp};

use super::{
    LayerError,
    tar::{
        MTIME_SECONDS,
        writer::{DEVICE_MAX, END, MemberHeader, body_padding},
    },
};

const BUFFER_BYTES: usize = 256 << 10;

/// Writes members in the form that layers have (ustar, PAX where a value does not fit).
pub struct FlatTar<'a> {
    out: &'a mut dyn Write,
    /// Stands before each name: empty, or with a slash at its end.
    prefix: Vec<u8>,
    /// What every time becomes.
    mtime_seconds: Option<i64>,
    header: Vec<u8>,
    buffer: Vec<u8>,
}

impl<'a> FlatTar<'a> {
    pub fn new(out: &'a mut dyn Write, mtime_seconds: Option<i64>) -> Self {
        let buffer = vec![0; BUFFER_BYTES];
        FlatTar { out, prefix: Vec::new(), mtime_seconds, header: Vec::new(), buffer }
    }

    /// Puts all that comes now below a folder at the top, and writes that.
    pub fn enter_folder(&mut self, name: &str) -> io::Result<()> {
        self.prefix.clear();
        let metadata = Metadata::directory(Timestamp::default());
        let path = EntryPath::clean(name.as_bytes()).map_err(io::Error::other)?;
        self.entry(&Row::new(path, Kind::DIRECTORY, metadata), &mut io::empty())?;
        self.prefix = format!("{name}/").into_bytes();
        Ok(())
    }

    /// Writes a name that is no hard link. `body` yields a regular file's bytes.
    pub fn entry(&mut self, row: &Row, body: &mut dyn Read) -> io::Result<()> {
        let (typeflag, size, target, device) = match &row.kind {
            Kind::Directory { .. } => (EntryType::Directory, 0, &b""[..], None),
            Kind::File { size } => (EntryType::Regular, *size, &b""[..], None),
            Kind::Symlink { target } => (EntryType::Symlink, 0, &target[..], None),
            Kind::Fifo => (EntryType::Fifo, 0, &b""[..], None),
            Kind::CharacterDevice { major, minor } => {
                (EntryType::Char, 0, &b""[..], Some((*major, *minor)))
            }
            Kind::BlockDevice { major, minor } => {
                (EntryType::Block, 0, &b""[..], Some((*major, *minor)))
            }
            Kind::Whiteout => return Ok(()),
        };
        if let Some((major, minor)) = device.filter(|(a, b)| (*a).max(*b) > DEVICE_MAX) {
            let path = row.path.clone();
            return Err(io::Error::other(LayerError::Device { path, major, minor }));
        }
        let mut name = self.name(&row.path);
        name.extend(row.kind.is_directory().then_some(b'/'));
        self.header(&name, typeflag, row, size, target, device)?;
        self.body(body, size)
    }

    /// Writes another name of `target`, which was written before.
    pub fn hard_link(&mut self, row: &Row, target: &EntryPath) -> io::Result<()> {
        let (name, target) = (self.name(&row.path), self.name(target));
        self.header(&name, EntryType::Link, row, 0, &target, None)
    }

    /// Writes the end of the archive.
    pub fn finish(self) -> io::Result<()> {
        self.out.write_all(&END)?;
        self.out.flush()
    }

    fn name(&self, path: &EntryPath) -> Vec<u8> {
        [&self.prefix[..], path.as_bytes()].concat()
    }

    fn header(
        &mut self,
        name: &[u8],
        typeflag: EntryType,
        row: &Row,
        size: u64,
        target: &[u8],
        device: Option<(u32, u32)>,
    ) -> io::Result<()> {
        let is_link = matches!(row.kind, Kind::Symlink { .. });
        let seconds = self.mtime_seconds.unwrap_or(row.metadata.mtime.seconds);
        let seconds = seconds.clamp(*MTIME_SECONDS.start(), *MTIME_SECONDS.end());
        let metadata = Metadata {
            mode: if is_link { 0o777 } else { row.metadata.mode },
            mtime: Timestamp::from_seconds(seconds),
            ..row.metadata.clone()
        };
        self.header.clear();
        MemberHeader { name, typeflag, metadata: &metadata, size, target, device }
            .encode(&mut self.header);
        self.out.write_all(&self.header)
    }

    fn body(&mut self, body: &mut dyn Read, size: u64) -> io::Result<()> {
        let mut left = size;
        while left > 0 {
            let want = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            body.read_exact(&mut self.buffer[..want])?;
            self.out.write_all(&self.buffer[..want])?;
            left -= want as u64;
        }
        self.out.write_all(body_padding(size))
    }
}
