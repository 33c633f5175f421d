//! An index as bytes: a magic with a version, then columns, each compressed with zstd.
//!
//! Columns compress far better than rows: a Debian base of 6,667 entries takes about 50 KB.

use std::{collections::BTreeMap, sync::Arc};

use crate::digest::Digest;

use super::{EntryPath, Kind, LayerIndex, Metadata, Row, Timestamp};

const MAGIC: &[u8; 8] = b"bbindex1";
/// No index of a layer within the limits decompresses to more.
const COLUMN_BYTES_MAX: usize = 1 << 30;
const COLUMNS: usize = 6;

#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error("not a layer index of this version")]
    Version,
    #[error("the layer index is damaged")]
    Damaged,
    #[error("the layer index cannot be decompressed: {0}")]
    Compression(#[from] std::io::Error),
}

#[derive(Default)]
struct Columns {
    paths: Vec<u8>,
    kinds: Vec<u8>,
    metadata: Vec<u8>,
    offsets: Vec<u8>,
    digests: Vec<u8>,
    small_files: Vec<u8>,
}

impl LayerIndex {
    /// The bytes to store.
    pub fn encode(&self) -> std::io::Result<Vec<u8>> {
        let mut columns = Columns::default();
        let mut last: &[u8] = b"";
        put_number(&mut columns.paths, self.rows().len() as u64);
        for row in self.rows() {
            put_path(&mut columns.paths, last, row.path.as_bytes());
            put_kind(&mut columns.kinds, row);
            put_metadata(&mut columns.metadata, &row.metadata);
            put_number(&mut columns.offsets, row.tar_offset);
            put_number(&mut columns.offsets, row.link_group.into());
            put_digest(&mut columns.digests, row.digest.as_ref());
            last = row.path.as_bytes();
        }
        put_number(&mut columns.small_files, self.small_files().len() as u64);
        for (path, bytes) in self.small_files() {
            put_bytes(&mut columns.small_files, path.as_bytes());
            put_bytes(&mut columns.small_files, bytes);
        }
        columns.join()
    }

    /// Reads what `encode` wrote. Damaged bytes are an error, never a panic.
    pub fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        let columns = split_columns(bytes)?;
        let [mut paths, mut kinds, mut metadata, mut offsets, mut digests, mut small] =
            columns.each_ref().map(|column| Reader(column));
        let count = paths.number()?;
        let mut rows: Vec<Row> = Vec::new();
        for _ in 0..count {
            let last = rows.last().map_or(&b""[..], |row| row.path.as_bytes());
            let path = EntryPath::from_trusted(paths.path(last)?);
            if rows.last().is_some_and(|last| last.path >= path) {
                return Err(IndexError::Damaged);
            }
            let (kind, implied) = kinds.kind()?;
            let row = Row {
                path,
                kind,
                implied,
                metadata: metadata.metadata()?,
                tar_offset: offsets.number()?,
                link_group: offsets.number32()?,
                digest: digests.digest()?,
            };
            rows.push(row);
        }
        let mut small_files = BTreeMap::new();
        for _ in 0..small.number()? {
            let path = EntryPath::from_trusted(small.bytes()?.to_vec());
            small_files.insert(path, Arc::from(small.bytes()?));
        }
        Ok(LayerIndex::from_parts(rows, small_files))
    }
}

impl Columns {
    fn join(self) -> std::io::Result<Vec<u8>> {
        let mut out = MAGIC.to_vec();
        let columns =
            [self.paths, self.kinds, self.metadata, self.offsets, self.digests, self.small_files];
        for column in columns {
            let packed = zstd::bulk::compress(&column, 3)?;
            put_number(&mut out, column.len() as u64);
            put_bytes(&mut out, &packed);
        }
        Ok(out)
    }
}

fn split_columns(bytes: &[u8]) -> Result<[Vec<u8>; COLUMNS], IndexError> {
    let mut reader = Reader(bytes.strip_prefix(MAGIC).ok_or(IndexError::Version)?);
    let mut columns: [Vec<u8>; COLUMNS] = Default::default();
    for column in &mut columns {
        let length = reader.number()? as usize;
        if length > COLUMN_BYTES_MAX {
            return Err(IndexError::Damaged);
        }
        *column = zstd::bulk::decompress(reader.bytes()?, length)?;
    }
    Ok(columns)
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_signed(out: &mut Vec<u8>, number: i64) {
    put_number(out, ((number << 1) ^ (number >> 63)) as u64);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// The length shared with the path before, then the rest.
fn put_path(out: &mut Vec<u8>, last: &[u8], path: &[u8]) {
    let shared = last.iter().zip(path).take_while(|(a, b)| a == b).count();
    put_number(out, shared as u64);
    put_bytes(out, &path[shared..]);
}

fn put_kind(out: &mut Vec<u8>, row: &Row) {
    let implied = if row.implied { 0x80 } else { 0 };
    match &row.kind {
        Kind::Directory { opaque: false } => out.push(implied),
        Kind::Directory { opaque: true } => out.push(implied | 1),
        Kind::File { size } => {
            out.push(2);
            put_number(out, *size);
        }
        Kind::Symlink { target } => {
            out.push(3);
            put_bytes(out, target);
        }
        Kind::CharacterDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            out.push(if matches!(row.kind, Kind::BlockDevice { .. }) { 5 } else { 4 });
            put_number(out, (*major).into());
            put_number(out, (*minor).into());
        }
        Kind::Fifo => out.push(6),
        Kind::Whiteout => out.push(7),
    }
}

fn put_metadata(out: &mut Vec<u8>, metadata: &Metadata) {
    put_number(out, metadata.mode.into());
    put_number(out, metadata.uid.into());
    put_number(out, metadata.gid.into());
    put_signed(out, metadata.mtime.seconds);
    put_number(out, metadata.mtime.nanoseconds.into());
    match &metadata.capability {
        None => out.push(0),
        Some(value) => {
            out.push(1);
            put_bytes(out, value);
        }
    }
}

fn put_digest(out: &mut Vec<u8>, digest: Option<&Digest>) {
    match digest {
        None => out.push(0),
        Some(digest) => {
            out.push(1);
            out.extend_from_slice(digest.as_bytes());
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], IndexError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(IndexError::Damaged)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, IndexError> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> Result<u64, IndexError> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(IndexError::Damaged)
    }

    fn number32(&mut self) -> Result<u32, IndexError> {
        self.number()?.try_into().map_err(|_| IndexError::Damaged)
    }

    fn signed(&mut self) -> Result<i64, IndexError> {
        let number = self.number()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    fn bytes(&mut self) -> Result<&'a [u8], IndexError> {
        let length = self.number()?;
        self.take(usize::try_from(length).map_err(|_| IndexError::Damaged)?)
    }

    fn path(&mut self, last: &[u8]) -> Result<Vec<u8>, IndexError> {
        let shared = self.number()? as usize;
        let mut path = last.get(..shared).ok_or(IndexError::Damaged)?.to_vec();
        path.extend_from_slice(self.bytes()?);
        Ok(path)
    }

    fn kind(&mut self) -> Result<(Kind, bool), IndexError> {
        let tag = self.byte()?;
        let kind = match tag & 0x7f {
            0 => Kind::Directory { opaque: false },
            1 => Kind::Directory { opaque: true },
            2 => Kind::File { size: self.number()? },
            3 => Kind::Symlink { target: self.bytes()?.into() },
            4 => Kind::CharacterDevice { major: self.number32()?, minor: self.number32()? },
            5 => Kind::BlockDevice { major: self.number32()?, minor: self.number32()? },
            6 => Kind::Fifo,
            7 => Kind::Whiteout,
            _ => return Err(IndexError::Damaged),
        };
        Ok((kind, tag & 0x80 != 0))
    }

    fn metadata(&mut self) -> Result<Metadata, IndexError> {
        Ok(Metadata {
            mode: self.number32()?,
            uid: self.number32()?,
            gid: self.number32()?,
            mtime: Timestamp { seconds: self.signed()?, nanoseconds: self.number32()? },
            capability: match self.byte()? {
                0 => None,
                _ => Some(self.bytes()?.into()),
            },
        })
    }

    fn digest(&mut self) -> Result<Option<Digest>, IndexError> {
        if self.byte()? == 0 {
            return Ok(None);
        }
        let bytes = self.take(32)?.try_into().map_err(|_| IndexError::Damaged)?;
        Ok(Some(Digest::from_bytes(bytes)))
    }
}
