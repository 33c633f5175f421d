//! What a step changed, as a changeset: an overlay's upper directory against the snapshot below it, or a plain tree against
//! what it was before the step. And the tree made equal to the layer that is written from it (rules.md, what goes into a
//! layer).

mod baseline;
mod capability;
mod clock;
mod compare;
mod diff;
mod judge;
mod lower;
mod plain;
mod settle;
mod settle_plain;
mod stamp;
mod verify;

pub use baseline::{Baseline, BaselineError};
pub use clock::wait_for_clock;
pub use compare::{LowerContent, LowerDirectories};
pub use diff::{DiffOptions, overlay_diff};
pub use judge::DiffError;
pub use plain::{AfterStep, LowerDigests, PlainChanges, Renamed, plain_diff};
pub use settle::settle;
pub use settle_plain::{SettleError, settle_plain};
pub use stamp::Stamp;
pub use verify::{Canary, Difference, DifferenceKind, verify};

#[cfg(test)]
mod plain_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
