//! What can go wrong with a layer.

use std::io;

use crate::{
    digest::Digest,
    tree::{EntryPath, PathError},
};

use super::{decompress::Format, tar::TarError};

#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error("{path} changed during the build")]
    Changed { path: EntryPath },
    #[error("the content of {path} cannot be read")]
    Content { path: EntryPath, source: io::Error },
    #[error("{path} has {size} bytes but no content")]
    MissingContent { path: EntryPath, size: u64 },
    #[error("the file capability of {path} cannot be written: {what}")]
    Capability { path: EntryPath, what: &'static str },
    #[error("the device number {major}:{minor} of {path} does not fit into a tar")]
    Device { path: EntryPath, major: u32, minor: u32 },
    #[error("compression level {level} is out of range: {name} has {range}")]
    Level { name: &'static str, level: u8, range: &'static str },
    #[error("the layer cannot be compressed")]
    Compress(#[source] io::Error),
    #[error("the layer cannot be written")]
    Write(#[source] io::Error),

    #[error("media type {0:?} is not that of a layer")]
    MediaType(String),
    #[error("the layer's media type {media_type} does not fit its bytes, which have {found}")]
    FormatMismatch { media_type: String, found: Format },
    #[error("the layer cannot be read")]
    Read(#[source] io::Error),
    #[error("the layer decompresses to more than {ratio} times its size")]
    Ratio { ratio: u64 },
    #[error("the layer's archive is refused")]
    Tar(#[from] TarError),
    #[error("the layer has an invalid name {name}")]
    Name { name: String, source: PathError },
    #[error("the layer has an invalid whiteout {0}")]
    Whiteout(String),
    #[error("the layer's root is no directory")]
    Root,
    #[error("the layer has too many levels of symbolic links in {0}")]
    TooManyLinks(EntryPath),
    #[error(
        "the layer's symbolic link {path} has a target of {length} bytes, allowed are 1 to 4095"
    )]
    SymlinkTarget { path: EntryPath, length: usize },
    #[error(
        "the layer's hard link {path} leads to {target}, which is no file that the same layer holds before it"
    )]
    HardLinkTarget { path: EntryPath, target: String },
    #[error("{path} of the layer cannot be unpacked")]
    Sink { path: EntryPath, source: io::Error },
    #[error("the layer unpacks to {actual}, its image's configuration says {expected}")]
    DiffId { expected: Digest, actual: Digest },
    #[error("the layer does not hold the content of {0} where its index says")]
    IndexMismatch(EntryPath),
}
