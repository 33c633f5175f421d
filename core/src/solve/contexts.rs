//! Contexts that lie elsewhere: by Git, or by a URL. The main one is fetched before anything is planned, because the
//! Dockerfile is in it; a named one only if a stage reads it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use futures_util::future::try_join_all;

use crate::{
    context::{
        ContextTree, Contexts, FETCHED_FILE, FetchedContext, Ignore, MemoryTree, RemoteFile, Spool,
        is_archive,
    },
    error::Error,
    event::{Reporter, VertexKind},
    fetch::{Download, FetchError, Git, GitReference, HttpClient, HttpRequest, without_password},
    layer::limits::ReadLimits,
    plan::{Base, BuildGraph, TreeSource},
    request::{BuildRequest, ContextSource, NamedContext},
    secret::Secret,
    store::Store,
};

use super::{Vertex, blocking, layers::host, mounts::secret_values, remote::input};

const HEAD_BYTES: u64 = 512;

/// What contexts are fetched with.
pub struct ContextFetcher {
    pub http: HttpClient,
    pub git: Git,
    pub store: Store,
    pub reporter: Arc<dyn Reporter>,
    pub next_vertex: Arc<AtomicU32>,
}

type Secrets = BTreeMap<String, Secret<Vec<u8>>>;

impl ContextFetcher {
    /// The main context, where it is a remote one.
    ///
    /// # Errors
    /// It can't be had, or is no tree.
    pub async fn main(&self, request: &BuildRequest) -> Result<Option<FetchedContext>, Error> {
        match &request.context {
            Some(ContextSource::Git(reference)) => {
                let name = format!("[internal] load git source {}", shown_git(reference));
                let reference = kept_git_dir(reference, request);
                let work = self.checkout(&reference, request);
                let tree = self.told(name, work).await?;
                Ok(Some(FetchedContext { tree, dockerfile: None }))
            }
            Some(ContextSource::Url(url)) => {
                let name = "[internal] load remote build context".to_owned();
                self.told(name, self.context_of_url(url, request)).await.map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The remote named contexts that the graph reads, but for those that `contexts` has.
    ///
    /// # Errors
    /// As [`ContextFetcher::main`].
    pub async fn named(
        &self,
        request: &BuildRequest,
        graph: &BuildGraph,
        contexts: &Contexts,
    ) -> Result<Vec<(String, ContextTree)>, Error> {
        let used = used_contexts(graph);
        let wanted = request.build_contexts.iter().filter(|(name, context)| {
            let remote = matches!(context, NamedContext::Git(_) | NamedContext::Url(_));
            remote && used.contains(name.as_str()) && !contexts.has(name)
        });
        let fetched = wanted.map(|(name, context)| async move {
            Ok::<_, Error>((name.clone(), self.named_one(name, context, request).await?))
        });
        try_join_all(fetched).await
    }

    async fn named_one(
        &self,
        name: &str,
        context: &NamedContext,
        request: &BuildRequest,
    ) -> Result<ContextTree, Error> {
        let told = |what: String| format!("[context {name}] {what}");
        match context {
            NamedContext::Git(reference) => {
                let vertex = told(format!("load git source {}", shown_git(reference)));
                self.told(vertex, self.checkout(reference, request)).await
            }
            NamedContext::Url(url) => {
                let vertex = told(without_password(url.expose()));
                let tree = async { file_tree(self.download(url, request).await?) };
                self.told(vertex, tree).await
            }
            _ => Err(Error::new(crate::Class::Bug, format!("context {name} is not remote"))),
        }
    }

    /// Does the work as a vertex of the log.
    async fn told<T>(
        &self,
        name: String,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let id = self.next_vertex.fetch_add(1, Ordering::Relaxed);
        let vertex = Vertex::start(self.reporter.clone(), id, VertexKind::Internal, name, None);
        vertex.end(work.await)
    }

    async fn checkout(
        &self,
        reference: &GitReference,
        request: &BuildRequest,
    ) -> Result<ContextTree, Error> {
        let secrets = secret_values(request)?;
        let lookup = lookup(&secrets);
        let commit = self.git.resolve(reference, &lookup).await.map_err(FetchError::into_error)?;
        let work = self.store.work_directory("git-").map_err(host)?;
        let checkout = self.git.checkout(reference, &commit, &lookup, &work).await;
        let directory = checkout.map_err(FetchError::into_error)?.directory;
        ContextTree::open(&directory, Ignore::none()).map_err(input)
    }

    /// A tar's members, or the one file.
    async fn context_of_url(
        &self,
        url: &Secret<String>,
        request: &BuildRequest,
    ) -> Result<FetchedContext, Error> {
        let file = self.download(url, request).await?;
        let spool = self.store.spool().map_err(host)?;
        let (name, content) = (without_query(&without_password(url.expose())), content(&file));
        let opened = blocking(move || {
            let open = || content.open().map_err(host);
            let mut head = Vec::new();
            open()?.take(HEAD_BYTES).read_to_end(&mut head).map_err(host)?;
            if !is_archive(&head) {
                return Ok(None);
            }
            let limits = ReadLimits::default();
            let tree = ContextTree::from_tar(open()?, limits, &mut Spool::new(spool));
            tree.map(Some).map_err(|error| input(error).context(&name))
        });
        match opened.await?? {
            Some(tree) => Ok(FetchedContext { tree, dockerfile: None }),
            None => {
                let name = without_query(&without_password(url.expose()));
                Ok(FetchedContext { tree: file_tree(file)?, dockerfile: Some(name) })
            }
        }
    }

    async fn download(
        &self,
        url: &Secret<String>,
        request: &BuildRequest,
    ) -> Result<Download, Error> {
        let secrets = secret_values(request)?;
        let lookup = lookup(&secrets);
        let request = HttpRequest { url: url.expose(), checksum: None, secrets: &lookup };
        let spool = self.store.spool().map_err(host)?;
        self.http.download(request, spool).await.map_err(FetchError::into_error)
    }
}

fn lookup(secrets: &Secrets) -> impl Fn(&str) -> Option<Secret<Vec<u8>>> + Send + Sync + '_ {
    |id| secrets.get(id).cloned()
}

fn content(file: &Download) -> crate::tree::Content {
    crate::tree::Content::Slice { file: file.file.clone(), offset: 0, length: file.length }
}

/// A downloaded file as the only one of a tree.
fn file_tree(file: Download) -> Result<ContextTree, Error> {
    let tree = MemoryTree::remote(RemoteFile {
        name: FETCHED_FILE.to_vec(),
        size: file.length,
        content: content(&file),
        mtime: file.mtime,
        digest: Some(file.digest),
    });
    tree.map(ContextTree::from_memory).map_err(input)
}

/// The build argument for a `.git` in the main context.
fn kept_git_dir(reference: &GitReference, request: &BuildRequest) -> GitReference {
    let mut reference = reference.clone();
    let asked = request.build_args.get("BUILDKIT_CONTEXT_KEEP_GIT_DIR");
    if asked.is_some_and(|value| matches!(&**value, "1" | "t" | "T" | "true" | "TRUE" | "True")) {
        reference.keep_git_dir = Some(true);
    }
    reference
}

fn shown_git(reference: &GitReference) -> String {
    let name = reference.reference.as_deref().map(|name| format!("#{name}")).unwrap_or_default();
    let folder = reference.subdirectory.to_string();
    let folder = match folder.trim_start_matches('/') {
        "" => String::new(),
        folder => format!("{}:{folder}", if name.is_empty() { "#" } else { "" }),
    };
    format!("{}{name}{folder}", reference.remote)
}

/// What follows a `?` may be a signature that gives access.
fn without_query(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or_default().to_owned()
}

/// The named contexts that any stage reads.
fn used_contexts(graph: &BuildGraph) -> BTreeSet<&str> {
    let mut used = BTreeSet::new();
    for stage in graph.stages.values() {
        if let Base::Context(name) = &stage.base {
            used.insert(name.as_str());
        }
        for source in stage.steps.iter().flat_map(|step| step.op.sources()) {
            if let TreeSource::Context(Some(name)) = source {
                used.insert(name.as_str());
            }
        }
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::git_reference::parse;

    fn reference(text: &str) -> GitReference {
        parse(text).unwrap().unwrap()
    }

    #[test]
    fn repositories_and_urls_are_shown_without_what_gives_access() {
        for (text, shown) in [
            ("https://u:p@h/x.git#v1:a/b", "https://h/x.git#v1:a/b"),
            ("https://h/x.git#:a", "https://h/x.git#:a"),
            ("git@h:x", "git@h:x"),
        ] {
            assert_eq!(shown_git(&reference(text)), shown);
        }
        assert_eq!(without_query("https://h/x?sig=1#y"), "https://h/x");
    }

    #[test]
    fn the_git_directory_is_asked_for_by_argument_or_url() {
        let request = |value: &str| BuildRequest {
            build_args: [("BUILDKIT_CONTEXT_KEEP_GIT_DIR".into(), value.into())].into(),
            ..BuildRequest::default()
        };
        let plain = reference("git@h:x");
        assert_eq!(kept_git_dir(&plain, &request("1")).keep_git_dir, Some(true));
        assert_eq!(kept_git_dir(&plain, &request("0")).keep_git_dir, None);
        let kept = reference("https://h/x.git?keep-git-dir=1");
        assert_eq!(kept_git_dir(&kept, &request("false")).keep_git_dir, Some(true));
    }
}
