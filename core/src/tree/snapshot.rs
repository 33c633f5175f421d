//! A file tree as a list of layers, looked up from the top and never merged whole.

use std::{collections::BTreeMap, sync::Arc};

use crate::digest::Digest;

use super::{EntryPath, Kind, LayerIndex, Metadata, PathError, Row};

/// Links followed before a look-up is given up, in all and in a row before the last component.
const LINKS_MAX: usize = 255;
const LINKS_IN_A_ROW_MAX: usize = 40;

/// One layer of a snapshot.
#[derive(Clone, Debug)]
pub struct SnapshotLayer {
    pub diff_id: Digest,
    pub index: Arc<LayerIndex>,
}

/// A chain of layers, lowest first.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    layers: Vec<SnapshotLayer>,
}

/// A name that a snapshot has.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// The layer that the row is of, counted from the lowest.
    pub layer: usize,
    pub row: &'a Row,
    /// For an implied row, what the directory below it has.
    inherited: Option<&'a Metadata>,
}

impl<'a> Entry<'a> {
    pub fn metadata(&self) -> &'a Metadata {
        self.inherited.unwrap_or(&self.row.metadata)
    }

    pub fn kind(&self) -> &'a Kind {
        &self.row.kind
    }

    pub fn is_directory(&self) -> bool {
        self.row.kind.is_directory()
    }
}

/// What to do with a link as the last component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastLink {
    Follow,
    Keep,
}

/// Where a path leads.
#[derive(Clone, Debug)]
pub struct Resolved<'a> {
    /// Without links, but for a kept last one.
    pub path: EntryPath,
    /// `None` where nothing is there; the root has none either.
    pub entry: Option<Entry<'a>>,
}

impl Resolved<'_> {
    pub fn is_directory(&self) -> bool {
        self.path.is_root() || self.entry.as_ref().is_some_and(Entry::is_directory)
    }

    pub fn exists(&self) -> bool {
        self.path.is_root() || self.entry.is_some()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error("too many levels of symbolic links in {0}")]
    TooManyLinks(EntryPath),
    #[error("{0} is not a directory")]
    NotADirectory(EntryPath),
    #[error(transparent)]
    Path(#[from] PathError),
}

/// The bytes of a file that an index keeps.
#[derive(Clone, Debug)]
pub enum SmallFile<'a> {
    Missing,
    Bytes(Arc<[u8]>),
    /// A regular file whose bytes the index does not hold.
    Elsewhere(Entry<'a>),
    /// Something else than a regular file.
    NotAFile,
}

impl Snapshot {
    pub fn new(layers: Vec<SnapshotLayer>) -> Self {
        Snapshot { layers }
    }

    pub fn layers(&self) -> &[SnapshotLayer] {
        &self.layers
    }

    /// The snapshot with one more layer on top.
    pub fn with(&self, layer: SnapshotLayer) -> Self {
        let mut layers = self.layers.clone();
        layers.push(layer);
        Snapshot { layers }
    }

    /// The entry at a path, without following links. The root has none.
    pub fn lookup(&self, path: &EntryPath) -> Option<Entry<'_>> {
        let mut found: Option<Entry<'_>> = None;
        for (layer, SnapshotLayer { index, .. }) in self.layers.iter().enumerate().rev() {
            match step(index, path) {
                Step::Row(row) if row.kind == Kind::Whiteout => break,
                Step::Row(row) => match &mut found {
                    None if !row.implied => return Some(Entry { layer, row, inherited: None }),
                    None => found = Some(Entry { layer, row, inherited: None }),
                    Some(_) if !row.kind.is_directory() => break,
                    Some(entry) if !row.implied => {
                        entry.inherited = Some(&row.metadata);
                        return found;
                    }
                    Some(_) => {}
                },
                Step::Below => {}
                Step::End => break,
            }
            if index.hides_below(path) {
                break;
            }
        }
        found
    }

    /// Follows links inside the root (rules.md, looking up). `..` in a link's target is cut as text.
    pub fn resolve(&self, path: &EntryPath, last: LastLink) -> Result<Resolved<'_>, ResolveError> {
        let mut pending: Vec<Vec<u8>> = path.components().rev().map(<[u8]>::to_vec).collect();
        let (mut at, mut links, mut in_a_row) = (EntryPath::root(), 0, 0);
        let mut entry = None;
        while let Some(name) = pending.pop() {
            let next = at.child(&name);
            let found = self.lookup(&next);
            match found.as_ref().map(|found| found.kind()) {
                Some(Kind::Symlink { target })
                    if !(pending.is_empty() && last == LastLink::Keep) =>
                {
                    links += 1;
                    in_a_row += 1;
                    let limit = if pending.is_empty() { LINKS_MAX } else { LINKS_IN_A_ROW_MAX };
                    if links > LINKS_MAX || in_a_row > limit {
                        return Err(ResolveError::TooManyLinks(path.clone()));
                    }
                    let goal = if target.first() == Some(&b'/') {
                        EntryPath::clean(target)?
                    } else {
                        at.join_clean(target)?
                    };
                    pending.extend(goal.components().rev().map(<[u8]>::to_vec));
                    (at, entry) = (EntryPath::root(), None);
                    continue;
                }
                Some(Kind::Directory { .. }) => in_a_row = 0,
                Some(_) if !pending.is_empty() => return Err(ResolveError::NotADirectory(next)),
                Some(_) => {}
                None => {
                    let rest = pending.iter().rev().fold(next, |path, name| path.child(name));
                    return Ok(Resolved { path: rest, entry: None });
                }
            }
            (at, entry) = (next, found);
        }
        Ok(Resolved { path: at, entry })
    }

    /// The names directly below a directory, in order. Empty where it is none.
    pub fn children(&self, directory: &EntryPath) -> Vec<Entry<'_>> {
        let mut names: BTreeMap<&EntryPath, Option<Entry<'_>>> = BTreeMap::new();
        let mut unfinished: Vec<&EntryPath> = Vec::new();
        for (layer, SnapshotLayer { index, .. }) in self.layers.iter().enumerate().rev() {
            if !directory.is_root() {
                match step(index, directory) {
                    Step::Row(row) if !row.kind.is_directory() => break,
                    Step::End => break,
                    _ => {}
                }
            }
            for row in index.children(directory) {
                let seen = names.contains_key(&row.path);
                if !seen && row.kind == Kind::Whiteout {
                    names.insert(&row.path, None);
                } else if !seen {
                    if row.implied {
                        unfinished.push(&row.path);
                    }
                    names.insert(&row.path, Some(Entry { layer, row, inherited: None }));
                }
            }
            if index.hides_below(directory) || is_opaque(index, directory) {
                break;
            }
        }
        for path in unfinished {
            names.insert(path, self.lookup(path));
        }
        names.into_values().flatten().collect()
    }

    /// Calls `visit` for each name below a directory (not for itself), parents first, in order.
    pub fn walk<'a>(&'a self, directory: &EntryPath, visit: &mut dyn FnMut(&Entry<'a>)) {
        for entry in self.children(directory) {
            visit(&entry);
            if entry.is_directory() {
                self.walk(&entry.row.path, visit);
            }
        }
    }

    /// The bytes of a file such as etc/passwd, links followed.
    pub fn small_file(&self, path: &EntryPath) -> Result<SmallFile<'_>, ResolveError> {
        let resolved = match self.resolve(path, LastLink::Follow) {
            Err(ResolveError::NotADirectory(_)) => return Ok(SmallFile::Missing),
            other => other?,
        };
        let Some(entry) = resolved.entry else { return Ok(SmallFile::Missing) };
        let Kind::File { size } = entry.kind() else { return Ok(SmallFile::NotAFile) };
        if *size == 0 {
            return Ok(SmallFile::Bytes(Arc::new([])));
        }
        let kept = self.layers[entry.layer].index.small_files().get(&entry.row.path);
        Ok(kept.map_or(SmallFile::Elsewhere(entry), |bytes| SmallFile::Bytes(bytes.clone())))
    }
}

/// What one layer says of a path.
enum Step<'a> {
    Row(&'a Row),
    /// Nothing: look further down.
    Below,
    /// An ancestor is gone or no directory: nothing is there.
    End,
}

fn step<'a>(index: &'a LayerIndex, path: &EntryPath) -> Step<'a> {
    if let Some(row) = index.get(path) {
        return Step::Row(row);
    }
    if index.blocks(path) { Step::End } else { Step::Below }
}

fn is_opaque(index: &LayerIndex, path: &EntryPath) -> bool {
    index.get(path).is_some_and(|row| row.kind == Kind::Directory { opaque: true })
}
