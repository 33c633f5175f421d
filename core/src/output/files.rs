//! The root file system as files: a tar, or a directory. Made of the layers' indexes and blobs: no tree is unpacked, no
//! privilege needed, and each layer is read once. A directory is filled layer by layer; a tar has its names in order, for
//! readers give a directory its time when they have left it, so the files' content waits in a spool.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io::{self, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    error::{Class, Error},
    image::platform::Platform,
    layer::{FlatTar, LayerDescriptor, LayerError, extract_files, visit_files},
    rootfs::{ExportOptions, Exporter, LeftOut},
    store::{Store, StoreError},
    tree::{Content, EntryPath, Kind, Row, Snapshot},
};

#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("the layer {0} cannot be read")]
    Blob(crate::digest::Digest, #[source] StoreError),
    #[error("the layer {0} cannot be written as files")]
    Layer(crate::digest::Digest, #[source] LayerError),
    #[error("{path} of {platform} is there already, from another platform")]
    Clash { path: EntryPath, platform: Platform },
}

impl FilesError {
    pub fn into_error(self) -> Error {
        match &self {
            FilesError::Clash { .. } => Error::from_cause(Class::Usage, self)
                .hint("leave platform-split=false out: each platform gets a folder of its own"),
            _ => Error::from_cause(Class::Host, self),
        }
    }
}

/// One platform's root file system: its names, and the blobs that hold its files' content.
pub struct FileSystem {
    pub platform: Platform,
    pub snapshot: Snapshot,
    /// Of the snapshot's layers, in the same order; their blobs are in the store.
    pub layers: Vec<LayerDescriptor>,
}

/// Writes all of them into one tar: each in a folder of its own where `split` says so.
pub fn write_tar(
    store: &Store,
    systems: &[FileSystem],
    split: bool,
    mtime_seconds: Option<i64>,
    out: &mut dyn io::Write,
) -> Result<(), FilesError> {
    check_clashes(systems, split)?;
    let failed = |source| FilesError::Write { path: PathBuf::from("the tar"), source };
    let mut tar = FlatTar::new(out, mtime_seconds);
    for system in systems {
        if split {
            tar.enter_folder(&folder(&system.platform)).map_err(failed)?;
        }
        write_sorted(store, system, &mut tar)?;
    }
    tar.finish().map_err(failed)
}

/// Merges all of them into a directory.
pub fn write_directory(
    store: &Store,
    systems: &[FileSystem],
    split: bool,
    options: ExportOptions,
    target: &Path,
) -> Result<LeftOut, FilesError> {
    check_clashes(systems, split)?;
    let mut left_out = LeftOut::default();
    for (at, system) in systems.iter().enumerate() {
        let target = if split { target.join(folder(&system.platform)) } else { target.to_owned() };
        let failed = |source| FilesError::Write { path: target.clone(), source };
        fs::create_dir_all(&target).map_err(failed)?;
        let directory = File::open(&target).map(OwnedFd::from).map_err(failed)?;
        // What the platforms share is deleted by the first one alone.
        let options = ExportOptions { delete: options.delete && (split || at == 0), ..options };
        let mut exporter = Exporter::new(directory, options).map_err(failed)?;
        write_system(store, system, &target, &mut exporter)?;
        let more = exporter.finish().map_err(failed)?;
        left_out.devices += more.devices;
        left_out.capabilities += more.capabilities;
    }
    Ok(left_out)
}

/// A platform as the name of a folder, as BuildKit has it.
fn folder(platform: &Platform) -> String {
    platform.to_string().replace('/', "_")
}

/// Platforms that share a place may share directories only.
fn check_clashes(systems: &[FileSystem], split: bool) -> Result<(), FilesError> {
    if split || systems.len() < 2 {
        return Ok(());
    }
    let mut seen: BTreeMap<EntryPath, bool> = BTreeMap::new();
    for system in systems {
        let mut clash = None;
        system.snapshot.walk(&EntryPath::root(), &mut |entry| {
            let is_directory = entry.is_directory();
            let old = seen.insert(entry.row.path.clone(), is_directory);
            if old.is_some_and(|was_directory| !(was_directory && is_directory)) {
                clash.get_or_insert_with(|| entry.row.path.clone());
            }
        });
        if let Some(path) = clash {
            return Err(FilesError::Clash { path, platform: system.platform.clone() });
        }
    }
    Ok(())
}

/// Directories first; then, layer by layer, what each has that shows.
fn write_system(
    store: &Store,
    system: &FileSystem,
    target: &Path,
    exporter: &mut Exporter,
) -> Result<(), FilesError> {
    let failed = |source| FilesError::Write { path: target.to_owned(), source };
    let mut directories = Vec::new();
    let mut by_layer: Vec<Vec<&Row>> = vec![Vec::new(); system.layers.len()];
    system.snapshot.walk(&EntryPath::root(), &mut |entry| match entry.is_directory() {
        true => directories.push(Row { metadata: entry.metadata().clone(), ..entry.row.clone() }),
        false => by_layer[entry.layer].push(entry.row),
    });
    for row in &directories {
        exporter.entry(row, &mut io::empty()).map_err(failed)?;
    }
    for (at, rows) in by_layer.iter().enumerate() {
        write_layer(store, system, at, rows, target, exporter)?;
    }
    Ok(())
}

/// What one layer has in the end, directories apart.
#[derive(Default)]
struct LayerFiles<'a> {
    /// Regular files with content, of hard links the first name.
    wanted: BTreeSet<EntryPath>,
    /// Further names, and the first.
    links: Vec<(&'a Row, &'a EntryPath)>,
    others: Vec<&'a Row>,
}

impl<'a> LayerFiles<'a> {
    /// `rows` in the order of their paths.
    fn of(rows: &[&'a Row]) -> Self {
        let mut first_names: HashMap<u32, &EntryPath> = HashMap::new();
        let mut files = LayerFiles::default();
        for row in rows {
            let first = match row.link_group {
                0 => &row.path,
                group => *first_names.entry(group).or_insert(&row.path),
            };
            if *first != row.path {
                files.links.push((row, first));
            } else if matches!(row.kind, Kind::File { size: 1.. }) {
                files.wanted.insert(row.path.clone());
            } else {
                files.others.push(row);
            }
        }
        files
    }
}

/// All names in their order. Contents are spooled first, because layers have another order.
fn write_sorted(
    store: &Store,
    system: &FileSystem,
    tar: &mut FlatTar<'_>,
) -> Result<(), FilesError> {
    let failed = |source| FilesError::Write { path: PathBuf::from("the tar"), source };
    let spool = Arc::new(store.spool().map_err(|e| failed(io::Error::other(e)))?);
    let mut by_layer: Vec<Vec<&Row>> = vec![Vec::new(); system.layers.len()];
    let mut entries = Vec::new();
    system.snapshot.walk(&EntryPath::root(), &mut |entry| {
        if !entry.is_directory() {
            by_layer[entry.layer].push(entry.row);
        }
        entries.push(entry.clone());
    });
    let mut links: HashMap<&EntryPath, &EntryPath> = HashMap::new();
    let mut contents: BTreeMap<EntryPath, (u64, u64)> = BTreeMap::new();
    for (at, rows) in by_layer.iter().enumerate() {
        let files = LayerFiles::of(rows);
        links.extend(files.links.into_iter().map(|(row, first)| (&row.path, first)));
        if !files.wanted.is_empty() {
            contents.extend(spool_contents(store, system, at, &files.wanted, &spool)?);
        }
    }
    for entry in &entries {
        let row = Row { metadata: entry.metadata().clone(), ..entry.row.clone() };
        let written = match (links.get(&row.path), contents.get(&row.path)) {
            (Some(first), _) => tar.hard_link(&row, first),
            (None, Some((offset, length))) => {
                let (file, offset, length) = (spool.clone(), *offset, *length);
                let body = Content::Slice { file, offset, length }.open();
                body.and_then(|mut body| tar.entry(&row, &mut *body))
            }
            (None, None) => tar.entry(&row, &mut io::empty()),
        };
        written.map_err(failed)?;
    }
    Ok(())
}

fn spool_contents(
    store: &Store,
    system: &FileSystem,
    at: usize,
    wanted: &BTreeSet<EntryPath>,
    spool: &File,
) -> Result<BTreeMap<EntryPath, (u64, u64)>, FilesError> {
    let descriptor = &system.layers[at];
    let mut blob = store
        .open_blob(&descriptor.digest, descriptor.size)
        .map_err(|error| FilesError::Blob(descriptor.digest, error))?;
    let index = &system.snapshot.layers()[at].index;
    let found = extract_files(&mut blob, &descriptor.media_type, index, wanted, spool);
    found
        .and_then(|found| drain(&mut blob).map(|()| found))
        .map_err(|error| FilesError::Layer(descriptor.digest, error))
}

/// Reads what is left, to where the digest is compared.
fn drain(blob: &mut dyn Read) -> Result<(), LayerError> {
    io::copy(blob, &mut io::sink()).map(drop).map_err(LayerError::Read)
}

fn write_layer(
    store: &Store,
    system: &FileSystem,
    at: usize,
    rows: &[&Row],
    target: &Path,
    exporter: &mut Exporter,
) -> Result<(), FilesError> {
    let failed = |source| FilesError::Write { path: target.to_owned(), source };
    let LayerFiles { wanted, links, others } = LayerFiles::of(rows);
    others.into_iter().try_for_each(|row| exporter.entry(row, &mut io::empty())).map_err(failed)?;
    if !wanted.is_empty() {
        write_contents(store, system, at, &wanted, exporter)?;
    }
    links.into_iter().try_for_each(|(row, first)| exporter.hard_link(row, first)).map_err(failed)
}

fn write_contents(
    store: &Store,
    system: &FileSystem,
    at: usize,
    wanted: &BTreeSet<EntryPath>,
    exporter: &mut Exporter,
) -> Result<(), FilesError> {
    let descriptor = &system.layers[at];
    let index = &system.snapshot.layers()[at].index;
    let mut blob = store
        .open_blob(&descriptor.digest, descriptor.size)
        .map_err(|error| FilesError::Blob(descriptor.digest, error))?;
    let mut visit = |path: &EntryPath, body: &mut dyn Read| {
        index.get(path).map_or(Ok(()), |row| exporter.entry(row, body))
    };
    visit_files(&mut blob, &descriptor.media_type, index, wanted, &mut visit)
        .and_then(|()| drain(&mut blob))
        .map_err(|error| FilesError::Layer(descriptor.digest, error))
}
