//! What is known to be wrong before anything is pulled or executed: of all steps that must be executed, and of this host.

use std::collections::{BTreeMap, BTreeSet};

use rustix::fs::statvfs;

use crate::{
    cache::{self, CacheKey},
    dockerfile::mount::MountType,
    error::{Class, Error},
    execute::copy::{CopyError, check_named},
    plan::{Base, CopyOp, CopySource, ImageUse, Op, PlannedStage, RunOp, Step, TreeSource},
    resolve::{LayerRef, Origin},
};

use super::{
    Solver,
    copy::{copy_failed, copy_request},
    keys::{StepKey, is_remote},
    layers::host,
    mounts::{StepMounts, not_forwarded},
};

/// How much room an unpacked layer takes for each byte of its blob, at the least.
const UNPACKED_FACTOR: u64 = 2;

/// The steps that certainly have to be executed.
#[derive(Default)]
pub struct Work<'a> {
    steps: Vec<(&'a PlannedStage, &'a Step)>,
    /// Stages that are looked at already, and whether steps on top of them are certain.
    seen: BTreeMap<usize, bool>,
    /// Images that a RUN needs unpacked.
    unpacked: BTreeSet<ImageUse>,
    /// One of the steps is the image's own: its time stands in the image, so that it is another one than before, unless
    /// the times are fixed.
    pub changes_image: bool,
}

impl Work<'_> {
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

impl Solver {
    /// What certainly has to be executed. Steps behind an ADD from the network are not: what it gives may be known.
    pub fn work(&self) -> Work<'_> {
        let mut work = Work::default();
        self.visit(self.parts.graph.target, true, &mut work);
        work
    }

    /// Whether a RUN may have to be executed: one without a record, in any stage.
    pub fn may_run(&self) -> bool {
        let stages = self.parts.graph.stages.values();
        let mut steps =
            stages.flat_map(|stage| stage.steps.iter().zip(&self.keys[&stage.index].steps));
        steps.any(|(step, key)| {
            matches!(step.op, Op::Run(_)) && key.as_ref().is_some_and(|key| key.record.is_none())
        })
    }

    /// Adds a stage's work; tells whether more steps on top of it are certain, too. `own`: its layers are the image's.
    fn visit<'a>(&'a self, index: usize, own: bool, work: &mut Work<'a>) -> bool {
        let Some(stage) = self.parts.graph.stages.get(&index) else { return false };
        if let Some(certain) = work.seen.get(&index) {
            return *certain;
        }
        let certain = match &stage.base {
            Base::Stage(parent) => self.visit(*parent, own, work),
            _ => true,
        };
        let certain = certain && self.visit_steps(stage, own, work);
        work.seen.insert(index, certain);
        certain
    }

    fn visit_steps<'a>(&'a self, stage: &'a PlannedStage, own: bool, work: &mut Work<'a>) -> bool {
        let steps = stage.steps.iter().zip(&self.keys[&stage.index].steps);
        for (step, key) in steps {
            let Some(StepKey { record: None, key, prefix, .. }) = key else { continue };
            work.steps.push((stage, step));
            // Without a key yet, it may turn out that what it makes is known.
            let unknown = |prefix: &CacheKey| !cache::prefix_known(&self.parts.store, prefix);
            work.changes_image |= own && (key.is_some() || prefix.as_ref().is_some_and(unknown));
            for source in step.op.sources() {
                if let TreeSource::Stage(source) = source {
                    self.visit(*source, false, work);
                }
            }
            if matches!(step.op, Op::Run(_)) {
                work.unpacked.extend(self.image_below(stage));
            }
            if key.is_none() && matches!(&step.op, Op::Copy(copy) if is_remote(copy)) {
                return false;
            }
        }
        true
    }

    /// The image that a stage stands on.
    fn image_below<'a>(&'a self, mut stage: &'a PlannedStage) -> Option<ImageUse> {
        loop {
            stage = match &stage.base {
                Base::Stage(parent) => self.parts.graph.stages.get(parent)?,
                Base::Image(image) => return Some(image.clone()),
                Base::Scratch | Base::Context(_) => return None,
            };
        }
    }

    /// All that is wrong with this work, each with its line.
    pub async fn faults(&self, work: &Work<'_>) -> Vec<Error> {
        let mut faults = Vec::new();
        for (_, step) in &work.steps {
            let found = match &step.op {
                Op::Copy(copy) => self.missing_sources(copy),
                Op::Run(run) => self.missing_mounts(run),
                Op::Metadata | Op::Workdir(_) => Vec::new(),
            };
            let located = |error: Error| error.at(&self.parts.dockerfile, step.span);
            faults.extend(found.into_iter().map(located));
        }
        let run = work.steps.iter().find(|(_, step)| matches!(step.op, Op::Run(_)));
        if let Some((_, step)) = run
            && let Err(error) = self.find_rung().await
        {
            faults.push(error.at(&self.parts.dockerfile, step.span));
        }
        faults.extend(self.missing_room(work));
        faults
    }

    fn missing_sources(&self, copy: &CopyOp) -> Vec<Error> {
        let TreeSource::Context(name) = &copy.from else { return Vec::new() };
        let paths = copy.sources.iter().filter_map(|source| match source {
            CopySource::Path(path) => Some(path),
            _ => None,
        });
        let request = copy_request(copy, self.clock.mtime());
        let check = |path: &String| {
            let context = self.parts.contexts.get(name.as_deref())?;
            check_named(&context.tree, path, &request).map_err(|error| {
                let hint = self.hint_of_missing(name.as_deref(), path, &error);
                copy_failed(error).maybe_hint(hint)
            })
        };
        paths.filter_map(|path| check(path).err()).collect()
    }

    /// Why a source of the context may be missing.
    pub fn hint_of_missing(
        &self,
        context: Option<&str>,
        path: &str,
        error: &CopyError,
    ) -> Option<String> {
        let CopyError::NotFound(_) = error else { return None };
        let context = self.parts.contexts.get(context).ok()?;
        Some(match context.tree.ignore().leaves_out(path) {
            true => format!("the context's ignore file (.dockerignore) leaves {path} out"),
            false => {
                "sources are looked for in the build context, whatever the Dockerfile's folder"
                    .into()
            }
        })
    }

    /// Secrets and keys that the request does not give, files of secrets that can't be read, sources of binds.
    fn missing_mounts(&self, run: &RunOp) -> Vec<Error> {
        let check = |planned: &crate::plan::PlannedMount| {
            let mount = &planned.mount;
            match (mount.kind, &planned.from) {
                (MountType::Secret, _) => self.secret(mount, &mut StepMounts::default()),
                (MountType::Ssh, _) => {
                    let id = mount.id.as_deref().unwrap_or("default");
                    match self.parts.request.ssh.contains_key(id) {
                        true => Ok(()),
                        false => not_forwarded(id, mount.required),
                    }
                }
                _ => Ok(()),
            }
        };
        run.mounts.iter().filter_map(|mount| check(mount).err()).collect()
    }

    /// Whether the disk takes the layers of the bases, as blobs and unpacked.
    fn missing_room(&self, work: &Work<'_>) -> Option<Error> {
        let missing = |layer: &&LayerRef| {
            let descriptor = &layer.descriptor;
            matches!(layer.origin, Some(Origin::Registry(_)))
                && !self.parts.store.has_blob(&descriptor.digest, descriptor.size)
        };
        let layers = work.unpacked.iter().flat_map(|image| &self.parts.images[image].layers);
        let blobs: u64 = layers.filter(missing).map(|layer| layer.descriptor.size).sum();
        let needed = blobs.saturating_mul(1 + UNPACKED_FACTOR);
        let root = self.parts.store.root();
        let found = statvfs(&root).map_err(|error| host(std::io::Error::from(error)));
        let free = match found {
            Ok(found) => found.f_bavail.saturating_mul(found.f_frsize),
            Err(error) => return Some(error),
        };
        if free >= needed {
            return None;
        }
        let title = format!(
            "the base images need about {} MB in {}, where {} MB are free",
            needed.div_ceil(1_000_000),
            self.parts.store.real(&root).display(),
            free / 1_000_000
        );
        Some(Error::new(Class::Host, title).hint(
            "free some room (`bareboat cache prune` empties the state directory), or name another place with --state-dir",
        ))
    }
}
