//! The tree that a step works on: its parent's snapshot and what the step has put over it so far.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{
    context::resolve_with,
    digest::Digest,
    tree::{
        Change, Changeset, Content, EntryPath, Kind, LastLink, Metadata, PathError, ResolveError,
        Row, Snapshot, Timestamp,
    },
};

use super::users::Owner;

/// The longest path that a system call takes.
const PATH_BYTES_MAX: usize = 4095;

/// Where a file's bytes come from, asked for only when all names are known.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    /// A path of one of the step's source trees, by number.
    Source {
        tree: usize,
        path: EntryPath,
    },
    /// A file of the parent, by its layer and row.
    Parent {
        layer: usize,
        row: Box<Row>,
    },
    Ready(Content),
}

/// What names stand for.
#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub kind: Kind,
    pub metadata: Metadata,
    pub origin: Option<Origin>,
    pub digest: Option<Digest>,
}

/// A file that has names in this step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InodeNumber(usize);

/// What the tree has at a path.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'b> {
    pub kind: &'b Kind,
    pub metadata: &'b Metadata,
}

/// How directories are made that nothing describes.
#[derive(Clone, Copy, Debug)]
pub(super) struct MakeDirectories {
    /// The low nine bits count.
    pub mode: u32,
    pub owner: Option<Owner>,
    pub created: Timestamp,
}

#[derive(Debug)]
pub(super) struct Target<'a> {
    parent: &'a Snapshot,
    inodes: Vec<Inode>,
    names: BTreeMap<EntryPath, InodeNumber>,
    /// Nothing of the parent shows at these paths and below.
    removed: BTreeSet<EntryPath>,
}

impl<'a> Target<'a> {
    pub fn new(parent: &'a Snapshot) -> Self {
        let (inodes, names, removed) = Default::default();
        Target { parent, inodes, names, removed }
    }

    /// What stands at a path other than the root, no link followed.
    pub fn look(&self, path: &EntryPath) -> Option<View<'_>> {
        if let Some(number) = self.names.get(path) {
            let inode = &self.inodes[number.0];
            return Some(View { kind: &inode.kind, metadata: &inode.metadata });
        }
        if self.is_removed(path) {
            return None;
        }
        let entry = self.parent.lookup(path)?;
        Some(View { kind: entry.kind(), metadata: entry.metadata() })
    }

    fn is_removed(&self, path: &EntryPath) -> bool {
        if self.removed.is_empty() {
            return false;
        }
        let mut at = Some(path.clone());
        while let Some(here) = at {
            if self.removed.contains(&here) {
                return true;
            }
            at = here.parent();
        }
        false
    }

    pub fn is_directory(&self, path: &EntryPath) -> bool {
        path.is_root() || self.look(path).is_some_and(|view| view.kind.is_directory())
    }

    /// Follows links inside the root.
    pub fn resolve(&self, path: &EntryPath) -> Result<EntryPath, ResolveError> {
        let mut look = |path: &EntryPath| Ok(self.look(path).map(|view| view.kind.clone()));
        resolve_with(path, LastLink::Follow, &mut look)
    }

    /// Makes a resolved path and its parents directories where nothing is there (rule 5).
    pub fn make_directories(
        &mut self,
        path: &EntryPath,
        how: &MakeDirectories,
    ) -> Result<(), ResolveError> {
        let mut at = EntryPath::root();
        for name in path.components() {
            let next = at.child(name);
            match self.look(&next).map(|view| view.kind.is_directory()) {
                Some(true) => {}
                Some(false) => return Err(ResolveError::NotADirectory(next)),
                None => self.make_directory(&at, next.clone(), how),
            }
            at = next;
        }
        Ok(())
    }

    fn make_directory(&mut self, parent: &EntryPath, path: EntryPath, how: &MakeDirectories) {
        let inherited = self.set_group_id(parent);
        let owner = how.owner.unwrap_or(Owner { uid: 0, gid: inherited.unwrap_or(0) });
        let bit = if inherited.is_some() { 0o2000 } else { 0 };
        let metadata = Metadata {
            mode: how.mode & 0o777 | bit,
            uid: owner.uid,
            gid: owner.gid,
            mtime: how.created,
            capability: None,
        };
        self.put(path, Inode::plain(Kind::DIRECTORY, metadata));
    }

    /// The gid that a set-group-id directory hands on.
    fn set_group_id(&self, directory: &EntryPath) -> Option<u32> {
        let metadata = self.look(directory).filter(|_| !directory.is_root())?.metadata;
        (metadata.mode & 0o2000 != 0).then_some(metadata.gid)
    }

    /// Gives a path to a new inode.
    pub fn put(&mut self, path: EntryPath, inode: Inode) -> InodeNumber {
        let number = InodeNumber(self.inodes.len());
        self.inodes.push(inode);
        self.names.insert(path, number);
        number
    }

    /// Gives a path to an inode that has a name already.
    pub fn put_link(&mut self, path: EntryPath, number: InodeNumber) {
        self.names.insert(path, number);
    }

    /// The inode of a name that this step put.
    pub fn number(&self, path: &EntryPath) -> Option<InodeNumber> {
        self.names.get(path).copied()
    }

    pub fn inode_mut(&mut self, number: InodeNumber) -> &mut Inode {
        &mut self.inodes[number.0]
    }

    /// Changes the metadata of something that is there; the root has none that goes into a layer.
    pub fn change(&mut self, path: &EntryPath, change: impl FnOnce(&mut Metadata)) {
        if let Some(number) = self.names.get(path) {
            change(&mut self.inodes[number.0].metadata);
        } else if let Some(inode) = self.inherited(path) {
            let number = self.put(path.clone(), inode);
            change(&mut self.inodes[number.0].metadata);
        }
    }

    /// What the parent has at a path, as an inode of its own.
    pub fn inherited(&self, path: &EntryPath) -> Option<Inode> {
        if self.is_removed(path) {
            return None;
        }
        let entry = self.parent.lookup(path)?;
        let kind = match entry.kind() {
            Kind::Directory { .. } => Kind::DIRECTORY,
            other => other.clone(),
        };
        let origin = matches!(kind, Kind::File { size: 1.. })
            .then(|| Origin::Parent { layer: entry.layer, row: Box::new(entry.row.clone()) });
        let (metadata, digest) = (entry.metadata().clone(), entry.row.digest);
        Some(Inode { kind, metadata, origin, digest })
    }

    /// Takes away what stands at a path, with all that is in it.
    pub fn remove(&mut self, path: &EntryPath) {
        let below = self.names.range(path.clone()..).map(|(name, _)| name);
        let below: Vec<EntryPath> =
            below.take_while(|name| name.is_within(path)).cloned().collect();
        for name in below {
            self.names.remove(&name);
        }
        if !self.is_removed(path) && self.parent.lookup(path).is_some() {
            self.removed.retain(|name| !name.is_within(path));
            self.removed.insert(path.clone());
        }
    }

    /// What goes into the layer (rules.md section 1), with the contents that `fetch` finds for all of them at once.
    pub fn finish<E>(
        self,
        fetch: impl FnOnce(&[&Origin]) -> Result<Vec<Content>, E>,
    ) -> Result<Changeset, E> {
        let emitted = self.emitted();
        let whiteouts = self.whiteouts();
        let contents = self.contents(&emitted, fetch)?;
        let groups = link_groups(&emitted);
        let mut changes = self.ancestors(&emitted, &whiteouts);
        changes.extend(emitted.iter().map(|(path, number)| {
            let inode = &self.inodes[number.0];
            Change {
                link_group: groups.get(&number.0).copied().unwrap_or(0),
                content: contents.get(&number.0).cloned(),
                digest: inode.digest,
                ..Change::new((*path).clone(), inode.kind.clone(), inode.metadata.clone())
            }
        }));
        changes.extend(whiteouts.into_iter().map(Change::whiteout));
        Ok(Changeset::new(changes))
    }

    /// Names to emit for their own sake: all that is no directory, and directories that are new or changed.
    fn emitted(&self) -> Vec<(&EntryPath, InodeNumber)> {
        let changed = |path: &EntryPath, inode: &Inode| {
            !inode.kind.is_directory()
                || self.parent.lookup(path).is_none_or(|entry| {
                    !entry.is_directory() || !entry.metadata().same_but_mtime(&inode.metadata)
                })
        };
        let names = self.names.iter().map(|(path, number)| (path, *number));
        names.filter(|(path, number)| changed(path, &self.inodes[number.0])).collect()
    }

    /// The ancestors of what is emitted, with the rows that they have.
    fn ancestors(
        &self,
        emitted: &[(&EntryPath, InodeNumber)],
        whiteouts: &[EntryPath],
    ) -> Vec<Change> {
        let mut ancestors: BTreeSet<EntryPath> = BTreeSet::new();
        let paths = emitted.iter().map(|(path, _)| *path).chain(whiteouts);
        for path in paths {
            let mut at = path.parent();
            while let Some(parent) = at.filter(|parent| !parent.is_root()) {
                at = parent.parent();
                if !ancestors.insert(parent) {
                    break;
                }
            }
        }
        let change = |path: EntryPath| {
            let metadata = self.look(&path)?.metadata.clone();
            Some(Change::new(path, Kind::DIRECTORY, metadata))
        };
        ancestors.into_iter().filter_map(change).collect()
    }

    /// What vanished below directories that are directories again (or still).
    fn whiteouts(&self) -> Vec<EntryPath> {
        let mut whiteouts = Vec::new();
        let mut pending: Vec<EntryPath> = self.removed.iter().cloned().collect();
        while let Some(path) = pending.pop() {
            let was_directory = self.parent.lookup(&path).is_some_and(|entry| entry.is_directory());
            match self.look(&path).map(|view| view.kind.is_directory()) {
                None => whiteouts.push(path),
                Some(true) if was_directory => {
                    let children = self.parent.children(&path);
                    pending.extend(children.iter().map(|child| child.row.path.clone()));
                }
                Some(_) => {}
            }
        }
        whiteouts
    }

    /// The content of each emitted inode that has one.
    fn contents<E>(
        &self,
        emitted: &[(&EntryPath, InodeNumber)],
        fetch: impl FnOnce(&[&Origin]) -> Result<Vec<Content>, E>,
    ) -> Result<HashMap<usize, Content>, E> {
        let numbers: BTreeSet<usize> = emitted.iter().map(|(_, number)| number.0).collect();
        let origin = |number: usize| Some((number, self.inodes[number].origin.as_ref()?));
        let wanted: Vec<(usize, &Origin)> = numbers.into_iter().filter_map(origin).collect();
        let origins: Vec<&Origin> = wanted.iter().map(|(_, origin)| *origin).collect();
        let contents = if origins.is_empty() { Vec::new() } else { fetch(&origins)? };
        Ok(wanted.iter().map(|(number, _)| *number).zip(contents).collect())
    }
}

impl Inode {
    /// Without content.
    pub fn plain(kind: Kind, metadata: Metadata) -> Self {
        Inode { kind, metadata, origin: None, digest: None }
    }
}

/// A number above 0 for each inode with more than one emitted name.
fn link_groups(emitted: &[(&EntryPath, InodeNumber)]) -> HashMap<usize, u32> {
    let mut counts: HashMap<usize, u32> = HashMap::new();
    emitted.iter().for_each(|(_, number)| *counts.entry(number.0).or_default() += 1);
    let mut groups = HashMap::new();
    for (_, number) in emitted {
        if counts[&number.0] > 1 && !groups.contains_key(&number.0) {
            groups.insert(number.0, groups.len() as u32 + 1);
        }
    }
    groups
}

/// Joins two paths within the length that a path may have.
pub(super) fn join(base: &EntryPath, below: &EntryPath) -> Result<EntryPath, ResolveError> {
    let whole = base.join(below);
    match whole.as_bytes().len() {
        length if length > PATH_BYTES_MAX => Err(PathError::Long(length).into()),
        _ => Ok(whole),
    }
}
