//! An overlay's upper directory as a changeset, by the rule of rules.md section 1.

use std::{collections::HashSet, fs::File, io, os::fd::BorrowedFd, sync::Arc, vec};

use rustix::fs::{AtFlags, FileType, Stat, statat};

use crate::{
    rootfs::{
        handle::{DirectoryStack, Item, list, open_directory, open_file, short_xattr, xattr},
        metadata::{OPAQUE, reopen},
    },
    tree::{Change, Changeset, EntryPath, Kind, Snapshot},
};

use super::{
    compare::{LowerContent, same_bytes},
    judge::{
        DiffError, Found, Judge, Verdict, check_name, child, digest_at, same_attributes,
        upper_error,
    },
    lower::{LowerDirectory, LowerEntry},
};

/// Overlay's marks of a whiteout that is an empty file, in directories whose opaque mark is `x` (overlayfs.rst, whiteouts).
const XATTR_WHITEOUT: [&str; 2] = ["trusted.overlay.whiteout", "user.overlay.whiteout"];

/// What a diff depends on besides the trees.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiffOptions<'a> {
    /// SOURCE_DATE_EPOCH: later mtimes count as this one.
    pub mtime_seconds_max: Option<i64>,
    /// What the sandbox made for its mounts: left out as long as it is an empty file or directory.
    pub ignore: &'a [EntryPath],
}

/// The changes that turn `parent` into what an overlay of it and `upper` shows.
///
/// `upper` is an overlay's upper directory that nothing writes to any more. Its emitted files are the contents of the
/// changeset, to be read before [`settle`](super::settle). Metadata are compared first, contents only where all else is
/// equal.
pub fn overlay_diff(
    upper: BorrowedFd<'_>,
    parent: &Snapshot,
    lower_content: &dyn LowerContent,
    options: &DiffOptions<'_>,
) -> Result<Changeset, DiffError> {
    let root = EntryPath::root();
    let upper = Arc::new(reopen(upper).map_err(upper_error(&root))?);
    let stack = DirectoryStack::new(reopen(&upper).map_err(upper_error(&root))?);
    let judge = Judge::new(upper, options);
    let mut walk = Walk { stack, directories: Vec::new(), lower_content, judge };
    let lower = Some(LowerDirectory::root(parent));
    walk.begin(Directory::new(root, lower, None, true))?;
    while let Some(directory) = walk.directories.last_mut() {
        match directory.items.next() {
            Some(item) => walk.visit(&item)?,
            None => walk.leave()?,
        }
    }
    Ok(walk.judge.finish())
}

struct Walk<'a> {
    stack: DirectoryStack,
    /// Those that the stack is in, outermost first.
    directories: Vec<Directory<'a>>,
    lower_content: &'a dyn LowerContent,
    judge: Judge<'a>,
}

/// A directory of the upper one on the way through it.
struct Directory<'a> {
    path: EntryPath,
    items: vec::IntoIter<Item>,
    lower: Option<LowerDirectory<'a>>,
    /// Its own change, which goes again if nothing demands it. The root has none.
    change: Option<usize>,
    /// Whether its change stays even if nothing below it changed.
    emitted: bool,
    /// Whether nothing of the lower directory shows, because of its own mark or that of an ancestor.
    opaque: bool,
    /// Whether whiteouts may be marked empty files.
    xattr_whiteouts: bool,
    /// For opaque ones, what is there in place of lower names.
    present: HashSet<EntryPath>,
}

impl<'a> Directory<'a> {
    fn new(
        path: EntryPath,
        lower: Option<LowerDirectory<'a>>,
        change: Option<usize>,
        emitted: bool,
    ) -> Self {
        Directory {
            path,
            items: Vec::new().into_iter(),
            lower,
            change,
            emitted,
            opaque: false,
            xattr_whiteouts: false,
            present: HashSet::new(),
        }
    }
}

impl<'a> Walk<'a> {
    /// Begins with the directory that the stack is at.
    fn begin(&mut self, mut directory: Directory<'a>) -> Result<(), DiffError> {
        let at = self.stack.top();
        let path = directory.path.clone();
        let error = upper_error(&path);
        directory.opaque = self.directories.last().is_some_and(|parent| parent.opaque);
        for key in OPAQUE {
            match short_xattr(at, key).map_err(&error)?.as_deref() {
                Some(b"y") => directory.opaque = true,
                Some(b"x") => directory.xattr_whiteouts = true,
                _ => {}
            }
        }
        let mut items = list(at).map_err(&error)?;
        items.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        directory.items = items.into_iter();
        self.directories.push(directory);
        Ok(())
    }

    fn visit(&mut self, item: &Item) -> Result<(), DiffError> {
        let Some(directory) = self.directories.last() else { return Ok(()) };
        let path = child(&directory.path, &item.name)?;
        let lower = directory.lower.as_ref().and_then(|lower| lower.child(&path));
        let stat = statat(self.stack.top(), &*item.name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(|error| upper_error(&path)(error.into()))?;
        if self.is_gone(item, &stat).map_err(upper_error(&path))? {
            self.gone(path, lower.is_some());
            return Ok(());
        }
        if let Some(directory) = self.directories.last_mut().filter(|d| d.opaque) {
            directory.present.insert(path.clone());
        }
        if item.file_type == FileType::Directory {
            return self.enter(path, &stat, lower);
        }
        if self.judge.is_stub(&path) && lower.is_none() && stat.st_size == 0 {
            return Ok(());
        }
        let found = self.judge.read(self.stack.top(), path, stat)?;
        match lower {
            Some(lower) if self.is_unchanged(&found, &lower)? => Ok(()),
            _ => self.judge.emit(found).map(drop),
        }
    }

    /// Whether a name stands for nothing: a whiteout, or a socket, which goes into no layer.
    fn is_gone(&self, item: &Item, stat: &Stat) -> io::Result<bool> {
        let marked = self.directories.last().is_some_and(|directory| directory.xattr_whiteouts);
        Ok(match item.file_type {
            FileType::Socket => true,
            FileType::CharacterDevice => stat.st_rdev == 0,
            FileType::RegularFile if marked && stat.st_size == 0 => {
                let has = |key| Ok(xattr(self.stack.top(), &item.name, key)?.is_some());
                XATTR_WHITEOUT
                    .into_iter()
                    .map(has)
                    .collect::<io::Result<Vec<bool>>>()?
                    .contains(&true)
            }
            _ => false,
        })
    }

    /// A whiteout, unless the end of an opaque directory finds it anyway.
    fn gone(&mut self, path: EntryPath, was_there: bool) {
        if was_there && self.directories.last().is_some_and(|directory| !directory.opaque) {
            self.judge.changes.push(Change::whiteout(path));
        }
    }

    fn enter(
        &mut self,
        path: EntryPath,
        stat: &Stat,
        lower: Option<LowerEntry<'a>>,
    ) -> Result<(), DiffError> {
        check_name(&path)?;
        let name = path.file_name();
        let directory = open_directory(self.stack.top(), name);
        let pushed = directory.map_err(io::Error::from).and_then(|fd| self.stack.push(name, fd));
        pushed.map_err(upper_error(&path))?;
        let lower = lower.filter(|lower| lower.row.kind.is_directory());
        let metadata = self.judge.metadata(stat);
        let emitted = match &lower {
            Some(lower) => !same_attributes(&metadata, lower.metadata),
            None => !self.judge.is_stub(&path),
        };
        let change = Some(self.judge.changes.len());
        self.judge.changes.push(Change::new(path.clone(), Kind::DIRECTORY, metadata));
        self.begin(Directory::new(path, lower.and_then(|l| l.directory), change, emitted))
    }

    fn leave(&mut self) -> Result<(), DiffError> {
        let Some(directory) = self.directories.pop() else { return Ok(()) };
        if let Some(lower) = directory.lower.as_ref().filter(|_| directory.opaque) {
            let gone = lower.children().filter(|path| !directory.present.contains(*path));
            self.judge.changes.extend(gone.cloned().map(Change::whiteout));
        }
        if !directory.emitted && directory.change.map(|at| at + 1) == Some(self.judge.changes.len())
        {
            self.judge.changes.pop();
        }
        self.stack.pop().map_err(upper_error(&directory.path))
    }

    /// Whether a name that was copied up is what it was before.
    fn is_unchanged(&self, found: &Found, lower: &LowerEntry<'_>) -> Result<bool, DiffError> {
        match self.judge.compare(found, lower) {
            Verdict::Differs => Ok(false),
            Verdict::Same => Ok(true),
            Verdict::ContentDecides => self.same_content(&found.path, lower),
        }
    }

    fn same_content(&self, path: &EntryPath, lower: &LowerEntry<'_>) -> Result<bool, DiffError> {
        if let Some(digest) = lower.row.digest {
            return Ok(digest_at(self.stack.top(), path)? == digest);
        }
        let file = open_file(self.stack.top(), path.file_name());
        let file = File::from(file.map_err(|error| upper_error(path)(error.into()))?);
        let error = |source| DiffError::Lower { path: path.clone(), source };
        let before = self.lower_content.open(lower.layer, lower.row).map_err(error)?;
        same_bytes(file, before).map_err(error)
    }
}
