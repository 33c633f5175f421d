//! A foreign layer's bytes as an index, and its entries for a sink.

use std::{
    io::{self, Read},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use crate::{
    digest::Digest,
    tree::{EntryPath, Kind, LayerIndex, Metadata, Row, is_small_file},
};

use super::{
    LayerError, LayerSink, ReadLayer, ReadLimits,
    blocks::{self, Block, Pool},
    names::{Inserted, Names, Place, check_symlink_target},
    source::Source,
    tar::{Member, MemberKind, TarError, TarReader},
};

const BLOCK_BYTES: usize = 256 << 10;
/// Blocks between decompression and each of its two readers.
const WAITING_MAX: usize = 8;

/// Reads a layer blob to its end: its diff ID, its index, and for `sink` its entries in order.
///
/// Decompression and hashing run in threads of their own. The blob's own digest is the caller's to check, in `input`.
/// Damage of any kind, names that no layer may hold and hard links out of the layer are errors; the sink may have got a
/// part of the entries then.
pub fn read_layer(
    input: &mut (dyn Read + Send),
    media_type: &str,
    limits: ReadLimits,
    sink: Option<&mut dyn LayerSink>,
) -> Result<ReadLayer, LayerError> {
    let pool = &Pool::new(BLOCK_BYTES);
    let (to_parse, blocks_to_parse) = sync_channel(WAITING_MAX);
    let (to_hash, blocks_to_hash) = sync_channel(WAITING_MAX);
    thread::scope(|scope| {
        let spawn = || thread::Builder::new();
        let source = spawn()
            .spawn_scoped(scope, move || {
                send_blocks(Source::open(input, media_type, limits)?, &to_parse, &to_hash, pool)
            })
            .map_err(LayerError::Read)?;
        let hasher = spawn()
            .spawn_scoped(scope, move || blocks::hash(&blocks_to_hash, pool))
            .map_err(LayerError::Read)?;
        let parsed = parse(BlockReader::new(blocks_to_parse, pool), limits, sink);
        // A source that failed looks like an early end to the parser, whatever that made of it.
        source.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let hashed = hasher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        parsed.map(|(index, warnings)| read(hashed, index, warnings))
    })
}

fn read(hashed: (Digest, u64), index: LayerIndex, warnings: Vec<String>) -> ReadLayer {
    let (diff_id, uncompressed_bytes) = hashed;
    ReadLayer { diff_id, uncompressed_bytes, index, warnings }
}

/// Ends well where the parser has given up, because that has its own error.
fn send_blocks(
    mut source: Source<'_>,
    to_parse: &SyncSender<Arc<Block>>,
    to_hash: &SyncSender<Arc<Block>>,
    pool: &Pool,
) -> Result<(), LayerError> {
    loop {
        let mut buffer = pool.take();
        let length = source.fill(&mut buffer)?;
        let last = length < buffer.len();
        let block = Arc::new(Block { buffer, length, last });
        let gone = to_hash.send(block.clone()).is_err() || to_parse.send(block).is_err();
        if last || gone {
            return Ok(());
        }
    }
}

/// What comes out of the source's thread, as one stream.
struct BlockReader<'a> {
    blocks: Receiver<Arc<Block>>,
    pool: &'a Pool,
    block: Option<Arc<Block>>,
    at: usize,
}

impl<'a> BlockReader<'a> {
    fn new(blocks: Receiver<Arc<Block>>, pool: &'a Pool) -> Self {
        BlockReader { blocks, pool, block: None, at: 0 }
    }
}

impl Read for BlockReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.block.as_ref().is_none_or(|block| self.at == block.length) {
            self.block.take().into_iter().for_each(|block| self.pool.release(block));
            let Ok(block) = self.blocks.recv() else { return Ok(0) };
            (self.block, self.at) = (Some(block), 0);
        }
        let left = self.block.as_ref().map_or(&[][..], |block| &block.bytes()[self.at..]);
        let count = left.len().min(buffer.len());
        buffer[..count].copy_from_slice(&left[..count]);
        self.at += count;
        Ok(count)
    }
}

fn parse(
    input: BlockReader<'_>,
    limits: ReadLimits,
    sink: Option<&mut dyn LayerSink>,
) -> Result<(LayerIndex, Vec<String>), LayerError> {
    let mut reader = TarReader::new(input, limits);
    let mut parser =
        Parser { names: Names::new(limits.index_bytes_max), sink, dropped_attributes: 0 };
    while let Some(member) = reader.next_member()? {
        parser.member(member, &mut reader.body())?;
    }
    let mut warnings: Vec<String> = reader.warning().map(str::to_owned).into_iter().collect();
    if parser.dropped_attributes > 0 {
        warnings.push(format!(
            "{} extended attributes, ACLs and file flags are left out: layers keep security.capability only",
            parser.dropped_attributes
        ));
    }
    Ok((parser.names.into_index(), warnings))
}

struct Parser<'a> {
    names: Names,
    sink: Option<&'a mut dyn LayerSink>,
    dropped_attributes: u64,
}

impl Parser<'_> {
    fn member(&mut self, member: Member, body: &mut dyn Read) -> Result<(), LayerError> {
        let place = self.names.place(&member.name)?;
        match place {
            Place::Root if member.kind == MemberKind::Directory => Ok(()),
            Place::Root => Err(LayerError::Root),
            Place::Nowhere => Ok(()),
            Place::Opaque(directory) => self.opaque(&directory),
            Place::Whiteout(path) => self.whiteout(path),
            Place::Entry(path) => {
                self.dropped_attributes += member.dropped_attributes;
                match kind(member.kind, member.size) {
                    Ok(kind) => {
                        let is_file = matches!(kind, Kind::File { .. });
                        let mut row = Row::new(path, kind, member.metadata);
                        row.tar_offset = if is_file { member.body_offset } else { 0 };
                        self.entry(row, body)
                    }
                    Err(target) => self.hard_link(&path, &target, &member.metadata),
                }
            }
        }
    }

    fn opaque(&mut self, directory: &EntryPath) -> Result<(), LayerError> {
        let above = self.names.set_opaque(directory)?;
        above.iter().try_for_each(|above| self.tell_opaque(above))?;
        self.tell_opaque(directory)
    }

    fn tell_opaque(&mut self, directory: &EntryPath) -> Result<(), LayerError> {
        let Some(sink) = &mut self.sink else { return Ok(()) };
        sink.opaque(directory).map_err(|error| sink_error(directory, error))
    }

    fn tell(&mut self, inserted: &Inserted) -> Result<(), LayerError> {
        inserted.opaque.iter().try_for_each(|directory| self.tell_opaque(directory))
    }

    fn whiteout(&mut self, path: EntryPath) -> Result<(), LayerError> {
        let row = Row::new(path, Kind::Whiteout, Metadata::default());
        let inserted = self.names.insert(row.clone())?;
        self.tell(&inserted)?;
        match &mut self.sink {
            Some(sink) if !inserted.ignored => {
                sink.entry(&row, &mut io::empty()).map_err(|error| sink_error(&row.path, error))
            }
            _ => Ok(()),
        }
    }

    fn entry(&mut self, row: Row, body: &mut dyn Read) -> Result<(), LayerError> {
        let path = row.path.clone();
        let size = match &row.kind {
            Kind::File { size } => *size,
            Kind::Symlink { target } => {
                check_symlink_target(&path, target)?;
                0
            }
            _ => 0,
        };
        let keeps = matches!(row.kind, Kind::File { .. }) && is_small_file(&path, size);
        let inserted = self.names.insert(row)?;
        self.tell(&inserted)?;
        if !keeps {
            return self.tell_entry(&path, body);
        }
        let mut bytes = Vec::new();
        body.read_to_end(&mut bytes).map_err(|error| sink_error(&path, error))?;
        self.tell_entry(&path, &mut &bytes[..])?;
        self.names.keep_bytes(&path, bytes.into());
        Ok(())
    }

    /// With the row as the index has it: a directory may have become an opaque one.
    fn tell_entry(&mut self, path: &EntryPath, body: &mut dyn Read) -> Result<(), LayerError> {
        match (&mut self.sink, self.names.get(path)) {
            (Some(sink), Some(row)) => {
                sink.entry(row, body).map_err(|error| sink_error(path, error))
            }
            _ => Ok(()),
        }
    }

    fn hard_link(
        &mut self,
        path: &EntryPath,
        target: &[u8],
        metadata: &Metadata,
    ) -> Result<(), LayerError> {
        let (target, inserted) = self.names.link(path, target, metadata)?;
        self.tell(&inserted)?;
        match (&mut self.sink, self.names.get(path)) {
            (Some(sink), Some(row)) => {
                sink.hard_link(row, &target).map_err(|error| sink_error(path, error))
            }
            _ => Ok(()),
        }
    }
}

/// `Err` with the target for a hard link, which has the kind of what it leads to.
fn kind(kind: MemberKind, size: u64) -> Result<Kind, Vec<u8>> {
    Ok(match kind {
        MemberKind::File => Kind::File { size },
        MemberKind::Directory => Kind::DIRECTORY,
        MemberKind::Symlink { target } => Kind::Symlink { target: target.into() },
        MemberKind::CharacterDevice { major, minor } => Kind::CharacterDevice { major, minor },
        MemberKind::BlockDevice { major, minor } => Kind::BlockDevice { major, minor },
        MemberKind::Fifo => Kind::Fifo,
        MemberKind::HardLink { target } => return Err(target),
    })
}

/// The sink's own error, unless it only passed on what was wrong with the body.
fn sink_error(path: &EntryPath, error: io::Error) -> LayerError {
    match error.downcast::<TarError>() {
        Ok(error) => LayerError::Tar(error),
        Err(source) => LayerError::Sink { path: path.clone(), source },
    }
}
