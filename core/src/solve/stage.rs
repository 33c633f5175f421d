//! One stage: its base's layers, then its steps in order, each from its record or executed.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use crate::{
    cache::{self, CacheKey, Record, RecordLayer},
    error::{Class, Error},
    event::VertexKind,
    layer::{WriteOptions, WrittenLayer, write_layer},
    plan::{Base, Op, PlannedStage, Step, TreeSource},
    request::Compression,
    resolve::LayerRef,
    tree::Changeset,
};

use super::{
    Made, Solver, StageResult, StepReport, blocking,
    keys::{StepKey, is_uncached, parent_key},
    layers::host,
    vertex_total,
};

/// What executing a step gave, before it is recorded.
pub struct Executed {
    pub layer: Outcome,
    /// The step's key, where it could only be known from the layer's content.
    pub key: Option<CacheKey>,
}

/// A new layer, or one that a record had after all.
pub enum Outcome {
    Written(Box<WrittenLayer>),
    Known(Box<Record>),
}

impl Executed {
    pub fn written(layer: WrittenLayer, key: Option<CacheKey>) -> Self {
        Executed { layer: Outcome::Written(Box::new(layer)), key }
    }
}

impl Solver {
    pub async fn run_stage(&self, index: usize) -> Result<StageResult, Error> {
        let stage = self.parts.graph.stages[&index].clone();
        let mut result = self.start_stage(&stage).await?;
        let mut parent = self.keys[&index].base.or(result.key);
        let total = vertex_total(&stage.steps);
        // FROM of a directory is no vertex of its own.
        let mut number = if matches!(stage.base, Base::Context(_)) { 0 } else { 1 };
        let prefix = if stage.name.is_empty() { "" } else { " " };
        self.start_sources(&stage);
        for (at, step) in stage.steps.iter().enumerate() {
            if !step.op.makes_layer() {
                continue;
            }
            number += 1;
            let name = format!(
                "[{}{}{prefix}{number}/{total}] {}",
                self.parts.label, stage.name, step.title
            );
            let known = self.keys[&index].steps[at].clone();
            let key = match known {
                Some(key) if key.key.is_some() => key,
                _ => self.step_key(&stage, step, parent).await?,
            };
            let description = match &step.op {
                Op::Run(run) => format!("mount / from exec {}", run.argv.join(" ")),
                _ => name.clone(),
            };
            let (layer, created, own) = self.step(&stage, at, name, &key, &result).await?;
            parent = own.or(key.key);
            result.layers.push(layer);
            result.made.push(Made { created, description });
        }
        result.key = parent;
        Ok(result)
    }

    /// The layers that a stage starts from. A base stage is built, or found in the cache, here.
    async fn start_stage(&self, stage: &PlannedStage) -> Result<StageResult, Error> {
        let located = |error: Error| error.at(&self.parts.dockerfile, stage.base_span);
        Ok(match &stage.base {
            Base::Scratch => StageResult::default(),
            Base::Image(image) => {
                let image = &self.parts.images[image];
                StageResult {
                    layers: image.layers.clone(),
                    made: Vec::new(),
                    base_created: image.config.created.clone(),
                    key: None,
                }
            }
            Base::Stage(parent) => {
                let parent = self.stage(*parent).await?;
                StageResult::clone(&parent)
            }
            Base::Context(name) => {
                let layer = self.context_layer(name).await.map_err(located)?;
                StageResult { layers: vec![layer], ..StageResult::default() }
            }
        })
    }

    /// Begins the stages that steps without a record will read, so that they run side by side with this one.
    fn start_sources(&self, stage: &PlannedStage) {
        let keys = &self.keys[&stage.index];
        for (step, key) in stage.steps.iter().zip(&keys.steps) {
            if key.as_ref().is_some_and(|key| key.record.is_some()) {
                continue;
            }
            for source in step.op.sources() {
                if let TreeSource::Stage(index) = source {
                    drop(self.stage(*index));
                }
            }
        }
    }

    /// One step: its record, or its execution. Gives the layer, its time, and its key if only now known.
    async fn step(
        &self,
        stage: &PlannedStage,
        at: usize,
        name: String,
        key: &StepKey,
        below: &StageResult,
    ) -> Result<(LayerRef, String, Option<CacheKey>), Error> {
        let step = &stage.steps[at];
        let line = Some(step.span.first_line);
        if let Some(record) = &key.record {
            let vertex = self.vertex_at(VertexKind::Step, name, line);
            let descriptor = &record.layer.descriptor;
            vertex.cached((descriptor.digest, descriptor.size));
            self.note(stage, at, true, record.milliseconds, &record.layer);
            return Ok((layer_of(record), record.created.clone(), None));
        }
        let vertex = self.vertex_at(VertexKind::Step, name, line);
        let started = Instant::now();
        let executed = match &step.op {
            Op::Run(run) => self.execute_run(stage.index, run, below, &vertex).await,
            Op::Copy(copy) => self.execute_copy(copy, key, below).await,
            Op::Workdir(workdir) => self.execute_workdir(workdir, below).await,
            Op::Metadata => Err(Error::new(Class::Bug, "metadata makes no layer")),
        };
        let executed = executed.map_err(|error| error.at(&self.parts.dockerfile, step.span));
        let executed = match executed {
            Ok(executed) => executed,
            Err(error) => return vertex.end(Err(error)),
        };
        let own = key.key.or(executed.key);
        let written = match executed.layer {
            Outcome::Written(written) => *written,
            Outcome::Known(record) => {
                let descriptor = &record.layer.descriptor;
                vertex.cached((descriptor.digest, descriptor.size));
                self.note(stage, at, true, record.milliseconds, &record.layer);
                return Ok((layer_of(&record), record.created.clone(), own));
            }
        };
        let record = Record {
            layer: RecordLayer { descriptor: written.descriptor.clone(), diff_id: written.diff_id },
            created: self.clock.step(),
            milliseconds: started.elapsed().as_millis() as u64,
        };
        self.layers.remember(written.diff_id, written.index)?;
        if let (Some(prefix), Some(own)) = (&key.prefix, &own) {
            cache::store(&self.parts.store, prefix, own, &record).map_err(host)?;
        }
        self.note(stage, at, false, record.milliseconds, &record.layer);
        vertex.done(Some((record.layer.descriptor.digest, record.layer.descriptor.size)));
        let layer = layer_of(&record);
        self.parts.uploads.start(stage.index, &layer, &self.parts.store);
        Ok((layer, record.created, own))
    }

    /// The key of a step whose parent's key is known only now.
    ///
    /// The keys of stages that it reads may have been completed only when those were built, which is waited for then.
    async fn step_key(
        &self,
        stage: &PlannedStage,
        step: &Step,
        parent: Option<CacheKey>,
    ) -> Result<StepKey, Error> {
        let mut completed: BTreeMap<usize, Option<CacheKey>> = BTreeMap::new();
        for source in step.op.sources() {
            if let TreeSource::Stage(index) = source {
                let key = match self.keys[index].last() {
                    Some(key) => Some(key),
                    None => self.stage(*index).await?.key,
                };
                completed.insert(*index, key);
            }
        }
        let keys = |index: usize| completed.get(&index).copied().flatten();
        let key = parent_key(&self.parts, step, parent, &keys)
            .map_err(|error| error.at(&self.parts.dockerfile, step.span))?;
        Ok(key.without_records_if(is_uncached(&self.parts, stage)))
    }

    fn note(&self, stage: &PlannedStage, at: usize, cached: bool, ms: u64, layer: &RecordLayer) {
        let step = &stage.steps[at];
        let report = StepReport {
            stage: format!("{}{}", self.parts.label, stage.name),
            instruction: step.title.clone(),
            line: step.span.first_line,
            cached,
            seconds: if cached { 0.0 } else { ms as f64 / 1000.0 },
            layer_digest: layer.descriptor.digest,
            layer_bytes: layer.descriptor.size,
        };
        let mut reports = self.reports.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        reports.push((stage.index, at, report));
    }

    pub fn write_options(&self) -> WriteOptions {
        WriteOptions {
            compression: self.parts.request.compression,
            mtime_seconds_max: self.parts.request.source_date_epoch,
            workers: self.parts.request.jobs.max(1),
        }
    }

    /// Writes a changeset as a layer into the store, on threads of its own.
    pub async fn write(&self, changeset: Arc<Changeset>) -> Result<WrittenLayer, Error> {
        let (store, options) = (self.parts.store.clone(), self.write_options());
        let written = blocking(move || {
            let mut blob = store.unhashed_blob_writer().map_err(host)?;
            let layer =
                write_layer(&changeset, &options, &mut blob).map_err(super::copy::changed)?;
            blob.commit_as(&layer.descriptor.digest).map_err(host)?;
            Ok(layer)
        });
        written.await?
    }
}

fn layer_of(record: &Record) -> LayerRef {
    let RecordLayer { descriptor, diff_id } = record.layer.clone();
    LayerRef { descriptor, diff_id, origin: None, place: None }
}

/// What names the compression in a key: layers of another one are other bytes.
pub fn compression_name(compression: Compression) -> String {
    crate::layer::compressor_name(compression)
}
