//! The solver: runs the target's graph on demand. Keys first, for the whole graph; then only what no record answers.

mod contexts;
mod copy;
mod keys;
mod layers;
mod mounts;
mod preflight;
mod recompress;
mod remote;
mod run;
mod stage;
mod uploads;
mod vertex;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use futures_util::future::{BoxFuture, FutureExt, Shared};
use tokio::{sync::Semaphore, task::AbortHandle};

use crate::{
    build::Services,
    cache::CacheKey,
    context::Contexts,
    digest::Digest,
    dockerfile::ast::Dockerfile,
    error::{Class, Error},
    execute::sandbox::{self, Rung},
    fetch::{Git, HttpClient},
    image::{History, Image, ImageConfig, manifest::ImageError},
    plan::{BuildGraph, ImageUse},
    registry::Client,
    request::BuildRequest,
    resolve::{LayerRef, ResolvedImage},
    store::Store,
    time::Clock,
};

pub use contexts::ContextFetcher;
pub use layers::{Layers, blocking};
pub use preflight::Work;
pub use uploads::Uploads;
pub use vertex::Vertex;

use keys::StageKeys;

/// How long stopped stages are waited for: killing a step takes milliseconds.
const STOP_SECONDS_MAX: std::time::Duration = std::time::Duration::from_secs(10);

/// What a solver is made of.
pub struct Parts {
    pub graph: BuildGraph,
    pub images: BTreeMap<ImageUse, ResolvedImage>,
    pub dockerfile: Arc<Dockerfile>,
    pub request: Arc<BuildRequest>,
    pub contexts: Arc<Contexts>,
    pub store: Store,
    /// Where stages' trees are on the swap rung, if not in `store`: on the mount of `/`.
    pub side: Option<Store>,
    pub client: Client,
    pub http: HttpClient,
    pub git: Git,
    pub services: Arc<Services>,
    pub next_vertex: Arc<AtomicU32>,
    pub uploads: Uploads,
    /// Comes before stages' names where a build is for several platforms: the platform and a blank.
    pub label: String,
}

/// What one step did, for metadata and summaries.
#[derive(Clone, Debug, serde::Serialize)]
pub struct StepReport {
    pub stage: String,
    pub instruction: String,
    pub line: u32,
    pub cached: bool,
    pub seconds: f64,
    pub layer_digest: Digest,
    pub layer_bytes: u64,
}

/// What a stage gave: its layers and when each of its own was made.
#[derive(Clone, Debug, Default)]
pub struct StageResult {
    pub layers: Vec<LayerRef>,
    /// One for each layer that this build's stages made, in order.
    pub made: Vec<Made>,
    /// The image's creation time below the first own step: the base's.
    pub base_created: Option<String>,
    /// The stage's key, complete now.
    pub key: Option<CacheKey>,
}

/// When and by what a layer was made.
#[derive(Clone, Debug)]
pub struct Made {
    /// RFC 3339.
    pub created: String,
    /// BuildKit's name of the vertex, for histories that lack an entry.
    pub description: String,
}

/// A solved target.
#[derive(Clone, Debug)]
pub struct Solved {
    pub image: Image,
    pub layers: Vec<LayerRef>,
}

type StageFuture = Shared<BoxFuture<'static, Result<Arc<StageResult>, Error>>>;

#[derive(Clone)]
pub struct Solver(Arc<Inner>);

pub struct Inner {
    parts: Parts,
    layers: Layers,
    keys: BTreeMap<usize, StageKeys>,
    stages: Mutex<HashMap<usize, StageFuture>>,
    reports: Mutex<Vec<(usize, usize, StepReport)>>,
    tokens: Semaphore,
    sandbox: std::sync::OnceLock<&'static str>,
    rung: tokio::sync::OnceCell<sandbox::Probe>,
    clock: Clock,
    tasks: Mutex<Vec<AbortHandle>>,
    /// Stages' trees on the swap rung.
    plain: run::PlainTrees,
    /// Cache mounts that this build has used.
    used: Mutex<std::collections::BTreeSet<std::path::PathBuf>>,
}

impl std::ops::Deref for Solver {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Solver {
    pub fn new(parts: Parts) -> Self {
        let layers = Layers::new(
            parts.store.clone(),
            parts.client.clone(),
            parts.services.reporter.clone(),
            parts.services.host.flavour.clone(),
            parts.next_vertex.clone(),
        );
        // One stage at a time is at `/`.
        let steps_at_once = match parts.services.host.rung {
            Some(Rung::Swap) => 1,
            _ => parts.request.jobs.max(1),
        };
        let tokens = Semaphore::new(steps_at_once);
        let clock = Clock::new(parts.request.source_date_epoch);
        let keys = keys::plan_keys(&parts);
        Solver(Arc::new(Inner {
            parts,
            layers,
            keys,
            stages: Mutex::default(),
            reports: Mutex::default(),
            tokens,
            sandbox: std::sync::OnceLock::new(),
            rung: tokio::sync::OnceCell::new(),
            clock,
            tasks: Mutex::default(),
            plain: run::PlainTrees::default(),
            used: Mutex::default(),
        }))
    }

    /// Builds the target and its documents.
    pub async fn solve(&self, target: usize) -> Result<Solved, Error> {
        let mut result = StageResult::clone(&*self.stage(target).await?);
        self.parts.contexts.save_hashes();
        if self.parts.request.image.force_compression {
            result.layers = self.recompressed(result.layers).await?;
        }
        let config = self.config(&result);
        let descriptors = result.layers.iter().map(|layer| layer.descriptor.clone()).collect();
        let image =
            Image::new(&config, descriptors, &self.parts.request.image).map_err(unwritable)?;
        for bytes in [&image.config, &image.manifest] {
            self.parts.store.put_blob(bytes).map_err(layers::host)?;
        }
        let (name, bytes) = (image.digest.hex(), image.manifest.clone());
        self.parts.store.put_document("images", &name, &bytes).map_err(layers::host)?;
        Ok(Solved { image, layers: result.layers })
    }

    /// The result of a stage, built once, however many ask for it.
    pub fn stage(&self, index: usize) -> StageFuture {
        let mut stages = self.stages.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let start = || {
            let solver = self.clone();
            let task = tokio::spawn(async move { solver.run_stage(index).await.map(Arc::new) });
            let mut tasks = self.tasks.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            tasks.push(task.abort_handle());
            let joined = async move { task.await.unwrap_or_else(|error| Err(ended(error))) };
            joined.boxed().shared()
        };
        stages.entry(index).or_insert_with(start).clone()
    }

    /// Ends all stages that are still at work: their steps are killed, what they wrote is dropped.
    pub async fn stop(&self) {
        let tasks = std::mem::take(
            &mut *self.tasks.lock().unwrap_or_else(|poisoned| poisoned.into_inner()),
        );
        tasks.iter().for_each(AbortHandle::abort);
        let stages = std::mem::take(
            &mut *self.stages.lock().unwrap_or_else(|poisoned| poisoned.into_inner()),
        );
        let all = futures_util::future::join_all(stages.into_values());
        if tokio::time::timeout(STOP_SECONDS_MAX, all).await.is_err() {
            tracing::warn!("a stage did not stop in time");
        }
    }

    /// The target's configuration with times, history and diff IDs filled in.
    fn config(&self, result: &StageResult) -> ImageConfig {
        let graph = &self.parts.graph;
        let mut config = graph.config.clone();
        let mut times = result.made.iter().map(|made| &made.created);
        let mut latest = result.base_created.clone();
        for entry in config.history.iter_mut().skip(graph.inherited_history) {
            if !entry.empty_layer {
                latest = times.next().cloned().max(latest);
            }
            entry.created = self.clock.fixed().or(latest.clone());
        }
        self.complete_history(&mut config, result);
        config.created = self.clock.fixed().or(latest);
        config.rootfs.diff_ids = result.layers.iter().map(|layer| layer.diff_id).collect();
        config
    }

    /// Layers of a base without history push the entries of the later ones down; what is missing at the end is made of
    /// the vertices' names, as BuildKit's exporter does.
    fn complete_history(&self, config: &mut ImageConfig, result: &StageResult) {
        let told = config.history.iter().filter(|entry| !entry.empty_layer).count();
        let inherited = result.layers.len() - result.made.len();
        for made in result.made.iter().skip(told.saturating_sub(inherited)) {
            if told >= result.layers.len() {
                return;
            }
            config.history.push(History {
                created: Some(made.created.clone()),
                created_by: made.description.clone(),
                comment: "buildkit.exporter.image.v0".into(),
                ..History::default()
            });
        }
    }

    pub fn reports(&self) -> Vec<StepReport> {
        let mut reports = self.reports.lock().unwrap_or_else(|p| p.into_inner()).clone();
        reports.sort_by_key(|(stage, step, _)| (*stage, *step));
        reports.into_iter().map(|(_, _, report)| report).collect()
    }
}

impl Inner {
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    pub fn store(&self) -> &Store {
        &self.parts.store
    }

    /// The state that is on the root's own mount: stages' trees have to be there to be renamed to `/`.
    pub fn side(&self) -> &Store {
        self.parts.side.as_ref().unwrap_or(&self.parts.store)
    }

    pub fn uploads(&self) -> &Uploads {
        &self.parts.uploads
    }

    pub fn client(&self) -> &Client {
        &self.parts.client
    }

    pub fn request(&self) -> &BuildRequest {
        &self.parts.request
    }

    pub fn services(&self) -> &Services {
        &self.parts.services
    }

    /// Whether this build uses a cache mount's directory for the first time.
    pub fn first_use(&self, place: &std::path::Path) -> bool {
        let mut used = self.used.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        used.insert(place.to_owned())
    }

    pub fn sandbox(&self) -> Option<&'static str> {
        self.sandbox.get().copied()
    }

    pub fn pulled_bytes(&self) -> u64 {
        self.layers.pulled_bytes()
    }

    /// The path of a layer's blob, where the store has it.
    pub fn blob_if_there(&self, layer: &LayerRef) -> Option<std::path::PathBuf> {
        let descriptor = &layer.descriptor;
        let there = self.parts.store.has_blob(&descriptor.digest, descriptor.size);
        there.then(|| self.parts.store.blob_path(&descriptor.digest))
    }

    /// Begins a vertex of the log.
    pub fn vertex(&self, kind: crate::event::VertexKind, name: String) -> Vertex {
        self.vertex_at(kind, name, None)
    }

    pub fn vertex_at(
        &self,
        kind: crate::event::VertexKind,
        name: String,
        line: Option<u32>,
    ) -> Vertex {
        let id = self.parts.next_vertex.fetch_add(1, Ordering::Relaxed);
        Vertex::start(self.parts.services.reporter.clone(), id, kind, name, line)
    }
}

fn unwritable(error: ImageError) -> Error {
    match error {
        ImageError::ZstdInDocker(_) => Error::from_cause(Class::Usage, error)
            .hint("leave oci-mediatypes=false out, or add force-compression=true"),
        ImageError::Json(_) => Error::from_cause(Class::Bug, error),
    }
}

fn ended(error: tokio::task::JoinError) -> Error {
    match error.is_cancelled() {
        true => Error::new(Class::Interrupted, "stopped"),
        false => Error::new(Class::Bug, format!("a stage died: {error}")),
    }
}

/// How many of a stage's steps make layers, for `[name 2/4]`; FROM is the first.
pub fn vertex_total(steps: &[crate::plan::Step]) -> usize {
    1 + steps.iter().filter(|step| step.op.makes_layer()).count()
}
