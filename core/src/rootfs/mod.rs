//! Trees on disk, worked on by directory handle: no string of an image is ever resolved.
//!
//! A layer is unpacked into a directory of its own in the form that overlayfs takes as a lower directory: whiteouts are
//! character devices 0:0, opaque directories carry an extended attribute.

mod apply;
mod directories;
mod export;
pub(crate) mod handle;
mod merge;
pub(crate) mod metadata;
mod remove;
mod unpack;
mod view;

pub use apply::apply_changeset;
pub use export::{ExportOptions, Exporter, LeftOut};
pub use merge::merge;
pub use remove::{discard, remove_tree};
pub use unpack::Unpacker;
pub(crate) use unpack::make_whiteout;
pub use view::{changeset_index, lowest_visible_layer};

pub(crate) use directories::finish_directories;
pub(crate) use view::{LayerName, capped, layer_name};

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
