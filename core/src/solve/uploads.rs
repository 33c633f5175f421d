//! Uploads that start while the build still runs: each finished layer of the image goes out at once.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, OnceLock},
};

use crate::{
    error::Error,
    event::{Event, Reporter, VertexKind},
    output::PushTarget,
    plan::{Base, BuildGraph},
    push::{LayerSource, PushError, PushImage, PushLayer, PushProgress, PushReport, Uploader},
    registry::Client,
    resolve::LayerRef,
    store::Store,
};

use super::vertex::Vertex;

/// The destinations of a build's pushes, one group for each output.
pub struct Uploads {
    groups: Mutex<Vec<Group>>,
    /// The stages whose layers are the image's.
    lineage: BTreeSet<usize>,
}

struct Group {
    uploader: Uploader,
    /// The image goes under its digest alone.
    by_digest: bool,
    reporter: Arc<dyn Reporter>,
    names: String,
    vertex: Arc<OnceLock<Vertex>>,
    start: Arc<dyn Fn() -> Vertex + Send + Sync>,
}

impl Uploads {
    /// Nothing is sent before the first layer. `label` tells apart the images of several platforms.
    pub fn new(
        client: &Client,
        targets: &[PushTarget],
        graph: &BuildGraph,
        reporter: &Arc<dyn Reporter>,
        next_vertex: &Arc<std::sync::atomic::AtomicU32>,
        label: &str,
    ) -> Result<Self, Error> {
        let groups = targets.iter().map(|to| group(client, to, reporter, next_vertex, label));
        let groups = groups.collect::<Result<_, _>>().map_err(PushError::into_error)?;
        Ok(Uploads { groups: Mutex::new(groups), lineage: lineage(graph) })
    }

    /// Sends a layer that a stage just made, if it is one of the image's.
    pub fn start(&self, stage: usize, layer: &LayerRef, store: &Store) {
        if !self.lineage.contains(&stage) {
            return;
        }
        let layer = PushLayer {
            digest: layer.descriptor.digest,
            size: layer.descriptor.size,
            source: LayerSource::File(store.blob_path(&layer.descriptor.digest)),
            known_in: None,
        };
        let groups = self.groups.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        groups.iter().for_each(|group| group.uploader.start(&layer));
    }

    /// Sends what is missing, and the manifest. The groups in their order. An image that is one of several goes under its
    /// digest alone.
    pub async fn finish(&self, image: &PushImage, several: bool) -> Result<Vec<PushReport>, Error> {
        let groups = std::mem::take(
            &mut *self.groups.lock().unwrap_or_else(|poisoned| poisoned.into_inner()),
        );
        let mut reports = Vec::new();
        for group in groups {
            tracing::debug!(names = group.names, "pushing");
            let vertex = group.vertex.get_or_init(|| (group.start)()).clone();
            let pushed = match several || group.by_digest {
                true => group.uploader.finish_by_digest(image).await,
                false => group.uploader.finish(image).await,
            };
            let report = vertex.end(pushed.map_err(PushError::into_error))?;
            for warning in report.warnings() {
                group.reporter.report(Event::Warning(warning));
            }
            reports.push(report);
        }
        Ok(reports)
    }
}

fn group(
    client: &Client,
    target: &PushTarget,
    reporter: &Arc<dyn Reporter>,
    next_vertex: &Arc<std::sync::atomic::AtomicU32>,
    label: &str,
) -> Result<Group, PushError> {
    let PushTarget { names, by_digest } = target;
    let shown: Vec<String> = names.iter().map(ToString::to_string).collect();
    let shown = format!("{label}{}", shown.join(", "));
    let vertex: Arc<OnceLock<Vertex>> = Arc::default();
    let (told, next, title) = (reporter.clone(), next_vertex.clone(), shown.clone());
    let start: Arc<dyn Fn() -> Vertex + Send + Sync> = Arc::new(move || {
        let id = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("pushing {title}");
        Vertex::start(told.clone(), id, VertexKind::Push, name, None)
    });
    let (told, begin) = (vertex.clone(), start.clone());
    let progress: PushProgress = Arc::new(move |repository, digest, done, total| {
        let vertex = told.get_or_init(|| begin());
        vertex.report_progress(format!("{} to {repository}", digest.short()), done, total);
    });
    let uploader = Uploader::new(client, names, progress)?;
    let (by_digest, reporter) = (*by_digest, reporter.clone());
    Ok(Group { uploader, by_digest, reporter, names: shown, vertex, start })
}

/// The target and the stages that it starts from.
fn lineage(graph: &BuildGraph) -> BTreeSet<usize> {
    let mut lineage = BTreeSet::new();
    let mut next = Some(graph.target);
    while let Some(index) = next {
        lineage.insert(index);
        next = match graph.stages.get(&index).map(|stage| &stage.base) {
            Some(Base::Stage(parent)) => Some(*parent),
            _ => None,
        };
    }
    lineage
}
