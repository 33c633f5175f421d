//! A tree that COPY and ADD take files from, whatever it lies in.

use crate::{
    digest::Digest,
    tree::{Content, EntryPath, Kind, LastLink, Metadata, ResolveError},
};

use super::ContextError;

/// What a source tree has at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub kind: Kind,
    /// Without the capability where `SourceTree::capability` has to be asked for it.
    pub metadata: Metadata,
    /// Names with the same value are hard links of each other.
    pub link: Option<(u64, u64)>,
    /// Of a regular file's content, where the tree knows it.
    pub digest: Option<Digest>,
}

impl Node {
    pub fn new(kind: Kind, metadata: Metadata) -> Self {
        Node { kind, metadata, link: None, digest: None }
    }
}

/// A tree to copy from: a build context, a stage or image, a here-document, a downloaded file. Paths are physical: no
/// link is followed.
pub trait SourceTree: Sync {
    /// `None` where nothing is there. The root is a directory.
    fn lookup(&self, path: &EntryPath) -> Result<Option<Node>, ContextError>;

    /// What lies directly in a directory, in the order of the names' bytes.
    fn children(&self, directory: &EntryPath) -> Result<Vec<(EntryPath, Node)>, ContextError>;

    /// `security.capability` of a regular file, as version 2.
    fn capability(&self, path: &EntryPath, node: &Node) -> Result<Option<Box<[u8]>>, ContextError>;

    /// Where the bytes of regular files are, one for each path.
    fn contents(&self, wanted: &[EntryPath]) -> Result<Vec<Content>, ContextError>;
}

/// Follows links inside the tree (rules.md, looking up). What is there, if anything, `lookup` tells.
pub fn resolve(
    tree: &dyn SourceTree,
    path: &EntryPath,
    last: LastLink,
) -> Result<EntryPath, ContextError> {
    resolve_with(path, last, &mut |path| Ok(tree.lookup(path)?.map(|node| node.kind)))
}

/// Links followed before a look-up is given up, in all and in a row before the last component.
const LINKS_MAX: usize = 255;
const LINKS_IN_A_ROW_MAX: usize = 40;

/// Follows links by a look-up that does not: the rules of `Snapshot::resolve`, for any tree. `..` in a link is cut as text.
pub(crate) fn resolve_with<E: From<ResolveError>>(
    path: &EntryPath,
    last: LastLink,
    look: &mut dyn FnMut(&EntryPath) -> Result<Option<Kind>, E>,
) -> Result<EntryPath, E> {
    let mut pending: Vec<Vec<u8>> = path.components().rev().map(<[u8]>::to_vec).collect();
    let (mut at, mut links, mut in_a_row) = (EntryPath::root(), 0, 0);
    while let Some(name) = pending.pop() {
        let next = at.child(&name);
        match look(&next)? {
            Some(Kind::Symlink { target }) if !(pending.is_empty() && last == LastLink::Keep) => {
                (links, in_a_row) = (links + 1, in_a_row + 1);
                let row_max = if pending.is_empty() { LINKS_MAX } else { LINKS_IN_A_ROW_MAX };
                if links > LINKS_MAX || in_a_row > row_max {
                    return Err(ResolveError::TooManyLinks(path.clone()).into());
                }
                let goal = link_goal(&at, &target).map_err(E::from)?;
                pending.extend(goal.components().rev().map(<[u8]>::to_vec));
                at = EntryPath::root();
            }
            Some(Kind::Directory { .. }) => (at, in_a_row) = (next, 0),
            Some(_) if !pending.is_empty() => {
                return Err(ResolveError::NotADirectory(next).into());
            }
            Some(_) => at = next,
            None => return Ok(pending.iter().rev().fold(next, |path, name| path.child(name))),
        }
    }
    Ok(at)
}

fn link_goal(directory: &EntryPath, target: &[u8]) -> Result<EntryPath, ResolveError> {
    Ok(match target.first() {
        Some(b'/') => EntryPath::clean(target)?,
        _ => directory.join_clean(target)?,
    })
}

/// The bytes of a small regular file, links followed inside the tree; `None` where none is there.
pub fn read_file(
    tree: &dyn SourceTree,
    path: &EntryPath,
    bytes_max: u64,
) -> Result<Option<Vec<u8>>, ContextError> {
    let resolved = match resolve(tree, path, LastLink::Follow) {
        Err(ContextError::Resolve(ResolveError::NotADirectory(_))) => return Ok(None),
        other => other?,
    };
    let Some(Node { kind: Kind::File { size }, .. }) = tree.lookup(&resolved)? else {
        return Ok(None);
    };
    if size == 0 {
        return Ok(Some(Vec::new()));
    }
    let contents = tree.contents(std::slice::from_ref(&resolved))?;
    let content = contents.first().ok_or_else(|| ContextError::Vanished(resolved.clone()))?;
    read_content(content, bytes_max)
        .map_err(|error| ContextError::Read(resolved.clone(), error))?
        .map(Some)
        .ok_or(ContextError::TooLarge { path: resolved, bytes_max })
}

/// All bytes of a content, `None` where there are more than `bytes_max`.
pub(crate) fn read_content(content: &Content, bytes_max: u64) -> std::io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let mut reader = std::io::Read::take(content.open()?, bytes_max.saturating_add(1));
    std::io::Read::read_to_end(&mut reader, &mut bytes)?;
    Ok((bytes.len() as u64 <= bytes_max).then_some(bytes))
}

/// `security.capability` as version 2, which is what goes into layers.
///
/// Versions 1 and 3 are converted; version 3 for another root than 0 is `None`: it can't be.
pub(crate) fn capability_version_2(value: &[u8]) -> Option<Box<[u8]>> {
    let header = u32::from_le_bytes(value.get(..4)?.try_into().ok()?);
    let flags = header & 0x00ff_ffff;
    let words = match (header >> 24, value.len()) {
        (2, 20) => return Some(value.into()),
        (1, 12) => [&value[4..12], &[0; 8]].concat(),
        (3, 24) if value[20..] == [0; 4] => value[4..20].to_vec(),
        _ => return None,
    };
    Some([&(0x0200_0000 | flags).to_le_bytes(), words.as_slice()].concat().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_become_version_2() {
        let words = [7u8; 16];
        let second = [&[1, 0, 0, 2][..], &words].concat();
        let third = [&[1, 0, 0, 3][..], &words, &[0; 4]].concat();
        let foreign = [&[1, 0, 0, 3][..], &words, &[1, 0, 0, 0]].concat();
        assert_eq!(capability_version_2(&second).as_deref(), Some(&second[..]));
        assert_eq!(capability_version_2(&third).as_deref(), Some(&second[..]));
        assert_eq!(capability_version_2(&foreign), None);
        assert_eq!(capability_version_2(&[0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]).unwrap().len(), 20);
        assert_eq!(capability_version_2(&[]), None);
        assert_eq!(capability_version_2(&[0; 20]), None);
    }
}
