//! The tar format (POSIX.1-2017 pax interchange format, and what of GNU tar is met in the wild).

mod header;
mod pax;
mod reader;
pub(super) mod writer;

pub use header::is_tar_header;
pub use reader::{Body, Member, MemberKind, TarReader};

/// Why an archive is refused. Offsets are bytes of the uncompressed archive.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("the archive cannot be read")]
    Read(#[from] std::io::Error),
    #[error("the archive is cut short at byte {offset}")]
    Truncated { offset: u64 },
    #[error("damaged tar header at byte {offset}: {what}")]
    Header { offset: u64, what: &'static str },
    #[error("damaged PAX header at byte {offset}: {what}")]
    Pax { offset: u64, what: &'static str },
    #[error("ambiguous tar header at byte {offset}: {what}")]
    Ambiguous { offset: u64, what: &'static str },
    #[error("data follows the end of the archive, at byte {offset}")]
    Tail { offset: u64 },
    #[error("{name} is of type {:?}, which no layer or archive may hold", .typeflag.escape_ascii().to_string())]
    UnsupportedType { name: String, typeflag: u8 },
    #[error(
        "{name} is a sparse file in GNU tar's form, which is not supported: write the archive without --sparse"
    )]
    Sparse { name: String },
    #[error("the archive has more than {limit} {unit}")]
    Limit { limit: u64, unit: &'static str },
}

/// Times outside are moved to the nearer end: file systems hold no more.
pub(super) const MTIME_SECONDS: std::ops::RangeInclusive<i64> = -(1 << 31)..=9_223_372_036;

/// A name as an archive wrote it, fit for a message.
pub(super) fn shown(name: &[u8]) -> String {
    name[..name.len().min(4096)].escape_ascii().to_string()
}

const BLOCK_BYTES: usize = 512;
