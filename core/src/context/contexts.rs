//! A build's contexts: the main one and the named ones that are directories, and the Dockerfile.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::Read,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use rustix::fs::{AtFlags, statat};
use sha2::{Digest as _, Sha256};

use crate::{
    digest::Digest,
    error::{Class, Error},
    layer::limits::ReadLimits,
    request::{BuildRequest, ContextSource, NamedContext},
    store::Store,
    tree::{Content, EntryPath},
};

use super::{
    ContextError, ContextTree, Ignore, SourceTree, Spool, find_ignore,
    hashes::{ContentHashes, Stamp},
    read_file,
};

const DOCKERFILE_BYTES_MAX: u64 = 16 << 20;
const READ_BYTES: usize = 1 << 20;

/// A context, and what is remembered of its files' contents.
#[derive(Debug)]
pub struct OpenContext {
    pub tree: ContextTree,
    hashes: Mutex<ContentHashes>,
}

/// All contexts of a build.
#[derive(Debug)]
pub struct Contexts {
    store: Store,
    main: Option<Arc<OpenContext>>,
    named: BTreeMap<String, Arc<OpenContext>>,
    dockerfile: (String, Vec<u8>),
    trees: tokio::sync::Mutex<HashMap<Option<String>, PathBuf>>,
}

impl Contexts {
    /// Opens the request's contexts and reads its Dockerfile and ignore files.
    ///
    /// # Errors
    /// Class `Input`, with what is missing.
    pub fn open(request: &BuildRequest, store: &Store) -> Result<Self, Error> {
        let raw = match &request.context {
            Some(source) => Some((open_main(source, store)?, place(source))),
            None => None,
        };
        let raw_tree = raw.as_ref().map(|(tree, _)| tree);
        let (name, bytes, beside) = find_dockerfile(request, raw_tree)?;
        let main = match raw {
            None => None,
            Some((tree, place)) => {
                let beside = beside.as_ref().map(|(tree, path)| (tree as &dyn SourceTree, path));
                let ignore = find_ignore(beside, &tree).map_err(input)?;
                Some(Arc::new(OpenContext::new(tree.with_ignore(ignore), store, &place)))
            }
        };
        let mut named = BTreeMap::new();
        for (name, context) in &request.build_contexts {
            if let NamedContext::Directory(path) = context {
                named.insert(name.clone(), Arc::new(open_named(path, store)?));
            }
        }
        let trees = tokio::sync::Mutex::default();
        Ok(Contexts { store: store.clone(), main, named, dockerfile: (name, bytes), trees })
    }

    /// The Dockerfile's name, as messages show it, and its bytes.
    pub fn dockerfile(&self) -> (&str, &[u8]) {
        (&self.dockerfile.0, &self.dockerfile.1)
    }

    /// The main context, or a named one.
    pub fn get(&self, name: Option<&str>) -> Result<Arc<OpenContext>, Error> {
        let found = match name {
            None => self.main.clone(),
            Some(name) => self.named.get(name).cloned(),
        };
        found.ok_or_else(|| Error::new(Class::Input, "this build has no context to copy from"))
    }

    /// Trees that were made of whole contexts, for mounts.
    pub fn trees(&self) -> &tokio::sync::Mutex<HashMap<Option<String>, PathBuf>> {
        &self.trees
    }

    /// Keeps the content hashes for the next build.
    pub fn save_hashes(&self) {
        for context in self.main.iter().chain(self.named.values()) {
            let mut hashes = context.hashes.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            hashes.save(&self.store);
        }
    }
}

impl OpenContext {
    fn new(tree: ContextTree, store: &Store, place: &[u8]) -> Self {
        OpenContext { tree, hashes: Mutex::new(ContentHashes::load(store, place)) }
    }

    /// The digest of a file's content, read only if this version of the file was not read before.
    pub fn digest(&self, content: &Content) -> std::io::Result<Digest> {
        let Some((path, stamp)) = stamp(content)? else { return read_digest(content) };
        let known = self.lock().get(path.as_bytes(), &stamp);
        if let Some(digest) = known {
            return Ok(digest);
        }
        let digest = read_digest(content)?;
        self.lock().put(path.as_bytes(), stamp, digest);
        Ok(digest)
    }

    /// The version of a file as it is now, to be given to `remember` when its content was read.
    pub fn stamp(&self, content: &Content) -> std::io::Result<Option<(EntryPath, Stamp)>> {
        stamp(content)
    }

    /// Remembers the digest of a content that was read after its stamp was taken.
    pub fn remember(&self, path: &EntryPath, stamp: Stamp, digest: Digest) {
        self.lock().put(path.as_bytes(), stamp, digest);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ContentHashes> {
        self.hashes.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn stamp(content: &Content) -> std::io::Result<Option<(EntryPath, Stamp)>> {
    let Content::Beneath { directory, path } = content else { return Ok(None) };
    let stat = statat(directory, path.as_bytes(), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(Some((path.clone(), Stamp::from(&stat))))
}

fn read_digest(content: &Content) -> std::io::Result<Digest> {
    let (mut reader, mut hasher) = (content.open()?, Sha256::new());
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(Digest::from_bytes(hasher.finalize().into())),
            got => hasher.update(&buffer[..got]),
        }
    }
}

fn open_main(source: &ContextSource, store: &Store) -> Result<ContextTree, Error> {
    let spool = || {
        let file = store.spool().map_err(|error| Error::from_cause(Class::Host, error));
        file.map(Spool::new)
    };
    match source {
        ContextSource::Directory(path) => ContextTree::open(path, Ignore::none()).map_err(input),
        ContextSource::TarFile(path) => {
            let file = File::open(path).map_err(|error| {
                Error::new(Class::Input, format!("the context {}: {error}", path.display()))
            })?;
            ContextTree::from_tar(file, ReadLimits::default(), &mut spool()?).map_err(input)
        }
        ContextSource::Stdin => {
            ContextTree::from_tar(std::io::stdin(), ReadLimits::default(), &mut spool()?)
                .map_err(input)
        }
    }
}

/// What the content hashes of a context are filed under.
fn place(source: &ContextSource) -> Vec<u8> {
    match source {
        ContextSource::Directory(path) => canonical(path),
        ContextSource::TarFile(_) | ContextSource::Stdin => Vec::new(),
    }
}

fn canonical(path: &Path) -> Vec<u8> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    path.as_os_str().as_bytes().to_vec()
}

fn open_named(path: &Path, store: &Store) -> Result<OpenContext, Error> {
    let tree = ContextTree::open(path, Ignore::none()).map_err(input)?;
    let ignore = find_ignore(None, &tree).map_err(input)?;
    Ok(OpenContext::new(tree.with_ignore(ignore), store, &canonical(path)))
}

type Beside = Option<(ContextTree, EntryPath)>;

/// The Dockerfile: `-f`, else `Dockerfile` or `dockerfile` in the context. With it, the tree and path that a specific
/// ignore file is looked for beside.
fn find_dockerfile(
    request: &BuildRequest,
    context: Option<&ContextTree>,
) -> Result<(String, Vec<u8>, Beside), Error> {
    if let Some(path) = &request.dockerfile {
        return read_dockerfile(path, context);
    }
    let context = context
        .ok_or_else(|| Error::new(Class::Input, "there is no Dockerfile: give one with -f"))?;
    for name in ["Dockerfile", "dockerfile"] {
        let path = EntryPath::root().child(name.as_bytes());
        if let Some(bytes) = read_file(context, &path, DOCKERFILE_BYTES_MAX).map_err(input)? {
            return Ok((name.to_owned(), bytes, Some((context.clone(), path))));
        }
    }
    let title = "the context has no Dockerfile";
    Err(Error::new(Class::Input, title).hint("name it with -f, or give another context"))
}

/// `Dockerfile` may be spelt `dockerfile`.
fn open_dockerfile(path: &Path) -> std::io::Result<File> {
    File::open(path).or_else(|error| match path.file_name() {
        Some(name) if name == "Dockerfile" => {
            File::open(path.with_file_name("dockerfile")).map_err(|_| error)
        }
        _ => Err(error),
    })
}

/// A Dockerfile of the machine; one that is not there may be a file of a tar context.
fn read_dockerfile(
    path: &Path,
    context: Option<&ContextTree>,
) -> Result<(String, Vec<u8>, Beside), Error> {
    let name = path.display().to_string();
    let failed = |what: String| Error::new(Class::Input, format!("the Dockerfile {name}: {what}"));
    let file = match open_dockerfile(path) {
        Ok(file) => file,
        Err(error) => {
            let inside = EntryPath::clean(path.as_os_str().as_bytes()).ok();
            let found = context.zip(inside).and_then(|(context, inside)| {
                let bytes = read_file(context, &inside, DOCKERFILE_BYTES_MAX).ok()??;
                Some((name.clone(), bytes, Some((context.clone(), inside))))
            });
            return found.ok_or_else(|| failed(error.to_string()));
        }
    };
    let mut bytes = Vec::new();
    file.take(DOCKERFILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| failed(error.to_string()))?;
    if bytes.len() as u64 > DOCKERFILE_BYTES_MAX {
        return Err(failed("it is larger than 16 MiB".into()));
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = ContextTree::open(parent.unwrap_or(Path::new(".")), Ignore::none());
    let beside = match (parent, path.file_name()) {
        (Ok(tree), Some(name)) if !path.starts_with("/dev") => {
            Some((tree, EntryPath::root().child(name.as_bytes())))
        }
        _ => None,
    };
    Ok((name, bytes, beside))
}

fn input(error: ContextError) -> Error {
    Error::from_cause(Class::Input, error)
}
