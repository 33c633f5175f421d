//! RUN on the overlay rung: the layers' trees as lower directories, the upper directory as the layer.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use crate::{
    error::{Class, Error},
    execute::sandbox::{OverlayRoot, StepSpec},
    plan::RunOp,
    resolve::LayerRef,
    rootfs,
    snapshot::{DiffOptions, LowerDirectories, overlay_diff, settle},
    store::Store,
    tree::{Changeset, EntryPath, Snapshot},
};

use super::{
    super::{
        Solver, StageResult, blocking,
        layers::{host, open_directory},
        stage::Executed,
        vertex::Vertex,
    },
    Ran,
};

/// The chains that overlayfs looks names up in quickly; older layers are merged beyond it (rules.md, trees on disk).
const LOWERS_MAX: usize = 128;

/// A step's directories, deleted when the step is over.
struct Place {
    store: Store,
    /// Becomes the layer's tree; `fs` below it is the upper directory.
    tree: PathBuf,
    work: PathBuf,
}

impl Drop for Place {
    fn drop(&mut self) {
        for path in [&self.work, &self.tree] {
            if path.exists() {
                self.store.discard(path);
            }
        }
    }
}

impl Place {
    fn upper(&self) -> PathBuf {
        self.tree.join("fs")
    }
}

impl Solver {
    pub(super) async fn run_on_overlay(
        &self,
        run: &RunOp,
        below: &StageResult,
        vertex: &Vertex,
    ) -> Result<Executed, Error> {
        let _token = self.token().await?;
        if self.parts.services.host.one_id.is_some() {
            let snapshot = self.layers.snapshot(&below.layers).await?;
            let user = self.run_user(run, &below.layers, &snapshot).await?;
            self.check_owners(run, &snapshot, &user)?;
        }
        // Before the snapshot: what is unpacked is indexed on the way, and read once.
        let trees = self.layers.trees(&below.layers).await?;
        let snapshot = self.layers.snapshot(&below.layers).await?;
        let place = self.place()?;
        // overlayfs takes no opaque mark on a layer's root: what lies below one is left out.
        let visible = rootfs::lowest_visible_layer(&snapshot);
        let lowers = self.lowers(&below.layers[visible..], &trees[visible..]).await?;
        if let Some(made) = self.missing_working_directory(run, &below.layers, &snapshot).await? {
            let (upper, cap) =
                (open_directory(&place.upper())?, self.parts.request.source_date_epoch);
            blocking(move || rootfs::apply_changeset(upper, &made, cap)).await?.map_err(host)?;
        }
        let spec = StepSpec::new(OverlayRoot {
            lowers,
            upper: place.upper(),
            work: place.work.join("work"),
            scratch: place.work.join("box"),
        });
        let Ran { stubs, .. } =
            self.run_step(spec, run, &below.layers, &snapshot, &place.work, vertex).await?;
        self.layer_of_upper(place, snapshot, trees, stubs).await
    }

    fn place(&self) -> Result<Place, Error> {
        let store = self.parts.store.clone();
        let tree = store.new_tree().map_err(host)?;
        let place = Place { work: store.work_directory("step-").map_err(host)?, tree, store };
        for name in ["work", "box"] {
            std::fs::create_dir(place.work.join(name)).map_err(host)?;
        }
        Ok(place)
    }

    /// The trees as overlay's lower directories, topmost first, each once; the oldest merged where they are too many.
    pub async fn lowers(
        &self,
        layers: &[LayerRef],
        trees: &[PathBuf],
    ) -> Result<Vec<PathBuf>, Error> {
        let mut lowers: Vec<PathBuf> = Vec::new();
        // A layer that is in the chain twice: its topmost place repeats all that the lower one says.
        for tree in trees.iter().rev() {
            if !lowers.contains(tree) {
                lowers.push(tree.clone());
            }
        }
        if lowers.len() > LOWERS_MAX {
            let old = lowers.split_off(LOWERS_MAX - 1);
            lowers.push(self.layers.merged(layers, old).await?);
        }
        Ok(lowers)
    }

    /// The upper directory as a layer, and then as that layer's tree.
    async fn layer_of_upper(
        &self,
        place: Place,
        snapshot: Snapshot,
        trees: Vec<PathBuf>,
        stubs: Vec<EntryPath>,
    ) -> Result<Executed, Error> {
        let cap = self.parts.request.source_date_epoch;
        let upper = open_directory(&place.upper())?;
        let (upper, snapshot, changeset) = blocking(move || {
            let changeset = diff(&upper, &snapshot, &trees, cap, &stubs)?;
            Ok::<_, Error>((upper, snapshot, Arc::new(changeset)))
        })
        .await??;
        let layer = self.write(changeset.clone()).await?;
        blocking(move || settle(upper.as_fd(), &snapshot, &changeset, cap)).await?.map_err(host)?;
        self.layers.adopt_tree(&place.tree, &layer.diff_id)?;
        Ok(Executed::written(layer, None))
    }
}

fn diff(
    upper: &OwnedFd,
    snapshot: &Snapshot,
    trees: &[PathBuf],
    cap: Option<i64>,
    stubs: &[EntryPath],
) -> Result<Changeset, Error> {
    let trees =
        trees.iter().map(|tree| open_directory(tree).map(Arc::new)).collect::<Result<_, _>>()?;
    let options = DiffOptions { mtime_seconds_max: cap, ignore: stubs };
    overlay_diff(upper.as_fd(), snapshot, &LowerDirectories(trees), &options)
        .map_err(|error| Error::from_cause(Class::Step, error))
}
