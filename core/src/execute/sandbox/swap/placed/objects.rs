//! What changes places with a target: made here, or somebody's.

use std::{
    cell::Cell,
    collections::hash_map::DefaultHasher,
    fs::{DirBuilder, File, OpenOptions},
    hash::{Hash, Hasher},
    io::{self, Seek, SeekFrom, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FileType, Gid, Mode, OFlags, Stat, Uid, fchmod, fchown, lstat, open},
    io::Errno,
};

use super::{
    journal::{Fate, Home},
    open_parent,
};
use crate::{
    execute::sandbox::{
        SandboxError,
        error::{Errno as Number, Named},
        spec::{MountSource, StepMount},
        stubs::Kind,
        wire,
    },
    rootfs::{
        copy_content, copy_tree,
        walk::{Visited, Visitor, WalkError, walk},
    },
    sys::{
        fs::open_directory_handle,
        resolve::{LastLink, walk_in_root},
    },
    tree::EntryPath,
};

/// The directory of what is made here, in the side directory.
pub(super) const DIRECTORY: &str = "placed";

/// Zeros that are written at once.
const SHRED_BYTES: usize = 64 * 1024;

pub(super) struct Object {
    /// Absolute, as seen from the container's root.
    pub path: PathBuf,
    pub kind: Kind,
    pub fate: Fate,
    pub read_only: bool,
    pub secret: Option<File>,
}

/// Makes objects, in a directory of its own.
pub(super) struct Objects {
    directory: PathBuf,
    count: Cell<u32>,
}

impl Objects {
    /// The directory is made; it must not be there.
    pub fn new(side: &Path) -> Result<Self, SandboxError> {
        let directory = side.join(DIRECTORY);
        DirBuilder::new().mode(0o700).create(&directory).named("mkdir", &directory)?;
        Ok(Objects { directory, count: Cell::new(0) })
    }

    pub fn of(&self, mount: &StepMount) -> Result<Object, SandboxError> {
        match &mount.source {
            MountSource::Bind { root, path, writable } => {
                let source = source_path(root, path, &mount.target)?;
                let object = somebodys(source, false)?;
                if *writable { Ok(object) } else { self.throw_away_copy(&object) }
            }
            MountSource::Prepared { path, read_only } => somebodys(path.clone(), *read_only),
            MountSource::Tree { .. } => {
                Err(wire::protocol("a tree of layers must be prepared for a swap"))
            }
            MountSource::Tmpfs { mode, uid, gid, .. } => self.empty_directory(*mode, *uid, *gid),
            MountSource::File { content, mode, uid, gid } => {
                self.secret(content, *mode, *uid, *gid)
            }
        }
    }

    /// A copy of a cache on another mount, which goes back there.
    pub fn copy_of(&self, object: &Object) -> Result<Object, SandboxError> {
        let path = self.fresh();
        copy(&object.path, &path)?;
        let fate = Fate::Return(Home { path: object.path.clone() });
        Ok(Object { path, kind: object.kind, fate, read_only: false, secret: None })
    }

    fn throw_away_copy(&self, object: &Object) -> Result<Object, SandboxError> {
        let path = self.fresh();
        copy(&object.path, &path)?;
        Ok(Object { path, kind: object.kind, fate: Fate::Remove, read_only: true, secret: None })
    }

    fn empty_directory(&self, mode: u32, uid: u32, gid: u32) -> Result<Object, SandboxError> {
        let path = self.fresh();
        make_directory(&path, mode, uid, gid)?;
        let (kind, fate) = (Kind::Directory, Fate::Remove);
        Ok(Object { path, kind, fate, read_only: false, secret: None })
    }

    /// A file whose bytes are overwritten when it goes.
    pub fn secret(
        &self,
        content: &[u8],
        mode: u32,
        uid: u32,
        gid: u32,
    ) -> Result<Object, SandboxError> {
        let path = self.fresh();
        let file = write_file(&path, content, mode, uid, gid)?;
        let (kind, fate) = (Kind::File, Fate::Shred);
        Ok(Object { path, kind, fate, read_only: false, secret: Some(file) })
    }

    fn fresh(&self) -> PathBuf {
        let number = self.count.get();
        self.count.set(number + 1);
        self.directory.join(number.to_string())
    }
}

fn somebodys(path: PathBuf, read_only: bool) -> Result<Object, SandboxError> {
    let kind = kind_of(&lstat(&path).named("lstat", &path)?);
    Ok(Object { path, kind, fate: Fate::Stay, read_only, secret: None })
}

fn kind_of(stat: &Stat) -> Kind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Kind::Directory,
        _ => Kind::File,
    }
}

/// Where a source really is: links in it stay inside its root.
pub(super) fn source_path(
    root: &Path,
    inside: &Path,
    target: &Path,
) -> Result<PathBuf, SandboxError> {
    let shown = root.join(inside.strip_prefix("/").unwrap_or(inside));
    let failed = |errno: Errno| SandboxError::MountSource {
        source_path: shown.display().to_string(),
        target: target.display().to_string(),
        errno: Number(errno.raw_os_error()),
    };
    let handle = open_directory_handle(root).map_err(failed)?;
    let resolved = walk_in_root(handle, inside, LastLink::Follow).map_err(failed)?;
    match resolved.missing.is_empty() {
        true if resolved.real.as_os_str().is_empty() => Ok(root.to_owned()),
        true => Ok(root.join(resolved.real)),
        false => Err(failed(Errno::NOENT)),
    }
}

pub(super) fn make_directory(
    path: &Path,
    mode: u32,
    uid: u32,
    gid: u32,
) -> Result<OwnedFd, SandboxError> {
    DirBuilder::new().mode(0o700).create(path).named("mkdir", path)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = open(path, flags, Mode::empty()).named("open", path)?;
    own(directory.as_fd(), mode, uid, gid).named("chown", path)?;
    Ok(directory)
}

pub(super) fn write_file(
    path: &Path,
    content: &[u8],
    mode: u32,
    uid: u32,
    gid: u32,
) -> Result<File, SandboxError> {
    let mut options = OpenOptions::new();
    let mut file =
        options.write(true).create_new(true).mode(0o600).open(path).named("create", path)?;
    file.write_all(content).named("write", path)?;
    own(file.as_fd(), mode, uid, gid).named("chown", path)?;
    Ok(file)
}

fn own(fd: impl AsFd, mode: u32, uid: u32, gid: u32) -> rustix::io::Result<()> {
    fchown(&fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    fchmod(&fd, Mode::from_raw_mode(mode))
}

/// Copies a directory or file with its owner, mode and times to a new name.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), SandboxError> {
    let stat = lstat(from).named("lstat", from)?;
    let (mode, uid, gid) = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            let directory = make_directory(to, 0o700, uid, gid)?;
            let source = open_directory_handle(from).named("open", from)?;
            copy_tree(source.as_fd(), directory, 1)
                .map_err(|error| error.source)
                .named("copy", from)
        }
        FileType::RegularFile => {
            let source = open(from, OFlags::RDONLY | OFlags::NOFOLLOW, Mode::empty());
            let source = File::from(source.named("open", from)?);
            let file = write_file(to, b"", mode, uid, gid)?;
            copy_content(&source, &file).named("copy", from)
        }
        _ => Err(Errno::XDEV).named("copy", from),
    }
}

/// Puts the content of `copy` in the place of a directory that it was a copy of. The old one is whole until the new one
/// is.
pub(super) fn send_home(content: &Path, home: &Path) -> Result<(), SandboxError> {
    let (directory, name) = open_parent(home)?;
    let mut fresh = name.clone();
    fresh.push(".new");
    let remove = || crate::sys::remove::remove_tree_at(&directory, &fresh).named("remove", home);
    remove()?;
    copy(content, &home.with_file_name(&fresh))?;
    super::exchange_names(&directory, &name, &directory, &fresh).named("rename", home)?;
    remove()
}

/// Overwrites a file with zeros.
pub(super) fn shred(file: &File) -> io::Result<()> {
    let mut left = file.metadata()?.len();
    let mut file = file;
    file.seek(SeekFrom::Start(0))?;
    let zeros = vec![0; SHRED_BYTES.min(usize::try_from(left).unwrap_or(SHRED_BYTES))];
    while left > 0 {
        let part = zeros.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.write_all(&zeros[..part])?;
        left -= part as u64;
    }
    file.sync_data()
}

/// What a directory or file looks like: changes by another order of names don't count, nor a directory's times.
pub(super) fn fingerprint(path: &Path) -> Result<u64, SandboxError> {
    let stat = match lstat(path) {
        Err(Errno::NOENT) => return Ok(0),
        stat => stat.named("lstat", path)?,
    };
    let own = digest(b"", &stat, false);
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(own);
    }
    let directory = open_directory_handle(path).named("open", path)?;
    let walked = walk(directory.as_fd(), 1, (), || Fingerprint(0));
    let sums = walked.map_err(|error| error.source).named("read", path)?;
    Ok(sums.iter().fold(own, |sum, part| sum.wrapping_add(part.0)))
}

struct Fingerprint(u64);

impl Visitor for Fingerprint {
    type State = ();
    type Error = WalkError;

    fn visit(&mut self, directory: Visited<'_>, (): ()) -> Result<Vec<(EntryPath, ())>, WalkError> {
        let mut below = Vec::new();
        for listed in directory.entries {
            let path = directory.path.child(&listed.name);
            self.0 = self.0.wrapping_add(digest(path.as_bytes(), &listed.stat, true));
            if listed.file_type() == FileType::Directory {
                below.push((path, ()));
            }
        }
        Ok(below)
    }
}

fn digest(path: &[u8], stat: &Stat, with_change_time: bool) -> u64 {
    let mut hasher = DefaultHasher::new();
    (path, stat.st_ino, stat.st_mode, stat.st_uid, stat.st_gid).hash(&mut hasher);
    if kind_of(stat) == Kind::File {
        (stat.st_size, stat.st_mtime, stat.st_mtime_nsec).hash(&mut hasher);
        if with_change_time {
            (stat.st_ctime, stat.st_ctime_nsec).hash(&mut hasher);
        }
    }
    hasher.finish()
}
