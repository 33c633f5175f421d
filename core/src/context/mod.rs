//! Build contexts and the other trees that COPY and ADD take their sources from.

mod archive;
mod contexts;
mod directory;
mod glob;
mod hashes;
mod ignore;
mod memory;
mod patterns;
mod source;
mod spool;
mod stage;
mod tree;

use std::{io, path::PathBuf};

pub use archive::is_archive;
pub use contexts::{Contexts, FETCHED_FILE, FetchedContext, OpenContext};
pub use glob::{Glob, GlobError, has_wildcard};
pub use hashes::Stamp;
pub use ignore::{Ignore, IgnoreError, find_ignore};
pub use memory::{MemoryTree, RemoteFile, remote_name};
pub(crate) use patterns::trim_space;
pub use patterns::{Matched, PatternError, Patterns};
pub use source::{Node, SourceTree, read_file, resolve};
pub(crate) use source::{capability_version_2, read_content, resolve_with};
pub use spool::Spool;
pub use stage::{ContentsError, SnapshotContents, StageTree};
pub use tree::ContextTree;

use crate::{
    layer::tar::TarError,
    tree::{EntryPath, ResolveError},
};

#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    #[error("the context {path} cannot be opened", path = path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{0} cannot be read")]
    Read(EntryPath, #[source] io::Error),
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error("{0} is not there any more")]
    Vanished(EntryPath),
    #[error("{path} is larger than {bytes_max} bytes")]
    TooLarge { path: EntryPath, bytes_max: u64 },
    #[error("{0} has a file capability that is malformed or belongs to a user namespace")]
    Capability(EntryPath),
    #[error("\"{}\" is no file name", .0.escape_ascii())]
    Name(Vec<u8>),
    #[error("the context's tar cannot be read")]
    TarStream(#[source] io::Error),
    #[error("the context's tar: {0}")]
    Tar(#[from] TarError),
    #[error("the context's tar: {name}: {what}")]
    TarMember { name: String, what: &'static str },
    #[error(transparent)]
    Ignore(#[from] IgnoreError),
    #[error("the contents of files cannot be read")]
    Contents(#[source] ContentsError),
}
