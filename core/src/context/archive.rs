//! A context that comes as a tar.

use std::io::Read;

use crate::{
    layer::{
        decompress::{Format, decompressed},
        limits::ReadLimits,
        tar::{Member, MemberKind, TarReader, is_tar_header},
    },
    tree::{Content, EntryPath, Kind, Metadata},
};

use super::{ContextError, ContextTree, MemoryTree, Node, Spool};

/// The size of a tar's header.
const BLOCK_BYTES: usize = 512;

/// Whether a file that begins with `head` (512 bytes, or all there is) is taken as an archive: it is compressed, or a tar.
pub fn is_archive(head: &[u8]) -> bool {
    Format::of_magic(head) != Format::Plain || head.get(..BLOCK_BYTES).is_some_and(is_tar_header)
}

impl ContextTree {
    /// Reads a tar, plain or compressed, to its end; the files' bytes go to the spool. No ignore file counts.
    ///
    /// Names that leave the archive's root, and members below a link or a file, are refused.
    pub fn from_tar(
        reader: impl Read + Send,
        limits: ReadLimits,
        spool: &mut Spool,
    ) -> Result<Self, ContextError> {
        let (_, plain) = decompressed(reader).map_err(ContextError::TarStream)?;
        let mut reader = TarReader::new(plain, limits);
        let mut files = Builder::default();
        while let Some(member) = reader.next_member()? {
            let path = member_path(&member)?;
            if path.is_root() {
                continue;
            }
            files.make_parents(&path, &member)?;
            let content = match (&member.kind, member.size) {
                (MemberKind::File, 1..) => {
                    Some(spool.append(&mut reader.body()).map_err(ContextError::TarStream)?)
                }
                _ => None,
            };
            files.add(path, member, content)?;
        }
        Ok(ContextTree::from_memory(files.tree))
    }
}

#[derive(Default)]
struct Builder {
    tree: MemoryTree,
    links: u64,
}

impl Builder {
    fn make_parents(&mut self, path: &EntryPath, member: &Member) -> Result<(), ContextError> {
        let mut at = EntryPath::root();
        for name in path.parent().iter().flat_map(EntryPath::components) {
            at = at.child(name);
            match self.tree.get(&at).map(|node| &node.kind) {
                Some(Kind::Directory { .. }) => {}
                Some(_) => return Err(refused(member, "it lies below a link or a file")),
                None => {
                    let metadata = Metadata::directory(member.metadata.mtime);
                    self.tree.insert(at.clone(), Node::new(Kind::DIRECTORY, metadata), None);
                }
            }
        }
        Ok(())
    }

    fn add(
        &mut self,
        path: EntryPath,
        member: Member,
        content: Option<Content>,
    ) -> Result<(), ContextError> {
        if let MemberKind::HardLink { target } = &member.kind {
            let target = clean(target).map_err(|what| refused(&member, what))?;
            return self.add_link(path, &target, &member);
        }
        let kind = kind(&member);
        let metadata = Metadata { uid: 0, gid: 0, ..member.metadata };
        if !kind.is_directory() {
            self.tree.remove(&path);
        }
        self.tree.insert(path, Node::new(kind, metadata), content);
        Ok(())
    }

    fn add_link(
        &mut self,
        path: EntryPath,
        target: &EntryPath,
        member: &Member,
    ) -> Result<(), ContextError> {
        let mut node = match self.tree.get(target) {
            Some(node) if !node.kind.is_directory() => node.clone(),
            _ => return Err(refused(member, "it links to nothing that came before")),
        };
        if path == *target {
            return Ok(());
        }
        let content = self.tree.content(target).cloned();
        if node.link.is_none() && matches!(node.kind, Kind::File { .. }) {
            self.links += 1;
            node.link = Some((0, self.links));
            self.tree.insert(target.clone(), node.clone(), content.clone());
        }
        self.tree.remove(&path);
        self.tree.insert(path, node, content);
        Ok(())
    }
}

fn kind(member: &Member) -> Kind {
    match &member.kind {
        MemberKind::Directory => Kind::DIRECTORY,
        MemberKind::File | MemberKind::HardLink { .. } => Kind::File { size: member.size },
        MemberKind::Symlink { target } => Kind::Symlink { target: target.as_slice().into() },
        MemberKind::CharacterDevice { major, minor } => {
            Kind::CharacterDevice { major: *major, minor: *minor }
        }
        MemberKind::BlockDevice { major, minor } => {
            Kind::BlockDevice { major: *major, minor: *minor }
        }
        MemberKind::Fifo => Kind::Fifo,
    }
}

fn member_path(member: &Member) -> Result<EntryPath, ContextError> {
    clean(&member.name).map_err(|what| refused(member, what))
}

/// A name that stays inside, cleaned.
fn clean(name: &[u8]) -> Result<EntryPath, &'static str> {
    if name.first() == Some(&b'/') {
        return Err("its name is absolute");
    }
    if super::patterns::clean(name).split(|byte| *byte == b'/').any(|part| part == b"..") {
        return Err("its name leaves the context");
    }
    EntryPath::clean(name).map_err(|_| "its name is too long")
}

fn refused(member: &Member, what: &'static str) -> ContextError {
    ContextError::TarMember { name: member.name.escape_ascii().to_string(), what }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::{Ignore, SourceTree, read_file};

    #[test]
    fn archives_are_known_by_their_first_block() {
        let tar = archive(&[("a", tar::EntryType::Regular, "x")]);
        assert!(is_archive(&tar[..BLOCK_BYTES]));
        assert!(!is_archive(&tar[..BLOCK_BYTES - 1]));
        assert!(!is_archive(&[0; BLOCK_BYTES]), "an empty tar is no archive");
        for magic in [&b"\x1f\x8b\x08"[..], b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"] {
            assert!(is_archive(magic));
        }
        assert!(!is_archive(b"FROM scratch\n") && !is_archive(b""));
    }

    fn look(tree: &ContextTree, path: &str) -> Option<Node> {
        tree.lookup(&EntryPath::clean(path.as_bytes()).unwrap()).unwrap()
    }

    fn archive(members: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, kind, text) in members {
            let mut header = tar::Header::new_ustar();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o4640);
            header.set_uid(7);
            header.set_gid(8);
            header.set_mtime(5);
            let body = if kind.is_file() { text.as_bytes() } else { b"" };
            header.set_size(body.len() as u64);
            if !kind.is_file() {
                header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
            }
            header.set_cksum();
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(body);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }

    fn read(members: &[(&str, tar::EntryType, &str)]) -> Result<ContextTree, ContextError> {
        let mut spool = Spool::new(tempfile::tempfile().unwrap());
        ContextTree::from_tar(&archive(members)[..], ReadLimits::default(), &mut spool)
    }

    const FILE: tar::EntryType = tar::EntryType::Regular;
    const LINK: tar::EntryType = tar::EntryType::Symlink;
    const HARD: tar::EntryType = tar::EntryType::Link;
    const DIRECTORY: tar::EntryType = tar::EntryType::Directory;

    #[test]
    fn members_are_files_of_the_context() {
        let members = [
            ("./", DIRECTORY, ""),
            ("./d/f", FILE, "text"),
            ("d/x/../g", FILE, "g"),
            ("h", HARD, "d/f"),
            ("l", LINK, "../../d/f"),
        ];
        let tree = read(&members).unwrap();
        let file = look(&tree, "d/f").unwrap();
        assert_eq!((file.metadata.mode, file.metadata.uid, file.metadata.gid), (0o4640, 0, 0));
        assert!(file.link.is_some() && look(&tree, "h") == Some(file));
        assert_eq!(look(&tree, "d").unwrap().metadata.mode, 0o755, "a parent that has no member");
        assert_eq!(look(&tree, "d/g").unwrap().kind, Kind::File { size: 1 });
        let path = EntryPath::clean(b"l").unwrap();
        assert_eq!(read_file(&tree, &path, 9).unwrap().unwrap(), b"text");
        assert!(matches!(read_file(&tree, &path, 3), Err(ContextError::TooLarge { .. })));
        let tree = tree.with_ignore(Ignore::parse(b"d").unwrap());
        assert!(look(&tree, "d/f").is_none() && look(&tree, "h").is_some());
    }

    #[test]
    fn the_last_of_equal_names_counts() {
        let tree = read(&[("d/f", FILE, "1"), ("d", FILE, "2")]).unwrap();
        assert!(look(&tree, "d/f").is_none());
        assert_eq!(look(&tree, "d").unwrap().kind, Kind::File { size: 1 });
    }

    #[test]
    fn what_leaves_the_context_is_refused() {
        for members in [
            &[("../evil", FILE, "x")][..],
            &[("a/../../evil", FILE, "x")],
            &[("/etc/passwd", FILE, "x")],
            &[("a", LINK, "/"), ("a/etc/canary", FILE, "x")],
            &[("a", FILE, "x"), ("a/b", FILE, "x")],
            &[("a", HARD, "../../etc/passwd")],
            &[("a", HARD, "/etc/passwd")],
            &[("a", HARD, "b"), ("b", FILE, "x")],
        ] {
            assert!(matches!(read(members), Err(ContextError::TarMember { .. })), "{members:?}");
        }
        assert!(read(&[("..x/y", FILE, "fine")]).is_ok());
    }
}
