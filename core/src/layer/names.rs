//! The names that a layer has brought so far, and what the next one means: one rule for layers that are read and for
//! those that are written.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::tree::{EntryPath, IndexBuilder, Kind, LayerIndex, Metadata, PathError, Row};

use super::{
    LayerError,
    limits::ROW_BYTES,
    tar::{TarError, shown},
};

const SYMLINK_TARGET_BYTES_MAX: usize = 4095;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_NAME: &[u8] = b".wh..wh..opq";
/// AUFS kept its own files under such names in the root.
const AUFS_PREFIX: &[u8] = b".wh..wh.";
const COMPONENT_BYTES_MAX: usize = 255;
/// As `Snapshot::resolve` has them.
const LINKS_MAX: usize = 255;
const LINKS_IN_A_ROW_MAX: usize = 40;

/// What a name in a layer stands for (OCI image-spec, layer.md, "Representing Changes").
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Root,
    /// Nothing: a name of AUFS.
    Nowhere,
    Entry(EntryPath),
    Whiteout(EntryPath),
    Opaque(EntryPath),
}

/// What a layer's sink has to hear of besides the entry itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Inserted {
    /// A directory that stands where the layer said before that nothing of lower layers shows.
    pub(super) opaque: Option<EntryPath>,
    /// The entry changes nothing.
    pub(super) ignored: bool,
}

pub(super) struct Names {
    index: IndexBuilder,
    /// An estimate of what all rows so far took.
    index_bytes: u64,
    index_bytes_max: u64,
    /// The index has them too, but gives them up with each change of a row.
    kept_bytes: BTreeMap<EntryPath, Arc<[u8]>>,
    /// Who has joined a group, whether it is still there or not.
    groups: HashMap<u32, Vec<EntryPath>>,
}

/// What stands above a path.
struct Above {
    /// The whiteout that must become a directory for the path to be below it.
    whiteout: Option<EntryPath>,
    /// What the rows that have to be made for missing directories take.
    bytes: u64,
}

impl Names {
    pub(super) fn new(index_bytes_max: u64) -> Self {
        Names {
            index: IndexBuilder::default(),
            index_bytes: 0,
            index_bytes_max,
            kept_bytes: BTreeMap::new(),
            groups: HashMap::new(),
        }
    }

    /// Where a name as written leads: cleaned as text, its parents resolved through links of this layer.
    pub(super) fn place(&self, name: &[u8]) -> Result<Place, LayerError> {
        let name = trim_slashes(name);
        let cut = name.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
        let (directory, base) = name.split_at(cut);
        if let Some(hidden) = base.strip_prefix(WHITEOUT_PREFIX) {
            return self.place_of_whiteout(name, directory, base, hidden);
        }
        let path = clean(name)?;
        if path.file_name().starts_with(WHITEOUT_PREFIX) {
            return self.place(path.as_bytes());
        }
        if path.as_bytes().starts_with(AUFS_PREFIX) {
            return Ok(Place::Nowhere);
        }
        let Some(parent) = path.parent() else { return Ok(Place::Root) };
        Ok(Place::Entry(self.resolve(parent)?.child(path.file_name())))
    }

    fn place_of_whiteout(
        &self,
        name: &[u8],
        directory: &[u8],
        base: &[u8],
        hidden: &[u8],
    ) -> Result<Place, LayerError> {
        let parent = clean(directory)?;
        let is_aufs = if parent.is_root() { base } else { parent.as_bytes() };
        if is_aufs.starts_with(AUFS_PREFIX) && !(parent.is_root() && base == OPAQUE_NAME) {
            return Ok(Place::Nowhere);
        }
        let parent = self.resolve(parent)?;
        match hidden {
            _ if base == OPAQUE_NAME => Ok(Place::Opaque(parent)),
            b"" | b"." | b".." => Err(LayerError::Whiteout(shown(name))),
            _ if hidden.len() > COMPONENT_BYTES_MAX => {
                let source = PathError::LongComponent(hidden.len());
                Err(LayerError::Name { name: shown(name), source })
            }
            _ => Ok(Place::Whiteout(parent.child(hidden))),
        }
    }

    /// A directory's path with links followed. What is missing stays as it is, and so does what follows a name that is no
    /// directory: it will be made one.
    fn resolve(&self, path: EntryPath) -> Result<EntryPath, LayerError> {
        let known =
            |path: &EntryPath| self.index.get(path).is_some_and(|row| row.kind.is_directory());
        if path.is_root() || known(&path) {
            return Ok(path);
        }
        let mut pending: Vec<Vec<u8>> = path.components().rev().map(<[u8]>::to_vec).collect();
        let (mut at, mut links, mut in_a_row) = (EntryPath::root(), 0, 0);
        while let Some(name) = pending.pop() {
            let next = at.child(&name);
            match self.index.get(&next).map(|row| &row.kind) {
                Some(Kind::Symlink { target }) => {
                    (links, in_a_row) = (links + 1, in_a_row + 1);
                    if links > LINKS_MAX || in_a_row > LINKS_IN_A_ROW_MAX {
                        return Err(LayerError::TooManyLinks(path));
                    }
                    let goal = if target.first() == Some(&b'/') { EntryPath::root() } else { at };
                    let goal =
                        goal.join_clean(target).map_err(|source| name_error(target, source))?;
                    pending.extend(goal.components().rev().map(<[u8]>::to_vec));
                    at = EntryPath::root();
                }
                Some(Kind::Directory { .. }) => (at, in_a_row) = (next, 0),
                _ => {
                    let whole = pending.iter().rev().fold(next, |path, name| path.child(name));
                    return clean(whole.as_bytes());
                }
            }
        }
        Ok(at)
    }

    pub(super) fn get(&self, path: &EntryPath) -> Option<&Row> {
        self.index.get(path)
    }

    /// Puts an entry that is no hard link in place.
    pub(super) fn insert(&mut self, row: Row) -> Result<Inserted, LayerError> {
        let above = self.above(&row.path);
        let target_bytes = match &row.kind {
            Kind::Symlink { target } => target.len() as u64,
            _ => 0,
        };
        self.charge(above.bytes + row_bytes(&row.path) + target_bytes)?;
        let mut inserted = Inserted { opaque: above.whiteout, ignored: false };
        if row.kind == Kind::Whiteout {
            let old = self.index.get(&row.path).map(|old| &old.kind);
            inserted.ignored = old.is_some();
            if old.is_some_and(Kind::is_directory) {
                inserted.opaque = Some(row.path.clone());
            }
        } else {
            self.kept_bytes.remove(&row.path);
        }
        self.index.insert(row);
        Ok(inserted)
    }

    /// Gives the directory above that a whiteout stood for, if there is one.
    pub(super) fn set_opaque(
        &mut self,
        directory: &EntryPath,
    ) -> Result<Option<EntryPath>, LayerError> {
        let above = self.above(directory);
        self.charge(above.bytes + row_bytes(directory))?;
        self.index.set_opaque(directory);
        Ok(above.whiteout)
    }

    fn charge(&mut self, bytes: u64) -> Result<(), LayerError> {
        self.index_bytes += bytes;
        let limit = self.index_bytes_max;
        if self.index_bytes > limit {
            return Err(TarError::Limit { limit, unit: "bytes of names" }.into());
        }
        Ok(())
    }

    /// Keeps the bytes of a small file that was just inserted.
    pub(super) fn keep_bytes(&mut self, path: &EntryPath, bytes: Arc<[u8]>) {
        self.kept_bytes.insert(path.clone(), bytes.clone());
        self.index.keep_bytes(path, bytes);
    }

    /// Makes `path` another name of `target`, as a member with `metadata` says: the inode takes that metadata, as with
    /// containerd, and so do its other names.
    pub(super) fn link(
        &mut self,
        path: &EntryPath,
        target: &[u8],
        metadata: &Metadata,
    ) -> Result<(EntryPath, Inserted), LayerError> {
        let refused = || LayerError::HardLinkTarget { path: path.clone(), target: shown(target) };
        let Place::Entry(target) = self.place(target)? else { return Err(refused()) };
        let overlaps = path.is_within(&target) || target.is_within(path);
        let row = self.index.get(&target).filter(|row| !overlaps && can_be_linked(&row.kind));
        let row = row.ok_or_else(refused)?.clone();
        let group = self.join_group(&row);
        if row.metadata != *metadata {
            self.set_group_metadata(group, metadata);
        }
        self.groups.entry(group).or_default().push(path.clone());
        let metadata = metadata.clone();
        let row = Row { path: path.clone(), link_group: group, metadata, ..row };
        Ok((target, self.insert(row)?))
    }

    /// The number of the group that `row` is in from now on.
    fn join_group(&mut self, row: &Row) -> u32 {
        if row.link_group > 0 {
            return row.link_group;
        }
        let group = self.groups.len() as u32 + 1;
        self.groups.insert(group, vec![row.path.clone()]);
        self.replace_row(Row { link_group: group, ..row.clone() });
        group
    }

    fn set_group_metadata(&mut self, group: u32, metadata: &Metadata) {
        for path in self.groups.get(&group).cloned().unwrap_or_default() {
            let row = self.index.get(&path).filter(|row| row.link_group == group);
            if let Some(row) = row.cloned() {
                self.replace_row(Row { metadata: metadata.clone(), ..row });
            }
        }
    }

    /// Another row for the same content.
    fn replace_row(&mut self, row: Row) {
        let path = row.path.clone();
        self.index.insert(row);
        if let Some(bytes) = self.kept_bytes.get(&path) {
            self.index.keep_bytes(&path, bytes.clone());
        }
    }

    fn above(&self, path: &EntryPath) -> Above {
        let mut above = Above { whiteout: None, bytes: 0 };
        let mut next = path.parent();
        while let Some(parent) = next.filter(|parent| !parent.is_root()) {
            if let Some(row) = self.index.get(&parent) {
                above.whiteout = (row.kind == Kind::Whiteout).then_some(parent);
                break;
            }
            above.bytes += row_bytes(&parent);
            next = parent.parent();
        }
        above
    }

    pub(super) fn into_index(self) -> LayerIndex {
        self.index.build()
    }
}

/// What symlink(2) takes.
pub(super) fn check_symlink_target(path: &EntryPath, target: &[u8]) -> Result<(), LayerError> {
    if target.is_empty() || target.len() > SYMLINK_TARGET_BYTES_MAX {
        return Err(LayerError::SymlinkTarget { path: path.clone(), length: target.len() });
    }
    Ok(())
}

fn row_bytes(path: &EntryPath) -> u64 {
    path.as_bytes().len() as u64 + ROW_BYTES
}

fn can_be_linked(kind: &Kind) -> bool {
    !kind.is_directory() && *kind != Kind::Whiteout
}

fn clean(name: &[u8]) -> Result<EntryPath, LayerError> {
    EntryPath::clean(name).map_err(|source| name_error(name, source))
}

fn name_error(name: &[u8], source: PathError) -> LayerError {
    LayerError::Name { name: shown(name), source }
}

fn trim_slashes(mut name: &[u8]) -> &[u8] {
    while let Some(rest) = name.strip_suffix(b"/") {
        name = rest;
    }
    name
}
