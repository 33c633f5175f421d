//! One vertex of the log: begun, perhaps with output and progress, ended once.

use std::sync::Arc;

use crate::{
    digest::Digest,
    error::Error,
    event::{Event, OutputStream, Reporter, VertexId, VertexKind, VertexResult},
};

/// A vertex that was begun. Dropped without an end it was canceled.
pub struct Vertex {
    reporter: Arc<dyn Reporter>,
    id: VertexId,
    ended: bool,
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
        Vertex { reporter, id, ended: false }
    }

    pub fn output(&self, stream: OutputStream, bytes: &[u8]) {
        self.reporter.report(Event::VertexOutput { id: self.id, stream, bytes: bytes.into() });
    }

    /// Takes what is done and what there is to do, in bytes.
    pub fn progress(&self) -> Arc<dyn Fn(&str, u64, u64) + Send + Sync> {
        let (reporter, id) = (self.reporter.clone(), self.id);
        Arc::new(move |what, done, total| {
            let what = what.to_owned();
            reporter.report(Event::VertexProgress { id, what, done, total });
        })
    }

    pub fn cached(mut self, layer: (Digest, u64)) {
        self.finish(VertexResult::Cached { layer: Some(layer) });
    }

    pub fn done(mut self, layer: Option<(Digest, u64)>) {
        self.finish(VertexResult::Done { layer });
    }

    /// Ends the vertex as its work did.
    pub fn end<T>(mut self, result: Result<T, Error>) -> Result<T, Error> {
        self.finish(match &result {
            Ok(_) => VertexResult::Done { layer: None },
            Err(error) => VertexResult::Failed { message: error.title().to_owned() },
        });
        result
    }

    fn finish(&mut self, result: VertexResult) {
        self.ended = true;
        self.reporter.report(Event::VertexFinished { id: self.id, result });
    }
}

impl Drop for Vertex {
    fn drop(&mut self) {
        if !self.ended {
            self.finish(VertexResult::Canceled);
        }
    }
}
