//! Writable volumes where the stage has content of its own: nothing can be renamed across, so the volume's own children
//! go into a hidden directory of the volume and the stage's are copied in, and out again after the step.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use super::{
    SwapError,
    attributes::Attributes,
    copy::Copier,
    directory::{find, find_or_make_path, names_but, present},
    engine::{Engine, STRAYS_MAX, with_hidden},
    erase::erase,
    error::Named,
    layout::Volume,
    text::{Name, Names},
};
use crate::{rootfs::handle::open_directory, tree::EntryPath};

impl Engine<'_> {
    /// Moves each volume's own children into its hidden directory. Returns their names.
    pub fn volumes_aside(&self) -> Result<Vec<Vec<Name>>, SwapError> {
        self.layout.volumes.iter().map(|volume| self.volume_aside(volume)).collect()
    }

    fn volume_aside(&self, volume: &Volume) -> Result<Vec<Name>, SwapError> {
        let root = self.volume(volume)?;
        let hidden_path = volume.path.child(&volume.hidden);
        let made = self.ops.make_directory(root.as_fd(), &volume.hidden);
        made.named("mkdir", &hidden_path)?;
        let hidden = open_directory(&root, &volume.hidden).named("open", &hidden_path)?;
        let names = names_but(&root, &with_hidden(volume)).named("list", &volume.path)?;
        for name in &names {
            let moved = self.ops.rename(root.as_fd(), name, hidden.as_fd(), name);
            moved.named("rename", volume.path.child(name))?;
        }
        Ok(names)
    }

    /// Copies the stage's directories into the volumes.
    pub fn volumes_in(&self) -> Result<(), SwapError> {
        for volume in &self.layout.volumes {
            let root = self.volume(volume)?;
            let path = self.layout.stage.join(&volume.path);
            let Some(stage) = find(&self.place.side, &path).named("open", &volume.path)? else {
                continue;
            };
            self.copy(volume, stage.as_fd(), root.as_fd(), &volume.kept)?;
        }
        Ok(())
    }

    fn copy(
        &self,
        volume: &Volume,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        kept: &Names,
    ) -> Result<(), SwapError> {
        let attributes = Attributes::of(from).named("read metadata of", &volume.path)?;
        let copier = Copier::new(self.ops, from, to).named("open", &volume.path)?;
        copier.run(kept).named("copy", &volume.path)?;
        attributes.apply(self.ops, to).named("set metadata of", &volume.path)
    }

    /// Makes the stage's directories equal to what the volumes hold now. Only to be done where a failure spoils the
    /// stage.
    pub fn volumes_out(&self) -> Result<(), SwapError> {
        self.layout.volumes.iter().try_for_each(|volume| self.volume_out(volume))
    }

    fn volume_out(&self, volume: &Volume) -> Result<(), SwapError> {
        let root = self.volume(volume)?;
        let path = self.layout.stage.join(&volume.path);
        let found = find(&self.place.side, &path).named("open", &volume.path)?;
        let kept = with_hidden(volume);
        if found.is_none() && names_but(&root, &kept).named("list", &volume.path)?.is_empty() {
            return Ok(());
        }
        let made = || find_or_make_path(self.ops, self.place.side.as_fd(), &path);
        let stage = found.map_or_else(made, Ok).named("mkdir", &volume.path)?;
        for name in names_but(&stage, &volume.kept).named("list", &volume.path)? {
            erase(self.ops, stage.as_fd(), &name).named("remove", volume.path.child(&name))?;
        }
        self.copy(volume, root.as_fd(), stage.as_fd(), &kept)
    }

    /// Removes the stage's copies from the volumes: everything that is not hidden. Never before all is hidden, nor
    /// after anything has come back.
    pub fn clear_volumes(&self) -> Result<(), SwapError> {
        for volume in &self.layout.volumes {
            let root = self.volume(volume)?;
            for name in names_but(&root, &with_hidden(volume)).named("list", &volume.path)? {
                erase(self.ops, root.as_fd(), &name).named("remove", volume.path.child(&name))?;
            }
        }
        Ok(())
    }

    /// Moves the volumes' own children back and gives the volumes their own metadata.
    pub fn restore_volumes(&self, attributes: &[Option<Attributes>]) -> Result<(), SwapError> {
        for (volume, attributes) in self.layout.volumes.iter().zip(attributes) {
            let root = self.volume(volume)?;
            let hidden_path = volume.path.child(&volume.hidden);
            let hidden =
                present(open_directory(&root, &volume.hidden)).named("open", &hidden_path)?;
            if let Some(hidden) = hidden {
                for name in names_but(&hidden, &Names::new()).named("list", &hidden_path)? {
                    let moved = self.back_into_volume(hidden.as_fd(), root.as_fd(), &name);
                    moved.named("rename", volume.path.child(&name))?;
                }
                let removed = self.ops.remove_directory(root.as_fd(), &volume.hidden);
                removed.named("rmdir", &hidden_path)?;
            }
            if let Some(attributes) = attributes {
                let applied = attributes.apply(self.ops, root.as_fd());
                applied.named("set metadata of", &volume.path)?;
            }
        }
        Ok(())
    }

    /// What another user of the volume has put there meanwhile gets another name.
    fn back_into_volume(
        &self,
        hidden: BorrowedFd<'_>,
        root: BorrowedFd<'_>,
        name: &Name,
    ) -> rustix::io::Result<()> {
        for number in 0..STRAYS_MAX {
            match self.ops.rename(hidden, name, root, name) {
                Err(Errno::EXIST | Errno::NOTEMPTY) => {}
                moved => return moved,
            }
            let other = [&**name, format!(".stray-{number}").as_bytes()].concat();
            match self.ops.rename(root, name, root, &other) {
                Ok(()) | Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::EXIST)
    }

    /// The volumes' own names that did not come back.
    pub fn lost_of_volumes(&self, moved: &[Vec<Name>]) -> Result<Vec<EntryPath>, SwapError> {
        let mut lost = Vec::new();
        for (volume, names) in self.layout.volumes.iter().zip(moved) {
            let present = names_but(self.volume(volume)?, &Names::new());
            let present = present.named("list", &volume.path)?;
            let missing = names.iter().filter(|name| !present.contains(name));
            lost.extend(missing.map(|name| volume.path.child(name)));
        }
        Ok(lost)
    }
}
