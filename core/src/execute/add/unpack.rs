//! A local archive, unpacked as if in a chroot at the destination.

use std::io::Read;

use crate::{
    context::{Spool, capability_version_2},
    execute::{
        copy::{CopyError, Placement},
        target::{Inode, MakeDirectories, Origin, Target},
        users::Owner,
    },
    layer::{
        decompress::decompressed,
        limits::ReadLimits,
        tar::{Member, MemberKind, TarError, TarReader},
    },
    tree::{EntryPath, Kind, Metadata, ResolveError, Timestamp},
};

use super::AddError;

/// As many links as the kernel follows in one path.
const LINKS_MAX: usize = 40;
/// Later times are taken as none, as Docker's archiver does: what fits into 64 bits of nanoseconds.
const MTIME_SECONDS_MAX: i64 = i64::MAX / 1_000_000_000;

/// An archive whose first member was read.
pub(super) struct Archive<'a> {
    reader: TarReader<Box<dyn Read + Send + 'a>>,
    first: Option<Member>,
}

/// `None` for what does not begin, after decompression, with a tar header: it is copied as it is.
pub(super) fn recognise<'a>(
    input: impl Read + Send + 'a,
    limits: ReadLimits,
) -> Option<Archive<'a>> {
    let (_, plain) = decompressed(input).ok()?;
    let mut reader = TarReader::new(plain, limits);
    let first = reader.next_member().ok()??;
    Some(Archive { reader, first: Some(first) })
}

impl Archive<'_> {
    fn next(&mut self) -> Result<Option<Member>, TarError> {
        match self.first.take() {
            Some(first) => Ok(Some(first)),
            None => self.reader.next_member(),
        }
    }
}

/// Unpacks all members. The destination is made a directory, 0755 whatever `--chmod` says.
pub(super) fn unpack(
    archive: &mut Archive<'_>,
    placement: &mut Placement<'_>,
    spool: &mut Spool,
    path: &EntryPath,
) -> Result<(), AddError> {
    let make = MakeDirectories { mode: 0o755, ..placement.make };
    let owner = placement.owner();
    let target = &mut placement.target;
    let base = target.resolve(&placement.destination.path).map_err(CopyError::from)?;
    target.make_directories(&base, &make).map_err(CopyError::from)?;
    let mut unpacker = Unpacker { target, base, owner, created: make.created };
    let failed = |source| AddError::Archive { path: path.clone(), source };
    while let Some(member) = archive.next().map_err(failed)? {
        let body = &mut archive.reader.body();
        unpacker.member(&member, body, spool)?;
    }
    Ok(())
}

struct Unpacker<'t, 'a> {
    target: &'t mut Target<'a>,
    /// The directory that the archive's root is.
    base: EntryPath,
    owner: Option<Owner>,
    created: Timestamp,
}

/// Where a name leads.
enum Found {
    Directory(EntryPath),
    /// Something else, or a link that was not to be followed.
    Other(EntryPath),
    /// Nothing by this name in a directory that is there.
    Missing(EntryPath),
}

impl Unpacker<'_, '_> {
    fn member(
        &mut self,
        member: &Member,
        body: &mut dyn Read,
        spool: &mut Spool,
    ) -> Result<(), AddError> {
        let name = self.clean(member, &member.name)?;
        if name.is_root() {
            return self.own_root(member);
        }
        let directory = self.make_parents(member, &name)?;
        let path = self.child(member, &directory, name.file_name())?;
        let is_directory = member.kind == MemberKind::Directory;
        match self.target.look(&path).map(|view| view.kind.is_directory()) {
            Some(true) if is_directory => {
                let metadata = self.metadata(member)?;
                self.target.change(&path, |existing| *existing = metadata);
                return Ok(());
            }
            Some(_) => self.target.remove(&path),
            None => {}
        }
        self.put(member, path, body, spool)
    }

    /// `./` says nothing; `/` and what is cleaned to it is the destination itself.
    fn own_root(&mut self, member: &Member) -> Result<(), AddError> {
        if !names_root(&member.name) {
            return Ok(());
        }
        if member.kind != MemberKind::Directory {
            return Err(refused(member, "would replace the destination"));
        }
        let metadata = self.metadata(member)?;
        if !self.base.is_root() {
            let base = self.base.clone();
            self.target.change(&base, |existing| *existing = metadata);
        }
        Ok(())
    }

    fn put(
        &mut self,
        member: &Member,
        path: EntryPath,
        body: &mut dyn Read,
        spool: &mut Spool,
    ) -> Result<(), AddError> {
        let kind = match &member.kind {
            MemberKind::HardLink { target } => return self.hard_link(member, path, target),
            MemberKind::Directory => Kind::DIRECTORY,
            MemberKind::File => Kind::File { size: member.size },
            MemberKind::Symlink { target } => Kind::Symlink { target: target.as_slice().into() },
            MemberKind::CharacterDevice { major, minor } => {
                Kind::CharacterDevice { major: *major, minor: *minor }
            }
            MemberKind::BlockDevice { major, minor } => {
                Kind::BlockDevice { major: *major, minor: *minor }
            }
            MemberKind::Fifo => Kind::Fifo,
        };
        let mut inode = Inode::plain(kind, self.metadata(member)?);
        if member.size > 0 {
            let content =
                spool.append(body).map_err(|error| AddError::Read(path.clone(), error))?;
            inode.origin = Some(Origin::Ready(content));
        }
        self.target.put(path, inode);
        Ok(())
    }

    /// Another name of something that is there, which takes the member's metadata (rule 20).
    fn hard_link(
        &mut self,
        member: &Member,
        path: EntryPath,
        target: &[u8],
    ) -> Result<(), AddError> {
        let target = self.clean(member, target)?;
        let found = match target.is_root() {
            true => Found::Directory(self.base.clone()),
            false => self.walk(member, &target, false)?,
        };
        let target = match found {
            Found::Other(target) => target,
            Found::Directory(_) => return Err(refused(member, "is a hard link to a directory")),
            Found::Missing(_) => return Err(refused(member, "is a hard link to nothing")),
        };
        let metadata = self.metadata(member)?;
        if let Some(number) = self.target.number(&target) {
            set_inode(self.target.inode_mut(number), metadata);
            self.target.put_link(path, number);
            return Ok(());
        }
        let Some(mut inode) = self.target.inherited(&target) else {
            return Err(refused(member, "is a hard link to nothing"));
        };
        let before = inode.metadata.clone();
        set_inode(&mut inode, metadata);
        let changed = !before.same_but_mtime(&inode.metadata)
            || before.mtime.seconds != inode.metadata.mtime.seconds;
        let number = self.target.put(path, inode);
        if changed {
            self.target.put_link(target, number);
        }
        Ok(())
    }

    /// Makes the directories that lead to a member (rule 18), and gives the one that it lies in.
    fn make_parents(&mut self, member: &Member, name: &EntryPath) -> Result<EntryPath, AddError> {
        let mut directory = self.base.clone();
        for part in name.parent().iter().flat_map(EntryPath::components) {
            let next = self.child(member, &directory, part)?;
            let below = next.strip_prefix(&self.base).unwrap_or_default();
            directory = match self.walk(member, &below, true)? {
                Found::Directory(path) => path,
                Found::Missing(path) if path == next => {
                    let owner = Some(Owner::default());
                    let make = MakeDirectories { mode: 0o755, owner, created: self.created };
                    let made = self.target.make_directories(&path, &make);
                    made.map_err(|source| AddError::Resolve { name: shown(member), source })?;
                    path
                }
                Found::Missing(_) => return Err(refused(member, "lies below a dangling link")),
                Found::Other(_) => return Err(refused(member, "lies below a file")),
            };
        }
        Ok(directory)
    }

    /// Resolves a path below the base as the kernel would in a chroot there: `..` is taken where a link has led.
    fn walk(
        &self,
        member: &Member,
        path: &EntryPath,
        follow_last: bool,
    ) -> Result<Found, AddError> {
        let mut pending: Vec<Vec<u8>> = path.components().rev().map(<[u8]>::to_vec).collect();
        let (mut at, mut links) = (self.base.clone(), 0);
        while let Some(name) = pending.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    at = if at == self.base { at } else { at.parent().unwrap_or_default() };
                    continue;
                }
                _ => {}
            }
            let next = self.child(member, &at, &name)?;
            let Some(view) = self.target.look(&next) else {
                return match pending.is_empty() {
                    true => Ok(Found::Missing(next)),
                    false => Err(refused(member, "leads through a directory that is missing")),
                };
            };
            match view.kind {
                Kind::Directory { .. } => at = next,
                Kind::Symlink { target } if follow_last || !pending.is_empty() => {
                    links += 1;
                    if links > LINKS_MAX {
                        let source = ResolveError::TooManyLinks(path.clone());
                        return Err(AddError::Resolve { name: shown(member), source });
                    }
                    if target.first() == Some(&b'/') {
                        at = self.base.clone();
                    }
                    pending.extend(target.rsplit(|byte| *byte == b'/').map(<[u8]>::to_vec));
                }
                _ if pending.is_empty() => return Ok(Found::Other(next)),
                _ => return Err(refused(member, "leads through a file")),
            }
        }
        Ok(Found::Directory(at))
    }

    /// Cleaned as text, below the base.
    fn clean(&self, member: &Member, name: &[u8]) -> Result<EntryPath, AddError> {
        EntryPath::clean(name)
            .map_err(|error| AddError::Resolve { name: shown(member), source: error.into() })
    }

    fn child(
        &self,
        member: &Member,
        directory: &EntryPath,
        name: &[u8],
    ) -> Result<EntryPath, AddError> {
        directory
            .join_clean(name)
            .map_err(|error| AddError::Resolve { name: shown(member), source: error.into() })
    }

    fn metadata(&self, member: &Member) -> Result<Metadata, AddError> {
        let mut metadata = member.metadata.clone();
        if let Some(owner) = self.owner {
            (metadata.uid, metadata.gid) = (owner.uid, owner.gid);
        }
        if !(0..=MTIME_SECONDS_MAX).contains(&metadata.mtime.seconds) {
            metadata.mtime = Timestamp::default();
        }
        metadata.capability = match (&member.kind, metadata.capability) {
            (MemberKind::File | MemberKind::HardLink { .. }, Some(value)) => {
                let converted = capability_version_2(&value);
                Some(converted.ok_or_else(|| refused(member, "has a foreign file capability"))?)
            }
            _ => None,
        };
        Ok(metadata)
    }
}

/// A hard link's entry sets its inode's metadata; a symbolic link has no mode, and keeps its time.
fn set_inode(inode: &mut Inode, metadata: Metadata) {
    match inode.kind {
        Kind::Symlink { .. } => {
            (inode.metadata.uid, inode.metadata.gid) = (metadata.uid, metadata.gid);
        }
        _ => inode.metadata = metadata,
    }
}

/// Whether a name that is cleaned to the root is more than `.`: absolute, or by `..`.
fn names_root(name: &[u8]) -> bool {
    let mut depth = 0i64;
    let mut climbed = name.first() == Some(&b'/');
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if depth == 0 => climbed = true,
            b".." => depth -= 1,
            _ => depth += 1,
        }
    }
    climbed
}

fn refused(member: &Member, what: &'static str) -> AddError {
    AddError::Member { name: shown(member), what }
}

fn shown(member: &Member) -> String {
    member.name[..member.name.len().min(4096)].escape_ascii().to_string()
}
