//! An overlay's upper directory as a changeset, by the rule of rules.md section 1.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
    vec,
};

use rustix::fs::{AtFlags, FileType, Stat, major, minor, readlinkat, statat};

use crate::{
    rootfs::{
        LayerName, capped,
        handle::{DirectoryStack, Item, list, open_directory, open_file, short_xattr, xattr},
        layer_name,
        metadata::{CAPABILITY, OPAQUE, metadata_of, reopen},
    },
    tree::{Change, Changeset, Content, EntryPath, Kind, Metadata, PathError, Snapshot},
};

use super::{
    capability::{self, CapabilityError},
    compare::{LowerContent, digest_of, same_bytes},
    lower::{LowerDirectory, LowerEntry},
};

/// Overlay's marks of a whiteout that is an empty file, in directories whose opaque mark is `x` (overlayfs.rst, whiteouts).
const XATTR_WHITEOUT: [&str; 2] = ["trusted.overlay.whiteout", "user.overlay.whiteout"];
const PATH_BYTES_MAX: usize = 4095;

/// What a diff depends on besides the trees.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiffOptions<'a> {
    /// SOURCE_DATE_EPOCH: later mtimes count as this one.
    pub mtime_seconds_max: Option<i64>,
    /// What the sandbox made for its mounts: left out as long as it is an empty file or directory.
    pub ignore: &'a [EntryPath],
}

#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    #[error("cannot read {path} as the step left it: {source}")]
    Upper { path: EntryPath, source: io::Error },
    #[error("cannot read {path} of the layers below the step: {source}")]
    Lower { path: EntryPath, source: io::Error },
    #[error("{path} cannot go into a layer: {source}")]
    Path { path: EntryPath, source: PathError },
    #[error("{path} cannot go into a layer: the name is read as a whiteout of nothing")]
    WhiteoutName { path: EntryPath },
    #[error(
        "{path} has a file capability of the user namespace whose root is {root_id}, which no layer can hold"
    )]
    CapabilityNamespace { path: EntryPath, root_id: u32 },
    #[error("{path} has a security.capability that is none")]
    Capability { path: EntryPath },
}

/// The changes that turn `parent` into what an overlay of it and `upper` shows.
///
/// `upper` is an overlay's upper directory that nothing writes to any more. Its emitted files are the contents of the
/// changeset, to be read before [`settle`](super::settle). Metadata are compared first, contents only where all else is
/// equal.
pub fn overlay_diff(
    upper: BorrowedFd<'_>,
    parent: &Snapshot,
    lower_content: &dyn LowerContent,
    options: &DiffOptions<'_>,
) -> Result<Changeset, DiffError> {
    let root = EntryPath::root();
    let upper = Arc::new(reopen(upper).map_err(upper_error(&root))?);
    let stack = DirectoryStack::new(reopen(&upper).map_err(upper_error(&root))?);
    let mut walk = Walk {
        upper,
        stack,
        directories: Vec::new(),
        lower_content,
        mtime_seconds_max: options.mtime_seconds_max,
        ignore: options.ignore.iter().collect(),
        changes: Vec::new(),
        links: HashMap::new(),
    };
    let lower = Some(LowerDirectory::root(parent));
    walk.begin(Directory::new(root, lower, None, true))?;
    while let Some(directory) = walk.directories.last_mut() {
        match directory.items.next() {
            Some(item) => walk.visit(&item)?,
            None => walk.leave()?,
        }
    }
    Ok(walk.finish())
}

struct Walk<'a> {
    upper: Arc<OwnedFd>,
    stack: DirectoryStack,
    /// Those that the stack is in, outermost first.
    directories: Vec<Directory<'a>>,
    lower_content: &'a dyn LowerContent,
    mtime_seconds_max: Option<i64>,
    ignore: HashSet<&'a EntryPath>,
    changes: Vec<Change>,
    /// Where the changes of an inode with several names are, by device and number.
    links: HashMap<(u64, u64), Vec<usize>>,
}

/// A directory of the upper one on the way through it.
struct Directory<'a> {
    path: EntryPath,
    items: vec::IntoIter<Item>,
    lower: Option<LowerDirectory<'a>>,
    /// Its own change, which goes again if nothing demands it. The root has none.
    change: Option<usize>,
    /// Whether its change stays even if nothing below it changed.
    emitted: bool,
    /// Whether nothing of the lower directory shows, because of its own mark or that of an ancestor.
    opaque: bool,
    /// Whether whiteouts may be marked empty files.
    xattr_whiteouts: bool,
    /// For opaque ones, what is there in place of lower names.
    present: HashSet<EntryPath>,
}

/// A name of the upper directory.
struct Found {
    path: EntryPath,
    stat: Stat,
    kind: Kind,
    metadata: Metadata,
}

impl<'a> Directory<'a> {
    fn new(
        path: EntryPath,
        lower: Option<LowerDirectory<'a>>,
        change: Option<usize>,
        emitted: bool,
    ) -> Self {
        Directory {
            path,
            items: Vec::new().into_iter(),
            lower,
            change,
            emitted,
            opaque: false,
            xattr_whiteouts: false,
            present: HashSet::new(),
        }
    }
}

impl<'a> Walk<'a> {
    /// Begins with the directory that the stack is at.
    fn begin(&mut self, mut directory: Directory<'a>) -> Result<(), DiffError> {
        let at = self.stack.top();
        let path = directory.path.clone();
        let error = upper_error(&path);
        directory.opaque = self.directories.last().is_some_and(|parent| parent.opaque);
        for key in OPAQUE {
            match short_xattr(at, key).map_err(&error)?.as_deref() {
                Some(b"y") => directory.opaque = true,
                Some(b"x") => directory.xattr_whiteouts = true,
                _ => {}
            }
        }
        let mut items = list(at).map_err(&error)?;
        items.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        directory.items = items.into_iter();
        self.directories.push(directory);
        Ok(())
    }

    fn visit(&mut self, item: &Item) -> Result<(), DiffError> {
        let Some(directory) = self.directories.last() else { return Ok(()) };
        let path = child(&directory.path, &item.name)?;
        let lower = directory.lower.as_ref().and_then(|lower| lower.child(&path));
        let stat = statat(self.stack.top(), &*item.name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(|error| upper_error(&path)(error.into()))?;
        if self.is_gone(item, &stat).map_err(upper_error(&path))? {
            self.gone(path, lower.is_some());
            return Ok(());
        }
        if let Some(directory) = self.directories.last_mut().filter(|d| d.opaque) {
            directory.present.insert(path.clone());
        }
        if item.file_type == FileType::Directory {
            return self.enter(path, &stat, lower);
        }
        if self.ignore.contains(&path) && lower.is_none() && stat.st_size == 0 {
            return Ok(());
        }
        let found = self.read(path, stat)?;
        match lower {
            Some(lower) if self.is_unchanged(&found, &lower)? => Ok(()),
            _ => self.emit(found),
        }
    }

    /// Whether a name stands for nothing: a whiteout, or a socket, which goes into no layer.
    fn is_gone(&self, item: &Item, stat: &Stat) -> io::Result<bool> {
        let marked = self.directories.last().is_some_and(|directory| directory.xattr_whiteouts);
        Ok(match item.file_type {
            FileType::Socket => true,
            FileType::CharacterDevice => stat.st_rdev == 0,
            FileType::RegularFile if marked && stat.st_size == 0 => {
                let has = |key| Ok(xattr(self.stack.top(), &item.name, key)?.is_some());
                XATTR_WHITEOUT
                    .into_iter()
                    .map(has)
                    .collect::<io::Result<Vec<bool>>>()?
                    .contains(&true)
            }
            _ => false,
        })
    }

    /// A whiteout, unless the end of an opaque directory finds it anyway.
    fn gone(&mut self, path: EntryPath, was_there: bool) {
        if was_there && self.directories.last().is_some_and(|directory| !directory.opaque) {
            self.changes.push(Change::whiteout(path));
        }
    }

    fn enter(
        &mut self,
        path: EntryPath,
        stat: &Stat,
        lower: Option<LowerEntry<'a>>,
    ) -> Result<(), DiffError> {
        check_name(&path)?;
        let name = path.file_name();
        let directory = open_directory(self.stack.top(), name);
        let pushed = directory.map_err(io::Error::from).and_then(|fd| self.stack.push(name, fd));
        pushed.map_err(upper_error(&path))?;
        let lower = lower.filter(|lower| lower.row.kind.is_directory());
        let metadata = self.metadata(stat);
        let emitted = match &lower {
            Some(lower) => !same_attributes(&metadata, lower.metadata),
            None => !self.ignore.contains(&path),
        };
        let change = Some(self.changes.len());
        self.changes.push(Change::new(path.clone(), Kind::DIRECTORY, metadata));
        self.begin(Directory::new(path, lower.and_then(|l| l.directory), change, emitted))
    }

    fn leave(&mut self) -> Result<(), DiffError> {
        let Some(directory) = self.directories.pop() else { return Ok(()) };
        if let Some(lower) = directory.lower.as_ref().filter(|_| directory.opaque) {
            let gone = lower.children().filter(|path| !directory.present.contains(*path));
            self.changes.extend(gone.cloned().map(Change::whiteout));
        }
        if !directory.emitted && directory.change.map(|at| at + 1) == Some(self.changes.len()) {
            self.changes.pop();
        }
        self.stack.pop().map_err(upper_error(&directory.path))
    }

    fn metadata(&self, stat: &Stat) -> Metadata {
        let metadata = metadata_of(stat);
        Metadata { mtime: capped(metadata.mtime, self.mtime_seconds_max), ..metadata }
    }

    fn read(&self, path: EntryPath, stat: Stat) -> Result<Found, DiffError> {
        let (at, name) = (self.stack.top(), path.file_name());
        let mut metadata = self.metadata(&stat);
        let device = (major(stat.st_rdev), minor(stat.st_rdev));
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                metadata.mode = 0o777;
                let target = readlinkat(at, name, Vec::new());
                let target = target.map_err(|error| upper_error(&path)(error.into()))?;
                Kind::Symlink { target: target.into_bytes().into() }
            }
            FileType::CharacterDevice => Kind::CharacterDevice { major: device.0, minor: device.1 },
            FileType::BlockDevice => Kind::BlockDevice { major: device.0, minor: device.1 },
            FileType::Fifo => Kind::Fifo,
            _ => {
                metadata.capability = xattr(at, name, CAPABILITY).map_err(upper_error(&path))?;
                Kind::File { size: stat.st_size as u64 }
            }
        };
        Ok(Found { path, stat, kind, metadata })
    }

    /// Whether a name that was copied up is what it was before.
    fn is_unchanged(&self, found: &Found, lower: &LowerEntry<'_>) -> Result<bool, DiffError> {
        let (mine, theirs) = (&found.metadata, lower.metadata);
        if found.kind != lower.row.kind
            || mine.mtime != capped(theirs.mtime, self.mtime_seconds_max)
        {
            return Ok(false);
        }
        match found.kind {
            Kind::Symlink { .. } => Ok((mine.uid, mine.gid) == (theirs.uid, theirs.gid)),
            Kind::File { size: 1.. } => {
                Ok(same_attributes(mine, theirs) && self.same_content(&found.path, lower)?)
            }
            _ => Ok(same_attributes(mine, theirs)),
        }
    }

    fn same_content(&self, path: &EntryPath, lower: &LowerEntry<'_>) -> Result<bool, DiffError> {
        let file = open_file(self.stack.top(), path.file_name());
        let file = File::from(file.map_err(|error| upper_error(path)(error.into()))?);
        if let Some(digest) = lower.row.digest {
            return Ok(digest_of(file).map_err(upper_error(path))? == digest);
        }
        let error = |source| DiffError::Lower { path: path.clone(), source };
        let before = self.lower_content.open(lower.layer, lower.row).map_err(error)?;
        same_bytes(file, before).map_err(error)
    }

    fn emit(&mut self, found: Found) -> Result<(), DiffError> {
        let Found { path, stat, kind, mut metadata } = found;
        check_name(&path)?;
        if let Some(value) = &metadata.capability {
            let value = capability::as_version_2(value);
            metadata.capability = Some(value.map_err(|error| capability_error(&path, error))?);
        }
        // Readers take a name of another meaning for no file, so nothing may be a link to it.
        if stat.st_nlink > 1 && layer_name(&path) == LayerName::Plain {
            let names = self.links.entry((stat.st_dev, stat.st_ino)).or_default();
            names.push(self.changes.len());
        }
        let directory = self.upper.clone();
        let content = matches!(kind, Kind::File { size: 1.. })
            .then(|| Content::Beneath { directory, path: path.clone() });
        self.changes.push(Change { content, ..Change::new(path, kind, metadata) });
        Ok(())
    }

    /// Joins what this layer emits several names of.
    fn finish(mut self) -> Changeset {
        let mut groups: Vec<_> = self.links.into_values().filter(|names| names.len() > 1).collect();
        groups.sort_unstable();
        for (group, names) in (1..).zip(groups) {
            for at in names {
                self.changes[at].link_group = group;
            }
        }
        Changeset::new(self.changes)
    }
}

/// A path that readers can take.
fn child(directory: &EntryPath, name: &[u8]) -> Result<EntryPath, DiffError> {
    let path = directory.child(name);
    match path.as_bytes().len() {
        ..=PATH_BYTES_MAX => Ok(path),
        length => Err(DiffError::Path { path: directory.clone(), source: PathError::Long(length) }),
    }
}

/// Mode, owner and capability.
fn same_attributes(left: &Metadata, right: &Metadata) -> bool {
    (left.mode, left.uid, left.gid) == (right.mode, right.uid, right.gid)
        && capability::same(left.capability.as_deref(), right.capability.as_deref())
}

fn check_name(path: &EntryPath) -> Result<(), DiffError> {
    match layer_name(path) {
        LayerName::Invalid => Err(DiffError::WhiteoutName { path: path.clone() }),
        _ => Ok(()),
    }
}

fn capability_error(path: &EntryPath, error: CapabilityError) -> DiffError {
    let path = path.clone();
    match error {
        CapabilityError::Malformed => DiffError::Capability { path },
        CapabilityError::Namespace(root_id) => DiffError::CapabilityNamespace { path, root_id },
    }
}

fn upper_error(path: &EntryPath) -> impl Fn(io::Error) -> DiffError {
    move |source| DiffError::Upper { path: path.clone(), source }
}
