//! What of the container's root moves, what stays, and what can't be moved yet.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ring::rand::{SecureRandom, SystemRandom};
use rustix::{
    fs::{FileType, fstat, renameat},
    io::Errno,
};

use super::{
    Options, Place, SwapError,
    directory::{enter, find, kind_of, names_but, split, stat_name},
    error::Named,
    layout::{Anchor, Level, Volume},
    mounts::{Mount, MountTable},
    text::{Name, Names},
};
use crate::{sys::fs::set_directory_mtime, tree::EntryPath};

/// The kernel's own: a stage's contents at these mounts are hidden and kept.
const SYSTEM: [&[u8]; 3] = [b"dev", b"proc", b"sys"];

/// How the hidden directory of a volume begins; the rest is random.
const HIDDEN_PREFIX: &[u8] = b".bareboat-";

/// See [`Exchange::is_layered`](super::Exchange::is_layered).
type IsLayered<'s> = dyn Fn(&EntryPath, BorrowedFd<'_>, &[u8]) -> Result<bool, SwapError> + 's;

/// What was found.
pub(super) struct Survey {
    pub levels: Vec<Level>,
    pub volumes: Vec<Volume>,
    /// Directories of the container's image that can't be renamed and hold no mount. They would move.
    pub layered: Vec<EntryPath>,
}

/// Looks at the container's root as it is to be for `stage` (the root of its tree).
pub(super) struct Surveyor<'s> {
    place: &'s Place,
    table: &'s MountTable,
    /// `None` while only the container's root matters.
    stage: Option<BorrowedFd<'s>>,
    working_directory: EntryPath,
    /// Mounts and directories that stay although nothing forces them to.
    staying: Vec<EntryPath>,
    wanted: Vec<EntryPath>,
    /// Whether the directory of that name in an open directory, whose path comes first, is a layer's.
    is_layered: &'s IsLayered<'s>,
    survey: Survey,
}

impl<'s> Surveyor<'s> {
    pub fn new(
        place: &'s Place,
        table: &'s MountTable,
        stage: Option<BorrowedFd<'s>>,
        options: &Options,
        is_layered: &'s IsLayered<'s>,
    ) -> Result<Self, SwapError> {
        let wanted: Vec<_> =
            options.wanted.iter().filter(|path| table.at(path).is_some()).cloned().collect();
        let mut staying = wanted.clone();
        for path in &options.owned {
            let mounted = table.at(path).is_some() || table.any_within(path);
            if mounted && !stage_has(stage, path)? {
                staying.push(path.clone());
            }
        }
        let working_directory = options.working_directory.clone();
        let survey = Survey { levels: Vec::new(), volumes: Vec::new(), layered: Vec::new() };
        Ok(Surveyor { place, table, stage, working_directory, staying, wanted, is_layered, survey })
    }

    pub fn run(mut self) -> Result<Survey, SwapError> {
        self.level(EntryPath::root())?;
        self.survey.levels.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(self.survey)
    }

    /// Sorts the children of a level. Levels lie above mounts, so there are few and they do not nest deeply.
    fn level(&mut self, path: EntryPath) -> Result<(), SwapError> {
        let directory = find(&self.place.root, &path).named("open", &path)?;
        let directory = directory.ok_or(Errno::NOENT).named("open", &path)?;
        self.check_stage(&path)?;
        let mut kept = Names::new();
        for name in names_but(&directory, &Names::new()).named("list", &path)? {
            if self.stays(&directory, &path, &name)? {
                kept.insert(name);
            }
        }
        let inode = fstat(&directory).named("stat", &path)?.st_ino;
        let anchor = self.anchor(&path);
        self.survey.levels.push(Level { path, kept, inode, anchor });
        Ok(())
    }

    fn anchor(&self, level: &EntryPath) -> Option<Anchor> {
        let (path, mount) = self.table.within(level).next()?;
        Some(Anchor { mount: mount.id, path })
    }

    /// The stage must have a directory for a level, or nothing.
    fn check_stage(&self, level: &EntryPath) -> Result<(), SwapError> {
        match stage_kind(self.stage, level)? {
            None | Some(FileType::Directory) => Ok(()),
            Some(_) => Err(SwapError::LevelInTheWay { path: level.to_string() }),
        }
    }

    fn stays(
        &mut self,
        directory: &OwnedFd,
        level: &EntryPath,
        name: &Name,
    ) -> Result<bool, SwapError> {
        let path = level.child(name);
        if level.is_root() && **name == *self.place.side_name {
            return Ok(true);
        }
        if let Some(mount) = self.table.at(&path) {
            self.mount(&path, &mount.clone(), directory)?;
            return Ok(true);
        }
        if self.staying.iter().any(|staying| staying.is_within(&path) && *staying != path) {
            self.level(path)?;
            return Ok(true);
        }
        if self.staying.contains(&path) {
            return Ok(true);
        }
        self.may_be_layered(directory, level, name)
    }

    /// A directory that can't be renamed: with mounts below it is a level too.
    fn may_be_layered(
        &mut self,
        directory: &OwnedFd,
        parent: &EntryPath,
        name: &Name,
    ) -> Result<bool, SwapError> {
        let path = parent.child(name);
        let stat = stat_name(directory, name).named("stat", &path)?;
        let is_directory = stat.is_some_and(|stat| kind_of(&stat) == FileType::Directory);
        if !is_directory || !(self.is_layered)(parent, directory.as_fd(), name)? {
            return Ok(false);
        }
        let level = self.table.any_within(&path);
        match level {
            true => self.level(path)?,
            false => self.survey.layered.push(path),
        }
        Ok(level)
    }

    /// A mount point among the children of a level: it stays, and its contents may have to give way.
    fn mount(
        &mut self,
        path: &EntryPath,
        mount: &Mount,
        directory: &OwnedFd,
    ) -> Result<(), SwapError> {
        if self.is_system(path) || self.wanted.contains(path) || !self.gives_way(path, mount)? {
            return Ok(());
        }
        let stage = stage_kind(self.stage, path)?;
        let (_, name) = split(path)?;
        let stat = stat_name(directory, &name).named("stat", path)?;
        let is_directory = stat.is_some_and(|stat| kind_of(&stat) == FileType::Directory);
        if mount.read_only {
            let (path, file_system) = (path.to_string(), mount.file_system.clone());
            return Err(SwapError::ReadOnlyVolume { path, file_system });
        }
        match (is_directory, stage) {
            (true, None | Some(FileType::Directory)) => self.volume(path, directory, &name),
            (true, Some(_)) => Err(in_the_way(path, "a volume", "something else than a directory")),
            (false, _) => Err(in_the_way(path, "a file", "something of its own")),
        }
    }

    fn volume(
        &mut self,
        path: &EntryPath,
        directory: &OwnedFd,
        name: &Name,
    ) -> Result<(), SwapError> {
        let volume = enter(directory, name).named("open", path)?;
        let mut kept = Names::new();
        for child in names_but(&volume, &Names::new()).named("list", path)? {
            let below = path.child(&child);
            if child.starts_with(HIDDEN_PREFIX) {
                let name = String::from_utf8_lossy(&child).into_owned();
                return Err(SwapError::VolumeBusy { path: path.to_string(), name });
            }
            if let Some(mount) = self.table.at(&below) {
                if self.gives_way(&below, mount)? && !self.wanted.contains(&below) {
                    return Err(in_the_way(&below, "a volume inside of another", "files"));
                }
                kept.insert(child);
            }
        }
        let hidden = hidden_name().named("getrandom", path)?;
        self.survey.volumes.push(Volume { path: path.clone(), hidden, kept });
        Ok(())
    }

    /// Whether the stage has something at a mount, or the step works there. For an empty directory of the stage what can't
    /// give way, or belongs to others, need not.
    fn gives_way(&self, path: &EntryPath, mount: &Mount) -> Result<bool, SwapError> {
        if self.stage.is_none() {
            return Ok(false);
        }
        let may_stay = mount.read_only || self.staying.iter().any(|other| path.is_within(other));
        Ok(self.working_directory.is_within(path)
            || stage_has(self.stage, path)?
            || !may_stay && stage_kind(self.stage, path)?.is_some())
    }

    fn is_system(&self, path: &EntryPath) -> bool {
        SYSTEM.contains(&path.as_bytes())
    }
}

fn in_the_way(path: &EntryPath, what: &str, found: &str) -> SwapError {
    let (what, found) = (what.to_owned(), found.to_owned());
    SwapError::MountInTheWay { path: path.to_string(), what, found }
}

fn hidden_name() -> rustix::io::Result<Name> {
    let mut random = [0_u8; 8];
    SystemRandom::new().fill(&mut random).map_err(|_| Errno::IO)?;
    let mut name = HIDDEN_PREFIX.to_vec();
    name.extend(format!("{:016x}", u64::from_ne_bytes(random)).into_bytes());
    Name::new(&name).ok_or(Errno::INVAL)
}

/// What the stage has at a path; `None` for nothing.
fn stage_kind(
    stage: Option<BorrowedFd<'_>>,
    path: &EntryPath,
) -> Result<Option<FileType>, SwapError> {
    let Some(stage) = stage else { return Ok(None) };
    if path.is_root() {
        return Ok(Some(FileType::Directory));
    }
    let (parent, name) = split(path)?;
    let Some(parent) = find(stage, &parent).named("open", &parent)? else { return Ok(None) };
    let stat = stat_name(&parent, &name).named("stat", path)?;
    Ok(stat.map(|stat| kind_of(&stat)))
}

/// Whether the stage has content at a path: anything but an empty directory.
fn stage_has(stage: Option<BorrowedFd<'_>>, path: &EntryPath) -> Result<bool, SwapError> {
    match (stage_kind(stage, path)?, stage) {
        (Some(FileType::Directory), Some(stage)) => {
            let Some(directory) = find(stage, path).named("open", path)? else { return Ok(true) };
            Ok(!names_but(&directory, &Names::new()).named("list", path)?.is_empty())
        }
        (kind, _) => Ok(kind.is_some()),
    }
}

/// Whether a directory can't be renamed because it is a layer's (overlayfs without redirects). `probe` is the parent of
/// a directory that is not empty: a rename onto it is refused in any case, but `EXDEV` comes before.
///
/// Where the name covers a layer's, overlayfs exchanges it with a whiteout and back before it refuses, and the time of
/// `at` moves. It is put back at once; what is killed in between leaves that one time changed, where no journal has it.
pub(super) fn is_layered(
    at: BorrowedFd<'_>,
    name: &[u8],
    probe: BorrowedFd<'_>,
) -> rustix::io::Result<bool> {
    let before = fstat(at)?;
    let refusal = renameat(at, name, probe, PROBE);
    let after = fstat(at)?;
    if (before.st_mtime, before.st_mtime_nsec) != (after.st_mtime, after.st_mtime_nsec) {
        set_directory_mtime(at, before.st_mtime, before.st_mtime_nsec as u32)?;
    }
    match refusal {
        Err(Errno::XDEV) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(error) => Err(error),
        // Someone emptied it just now.
        Ok(()) => renameat(probe, PROBE, at, name).map(|()| false),
    }
}

/// The name of that directory.
pub(super) const PROBE: &str = "full";
