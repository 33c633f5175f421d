//! Executing COPY, ADD and WORKDIR: on indexes, with contents by reference.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    sync::Arc,
};

use crate::{
    cache::{CacheKey, KeyBuilder},
    context::{
        ContentsError, ContextError, MemoryTree, OpenContext, SnapshotContents, SourceTree, Spool,
        StageTree, Stamp,
    },
    digest::Digest,
    error::{Class, Error},
    execute::{
        add::{AddError, Unpacking, add},
        copy::{CopyError, CopyRequest, Selected, Source, SourcePath, copy, select},
        users::{Parent, RunUser, UserError, run_user},
        workdir::{WorkdirError, workdir},
    },
    layer::{LayerError, WrittenLayer, limits::ReadLimits},
    plan::{CopyOp, CopySource, RunOp, TreeSource, WorkdirOp},
    resolve::LayerRef,
    rootfs,
    tree::{Change, Changeset, Content, EntryPath, LastLink, Row, Snapshot},
};

use super::{
    Solver, StageResult, blocking,
    keys::{StepKey, content_key, is_remote},
    layers::host,
    remote::{self, Remote, RemoteTree},
    stage::{Executed, Outcome},
};

/// The tree that sources of a COPY are taken from, ready to be read.
enum OpenTree {
    Context(Arc<OpenContext>),
    Stage { snapshot: Snapshot, contents: LayerContents },
}

/// Finds contents of a chain's files: in its unpacked trees, else extracted from its blobs.
struct LayerContents {
    solver: Solver,
    layers: Vec<LayerRef>,
    runtime: tokio::runtime::Handle,
}

impl SnapshotContents for LayerContents {
    fn contents(&self, wanted: &[(usize, &Row)]) -> Result<Vec<Content>, ContentsError> {
        let mut by_layer: BTreeMap<usize, BTreeSet<EntryPath>> = BTreeMap::new();
        for (layer, row) in wanted {
            by_layer.entry(*layer).or_default().insert(row.path.clone());
        }
        let mut found: HashMap<(usize, EntryPath), Content> = HashMap::new();
        for (layer, paths) in by_layer {
            for (path, content) in self.of_layer(layer, paths)? {
                found.insert((layer, path), content);
            }
        }
        let content = |(layer, row): &(usize, &Row)| {
            let content = found.get(&(*layer, row.path.clone())).cloned();
            content.ok_or_else(|| ContextError::Vanished(row.path.clone()).into())
        };
        wanted.iter().map(content).collect()
    }
}

impl LayerContents {
    fn of_layer(
        &self,
        layer: usize,
        paths: BTreeSet<EntryPath>,
    ) -> Result<Vec<(EntryPath, Content)>, ContentsError> {
        if let Some(tree) = self.solver.layers.existing_tree(&self.layers, layer) {
            let directory = Arc::new(File::open(tree)?.into());
            let beneath = |path: EntryPath| {
                (path.clone(), Content::Beneath { directory: Arc::clone(&directory), path })
            };
            return Ok(paths.into_iter().map(beneath).collect());
        }
        let extract = self.solver.layers.extract(&self.layers[layer], paths);
        let (spool, places) = self.runtime.block_on(extract)?;
        let slice = |(path, (offset, length))| {
            (path, Content::Slice { file: spool.clone(), offset, length })
        };
        Ok(places.into_iter().map(slice).collect())
    }
}

impl OpenTree {
    fn with<T>(&self, work: impl FnOnce(&dyn SourceTree) -> T) -> T {
        match self {
            OpenTree::Context(context) => work(&context.tree),
            OpenTree::Stage { snapshot, contents } => work(&StageTree { snapshot, contents }),
        }
    }
}

/// What a COPY gave: its changes, and its content's digest where the sources were read for it.
struct Copied {
    changeset: Changeset,
    /// The context's files in the changes, with the versions that will be read.
    stamps: Vec<(EntryPath, Stamp)>,
}

impl Solver {
    pub async fn execute_copy(
        &self,
        op: &CopyOp,
        key: &StepKey,
        below: &StageResult,
    ) -> Result<Executed, Error> {
        let tree = Arc::new(self.open_tree(&op.from).await?);
        let request = self.copy_request(op);
        let (remotes, own) = match is_remote(op) {
            false => (Vec::new(), None),
            true => {
                let remotes = self.look_at_remotes(op).await?;
                let own = self.remote_key(op, key, &tree, &remotes).await?;
                if let Some(record) = self.known(key, own) {
                    return Ok(Executed { layer: Outcome::Known(Box::new(record)), key: own });
                }
                (self.open_remotes(op, remotes).await?, own)
            }
        };
        let parent = self.layers.snapshot(&below.layers).await?;
        let contents = self.contents_of(&below.layers);
        let known = key.key.is_some();
        let spool = self.parts.store.spool().map_err(host)?;
        let (op_, request_, tree_) = (op.clone(), request.clone(), tree.clone());
        let copied = blocking(move || {
            let parent = Parent { snapshot: &parent, contents: &contents };
            run_copy(&op_, &request_, &tree_, &remotes, &parent, known, spool)
        });
        let Copied { changeset, stamps } = copied.await??;
        let changeset = Arc::new(changeset);
        let layer = self.write(changeset.clone()).await?;
        let OpenTree::Context(context) = &*tree else { return Ok(Executed::written(layer, own)) };
        remember(context, &changeset, &layer, stamps);
        let Some(prefix) = key.prefix.filter(|_| !known && own.is_none()) else {
            return Ok(Executed::written(layer, own));
        };
        let (context, op) = (context.clone(), op.clone());
        let content = blocking(move || content_of(&context, &op, &request)).await??;
        Ok(Executed::written(layer, Some(content_key(prefix, &content))))
    }

    /// The key of an ADD from the network, now that it is known what its sources are.
    async fn remote_key(
        &self,
        op: &CopyOp,
        key: &StepKey,
        tree: &Arc<OpenTree>,
        remotes: &[Remote],
    ) -> Result<Option<CacheKey>, Error> {
        let (Some(prefix), OpenTree::Context(context)) = (key.prefix, &**tree) else {
            return Ok(None);
        };
        let (context, op) = (context.clone(), op.clone());
        let content = blocking(move || content_for_key(&context, &op)).await??;
        let key = KeyBuilder::new("remote").key("prefix", &prefix);
        let key = key.bytes("content", content.as_bytes());
        Ok(Some(remote::key_of(remotes, key).finish()))
    }

    /// The record of a key that is known only now, unless the cache is not to be used.
    fn known(&self, key: &StepKey, own: Option<CacheKey>) -> Option<crate::cache::Record> {
        let (prefix, own) = (key.prefix?, own?);
        match key.uncached {
            false => crate::cache::lookup(&self.parts.store, &prefix, &own),
            true => None,
        }
    }

    pub async fn execute_workdir(
        &self,
        op: &WorkdirOp,
        below: &StageResult,
    ) -> Result<Executed, Error> {
        let snapshot = self.layers.snapshot(&below.layers).await?;
        let contents = self.contents_of(&below.layers);
        let (created, op) = (self.clock.mtime(), op.clone());
        let changeset = blocking(move || {
            let parent = Parent { snapshot: &snapshot, contents: &contents };
            let path = EntryPath::clean(op.path.as_bytes()).map_err(input)?;
            workdir(&parent, &path, Some(&op.user), created).map_err(workdir_failed)
        });
        let changeset = changeset.await??.unwrap_or_default();
        Ok(Executed::written(self.write(Arc::new(changeset)).await?, None))
    }

    /// The changes that make a working directory, owned by root, where it is missing.
    pub async fn working_directory(
        &self,
        path: &str,
        layers: &[LayerRef],
        snapshot: &Snapshot,
    ) -> Result<Changeset, Error> {
        let contents = self.contents_of(layers);
        let (created, snapshot) = (self.clock.mtime(), snapshot.clone());
        let path = EntryPath::clean(path.as_bytes()).map_err(input)?;
        let made = blocking(move || {
            let parent = Parent { snapshot: &snapshot, contents: &contents };
            workdir(&parent, &path, None, created).map_err(workdir_failed)
        });
        Ok(made.await??.unwrap_or_default())
    }

    /// The user that a RUN is executed as.
    pub async fn run_user(
        &self,
        run: &RunOp,
        layers: &[LayerRef],
        snapshot: &Snapshot,
    ) -> Result<RunUser, Error> {
        let contents = self.contents_of(layers);
        let (user, snapshot) = (run.user.clone(), snapshot.clone());
        let found = blocking(move || {
            let parent = Parent { snapshot: &snapshot, contents: &contents };
            let (passwd, group) = (parent.passwd()?, parent.group()?);
            run_user(&user, passwd.as_deref(), group.as_deref())
        });
        found.await?.map_err(user_failed)
    }

    fn contents_of(&self, layers: &[LayerRef]) -> LayerContents {
        let runtime = tokio::runtime::Handle::current();
        LayerContents { solver: self.clone(), layers: layers.to_vec(), runtime }
    }

    async fn open_tree(&self, source: &TreeSource) -> Result<OpenTree, Error> {
        let layers = match source {
            TreeSource::Context(name) => {
                return Ok(OpenTree::Context(self.parts.contexts.get(name.as_deref())?));
            }
            TreeSource::Empty => Vec::new(),
            TreeSource::Stage(index) => self.stage(*index).await?.layers.clone(),
            TreeSource::Image(image) => self.parts.images[image].layers.clone(),
        };
        let snapshot = self.layers.snapshot(&layers).await?;
        Ok(OpenTree::Stage { snapshot, contents: self.contents_of(&layers) })
    }

    fn copy_request(&self, op: &CopyOp) -> CopyRequest {
        copy_request(op, self.clock.mtime())
    }

    /// What lies below `path` in a tree, as changes on nothing.
    pub async fn subtree(&self, source: &TreeSource, path: &str) -> Result<Changeset, Error> {
        self.subtree_at(source, SourcePath::Pattern(path.to_owned())).await
    }

    async fn subtree_at(&self, source: &TreeSource, path: SourcePath) -> Result<Changeset, Error> {
        let tree = self.open_tree(source).await?;
        let created = self.clock.mtime();
        let empty = self.contents_of(&[]);
        let copied = blocking(move || {
            let request = CopyRequest {
                destination: "/".into(),
                working_directory: "/".into(),
                created,
                ..CopyRequest::default()
            };
            let snapshot = Snapshot::default();
            let parent = Parent { snapshot: &snapshot, contents: &empty };
            tree.with(|tree| {
                let source = Source { tree, path, may_unpack: false };
                copy(&parent, &select(&[source], &request)?, &request)
            })
        });
        copied.await?.map_err(copy_failed)
    }

    /// What a bind mount of `path` shows, as changes on nothing; and the name of the file, where it is one.
    pub async fn shown(
        &self,
        source: &TreeSource,
        path: &str,
    ) -> Result<(Changeset, Option<Vec<u8>>), Error> {
        let tree = self.open_tree(source).await?;
        let wanted = EntryPath::clean(path.as_bytes()).map_err(input)?;
        let named = tree.with(|tree| {
            let real = crate::context::resolve(tree, &wanted, LastLink::Follow)?;
            Ok::<_, ContextError>((tree.lookup(&real)?, real))
        });
        let (node, real) = named.map_err(input)?;
        let file = node.filter(|node| !node.kind.is_directory()).map(|_| real.file_name().to_vec());
        Ok((self.subtree_at(source, SourcePath::Literal(real)).await?, file))
    }

    /// A whole context as a layer, for FROM of a named context.
    pub async fn context_layer(&self, name: &str) -> Result<LayerRef, Error> {
        let source = TreeSource::Context(Some(name.to_owned()));
        let changeset = self.subtree(&source, "/").await?;
        let layer = self.write(Arc::new(changeset)).await?;
        self.layers.remember(layer.diff_id, layer.index)?;
        Ok(LayerRef {
            descriptor: layer.descriptor,
            diff_id: layer.diff_id,
            origin: None,
            place: None,
        })
    }

    /// A whole context as a directory, for mounts; made once a build.
    pub async fn context_tree(&self, name: Option<&str>) -> Result<std::path::PathBuf, Error> {
        let mut trees = self.parts.contexts.trees().lock().await;
        let key = name.map(str::to_owned);
        if let Some(tree) = trees.get(&key) {
            return Ok(tree.clone());
        }
        let changeset = self.subtree(&TreeSource::Context(key.clone()), "/").await?;
        let tree = self.parts.store.work_directory("context-").map_err(host)?;
        let handle = File::open(&tree).map_err(host)?.into();
        blocking(move || rootfs::apply_changeset(handle, &changeset, None)).await?.map_err(host)?;
        trees.insert(key, tree.clone());
        Ok(tree)
    }
}

pub fn copy_request(op: &CopyOp, created: crate::tree::Timestamp) -> CopyRequest {
    CopyRequest {
        destination: op.destination.clone(),
        working_directory: op.working_directory.clone(),
        chown: op.chown.clone(),
        chmod: op.chmod.clone(),
        link: op.link,
        parents: op.parents,
        exclude: op.exclude.clone(),
        created,
    }
}

/// Here-documents as trees of one file each, in the order of the sources.
fn heredocs(op: &CopyOp, request: &CopyRequest) -> Result<Vec<MemoryTree>, Error> {
    let files = op.sources.iter().filter_map(|source| match source {
        CopySource::File { name, content } => Some((name, content)),
        _ => None,
    });
    let tree = |(name, content): (&String, &String)| {
        MemoryTree::heredoc(name.as_bytes(), content.as_bytes(), request.created).map_err(input)
    };
    files.map(tree).collect()
}

/// The sources of a COPY or ADD as the copier takes them.
fn sources<'a>(
    op: &CopyOp,
    tree: &'a dyn SourceTree,
    heredocs: &'a [MemoryTree],
    remotes: &'a [RemoteTree],
) -> Result<Vec<Source<'a>>, Error> {
    let (mut heredocs, mut remotes) = (heredocs.iter(), remotes.iter());
    let unpack = op.add && op.unpack.unwrap_or(true);
    let mut found = Vec::new();
    for source in &op.sources {
        found.push(match source {
            CopySource::Path(path) => {
                let path = SourcePath::Pattern(path.clone());
                Source { tree, path, may_unpack: unpack }
            }
            CopySource::File { name, .. } => {
                let Some(tree) = heredocs.next() else { continue };
                let path = EntryPath::clean(name.as_bytes()).map_err(input)?;
                Source { tree, path: SourcePath::Literal(path), may_unpack: false }
            }
            CopySource::Url { .. } | CopySource::Git(_) => match remotes.next() {
                Some(remote) => remote.source(),
                None => continue,
            },
        });
    }
    Ok(found)
}

fn run_copy(
    op: &CopyOp,
    request: &CopyRequest,
    tree: &OpenTree,
    remotes: &[RemoteTree],
    parent: &Parent<'_>,
    known: bool,
    spool: File,
) -> Result<Copied, Error> {
    let heredocs = heredocs(op, request)?;
    tree.with(|source_tree| {
        let sources = sources(op, source_tree, &heredocs, remotes)?;
        let mut selected = select(&sources, request).map_err(copy_failed)?;
        if let (true, OpenTree::Context(context)) = (known, tree) {
            digest(&mut selected, context)?;
        }
        let changeset = match op.add {
            false => copy(parent, &selected, request).map_err(copy_failed)?,
            true => {
                let mut spool = Spool::new(spool);
                let limits = ReadLimits::default();
                let mut unpacking = Unpacking { spool: &mut spool, limits };
                add(parent, &selected, request, &mut unpacking).map_err(add_failed)?
            }
        };
        let stamps = match tree {
            OpenTree::Context(context) => stamps(context, &changeset),
            OpenTree::Stage { .. } => Vec::new(),
        };
        Ok(Copied { changeset, stamps })
    })
}

/// Digests what is selected of a context, reading only files that changed since they were last read.
fn digest(selected: &mut Selected<'_>, context: &OpenContext) -> Result<(), Error> {
    selected
        .digest_files(&mut |_, contents| {
            contents.iter().map(|content| context.digest(content)).collect()
        })
        .map_err(copy_failed)
}

/// The digest of all that a COPY or ADD takes from its context.
pub fn content_of(
    context: &OpenContext,
    op: &CopyOp,
    request: &CopyRequest,
) -> Result<Digest, Error> {
    let heredocs = heredocs(op, request)?;
    let sources = sources(op, &context.tree, &heredocs, &[])?;
    content_digest(context, &sources, request)
}

fn content_digest(
    context: &OpenContext,
    sources: &[Source<'_>],
    request: &CopyRequest,
) -> Result<Digest, Error> {
    let mut selected = select(sources, request).map_err(copy_failed)?;
    digest(&mut selected, context)?;
    let mut key = KeyBuilder::new("selection");
    selected.hash_into(request, &mut |bytes| key.raw(bytes)).map_err(host)?;
    Ok(*key.finish().digest())
}

/// The content key of one path of a context, for mounts and FROM.
pub fn context_key(context: &OpenContext, path: &str) -> Result<CacheKey, Error> {
    let request = CopyRequest {
        destination: "/".into(),
        working_directory: "/".into(),
        ..CopyRequest::default()
    };
    let path = SourcePath::Pattern(path.to_owned());
    let source = Source { tree: &context.tree, path, may_unpack: false };
    let content = content_digest(context, &[source], &request)?;
    Ok(KeyBuilder::new("context").bytes("content", content.as_bytes()).finish())
}

/// For `keys`: the content of a COPY, whose made directories' time is no part of it.
pub fn content_for_key(context: &OpenContext, op: &CopyOp) -> Result<Digest, Error> {
    content_of(context, op, &copy_request(op, crate::tree::Timestamp::default()))
}

fn stamps(context: &OpenContext, changeset: &Changeset) -> Vec<(EntryPath, Stamp)> {
    let contents = changeset.changes().iter().filter_map(|change| change.content.as_ref());
    contents.filter_map(|content| context.stamp(content).ok().flatten()).collect()
}

/// Keeps the digests that writing the layer gave, so that the context is not read again for them.
fn remember(
    context: &OpenContext,
    changeset: &Changeset,
    layer: &WrittenLayer,
    stamps: Vec<(EntryPath, Stamp)>,
) {
    let mut digests: HashMap<&EntryPath, Digest> = HashMap::new();
    let beneath = |change: &Change| match &change.content {
        Some(Content::Beneath { .. }) => layer.index.get(&change.path)?.digest,
        _ => None,
    };
    for change in changeset.changes() {
        if let (Some(digest), Some(Content::Beneath { path, .. })) =
            (beneath(change), &change.content)
        {
            digests.insert(path, digest);
        }
    }
    for (path, stamp) in stamps {
        if let Some(digest) = digests.get(&path) {
            context.remember(&path, stamp, *digest);
        }
    }
}

fn input(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::from_cause(Class::Input, error)
}

/// Errors of the builder that travelled through a source tree come out as they went in.
pub fn copy_failed(error: CopyError) -> Error {
    match error {
        CopyError::Source(ContextError::Contents(error))
        | CopyError::Owner { source: UserError::Contents(_, error), .. } => contents_failed(error),
        other => input(other),
    }
}

fn add_failed(error: AddError) -> Error {
    match error {
        AddError::Copy(error) => copy_failed(error),
        other => input(other),
    }
}

fn workdir_failed(error: WorkdirError) -> Error {
    match error {
        WorkdirError::User { source: UserError::Contents(_, error), .. } => contents_failed(error),
        other => input(other),
    }
}

fn user_failed(error: UserError) -> Error {
    match error {
        UserError::Contents(_, error) => contents_failed(error),
        other => Error::from_cause(Class::Step, other),
    }
}

fn contents_failed(error: ContentsError) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => *error,
        Err(error) => Error::new(Class::Source, error.to_string()),
    }
}

/// An error of writing a layer: what changed under us is the context's fault, all else this host's.
pub fn changed(error: LayerError) -> Error {
    let class = match error {
        LayerError::Changed { .. } | LayerError::Content { .. } => Class::Input,
        LayerError::Capability { .. } => Class::Step,
        _ => Class::Host,
    };
    Error::from_cause(class, error)
}
