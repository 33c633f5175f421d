//! The movements that an exchange consists of. Each can be done again after it was cut off: it moves what is at the wrong
//! place and skips what is not.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::{
    EntryStat, Place, RenamedEntry, SwapError,
    attributes::Attributes,
    directory::{
        enter, find, find_or_make, find_or_make_path, is_absent, names_but, present, split,
        stat_name,
    },
    erase::erase,
    error::Named,
    layout::{Layout, Level, Volume},
    ops::Ops,
    text::{Name, Names},
};
use crate::tree::EntryPath;

/// What was moved aside, below the side directory: the levels' children.
pub const HOST: &str = "host";
/// What was in the way of the container's own, and what has no stage to go to.
const STRAYS: &str = "strays";
/// How many names of strays are tried.
pub(super) const STRAYS_MAX: u32 = 10_000;

pub(super) struct Engine<'e> {
    pub place: &'e Place,
    pub ops: &'e Ops,
    pub layout: &'e Layout,
}

impl Engine<'_> {
    fn side(&self) -> BorrowedFd<'_> {
        self.place.side.as_fd()
    }

    /// A level of the container's root.
    pub fn level(&self, level: &Level) -> Result<OwnedFd, SwapError> {
        let found = find(&self.place.root, &level.path).named("open", &level.path)?;
        found.ok_or(Errno::NOENT).named("open", &level.path)
    }

    /// The stage's directory for a level; `None` where it has none.
    pub fn stage(&self, level: &Level) -> Result<Option<OwnedFd>, SwapError> {
        let path = self.layout.stage.join(&level.path);
        find(self.side(), &path).named("open", level.path.clone())
    }

    /// The place of a level's children that are aside.
    fn host(&self, level: &Level) -> Result<Option<OwnedFd>, SwapError> {
        find(self.side(), &host_path(level)).named("open", host_path(level))
    }

    /// A volume's root, which is a mount.
    pub fn volume(&self, volume: &Volume) -> Result<OwnedFd, SwapError> {
        let (parent, name) = split(&volume.path)?;
        let parent = find(&self.place.root, &parent).named("open", &volume.path)?;
        let parent = parent.ok_or(Errno::NOENT).named("open", &volume.path)?;
        enter(parent, &name).named("open", &volume.path)
    }

    /// Moves the container's own children of every level aside. Returns their names.
    pub fn levels_aside(&self) -> Result<Vec<Vec<Name>>, SwapError> {
        let aside = |level: &Level| {
            let host = find_or_make_path(self.ops, self.side(), &host_path(level));
            let host = host.named("mkdir", host_path(level))?;
            self.move_children(&self.level(level)?, &host, level)
        };
        self.layout.levels.iter().map(aside).collect()
    }

    fn move_children(
        &self,
        from: &OwnedFd,
        to: &OwnedFd,
        level: &Level,
    ) -> Result<Vec<Name>, SwapError> {
        let names = names_but(from, &level.kept).named("list", &level.path)?;
        for name in &names {
            let moved = self.ops.rename(from.as_fd(), name, to.as_fd(), name);
            moved.named("rename", level.path.child(name))?;
        }
        Ok(names)
    }

    /// Moves the stage's children into every level and gives that the metadata of the stage's directory.
    pub fn stage_in(&self, stage: &[Option<Attributes>]) -> Result<(), SwapError> {
        for (level, attributes) in self.layout.levels.iter().zip(stage) {
            let root = self.level(level)?;
            if let Some(stage) = self.stage(level)? {
                self.move_children(&stage, &root, level)?;
            }
            let neutral = Attributes::neutral(root.as_fd()).named("stat", &level.path)?;
            let attributes = attributes.as_ref().unwrap_or(&neutral);
            attributes.apply(self.ops, root.as_fd()).named("set metadata of", &level.path)?;
        }
        Ok(())
    }

    /// What the levels hold beside what stays, with its metadata.
    pub fn entries(&self) -> Result<Vec<RenamedEntry>, SwapError> {
        let mut entries = Vec::new();
        for level in &self.layout.levels {
            let root = self.level(level)?;
            for name in names_but(&root, &level.kept).named("list", &level.path)? {
                let path = level.path.child(&name);
                if let Some(stat) = stat_name(&root, &name).named("stat", &path)? {
                    entries.push(RenamedEntry { path, stat: EntryStat::from(&stat) });
                }
            }
        }
        Ok(entries)
    }

    /// The levels' present metadata.
    pub fn found(&self) -> Result<Vec<Option<Attributes>>, SwapError> {
        let of = |level: &Level| {
            let root = self.level(level)?;
            Attributes::of(root.as_fd()).named("read metadata of", &level.path).map(Some)
        };
        self.layout.levels.iter().map(of).collect()
    }

    /// Moves everything that does not stay from the levels to the stage, whose directories then get this metadata. A
    /// directory that the stage lacks is made if something goes into it.
    pub fn stage_out(&self, attributes: &[Option<Attributes>]) -> Result<(), SwapError> {
        self.layout.levels.iter().try_for_each(|level| self.level_out(level))?;
        // Deepest first: a parent's time changes with what is done in it.
        for (level, attributes) in self.layout.levels.iter().zip(attributes).rev() {
            if let (Some(stage), Some(attributes)) = (self.stage(level)?, attributes) {
                let applied = attributes.apply(self.ops, stage.as_fd());
                applied.named("set metadata of", &level.path)?;
            }
        }
        Ok(())
    }

    fn level_out(&self, level: &Level) -> Result<(), SwapError> {
        let root = self.level(level)?;
        let names = names_but(&root, &level.kept).named("list", &level.path)?;
        if names.is_empty() {
            return Ok(());
        }
        let to = self.stage_or_strays(level)?;
        for name in names {
            let path = level.path.child(&name);
            match self.ops.rename(root.as_fd(), &name, to.as_fd(), &name) {
                // A mount that came during the step can only stay.
                Ok(()) | Err(Errno::BUSY | Errno::NOENT) => {}
                Err(Errno::EXIST | Errno::NOTEMPTY) => self.stray(root.as_fd(), &name, &path)?,
                Err(error) => return Err(error).named("rename", &path),
            }
        }
        Ok(())
    }

    /// Where what is in a level goes: a step could have removed the stage's tree from the side directory, or put
    /// something else there.
    fn stage_or_strays(&self, level: &Level) -> Result<OwnedFd, SwapError> {
        let path = self.layout.stage.join(&level.path);
        match find_or_make_path(self.ops, self.side(), &path) {
            Err(error) if is_absent(error) => self.strays(),
            found => found.named("mkdir", &level.path),
        }
    }

    fn strays(&self) -> Result<OwnedFd, SwapError> {
        find_or_make(self.ops, self.side(), STRAYS.as_bytes()).named("mkdir", STRAYS)
    }

    /// Moves a name out of the way.
    fn stray(&self, at: BorrowedFd<'_>, name: &[u8], path: &EntryPath) -> Result<(), SwapError> {
        let strays = self.strays()?;
        for number in 0..STRAYS_MAX {
            let new = number.to_string().into_bytes();
            match self.ops.rename(at, name, strays.as_fd(), &new) {
                Err(Errno::EXIST | Errno::NOTEMPTY) => {}
                Err(Errno::NOENT) => return Ok(()),
                moved => return moved.named("rename", path),
            }
        }
        Err(Errno::EXIST).named("rename", path)
    }

    /// Moves a name home; what is there by now was put there by someone else, and gives way.
    fn move_home(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &Name,
        path: &EntryPath,
    ) -> Result<(), SwapError> {
        match self.ops.rename(from, name, to, name) {
            Err(Errno::EXIST | Errno::NOTEMPTY) => {
                self.stray(to, name, path)?;
                self.ops.rename(from, name, to, name).named("rename", path)
            }
            moved => moved.named("rename", path),
        }
    }

    /// Moves the container's own children back into every level, removes their place and gives the levels their own
    /// metadata. Levels without it had not been touched.
    pub fn restore_levels(&self, attributes: &[Option<Attributes>]) -> Result<(), SwapError> {
        for level in &self.layout.levels {
            let Some(host) = self.host(level)? else { continue };
            let root = self.level(level)?;
            for name in names_but(&host, &level.kept).named("list", host_path(level))? {
                let path = level.path.child(&name);
                self.move_home(host.as_fd(), root.as_fd(), &name, &path)?;
            }
        }
        for (level, attributes) in self.layout.levels.iter().zip(attributes).rev() {
            self.remove_host(level)?;
            if let Some(attributes) = attributes {
                let applied = attributes.apply(self.ops, self.level(level)?.as_fd());
                applied.named("set metadata of", &level.path)?;
            }
        }
        Ok(())
    }

    /// What is still there was put there by someone else: all that was moved aside is home.
    fn remove_host(&self, level: &Level) -> Result<(), SwapError> {
        let (parent, name) = split(&host_path(level))?;
        let Some(parent) = find(self.side(), &parent).named("open", &parent)? else {
            return Ok(());
        };
        erase(self.ops, parent.as_fd(), &name).named("remove", host_path(level))
    }

    /// Brings back levels that a step moved (an ancestor of a mount point can be renamed). Returns the first of them.
    pub fn levels_home(&self) -> Result<Option<EntryPath>, SwapError> {
        let mut moved = None;
        for level in self.layout.levels.iter().filter(|level| !level.path.is_root()) {
            if !self.is_home(level)? {
                self.bring_home(level)?;
                moved.get_or_insert(level.path.clone());
            }
        }
        Ok(moved)
    }

    fn is_home(&self, level: &Level) -> Result<bool, SwapError> {
        self.is_level(level, &level.path)
    }

    fn is_level(&self, level: &Level, path: &EntryPath) -> Result<bool, SwapError> {
        let found = find(&self.place.root, path).named("open", path)?;
        let Some(found) = found else { return Ok(false) };
        Ok(rustix::fs::fstat(&found).named("stat", path)?.st_ino == level.inode)
    }

    fn bring_home(&self, level: &Level) -> Result<(), SwapError> {
        let lost = || SwapError::LevelMoved { path: level.path.to_string() };
        let now = self.whereabouts(level)?.ok_or_else(lost)?;
        let ((from, old), (home, name)) = (split(&now)?, split(&level.path)?);
        let from = find(&self.place.root, &from).named("open", &from)?.ok_or_else(lost)?;
        let home = find(&self.place.root, &home).named("open", &home)?.ok_or_else(lost)?;
        // By way of the side directory, because it may be inside of what took its place.
        let held = Name::new(format!("level-{}", level.inode).as_bytes()).ok_or_else(lost)?;
        if now != EntryPath::root().child(&self.place.side_name).child(&held) {
            let moved = self.ops.rename(from.as_fd(), &old, self.side(), &held);
            moved.named("rename", &now)?;
        }
        if stat_name(&home, &name).named("stat", &level.path)?.is_some() {
            self.stray(home.as_fd(), &name, &level.path)?;
        }
        self.ops.rename(self.side(), &held, home.as_fd(), &name).named("rename", &level.path)
    }

    /// Where a level is now, by the mount that it holds.
    fn whereabouts(&self, level: &Level) -> Result<Option<EntryPath>, SwapError> {
        let Some(anchor) = &level.anchor else { return Ok(None) };
        let table = (self.place.mounts)().named("read", "mountinfo")?;
        let Some(mut path) = table.path_of(anchor.mount) else { return Ok(None) };
        let Some(below) = anchor.path.strip_prefix(&level.path) else { return Ok(None) };
        for _ in below.components() {
            path = path.parent().unwrap_or_default();
        }
        Ok(self.is_level(level, &path)?.then_some(path))
    }

    /// The names of the container's own that neither came back nor are aside any more.
    pub fn lost(&self, moved: &[Vec<Name>]) -> Result<Vec<EntryPath>, SwapError> {
        let mut lost = Vec::new();
        for (level, names) in self.layout.levels.iter().zip(moved) {
            let root = self.level(level)?;
            for name in names {
                let path = level.path.child(name);
                if present(stat_name(&root, name)).named("stat", &path)?.flatten().is_none() {
                    lost.push(path);
                }
            }
        }
        Ok(lost)
    }
}

/// The place of a level's children below the side directory.
fn host_path(level: &Level) -> EntryPath {
    EntryPath::root().child(HOST.as_bytes()).join(&level.path)
}

/// The names in a volume that are neither hidden nor mounts.
pub(super) fn with_hidden(volume: &Volume) -> Names {
    let mut names = volume.kept.clone();
    names.insert(volume.hidden.clone());
    names
}
