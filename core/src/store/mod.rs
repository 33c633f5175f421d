//! The content-addressed store on disk: `blobs/ index/ trees/ records/ images/ contexts/ mounts/ work/`, and the
//! files `lock`, `work.lock` and `version`.
//!
//! Everything is written beside its place and renamed into it, so that a killed build leaves nothing half-written, and
//! several builds may use one store. Blobs are verified whenever they are read; unpacked trees can't be, so they count
//! only within the boot that wrote them.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};

use crate::{
    digest::Digest,
    rootfs,
    tree::{IndexError, LayerIndex},
};

mod anchor;
mod temporary;
mod verify;

pub use verify::VerifyingReader;

use anchor::Anchor;
use temporary::TemporaryFile;

/// The directories of a store. What refers to other things comes before them, for emptying.
const ROOMS: [&str; 8] =
    ["records", "images", "contexts", "index", "trees", "mounts", "blobs", "work"];

/// What a store directory says of itself.
const VERSION: &str = "bareboat state 1\n";

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("state directory {}: {what}", path.display())]
    Io { path: PathBuf, what: &'static str, source: io::Error },
    #[error("{} was written by another version of bareboat", .0.display())]
    Version(PathBuf),
    #[error("{0} is in use by another build")]
    Busy(String),
}

/// An open store. Cheap to clone; the shared lock is held until the last clone is gone.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: Arc<Anchor>,
    work: WorkDirectory,
    boot_id: String,
    _lock: File,
}

/// A directory of this process below `work/`, held by a lock and deleted at the end.
#[derive(Debug)]
struct WorkDirectory {
    root: Arc<Anchor>,
    name: OsString,
    _lock: File,
}

impl WorkDirectory {
    fn path(&self) -> PathBuf {
        self.root.path().join("work").join(&self.name)
    }
}

impl Drop for WorkDirectory {
    fn drop(&mut self) {
        let _ = remove(&self.path());
    }
}

/// Bytes kept by the store, for people.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub blobs_bytes: u64,
    pub trees_bytes: u64,
    pub other_bytes: u64,
}

impl Store {
    /// Opens a store, makes it where it is missing (mode 0700), and clears what killed builds left in `work/`.
    pub fn open(root: &Path, boot_id: String) -> Result<Self, StoreError> {
        let made = |what| move |source| StoreError::Io { path: root.to_owned(), what, source };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .map_err(made("cannot be made"))?;
        let root = &root.canonicalize().map_err(made("cannot be opened"))?;
        for part in ROOMS.into_iter().chain(["blobs/sha256"]) {
            fs::create_dir_all(root.join(part)).map_err(made("cannot be written"))?;
        }
        let lock = open_lock(&root.join("lock")).map_err(made("cannot be locked"))?;
        flock(&lock, FlockOperation::LockShared).map_err(|e| made("cannot be locked")(e.into()))?;
        check_version(root)?;
        let anchor = Arc::new(Anchor::open(root).map_err(made("cannot be opened"))?);
        let work = claim_work(&anchor).map_err(made("cannot be written"))?;
        Ok(Store(Arc::new(Inner { root: anchor, work, boot_id, _lock: lock })))
    }

    fn io(&self, what: &'static str) -> impl Fn(io::Error) -> StoreError + '_ {
        move |source| StoreError::Io { path: self.0.root.real().to_owned(), what, source }
    }

    /// This process's directory for temporary files, on the store's file system.
    pub fn work(&self) -> PathBuf {
        self.0.work.path()
    }

    /// The store's directory, by a name that leads there as the process's root is now.
    pub fn root(&self) -> PathBuf {
        self.0.root.path()
    }

    /// The name of a path of this store as programs see it, which run at the machine's own root.
    pub fn real(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(self.root()) {
            Ok(inside) if inside.as_os_str().is_empty() => self.0.root.real().to_owned(),
            Ok(inside) => self.0.root.real().join(inside),
            Err(_) => path.to_owned(),
        }
    }

    /// A fresh directory below `work`.
    pub fn work_directory(&self, prefix: &str) -> Result<PathBuf, StoreError> {
        temporary::directory(&self.work(), prefix).map_err(self.io("cannot be written"))
    }

    /// An unnamed file for bytes that are read again within this build.
    pub fn spool(&self) -> Result<File, StoreError> {
        temporary::spool(&self.work()).map_err(self.io("cannot be written"))
    }

    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root().join("blobs/sha256").join(digest.hex())
    }

    /// Whether a blob of this size is there. Its bytes are verified when they are read.
    pub fn has_blob(&self, digest: &Digest, size: u64) -> bool {
        fs::metadata(self.blob_path(digest))
            .is_ok_and(|found| found.is_file() && found.len() == size)
    }

    /// Opens a blob for reading; a wrong digest or size is an error at its end (invariant 5).
    pub fn open_blob(
        &self,
        digest: &Digest,
        size: u64,
    ) -> Result<VerifyingReader<File>, StoreError> {
        let file = File::open(self.blob_path(digest)).map_err(self.io("holds no such blob"))?;
        Ok(VerifyingReader::new(file, *digest, size))
    }

    /// The bytes of a small blob, verified; `None` where it is missing or damaged.
    pub fn read_blob(&self, digest: &Digest) -> Option<Vec<u8>> {
        let bytes = fs::read(self.blob_path(digest)).ok()?;
        (Digest::of(&bytes) == *digest).then_some(bytes)
    }

    /// Starts a blob whose digest is known at its end.
    pub fn blob_writer(&self) -> Result<BlobWriter, StoreError> {
        let file = TemporaryFile::new(&self.work(), "blob-");
        let file = file.map_err(self.io("cannot be written"))?;
        Ok(BlobWriter { store: self.clone(), file, hasher: Some(Sha256::new()), bytes: 0 })
    }

    /// Starts a blob whose bytes the caller hashes; `commit_as` names it.
    pub fn unhashed_blob_writer(&self) -> Result<BlobWriter, StoreError> {
        Ok(BlobWriter { hasher: None, ..self.blob_writer()? })
    }

    /// Keeps bytes as a blob.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if !self.has_blob(&digest, bytes.len() as u64) {
            self.put_file(&self.blob_path(&digest), bytes)?;
        }
        Ok(digest)
    }

    /// The index of a layer, where it is known. A damaged one is as missing.
    pub fn index(&self, diff_id: &Digest) -> Option<LayerIndex> {
        let bytes = fs::read(self.root().join("index").join(diff_id.hex())).ok()?;
        match LayerIndex::decode(&bytes) {
            Ok(index) => Some(index),
            Err(
                error @ (IndexError::Version | IndexError::Damaged | IndexError::Compression(_)),
            ) => {
                tracing::warn!(%diff_id, %error, "index ignored");
                None
            }
        }
    }

    pub fn has_index(&self, diff_id: &Digest) -> bool {
        self.root().join("index").join(diff_id.hex()).is_file()
    }

    pub fn put_index(&self, diff_id: &Digest, index: &LayerIndex) -> Result<(), StoreError> {
        let bytes = index.encode().map_err(self.io("cannot hold an index"))?;
        self.put_file(&self.root().join("index").join(diff_id.hex()), &bytes)
    }

    /// A small file of a room of its own (`records/NAME`, `images/NAME`); `None` where it is missing.
    pub fn read_document(&self, room: &str, name: &str) -> Option<Vec<u8>> {
        fs::read(self.root().join(room).join(name)).ok()
    }

    pub fn put_document(&self, room: &str, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.put_file(&self.root().join(room).join(name), bytes)
    }

    fn put_file(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let write = || {
            let mut file = TemporaryFile::new(&self.work(), "file-")?;
            file.write_all(bytes)?;
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            file.persist(path)
        };
        write().map_err(self.io("cannot be written"))
    }

    /// The unpacked tree of a layer for a flavour of owners, where this boot wrote one.
    pub fn tree(&self, flavour: &str, key: &str) -> Option<PathBuf> {
        let place = self.tree_place(flavour, key);
        let boot = fs::read_to_string(place.join("boot")).ok()?;
        (boot == self.0.boot_id).then(|| place.join("fs"))
    }

    fn tree_place(&self, flavour: &str, key: &str) -> PathBuf {
        self.root().join("trees").join(flavour).join(key)
    }

    /// A place in `work/` in which a tree is made; `fs` below it is the tree.
    pub fn new_tree(&self) -> Result<PathBuf, StoreError> {
        let place = self.work_directory("tree-")?;
        fs::write(place.join("boot"), &self.0.boot_id).map_err(self.io("cannot be written"))?;
        fs::create_dir(place.join("fs")).map_err(self.io("cannot be written"))?;
        Ok(place)
    }

    /// Moves a finished tree to its name. Where another build was faster, its tree is taken and this one deleted.
    pub fn commit_tree(
        &self,
        place: &Path,
        flavour: &str,
        key: &str,
    ) -> Result<PathBuf, StoreError> {
        let target = self.tree_place(flavour, key);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(self.io("cannot be written"))?;
        }
        if target.exists() && self.tree(flavour, key).is_none() {
            let stale = self.work_directory("stale-")?.join("tree");
            let _ = fs::rename(&target, &stale);
            let _ = remove(&stale);
        }
        match fs::rename(place, &target) {
            Ok(()) => {}
            Err(_) if self.tree(flavour, key).is_some() => {
                remove(place).map_err(self.io("cannot be cleaned"))?;
            }
            Err(error) => return Err(self.io("cannot take a tree")(error)),
        }
        Ok(target.join("fs"))
    }

    /// Deletes a directory of `work/` with all that is in it.
    pub fn discard(&self, place: &Path) {
        if let Err(error) = remove(place) {
            tracing::warn!(place = %place.display(), %error, "left behind");
        }
    }
}

/// Empties a store that no build uses. Returns the bytes freed.
pub fn prune(root: &Path) -> Result<u64, StoreError> {
    let failed = |what| move |source| StoreError::Io { path: root.to_owned(), what, source };
    if !root.join("version").is_file() {
        return Ok(0);
    }
    let lock = open_lock(&root.join("lock")).map_err(failed("cannot be locked"))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Err(StoreError::Busy(root.display().to_string()));
    }
    check_version(root)?;
    let freed = usage(root);
    for part in ROOMS {
        let place = root.join(part);
        if place.symlink_metadata().is_ok() {
            remove(&place).map_err(failed("cannot be emptied"))?;
        }
    }
    Ok(freed.blobs_bytes + freed.trees_bytes + freed.other_bytes)
}

/// What a store holds, by the sizes of its files.
pub fn usage(root: &Path) -> Usage {
    let sum = |part: &str| tree_bytes(&root.join(part));
    Usage {
        blobs_bytes: sum("blobs"),
        trees_bytes: sum("trees"),
        other_bytes: ROOMS
            .iter()
            .filter(|room| !["blobs", "trees"].contains(room))
            .map(|room| sum(room))
            .sum(),
    }
}

fn tree_bytes(path: &Path) -> u64 {
    let mut bytes = 0;
    let mut pending = vec![path.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(found) if found.is_dir() => pending.push(entry.path()),
                Ok(found) => bytes += found.len(),
                Err(_) => {}
            }
        }
    }
    bytes
}

fn open_lock(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn check_version(root: &Path) -> Result<(), StoreError> {
    let path = root.join("version");
    match fs::read_to_string(&path) {
        Ok(found) if found == VERSION => Ok(()),
        Ok(_) => Err(StoreError::Version(root.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Beside its place, because another build may be reading.
            let write = || {
                let mut file = TemporaryFile::new(root, "version-")?;
                file.write_all(VERSION.as_bytes())?;
                file.persist(&path)
            };
            let what = "cannot be written";
            write().map_err(|source| StoreError::Io { path: root.to_owned(), what, source })
        }
        Err(source) => {
            Err(StoreError::Io { path: root.to_owned(), what: "cannot be read", source })
        }
    }
}

/// Makes a work directory, and deletes those of builds that are gone: nobody holds their lock.
///
/// One build at a time does this, because a directory that is not locked yet looks like a dead one. Dead ones are only
/// moved into ours meanwhile, which is quick.
fn claim_work(anchor: &Arc<Anchor>) -> io::Result<WorkDirectory> {
    let root = anchor.path();
    let turn = open_lock(&root.join("work.lock"))?;
    flock(&turn, FlockOperation::LockExclusive)?;
    let work = new_work_directory(anchor)?;
    let mut stale = Vec::new();
    for entry in fs::read_dir(root.join("work"))?.flatten() {
        let path = entry.path();
        if path != work.path() && is_dead(&path) {
            let target = work.path().join(format!("stale-{}", stale.len()));
            if fs::rename(&path, &target).is_ok() {
                stale.push(target);
            }
        }
    }
    drop(turn);
    for path in stale {
        if let Err(error) = remove(&path) {
            tracing::warn!(path = %path.display(), %error, "left behind");
        }
    }
    Ok(work)
}

/// Without a lock file it is one whose deletion was begun.
fn is_dead(path: &Path) -> bool {
    match File::open(path.join("lock")) {
        Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn new_work_directory(root: &Arc<Anchor>) -> io::Result<WorkDirectory> {
    let path = temporary::directory(&root.path().join("work"), "build-")?;
    let lock = open_lock(&path.join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let name = path.file_name().unwrap_or_default().to_owned();
    Ok(WorkDirectory { root: root.clone(), name, _lock: lock })
}

/// Deletes by directory handle whatever is at `path`.
fn remove(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = File::open(parent)?;
    rootfs::remove_tree(
        std::os::fd::AsFd::as_fd(&parent),
        std::os::unix::ffi::OsStrExt::as_bytes(name),
    )
}

/// A blob being written into the store.
#[derive(Debug)]
pub struct BlobWriter {
    store: Store,
    file: TemporaryFile,
    hasher: Option<Sha256>,
    bytes: u64,
}

impl BlobWriter {
    /// Puts the blob in its place.
    pub fn commit(mut self) -> Result<(Digest, u64), StoreError> {
        let hasher = self.hasher.take().unwrap_or_default();
        let digest = Digest::from_bytes(hasher.finalize().into());
        let bytes = self.bytes;
        self.commit_as(&digest)?;
        Ok((digest, bytes))
    }

    /// Puts the blob in its place under a digest that the caller computed of these very bytes.
    pub fn commit_as(self, digest: &Digest) -> Result<(), StoreError> {
        let path = self.store.blob_path(digest);
        self.file.persist(&path).map_err(self.store.io("cannot be written"))
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes[..written]);
        }
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A build that begins must not take another's directory, which was just made, for a dead one's.
    #[test]
    fn builds_that_begin_at_once_leave_each_other_alone() {
        let root = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..40 {
                        let store = Store::open(root.path(), "boot".into()).unwrap();
                        let place = store.work_directory("x-").unwrap();
                        std::thread::yield_now();
                        assert!(place.is_dir(), "{} is gone", place.display());
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(root.path().join("work")).unwrap().count(), 0);
    }

    #[test]
    fn the_work_of_dead_builds_is_deleted() {
        let root = tempfile::tempdir().unwrap();
        drop(Store::open(root.path(), "boot".into()).unwrap());
        let dead = root.path().join("work/build-dead");
        fs::create_dir_all(dead.join("tree/deep")).unwrap();
        fs::write(dead.join("lock"), "").unwrap();
        let half_deleted = root.path().join("work/build-half");
        fs::create_dir_all(half_deleted.join("tree")).unwrap();
        let store = Store::open(root.path(), "boot".into()).unwrap();
        assert!(!dead.exists() && !half_deleted.exists());
        assert!(store.work().is_dir());
        assert_eq!(fs::read_dir(store.work()).unwrap().count(), 1, "the lock alone");
    }
}
