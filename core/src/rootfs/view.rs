//! What readers make of the names of a layer (OCI image-spec, layer.md, whiteouts).

use crate::tree::{
    Change, Changeset, EntryPath, IndexBuilder, Kind, LayerIndex, Row, Snapshot, Timestamp,
};

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_NAME: &[u8] = b".wh..wh..opq";

/// What a name means when it stands in a layer's tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LayerName {
    /// Itself.
    Plain,
    /// Hides this path in lower layers.
    Whiteout(EntryPath),
    /// Hides all that lower layers have below this directory.
    Opaque(EntryPath),
    /// Hides nothing that can be named; readers refuse it.
    Invalid,
}

/// What `path` means as the name of an entry; only its last component is looked at.
pub(crate) fn layer_name(path: &EntryPath) -> LayerName {
    let parent = || path.parent().unwrap_or_default();
    match (path.file_name(), path.file_name().strip_prefix(WHITEOUT_PREFIX)) {
        (OPAQUE_NAME, _) => LayerName::Opaque(parent()),
        (_, Some(b"" | b"." | b"..")) => LayerName::Invalid,
        (_, Some(hidden)) => LayerName::Whiteout(parent().child(hidden)),
        (_, None) => LayerName::Plain,
    }
}

/// A time as layers hold it: at most `seconds_max` and in whole seconds.
pub(crate) fn capped(time: Timestamp, seconds_max: Option<i64>) -> Timestamp {
    Timestamp::from_seconds(seconds_max.map_or(time.seconds, |max| time.seconds.min(max)))
}

/// The index of the layer that a changeset is written as, as its readers see it: a file called `.wh.x` hides `x`.
/// Without digests and offsets. `mtime_seconds_max` caps the mtimes.
pub fn changeset_index(changeset: &Changeset, mtime_seconds_max: Option<i64>) -> LayerIndex {
    let mut builder = IndexBuilder::default();
    for change in changeset.changes() {
        match layer_name(&change.path) {
            LayerName::Plain => builder.insert(row_of(change, mtime_seconds_max)),
            LayerName::Whiteout(path) => builder.insert(whiteout(path)),
            LayerName::Opaque(directory) => builder.set_opaque(&directory),
            LayerName::Invalid => {}
        }
    }
    builder.build()
}

pub(super) fn whiteout(path: EntryPath) -> Row {
    Row::new(path, Kind::Whiteout, Default::default())
}

pub(super) fn row_of(change: &Change, mtime_seconds_max: Option<i64>) -> Row {
    let mut metadata = change.metadata.clone();
    if change.kind != Kind::Whiteout {
        metadata.mtime = capped(metadata.mtime, mtime_seconds_max);
    }
    let mut row = Row::new(change.path.clone(), change.kind.clone(), metadata);
    row.link_group = change.link_group;
    row.digest = change.digest;
    row
}

/// The lowest layer of which anything can show: the topmost one whose root is opaque, else the first.
///
/// Overlayfs takes no notice of an opaque root, so what lies below this layer must not be mounted.
pub fn lowest_visible_layer(snapshot: &Snapshot) -> usize {
    let opaque = Kind::Directory { opaque: true };
    let hides =
        |index: &LayerIndex| index.get(&EntryPath::root()).is_some_and(|row| row.kind == opaque);
    snapshot.layers().iter().rposition(|layer| hides(&layer.index)).unwrap_or(0)
}
