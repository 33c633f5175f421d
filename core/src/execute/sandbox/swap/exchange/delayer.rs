//! Directories of the container's own image: overlayfs renames none of them, so they are copied once. Afterwards they
//! are no layer's any more, and every exchange is a matter of renames.
//!
//! Programs of the job run on meanwhile: what they have open they keep, and what they write until the original goes is
//! carried over.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Instant,
};

use rustix::{
    fs::{FileType, fstatvfs},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use super::{
    Exchange, Options, SwapError,
    attributes::Attributes,
    copy::Copier,
    directory::{find, find_or_make, is_absent, kind_of, names_but, split, stat_name},
    erase::erase,
    error::Named,
    journal::{CopyStory, Record},
    settle::{Touched, settle},
    text::Names,
};
use crate::tree::EntryPath;

/// The copy while it is not in its place, in the side directory.
pub(super) const COPY: &[u8] = b"layer";
/// The part of the free space that copies may take.
const FREE_SPACE_PART: u64 = 3;
/// How often a directory is moved again that came back.
const ROUNDS_MAX: usize = 8;

/// What was copied out of the container's image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Delayered {
    /// How many directories, without those below them.
    pub directories: u64,
    pub entries: u64,
    pub bytes: u64,
    pub seconds: f64,
}

impl Exchange {
    /// Copies the directories that would have to be renamed and can't be. Refuses where they are larger than `bytes_max`
    /// or than a third of the free space. Without such directories it costs a few failed renames.
    pub fn delayer(
        &self,
        stage: &EntryPath,
        options: &Options,
        bytes_max: u64,
    ) -> Result<Delayered, SwapError> {
        self.require_clean()?;
        let layered = self.survey(stage, options)?.layered;
        if layered.is_empty() {
            return Ok(Delayered::default());
        }
        let started = Instant::now();
        self.check_size(&layered, bytes_max)?;
        let mut done = Delayered::default();
        for path in &layered {
            let copied = self.copy_out(path).map_err(|error| self.recover(error))?;
            done.directories += 1;
            done.entries += copied.entries;
            done.bytes += copied.bytes;
        }
        done.seconds = started.elapsed().as_secs_f64();
        Ok(done)
    }

    fn check_size(&self, layered: &[EntryPath], bytes_max: u64) -> Result<(), SwapError> {
        let probe = self.probe()?;
        let space = fstatvfs(&self.place.root).named("statvfs", "/")?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        let bytes_max = bytes_max.min(free / FREE_SPACE_PART);
        let measure = |path| self.disk_bytes(path, probe.as_fd());
        let bytes = layered.iter().map(measure).sum::<Result<u64, SwapError>>()?;
        if bytes > bytes_max { Err(SwapError::FatImage { bytes, bytes_max }) } else { Ok(()) }
    }

    /// What the files take that have to be copied.
    fn disk_bytes(&self, top: &EntryPath, probe: BorrowedFd<'_>) -> Result<u64, SwapError> {
        let (mut bytes, mut pending) = (0, vec![top.clone()]);
        while let Some(path) = pending.pop() {
            let found = find(&self.place.root, &path).named("open", &path)?;
            let Some(directory) = found else { continue };
            for name in names_but(&directory, &Names::new()).named("list", &path)? {
                let below = path.child(&name);
                let stat = stat_name(&directory, &name).named("stat", &below)?;
                let Some(stat) = stat else { continue };
                if kind_of(&stat) != FileType::Directory {
                    bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
                } else if self.is_layered(&path, directory.as_fd(), &name, probe)? {
                    pending.push(below);
                }
            }
        }
        Ok(bytes)
    }

    fn copy_out(&self, path: &EntryPath) -> Result<super::copy::Copied, SwapError> {
        let parent = Attributes::of(self.parent(path)?.as_fd()).named("read metadata of", path)?;
        let mut story =
            CopyStory { path: path.clone(), parent, complete: false, touched: Vec::new() };
        let copying = Record::Copying { path: path.clone(), parent: story.parent.clone() };
        self.journal.begin(&self.ops, &[copying])?;
        let probe = self.probe()?;
        let found = find(&self.place.root, path).named("open", path)?;
        let from = found.ok_or(Errno::NOENT).named("open", path)?;
        let to = find_or_make(&self.ops, self.place.side.as_fd(), COPY).named("mkdir", path)?;
        let attributes = Attributes::of(from.as_fd()).named("read metadata of", path)?;
        let copier = Copier::new(&self.ops, from.as_fd(), to.as_fd()).named("open", path)?;
        let copied = copier.layers_only(probe.as_fd()).run(&Names::new()).named("copy", path)?;
        attributes.apply(&self.ops, to.as_fd()).named("set metadata of", path)?;
        self.record(&[Record::Copied])?;
        story.complete = true;
        self.finish_copy(story)?;
        Ok(copied)
    }

    fn parent(&self, path: &EntryPath) -> Result<OwnedFd, SwapError> {
        let (parent, _) = split(path)?;
        let found = find(&self.place.root, &parent).named("open", &parent)?;
        found.ok_or(Errno::NOENT).named("open", &parent)
    }

    pub(super) fn repair_copy(&self, story: CopyStory) -> Result<(), SwapError> {
        if story.complete {
            return self.finish_copy(story);
        }
        let removed = erase(&self.ops, self.place.side.as_fd(), COPY);
        removed.named("remove the copy of", &story.path)?;
        self.record(&[Record::Done])
    }

    /// Puts the copy, while there is one, in the place of the original.
    fn finish_copy(&self, mut story: CopyStory) -> Result<(), SwapError> {
        let path = story.path.clone();
        let (side, at) = (self.place.side.as_fd(), self.parent(&path)?);
        let (_, name) = split(&path)?;
        for _ in 0..ROUNDS_MAX {
            if stat_name(side, COPY).named("stat", &path)?.is_none() {
                break;
            }
            self.settle(&mut story, at.as_fd(), &name).named("move", &path)?;
            match self.ops.rename(side, COPY, at.as_fd(), &name) {
                Ok(()) => break,
                // Made anew by a program of the job.
                Err(Errno::EXIST | Errno::NOTEMPTY) => {}
                Err(error) if is_absent(error) => break,
                Err(error) => return Err(error).named("rename", &path),
            }
        }
        let applied = story.parent.apply(&self.ops, at.as_fd());
        applied.named("set metadata of the parent of", &path)?;
        self.record(&[Record::Done])
    }

    /// Ends the original and gives the directories of the copy that something was moved into their metadata back.
    fn settle(
        &self,
        story: &mut CopyStory,
        at: BorrowedFd<'_>,
        name: &[u8],
    ) -> std::io::Result<()> {
        let side = self.place.side.as_fd();
        let known = story.touched.iter().map(|(path, _)| path.clone()).collect();
        let mut touch = |touched: Touched| {
            let (path, attributes) = touched.clone();
            let recorded = self.record(&[Record::Touched { path, attributes }]);
            recorded.map_err(std::io::Error::other)?;
            story.touched.push(touched);
            Ok(())
        };
        settle(&self.ops, (at, name), (side, COPY), known, &mut touch)?;
        let copy = EntryPath::root().child(COPY);
        for (path, attributes) in &story.touched {
            if let Some(directory) = find(side, &copy.join(path))? {
                attributes.apply(&self.ops, directory.as_fd())?;
            }
        }
        Ok(())
    }
}
