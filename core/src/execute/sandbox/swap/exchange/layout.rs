//! What an exchange is about: which directories stay, and what in them. It is in the journal, so that a repair by
//! another process has the same view.

use serde::{Deserialize, Serialize};

use super::text::{self, Name, Names};
use crate::tree::EntryPath;

/// The plan of one exchange. A level's parent is a level and comes before it; the root is the first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layout {
    /// The stage's tree, below the side directory.
    #[serde(with = "text::path")]
    pub stage: EntryPath,
    pub levels: Vec<Level>,
    pub volumes: Vec<Volume>,
}

/// A directory of the container's root that stays in place while its children are exchanged one by one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Level {
    #[serde(with = "text::path")]
    pub path: EntryPath,
    /// The children that stay too: mount points, levels, what other processes own, the side directory.
    pub kept: Names,
    pub inode: u64,
    /// A mount at or below one of the children, by which the level is found should a step have moved it.
    pub anchor: Option<Anchor>,
}

/// A mount, and where it belongs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Anchor {
    pub mount: u64,
    #[serde(with = "text::path")]
    pub path: EntryPath,
}

/// A writable volume whose contents give way to the stage's: they go into a hidden directory of the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Volume {
    #[serde(with = "text::path")]
    pub path: EntryPath,
    pub hidden: Name,
    /// The volume's children that are mount points themselves.
    pub kept: Names,
}

impl Layout {
    /// Whether a repair can rely on the shape that [`Layout`] promises.
    pub fn is_sound(&self) -> bool {
        let has_level = |path: &EntryPath, before: usize| {
            self.levels[..before].iter().any(|level| level.path == *path)
        };
        let nests = |(at, level): (usize, &Level)| match level.path.parent() {
            None => at == 0,
            Some(parent) => has_level(&parent, at),
        };
        let in_level = |volume: &Volume| {
            let parent = volume.path.parent();
            parent.is_some_and(|parent| has_level(&parent, self.levels.len()))
        };
        !self.levels.is_empty()
            && !self.stage.is_root()
            && self.levels.iter().enumerate().all(nests)
            && self.volumes.iter().all(in_level)
    }
}
