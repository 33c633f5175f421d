//! RUN on the swap rung: the stage's tree is at `/` for the time of the step, and compared with its baseline afterwards.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    os::fd::AsFd,
    time::Instant,
};

use rustix::fs::{FileType, statvfs};

use crate::{
    digest::Digest,
    error::{Class, Error},
    event::{Event, Warning},
    execute::sandbox::{EntryStat, StepSpec, SwapReport, SwapRoot},
    layer::WrittenLayer,
    plan::RunOp,
    resolve::LayerRef,
    rootfs,
    snapshot::{
        AfterStep, DiffOptions, PlainChanges, Renamed, Stamp, plain_diff, settle_plain,
        wait_for_clock,
    },
    tree::{EntryPath, Snapshot, Timestamp},
};

use super::{
    super::{
        Solver, StageResult, blocking,
        layers::{host, open_directory},
        stage::Executed,
        vertex::Vertex,
    },
    Ran, host_lines,
    trees::{PlainTree, of_step, threads},
};

/// A job image larger than this is not copied out of the way.
const DELAYER_BYTES_MAX: u64 = 1 << 30;

impl Solver {
    /// `stage` is the index of the step's stage.
    pub(super) async fn run_on_swap(
        &self,
        stage: usize,
        run: &RunOp,
        below: &StageResult,
        vertex: &Vertex,
    ) -> Result<Executed, Error> {
        self.plain.begin(stage);
        let tree = self.plain_tree(&below.layers).await?;
        let snapshot = self.layers.snapshot(&below.layers).await?;
        // One step at a time is at `/`; it keeps its turn until its layer is written, because the next one could reach
        // into its tree.
        let _token = self.token().await?;
        let tree = match self.unspoilt(tree).await? {
            Some(tree) => tree,
            None => self.plain_tree(&below.layers).await?,
        };
        if let Some(made) = self.missing_working_directory(run, &below.layers, &snapshot).await? {
            let staging = self.side().work_directory("made-").map_err(host)?;
            let (root, staged) = (tree.root()?, open_directory(&staging)?);
            let cap = self.parts.request.source_date_epoch;
            let applied =
                blocking(move || rootfs::apply_changeset_plain(staged, root.as_fd(), &made, cap));
            applied.await?.map_err(host)?;
            self.side().discard(&staging);
        }
        let newest = tree.baseline.newest_change();
        let began = blocking(move || wait_for_clock(newest)).await?;
        let spec = StepSpec::new(self.swap_root(&tree)?);
        let work = self.side().work_directory("step-").map_err(host)?;
        let ran = self.run_step(spec, run, &below.layers, &snapshot, &work, vertex).await;
        self.plain.count_step();
        self.side().discard(&work);
        let ran = ran?;
        self.tell(&ran);
        self.layer_of_tree(tree, ran, snapshot, &below.layers, began).await
    }

    /// How a tree is named to the keeper, which works at the container's own root.
    fn swap_root(&self, tree: &PlainTree) -> Result<SwapRoot, Error> {
        let side = self.side();
        let outside = || Error::new(Class::Bug, "a stage's tree is outside of the side directory");
        let directory = tree.directory();
        let inside = directory.strip_prefix(side.root()).map_err(|_| outside())?;
        let room = statvfs(side.root()).map_err(|error| host(io::Error::from(error)))?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        Ok(SwapRoot {
            side: side.real(&side.root()),
            tree: inside.to_owned(),
            added_hosts: host_lines(&self.parts.request.add_hosts),
            owned: self.parts.services.host.owned.clone(),
            delayer_bytes_max: DELAYER_BYTES_MAX.min(free / 3),
        })
    }

    /// Says what the rung could not do as asked, and what it cost.
    fn tell(&self, ran: &Ran) {
        let Some(swap) = &ran.report.swap else { return };
        let (there, back) = (swap.milliseconds_in, swap.milliseconds_out);
        tracing::info!(milliseconds_in = there, milliseconds_out = back, "swapped");
        let warn = |message: String| {
            let warning = Warning { message, location: None, hint: None };
            self.parts.services.reporter.report(Event::Warning(warning));
        };
        swap.notes.iter().for_each(|note| warn(note.to_string()));
        if let Some(lost) = swap.lost.first() {
            warn(format!(
                "the step removed files of this container itself ({} and perhaps more)",
                lost.display()
            ));
        }
    }

    /// What changed as a layer; then the tree is made equal to it and goes back.
    async fn layer_of_tree(
        &self,
        mut tree: PlainTree,
        ran: Ran,
        snapshot: Snapshot,
        layers: &[LayerRef],
        began: Timestamp,
    ) -> Result<Executed, Error> {
        let cap = self.parts.request.source_date_epoch;
        let digests = LayerDigests {
            solver: self.clone(),
            layers: layers.to_vec(),
            runtime: tokio::runtime::Handle::current(),
        };
        let file = self.side().spool().map_err(host)?;
        let renamed = ran.report.swap.as_ref().map(renamed).unwrap_or_default();
        let parent = snapshot.clone();
        let root = tree.root()?;
        let walked = blocking(move || {
            let step = AfterStep {
                root: root.as_fd(),
                parent: &parent,
                baseline: &tree.baseline,
                renamed: &renamed,
                began,
                options: DiffOptions { mtime_seconds_max: cap, ignore: &ran.stubs },
                threads: threads(),
            };
            let began = Instant::now();
            let changes = plain_diff(&step, &digests, file);
            let milliseconds = began.elapsed().as_secs_f64() * 1000.0;
            tracing::info!(milliseconds, "walked");
            (changes, tree)
        });
        let (changes, walked) = walked.await?;
        tree = walked;
        let changes: PlainChanges = changes.map_err(of_step)?;
        let layer: WrittenLayer = self.write(changes.changeset.clone()).await?;
        let root = tree.root()?;
        let settled =
            blocking(move || settle_plain(root.as_fd(), &snapshot, changes, cap, threads()));
        tree.baseline = settled.await?.map_err(host)?;
        tree.layers.push(layer.diff_id);
        self.plain.put_back(tree);
        Ok(Executed::written(layer, None))
    }
}

/// What the renames of a swap hide. What is missing here is compared by content.
fn renamed(swap: &SwapReport) -> HashMap<EntryPath, Renamed> {
    let left: HashMap<&EntryPath, Stamp> =
        swap.left.iter().map(|entry| (&entry.path, stamp(&entry.stat))).collect();
    let pair = |entry: &crate::execute::sandbox::RenamedEntry| {
        let after = *left.get(&entry.path)?;
        Some((entry.path.clone(), Renamed { before: stamp(&entry.stat), after }))
    };
    swap.entered.iter().filter_map(pair).collect()
}

fn stamp(stat: &EntryStat) -> Stamp {
    let time = |seconds, nanoseconds| Timestamp { seconds, nanoseconds };
    let is_directory = FileType::from_raw_mode(stat.mode) == FileType::Directory;
    Stamp {
        inode: stat.inode,
        size: if is_directory { 0 } else { stat.size },
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        mtime: time(stat.mtime_seconds, stat.mtime_nanoseconds),
        ctime: stat.changed_at(),
    }
}

/// Digests of files below a step, out of the layers' blobs.
struct LayerDigests {
    solver: Solver,
    layers: Vec<LayerRef>,
    runtime: tokio::runtime::Handle,
}

impl crate::snapshot::LowerDigests for LayerDigests {
    fn digests(
        &self,
        layer: usize,
        wanted: &BTreeSet<EntryPath>,
    ) -> io::Result<BTreeMap<EntryPath, Digest>> {
        let layer = self.layers.get(layer).ok_or(io::ErrorKind::NotFound)?;
        let hashed = self.solver.layers.digests(layer, wanted.clone());
        self.runtime.block_on(hashed).map_err(io::Error::other)
    }
}
