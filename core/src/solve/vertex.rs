//! One vertex of the log: begun, perhaps with output and progress, ended once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::{
    digest::Digest,
    error::Error,
    event::{Event, OutputStream, Reporter, VertexId, VertexKind, VertexResult},
};

/// A vertex that was begun. When the last clone is dropped without an end, it was canceled.
#[derive(Clone)]
pub struct Vertex(Arc<Inner>);

struct Inner {
    reporter: Arc<dyn Reporter>,
    id: VertexId,
    ended: AtomicBool,
}

impl Vertex {
    pub fn start(
        reporter: Arc<dyn Reporter>,
        id: u32,
        kind: VertexKind,
        name: String,
        line: Option<u32>,
    ) -> Self {
        let id = VertexId(id);
        reporter.report(Event::VertexStarted { id, kind, name, line });
        Vertex(Arc::new(Inner { reporter, id, ended: AtomicBool::new(false) }))
    }

    pub fn output(&self, stream: OutputStream, bytes: &[u8]) {
        let (id, bytes) = (self.0.id, bytes.into());
        self.0.reporter.report(Event::VertexOutput { id, stream, bytes });
    }

    /// Tells what is done and what there is to do, in bytes.
    pub fn report_progress(&self, what: String, done: u64, total: u64) {
        self.0.reporter.report(Event::VertexProgress { id: self.0.id, what, done, total });
    }

    pub fn cached(&self, layer: (Digest, u64)) {
        self.0.finish(VertexResult::Cached { layer: Some(layer) });
    }

    pub fn done(&self, layer: Option<(Digest, u64)>) {
        self.0.finish(VertexResult::Done { layer });
    }

    /// Ends the vertex as its work did.
    pub fn end<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        self.0.finish(match &result {
            Ok(_) => VertexResult::Done { layer: None },
            Err(error) => VertexResult::Failed { message: error.title().to_owned() },
        });
        result
    }
}

impl Inner {
    fn finish(&self, result: VertexResult) {
        if !self.ended.swap(true, Ordering::Relaxed) {
            self.reporter.report(Event::VertexFinished { id: self.id, result });
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.finish(VertexResult::Canceled);
    }
}
