//! What goes into a layer, by the rule of rules.md section 1: one for an overlay's upper directory and for a plain tree.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::fs::{FileType, Stat, major, minor, readlinkat};

use crate::{
    digest::Digest,
    rootfs::{
        LayerName, capped,
        handle::{open_file, xattr},
        layer_name,
        metadata::{CAPABILITY, metadata_of},
    },
    tree::{Change, Changeset, Content, EntryPath, Kind, Metadata, PathError},
};

use super::{
    BaselineError, DiffOptions,
    capability::{self, CapabilityError},
    compare::digest_of,
    lower::LowerEntry,
};

const PATH_BYTES_MAX: usize = 4095;

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
    #[error("the tree cannot be compared with what it was before the step: {0}")]
    Baseline(#[from] BaselineError),
}

/// A name that is no directory, as the step left it.
pub(super) struct Found {
    pub path: EntryPath,
    pub stat: Stat,
    pub kind: Kind,
    pub metadata: Metadata,
}

/// How a name compares with the one below, by all but content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Differs,
    Same,
    /// All else is the same.
    ContentDecides,
}

/// Names with one key are hard links of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum LinkKey {
    /// By device and number.
    Inode(u64, u64),
    /// Of a layer below, by its number in some count.
    Inherited(usize),
}

/// Collects what is emitted.
pub(super) struct Judge<'a> {
    /// Where contents are to be read.
    root: Arc<OwnedFd>,
    mtime_seconds_max: Option<i64>,
    ignore: HashSet<&'a EntryPath>,
    pub changes: Vec<Change>,
    /// Where the changes of what may have several names are.
    links: HashMap<LinkKey, Vec<usize>>,
}

impl<'a> Judge<'a> {
    pub fn new(root: Arc<OwnedFd>, options: &DiffOptions<'a>) -> Self {
        Judge {
            root,
            mtime_seconds_max: options.mtime_seconds_max,
            ignore: options.ignore.iter().collect(),
            changes: Vec::new(),
            links: HashMap::new(),
        }
    }

    /// Whether the sandbox made this, as long as it is empty.
    pub fn is_stub(&self, path: &EntryPath) -> bool {
        self.ignore.contains(path)
    }

    pub fn metadata(&self, stat: &Stat) -> Metadata {
        let metadata = metadata_of(stat);
        Metadata { mtime: capped(metadata.mtime, self.mtime_seconds_max), ..metadata }
    }

    pub fn read(
        &self,
        at: BorrowedFd<'_>,
        path: EntryPath,
        stat: Stat,
    ) -> Result<Found, DiffError> {
        let name = path.file_name();
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

    /// Whether a name is what it was before, as far as that can be told without its content.
    pub fn compare(&self, found: &Found, lower: &LowerEntry<'_>) -> Verdict {
        let (mine, theirs) = (&found.metadata, lower.metadata);
        let equal = found.kind == lower.row.kind
            && mine.mtime == capped(theirs.mtime, self.mtime_seconds_max)
            && match found.kind {
                Kind::Symlink { .. } => (mine.uid, mine.gid) == (theirs.uid, theirs.gid),
                _ => same_attributes(mine, theirs),
            };
        match found.kind {
            _ if !equal => Verdict::Differs,
            Kind::File { size: 1.. } => Verdict::ContentDecides,
            _ => Verdict::Same,
        }
    }

    /// Gives where the change is.
    pub fn emit(&mut self, found: Found) -> Result<usize, DiffError> {
        let Found { path, stat, kind, mut metadata } = found;
        check_name(&path)?;
        if let Some(value) = &metadata.capability {
            let value = capability::as_version_2(value);
            metadata.capability = Some(value.map_err(|error| capability_error(&path, error))?);
        }
        let at = self.changes.len();
        let directory = self.root.clone();
        let content = matches!(kind, Kind::File { size: 1.. })
            .then(|| Content::Beneath { directory, path: path.clone() });
        self.changes.push(Change { content, ..Change::new(path, kind, metadata) });
        if stat.st_nlink > 1 {
            self.link(at, LinkKey::Inode(stat.st_dev, stat.st_ino));
        }
        Ok(at)
    }

    /// Makes a change one of a group. Readers take a name of another meaning for no file, so nothing may be a link to it.
    pub fn link(&mut self, at: usize, key: LinkKey) {
        if layer_name(&self.changes[at].path) == LayerName::Plain {
            self.links.entry(key).or_default().push(at);
        }
    }

    /// Takes over what another thread has collected, and gives where its first change is now.
    pub fn absorb(&mut self, mut other: Judge<'a>) -> usize {
        let offset = self.changes.len();
        self.changes.append(&mut other.changes);
        for (key, names) in other.links {
            let names = names.into_iter().map(|at| at + offset);
            self.links.entry(key).or_default().extend(names);
        }
        offset
    }

    /// Joins what this layer emits several names of.
    pub fn finish(mut self) -> Changeset {
        let by_path = |a: &usize, b: &usize| self.changes[*a].path.cmp(&self.changes[*b].path);
        let mut groups: Vec<_> = self.links.into_values().filter(|names| names.len() > 1).collect();
        groups.iter_mut().for_each(|names| names.sort_unstable_by(by_path));
        groups.sort_unstable_by(|a, b| by_path(&a[0], &b[0]));
        for (group, names) in (1..).zip(groups) {
            for at in names {
                self.changes[at].link_group = group;
            }
        }
        Changeset::new(self.changes)
    }
}

/// The digest of a file as it is now.
pub(super) fn digest_at(at: BorrowedFd<'_>, path: &EntryPath) -> Result<Digest, DiffError> {
    let file = open_file(at, path.file_name()).map_err(|error| upper_error(path)(error.into()))?;
    digest_of(File::from(file)).map_err(upper_error(path))
}

/// A path that readers can take.
pub(super) fn child(directory: &EntryPath, name: &[u8]) -> Result<EntryPath, DiffError> {
    let path = directory.child(name);
    match path.as_bytes().len() {
        ..=PATH_BYTES_MAX => Ok(path),
        length => Err(DiffError::Path { path: directory.clone(), source: PathError::Long(length) }),
    }
}

/// Mode, owner and capability.
pub(super) fn same_attributes(left: &Metadata, right: &Metadata) -> bool {
    (left.mode, left.uid, left.gid) == (right.mode, right.uid, right.gid)
        && capability::same(left.capability.as_deref(), right.capability.as_deref())
}

pub(super) fn check_name(path: &EntryPath) -> Result<(), DiffError> {
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

pub(super) fn upper_error(path: &EntryPath) -> impl Fn(io::Error) -> DiffError {
    move |source| DiffError::Upper { path: path.clone(), source }
}
