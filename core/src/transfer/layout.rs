//! A bundle into an OCI layout directory (image-layout.md). What the layout has already stays.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use futures_util::{StreamExt, TryStreamExt, stream};
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    digest::Digest,
    error::{Class, Error},
    push::{Bundle, Document, LayerSource, PushLayer},
    registry::{Client, Manifest, Repository, manifest::OCI_INDEX},
    solve::{Vertex, blocking},
    store::VerifyingReader,
};

use super::{LayoutPlace, source::of_source};

/// Blobs that are written at once.
const BLOBS_AT_ONCE: usize = 8;
const MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const BLOBS: &str = "blobs/sha256";
/// How the names of files begin that are not whole yet.
const UNFINISHED: &str = ".bareboat-";
const COPY_BYTES: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error("cannot write {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} exists and is no empty directory and no OCI layout", .0.display())]
    Occupied(PathBuf),
    #[error("{} has an index.json that cannot be added to: {reason}", path.display())]
    Index { path: PathBuf, reason: String },
}

/// Blobs, then documents, then `index.json`: each beside its place and renamed, so that a layout which nobody finished is
/// what it was, with blobs that nothing names.
pub(super) async fn write(
    client: &Client,
    bundle: &Bundle,
    place: &LayoutPlace,
    vertex: &Vertex,
) -> Result<(), Error> {
    let path = place.path.clone();
    let prepared = path.clone();
    let _held = blocking(move || prepare(&prepared)).await?.map_err(host)?;
    let blobs = bundle.blobs.iter().map(|blob| save_blob(client, blob, &path, vertex));
    let blobs: Vec<_> = blobs.collect();
    stream::iter(blobs).buffer_unordered(BLOBS_AT_ONCE).try_collect::<Vec<()>>().await?;
    let documents: Vec<Document> = bundle.children.iter().chain([&bundle.root]).cloned().collect();
    let tag = place.tag.clone();
    let written = blocking(move || {
        for document in &documents {
            put_whole(&blob_path(&path, document.digest), &document.bytes)?;
        }
        match documents.last() {
            Some(root) => add_to_index(&path, root, tag.as_deref()),
            None => Ok(()),
        }
    });
    written.await?.map_err(host)
}

fn blob_path(layout: &Path, digest: Digest) -> PathBuf {
    layout.join(BLOBS).join(digest.hex())
}

/// Makes the layout's directories, in what is a layout, empty or not there. The layout is held until the file is closed.
fn prepare(path: &Path) -> Result<File, WriteError> {
    let failed = |source| WriteError::Io { path: path.to_owned(), source };
    if !is_free(path) {
        return Err(WriteError::Occupied(path.to_owned()));
    }
    fs::create_dir_all(path).map_err(failed)?;
    let held = hold(path).map_err(failed)?;
    // The marker comes first: with it, a layout that nobody finished is taken for one the next time.
    if !path.join("oci-layout").is_file() {
        put_whole(&path.join("oci-layout"), MARKER)?;
    }
    fs::create_dir_all(path.join(BLOBS)).map_err(failed)?;
    Ok(held)
}

fn is_free(path: &Path) -> bool {
    match fs::read_dir(path) {
        Ok(mut entries) => {
            path.join("oci-layout").is_file()
                || entries.all(|entry| entry.is_ok_and(|entry| is_unfinished(&entry)))
        }
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Shares the layout with other writers. Whoever is alone in it first removes what killed ones left. File systems without
/// locks do without.
fn hold(path: &Path) -> io::Result<File> {
    let held = File::open(path)?;
    if flock(&held, FlockOperation::NonBlockingLockExclusive).is_ok() {
        sweep(path);
        sweep(&path.join(BLOBS));
    }
    let _ = flock(&held, FlockOperation::LockShared);
    Ok(held)
}

/// What can't be removed is in nobody's way.
fn sweep(directory: &Path) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries.filter(is_unfinished) {
        let _ = fs::remove_file(entry.path());
    }
}

fn is_unfinished(entry: &fs::DirEntry) -> bool {
    let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
    is_file && entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes())
}

/// A file beside its place, then renamed.
fn put_whole(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    let write = || {
        let mut file = beside(path)?;
        file.write_all(bytes)?;
        keep(file, path)
    };
    write().map_err(|source| WriteError::Io { path: path.to_owned(), source })
}

fn beside(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    let parent = path.parent().unwrap_or(Path::new("."));
    tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(parent)
}

fn keep(file: tempfile::NamedTempFile, path: &Path) -> io::Result<()> {
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644))?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

/// Brings a blob into the layout, unless a good one is there.
async fn save_blob(
    client: &Client,
    blob: &PushLayer,
    layout: &Path,
    vertex: &Vertex,
) -> Result<(), Error> {
    let (path, digest, size) = (blob_path(layout, blob.digest), blob.digest, blob.size);
    let there = path.clone();
    if blocking(move || is_good(&there, digest, size)).await? {
        return Ok(());
    }
    match &blob.source {
        LayerSource::Registry(repository) => download(client, repository, blob, path, vertex).await,
        other => {
            let source = other.clone();
            let copied = blocking(move || copy_file(&source, digest, size, &path));
            copied.await?.map_err(of_source)
        }
    }
}

fn is_good(path: &Path, digest: Digest, size: u64) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let fits = file.metadata().is_ok_and(|found| found.is_file() && found.len() == size);
    fits && copy_large(&mut VerifyingReader::new(file, digest, size), &mut io::sink()).is_ok()
}

fn copy_file(source: &LayerSource, digest: Digest, size: u64, path: &Path) -> io::Result<()> {
    let reader: Box<dyn Read> = match source {
        LayerSource::File(from) => Box::new(File::open(from)?),
        LayerSource::Part(from, offset) => {
            let mut file = File::open(from)?;
            file.seek(SeekFrom::Start(*offset))?;
            Box::new(file.take(size))
        }
        LayerSource::Bytes(bytes) => Box::new(io::Cursor::new(bytes.clone())),
        LayerSource::Registry(_) => return Err(io::ErrorKind::Unsupported.into()),
    };
    let mut out = beside(path)?;
    copy_large(&mut VerifyingReader::new(reader, digest, size), &mut out)?;
    keep(out, path)
}

fn copy_large(reader: &mut dyn Read, writer: &mut dyn Write) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(()),
            got => writer.write_all(&buffer[..got])?,
        }
    }
}

/// Streams a blob from a registry, hashing it on its way.
async fn download(
    client: &Client,
    repository: &Repository,
    blob: &PushLayer,
    path: PathBuf,
    vertex: &Vertex,
) -> Result<(), Error> {
    let wrap = |source| host(WriteError::Io { path: path.clone(), source });
    let what = format!("{} from {repository}", blob.digest.short());
    let mut chunks = client.blob(repository, blob.digest, blob.size);
    let mut file = beside(&path).map_err(wrap)?;
    let (mut hasher, mut done) = (Sha256::new(), 0);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| error.into_error(Class::Source))?;
        hasher.update(&chunk);
        file.write_all(&chunk).map_err(wrap)?;
        done += chunk.len() as u64;
        vertex.report_progress(what.clone(), done, blob.size);
    }
    let actual = Digest::from_bytes(hasher.finalize().into());
    if actual != blob.digest {
        let title = format!("{repository} served {actual} for the blob {}", blob.digest);
        return Err(Error::new(Class::Source, title));
    }
    keep(file, &path).map_err(wrap)
}

/// Lists a document under `tag`, in place of what had that name; without a tag beside all others.
fn add_to_index(path: &Path, root: &Document, tag: Option<&str>) -> Result<(), WriteError> {
    let file = path.join("index.json");
    // Another writer may be about to list its own image.
    let turn = File::open(path.join(BLOBS));
    let turn = turn.map_err(|source| WriteError::Io { path: path.to_owned(), source })?;
    let _ = flock(&turn, FlockOperation::LockExclusive);
    let mut index = read_index(&file)?;
    let wrong = || WriteError::Index { path: path.to_owned(), reason: "it has no list".into() };
    let entries = index["manifests"].as_array_mut().ok_or_else(wrong)?;
    let digest = root.digest.to_string();
    entries.retain(|entry| match (entry["annotations"][REF_NAME].as_str(), tag) {
        (None, None) => entry["digest"] != digest.as_str(),
        (name, tag) => name != tag || tag.is_none(),
    });
    let mut entry = json!({
        "mediaType": root.media_type,
        "digest": digest,
        "size": root.bytes.len(),
    });
    if let Some(tag) = tag {
        entry["annotations"][REF_NAME] = tag.into();
    }
    entries.push(entry);
    put_whole(&file, index.to_string().as_bytes())
}

fn read_index(file: &Path) -> Result<Value, WriteError> {
    let wrong = |reason: String| WriteError::Index { path: file.to_owned(), reason };
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}));
        }
        Err(error) => return Err(wrong(error.to_string())),
    };
    let parsed = Manifest::parse(&bytes, OCI_INDEX).map_err(|error| wrong(error.to_string()))?;
    match parsed.0 {
        Manifest::Index(_) => {
            serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))
        }
        Manifest::Image(_) => Err(wrong("it is no index".into())),
    }
}

fn host(error: WriteError) -> Error {
    Error::from_cause(Class::Host, error)
}
