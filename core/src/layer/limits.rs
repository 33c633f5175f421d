//! What is read out of archives is bounded, so that a hostile one ends in an error and not in a full disk or memory.

/// A sparse image of a disk in a layer is conceivable; more than this is a bomb.
pub const UNCOMPRESSED_BYTES_MAX: u64 = 1 << 40;
/// The largest images known have a few hundred thousand names.
pub const MEMBERS_MAX: u64 = 4_000_000;
/// What the index of one layer takes in memory: two million names. Without it, a few members with deep names and no
/// directories would do as much harm as millions.
pub const INDEX_BYTES_MAX: u64 = 512 << 20;
/// What a row takes besides its path and link target.
pub(super) const ROW_BYTES: u64 = 200;
/// A PAX header or a long name, each. Go's archive/tar has the same limit.
pub const EXTENSION_BYTES_MAX: u64 = 1 << 20;
/// Uncompressed bytes for each compressed one, beyond `RATIO_FREE_BYTES`. Deflate cannot do more than 1032; zstd on zeros
/// can do 30,000.
pub const RATIO_MAX: u64 = 8_192;
pub const RATIO_FREE_BYTES: u64 = 1 << 30;
/// xz -9 takes 65 MiB; archives that want more are no layers or ADD sources of this world.
pub const XZ_MEMORY_BYTES_MAX: u64 = 256 << 20;

/// The limits of one reader.
#[derive(Clone, Copy, Debug)]
pub struct ReadLimits {
    pub uncompressed_bytes_max: u64,
    pub members_max: u64,
    pub index_bytes_max: u64,
    pub extension_bytes_max: u64,
    pub ratio_max: u64,
    pub ratio_free_bytes: u64,
}

impl Default for ReadLimits {
    fn default() -> Self {
        ReadLimits {
            uncompressed_bytes_max: UNCOMPRESSED_BYTES_MAX,
            members_max: MEMBERS_MAX,
            index_bytes_max: INDEX_BYTES_MAX,
            extension_bytes_max: EXTENSION_BYTES_MAX,
            ratio_max: RATIO_MAX,
            ratio_free_bytes: RATIO_FREE_BYTES,
        }
    }
}
