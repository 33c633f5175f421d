//! Layers on demand: the index, the blob or the unpacked tree of a layer, each made once, however many stages ask.
//!
//! First contact with a base is one stream: download, verify, inflate, index, and unpack where a RUN needs the tree.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures_util::{StreamExt, future::try_join_all};
use tokio::{sync::mpsc, task::spawn_blocking};

use crate::{
    cache::KeyBuilder,
    digest::Digest,
    error::{Class, Error},
    event::{Event, Reporter, VertexId},
    layer::{LayerError, LayerSink, ReadLayer, limits::ReadLimits, read_layer},
    registry::{Client, PinnedReference},
    resolve::{LayerRef, Origin},
    rootfs::{UnmappedOwner, Unpacker},
    store::{Store, VerifyingReader},
    tree::{EntryPath, LayerIndex, Snapshot, SnapshotLayer},
};

/// Chunks of a download that wait for the reader.
const CHUNKS_WAITING: usize = 64;

/// Gives layers' indexes, blobs and trees.
pub struct Layers {
    pub store: Store,
    pub client: Client,
    pub reporter: Arc<dyn Reporter>,
    /// Under which trees are kept: those of another user namespace have other owners on disk.
    flavour: String,
    indexes: Mutex<HashMap<Digest, Arc<LayerIndex>>>,
    /// One lock a layer: of several that want it, one fetches.
    busy: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    pulled_bytes: std::sync::atomic::AtomicU64,
    next_vertex: Arc<std::sync::atomic::AtomicU32>,
}

impl Layers {
    pub fn new(
        store: Store,
        client: Client,
        reporter: Arc<dyn Reporter>,
        flavour: String,
        next_vertex: Arc<std::sync::atomic::AtomicU32>,
    ) -> Self {
        Layers {
            store,
            client,
            reporter,
            flavour,
            indexes: Mutex::default(),
            busy: Mutex::default(),
            pulled_bytes: Default::default(),
            next_vertex,
        }
    }

    /// Bytes that came from registries.
    pub fn pulled_bytes(&self) -> u64 {
        self.pulled_bytes.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn lock(&self, diff_id: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut busy = self.busy.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        busy.entry(*diff_id).or_default().clone()
    }

    /// Keeps the index of a layer that was just written.
    pub fn remember(&self, diff_id: Digest, index: LayerIndex) -> Result<Arc<LayerIndex>, Error> {
        self.store.put_index(&diff_id, &index).map_err(host)?;
        Ok(self.keep(diff_id, index))
    }

    fn keep(&self, diff_id: Digest, index: LayerIndex) -> Arc<LayerIndex> {
        let index = Arc::new(index);
        let mut indexes = self.indexes.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        indexes.insert(diff_id, index.clone());
        index
    }

    fn known_index(&self, diff_id: &Digest) -> Option<Arc<LayerIndex>> {
        let indexes = self.indexes.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(index) = indexes.get(diff_id) {
            return Some(index.clone());
        }
        drop(indexes);
        Some(self.keep(*diff_id, self.store.index(diff_id)?))
    }

    /// The snapshot of a chain of layers: its indexes, fetched side by side where they are not known.
    pub async fn snapshot(&self, layers: &[LayerRef]) -> Result<Snapshot, Error> {
        let indexes = try_join_all(layers.iter().map(|layer| self.index(layer))).await?;
        let layers = layers.iter().zip(indexes);
        let layers = layers.map(|(layer, index)| SnapshotLayer { diff_id: layer.diff_id, index });
        Ok(Snapshot::new(layers.collect()))
    }

    async fn index(&self, layer: &LayerRef) -> Result<Arc<LayerIndex>, Error> {
        if let Some(index) = self.known_index(&layer.diff_id) {
            return Ok(index);
        }
        let lock = self.lock(&layer.diff_id);
        let _guard = lock.lock().await;
        if let Some(index) = self.known_index(&layer.diff_id) {
            return Ok(index);
        }
        let (read, _) = self.read(layer, None).await?;
        self.remember(layer.diff_id, read.index)
    }

    /// Makes sure that a layer's blob is in the store.
    pub async fn blob(&self, layer: &LayerRef) -> Result<(), Error> {
        if self.store.has_blob(&layer.descriptor.digest, layer.descriptor.size) {
            return Ok(());
        }
        if self.known_index(&layer.diff_id).is_none() {
            self.index(layer).await?;
            if self.store.has_blob(&layer.descriptor.digest, layer.descriptor.size) {
                return Ok(());
            }
        }
        let lock = self.lock(&layer.diff_id);
        let _guard = lock.lock().await;
        if self.store.has_blob(&layer.descriptor.digest, layer.descriptor.size) {
            return Ok(());
        }
        let source = self.open(layer)?;
        let drained = blocking(move || source.finish()).await?;
        drained.map_err(|error| of_layer(layer, Error::from_cause(Class::Source, error)))
    }

    /// The unpacked trees of a chain, lowest first, in overlayfs's lower form.
    pub async fn trees(&self, layers: &[LayerRef]) -> Result<Vec<PathBuf>, Error> {
        try_join_all((0..layers.len()).map(|at| self.tree(layers, at))).await
    }

    async fn tree(&self, layers: &[LayerRef], at: usize) -> Result<PathBuf, Error> {
        let layer = &layers[at];
        let lock = self.lock(&layer.diff_id);
        let guard = lock.lock().await;
        if let Some(index) = self.known_index(&layer.diff_id)
            && let Some(tree) = self.store.tree(&self.flavour, &tree_key(&index, layers, at))
        {
            return Ok(tree);
        }
        let place = self.store.new_tree().map_err(host)?;
        let unpacker = Unpacker::new(open_directory(&place.join("fs"))?).map_err(host)?;
        let (read, unpacker) = self.read(layer, Some(unpacker)).await?;
        let index = self.remember(layer.diff_id, read.index)?;
        // Lower layers never wait for this one, so waiting for their indexes under the lock is safe.
        let below = self.below(&index, &layers[..at]).await?;
        let finished = index.clone();
        let unpacker = unpacker.ok_or_else(|| Error::new(Class::Bug, "an unpacker got lost"))?;
        blocking(move || unpacker.finish(&finished, &|path| inherited(&below, path)))
            .await?
            .map_err(host)?;
        let key = tree_key(&index, layers, at);
        let tree = self.store.commit_tree(&place, &self.flavour, &key).map_err(host)?;
        drop(guard);
        Ok(tree)
    }

    /// A layer into a directory of the caller's; gives its index.
    pub async fn unpack(
        &self,
        layer: &LayerRef,
        unpacker: Unpacker,
    ) -> Result<Arc<LayerIndex>, Error> {
        let lock = self.lock(&layer.diff_id);
        let _guard = lock.lock().await;
        let (read, unpacker) = self.read(layer, Some(unpacker)).await?;
        let index = self.remember(layer.diff_id, read.index)?;
        let finished = index.clone();
        let unpacker = unpacker.ok_or_else(|| Error::new(Class::Bug, "an unpacker got lost"))?;
        // What is implied takes what lies below it when the layer is laid over that.
        blocking(move || unpacker.finish(&finished, &|_| None)).await?.map_err(host)?;
        Ok(index)
    }

    /// Several trees of a chain as one, kept like a tree: the oldest ones of a chain that is too long for overlayfs.
    pub async fn merged(
        &self,
        layers: &[LayerRef],
        topmost_first: Vec<PathBuf>,
    ) -> Result<PathBuf, Error> {
        let below = &layers[..topmost_first.len().min(layers.len())];
        let chain = below.iter().fold(KeyBuilder::new("merged"), |key, layer| {
            key.bytes("diff-id", layer.diff_id.as_bytes())
        });
        let key = chain.number("count", topmost_first.len() as u64).finish().to_string();
        // Trees that are several layers' at once.
        let flavour = format!("{}-merged", self.flavour);
        if let Some(tree) = self.store.tree(&flavour, &key) {
            return Ok(tree);
        }
        let place = self.store.new_tree().map_err(host)?;
        let into = open_directory(&place.join("fs"))?;
        let lowest_first = topmost_first.iter().rev().map(|tree| open_directory(tree));
        let lowest_first = lowest_first.collect::<Result<Vec<_>, _>>()?;
        blocking(move || crate::rootfs::merge(&lowest_first, into)).await?.map_err(host)?;
        self.store.commit_tree(&place, &flavour, &key).map_err(host)
    }

    /// Takes an upper directory, made equal to its layer, as that layer's tree.
    pub fn adopt_tree(&self, place: &Path, diff_id: &Digest) -> Result<PathBuf, Error> {
        self.store.commit_tree(place, &self.flavour, &diff_id.hex()).map_err(host)
    }

    /// The snapshot below a layer, where its index has implied directories; else an empty one, unneeded.
    async fn below(&self, index: &LayerIndex, layers: &[LayerRef]) -> Result<Snapshot, Error> {
        if has_implied(index) {
            Box::pin(self.snapshot(layers)).await
        } else {
            Ok(Snapshot::default())
        }
    }

    /// Reads a whole layer once: from the store, else from its origin (whose bytes are then kept).
    async fn read(
        &self,
        layer: &LayerRef,
        unpacker: Option<Unpacker>,
    ) -> Result<(ReadLayer, Option<Unpacker>), Error> {
        let source = self.open(layer)?;
        let media_type = layer.descriptor.media_type.clone();
        let label = layer.descriptor.digest.to_string();
        let read = blocking(move || read_source(source, &media_type, unpacker)).await?;
        let (read, unpacker) = read.map_err(|error| of_layer(layer, error))?;
        if read.diff_id != layer.diff_id {
            let title = format!(
                "layer {label} unpacks to {}, its image's configuration says {}",
                read.diff_id, layer.diff_id
            );
            return Err(of_layer(layer, Error::new(Class::Source, title)));
        }
        for warning in &read.warnings {
            let message = format!("layer {label}: {warning}");
            let warning = crate::event::Warning { message, location: None, hint: None };
            self.reporter.report(Event::Warning(warning));
        }
        Ok((read, unpacker))
    }

    /// The wanted regular files of a layer, copied into a spool in one pass. Needs no privilege.
    pub async fn extract(
        &self,
        layer: &LayerRef,
        wanted: BTreeSet<EntryPath>,
    ) -> Result<(Arc<File>, std::collections::BTreeMap<EntryPath, (u64, u64)>), Error> {
        self.blob(layer).await?;
        let index = self.index(layer).await?;
        let source = self.open(layer)?;
        let spool = self.store.spool().map_err(host)?;
        let media_type = layer.descriptor.media_type.clone();
        let extracted = blocking(move || {
            let mut source = source;
            let found =
                crate::layer::extract_files(&mut source, &media_type, &index, &wanted, &spool);
            found.map(|found| (Arc::new(spool), found))
        });
        extracted.await?.map_err(|error| of_layer(layer, Error::from_cause(Class::Source, error)))
    }

    /// The digests of the wanted regular files of a layer, in one pass over its blob that keeps nothing.
    pub async fn digests(
        &self,
        layer: &LayerRef,
        wanted: BTreeSet<EntryPath>,
    ) -> Result<std::collections::BTreeMap<EntryPath, Digest>, Error> {
        self.blob(layer).await?;
        let index = self.index(layer).await?;
        let mut source = self.open(layer)?;
        let media_type = layer.descriptor.media_type.clone();
        let hashed =
            blocking(move || crate::layer::hash_files(&mut source, &media_type, &index, &wanted));
        hashed.await?.map_err(|error| of_layer(layer, Error::from_cause(Class::Source, error)))
    }

    /// The tree of a layer, where one is on disk already.
    pub fn existing_tree(&self, layers: &[LayerRef], at: usize) -> Option<PathBuf> {
        let index = self.known_index(&layers[at].diff_id)?;
        self.store.tree(&self.flavour, &tree_key(&index, layers, at))
    }

    fn open(&self, layer: &LayerRef) -> Result<Source, Error> {
        let descriptor = &layer.descriptor;
        if self.store.has_blob(&descriptor.digest, descriptor.size) {
            let blob = self.store.open_blob(&descriptor.digest, descriptor.size).map_err(host)?;
            return Ok(Source { reader: Box::new(blob), blob: None });
        }
        let raw: Box<dyn Read + Send> = match &layer.origin {
            Some(Origin::Registry(pinned)) => self.download(layer, pinned),
            Some(Origin::Layout(layout)) => {
                let (file, _) = layout
                    .open_blob(&descriptor.digest, Some(descriptor.size))
                    .map_err(|error| Error::from_cause(Class::Source, error))?;
                Box::new(file)
            }
            None => {
                let title =
                    format!("layer {} is missing from the state directory", descriptor.digest);
                return Err(Error::new(Class::Host, title).hint("run `bareboat cache prune`"));
            }
        };
        let writer = self.store.unhashed_blob_writer().map_err(host)?;
        let tee = Tee { reader: raw, writer: Some(writer) };
        let (digest, size) = (descriptor.digest, descriptor.size);
        let reader = VerifyingReader::new(tee, digest, size);
        Ok(Source { reader: Box::new(io::empty()), blob: Some((reader, digest)) })
    }

    /// Starts a download; its chunks come through a bounded channel.
    fn download(&self, layer: &LayerRef, pinned: &PinnedReference) -> Box<dyn Read + Send> {
        let descriptor = layer.descriptor.clone();
        let mut stream = self.client.blob(&pinned.repository, descriptor.digest, descriptor.size);
        let (sender, receiver) = mpsc::channel(CHUNKS_WAITING);
        let id = VertexId(self.next_vertex.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let reporter = self.reporter.clone();
        self.pulled_bytes.fetch_add(descriptor.size, std::sync::atomic::Ordering::Relaxed);
        tokio::spawn(async move {
            let what = format!("{} from the registry", descriptor.digest.short());
            let started = Event::VertexStarted {
                id,
                kind: crate::event::VertexKind::Pull,
                name: what.clone(),
                line: None,
            };
            reporter.report(started);
            let mut done = 0;
            while let Some(chunk) = stream.next().await {
                done += chunk.as_ref().map_or(0, |chunk: &Bytes| chunk.len() as u64);
                let failed = chunk.is_err();
                let chunk = chunk.map_err(io::Error::other);
                if sender.send(chunk).await.is_err() || failed {
                    reporter.report(Event::VertexFinished {
                        id,
                        result: crate::event::VertexResult::Failed { message: "cut off".into() },
                    });
                    return;
                }
                let total = descriptor.size;
                reporter.report(Event::VertexProgress { id, what: what.clone(), done, total });
            }
            let layer = Some((descriptor.digest, descriptor.size));
            let result = crate::event::VertexResult::Done { layer };
            reporter.report(Event::VertexFinished { id, result });
        });
        Box::new(ChunkReader { receiver, chunk: Bytes::new() })
    }
}

/// A layer's bytes: a verified blob of the store, or a stream that becomes one.
struct Source {
    reader: Box<dyn Read + Send>,
    blob: Option<(VerifyingReader<Tee>, Digest)>,
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.blob {
            Some((reader, _)) => reader.read(buffer),
            None => self.reader.read(buffer),
        }
    }
}

impl Source {
    /// Reads to the end, which verifies, and keeps the blob.
    fn finish(mut self) -> io::Result<()> {
        io::copy(&mut self, &mut io::sink())?;
        if let Some((reader, digest)) = self.blob
            && let Some(writer) = reader.into_inner().writer
        {
            writer.commit_as(&digest).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

fn read_source(
    mut source: Source,
    media_type: &str,
    mut unpacker: Option<Unpacker>,
) -> Result<(ReadLayer, Option<Unpacker>), Error> {
    let sink = unpacker.as_mut().map(|unpacker| unpacker as &mut dyn LayerSink);
    let read = read_layer(&mut source, media_type, ReadLimits::default(), sink)
        .map_err(|error| Error::from_cause(class_of(&error), error))?;
    source.finish().map_err(|error| Error::from_cause(Class::Source, error))?;
    Ok((read, unpacker))
}

/// A system call that failed while a layer was unpacked is this host's fault, all else the layer's.
fn class_of(error: &LayerError) -> Class {
    let mut next: Option<&dyn std::error::Error> = match error {
        LayerError::Sink { source, .. } => Some(source),
        _ => None,
    };
    while let Some(cause) = next {
        let error = cause.downcast_ref::<io::Error>();
        let is_call = error.and_then(io::Error::raw_os_error).is_some();
        let inner = error.and_then(io::Error::get_ref);
        if is_call || inner.is_some_and(|inner| inner.is::<UnmappedOwner>()) {
            return Class::Host;
        }
        next = cause.source();
    }
    Class::Source
}

/// Writes what it reads into a blob of the store.
struct Tee {
    reader: Box<dyn Read + Send>,
    writer: Option<crate::store::BlobWriter>,
}

impl Read for Tee {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.reader.read(buffer)?;
        if let Some(writer) = &mut self.writer {
            writer.write_all(&buffer[..got])?;
        }
        Ok(got)
    }
}

struct ChunkReader {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    chunk: Bytes,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.chunk = chunk?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.chunk.len());
        buffer[..count].copy_from_slice(&self.chunk.split_to(count));
        Ok(count)
    }
}

fn has_implied(index: &LayerIndex) -> bool {
    index.rows().iter().any(|row| row.implied && !row.path.is_root())
}

/// Trees are kept by diff ID; one with implied directories depends on what lies below it as well.
fn tree_key(index: &LayerIndex, layers: &[LayerRef], at: usize) -> String {
    let diff_id = layers[at].diff_id.hex();
    if !has_implied(index) {
        return diff_id;
    }
    let chain = layers[..at].iter().fold(KeyBuilder::new("chain"), |key, layer| {
        key.bytes("diff-id", layer.diff_id.as_bytes())
    });
    format!("{diff_id}-{}", chain.finish().digest().short())
}

fn inherited(below: &Snapshot, path: &EntryPath) -> Option<crate::tree::Metadata> {
    let entry = below.lookup(path)?;
    entry.is_directory().then(|| entry.metadata().clone())
}

pub fn open_directory(path: &Path) -> Result<OwnedFd, Error> {
    File::open(path).map(OwnedFd::from).map_err(host)
}

/// An error of a layer names it, and the line of the Dockerfile that names its image.
fn of_layer(layer: &LayerRef, error: Error) -> Error {
    let error = error.context(format!("layer {}", layer.descriptor.digest));
    match &layer.place {
        Some(place) if error.location().is_none() => error.at_location(place.clone()),
        _ => error,
    }
}

/// Runs on a thread for blocking work; a panic there is a bug, told as such.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    spawn_blocking(work)
        .await
        .map_err(|error| Error::new(Class::Bug, format!("a worker died: {error}")))
}

pub fn host(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::from_cause(Class::Host, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_without_an_id_is_the_hosts_fault() {
        let sink = |source| LayerError::Sink { path: EntryPath::clean(b"a").unwrap(), source };
        let at = |source| crate::rootfs::handle::at_path(&EntryPath::clean(b"a").unwrap(), source);
        let owner = UnmappedOwner { uid: 9_999_999, gid: 0 };
        let unmapped = io::Error::new(io::ErrorKind::InvalidInput, owner);
        assert_eq!(class_of(&sink(at(unmapped))), Class::Host);
        assert_eq!(class_of(&sink(at(io::Error::from_raw_os_error(28)))), Class::Host);
        assert_eq!(class_of(&sink(at(io::ErrorKind::InvalidData.into()))), Class::Source);
    }
}
