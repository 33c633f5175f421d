//! ADD from the network: files by URL, trees by Git.
//!
//! What a source is now is found out first (a URL's bytes, a repository's commit), because it is part of the step's key;
//! a repository is only checked out if no record has that key.

use crate::{
    cache::KeyBuilder,
    context::{ContextTree, Ignore, MemoryTree, RemoteFile, SourceTree},
    digest::Digest,
    error::{Class, Error},
    execute::copy::{Source, SourcePath},
    fetch::{FetchError, GitReference, HttpRequest, ResolvedCommit},
    plan::{CopyOp, CopySource},
    tree::{Content, EntryPath},
};

use super::{Solver, layers::host, mounts::secret_values};

/// A source of ADD as it is now.
pub enum Remote {
    File { tree: MemoryTree, path: EntryPath, digest: Digest, mtime: i64 },
    Git { reference: GitReference, commit: ResolvedCommit },
}

/// A remote source, ready to be copied from.
pub struct RemoteTree {
    tree: Box<dyn SourceTree + Send + Sync>,
    path: SourcePath,
    may_unpack: bool,
}

impl RemoteTree {
    pub fn source(&self) -> Source<'_> {
        let tree: &dyn SourceTree = &*self.tree;
        Source { tree, path: self.path.clone(), may_unpack: self.may_unpack }
    }
}

/// Adds what the sources are now to a step's key.
pub fn key_of(remotes: &[Remote], key: KeyBuilder) -> KeyBuilder {
    remotes.iter().fold(key, |key, remote| match remote {
        Remote::File { digest, mtime, .. } => {
            key.bytes("file", digest.as_bytes()).bytes("mtime", &mtime.to_be_bytes())
        }
        Remote::Git { commit, .. } => {
            let name = commit.name.as_deref();
            key.text("commit", commit.commit())
                .optional("name", name)
                .text("object", &commit.object)
        }
    })
}

/// What of a Git source its text says, for the key of the instruction.
pub fn git_key(reference: &GitReference, key: KeyBuilder) -> KeyBuilder {
    let flag = |value: Option<bool>| value.map(|value| if value { "yes" } else { "no" });
    key.text("git", &reference.remote.url)
        .optional("reference", reference.reference.as_deref())
        .bytes("folder", reference.subdirectory.as_bytes())
        .optional("checksum", reference.checksum.as_ref().map(|checksum| checksum.as_str()))
        .optional("keep-git-dir", flag(reference.keep_git_dir))
        .optional("submodules", flag(reference.submodules))
        .text("mtime", &format!("{:?}", reference.mtime))
}

impl Solver {
    /// Finds out what the remote sources of an ADD are now, in their order.
    pub async fn look_at_remotes(&self, op: &CopyOp) -> Result<Vec<Remote>, Error> {
        let secrets = secret_values(self.request())?;
        let lookup = |id: &str| secrets.get(id).cloned();
        let mut remotes = Vec::new();
        for source in &op.sources {
            match source {
                CopySource::Url { url, checksum } => {
                    let request = HttpRequest { url, checksum: *checksum, secrets: &lookup };
                    remotes.push(self.download(request).await?);
                }
                CopySource::Git(reference) => {
                    let commit = self.parts.git.resolve(reference, &lookup).await;
                    let commit = commit.map_err(FetchError::into_error)?;
                    remotes.push(Remote::Git { reference: (**reference).clone(), commit });
                }
                CopySource::Path(_) | CopySource::File { .. } => {}
            }
        }
        Ok(remotes)
    }

    async fn download(&self, request: HttpRequest<'_>) -> Result<Remote, Error> {
        let spool = self.parts.store.spool().map_err(host)?;
        let downloaded = self.parts.http.download(request, spool).await;
        let file = downloaded.map_err(FetchError::into_error)?;
        let path = EntryPath::clean(&file.name).map_err(input)?;
        let (digest, mtime) = (file.digest, file.mtime.seconds);
        let content = Content::Slice { file: file.file, offset: 0, length: file.length };
        let tree = MemoryTree::remote(RemoteFile {
            name: file.name,
            size: file.length,
            content,
            mtime: file.mtime,
            digest: Some(digest),
        });
        Ok(Remote::File { tree: tree.map_err(input)?, path, digest, mtime })
    }

    /// Makes the remote sources trees; repositories are checked out now.
    pub async fn open_remotes(
        &self,
        op: &CopyOp,
        remotes: Vec<Remote>,
    ) -> Result<Vec<RemoteTree>, Error> {
        let secrets = secret_values(self.request())?;
        let lookup = |id: &str| secrets.get(id).cloned();
        let mut trees = Vec::new();
        for remote in remotes {
            trees.push(match remote {
                Remote::File { tree, path, .. } => RemoteTree {
                    tree: Box::new(tree),
                    path: SourcePath::Url(path),
                    may_unpack: op.unpack.unwrap_or(false),
                },
                Remote::Git { reference, commit } => {
                    let work = self.parts.store.work_directory("git-").map_err(host)?;
                    let checkout = self.parts.git.checkout(&reference, &commit, &lookup, &work);
                    let checkout = checkout.await.map_err(FetchError::into_error)?;
                    let tree = ContextTree::open(&checkout.directory, Ignore::none());
                    RemoteTree {
                        tree: Box::new(tree.map_err(input)?),
                        path: SourcePath::Literal(EntryPath::root()),
                        may_unpack: false,
                    }
                }
            });
        }
        Ok(trees)
    }
}

pub fn input(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::from_cause(Class::Input, error)
}
