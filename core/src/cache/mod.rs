//! The cache: keys that need no file system, and records of what a step gave.
//!
//! A record is filed below the key of its *prefix* (parent and instruction, without what the step reads of a context):
//! where no record has that prefix nothing can hit, and the context's content is hashed while the layer is written.

mod key;
mod record;

pub use key::{CacheKey, KeyBuilder};
pub use record::{Record, RecordLayer, lookup, prefix_known, store};
