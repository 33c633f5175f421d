//! `RUN --mount` where nothing can be mounted: each is a directory or file that changes places with what is at its
//! target in the stage's tree, before the tree goes to `/`, and again after it came back. What was made for it is gone
//! afterwards. All of it is in a journal of its own.

mod etc;
mod journal;
mod kept;
mod objects;
mod undo;

use std::{
    ffi::OsString,
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{self, AtFlags, RenameFlags, Stat, fstat},
    io::Errno,
};

use self::{
    journal::{Exchange, Fate, Journal, Record},
    objects::{Object, Objects},
};
use super::notes::StepNote;
use crate::{
    execute::sandbox::{
        SandboxError,
        error::Named,
        spec::{MountSource, StepMount},
        stubs::{
            Kind, check_kind, make_stub, open_directories, open_path, restore_mtime, target_error,
        },
        wire,
    },
    sys::{
        fs::open_directory_handle,
        resolve::{LastLink, Resolved, walk_in_root},
    },
};

pub(super) use self::undo::repair;

/// Where things are.
pub(super) struct Places<'a> {
    /// The container's root.
    pub root: &'a OwnedFd,
    pub side_path: &'a Path,
    pub side: &'a OwnedFd,
    /// Relative to the side directory.
    pub tree: &'a Path,
}

/// What is placed, to be taken out again.
pub(super) struct Placed<'a> {
    places: &'a Places<'a>,
    tree: OwnedFd,
    journal: Journal,
    objects: Objects,
    /// Targets of read-only mounts, with what they looked like.
    read_only: Vec<ReadOnly>,
    /// Open, so that they can be overwritten wherever the step may have moved them.
    secrets: Vec<File>,
    stubs: Vec<PathBuf>,
    notes: Vec<StepNote>,
}

struct ReadOnly {
    object: PathBuf,
    /// In the tree.
    real: PathBuf,
    /// As the Dockerfile says it.
    target: PathBuf,
    fingerprint: u64,
}

/// What is left when all is taken out.
pub(super) struct TakenOut {
    /// Names that were made in the tree, relative to it.
    pub stubs: Vec<PathBuf>,
    pub notes: Vec<StepNote>,
}

/// A name in the tree that an object can change places with.
struct Spot {
    parent: OwnedFd,
    /// Before anything was made in it.
    before: Stat,
    name: OsString,
    real: PathBuf,
    on_stub: bool,
}

impl<'a> Placed<'a> {
    /// Puts all mounts in their places, the outermost first. What was placed is taken out again where one fails.
    pub fn put(
        places: &'a Places<'a>,
        mounts: &[StepMount],
        etc: &etc::Etc<'_>,
    ) -> Result<Self, SandboxError> {
        let tree = open_directories(places.side, places.tree).named("open", places.tree)?;
        let tree = tree.ok_or(Errno::NOENT).named("open", places.tree)?;
        let journal = Journal::begin(places.side, places.tree.to_owned())?;
        let objects = Objects::new(places.side_path)?;
        let mut placed = Placed {
            places,
            tree,
            journal,
            objects,
            read_only: Vec::new(),
            secrets: Vec::new(),
            stubs: Vec::new(),
            notes: Vec::new(),
        };
        match placed.put_all(mounts, etc) {
            Ok(()) => Ok(placed),
            Err(error) => {
                placed.take_out()?;
                Err(error)
            }
        }
    }

    fn put_all(&mut self, mounts: &[StepMount], etc: &etc::Etc<'_>) -> Result<(), SandboxError> {
        etc.prepare(self)?;
        let mut sorted: Vec<&StepMount> = mounts.iter().collect();
        sorted.sort_by_key(|mount| mount.target.components().count());
        sorted.into_iter().try_for_each(|mount| self.put_one(mount))
    }

    /// Takes everything out again. To be called when the step is dead and the tree in its own place.
    pub fn take_out(self) -> Result<TakenOut, SandboxError> {
        let mut notes = self.notes;
        let secrets = self.secrets.iter().try_for_each(objects::shred);
        let places = self.places;
        let (records, read_only) = (self.journal.into_records(), &self.read_only);
        let undone = undo::undo(places.root, places.side, places.side_path, &records, read_only)?;
        secrets.named("write", "secret")?;
        let changed = |target| StepNote::ReadOnlyChanged { target };
        notes.extend(undone.changed.into_iter().map(changed));
        notes.extend(undone.lost.into_iter().map(|target| StepNote::MountLost { target }));
        Ok(TakenOut { stubs: self.stubs, notes })
    }

    fn put_one(&mut self, mount: &StepMount) -> Result<(), SandboxError> {
        let target = &mount.target;
        let resolved = self.resolve(target)?;
        if let Some(stays) = kept::mount_above(self.places.root, &resolved)? {
            return self.put_kept(mount, &stays, &resolved);
        }
        if etc::is_kept_file(self.places.root, &resolved)? {
            return Err(target_error(target, "is a mount of this container, which stays"));
        }
        let object = self.objects.of(mount)?;
        self.note(mount);
        let spot = self.spot(target, resolved, object.kind)?;
        if let Some(secret) = object.secret.as_ref() {
            self.notes.push(StepNote::SecretOnDisk { target: target.clone() });
            self.secrets.push(secret.try_clone().named("dup", "secret")?);
        }
        if object.read_only {
            let fingerprint = objects::fingerprint(&object.path)?;
            let (object, real) = (object.path.clone(), spot.real.clone());
            self.read_only.push(ReadOnly { object, real, target: target.clone(), fingerprint });
        }
        self.exchange(object, &spot, target)
    }

    fn note(&mut self, mount: &StepMount) {
        if let MountSource::Tmpfs { bytes_max: Some(_), .. } = &mount.source {
            self.notes.push(StepNote::TmpfsSizeNotEnforced { target: mount.target.clone() });
        }
    }

    /// The target in the tree: what would cover the root is refused, and so is /proc.
    fn resolve(&self, target: &Path) -> Result<Resolved, SandboxError> {
        if !target.is_absolute() {
            return Err(target_error(target, "must be absolute"));
        }
        let resolved = walk_in_root(&self.tree, target, LastLink::Follow)
            .map_err(|error| target_error(target, error))?;
        let first = resolved.real.iter().chain(resolved.missing.iter().map(OsString::as_os_str));
        match first.map(|name| name.to_owned()).next() {
            None => Err(target_error(target, "must not be /")),
            Some(name) if name == "proc" => Err(target_error(target, "must not be in /proc")),
            Some(_) => Ok(resolved),
        }
    }

    /// The name to change places with; made, with its parents, if it is missing.
    fn spot(
        &mut self,
        target: &Path,
        mut resolved: Resolved,
        kind: Kind,
    ) -> Result<Spot, SandboxError> {
        let failed = |error: Errno| target_error(target, error);
        if resolved.missing.is_empty() {
            check_kind(&resolved, kind, target)?;
            let (Some(parent), Some(name)) = (resolved.real.parent(), resolved.real.file_name())
            else {
                return Err(target_error(target, "must not be /"));
            };
            let opened = open_directories(&self.tree, parent).map_err(failed)?;
            let parent = opened.ok_or_else(|| failed(Errno::NOENT))?;
            let before = fstat(&parent).map_err(failed)?;
            let name = name.to_owned();
            return Ok(Spot { parent, before, name, real: resolved.real, on_stub: false });
        }
        if self.read_only.iter().any(|mount| resolved.real.starts_with(&mount.real)) {
            return Err(failed(Errno::ROFS));
        }
        let missing = std::mem::take(&mut resolved.missing);
        self.make(resolved, missing, kind)
    }

    fn make(
        &mut self,
        found: Resolved,
        missing: Vec<OsString>,
        kind: Kind,
    ) -> Result<Spot, SandboxError> {
        let (mut parent, mut real) = (found.found, found.real);
        let last = missing.len() - 1;
        for (number, name) in missing.into_iter().enumerate() {
            let kind = if number == last { kind } else { Kind::Directory };
            let before = fstat(&parent).named("fstat", &real)?;
            real.push(&name);
            self.journal.add(&Record::Stub { kind, path: real.clone() })?;
            make_stub(&parent, &name, kind).named("create", &real)?;
            restore_mtime(&parent, &before).named("utimensat", &real)?;
            self.stubs.push(real.clone());
            if number == last {
                return Ok(Spot { parent, before, name, real, on_stub: true });
            }
            parent = open_path(&parent, &name).named("open", &real)?;
        }
        Err(Errno::NOENT).named("create", real)
    }

    /// Lets the object and the name change places. A cache on another mount gives a copy of itself.
    fn exchange(&mut self, object: Object, spot: &Spot, target: &Path) -> Result<(), SandboxError> {
        match self.try_exchange(&object, spot)? {
            Ok(()) => {}
            Err(Errno::XDEV) if object.kind == Kind::Directory && object.fate == Fate::Stay => {
                self.journal.add(&Record::Refused)?;
                let copy = self.objects.copy_of(&object)?;
                self.notes.push(StepNote::CacheCopied { target: target.to_owned() });
                self.try_exchange(&copy, spot)?.named("rename", target)?;
            }
            Err(error) => return Err(error).named("rename", target),
        }
        restore_mtime(&spot.parent, &spot.before).named("utimensat", target)
    }

    fn try_exchange(
        &self,
        object: &Object,
        spot: &Spot,
    ) -> Result<rustix::io::Result<()>, SandboxError> {
        let (directory, name) = open_parent(&object.path)?;
        let stat = fs::statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW);
        self.journal.add(&Record::Exchange(Exchange {
            object: object.path.clone(),
            target: spot.real.clone(),
            inode: stat.named("lstat", &object.path)?.st_ino,
            kind: object.kind,
            on_stub: spot.on_stub,
            fate: object.fate.clone(),
        }))?;
        Ok(exchange_names(&directory, &name, &spot.parent, &spot.name))
    }
}

fn exchange_names(
    a: impl AsFd,
    a_name: &std::ffi::OsStr,
    b: impl AsFd,
    b_name: &std::ffi::OsStr,
) -> rustix::io::Result<()> {
    fs::renameat_with(a, a_name, b, b_name, RenameFlags::EXCHANGE)
}

/// The directory that an absolute path of ours is in, and its name there.
fn open_parent(path: &Path) -> Result<(OwnedFd, OsString), SandboxError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(wire::protocol(format!("{} has no parent", path.display())));
    };
    Ok((open_directory_handle(parent).named("open", parent)?, name.to_owned()))
}

/// Whether a path has names only, so that it stays below where it starts.
fn is_plain(path: &Path) -> bool {
    path.components().all(|component| matches!(component, Component::Normal(_)))
}

pub(super) use etc::Etc;
