//! Where a source goes, and what it becomes there (rules.md section 2, Destination).

use std::collections::HashMap;

use crate::{
    context::Node,
    execute::{
        target::{Inode, InodeNumber, MakeDirectories, Origin, Target, join},
        users::{Owner, OwnerSpec, Parent},
    },
    tree::{EntryPath, Kind, Metadata, ResolveError, Snapshot},
};

use super::{Chmod, CopyError, CopyRequest, SelectedEntry, SelectedSource};

/// A destination, joined to WORKDIR and cleaned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::execute) struct Destination {
    pub path: EntryPath,
    /// Written so that it can only be a directory.
    pub is_directory: bool,
}

impl Destination {
    fn parse(request: &CopyRequest) -> Result<Self, ResolveError> {
        let text = request.destination.as_bytes();
        let base = match text.first() {
            Some(b'/') => EntryPath::root(),
            _ => EntryPath::clean(request.working_directory.as_bytes())?,
        };
        let is_directory =
            matches!(text, b"" | b".") || text.ends_with(b"/") || text.ends_with(b"/.");
        Ok(Destination { path: base.join_clean(text)?, is_directory })
    }
}

/// A step's working tree with the flags that all its sources share.
pub(in crate::execute) struct Placement<'a> {
    pub target: Target<'a>,
    pub destination: Destination,
    pub make: MakeDirectories,
    owner: Option<Owner>,
    chmod: Option<Chmod>,
}

/// The inodes that one source's hard links have got.
type Links = HashMap<(u64, u64), InodeNumber>;

impl<'a> Placement<'a> {
    /// `--link` works on `empty` instead of the parent, unless there is a `--chmod` (rule 23).
    pub fn new(
        parent: &Parent<'a>,
        empty: &'a Snapshot,
        request: &CopyRequest,
    ) -> Result<Self, CopyError> {
        let chmod = request.chmod.as_deref().filter(|chmod| !chmod.is_empty());
        let chmod = chmod.map(Chmod::parse).transpose()?;
        let linked = request.link && chmod.is_none();
        let spec = request.chown.as_deref().filter(|chown| !chown.is_empty());
        let owner = spec.map(|spec| find_owner(spec, parent, linked)).transpose()?;
        let mode = chmod.as_ref().and_then(Chmod::directory_mode).unwrap_or(0o755);
        Ok(Placement {
            target: Target::new(if linked { empty } else { parent.snapshot }),
            destination: Destination::parse(request)?,
            make: MakeDirectories { mode, owner, created: request.created },
            owner,
            chmod,
        })
    }

    pub fn into_target(self) -> Target<'a> {
        self.target
    }

    pub fn owner(&self) -> Option<Owner> {
        self.owner
    }

    /// Copies one source.
    pub fn place(&mut self, source: &SelectedSource) -> Result<(), CopyError> {
        let root = self.prepare(source)?;
        let mut links = Links::new();
        if !source.node.kind.is_directory() {
            return self.put(source, &EntryPath::root(), root, &source.node, &mut links);
        }
        if !self.target.is_directory(&root) {
            return Err(CopyError::DirectoryOverFile(root));
        }
        let mtime = match source.root.is_root() {
            // The root of a tree has no time of its own.
            true => self.make.created,
            false => source.node.metadata.mtime,
        };
        self.target.change(&root, |metadata| metadata.mtime = mtime);
        for entry in &source.entries {
            let path = join(&root, &entry.below)?;
            match entry.node.kind.is_directory() {
                true => self.merge_directory(path, entry)?,
                false => self.put(source, &entry.below, path, &entry.node, &mut links)?,
            }
        }
        Ok(())
    }

    /// Makes the destination's directories, and finds where the source itself goes (rules 4, 6 and 7).
    fn prepare(&mut self, source: &SelectedSource) -> Result<EntryPath, CopyError> {
        let Destination { path, is_directory } = self.destination.clone();
        let first = if is_directory { path.clone() } else { path.parent().unwrap_or_default() };
        let first = self.target.resolve(&first)?;
        self.target.make_directories(&first, &self.make)?;
        let mut resolved = self.target.resolve(&path)?;
        if source.node.kind.is_directory() {
            if resolved.is_root() || self.target.look(&resolved).is_some() {
                return Ok(resolved);
            }
            self.target.make_directories(&resolved, &self.make)?;
            return Ok(resolved);
        }
        if self.target.is_directory(&resolved) {
            resolved = resolved.join_clean(&source.name).map_err(ResolveError::from)?;
        }
        self.target.make_directories(&resolved.parent().unwrap_or_default(), &self.make)?;
        Ok(resolved)
    }

    /// A directory below the copied one: made, or given the source's metadata (rules 6, 9 and 14).
    fn merge_directory(&mut self, path: EntryPath, entry: &SelectedEntry) -> Result<(), CopyError> {
        let metadata = self.metadata(&entry.node);
        match self.target.look(&path).map(|view| view.kind.is_directory()) {
            None => drop(self.target.put(path, Inode::plain(Kind::DIRECTORY, metadata))),
            Some(false) => return Err(CopyError::DirectoryOverFile(path)),
            Some(true) if entry.leading => {
                let mode = entry.node.metadata.mode;
                self.target.change(&path, |metadata| metadata.mode = mode);
            }
            Some(true) => self.target.change(&path, |existing| *existing = metadata),
        }
        Ok(())
    }

    /// Anything but a directory.
    fn put(
        &mut self,
        source: &SelectedSource,
        below: &EntryPath,
        path: EntryPath,
        node: &Node,
        links: &mut Links,
    ) -> Result<(), CopyError> {
        if self.target.is_directory(&path) {
            return Err(CopyError::FileOverDirectory(path));
        }
        let link = node.link.filter(|_| matches!(node.kind, Kind::File { .. }));
        if let Some(number) = link.and_then(|link| links.get(&link)) {
            self.target.put_link(path, *number);
            return Ok(());
        }
        let origin = matches!(node.kind, Kind::File { size: 1.. })
            .then(|| Origin::Source { tree: source.tree, path: source.root.join(below) });
        let metadata = self.metadata(node);
        let inode = Inode { kind: node.kind.clone(), metadata, origin, digest: node.digest };
        let number = self.target.put(path, inode);
        links.extend(link.map(|link| (link, number)));
        Ok(())
    }

    /// What a node's metadata becomes (rule 9).
    fn metadata(&self, node: &Node) -> Metadata {
        let mut metadata = node.metadata.clone();
        if let Some(owner) = self.owner {
            (metadata.uid, metadata.gid) = (owner.uid, owner.gid);
        }
        if let Some(chmod) = &self.chmod
            && !matches!(node.kind, Kind::Symlink { .. })
        {
            metadata.mode = chmod.apply(metadata.mode, node.kind.is_directory());
        }
        metadata
    }
}

fn find_owner(spec: &str, parent: &Parent<'_>, linked: bool) -> Result<Owner, CopyError> {
    let failed = |source| CopyError::Owner { spec: spec.chars().take(200).collect(), source };
    let parsed = OwnerSpec::parse(spec).map_err(failed)?;
    if linked && parsed.is_named() {
        return Err(CopyError::NamedOwnerWithLink(spec.to_owned()));
    }
    parsed.look_up(parent).map_err(failed)
}
