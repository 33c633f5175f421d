//! Records in the local store: `records/PREFIX/KEY`, one JSON document each.

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    layer::LayerDescriptor,
    store::{Store, StoreError},
};

use super::CacheKey;

/// What a step gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub layer: RecordLayer,
    /// When the step ended, RFC 3339.
    pub created: String,
    pub milliseconds: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordLayer {
    pub descriptor: LayerDescriptor,
    pub diff_id: Digest,
}

/// The record under a key, if its layer's blob and index are still there. Anything else is a miss (invariant 9).
pub fn lookup(store: &Store, prefix: &CacheKey, key: &CacheKey) -> Option<Record> {
    let bytes = store.read_document("records", &format!("{prefix}/{key}"))?;
    let record: Record = match serde_json::from_slice(&bytes) {
        Ok(record) => record,
        Err(error) => {
            tracing::warn!(%key, %error, "cache record ignored");
            return None;
        }
    };
    let RecordLayer { descriptor, diff_id } = &record.layer;
    let kept = store.has_blob(&descriptor.digest, descriptor.size) && store.has_index(diff_id);
    kept.then_some(record)
}

/// Whether any record has this prefix.
pub fn prefix_known(store: &Store, prefix: &CacheKey) -> bool {
    store.root().join("records").join(prefix.to_string()).is_dir()
}

pub fn store(
    store: &Store,
    prefix: &CacheKey,
    key: &CacheKey,
    record: &Record,
) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec(record).unwrap_or_default();
    store.put_document("records", &format!("{prefix}/{key}"), &bytes)
}
