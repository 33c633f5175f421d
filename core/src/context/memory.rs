//! A tree whose names are held in memory: a here-document, a downloaded file, a context that came as a tar.

use std::collections::BTreeMap;

use crate::tree::{Content, EntryPath, Kind, Metadata, Timestamp};

use super::{ContextError, Node, SourceTree, source::capability_version_2};

/// Names with their contents. What is put below a name that is no directory is not found.
#[derive(Clone, Debug, Default)]
pub struct MemoryTree {
    entries: BTreeMap<EntryPath, (Node, Option<Content>)>,
}

/// A file that ADD downloaded.
#[derive(Clone, Debug)]
pub struct RemoteFile {
    /// The last part of the URL's path, see `remote_name`.
    pub name: Vec<u8>,
    /// Bytes.
    pub size: u64,
    pub content: Content,
    /// Last-Modified, else 0.
    pub mtime: Timestamp,
    pub digest: Option<crate::digest::Digest>,
}

impl MemoryTree {
    /// One file at the root.
    fn with_file(name: &[u8], node: Node, content: Content) -> Result<Self, ContextError> {
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
            return Err(ContextError::Name(name.to_vec()));
        }
        let path = EntryPath::clean(name).map_err(crate::tree::ResolveError::from)?;
        let mut tree = MemoryTree::default();
        tree.insert(path, node, Some(content));
        Ok(tree)
    }

    /// A here-document: 0644 0:0, named after its delimiter.
    pub fn heredoc(name: &[u8], body: &[u8], created: Timestamp) -> Result<Self, ContextError> {
        let metadata = Metadata { mode: 0o644, mtime: created, ..Metadata::default() };
        let node = Node {
            digest: Some(crate::digest::Digest::of(body)),
            ..Node::new(Kind::File { size: body.len() as u64 }, metadata)
        };
        MemoryTree::with_file(name, node, Content::Bytes(body.into()))
    }

    /// A downloaded file: 0600 0:0.
    pub fn remote(file: RemoteFile) -> Result<Self, ContextError> {
        let metadata = Metadata { mode: 0o600, mtime: file.mtime, ..Metadata::default() };
        let node =
            Node { digest: file.digest, ..Node::new(Kind::File { size: file.size }, metadata) };
        MemoryTree::with_file(&file.name, node, file.content)
    }

    /// Puts an entry, in place of what was at its path. Parents have to be put too.
    pub fn insert(&mut self, path: EntryPath, node: Node, content: Option<Content>) {
        self.entries.insert(path, (node, content));
    }

    /// What stands at a path.
    pub fn get(&self, path: &EntryPath) -> Option<&Node> {
        self.entries.get(path).map(|(node, _)| node)
    }

    /// Takes away a name and all below it.
    pub(super) fn remove(&mut self, path: &EntryPath) {
        let below = self.entries.range(path.clone()..).map(|(path, _)| path);
        let below: Vec<EntryPath> =
            below.take_while(|name| name.is_within(path)).cloned().collect();
        below.iter().for_each(|path| drop(self.entries.remove(path)));
    }

    pub(super) fn content(&self, path: &EntryPath) -> Option<&Content> {
        self.entries.get(path).and_then(|(_, content)| content.as_ref())
    }
}

/// The name of a URL's file: the last part of its path, `__unnamed__` without one.
pub fn remote_name(url: &url::Url) -> Vec<u8> {
    let path = percent_encoding::percent_decode_str(url.path()).collect::<Vec<u8>>();
    let cleaned = super::patterns::clean(&path);
    match cleaned.rsplit(|byte| *byte == b'/').next() {
        None | Some(b"" | b"." | b"..") => b"__unnamed__".to_vec(),
        Some(name) => name.to_vec(),
    }
}

impl SourceTree for MemoryTree {
    fn lookup(&self, path: &EntryPath) -> Result<Option<Node>, ContextError> {
        if path.is_root() {
            let metadata = Metadata::directory(Timestamp::default());
            return Ok(Some(Node::new(Kind::DIRECTORY, metadata)));
        }
        Ok(self.get(path).cloned())
    }

    fn children(&self, directory: &EntryPath) -> Result<Vec<(EntryPath, Node)>, ContextError> {
        let from = self.entries.range(directory.clone()..);
        let below = from.take_while(|(path, _)| path.is_within(directory));
        let children = below.filter(|(path, _)| path.parent().as_ref() == Some(directory));
        Ok(children.map(|(path, (node, _))| (path.clone(), node.clone())).collect())
    }

    fn capability(&self, path: &EntryPath, node: &Node) -> Result<Option<Box<[u8]>>, ContextError> {
        let Some(value) = &node.metadata.capability else { return Ok(None) };
        let converted = capability_version_2(value);
        converted.map(Some).ok_or_else(|| ContextError::Capability(path.clone()))
    }

    fn contents(&self, wanted: &[EntryPath]) -> Result<Vec<Content>, ContextError> {
        let content = |path: &EntryPath| {
            self.content(path).cloned().ok_or_else(|| ContextError::Vanished(path.clone()))
        };
        wanted.iter().map(content).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_its_file() {
        for (url, name) in [
            ("http://h/a/b.txt?c=d#e", "b.txt"),
            ("http://h/files/", "files"),
            ("http://h/", "__unnamed__"),
            ("http://h", "__unnamed__"),
            ("http://h/a%20b", "a b"),
            ("http://h/x/%2e%2e/%2e%2e", "__unnamed__"),
            ("http://h/a%2Fb", "b"),
        ] {
            assert_eq!(remote_name(&url.parse().unwrap()), name.as_bytes(), "{url}");
        }
    }

    #[test]
    fn a_heredoc_is_one_plain_file() {
        let tree = MemoryTree::heredoc(b"EOF", b"text", Timestamp::from_seconds(7)).unwrap();
        let children = tree.children(&EntryPath::root()).unwrap();
        assert_eq!(children.len(), 1);
        assert_eq!((children[0].1.metadata.mode, children[0].1.metadata.mtime.seconds), (0o644, 7));
        for name in ["", ".", "..", "a/b"] {
            assert!(MemoryTree::heredoc(name.as_bytes(), b"", Timestamp::default()).is_err());
        }
    }
}
