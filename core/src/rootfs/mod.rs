//! Trees on disk, worked on by directory handle: no string of an image is ever resolved.
//!
//! A layer is unpacked into a directory of its own in the form that overlayfs takes as a lower directory: whiteouts are
//! character devices 0:0, opaque directories carry an extended attribute. Where there is no overlay, it is unpacked without
//! these and moved over the plain tree of the layers below it.

mod apply;
mod copy;
mod directories;
pub(crate) mod handle;
mod merge;
pub(crate) mod metadata;
mod plain;
mod remove;
mod unpack;
mod view;
pub(crate) mod walk;

pub use apply::{apply_changeset, apply_changeset_plain};
pub use copy::copy_tree;
pub use merge::merge;
pub use plain::lay_over;
pub use remove::{discard, remove_tree};
pub use unpack::Unpacker;
pub(crate) use unpack::make_whiteout;
pub use view::{changeset_index, lowest_visible_layer};
pub use walk::WalkError;

pub(crate) use copy::copy_content;
pub(crate) use directories::finish_directories;
pub(crate) use metadata::UnmappedOwner;
pub(crate) use view::{LayerName, capped, layer_name};

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
