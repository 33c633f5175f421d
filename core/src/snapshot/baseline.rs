//! What a plain tree was before a step: a stamp for each name, in a file.
//!
//! Each directory is a block of records in the order of their names, each record a stamp, the name's length and the name.
//! Blocks stand in the order in which a walk's threads came to them; a table at the end says where each is, by the number
//! that its directory's record has in place of a size. 500,000 names take about 35 MB, and are never in memory together.

use std::{
    fs::File,
    io,
    os::{fd::BorrowedFd, unix::fs::FileExt},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use rustix::fs::fstat;

use crate::{
    rootfs::walk::{Visited, Visitor, WalkError, walk},
    tree::{EntryPath, Timestamp},
};

use super::stamp::Stamp;

/// With the version of the form.
const MAGIC: &[u8; 8] = b"bbwalk01";
/// Magic, table's offset, directories, newest ctime, whether times have fractions, the root's stamp.
const HEADER_BYTES: usize = 8 + 8 + 4 + 12 + 1 + Stamp::BYTES;
const TABLE_ENTRY_BYTES: usize = 12;
pub(super) const ROOT: u32 = 0;

#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    #[error("not a baseline of this version")]
    Version,
    #[error("the baseline is damaged")]
    Damaged,
    #[error("cannot read or write the baseline: {0}")]
    File(#[from] io::Error),
    #[error(transparent)]
    Walk(#[from] WalkError),
}

/// A walk's result on disk.
#[derive(Debug)]
pub struct Baseline {
    file: File,
    table: Vec<(u64, u32)>,
    root: Stamp,
    clock: Clock,
}

/// What a file system's times were like.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clock {
    /// The newest ctime.
    newest: Timestamp,
    /// Whether any time is finer than a second.
    has_fractions: bool,
}

impl Clock {
    pub fn see(&mut self, stamp: &Stamp) {
        self.newest = self.newest.max(stamp.ctime);
        self.has_fractions |= stamp.ctime.nanoseconds != 0;
    }

    fn join(&mut self, other: Clock) {
        self.newest = self.newest.max(other.newest);
        self.has_fractions |= other.has_fractions;
    }
}

/// One record of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    pub name: &'a [u8],
    pub stamp: Stamp,
    /// Of a directory.
    pub number: u32,
}

impl Baseline {
    /// Walks a tree that nothing writes to with at most `threads` threads. `file` is new; one that has no name any more
    /// can't be reached by a step.
    pub fn take(root: BorrowedFd<'_>, file: File, threads: usize) -> Result<Self, BaselineError> {
        let writer = BaselineWriter::new(file);
        let taker = || Taker { writer: &writer, part: Part::default() };
        let takers = walk(root, threads, ROOT, taker)?;
        let parts = takers.into_iter().map(|taker| taker.part).collect();
        writer.finish(stamp_of_root(root)?, parts)
    }

    /// Reads what a baseline wrote. Damaged bytes are an error, here or where they are met, never a panic.
    pub fn open(file: File) -> Result<Self, BaselineError> {
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0).map_err(|_| BaselineError::Version)?;
        let mut fields = Fields(header.strip_prefix(MAGIC).ok_or(BaselineError::Version)?);
        let offset = u64::from_le_bytes(fields.take()?);
        let count = u32::from_le_bytes(fields.take()?) as usize;
        let newest = fields.time()?;
        let [has_fractions] = fields.take()?;
        let root = Stamp::from_bytes(&fields.take()?);
        let bytes = count * TABLE_ENTRY_BYTES;
        if file.metadata()?.len().checked_sub(offset) != Some(bytes as u64) {
            return Err(BaselineError::Damaged);
        }
        let mut table = vec![0; bytes];
        file.read_exact_at(&mut table, offset)?;
        let mut fields = Fields(&table);
        let mut entry =
            || Ok((u64::from_le_bytes(fields.take()?), u32::from_le_bytes(fields.take()?)));
        let table = (0..count).map(|_| entry()).collect::<Result<_, BaselineError>>()?;
        let clock = Clock { newest, has_fractions: has_fractions != 0 };
        Ok(Baseline { file, table, root, clock })
    }

    pub(super) fn root(&self) -> &Stamp {
        &self.root
    }

    /// The time that must be over before a step may begin, so that whatever it changes gets another ctime: the newest one
    /// of the baseline, or the end of its second on a file system that knows no fractions.
    pub fn newest_change(&self) -> Timestamp {
        match self.clock.has_fractions {
            true => self.clock.newest,
            false => Timestamp { nanoseconds: 999_999_999, ..self.clock.newest },
        }
    }

    /// Reads a directory's block into `buffer`.
    pub(super) fn block<'b>(
        &self,
        number: u32,
        buffer: &'b mut Vec<u8>,
    ) -> Result<Vec<Record<'b>>, BaselineError> {
        let place = self.table.get(number as usize).ok_or(BaselineError::Damaged)?;
        let (offset, length) = (place.0, place.1 as usize);
        let end = offset.checked_add(length as u64).ok_or(BaselineError::Damaged)?;
        if end > self.file.metadata()?.len() {
            return Err(BaselineError::Damaged);
        }
        buffer.resize(length, 0);
        self.file.read_exact_at(buffer, offset)?;
        let mut fields = Fields(buffer);
        let mut records: Vec<Record<'b>> = Vec::new();
        while !fields.0.is_empty() {
            let record = fields.record()?;
            if records.last().is_some_and(|last| last.name >= record.name) {
                return Err(BaselineError::Damaged);
            }
            records.push(record);
        }
        // What was removed when the tree was settled.
        records.retain(|record| record.stamp.mode != 0);
        Ok(records)
    }

    /// The stamp at a path.
    pub(super) fn lookup(&self, path: &EntryPath) -> Result<Option<Stamp>, BaselineError> {
        let (mut number, mut found, mut buffer) = (ROOT, None, Vec::new());
        let mut names = path.components().peekable();
        while let Some(name) = names.next() {
            let records = self.block(number, &mut buffer)?;
            let at = records.binary_search_by(|record| record.name.cmp(name));
            let Ok(at) = at else { return Ok(None) };
            found = Some(records[at].stamp);
            if names.peek().is_some() && !records[at].stamp.is_directory() {
                return Ok(None);
            }
            number = records[at].number;
        }
        Ok(found)
    }

    /// Writes other stamps over records, each at its offset; `None` where the name is gone.
    pub(super) fn patch(
        &mut self,
        root: Stamp,
        patches: impl Iterator<Item = (u64, Option<Stamp>)>,
    ) -> io::Result<()> {
        for (offset, stamp) in patches {
            let Some(stamp) = stamp else {
                self.file.write_all_at(&[0; Stamp::BYTES], offset)?;
                continue;
            };
            self.clock.see(&stamp);
            let bytes = stamp.to_bytes();
            if stamp.is_directory() {
                // Its number stands in place of the size.
                self.file.write_all_at(&bytes[..8], offset)?;
                self.file.write_all_at(&bytes[16..], offset + 16)?;
            } else {
                self.file.write_all_at(&bytes, offset)?;
            }
        }
        self.root = root;
        self.write_header()
    }

    fn write_header(&self) -> io::Result<()> {
        let bytes = (self.table.len() * TABLE_ENTRY_BYTES) as u64;
        let offset = self.file.metadata()?.len().saturating_sub(bytes);
        let mut header = MAGIC.to_vec();
        header.extend(offset.to_le_bytes());
        header.extend((self.table.len() as u32).to_le_bytes());
        header.extend(self.clock.newest.seconds.to_le_bytes());
        header.extend(self.clock.newest.nanoseconds.to_le_bytes());
        header.push(self.clock.has_fractions.into());
        header.extend(self.root.to_bytes());
        self.file.write_all_at(&header, 0)
    }
}

pub(super) fn stamp_of_root(root: BorrowedFd<'_>) -> Result<Stamp, BaselineError> {
    Ok(Stamp::of(&fstat(root).map_err(io::Error::from)?))
}

/// Fields one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], BaselineError> {
        let (head, tail) = self.0.split_first_chunk().ok_or(BaselineError::Damaged)?;
        self.0 = tail;
        Ok(*head)
    }

    fn time(&mut self) -> Result<Timestamp, BaselineError> {
        let seconds = i64::from_le_bytes(self.take()?);
        Ok(Timestamp { seconds, nanoseconds: u32::from_le_bytes(self.take()?) })
    }

    fn record(&mut self) -> Result<Record<'a>, BaselineError> {
        let mut stamp = Stamp::from_bytes(&self.take()?);
        let [length] = self.take()?;
        let split = self.0.split_at_checked(length.into()).filter(|(name, _)| !name.is_empty());
        let (name, rest) = split.ok_or(BaselineError::Damaged)?;
        self.0 = rest;
        let mut number = 0;
        if stamp.is_directory() {
            number = u32::try_from(stamp.size).map_err(|_| BaselineError::Damaged)?;
            stamp.size = 0;
        }
        Ok(Record { name, stamp, number })
    }
}

/// Writes a baseline from several threads.
pub(super) struct BaselineWriter {
    file: File,
    end: AtomicU64,
    /// Numbers of directories that are taken.
    numbers: AtomicU32,
}

/// What one thread wrote.
#[derive(Default)]
pub(super) struct Part {
    blocks: Vec<(u32, u64, u32)>,
    clock: Clock,
}

/// The records of one directory.
#[derive(Default)]
pub(super) struct Block(Vec<u8>);

impl Block {
    /// Gives where the record stands in the block. Names are not empty and have at most 255 bytes.
    pub fn push(&mut self, name: &[u8], stamp: &Stamp, number: u32) -> u64 {
        let at = self.0.len() as u64;
        let size = if stamp.is_directory() { number.into() } else { stamp.size };
        self.0.extend(Stamp { size, ..*stamp }.to_bytes());
        self.0.push(name.len() as u8);
        self.0.extend(name);
        at
    }
}

impl BaselineWriter {
    pub fn new(file: File) -> Self {
        let end = AtomicU64::new(HEADER_BYTES as u64);
        BaselineWriter { file, end, numbers: AtomicU32::new(ROOT + 1) }
    }

    pub fn next_number(&self) -> u32 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Writes a directory's block and gives its offset.
    pub fn write(&self, part: &mut Part, number: u32, block: &Block) -> io::Result<u64> {
        let length = u32::try_from(block.0.len());
        let length = length.map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let offset = self.end.fetch_add(length.into(), Ordering::Relaxed);
        self.file.write_all_at(&block.0, offset)?;
        part.blocks.push((number, offset, length));
        Ok(offset)
    }

    pub fn finish(self, root: Stamp, parts: Vec<Part>) -> Result<Baseline, BaselineError> {
        let mut table = vec![(0, 0); self.numbers.into_inner() as usize];
        let mut clock = Clock::default();
        clock.see(&root);
        for part in parts {
            clock.join(part.clock);
            for (number, offset, length) in part.blocks {
                table[number as usize] = (offset, length);
            }
        }
        let entries = table.iter().flat_map(|(offset, length): &(u64, u32)| {
            offset.to_le_bytes().into_iter().chain(length.to_le_bytes())
        });
        self.file.write_all_at(&entries.collect::<Vec<u8>>(), self.end.into_inner())?;
        let baseline = Baseline { file: self.file, table, root, clock };
        baseline.write_header()?;
        Ok(baseline)
    }
}

impl Part {
    pub fn see(&mut self, stamp: &Stamp) {
        self.clock.see(stamp);
    }
}

struct Taker<'a> {
    writer: &'a BaselineWriter,
    part: Part,
}

impl Visitor for Taker<'_> {
    type State = u32;
    type Error = BaselineError;

    fn visit(
        &mut self,
        directory: Visited<'_>,
        number: u32,
    ) -> Result<Vec<(EntryPath, u32)>, BaselineError> {
        let (mut block, mut below) = (Block::default(), Vec::new());
        for listed in directory.entries {
            let stamp = Stamp::of(&listed.stat);
            self.part.see(&stamp);
            let number = if stamp.is_directory() { self.writer.next_number() } else { 0 };
            block.push(&listed.name, &stamp, number);
            if stamp.is_directory() {
                below.push((directory.path.child(&listed.name), number));
            }
        }
        self.writer.write(&mut self.part, number, &block)?;
        Ok(below)
    }
}
