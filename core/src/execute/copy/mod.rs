//! COPY on the tree index (rules.md section 2): no tree on disk, no privilege, no base bytes.

mod chmod;
mod key;
mod place;
mod select;

use std::io;

use crate::{
    context::{ContextError, PatternError, SourceTree},
    tree::{Changeset, Content, EntryPath, ResolveError, Snapshot, Timestamp},
};

pub use chmod::{Chmod, ChmodError};
pub use key::{DigestFiles, SelectedFile};
pub(super) use place::Placement;
pub use select::{Selected, SelectedEntry, SelectedSource, check_named, select};

use super::{
    target::{Origin, Target},
    users::{Parent, UserError},
};

/// A source of COPY or ADD: a tree, and what of it.
#[derive(Clone)]
pub struct Source<'a> {
    pub tree: &'a dyn SourceTree,
    pub path: SourcePath,
    /// Whether ADD unpacks it if it is an archive: by default what comes from the build context, with `--unpack` what
    /// that says of files of the context and of URLs. COPY never does.
    pub may_unpack: bool,
}

/// What of a tree is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourcePath {
    /// A path or wildcard as the Dockerfile has it, words expanded.
    Pattern(String),
    /// The file that a URL gave, in a tree of its own.
    Url(EntryPath),
    /// A here-document's file or a Git tree's root: no wildcard, no `--parents`.
    Literal(EntryPath),
}

/// The flags and the destination of a COPY or ADD, all words expanded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyRequest {
    pub destination: String,
    /// WORKDIR, absolute.
    pub working_directory: String,
    pub chown: Option<String>,
    pub chmod: Option<String>,
    pub link: bool,
    pub parents: bool,
    pub exclude: Vec<String>,
    /// The mtime of what has no source.
    pub created: Timestamp,
}

#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("{0} not found")]
    NotFound(EntryPath),
    #[error("cannot replace the directory {0} with a file")]
    FileOverDirectory(EntryPath),
    #[error("cannot copy a directory over {0}, which is none")]
    DirectoryOverFile(EntryPath),
    #[error("{0:?} is a malformed wildcard")]
    Wildcard(String),
    #[error("--exclude: {0}")]
    Exclude(PatternError),
    #[error("--parents: {0}")]
    Parents(PatternError),
    #[error(
        "--link takes numbers in --chown, not the names in {0:?}: there is no image to look them up in"
    )]
    NamedOwnerWithLink(String),
    #[error(transparent)]
    Chmod(#[from] ChmodError),
    #[error("--chown={spec}: {source}")]
    Owner { spec: String, source: UserError },
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error(transparent)]
    Source(ContextError),
    #[error("a source cannot be digested")]
    Digest(#[source] io::Error),
}

/// What a COPY adds to its parent. An empty selection changes nothing.
pub fn copy(
    parent: &Parent<'_>,
    selected: &Selected<'_>,
    request: &CopyRequest,
) -> Result<Changeset, CopyError> {
    let empty = Snapshot::default();
    let mut placement = Placement::new(parent, &empty, request)?;
    for source in &selected.sources {
        placement.place(source)?;
    }
    finish(placement.into_target(), parent, selected)
}

/// Turns the working tree into a changeset, with the contents of all its files.
pub(super) fn finish<E: From<CopyError>>(
    target: Target<'_>,
    parent: &Parent<'_>,
    selected: &Selected<'_>,
) -> Result<Changeset, E> {
    target.finish(|origins| {
        let contents = fetch_origins(origins, parent, &selected.trees);
        Ok(contents.map_err(CopyError::from)?)
    })
}

/// One content for each origin; each tree, and the parent, is asked once.
fn fetch_origins(
    origins: &[&Origin],
    parent: &Parent<'_>,
    trees: &[&dyn SourceTree],
) -> Result<Vec<Content>, ContextError> {
    let (mut wanted, mut rows) = (Vec::new(), Vec::new());
    for origin in origins {
        match origin {
            Origin::Source { tree, path } => wanted.push((*tree, path.clone())),
            Origin::Parent { layer, row } => rows.push((*layer, &**row)),
            Origin::Ready(_) => {}
        }
    }
    let mut from_trees = fetch_contents(trees, &wanted)?.into_iter();
    let from_parent = match rows.is_empty() {
        true => Vec::new(),
        false => parent.contents.contents(&rows).map_err(ContextError::Contents)?,
    };
    let mut from_parent = from_parent.into_iter();
    let content = |origin: &&Origin| match origin {
        Origin::Source { path, .. } => {
            from_trees.next().ok_or_else(|| ContextError::Vanished(path.clone()))
        }
        Origin::Parent { row, .. } => {
            from_parent.next().ok_or_else(|| ContextError::Vanished(row.path.clone()))
        }
        Origin::Ready(content) => Ok(content.clone()),
    };
    origins.iter().map(content).collect()
}

/// Contents of files of several trees, in the order of `wanted`.
fn fetch_contents(
    trees: &[&dyn SourceTree],
    wanted: &[(usize, EntryPath)],
) -> Result<Vec<Content>, ContextError> {
    let mut contents: Vec<Option<Content>> = vec![None; wanted.len()];
    for (number, tree) in trees.iter().enumerate() {
        let places = wanted.iter().enumerate().filter(|(_, (of, _))| *of == number);
        let (places, paths): (Vec<usize>, Vec<EntryPath>) =
            places.map(|(at, (_, path))| (at, path.clone())).unzip();
        if paths.is_empty() {
            continue;
        }
        for (at, content) in places.into_iter().zip(tree.contents(&paths)?) {
            contents[at] = Some(content);
        }
    }
    let found = contents.into_iter().zip(wanted);
    found
        .map(|(found, (_, path))| found.ok_or_else(|| ContextError::Vanished(path.clone())))
        .collect()
}

#[cfg(test)]
mod tests;
