//! What a step changed, as a changeset: an overlay's upper directory against the snapshot below it, or a plain tree against
//! what it was before the step. And the tree made equal to the layer that is written from it (rules.md, what goes into a
//! layer).

mod baseline;
mod capability;
mod compare;
mod diff;
mod judge;
mod lower;
mod settle;
mod stamp;

pub use baseline::{Baseline, BaselineError};
pub use compare::{LowerContent, LowerDirectories};
pub use diff::{DiffOptions, overlay_diff};
pub use judge::DiffError;
pub use settle::settle;
pub use stamp::Stamp;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
