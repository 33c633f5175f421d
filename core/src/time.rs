//! Times of documents: RFC 3339 in UTC, now or SOURCE_DATE_EPOCH.

use jiff::Timestamp;

use crate::tree;

/// What a build's new times are.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    epoch: Option<i64>,
}

impl Clock {
    pub fn new(source_date_epoch: Option<i64>) -> Self {
        Clock { epoch: source_date_epoch }
    }

    /// SOURCE_DATE_EPOCH as documents have it.
    pub fn fixed(&self) -> Option<String> {
        self.epoch.map(rfc3339)
    }

    /// The time of a step that ends now.
    pub fn step(&self) -> String {
        match self.epoch {
            Some(epoch) => rfc3339(epoch),
            None => Timestamp::now().to_string(),
        }
    }

    /// The mtime of what has no source: directories made on the way, here-documents.
    pub fn mtime(&self) -> tree::Timestamp {
        let seconds = self.epoch.unwrap_or_else(|| Timestamp::now().as_second());
        tree::Timestamp::from_seconds(seconds)
    }
}

/// Seconds since 1970 in RFC 3339; what a calendar cannot hold is cut to its edge.
fn rfc3339(seconds: i64) -> String {
    let edge = if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::from_second(seconds).unwrap_or(edge).to_string()
}
