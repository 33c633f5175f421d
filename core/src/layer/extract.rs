//! Single files out of a layer, or their digests, by its index.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
};

use sha2::{Digest as _, Sha256};

use crate::{
    digest::Digest,
    tree::{EntryPath, Kind, LayerIndex},
};

use super::{LayerError, ReadLimits, source::Source};

const BUFFER_BYTES: usize = 256 << 10;

/// Where a content stands in the layer's tar, and whose it is.
struct Wanted<'a> {
    length: u64,
    digest: Option<Digest>,
    paths: Vec<&'a EntryPath>,
}

/// Copies the content of the `wanted` regular files of a layer to the end of `spool`, in one pass that needs no privilege,
/// and gives offset and length in `spool` for each. Hard links give the content that they share.
///
/// `index` is the layer's own. `input` is always read to its end, where the caller's reader has the digest to compare.
/// A path that the index has no regular file at, and content that is not where the index says, are errors.
pub fn extract_files(
    input: &mut (dyn Read + Send),
    media_type: &str,
    index: &LayerIndex,
    wanted: &BTreeSet<EntryPath>,
    spool: &File,
) -> Result<BTreeMap<EntryPath, (u64, u64)>, LayerError> {
    let contents = contents(index, wanted)?;
    let mut stream = Stream::open(input, media_type)?;
    let mut found = BTreeMap::new();
    let mut end = spool.metadata().map_err(LayerError::Write)?.len();
    for (offset, content) in contents {
        let owner = content.paths[0];
        if content.length > 0 {
            stream.skip_to(offset, owner)?;
            let mut at = end;
            stream.digest(&content, |bytes| {
                spool.write_all_at(bytes, at)?;
                at += bytes.len() as u64;
                Ok(())
            })?;
        }
        let place = (end, content.length);
        found.extend(content.paths.into_iter().map(|path| (path.clone(), place)));
        end += content.length;
    }
    stream.finish()?;
    Ok(found)
}

/// Gives the content of the `wanted` regular files of a layer to `visit`, one after the other as the tar has them, in one
/// pass that needs no privilege and keeps nothing. Of hard links and of empty files only one is given.
///
/// `index` and `input` are as for [`extract_files`]. What `visit` leaves of a content is read over.
pub fn visit_files(
    input: &mut (dyn Read + Send),
    media_type: &str,
    index: &LayerIndex,
    wanted: &BTreeSet<EntryPath>,
    visit: &mut dyn FnMut(&EntryPath, &mut dyn Read) -> io::Result<()>,
) -> Result<(), LayerError> {
    let contents = contents(index, wanted)?;
    let mut stream = Stream::open(input, media_type)?;
    for (offset, content) in contents {
        let owner = content.paths[0];
        if content.length > 0 {
            stream.skip_to(offset, owner)?;
        }
        let end = stream.position + content.length;
        let mut body = Body { stream: &mut stream, left: content.length };
        visit(owner, &mut body)
            .map_err(|source| LayerError::Sink { path: owner.clone(), source })?;
        stream.skip_to(end, owner)?;
    }
    stream.finish()
}

/// One file's content in the stream.
struct Body<'a, 'b> {
    stream: &'a mut Stream<'b>,
    left: u64,
}

impl Read for Body<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let got = self.stream.source.fill(&mut buffer[..want]).map_err(io::Error::other)?;
        if got == 0 && want > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.stream.position += got as u64;
        self.left -= got as u64;
        Ok(got)
    }
}

/// The digests of the `wanted` regular files of a layer, in one pass; all as with [`extract_files`], but nothing is copied.
pub fn hash_files(
    input: &mut (dyn Read + Send),
    media_type: &str,
    index: &LayerIndex,
    wanted: &BTreeSet<EntryPath>,
) -> Result<BTreeMap<EntryPath, Digest>, LayerError> {
    let contents = contents(index, wanted)?;
    let mut stream = Stream::open(input, media_type)?;
    let mut found = BTreeMap::new();
    for (offset, content) in contents {
        let digest = if content.length > 0 {
            stream.skip_to(offset, content.paths[0])?;
            stream.digest(&content, |_| Ok(()))?
        } else {
            Digest::of(b"")
        };
        found.extend(content.paths.into_iter().map(|path| (path.clone(), digest)));
    }
    stream.finish()?;
    Ok(found)
}

/// By offset; empty files stand before all others, because theirs says nothing.
fn contents<'a>(
    index: &LayerIndex,
    wanted: &'a BTreeSet<EntryPath>,
) -> Result<BTreeMap<u64, Wanted<'a>>, LayerError> {
    let mut contents = BTreeMap::new();
    for path in wanted {
        let mismatch = || LayerError::IndexMismatch(path.clone());
        let row = index.get(path).ok_or_else(mismatch)?;
        let Kind::File { size: length } = row.kind else { return Err(mismatch()) };
        let offset = if length == 0 { 0 } else { row.tar_offset };
        let new = || Wanted { length, digest: row.digest, paths: Vec::new() };
        let content = contents.entry(offset).or_insert_with(new);
        if content.length != length {
            return Err(mismatch());
        }
        content.paths.push(path);
    }
    Ok(contents)
}

struct Stream<'a> {
    source: Source<'a>,
    position: u64,
    buffer: Vec<u8>,
}

impl<'a> Stream<'a> {
    fn open(input: &'a mut (dyn Read + Send), media_type: &str) -> Result<Self, LayerError> {
        let source = Source::open(input, media_type, ReadLimits::default())?;
        Ok(Stream { source, position: 0, buffer: vec![0; BUFFER_BYTES] })
    }

    /// Up to `left` bytes; empty only at the end.
    fn next(&mut self, left: u64) -> Result<&[u8], LayerError> {
        let want = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let got = self.source.fill(&mut self.buffer[..want])?;
        self.position += got as u64;
        Ok(&self.buffer[..got])
    }

    fn skip_to(&mut self, offset: u64, path: &EntryPath) -> Result<(), LayerError> {
        let mut left = offset.checked_sub(self.position);
        while let Some(count @ 1..) = left {
            let got = self.next(count)?.len() as u64;
            left = if got == 0 { None } else { Some(count - got) };
        }
        left.map(drop).ok_or_else(|| LayerError::IndexMismatch(path.clone()))
    }

    /// Reads one content and hands it on, piece by piece.
    fn digest(
        &mut self,
        content: &Wanted<'_>,
        mut each: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<Digest, LayerError> {
        let mismatch = || LayerError::IndexMismatch(content.paths[0].clone());
        let (mut hasher, mut done) = (Sha256::new(), 0);
        while done < content.length {
            let bytes = self.next(content.length - done)?;
            if bytes.is_empty() {
                return Err(mismatch());
            }
            hasher.update(bytes);
            each(bytes).map_err(LayerError::Write)?;
            done += bytes.len() as u64;
        }
        let digest = Digest::from_bytes(hasher.finalize().into());
        if content.digest.is_some_and(|expected| expected != digest) {
            return Err(mismatch());
        }
        Ok(digest)
    }

    fn finish(&mut self) -> Result<(), LayerError> {
        while !self.next(u64::MAX)?.is_empty() {}
        Ok(())
    }
}
