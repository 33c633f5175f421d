//! Taking out what was put in, by the journal alone: after a step, and after a keeper that died. It may be cut off and
//! begun again.

use std::{
    ffi::OsStr,
    fs::OpenOptions,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{self, AtFlags, FileType, Stat, fstat},
    io::Errno,
};

use super::{
    ReadOnly, etc, exchange_names, is_plain,
    journal::{Exchange, Fate, Home, Journal, Record},
    kept, objects, open_parent,
};
use crate::{
    execute::sandbox::{
        SandboxError,
        error::Named,
        stubs::{Kind, open_directories, remove_empty, restore_mtime},
        wire,
    },
    sys::{fs::rename_noreplace, remove::remove_tree_at},
};

/// Takes out what a keeper that died has left. Whether there was anything. The trees must be in their own places.
pub(in super::super) fn repair(
    root: &OwnedFd,
    side: &OwnedFd,
    side_path: &Path,
) -> Result<bool, SandboxError> {
    let Some(records) = Journal::read(side)? else {
        return remove_objects(side).map(|()| false);
    };
    undo(root, side, side_path, &records, &[])?;
    Ok(true)
}

/// Targets of mounts that the step treated as it should not.
#[derive(Default)]
pub(super) struct Undone {
    /// Removed or moved.
    pub lost: Vec<PathBuf>,
    /// Read-only, and changed.
    pub changed: Vec<PathBuf>,
}

/// Undoes all records, the last one first, also where one fails; the journal stays then.
pub(super) fn undo(
    root: &OwnedFd,
    side: &OwnedFd,
    side_path: &Path,
    records: &[Record],
    read_only: &[ReadOnly],
) -> Result<Undone, SandboxError> {
    let tree = match records.first() {
        Some(Record::Begin { tree }) if is_plain(tree) => {
            open_directories(side, tree).named("open", tree)?
        }
        Some(_) => return Err(wire::protocol("the journal of mounts does not begin")),
        None => None,
    };
    let mut undo = Undo { root, tree, side_path, read_only, undone: Undone::default() };
    let mut result = Ok(());
    for (number, record) in records.iter().enumerate().skip(1).rev() {
        if records.get(number + 1) == Some(&Record::Refused) {
            continue;
        }
        let undone = undo.one(record);
        result = result.and(undone);
    }
    result?;
    remove_objects(side)?;
    Journal::remove(side)?;
    Ok(undo.undone)
}

fn remove_objects(side: &OwnedFd) -> Result<(), SandboxError> {
    remove_tree_at(side, OsStr::new(objects::DIRECTORY)).named("remove", objects::DIRECTORY)
}

struct Undo<'a> {
    root: &'a OwnedFd,
    /// `None` where it has been deleted.
    tree: Option<OwnedFd>,
    side_path: &'a Path,
    read_only: &'a [ReadOnly],
    undone: Undone,
}

impl Undo<'_> {
    fn one(&mut self, record: &Record) -> Result<(), SandboxError> {
        match record {
            Record::Begin { .. } | Record::Refused => Ok(()),
            Record::Stub { kind, path } => self.stub(*kind, path),
            Record::Exchange(exchange) => self.exchange(exchange),
            Record::Kept { path, home } => kept::remove(self.root, path, home.as_ref()),
            Record::Etc { name, content } => etc::put_back(self.root, name, content),
        }
    }

    /// The directory in the tree that a path is in; `None` where the step has removed it.
    fn parent<'p>(&self, path: &'p Path) -> Result<Option<(OwnedFd, &'p OsStr)>, SandboxError> {
        let (Some(tree), Some(parent), Some(name), true) =
            (&self.tree, path.parent(), path.file_name(), is_plain(path))
        else {
            return Ok(None);
        };
        Ok(open_directories(tree, parent).named("open", parent)?.map(|parent| (parent, name)))
    }

    fn stub(&self, kind: Kind, path: &Path) -> Result<(), SandboxError> {
        let Some((parent, name)) = self.parent(path)? else { return Ok(()) };
        let before = fstat(&parent).named("fstat", path)?;
        if remove_empty(&parent, name, kind).named("remove", path)? {
            restore_mtime(&parent, &before).named("utimensat", path)?;
        }
        Ok(())
    }

    fn exchange(&mut self, exchange: &Exchange) -> Result<(), SandboxError> {
        if self.change_back(exchange)? {
            if let Fate::Return(Home { path }) = &exchange.fate {
                objects::send_home(&exchange.object, path)?;
            }
            self.compare(&exchange.object)?;
        } else {
            self.undone.lost.push(Path::new("/").join(&exchange.target));
        }
        self.dispose(exchange)
    }

    fn compare(&mut self, object: &Path) -> Result<(), SandboxError> {
        for mount in self.read_only.iter().filter(|mount| mount.object == object) {
            if objects::fingerprint(object)? != mount.fingerprint {
                self.undone.changed.push(mount.target.clone());
            }
        }
        Ok(())
    }

    /// False where the object is not to be found any more.
    fn change_back(&self, exchange: &Exchange) -> Result<bool, SandboxError> {
        let (home, object) = match open_parent(&exchange.object) {
            Err(SandboxError::Call { errno, .. }) if errno.0 == libc::ENOENT => return Ok(true),
            opened => opened?,
        };
        let at_object = look(&home, &object)?;
        if at_object.is_none_or(|stat| stat.st_ino == exchange.inode) {
            // It never left, or is back.
            return Ok(true);
        }
        let Some((parent, name)) = self.parent(&exchange.target)? else { return Ok(false) };
        let before = fstat(&parent).named("fstat", &exchange.target)?;
        let at_target = look(&parent, name)?;
        let back = at_target.is_some_and(|stat| is_object(&stat, exchange));
        if back {
            exchange_names(&home, &object, &parent, name).named("rename", &exchange.target)?;
        } else if !exchange.on_stub {
            remove_tree_at(&parent, name).named("remove", &exchange.target)?;
            rename_noreplace(&home, &object, &parent, name).named("rename", &exchange.target)?;
        }
        restore_mtime(&parent, &before).named("utimensat", &exchange.target)?;
        Ok(back)
    }

    fn dispose(&self, exchange: &Exchange) -> Result<(), SandboxError> {
        if exchange.fate == Fate::Stay || !exchange.object.starts_with(self.side_path) {
            return Ok(());
        }
        let (directory, name) = match open_parent(&exchange.object) {
            Err(SandboxError::Call { errno, .. }) if errno.0 == libc::ENOENT => return Ok(()),
            opened => opened?,
        };
        if exchange.fate == Fate::Shred {
            shred_path(&exchange.object)?;
        }
        remove_tree_at(&directory, &name).named("remove", &exchange.object)
    }
}

/// What the step has put in the place of something that stays counts as that: a cache that was removed and made anew.
fn is_object(stat: &Stat, exchange: &Exchange) -> bool {
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let same_kind = is_directory == (exchange.kind == Kind::Directory);
    let successor = matches!(exchange.fate, Fate::Stay | Fate::Return(_)) && is_directory;
    stat.st_ino == exchange.inode || (same_kind && successor)
}

fn look(directory: &OwnedFd, name: &OsStr) -> Result<Option<Stat>, SandboxError> {
    match fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(None),
        stat => stat.named("lstat", name).map(Some),
    }
}

fn shred_path(path: &Path) -> Result<(), SandboxError> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    match OpenOptions::new().write(true).custom_flags(flags).open(path) {
        Ok(file) if file.metadata().is_ok_and(|metadata| metadata.is_file()) => {
            objects::shred(&file).named("write", path)
        }
        // Gone, or something else by now.
        _ => Ok(()),
    }
}
