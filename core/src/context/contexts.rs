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
    ContextError, ContextTree, Ignore, MemoryTree, SourceTree, Spool, find_ignore,
    hashes::{ContentHashes, Stamp},
    is_archive, read_file,
};

const DOCKERFILE_BYTES_MAX: u64 = 16 << 20;
const READ_BYTES: usize = 1 << 20;
/// By which it is known whether a stream is a tar: its first block.
const HEAD_BYTES: u64 = 512;
/// The name of a file that is a context, as BuildKit names it.
pub const FETCHED_FILE: &[u8] = b"context";

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
    named: Mutex<BTreeMap<String, Arc<OpenContext>>>,
    dockerfile: (String, Vec<u8>),
    trees: tokio::sync::Mutex<HashMap<Option<String>, PathBuf>>,
}

/// The main context where it lies elsewhere, fetched.
#[derive(Debug)]
pub struct FetchedContext {
    pub tree: ContextTree,
    /// Where the context is one file that is no archive: its name for messages. It is the Dockerfile.
    pub dockerfile: Option<String>,
}

/// The main context, before its ignore file.
struct Main {
    tree: ContextTree,
    /// What its content hashes are filed under; `None` where its files are new for each build.
    filed: Option<Vec<u8>>,
    /// Whether an ignore file counts: it does not for what BuildKit's client would upload or fetch as a whole.
    ignores: bool,
    dockerfile: Place,
}

/// Where the Dockerfile is.
enum Place {
    /// `-f` names a file of the machine, or else one of the context.
    Machine,
    /// `-f` names a file of the context.
    Context,
    /// The context is it: its name for messages, and its bytes.
    Given(String, Vec<u8>),
}

impl Contexts {
    /// Opens the request's contexts and reads its Dockerfile and ignore files. `fetched` is the main context where it is
    /// a remote one.
    ///
    /// # Errors
    /// Class `Input`, with what is missing.
    pub fn open(
        request: &BuildRequest,
        store: &Store,
        fetched: Option<FetchedContext>,
    ) -> Result<Self, Error> {
        let main = match &request.context {
            Some(source) => Some(open_main(source, store, fetched)?),
            None => None,
        };
        let (name, bytes, beside) = find_dockerfile(request, main.as_ref())?;
        let main = match main {
            None => None,
            Some(main) => Some(Arc::new(main.with_ignore(beside.as_ref(), store)?)),
        };
        let mut named = BTreeMap::new();
        for (name, context) in &request.build_contexts {
            if let NamedContext::Directory(path) = context {
                named.insert(name.clone(), Arc::new(open_named(path, store)?));
            }
        }
        let trees = tokio::sync::Mutex::default();
        let named = Mutex::new(named);
        Ok(Contexts { store: store.clone(), main, named, dockerfile: (name, bytes), trees })
    }

    /// Adds named contexts that were fetched. No ignore file counts for them.
    pub fn add_named(&self, fetched: Vec<(String, ContextTree)>) {
        let mut named = self.named();
        for (name, tree) in fetched {
            named.insert(name, Arc::new(OpenContext::unfiled(tree)));
        }
    }

    /// Whether a named context is there already.
    pub fn has(&self, name: &str) -> bool {
        self.named().contains_key(name)
    }

    fn named(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<OpenContext>>> {
        self.named.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The Dockerfile's name, as messages show it, and its bytes.
    pub fn dockerfile(&self) -> (&str, &[u8]) {
        (&self.dockerfile.0, &self.dockerfile.1)
    }

    /// The main context, or a named one.
    pub fn get(&self, name: Option<&str>) -> Result<Arc<OpenContext>, Error> {
        let found = match name {
            None => self.main.clone(),
            Some(name) => self.named().get(name).cloned(),
        };
        found.ok_or_else(|| Error::new(Class::Input, "this build has no context to copy from"))
    }

    /// Trees that were made of whole contexts, for mounts.
    pub fn trees(&self) -> &tokio::sync::Mutex<HashMap<Option<String>, PathBuf>> {
        &self.trees
    }

    /// Keeps the content hashes for the next build.
    pub fn save_hashes(&self) {
        for context in self.main.iter().chain(self.named().values()) {
            let mut hashes = context.hashes.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            hashes.save(&self.store);
        }
    }
}

impl OpenContext {
    fn new(tree: ContextTree, store: &Store, place: &[u8]) -> Self {
        OpenContext { tree, hashes: Mutex::new(ContentHashes::load(store, place)) }
    }

    fn unfiled(tree: ContextTree) -> Self {
        OpenContext { tree, hashes: Mutex::new(ContentHashes::forgetful()) }
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

impl Main {
    fn with_ignore(
        self,
        beside: Option<&FoundBeside>,
        store: &Store,
    ) -> Result<OpenContext, Error> {
        let tree = match self.ignores {
            true => {
                let beside = beside.map(|(tree, path)| (tree as &dyn SourceTree, path));
                let ignore = find_ignore(beside, &self.tree).map_err(input)?;
                self.tree.with_ignore(ignore)
            }
            false => self.tree,
        };
        Ok(match self.filed {
            Some(place) => OpenContext::new(tree, store, &place),
            None => OpenContext::unfiled(tree),
        })
    }
}

fn open_main(
    source: &ContextSource,
    store: &Store,
    fetched: Option<FetchedContext>,
) -> Result<Main, Error> {
    let local = |tree, filed| Main { tree, filed, ignores: true, dockerfile: Place::Machine };
    match source {
        ContextSource::Directory(path) => {
            let tree = ContextTree::open(path, Ignore::none()).map_err(input)?;
            Ok(local(tree, Some(canonical(path))))
        }
        ContextSource::TarFile(path) => {
            let file = File::open(path).map_err(|error| {
                Error::new(Class::Input, format!("the context {}: {error}", path.display()))
            })?;
            Ok(local(from_tar(file, store)?, None))
        }
        ContextSource::Stdin => open_stream(std::io::stdin(), store),
        ContextSource::Git(_) | ContextSource::Url(_) => {
            let fetched =
                fetched.ok_or_else(|| Error::new(Class::Bug, "the context was not fetched"))?;
            open_fetched(fetched)
        }
    }
}

fn from_tar(reader: impl Read + Send, store: &Store) -> Result<ContextTree, Error> {
    let spool = store.spool().map_err(|error| Error::from_cause(Class::Host, error))?;
    ContextTree::from_tar(reader, ReadLimits::default(), &mut Spool::new(spool)).map_err(input)
}

/// A tar, or a Dockerfile without a context.
fn open_stream(mut stream: impl Read + Send, store: &Store) -> Result<Main, Error> {
    let failed = |error| Error::new(Class::Input, format!("standard input: {error}"));
    let mut head = Vec::new();
    stream.by_ref().take(HEAD_BYTES).read_to_end(&mut head).map_err(failed)?;
    let is_tar = is_archive(&head);
    let all = std::io::Cursor::new(head).chain(stream);
    let (tree, dockerfile) = match is_tar {
        true => (from_tar(all, store)?, Place::Context),
        false => {
            let name = "Dockerfile".to_owned();
            let bytes = read_whole(all, &name)?;
            (ContextTree::from_memory(MemoryTree::default()), Place::Given(name, bytes))
        }
    };
    Ok(Main { tree, filed: None, ignores: false, dockerfile })
}

fn open_fetched(fetched: FetchedContext) -> Result<Main, Error> {
    let tree = fetched.tree;
    let dockerfile = match fetched.dockerfile {
        None => Place::Context,
        Some(name) => {
            let path = EntryPath::root().child(FETCHED_FILE);
            let bytes = read_file(&tree, &path, DOCKERFILE_BYTES_MAX).map_err(input)?;
            Place::Given(name, bytes.unwrap_or_default())
        }
    };
    Ok(Main { tree, filed: None, ignores: false, dockerfile })
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

type FoundBeside = (ContextTree, EntryPath);
type Beside = Option<FoundBeside>;

/// The Dockerfile: the context itself, `-f`, else `Dockerfile` or `dockerfile` in the context. With it, the tree and path
/// that a specific ignore file is looked for beside.
fn find_dockerfile(
    request: &BuildRequest,
    main: Option<&Main>,
) -> Result<(String, Vec<u8>, Beside), Error> {
    let tree = main.map(|main| &main.tree);
    // Standard input and other descriptors are never the context's.
    let on_machine = |path: &Path| path.starts_with("/dev");
    match (main.map(|main| &main.dockerfile), &request.dockerfile) {
        (Some(Place::Given(name, bytes)), None) => Ok((name.clone(), bytes.clone(), None)),
        (Some(Place::Given(name, _)), Some(path)) if !on_machine(path) => {
            let title =
                format!("two Dockerfiles: the context, {name}, is one, and -f names another");
            Err(Error::new(Class::Usage, title)
                .hint("leave out -f, or give a context that is a tar"))
        }
        (Some(Place::Context), Some(path)) if !on_machine(path) => {
            let name = path.display().to_string();
            read_inside(path, tree)
                .ok_or_else(|| Error::new(Class::Input, format!("the context has no file {name}")))
        }
        (_, Some(path)) => read_dockerfile(path, tree),
        (_, None) => default_dockerfile(tree),
    }
}

fn default_dockerfile(context: Option<&ContextTree>) -> Result<(String, Vec<u8>, Beside), Error> {
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

/// A Dockerfile of the context, `None` where there is none that can be read.
fn read_inside(path: &Path, context: Option<&ContextTree>) -> Option<(String, Vec<u8>, Beside)> {
    let inside = EntryPath::clean(path.as_os_str().as_bytes()).ok()?;
    let context = context?;
    let bytes = read_file(context, &inside, DOCKERFILE_BYTES_MAX).ok()??;
    Some((path.display().to_string(), bytes, Some((context.clone(), inside))))
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

fn read_whole(reader: impl Read, name: &str) -> Result<Vec<u8>, Error> {
    let failed = |what: String| Error::new(Class::Input, format!("the Dockerfile {name}: {what}"));
    let mut bytes = Vec::new();
    reader
        .take(DOCKERFILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| failed(error.to_string()))?;
    match bytes.len() as u64 > DOCKERFILE_BYTES_MAX {
        true => Err(failed("it is larger than 16 MiB".into())),
        false => Ok(bytes),
    }
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
            return read_inside(path, context).ok_or_else(|| failed(error.to_string()));
        }
    };
    let bytes = read_whole(file, &name)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::RemoteFile;

    fn store(folder: &Path) -> Store {
        Store::open(&folder.join("state"), "boot".into()).unwrap()
    }

    fn with_dockerfile(path: Option<&str>) -> BuildRequest {
        BuildRequest { dockerfile: path.map(PathBuf::from), ..BuildRequest::default() }
    }

    fn fetched(name: &[u8], text: &str, dockerfile: Option<&str>) -> Main {
        let tree = MemoryTree::remote(RemoteFile {
            name: name.to_vec(),
            size: text.len() as u64,
            content: Content::Bytes(text.as_bytes().into()),
            mtime: Default::default(),
            digest: None,
        });
        let tree = ContextTree::from_memory(tree.unwrap());
        open_fetched(FetchedContext { tree, dockerfile: dockerfile.map(str::to_owned) }).unwrap()
    }

    fn found(main: &Main, path: Option<&str>) -> Result<(String, Vec<u8>), Error> {
        find_dockerfile(&with_dockerfile(path), Some(main)).map(|(name, bytes, _)| (name, bytes))
    }

    #[test]
    fn a_stream_is_a_dockerfile_or_a_tar() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let main = open_stream(&b"FROM scratch\n"[..], &store).unwrap();
        assert_eq!(found(&main, None).unwrap().1, b"FROM scratch\n");
        assert!(main.tree.children(&EntryPath::root()).unwrap().is_empty());
        assert_eq!(found(&main, Some("D")).unwrap_err().class(), Class::Usage);
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(3);
        header.set_mode(0o644);
        for name in ["Dockerfile", "dir/Other"] {
            archive.append_data(&mut header, name, &b"abc"[..]).unwrap();
        }
        let main = open_stream(&archive.into_inner().unwrap()[..], &store).unwrap();
        assert!(!main.ignores && main.filed.is_none());
        assert_eq!(found(&main, None).unwrap(), ("Dockerfile".into(), b"abc".to_vec()));
        assert_eq!(found(&main, Some("dir/Other")).unwrap().0, "dir/Other");
        // A file that the machine has, and the context does not.
        assert_eq!(found(&main, Some("/etc/passwd")).unwrap_err().class(), Class::Input);
        let long = std::io::repeat(b'#');
        assert!(open_stream(long, &store).err().unwrap().title().contains("16 MiB"));
    }

    #[test]
    fn a_fetched_file_is_the_dockerfile() {
        let main = fetched(FETCHED_FILE, "FROM a\n", Some("http://h/D"));
        assert_eq!(found(&main, None).unwrap(), ("http://h/D".into(), b"FROM a\n".to_vec()));
        assert_eq!(found(&main, Some("x")).unwrap_err().class(), Class::Usage);
        // -f - reads standard input.
        assert_eq!(found(&main, Some("/dev/null")).unwrap().1, b"");
        let main = fetched(b"dockerfile", "FROM b\n", None);
        assert_eq!(found(&main, None).unwrap().0, "dockerfile");
        assert_eq!(found(&main, Some("./dockerfile")).unwrap().1, b"FROM b\n");
    }

    #[test]
    fn what_was_fetched_is_kept_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let contexts = Contexts::open(
            &BuildRequest {
                context: Some(ContextSource::Directory(folder.path().into())),
                dockerfile: Some("/dev/null".into()),
                ..BuildRequest::default()
            },
            &store(folder.path()),
            None,
        );
        let contexts = contexts.unwrap();
        assert!(!contexts.has("a") && contexts.get(Some("a")).is_err());
        contexts.add_named(vec![("a".into(), ContextTree::from_memory(MemoryTree::default()))]);
        assert!(contexts.has("a") && contexts.get(Some("a")).is_ok());
    }
}
