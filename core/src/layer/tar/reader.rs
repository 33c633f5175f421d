//! Members of a tar, one after the other, by our own loop over blocks.

use std::io::{self, BufRead, BufReader, Read};

use crate::{
    layer::limits::ReadLimits,
    tree::{Metadata, Timestamp},
};

use super::{
    BLOCK_BYTES, MTIME_SECONDS, TarError,
    header::{Header, is_zero},
    pax::{Extensions, check_global},
    shown,
};

const BUFFER_BYTES: usize = 64 << 10;

/// One member as the archive has it: nothing is cleaned or resolved.
#[derive(Clone, Debug)]
pub struct Member {
    /// As written: may be empty, absolute, hold `..`, end in a slash. Holds no NUL.
    pub name: Vec<u8>,
    pub kind: MemberKind,
    pub metadata: Metadata,
    /// Bytes of the body; 0 for all but regular files.
    pub size: u64,
    /// Where the body begins in the uncompressed archive.
    pub body_offset: u64,
    /// Extended attributes other than `security.capability`, ACLs and flags that came with it.
    pub dropped_attributes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberKind {
    File,
    Directory,
    Symlink {
        target: Vec<u8>,
    },
    /// `target` is the name of another member, as written.
    HardLink {
        target: Vec<u8>,
    },
    CharacterDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
}

/// Reads a tar's members in order: v7, ustar, PAX and GNU tar's long names. Ambiguous and damaged archives are errors,
/// and so is what follows the end of an archive. A missing end is tolerated.
pub struct TarReader<R> {
    input: BufReader<R>,
    limits: ReadLimits,
    offset: u64,
    members: u64,
    body_left: u64,
    padding: u64,
    done: bool,
    warning: Option<&'static str>,
}

/// What stands before a member and belongs to it.
#[derive(Default)]
struct Prelude {
    pax: Option<Extensions>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: Read> TarReader<R> {
    pub fn new(input: R, limits: ReadLimits) -> Self {
        TarReader {
            input: BufReader::with_capacity(BUFFER_BYTES, input),
            limits,
            offset: 0,
            members: 0,
            body_left: 0,
            padding: 0,
            done: false,
            warning: None,
        }
    }

    /// The next member, after what is left of the last one's body. `None` at the end, when the input is read to its end too.
    pub fn next_member(&mut self) -> Result<Option<Member>, TarError> {
        self.finish_body()?;
        let mut prelude = Prelude::default();
        while !self.done {
            let start = self.offset;
            let Some(block) = self.header_block()? else {
                prelude.must_be_empty(start)?;
                self.finish_archive(start)?;
                break;
            };
            let header = Header::parse(&block, start)?;
            match header.typeflag() {
                b'x' => prelude.set_pax(self.extension(&header)?, start)?,
                b'g' => self.global_header(&header, &prelude, start)?,
                b'L' => prelude.set_long_name(self.extension(&header)?, start)?,
                b'K' => prelude.set_long_link(self.extension(&header)?, start)?,
                _ => return self.member(&header, prelude, start).map(Some),
            }
        }
        Ok(None)
    }

    /// The body of the last member. What is not read of it, `next_member` skips.
    pub fn body(&mut self) -> Body<'_, R> {
        Body(self)
    }

    /// Bytes of the uncompressed archive so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// What was tolerated.
    pub fn warning(&self) -> Option<&'static str> {
        self.warning
    }

    fn member(
        &mut self,
        header: &Header,
        prelude: Prelude,
        start: u64,
    ) -> Result<Member, TarError> {
        self.members += 1;
        if self.members > self.limits.members_max {
            return Err(TarError::Limit { limit: self.limits.members_max, unit: "members" });
        }
        let pax = prelude.pax.unwrap_or_default();
        let name = pax.path.or(prelude.long_name).unwrap_or_else(|| header.name());
        if pax.sparse || header.typeflag() == b'S' {
            return Err(TarError::Sparse { name: shown(&name) });
        }
        let target = pax.link_path.or(prelude.long_link);
        let size = pax.size.map_or_else(|| header.size(), Ok)?;
        let kind = kind(header, &name, target, start)?;
        let size = body_bytes(&kind, size, start)?;
        let metadata = Metadata {
            mode: header.mode()?,
            uid: id(pax.uid.map_or_else(|| header.uid(), Ok)?, start)?,
            gid: id(pax.gid.map_or_else(|| header.gid(), Ok)?, start)?,
            mtime: mtime(header, pax.mtime)?,
            capability: pax.capability,
        };
        (self.body_left, self.padding) = (size, padding(size));
        let (body_offset, dropped_attributes) = (self.offset, pax.dropped);
        Ok(Member { name, kind, metadata, size, body_offset, dropped_attributes })
    }

    /// `None` where the archive ends: at a block of zeros, or without one.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK_BYTES]>, TarError> {
        let mut block = [0; BLOCK_BYTES];
        let got = self.read_up_to(&mut block)?;
        match got {
            0 => self.warning = Some("the archive has no end"),
            BLOCK_BYTES if !is_zero(&block) => return Ok(Some(block)),
            BLOCK_BYTES => {}
            _ => return Err(TarError::Truncated { offset: self.offset }),
        }
        Ok(None)
    }

    /// Only zeros may follow, at least a block of them.
    fn finish_archive(&mut self, start: u64) -> Result<(), TarError> {
        self.done = true;
        if self.offset > start && self.input.fill_buf()?.is_empty() {
            self.warning = Some("the archive's end is one block short");
        }
        loop {
            let buffer = self.input.fill_buf()?;
            if let Some(at) = buffer.iter().position(|byte| *byte != 0) {
                return Err(TarError::Tail { offset: self.offset + at as u64 });
            }
            let count = buffer.len();
            if count == 0 {
                return Ok(());
            }
            self.consume(count)?;
        }
    }

    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let size = header.size()?;
        if size > self.limits.extension_bytes_max {
            let limit = self.limits.extension_bytes_max;
            return Err(TarError::Limit { limit, unit: "bytes in one extended header" });
        }
        (self.body_left, self.padding) = (size, padding(size));
        let mut bytes = vec![0; size as usize];
        let got = self.read_up_to(&mut bytes)?;
        self.body_left -= got as u64;
        self.finish_body()?;
        Ok(bytes)
    }

    fn global_header(
        &mut self,
        header: &Header,
        prelude: &Prelude,
        start: u64,
    ) -> Result<(), TarError> {
        prelude.must_be_empty(start)?;
        let bytes = self.extension(header)?;
        check_global(&bytes).map_err(|what| TarError::Pax { offset: start, what })
    }

    fn finish_body(&mut self) -> Result<(), TarError> {
        let mut left = self.body_left + self.padding;
        (self.body_left, self.padding) = (0, 0);
        while left > 0 {
            let count = self.input.fill_buf()?.len();
            if count == 0 {
                return Err(TarError::Truncated { offset: self.offset });
            }
            let count = count.min(usize::try_from(left).unwrap_or(usize::MAX));
            self.consume(count)?;
            left -= count as u64;
        }
        Ok(())
    }

    fn read_up_to(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.input.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.advance(filled)?;
        Ok(filled)
    }

    fn consume(&mut self, count: usize) -> Result<(), TarError> {
        self.input.consume(count);
        self.advance(count)
    }

    fn advance(&mut self, count: usize) -> Result<(), TarError> {
        self.offset += count as u64;
        let limit = self.limits.uncompressed_bytes_max;
        if self.offset > limit {
            return Err(TarError::Limit { limit, unit: "uncompressed bytes" });
        }
        Ok(())
    }
}

impl Prelude {
    fn set_pax(&mut self, bytes: Vec<u8>, offset: u64) -> Result<(), TarError> {
        if self.pax.is_some() {
            return Err(TarError::Ambiguous { offset, what: "two PAX headers for one member" });
        }
        let pax = Extensions::parse(&bytes).map_err(|what| TarError::Pax { offset, what })?;
        self.pax = Some(pax);
        self.must_be_of_one_mind(offset)
    }

    fn set_long_name(&mut self, bytes: Vec<u8>, offset: u64) -> Result<(), TarError> {
        if self.long_name.is_some() {
            return Err(TarError::Ambiguous { offset, what: "two long names for one member" });
        }
        self.long_name = Some(long(bytes, offset)?);
        self.must_be_of_one_mind(offset)
    }

    fn set_long_link(&mut self, bytes: Vec<u8>, offset: u64) -> Result<(), TarError> {
        if self.long_link.is_some() {
            return Err(TarError::Ambiguous { offset, what: "two long links for one member" });
        }
        self.long_link = Some(long(bytes, offset)?);
        self.must_be_of_one_mind(offset)
    }

    fn must_be_of_one_mind(&self, offset: u64) -> Result<(), TarError> {
        let Some(pax) = &self.pax else { return Ok(()) };
        if pax.path.is_some() && self.long_name.is_some()
            || pax.link_path.is_some() && self.long_link.is_some()
        {
            let what = "a long name in GNU tar's form and in PAX form for one member";
            return Err(TarError::Ambiguous { offset, what });
        }
        Ok(())
    }

    fn must_be_empty(&self, offset: u64) -> Result<(), TarError> {
        if self.pax.is_some() || self.long_name.is_some() || self.long_link.is_some() {
            return Err(TarError::Ambiguous {
                offset,
                what: "an extended header without a member",
            });
        }
        Ok(())
    }
}

/// A long name ends at NUL bytes, which must be the last ones.
fn long(mut bytes: Vec<u8>, offset: u64) -> Result<Vec<u8>, TarError> {
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    if bytes.is_empty() || bytes.contains(&0) {
        return Err(TarError::Header { offset, what: "a long name is empty or holds a NUL byte" });
    }
    Ok(bytes)
}

fn kind(
    header: &Header,
    name: &[u8],
    target: Option<Vec<u8>>,
    offset: u64,
) -> Result<MemberKind, TarError> {
    let target = || target.unwrap_or_else(|| header.link_name());
    Ok(match header.typeflag() {
        // Before POSIX a directory was a file whose name ends in a slash.
        0 if name.ends_with(b"/") => MemberKind::Directory,
        b'0' if name.ends_with(b"/") => {
            let what = "a regular file whose name ends in a slash";
            return Err(TarError::Ambiguous { offset, what });
        }
        0 | b'0' => MemberKind::File,
        b'1' => MemberKind::HardLink { target: target() },
        b'2' => MemberKind::Symlink { target: target() },
        b'5' => MemberKind::Directory,
        b'6' => MemberKind::Fifo,
        b'3' => {
            let (major, minor) = header.device()?;
            MemberKind::CharacterDevice { major, minor }
        }
        b'4' => {
            let (major, minor) = header.device()?;
            MemberKind::BlockDevice { major, minor }
        }
        typeflag => return Err(TarError::UnsupportedType { name: shown(name), typeflag }),
    })
}

/// Readers agree that a hard link's size says nothing; for other members that have no content they do not.
fn body_bytes(kind: &MemberKind, size: u64, offset: u64) -> Result<u64, TarError> {
    match kind {
        MemberKind::File => Ok(size),
        MemberKind::HardLink { .. } => Ok(0),
        _ if size == 0 => Ok(0),
        _ => {
            let what = "a member that has no content has a size";
            Err(TarError::Ambiguous { offset, what })
        }
    }
}

/// The last one means "leave it" to chown.
fn id(number: i64, offset: u64) -> Result<u32, TarError> {
    let number = u32::try_from(number).ok().filter(|number| *number != u32::MAX);
    number.ok_or(TarError::Header { offset, what: "a uid or gid is out of range" })
}

fn mtime(header: &Header, pax: Option<Timestamp>) -> Result<Timestamp, TarError> {
    let time = match pax {
        Some(time) => time,
        None => Timestamp::from_seconds(header.mtime()?),
    };
    if MTIME_SECONDS.contains(&time.seconds) {
        return Ok(time);
    }
    let nearest = time.seconds.clamp(*MTIME_SECONDS.start(), *MTIME_SECONDS.end());
    Ok(Timestamp::from_seconds(nearest))
}

pub(super) fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK_BYTES as u64
}

/// The body of one member: yields exactly its bytes, or an error where the archive is cut.
pub struct Body<'a, R>(&'a mut TarReader<R>);

impl<R: Read> Read for Body<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let reader = &mut *self.0;
        let want = buffer.len().min(usize::try_from(reader.body_left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let got = reader.input.read(&mut buffer[..want])?;
        if got == 0 {
            let cut = TarError::Truncated { offset: reader.offset };
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, cut));
        }
        reader.body_left -= got as u64;
        reader.advance(got).map_err(io::Error::other)?;
        Ok(got)
    }
}
