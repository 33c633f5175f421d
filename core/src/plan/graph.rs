//! What the planner makes: stages with their steps, every word expanded, nothing executed.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use crate::{
    digest::Digest,
    dockerfile::{ast::Span, mount::Mount},
    fetch::GitReference,
    image::{History, ImageConfig, platform::Platform},
};

use super::environment::Environment;

/// Where an image that the build reads comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ImageSource {
    /// A reference as written.
    Registry(String),
    /// `oci-layout://`
    Layout { path: PathBuf, tag: Option<String>, digest: Option<String> },
}

/// One image that the build reads, for one platform.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageUse {
    pub source: ImageSource,
    pub platform: Platform,
}

impl fmt::Display for ImageUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            ImageSource::Registry(reference) => f.write_str(reference),
            ImageSource::Layout { path, .. } => write!(f, "oci-layout://{}", path.display()),
        }
    }
}

/// What a stage starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    Scratch,
    Image(ImageUse),
    Stage(usize),
    /// A named context that is a directory: one layer with all that is in it.
    Context(String),
}

/// A tree that COPY or a mount reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeSource {
    /// The build context, or a named one.
    Context(Option<String>),
    Stage(usize),
    Image(ImageUse),
    Empty,
}

/// The stages that the target needs, by their index in the Dockerfile.
#[derive(Clone, Debug)]
pub struct BuildGraph {
    pub stages: BTreeMap<usize, PlannedStage>,
    pub target: usize,
    /// The target's: `created` and `rootfs` are filled when the layers are known. The base image's history comes first.
    pub config: ImageConfig,
    /// How many entries of that history are the base image's, not this build's.
    pub inherited_history: usize,
    /// SOURCE_DATE_EPOCH, where a global ARG of the Dockerfile gives it.
    pub source_date_epoch: Option<i64>,
}

#[derive(Clone, Debug)]
pub struct PlannedStage {
    pub index: usize,
    /// The name after AS, or `stage-N`.
    pub name: String,
    pub base: Base,
    pub base_span: Span,
    /// Those of the base's triggers first.
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug)]
pub struct Step {
    pub span: Span,
    /// The instruction as people read it, on one line.
    pub title: String,
    pub op: Op,
    /// The entry that this step makes in the image's history.
    pub history: Option<History>,
}

#[derive(Clone, Debug)]
pub enum Op {
    /// Changes the configuration only.
    Metadata,
    Run(Box<RunOp>),
    Copy(Box<CopyOp>),
    Workdir(WorkdirOp),
}

impl Op {
    pub fn makes_layer(&self) -> bool {
        !matches!(self, Op::Metadata)
    }

    /// The trees that the step reads besides its own.
    pub fn sources(&self) -> Vec<&TreeSource> {
        match self {
            Op::Metadata | Op::Workdir(_) => Vec::new(),
            Op::Copy(copy) => copy.reads_tree().then_some(&copy.from).into_iter().collect(),
            Op::Run(run) => run.mounts.iter().filter_map(|mount| mount.from.as_ref()).collect(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    Default,
    None,
    Host,
}

#[derive(Clone, Debug)]
pub struct RunOp {
    pub argv: Vec<String>,
    /// Without proxies and HOME.
    pub environment: Environment,
    /// Proxy variables: seen by the step, in no history and no cache key.
    pub proxies: Vec<(String, String)>,
    /// `None` where neither the image nor a WORKDIR says one.
    pub working_directory: String,
    /// As USER says; empty: root.
    pub user: String,
    pub mounts: Vec<PlannedMount>,
    pub network: Network,
    /// All capabilities, no seccomp filter, nothing masked.
    pub insecure: bool,
    /// A here-document that begins with `#!`: its name and text, executed as /dev/pipes/NAME.
    pub script: Option<(String, String)>,
    pub host_name: Option<String>,
}

#[derive(Clone, Debug)]
pub struct PlannedMount {
    pub mount: Mount,
    /// Of a bind or cache mount.
    pub from: Option<TreeSource>,
}

#[derive(Clone, Debug)]
pub enum CopySource {
    /// A path or wildcard.
    Path(String),
    /// A here-document.
    File {
        name: String,
        content: String,
    },
    /// ADD of a file on the network.
    Url {
        url: String,
        checksum: Option<Digest>,
    },
    Git(Box<GitReference>),
}

#[derive(Clone, Debug)]
pub struct CopyOp {
    pub add: bool,
    pub from: TreeSource,
    pub sources: Vec<CopySource>,
    pub destination: String,
    pub working_directory: String,
    pub chown: Option<String>,
    pub chmod: Option<String>,
    pub link: bool,
    pub parents: bool,
    pub exclude: Vec<String>,
    pub unpack: Option<bool>,
}

impl CopyOp {
    /// Whether anything is taken from the tree: here-documents and what is on the network are not.
    pub fn reads_tree(&self) -> bool {
        self.sources.iter().any(|source| matches!(source, CopySource::Path(_)))
    }
}

#[derive(Clone, Debug)]
pub struct WorkdirOp {
    pub path: String,
    pub user: String,
}
