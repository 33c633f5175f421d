//! What a step is to run with.

use std::{ffi::OsString, fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::wire;

/// BuildKit's host name of a step.
pub const DEFAULT_HOST_NAME: &str = "buildkitsandbox";

/// Docker's size of /dev/shm.
pub const DEFAULT_SHM_BYTES: u64 = 64 * 1024 * 1024;

/// Where a step's files are, which says how it is executed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum StepRoot {
    Overlay(OverlayRoot),
    Swap(SwapRoot),
}

/// A step in namespaces of its own, on an overlay.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OverlayRoot {
    /// Unpacked layers, the topmost first; none for FROM scratch. Absolute. The mode, owner and time of the topmost
    /// one's root become those of `/`.
    #[serde(with = "wire::list")]
    pub lowers: Vec<PathBuf>,
    /// A fresh, empty directory, which holds the step's changes afterwards (overlayfs's form: whiteouts are character
    /// devices 0:0, opaque directories have `trusted.overlay.opaque`). Absolute, on anything but overlayfs.
    #[serde(with = "wire::bytes")]
    pub upper: PathBuf,
    /// A fresh, empty directory on the same file system as `upper`.
    #[serde(with = "wire::bytes")]
    pub work: PathBuf,
    /// An empty directory of this step alone; it is covered in the step's mount namespace and stays empty. Not an
    /// ancestor of any other path in here.
    #[serde(with = "wire::bytes")]
    pub scratch: PathBuf,
}

/// A step at the container's own root, where the stage's files are for its time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SwapRoot {
    /// The directory directly below `/` that holds the stages' trees, the container's own files during a step, and the
    /// journals. Absolute, as seen from the container's root.
    #[serde(with = "wire::bytes")]
    pub side: PathBuf,
    /// The stage's tree, relative to `side`. It is the step's `/`, and has its changes afterwards.
    #[serde(with = "wire::bytes")]
    pub tree: PathBuf,
    /// Lines for /etc/hosts, for the time of the step.
    #[serde(with = "wire::bytes")]
    pub added_hosts: Vec<u8>,
    /// Mounts that stay where they are unless the stage has files there: other processes of the job use them. Absolute.
    #[serde(with = "wire::list")]
    pub owned: Vec<PathBuf>,
    /// How many bytes of the container's own image may be copied, once, so that its directories can be renamed.
    pub delayer_bytes_max: u64,
}

impl From<OverlayRoot> for StepRoot {
    fn from(root: OverlayRoot) -> Self {
        StepRoot::Overlay(root)
    }
}

impl From<SwapRoot> for StepRoot {
    fn from(root: SwapRoot) -> Self {
        StepRoot::Swap(root)
    }
}

/// One RUN: its file system, its process and its surroundings. Everything is as given: nothing is added to the
/// environment, and no path but those of the image is looked up in the image.
#[derive(Clone, Serialize, Deserialize)]
pub struct StepSpec {
    pub root: StepRoot,
    /// The command with its arguments. A first argument without `/` is looked up on the PATH of `environment`.
    #[serde(with = "wire::list")]
    pub arguments: Vec<OsString>,
    /// `NAME=value`, in order.
    #[serde(with = "wire::list")]
    pub environment: Vec<OsString>,
    /// A directory of the image, which exists.
    #[serde(with = "wire::bytes")]
    pub working_directory: PathBuf,
    pub user: StepUser,
    /// On the swap rung it is the container's, and so are the network files there.
    pub host_name: String,
    /// The bytes of /etc/resolv.conf.
    #[serde(with = "wire::bytes")]
    pub resolv_conf: Vec<u8>,
    /// The bytes of /etc/hosts.
    #[serde(with = "wire::bytes")]
    pub hosts: Vec<u8>,
    /// Mounted with the outermost target first, whatever their order.
    pub mounts: Vec<StepMount>,
    pub network: StepNetwork,
    /// RUN --security=insecure: all capabilities, no seccomp filter, nothing masked or read-only in /proc and /sys.
    pub insecure: bool,
    /// The size of /dev/shm.
    pub shm_bytes: u64,
    pub ulimits: Vec<Ulimit>,
    /// Where a new /proc is refused: the builder's own is bound, and its PID namespace shared.
    pub share_processes: bool,
}

impl StepSpec {
    /// A step of root with Docker's surroundings, no network files, no mounts and an empty environment.
    pub fn new(root: impl Into<StepRoot>) -> Self {
        StepSpec {
            root: root.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            working_directory: PathBuf::from("/"),
            user: StepUser::default(),
            host_name: DEFAULT_HOST_NAME.to_owned(),
            resolv_conf: Vec::new(),
            hosts: Vec::new(),
            mounts: Vec::new(),
            network: StepNetwork::Builder,
            insecure: false,
            shm_bytes: DEFAULT_SHM_BYTES,
            ulimits: Vec::new(),
            share_processes: false,
        }
    }
}

/// The environment may hold secrets, so it is not shown.
impl fmt::Debug for StepSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepSpec")
            .field("arguments", &self.arguments)
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

/// Numbers from the stage's own passwd and group files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepUser {
    pub uid: u32,
    pub gid: u32,
    /// All supplementary groups.
    pub groups: Vec<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepNetwork {
    /// The builder's own network namespace.
    Builder,
    /// A new one with only the loopback device, up.
    None,
}

/// A limit of setrlimit(2); -1 is unlimited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// Docker's name, such as `nofile`.
    pub name: String,
    pub soft: i64,
    pub hard: i64,
}

/// A mount of `RUN --mount`. What is missing of the target's path is made for the step and removed afterwards.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepMount {
    /// Absolute, in the image; links on the way are followed inside the image. `/` and what is below /proc are refused.
    #[serde(with = "wire::bytes")]
    pub target: PathBuf,
    pub source: MountSource,
}

#[derive(Clone, Serialize, Deserialize)]
pub enum MountSource {
    /// The directory or file `path` inside `root`, as it is (a cache, a context). Links in `path` stay inside `root`.
    Bind {
        #[serde(with = "wire::bytes")]
        root: PathBuf,
        #[serde(with = "wire::bytes")]
        path: PathBuf,
        writable: bool,
    },
    /// The directory or file `path` inside the tree of unpacked layers, the topmost first (a stage, an image, or the
    /// one directory of a context). Read-only, or with `discard` writable: what is written is lost.
    Tree {
        #[serde(with = "wire::list")]
        lowers: Vec<PathBuf>,
        #[serde(with = "wire::bytes")]
        path: PathBuf,
        discard: Option<Discard>,
    },
    /// A directory or file of this step alone (swap rung), below the side directory and on its mount: a copy of what is
    /// to be seen, whose changes are lost. The caller deletes it.
    Prepared {
        #[serde(with = "wire::bytes")]
        path: PathBuf,
        /// Changes are not prevented, but told.
        read_only: bool,
    },
    /// An empty, writable directory in memory.
    Tmpfs { bytes_max: Option<u64>, mode: u32, uid: u32, gid: u32 },
    /// A read-only file in memory, such as a secret.
    File {
        #[serde(with = "wire::bytes")]
        content: Vec<u8>,
        mode: u32,
        uid: u32,
        gid: u32,
    },
}

/// Where a writable tree's writes go: two fresh directories on one file system that is not overlayfs. The caller
/// deletes them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Discard {
    #[serde(with = "wire::bytes")]
    pub upper: PathBuf,
    #[serde(with = "wire::bytes")]
    pub work: PathBuf,
}

/// Contents are not shown: they are secrets.
impl fmt::Debug for MountSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MountSource::Bind { root, path, writable } => {
                write!(f, "Bind({root:?}, {path:?}, writable: {writable})")
            }
            MountSource::Tree { lowers, path, discard } => {
                write!(f, "Tree({lowers:?}, {path:?}, writable: {})", discard.is_some())
            }
            MountSource::Prepared { path, read_only } => {
                write!(f, "Prepared({path:?}, read only: {read_only})")
            }
            MountSource::Tmpfs { bytes_max, .. } => write!(f, "Tmpfs({bytes_max:?})"),
            MountSource::File { content, .. } => write!(f, "File({} bytes)", content.len()),
        }
    }
}
