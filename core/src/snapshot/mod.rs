//! What a step changed: an overlay's upper directory against the snapshot below it, as a changeset; and that directory made
//! equal to the layer that is written from it (rules.md, what goes into a layer).

mod capability;
mod compare;
mod diff;
mod lower;
mod settle;

pub use compare::{LowerContent, LowerDirectories};
pub use diff::{DiffError, DiffOptions, overlay_diff};
pub use settle::settle;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
