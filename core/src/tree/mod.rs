//! File trees without content: paths, rows, the index of one layer, a snapshot (a list of indexes) and a changeset.
//!
//! COPY, ADD, WORKDIR and look-ups of users are computed on these alone: no tree on disk, no privilege, no base bytes.

mod changeset;
mod content;
mod encoding;
mod index;
mod path;
mod row;
mod snapshot;

pub use changeset::{Change, Changeset};
pub use content::Content;
pub use encoding::IndexError;
pub use index::{IndexBuilder, LayerIndex, SMALL_FILE_BYTES_MAX, is_small_file};
pub use path::{EntryPath, PathError};
pub use row::{Kind, Metadata, Row, Timestamp};
pub use snapshot::{Entry, LastLink, ResolveError, Resolved, SmallFile, Snapshot, SnapshotLayer};

#[cfg(test)]
mod tests;
