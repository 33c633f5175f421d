//! Who does what at the same time: the caller produces, one thread hashes what was produced, workers compress, one thread
//! hashes and writes what they made, in order. Every queue is bounded, and buffers go round.

use std::{
    io::{self, Write},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread::{self, Scope},
};

use sha2::{Digest as _, Sha256};

use crate::{
    digest::Digest,
    layer::{
        WriteOptions,
        blocks::{self, Block, Pool, lock},
    },
    request::Compression,
};

use super::{BLOCK_BYTES, LayerError, Packer, check_level, gzip, packer};

/// Blocks that wait for the hasher, and for a worker beyond those that are worked on.
const WAITING_MAX: usize = 2;

/// What a stream became.
#[derive(Clone, Debug)]
pub(in crate::layer) struct Compressed {
    pub(in crate::layer) diff_id: Digest,
    pub(in crate::layer) uncompressed_bytes: u64,
    pub(in crate::layer) digest: Digest,
    pub(in crate::layer) size: u64,
}

/// Runs `produce` with a writer, and gives what it gave beside what its bytes became in `blob`.
pub(in crate::layer) fn run<T>(
    options: &WriteOptions,
    blob: &mut (dyn Write + Send),
    produce: impl FnOnce(&mut BlockWriter) -> Result<T, LayerError>,
) -> Result<(T, Compressed), LayerError> {
    check_level(options.compression)?;
    let buffers = &Buffers { blocks: Pool::new(BLOCK_BYTES), packed: Mutex::default() };
    thread::scope(|scope| {
        let compresses = options.compression != Compression::Uncompressed;
        let workers = if compresses { options.workers.max(1) } else { 1 };
        let (hash, blocks_to_hash) = sync_channel(WAITING_MAX);
        let (pack, jobs) = sync_channel(WAITING_MAX);
        let (order, in_order) = sync_channel(workers + WAITING_MAX);
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..workers {
            start_worker(scope, options.compression, jobs.clone(), buffers)?;
        }
        drop(jobs);
        let hasher = spawn(scope, move || blocks::hash(&blocks_to_hash, &buffers.blocks))?;
        let compression = options.compression;
        let output = spawn(scope, move || write_blocks(&in_order, compression, blob, buffers))?;
        let mut writer = BlockWriter::new(&buffers.blocks, Queues { hash, pack, order });
        let produced = produce(&mut writer).and_then(|produced| writer.finish().map(|()| produced));
        drop(writer);
        let (diff_id, uncompressed_bytes) = join(hasher);
        // Where writing failed the producer failed too, but only for that reason.
        let (digest, size) = join(output)?;
        let digest = digest.unwrap_or(diff_id);
        Ok((produced?, Compressed { diff_id, uncompressed_bytes, digest, size }))
    })
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<thread::ScopedJoinHandle<'scope, T>, LayerError> {
    thread::Builder::new().spawn_scoped(scope, work).map_err(LayerError::Compress)
}

fn join<T>(handle: thread::ScopedJoinHandle<'_, T>) -> T {
    handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A block that a worker is done with.
struct Packed {
    block: Arc<Block>,
    /// `None` where the block is written as it is.
    bytes: Option<Vec<u8>>,
    crc: crc32fast::Hasher,
}

struct Job {
    block: Arc<Block>,
    done: Sender<io::Result<Packed>>,
}

/// Buffers for blocks and for what becomes of them.
struct Buffers {
    blocks: Pool,
    packed: Mutex<Vec<Vec<u8>>>,
}

struct Queues {
    hash: SyncSender<Arc<Block>>,
    pack: SyncSender<Job>,
    order: SyncSender<Receiver<io::Result<Packed>>>,
}

/// Takes the stream's bytes.
pub(in crate::layer) struct BlockWriter<'a> {
    pool: &'a Pool,
    queues: Queues,
    block: Vec<u8>,
    filled: usize,
    position: u64,
}

impl<'a> BlockWriter<'a> {
    fn new(pool: &'a Pool, queues: Queues) -> Self {
        BlockWriter { pool, queues, block: pool.take(), filled: 0, position: 0 }
    }

    /// Bytes of the stream so far.
    pub(in crate::layer) fn position(&self) -> u64 {
        self.position
    }

    pub(in crate::layer) fn write(&mut self, mut bytes: &[u8]) -> Result<(), LayerError> {
        while !bytes.is_empty() {
            let room = self.room()?;
            let count = room.len().min(bytes.len());
            room[..count].copy_from_slice(&bytes[..count]);
            self.advance(count);
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Where the next bytes may be put; never empty. `advance` then says how many were.
    pub(in crate::layer) fn room(&mut self) -> Result<&mut [u8], LayerError> {
        if self.filled == BLOCK_BYTES {
            self.send(false)?;
        }
        Ok(&mut self.block[self.filled..])
    }

    pub(in crate::layer) fn advance(&mut self, count: usize) {
        self.filled += count;
        self.position += count as u64;
    }

    fn finish(&mut self) -> Result<(), LayerError> {
        self.send(true)
    }

    fn send(&mut self, last: bool) -> Result<(), LayerError> {
        let next = if last { Vec::new() } else { self.pool.take() };
        let buffer = std::mem::replace(&mut self.block, next);
        let block = Arc::new(Block { buffer, length: self.filled, last });
        self.filled = 0;
        let (done, result) = channel();
        let gone = |_| LayerError::Write(io::ErrorKind::BrokenPipe.into());
        self.queues.order.send(result).map_err(|_| gone(()))?;
        self.queues.hash.send(block.clone()).map_err(|_| gone(()))?;
        self.queues.pack.send(Job { block, done }).map_err(|_| gone(()))
    }
}

fn start_worker<'scope>(
    scope: &'scope Scope<'scope, '_>,
    compression: Compression,
    jobs: Arc<Mutex<Receiver<Job>>>,
    buffers: &'scope Buffers,
) -> Result<(), LayerError> {
    let mut packer = packer(compression).map_err(LayerError::Compress)?;
    let needs_crc = matches!(compression, Compression::Gzip { members: false, .. });
    spawn(scope, move || {
        loop {
            // The lock is held while waiting: whoever has it is the next to work.
            let Ok(Job { block, done }) = lock(&jobs).recv() else { return };
            let packed = pack(packer.as_deref_mut(), needs_crc, block, buffers);
            // Nobody waits for it where writing failed.
            let _ = done.send(packed);
        }
    })?;
    Ok(())
}

fn pack(
    packer: Option<&mut (dyn Packer + 'static)>,
    needs_crc: bool,
    block: Arc<Block>,
    buffers: &Buffers,
) -> io::Result<Packed> {
    let mut crc = crc32fast::Hasher::new();
    if needs_crc {
        crc.update(block.bytes());
    }
    let Some(packer) = packer else { return Ok(Packed { block, bytes: None, crc }) };
    let mut bytes = lock(&buffers.packed).pop().unwrap_or_default();
    bytes.clear();
    packer.pack(block.bytes(), block.last, &mut bytes)?;
    Ok(Packed { block, bytes: Some(bytes), crc })
}

/// The blob's digest (`None` where the blob is the stream itself) and size.
fn write_blocks(
    in_order: &Receiver<Receiver<io::Result<Packed>>>,
    compression: Compression,
    blob: &mut (dyn Write + Send),
    buffers: &Buffers,
) -> Result<(Option<Digest>, u64), LayerError> {
    let hashed = compression != Compression::Uncompressed;
    let mut out = HashingWriter { blob, hasher: hashed.then(Sha256::new), size: 0 };
    let single = matches!(compression, Compression::Gzip { members: false, .. });
    let (mut crc, mut length) = (crc32fast::Hasher::new(), 0);
    if single {
        out.write(&gzip::HEADER)?;
    }
    for result in in_order {
        // A worker that is gone without a result has panicked, and that goes through `scope`.
        let Ok(packed) = result.recv() else { break };
        let packed = packed.map_err(LayerError::Compress)?;
        crc.combine(&packed.crc);
        length += packed.block.length as u64;
        out.write(packed.bytes.as_deref().unwrap_or(packed.block.bytes()))?;
        lock(&buffers.packed).extend(packed.bytes);
        buffers.blocks.release(packed.block);
    }
    if single {
        out.write(&gzip::trailer(crc.finalize(), length))?;
    }
    out.blob.flush().map_err(LayerError::Write)?;
    let digest = out.hasher.map(|hasher| Digest::from_bytes(hasher.finalize().into()));
    Ok((digest, out.size))
}

struct HashingWriter<'a> {
    blob: &'a mut (dyn Write + Send),
    hasher: Option<Sha256>,
    size: u64,
}

impl HashingWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        self.size += bytes.len() as u64;
        self.blob.write_all(bytes).map_err(LayerError::Write)
    }
}
