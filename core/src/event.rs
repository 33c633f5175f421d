//! What a build tells while it runs. Core prints nothing: a `Reporter` of the caller shows, stores or drops events.

use std::sync::Arc;

use crate::digest::Digest;

/// Names one vertex (a step, a pull, an export, a push) within one build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VertexId(pub u32);

/// What a vertex is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VertexKind {
    /// Something before the steps: loading the Dockerfile, resolving a base.
    Internal,
    /// An instruction of the Dockerfile.
    Step,
    /// Fetching a base's layers.
    Pull,
    /// Writing an output.
    Export,
    /// Uploading to a registry.
    Push,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputStream {
    Stdout,
    Stderr,
}

#[derive(Clone, Debug)]
pub enum Event {
    /// A vertex exists. `name` is what people read, such as `[build 2/4] RUN make`.
    VertexStarted {
        id: VertexId,
        kind: VertexKind,
        name: String,
        /// The Dockerfile's line, for steps.
        line: Option<u32>,
    },
    /// A step's output, raw bytes in order (not cut at lines, escape sequences in place).
    VertexOutput {
        id: VertexId,
        stream: OutputStream,
        bytes: Arc<[u8]>,
    },
    /// Bytes done of a transfer. `total` is 0 where not known.
    VertexProgress {
        id: VertexId,
        what: String,
        done: u64,
        total: u64,
    },
    VertexFinished {
        id: VertexId,
        result: VertexResult,
    },
    Warning(Warning),
    /// The build's result, once.
    Result {
        digest: Digest,
        bytes: u64,
    },
}

#[derive(Clone, Debug)]
pub enum VertexResult {
    Done {
        layer: Option<(Digest, u64)>,
    },
    Cached {
        layer: Option<(Digest, u64)>,
    },
    Failed {
        message: String,
    },
    /// Not run to its end because something else failed.
    Canceled,
}

/// Something the user should know that does not end the build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    pub message: String,
    /// The Dockerfile's name and line.
    pub location: Option<(String, u32)>,
    pub hint: Option<String>,
}

/// Takes a build's events. Called from several threads; must not block for long.
pub trait Reporter: Send + Sync {
    fn report(&self, event: Event);
}

/// Drops everything.
pub struct Silent;

impl Reporter for Silent {
    fn report(&self, _: Event) {}
}
