//! What a caller asks for: everything that a build depends on and core does not look up itself (environment, home,
//! clock, proxies, credentials).

use std::{collections::BTreeMap, path::PathBuf};

use crate::{
    fetch::GitReference,
    image::{annotations::Annotations, platform::Platform},
    secret::Secret,
};

/// Where the build context comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContextSource {
    Directory(PathBuf),
    /// A tar file, plain or compressed.
    TarFile(PathBuf),
    /// Standard input: a tar, plain or compressed; what is no tar is a Dockerfile, and the context is empty then.
    Stdin,
    /// The tree of a commit.
    Git(Box<GitReference>),
    /// An http(s) URL of a tar, plain or compressed; what is no tar is a Dockerfile, and the context holds only that, as
    /// `context`.
    Url(Secret<String>),
}

/// A named context (`--build-context name=value`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedContext {
    Directory(PathBuf),
    /// `docker-image://reference`
    Image(String),
    /// `oci-layout://path[:tag][@digest]`
    Layout {
        path: PathBuf,
        tag: Option<String>,
        digest: Option<String>,
    },
    /// The tree of a commit.
    Git(Box<GitReference>),
    /// An http(s) URL: a tree with one file, `context`, which is not unpacked (as BuildKit has it).
    Url(Secret<String>),
}

/// Which stages do not use the cache.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum NoCache {
    #[default]
    Use,
    All,
    Stages(Vec<String>),
}

/// How new layers are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    Gzip { level: u8, members: bool },
    Zstd { level: u8 },
    Uncompressed,
}

impl Default for Compression {
    fn default() -> Self {
        Compression::Gzip { level: 6, members: false }
    }
}

/// Where the result goes. `-` as a tar's path is standard output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// `type=oci,dest=…,tar=false`: an OCI layout directory.
    OciDirectory(PathBuf),
    /// `type=oci,dest=…`: an OCI layout in a tar.
    OciTar(PathBuf),
    /// `type=docker,dest=…,tar=false`: an OCI layout directory that is what `docker save` writes, too.
    DockerDirectory(PathBuf),
    /// `type=docker,dest=…`: the same in a tar, for `docker load`.
    DockerTar(PathBuf),
    /// `type=tar,dest=…`: the root file system in a tar.
    FilesTar { path: PathBuf, split: PlatformSplit },
    /// `type=local,dest=…`: the root file system, merged into a directory.
    FilesDirectory {
        path: PathBuf,
        split: PlatformSplit,
        /// `mode=delete`: what the directory has and the image has not is deleted.
        delete: bool,
    },
    /// `type=image,push=true,name=…`, `type=registry` or `--push`.
    Registry {
        /// Empty: the request's tags.
        names: Vec<String>,
        /// `push-by-digest`: under the digest and no tag; names hold none then.
        by_digest: bool,
        /// `name-canonical`: the result's names are told with their digest, too.
        canonical: bool,
    },
}

impl Output {
    /// The file or directory that is written, where it is one; `-` is standard output.
    pub fn path_mut(&mut self) -> Option<&mut PathBuf> {
        match self {
            Output::OciDirectory(path)
            | Output::OciTar(path)
            | Output::DockerDirectory(path)
            | Output::DockerTar(path)
            | Output::FilesTar { path, .. }
            | Output::FilesDirectory { path, .. } => Some(path),
            Output::Registry { .. } => None,
        }
    }
}

/// `platform-split`: whether each platform's files get a folder of their own, `linux_arm64` or the like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PlatformSplit {
    /// Where the build is for several.
    #[default]
    Auto,
    Always,
    Never,
}

/// How an image's documents and layers are written. One build makes one image, whatever the number of its outputs.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ImageOptions {
    /// Inherited layers of another compression are compressed anew.
    pub force_compression: bool,
    /// Docker's media types instead of OCI's.
    pub docker_media_types: bool,
    pub annotations: Annotations,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SandboxChoice {
    #[default]
    Auto,
    Overlay,
    Swap,
    /// RUN is refused.
    None,
}

/// A build. `Default` is a build of nothing with nothing; the shell fills it.
#[derive(Clone, Debug, Default)]
pub struct BuildRequest {
    pub context: Option<ContextSource>,
    /// `-f`; relative paths are relative to the caller's working directory, for contexts from standard input, Git and
    /// URLs to the context. `None`: `Dockerfile` in the context.
    pub dockerfile: Option<PathBuf>,
    pub build_contexts: BTreeMap<String, NamedContext>,
    pub target: Option<String>,
    /// In order, later wins.
    pub build_args: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    pub image: ImageOptions,
    pub tags: Vec<String>,
    /// Empty: the host's.
    pub platforms: Vec<Platform>,
    pub no_cache: NoCache,
    /// Ask the registry even where a tag's digest is remembered.
    pub pull: bool,
    pub outputs: Vec<Output>,
    pub compression: Compression,
    /// `--network`: `default`, `none` or `host`.
    pub network: Option<String>,
    /// `--allow network.host`: RUN --network=host may be executed.
    pub allow_host_network: bool,
    /// `--allow security.insecure`: RUN --security=insecure may be executed.
    pub allow_insecure: bool,
    /// `--add-host`: name and address.
    pub add_hosts: Vec<(String, String)>,
    /// `--shm-size` in bytes.
    pub shm_bytes: Option<u64>,
    /// `--ulimit`: name, soft, hard.
    pub ulimits: Vec<(String, i64, i64)>,
    pub secrets: BTreeMap<String, SecretSource>,
    /// `--ssh`, by id. Git over ssh uses `default`.
    pub ssh: BTreeMap<String, SshSource>,
    /// SOURCE_DATE_EPOCH in seconds: from a build arg, else from the environment.
    pub source_date_epoch: Option<i64>,
    pub state_directory: PathBuf,
    /// RUN steps at once, compression workers. At least 1.
    pub jobs: usize,
    pub sandbox: SandboxChoice,
    /// Look for faults before anything is pulled or executed.
    pub preflight: bool,
}

/// Where a secret's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    File(PathBuf),
    Value(Secret<Vec<u8>>),
}

/// What signs for ssh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SshSource {
    /// The socket of a running agent.
    Agent(PathBuf),
    /// Files of private keys without a passphrase.
    Keys(Vec<PathBuf>),
}
