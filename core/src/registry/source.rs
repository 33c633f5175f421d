//! The bytes of an upload: counted and hashed on their way, the last ones held back until the digest is right.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::{
    client::Client,
    error::RegistryError,
    upload::{BlobSource, Meter},
};
use crate::digest::Digest;

const BLOCK_BYTES: usize = 1 << 20;
/// Small enough for a slow line to take one within the stall timeout.
const PIECE_BYTES: usize = 64 << 10;

/// A blob's bytes and what they must be.
pub(super) struct Source {
    pub(super) client: Client,
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) source: BlobSource,
    pub(super) meter: Arc<Meter>,
}

/// What the body of a request yields in place of its last bytes: hyper then drops the connection.
#[derive(Debug, thiserror::Error)]
#[error("the source of the upload failed")]
struct SourceFailed;

/// A new body from the first byte on.
pub(super) fn body(source: &Source) -> reqwest::Body {
    let blocks = match &source.source {
        BlobSource::Bytes(bytes) => check(stream::iter([Ok(bytes.clone())]).boxed(), source),
        BlobSource::File(path) => read_file(path, None, source),
        BlobSource::Part(path, offset) => read_file(path, Some(*offset), source),
        BlobSource::Registry(repository) => {
            check(source.client.blob(repository, source.digest, source.size), source)
        }
    };
    let meter = source.meter.clone();
    let size = source.size;
    let mut sent = 0;
    let pieces = blocks.flat_map(|block| stream::iter(cut(block))).map(move |piece| match piece {
        Ok(piece) => {
            sent += piece.len() as u64;
            meter.add(piece.len() as u64);
            if sent == size {
                meter.complete();
            }
            Ok(piece)
        }
        Err(error) => {
            meter.fail(RegistryError::Source { error: Box::new(error) });
            Err(SourceFailed)
        }
    });
    reqwest::Body::wrap_stream(pieces)
}

type Blocks = std::pin::Pin<Box<dyn Stream<Item = Result<Bytes, RegistryError>> + Send>>;

fn cut(block: Result<Bytes, RegistryError>) -> Vec<Result<Bytes, RegistryError>> {
    let mut block = match block {
        Ok(block) => block,
        Err(error) => return vec![Err(error)],
    };
    let mut pieces = Vec::new();
    while !block.is_empty() {
        pieces.push(Ok(block.split_to(block.len().min(PIECE_BYTES))));
    }
    pieces
}

/// Counts and hashes; the block that completes the blob passes only if the digest is right.
struct Check {
    hasher: Sha256,
    seen: u64,
    digest: Digest,
    size: u64,
    what: String,
}

impl Check {
    fn new(source: &Source) -> Self {
        let what = match &source.source {
            BlobSource::File(path) | BlobSource::Part(path, _) => path.display().to_string(),
            BlobSource::Bytes(_) => "the blob".to_owned(),
            BlobSource::Registry(repository) => repository.to_string(),
        };
        Check { hasher: Sha256::new(), seen: 0, digest: source.digest, size: source.size, what }
    }

    fn pass(&mut self, block: Bytes) -> Result<Bytes, RegistryError> {
        self.seen += block.len() as u64;
        if self.seen > self.size {
            return Err(self.wrong_size());
        }
        self.hasher.update(&block);
        if self.seen == self.size {
            let actual = Digest::from_bytes(self.hasher.clone().finalize().into());
            if actual != self.digest {
                let (what, expected) = (self.what.clone(), self.digest);
                return Err(RegistryError::Digest { what, expected, actual });
            }
        }
        Ok(block)
    }

    /// At the end of the source.
    fn end(&self) -> Result<(), RegistryError> {
        if self.seen != self.size {
            return Err(self.wrong_size());
        }
        Ok(())
    }

    fn wrong_size(&self) -> RegistryError {
        RegistryError::Size { what: self.what.clone(), expected: self.size, actual: self.seen }
    }
}

fn check(blocks: Blocks, source: &Source) -> Blocks {
    let state = (blocks, Check::new(source), false);
    Box::pin(stream::unfold(state, |(mut blocks, mut check, ended)| async move {
        if ended {
            return None;
        }
        let item = match blocks.next().await {
            Some(block) => block.and_then(|block| check.pass(block)),
            None => match check.end() {
                Ok(()) => return None,
                Err(error) => Err(error),
            },
        };
        let ended = item.is_err();
        Some((item, (blocks, check, ended)))
    }))
}

/// Reads and hashes on a thread of its own: a whole file, or as much of it as the blob has from `offset` on.
fn read_file(path: &Path, offset: Option<u64>, source: &Source) -> Blocks {
    let (sender, receiver) = mpsc::channel(2);
    let (path, check) = (path.to_owned(), Check::new(source));
    let part = offset.map(|offset| (offset, source.size));
    let failed = sender.clone();
    let name = path.clone();
    let spawned = std::thread::Builder::new()
        .name("upload".into())
        .spawn(move || send_file(&path, part, check, &sender));
    if let Err(error) = spawned {
        let _ = failed.try_send(Err(unreadable(&name, &error)));
    }
    Box::pin(stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|block| (block, receiver))
    }))
}

/// A file, where the part begins.
fn open_part(path: &Path, part: Option<(u64, u64)>) -> std::io::Result<std::io::Take<File>> {
    let mut file = File::open(path)?;
    let (offset, size) = part.unwrap_or((0, u64::MAX));
    file.seek(SeekFrom::Start(offset))?;
    Ok(file.take(size))
}

fn send_file(
    path: &Path,
    part: Option<(u64, u64)>,
    mut check: Check,
    sender: &mpsc::Sender<Result<Bytes, RegistryError>>,
) {
    let opened = open_part(path, part).map_err(|error| unreadable(path, &error));
    let result = opened.and_then(|mut file| {
        loop {
            let mut block = Vec::with_capacity(BLOCK_BYTES);
            let read = (&mut file).take(BLOCK_BYTES as u64).read_to_end(&mut block);
            if read.map_err(|error| unreadable(path, &error))? == 0 {
                return check.end();
            }
            let block = check.pass(Bytes::from(block))?;
            // The other side is gone when the request has failed.
            if sender.blocking_send(Ok(block)).is_err() {
                return Ok(());
            }
        }
    });
    if let Err(error) = result {
        let _ = sender.blocking_send(Err(error));
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> RegistryError {
    RegistryError::File { path: path.to_owned(), reason: error.to_string() }
}
