//! The `swap` rung: RUN at the container's own root, where nothing can be mounted.
//!
//! A keeper, which is a helper process of one step, lets the stage's tree and the container's files change places, runs
//! the step, ends all its processes and changes back. When the builder dies it does so at once; when it dies itself the
//! builder starts another one to repair.

mod canary;
pub mod exchange;
mod hidden;
mod keeper;
mod notes;
mod placed;
mod volumes;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(super) use self::keeper::{repair_all, run_at_root};
pub use self::{
    exchange::{EntryStat, LevelOutcome, RenamedEntry, SwapError},
    notes::StepNote,
};
use super::wire;

/// What a step at the container's own root has left behind, besides what every step has.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SwapReport {
    /// The entries of the tree that were renamed, with what the kernel said of them before the step: these values are the
    /// baseline's.
    pub entered: Vec<RenamedEntry>,
    /// The same after the step's end, before they were renamed back; new entries too. These values count for the diff.
    pub left: Vec<RenamedEntry>,
    /// Directories whose children were renamed one by one.
    pub levels: Vec<LevelOutcome>,
    /// Directories, relative to the tree, whose contents are copies: all below them are new inodes.
    #[serde(with = "wire::list")]
    pub rewritten: Vec<PathBuf>,
    /// Names of the container's own that the step has removed, relative to its root. The step reached into the side
    /// directory: no tree in there can be trusted.
    #[serde(with = "wire::list")]
    pub lost: Vec<PathBuf>,
    /// How long the changes of place took, there and back.
    pub milliseconds_in: u64,
    pub milliseconds_out: u64,
    /// For the log.
    pub notes: Vec<StepNote>,
}

impl SwapReport {
    /// Whether the step reached into the side directory.
    pub fn is_spoilt(&self) -> bool {
        !self.lost.is_empty()
    }
}
