//! A stage or an image as a source: its snapshot, and a way to its files' bytes.

use crate::tree::{Content, Entry, EntryPath, Kind, Metadata, Row, Snapshot, Timestamp};

use super::{ContextError, Node, SourceTree, source::capability_version_2};

/// Why contents could not be had; the caller knows its own errors by downcast.
pub type ContentsError = Box<dyn std::error::Error + Send + Sync>;

/// Finds the bytes of files that a snapshot lists: in blobs, unpacked layers or a registry.
pub trait SnapshotContents: Sync {
    /// One content for each wanted file: the number of its layer in the snapshot, and its row there. Called once for all
    /// that one step wants.
    fn contents(&self, wanted: &[(usize, &Row)]) -> Result<Vec<Content>, ContentsError>;
}

/// A snapshot with its contents.
#[derive(Clone, Copy)]
pub struct StageTree<'a> {
    pub snapshot: &'a Snapshot,
    pub contents: &'a dyn SnapshotContents,
}

impl StageTree<'_> {
    fn entry(&self, path: &EntryPath) -> Result<Entry<'_>, ContextError> {
        self.snapshot.lookup(path).ok_or_else(|| ContextError::Vanished(path.clone()))
    }
}

fn node(entry: &Entry<'_>) -> Node {
    let link =
        (entry.row.link_group > 0).then_some((entry.layer as u64, u64::from(entry.row.link_group)));
    let kind = match entry.kind() {
        Kind::Directory { .. } => Kind::DIRECTORY,
        other => other.clone(),
    };
    Node { kind, metadata: entry.metadata().clone(), link, digest: entry.row.digest }
}

impl SourceTree for StageTree<'_> {
    fn lookup(&self, path: &EntryPath) -> Result<Option<Node>, ContextError> {
        if path.is_root() {
            let metadata = Metadata::directory(Timestamp::default());
            return Ok(Some(Node::new(Kind::DIRECTORY, metadata)));
        }
        Ok(self.snapshot.lookup(path).as_ref().map(node))
    }

    fn children(&self, directory: &EntryPath) -> Result<Vec<(EntryPath, Node)>, ContextError> {
        let entries = self.snapshot.children(directory);
        Ok(entries.iter().map(|entry| (entry.row.path.clone(), node(entry))).collect())
    }

    fn capability(&self, path: &EntryPath, node: &Node) -> Result<Option<Box<[u8]>>, ContextError> {
        let Some(value) = &node.metadata.capability else { return Ok(None) };
        let converted = capability_version_2(value);
        converted.map(Some).ok_or_else(|| ContextError::Capability(path.clone()))
    }

    fn contents(&self, wanted: &[EntryPath]) -> Result<Vec<Content>, ContextError> {
        let entries: Result<Vec<Entry<'_>>, _> =
            wanted.iter().map(|path| self.entry(path)).collect();
        let entries = entries?;
        let rows: Vec<(usize, &Row)> =
            entries.iter().map(|entry| (entry.layer, entry.row)).collect();
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let contents = self.contents.contents(&rows).map_err(ContextError::Contents)?;
        match contents.len() == rows.len() {
            true => Ok(contents),
            false => Err(ContextError::Vanished(wanted[0].clone())),
        }
    }
}
