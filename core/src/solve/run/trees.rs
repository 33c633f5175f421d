//! Stages' trees on the swap rung: whole file systems of plain files, each used by one step at a time.
//!
//! A tree is handed on by being taken: the next step of its stage, or of a stage that starts from it, continues in it. Where
//! another stage wants it as it is, it is copied first. A tree in which anything is not as its baseline says, because a
//! step of another stage went through the state directory, is thrown away and made anew from the layers.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::future::try_join_all;

use crate::{
    digest::Digest,
    error::{Class, Error},
    event::{Event, Warning},
    plan::{Base, Op},
    resolve::LayerRef,
    rootfs::{self, Unpacker},
    snapshot::{self, Baseline},
    store::Store,
};

use super::super::{
    Solver, blocking,
    layers::{host, open_directory},
};

/// The trees that no step uses.
#[derive(Default)]
pub struct PlainTrees {
    idle: Mutex<Vec<PlainTree>>,
    /// Steps that were executed.
    steps: AtomicU64,
    /// Stages that have begun to use one.
    begun: Mutex<BTreeSet<usize>>,
}

impl PlainTrees {
    /// Another step was at `/`, and could have reached every tree.
    pub fn count_step(&self) {
        self.steps.fetch_add(1, Ordering::SeqCst);
    }

    /// The stage's own tree may be taken from now on: nobody copies one for it.
    pub fn begin(&self, stage: usize) {
        self.begun().insert(stage);
    }

    fn has_begun(&self, stage: usize) -> bool {
        self.begun().contains(&stage)
    }

    fn begun(&self) -> std::sync::MutexGuard<'_, BTreeSet<usize>> {
        self.begun.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn steps(&self) -> u64 {
        self.steps.load(Ordering::SeqCst)
    }

    /// Gives a tree back, as it is now.
    pub fn put_back(&self, mut tree: PlainTree) {
        tree.seen = self.steps();
        self.idle().push(tree);
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<PlainTree>> {
        self.idle.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The idle tree that has the most of a chain and nothing else.
    fn take(&self, chain: &[LayerRef]) -> Option<PlainTree> {
        let mut idle = self.idle();
        let fits = |tree: &PlainTree| {
            let mut layers = chain.iter().map(|layer| &layer.diff_id);
            tree.layers.iter().all(|layer| layers.next() == Some(layer))
        };
        let candidates = idle.iter().enumerate().filter(|(_, tree)| fits(tree));
        let (at, _) = candidates.max_by_key(|(_, tree)| tree.layers.len())?;
        Some(idle.swap_remove(at))
    }
}

/// A whole file system in a directory of its own, deleted when it is dropped.
pub struct PlainTree {
    store: Store,
    place: PathBuf,
    /// The diff IDs of the layers that it equals.
    pub layers: Vec<Digest>,
    pub baseline: Baseline,
    /// How many steps had been executed when the baseline was right.
    seen: u64,
}

impl Drop for PlainTree {
    fn drop(&mut self) {
        if self.place.exists() {
            self.store.discard(&self.place);
        }
    }
}

impl PlainTree {
    pub fn root(&self) -> Result<OwnedFd, Error> {
        open_directory(&self.directory())
    }

    /// The tree itself.
    pub fn directory(&self) -> PathBuf {
        self.place.join("fs")
    }
}

/// A place for a tree that is being made.
struct Fresh {
    store: Store,
    place: PathBuf,
}

impl Fresh {
    fn new(store: &Store) -> Result<Self, Error> {
        let place = store.work_directory("stage-").map_err(host)?;
        std::fs::create_dir(place.join("fs")).map_err(host)?;
        Ok(Fresh { store: store.clone(), place })
    }

    async fn finish(self, layers: Vec<Digest>, seen: u64) -> Result<PlainTree, Error> {
        let baseline = baseline_of(&self.store, &self.place.join("fs")).await?;
        Ok(PlainTree { store: self.store, place: self.place, layers, baseline, seen })
    }
}

impl Solver {
    /// The tree of a chain, for one step. Made beside other steps, so it is to be checked when the step's turn has come.
    pub(super) async fn plain_tree(&self, chain: &[LayerRef]) -> Result<PlainTree, Error> {
        let side = self.side();
        while let Some(tree) = self.plain.take(chain) {
            let Some(tree) = self.unspoilt(tree).await? else { continue };
            let tree = match self.is_wanted(&tree.layers) {
                true => self.copy_of(tree).await?,
                false => tree,
            };
            return self.extend(tree, chain).await;
        }
        let seen = self.plain.steps();
        let fresh = Fresh::new(side)?;
        self.lay(chain, &fresh.place.join("fs")).await?;
        fresh.finish(diff_ids(chain), seen).await
    }

    /// The tree, unless a step that was executed since its baseline went through it.
    pub(super) async fn unspoilt(&self, tree: PlainTree) -> Result<Option<PlainTree>, Error> {
        if tree.seen == self.plain.steps() {
            return Ok(Some(tree));
        }
        let root = tree.root()?;
        let checked = blocking(move || {
            let differences = snapshot::verify(root.as_fd(), &tree.baseline, threads());
            (tree, differences)
        });
        let (mut tree, differences) = checked.await?;
        let what = match differences.as_deref() {
            Ok([]) => {
                tree.seen = self.plain.steps();
                return Ok(Some(tree));
            }
            Ok([first, ..]) => format!("{} and perhaps more", first.path),
            Err(error) => error.to_string(),
        };
        let message = format!(
            "a step changed files of another stage in the state directory ({what}): that stage's file system is made anew from its layers"
        );
        self.parts.services.reporter.report(Event::Warning(Warning {
            message,
            location: None,
            hint: Some("commands that walk the whole root, such as find / -xdev, should leave out the directory of --state-dir".into()),
        }));
        Ok(None)
    }

    /// Adds the layers of the chain that a tree does not have yet.
    async fn extend(&self, mut tree: PlainTree, chain: &[LayerRef]) -> Result<PlainTree, Error> {
        let missing = &chain[tree.layers.len()..];
        if missing.is_empty() {
            return Ok(tree);
        }
        tree.seen = self.plain.steps();
        self.lay(missing, &tree.directory()).await?;
        tree.baseline = baseline_of(&tree.store, &tree.directory()).await?;
        tree.layers = diff_ids(chain);
        Ok(tree)
    }

    /// Unpacks layers side by side and lays them over a tree in their order.
    async fn lay(&self, layers: &[LayerRef], tree: &Path) -> Result<(), Error> {
        let unpacked = layers.iter().map(|layer| async move {
            let place = self.side().work_directory("layer-").map_err(host)?;
            let unpacker = Unpacker::plain(open_directory(&place)?).map_err(host)?;
            let index = self.layers.unpack(layer, unpacker).await?;
            Ok::<_, Error>((place, index))
        });
        for (place, index) in try_join_all(unpacked).await? {
            // An empty tree is replaced by the lowest layer's own directory.
            if std::fs::remove_dir(tree).is_ok() {
                std::fs::rename(&place, tree).map_err(host)?;
                continue;
            }
            let (from, tree) = (open_directory(&place)?, open_directory(tree)?);
            let laid = blocking(move || rootfs::lay_over(from.as_fd(), &index, tree.as_fd()));
            laid.await?.map_err(host)?;
            self.side().discard(&place);
        }
        Ok(())
    }

    /// A copy to work in; the tree itself goes back.
    async fn copy_of(&self, tree: PlainTree) -> Result<PlainTree, Error> {
        let fresh = Fresh::new(self.side())?;
        let (from, to) = (tree.root()?, open_directory(&fresh.place.join("fs"))?);
        let copied = blocking(move || rootfs::copy_tree(from.as_fd(), to, threads()));
        copied.await?.map_err(host)?;
        let (layers, seen) = (tree.layers.clone(), tree.seen);
        self.plain.idle().push(tree);
        fresh.finish(layers, seen).await
    }

    /// Whether more stages than the one that takes it will want a tree of these layers as it is.
    fn is_wanted(&self, layers: &[Digest]) -> bool {
        let graph = &self.parts.graph;
        graph.stages.iter().any(|(index, stage)| {
            !self.plain.has_begun(*index)
                && stage.steps.iter().any(|step| matches!(step.op, Op::Run(_)))
                && self.keys[index].steps.iter().flatten().any(|key| key.record.is_none())
                && self.chain_of(&stage.base).is_some_and(|chain| chain == layers)
        })
    }

    /// The layers that a stage starts from, where they are known now.
    fn chain_of(&self, base: &Base) -> Option<Vec<Digest>> {
        match base {
            Base::Image(image) => Some(diff_ids(&self.parts.images[image].layers)),
            Base::Stage(index) => {
                let stages = self.stages.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                let result = stages.get(index)?.peek()?.as_ref().ok()?.clone();
                Some(diff_ids(&result.layers))
            }
            Base::Scratch | Base::Context(_) => None,
        }
    }
}

fn diff_ids(layers: &[LayerRef]) -> Vec<Digest> {
    layers.iter().map(|layer| layer.diff_id).collect()
}

async fn baseline_of(store: &Store, tree: &Path) -> Result<Baseline, Error> {
    let (file, root) = (store.spool().map_err(host)?, open_directory(tree)?);
    let baseline = blocking(move || Baseline::take(root.as_fd(), file, threads()));
    baseline.await?.map_err(host)
}

/// How many threads a walk uses at most.
pub(super) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The class of a step's own doing.
pub(super) fn of_step(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::from_cause(Class::Step, error)
}
