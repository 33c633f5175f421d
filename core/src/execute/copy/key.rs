//! What a selection's content key holds: all that reaches the layer, but mtimes.

use std::{collections::HashMap, io};

use crate::{
    digest::Digest,
    tree::{Content, EntryPath, Kind},
};

use super::{
    CopyError, CopyRequest,
    select::{Selected, SelectedSource},
};
use crate::context::Node;

/// A selected regular file, for whoever digests it.
#[derive(Clone, Copy, Debug)]
pub struct SelectedFile<'s> {
    /// Which of the selection's trees it is of.
    pub tree: usize,
    pub source: &'s SelectedSource,
    /// Below the source; the root where the source is the file.
    pub below: &'s EntryPath,
    pub node: &'s Node,
}

impl SelectedFile<'_> {
    /// Its path in its tree.
    pub fn path(&self) -> EntryPath {
        self.source.root.join(self.below)
    }
}

/// Digests files, given with their contents: one digest each, in their order.
pub type DigestFiles<'f> =
    dyn FnMut(&[SelectedFile<'_>], &[Content]) -> io::Result<Vec<Digest>> + 'f;

/// Names a file of a selection: the source's number, and the entry's in it (`None`: the source itself).
type FileNumber = (usize, Option<usize>);

impl Selected<'_> {
    /// Whether nothing is selected: a wildcard without a match.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// The sources, in order.
    pub fn sources(&self) -> &[SelectedSource] {
        &self.sources
    }

    /// All regular files that are not empty.
    pub fn files(&self) -> impl Iterator<Item = SelectedFile<'_>> {
        self.file_numbers().filter_map(|number| self.file(number))
    }

    /// Where the bytes of the given files are, one for each; each tree is asked once.
    pub fn contents(&self, files: &[SelectedFile<'_>]) -> Result<Vec<Content>, CopyError> {
        let wanted: Vec<(usize, EntryPath)> =
            files.iter().map(|file| (file.tree, file.path())).collect();
        Ok(super::fetch_contents(&self.trees, &wanted)?)
    }

    /// Digests the files whose digest is not known yet, all at once, and keeps the digests: `copy` and `add` then hold the
    /// files to them.
    pub fn digest_files(&mut self, digest: &mut DigestFiles<'_>) -> Result<(), CopyError> {
        let unknown =
            |number: &FileNumber| self.file(*number).is_some_and(|file| file.node.digest.is_none());
        let numbers: Vec<FileNumber> = self.file_numbers().filter(unknown).collect();
        let files: Vec<_> = numbers.iter().filter_map(|number| self.file(*number)).collect();
        if files.is_empty() {
            return Ok(());
        }
        let contents = self.contents(&files)?;
        let found = digest(&files, &contents).map_err(CopyError::Digest)?;
        for (number, digest) in numbers.iter().zip(found) {
            self.set_digest(*number, digest);
        }
        Ok(())
    }

    /// Feeds the content key, each part with its length or of a fixed size. Files must have been digested.
    ///
    /// What it holds: for each source its name and each entry's path, type, mode, owner (without `--chown`), link target,
    /// device numbers, capability, hard links and content digest. No mtime.
    pub fn hash_into(&self, request: &CopyRequest, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        put_number(sink, self.sources.len() as u64);
        for source in &self.sources {
            let mut links = HashMap::new();
            put_bytes(sink, &source.name);
            put_number(sink, source.entries.len() as u64);
            put_node(sink, &source.node, request, &mut links)?;
            for entry in &source.entries {
                put_bytes(sink, entry.below.as_bytes());
                sink(&[entry.leading.into()]);
                put_node(sink, &entry.node, request, &mut links)?;
            }
        }
        Ok(())
    }

    fn file_numbers(&self) -> impl Iterator<Item = FileNumber> {
        let sources = self.sources.iter().enumerate();
        sources.flat_map(|(source, taken)| {
            let entries = (0..taken.entries.len()).map(Some);
            std::iter::once(None).chain(entries).map(move |entry| (source, entry))
        })
    }

    fn file(&self, (source, entry): FileNumber) -> Option<SelectedFile<'_>> {
        static ROOT: std::sync::LazyLock<EntryPath> = std::sync::LazyLock::new(EntryPath::root);
        let source = self.sources.get(source)?;
        let (below, node) = match entry {
            None => (&*ROOT, &source.node),
            Some(at) => source.entries.get(at).map(|entry| (&entry.below, &entry.node))?,
        };
        let file = SelectedFile { tree: source.tree, source, below, node };
        matches!(node.kind, Kind::File { size: 1.. }).then_some(file)
    }

    fn set_digest(&mut self, (source, entry): FileNumber, digest: Digest) {
        let source = &mut self.sources[source];
        match entry {
            None => source.node.digest = Some(digest),
            Some(at) => source.entries[at].node.digest = Some(digest),
        }
    }
}

fn put_number(sink: &mut dyn FnMut(&[u8]), number: u64) {
    sink(&number.to_le_bytes());
}

fn put_bytes(sink: &mut dyn FnMut(&[u8]), bytes: &[u8]) {
    put_number(sink, bytes.len() as u64);
    sink(bytes);
}

fn put_node(
    sink: &mut dyn FnMut(&[u8]),
    node: &Node,
    request: &CopyRequest,
    links: &mut HashMap<(u64, u64), u64>,
) -> io::Result<()> {
    let mode = if matches!(node.kind, Kind::Symlink { .. }) { 0 } else { node.metadata.mode };
    put_number(sink, mode.into());
    if request.chown.is_none() {
        put_number(sink, node.metadata.uid.into());
        put_number(sink, node.metadata.gid.into());
    }
    put_bytes(sink, node.metadata.capability.as_deref().unwrap_or_default());
    let next = links.len() as u64 + 1;
    put_number(sink, node.link.map_or(0, |link| *links.entry(link).or_insert(next)));
    put_kind(sink, node)
}

fn put_kind(sink: &mut dyn FnMut(&[u8]), node: &Node) -> io::Result<()> {
    match &node.kind {
        Kind::Directory { .. } => sink(b"d"),
        Kind::Fifo => sink(b"p"),
        Kind::Whiteout => sink(b"w"),
        Kind::File { size: 0 } => sink(b"e"),
        Kind::File { .. } => {
            sink(b"f");
            let undigested = || io::Error::other("a selected file was not digested");
            sink(node.digest.ok_or_else(undigested)?.as_bytes());
        }
        Kind::Symlink { target } => {
            sink(b"l");
            put_bytes(sink, target);
        }
        Kind::CharacterDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            sink(if matches!(node.kind, Kind::BlockDevice { .. }) { b"b" } else { b"c" });
            put_number(sink, (*major).into());
            put_number(sink, (*minor).into());
        }
    }
    Ok(())
}
