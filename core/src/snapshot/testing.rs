//! Stages of layers on disk with steps that really run, and what must hold after each.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    fs,
    io::Read,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::*;
use crate::{
    digest::Digest,
    rootfs::{
        apply_changeset, changeset_index,
        testing::{
            Overlay, Tree, expected, layer, make, open, replay_plain, shell, steps, walk,
            without_marks,
        },
    },
    tree::{Changeset, EntryPath, Kind, LayerIndex, Metadata, Snapshot, SnapshotLayer, Timestamp},
};

/// A base of two layers that is of every kind.
pub const BASE: [&[&str]; 2] = [
    &[
        "d opt",
        "d opt/app",
        "f opt/app/config one",
        "l opt/app/latest config",
        "f opt/app/run.sh echo",
        "f opt/app/sub/deep/file x",
        "f opt/hard-a linked",
        "h opt/hard-b opt/hard-a",
        "f opt/other same",
        "f w/gone x",
        "f w/hidden/x x",
        "p w/fifo",
    ],
    &[
        "d etc",
        "f etc/release golden",
        "f etc/empty ",
        "l reldir data/real",
        "w w/gone",
        "w w/hidden",
        "f w/hidden/new x",
        "d srv",
    ],
];

/// A stack of layers on disk and a mounted overlay.
pub struct Stage {
    pub scratch: tempfile::TempDir,
    pub lowers: Vec<PathBuf>,
    pub snapshot: Snapshot,
}

impl Stage {
    pub fn new(layers: &[&[&str]]) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let mut stage = Stage { scratch, lowers: Vec::new(), snapshot: Snapshot::default() };
        for (at, texts) in layers.iter().enumerate() {
            let directory = make(stage.scratch.path(), &format!("layer{at}"));
            let index = layer(&directory, texts);
            stage.push(directory, index);
        }
        stage
    }

    pub fn push(&mut self, directory: PathBuf, index: LayerIndex) {
        self.lowers.push(directory);
        let diff_id = Digest::of(&[self.lowers.len() as u8]);
        self.snapshot = self.snapshot.with(SnapshotLayer { diff_id, index: Arc::new(index) });
    }

    pub fn run(&self, name: &str, script: &str) -> Overlay {
        let overlay = Overlay::mount(self.scratch.path(), name, &self.lowers);
        overlay.run(script);
        overlay
    }

    pub fn content(&self) -> LowerDirectories {
        LowerDirectories(self.lowers.iter().map(|lower| Arc::new(open(lower))).collect())
    }

    pub fn diff(&self, upper: &Path, options: &DiffOptions<'_>) -> Result<Changeset, DiffError> {
        overlay_diff(open(upper).as_fd(), &self.snapshot, &self.content(), options)
    }
}

/// A time that the base's files are older than; what the clock stamps counts as this one.
pub const CAP: i64 = 1_000_000_500;

/// The same stage on an overlay and as a plain tree.
pub struct Both {
    pub stage: Stage,
    pub tree: PathBuf,
    pub baseline: Option<Baseline>,
    next: usize,
}

impl Both {
    /// The plain tree in `directory`, else beside the layers.
    pub fn new(layers: &[&[&str]], directory: Option<&Path>) -> Self {
        let stage = Stage::new(layers);
        let place = directory.unwrap_or(stage.scratch.path());
        let tree = make(place, "tree");
        for (at, texts) in layers.iter().enumerate() {
            let staging = make(place, &format!("staging{at}"));
            replay_plain(&tree, &staging, &steps(texts));
        }
        let mut both = Both { stage, tree, baseline: None, next: 0 };
        both.take();
        both
    }

    /// Takes the baseline by a walk.
    pub fn take(&mut self) {
        let file = tempfile::tempfile().unwrap();
        self.baseline = Some(Baseline::take(open(&self.tree).as_fd(), file, 2).unwrap());
    }

    pub fn plain_step(&self, script: &str, options: DiffOptions<'_>) -> PlainChanges {
        let baseline = self.baseline.as_ref().unwrap();
        let began = wait_for_clock(baseline.newest_change());
        shell(&self.tree, script);
        let (root, renamed) = (open(&self.tree), HashMap::new());
        let step = AfterStep {
            root: root.as_fd(),
            parent: &self.stage.snapshot,
            baseline,
            renamed: &renamed,
            began,
            options,
            threads: 2,
        };
        plain_diff(&step, &self.stage.content(), tempfile::tempfile().unwrap()).unwrap()
    }

    pub fn settle_plain(&mut self, changes: PlainChanges, cap: Option<i64>) {
        let root = open(&self.tree);
        let settled = settle_plain(root.as_fd(), &self.stage.snapshot, changes, cap, 2).unwrap();
        self.baseline = Some(settled);
    }

    /// Runs a step on both, checks that its layers and then the trees are the same, and gives the names of the layer.
    pub fn step(&mut self, script: &str) -> Vec<String> {
        self.next += 1;
        let options = DiffOptions { mtime_seconds_max: Some(CAP), ..DiffOptions::default() };
        let overlay = self.stage.run(&format!("both-{}", self.next), script);
        let wanted = self.stage.diff(&overlay.upper, &options).unwrap();
        let upper = overlay.upper.clone();
        drop(overlay);
        let changes = self.plain_step(script, options);
        let got = changes.changeset.clone();
        assert_same(&told(&got), &told(&wanted), script);
        settle(open(&upper).as_fd(), &self.stage.snapshot, &wanted, Some(CAP)).unwrap();
        self.settle_plain(changes, Some(CAP));
        self.stage.push(upper, changeset_index(&wanted, Some(CAP)));
        self.check_tree(script);
        names(&got)
    }

    /// Whether the tree equals the snapshot and the baseline the tree.
    pub fn check_tree(&self, script: &str) {
        let tree = walk(&self.tree);
        assert!(tree.iter().all(|(path, seen)| *path == seen.first_name), "hard links: {script}");
        assert_eq!(without_names(tree), tree_of(&self.stage.snapshot), "the next tree: {script}");
        let differences = verify(open(&self.tree).as_fd(), self.baseline.as_ref().unwrap(), 2);
        assert_eq!(differences.unwrap(), [], "the next baseline: {script}");
    }
}

type Told = (EntryPath, Kind, Metadata, u32, Vec<u8>);

/// Equality that shows only what differs.
fn assert_same(plain: &[Told], overlay: &[Told], script: &str) {
    let only = |left: &[Told], right: &[Told]| -> Vec<Told> {
        left.iter().filter(|told| !right.contains(told)).cloned().collect()
    };
    let (plain, overlay) = (only(plain, overlay), only(overlay, plain));
    assert!(plain.is_empty() && overlay.is_empty(), "{script}\n{plain:?}\n{overlay:?}");
}

/// All that a changeset says, with contents.
fn told(changeset: &Changeset) -> Vec<Told> {
    let tell = |change: &crate::tree::Change| {
        let mut bytes = Vec::new();
        if let Some(content) = &change.content {
            content.open().unwrap().read_to_end(&mut bytes).unwrap();
        }
        let (kind, metadata) = (change.kind.clone(), change.metadata.clone());
        (change.path.clone(), kind, metadata, change.link_group, bytes)
    };
    changeset.changes().iter().map(tell).collect()
}

/// Names as golden.json has them.
pub fn names(changeset: &Changeset) -> Vec<String> {
    let mut names: Vec<String> = changeset.changes().iter().map(entry_name).collect();
    names.sort();
    names
}

fn entry_name(change: &crate::tree::Change) -> String {
    let text = change.path.to_string()[1..].to_owned();
    match (&change.kind, text.rsplit_once('/')) {
        (Kind::Whiteout, Some((parent, name))) => format!("{parent}/.wh.{name}"),
        (Kind::Whiteout, None) => format!(".wh.{text}"),
        _ => text,
    }
}

/// Runs a step, checks all that must hold of every step, and gives the names that its layer has.
pub fn step(stage: &mut Stage, name: &str, script: &str) -> Vec<String> {
    let overlay = stage.run(name, script);
    let (merged, upper) = (walk(&overlay.merged), overlay.upper.clone());
    let changeset = stage.diff(&upper, &DiffOptions::default()).unwrap();
    assert_contents(&changeset, &overlay.merged);
    let index = changeset_index(&changeset, None);
    let applied = make(stage.scratch.path(), &format!("{name}-applied"));
    apply_changeset(open(&applied), &changeset, None).unwrap();
    drop(overlay);
    settle(open(&upper).as_fd(), &stage.snapshot, &changeset, None).unwrap();
    assert_eq!(walk(&upper), expected(&index), "the settled directory and the layer: {script}");
    assert_eq!(walk(&applied), walk(&upper), "applied and settled: {script}");
    stage.push(upper, index);
    assert_shows(&stage.snapshot, &merged, script);
    let next = stage.run(&format!("{name}-next"), "true");
    let seen = without_names(walk(&next.merged));
    assert_eq!(tree_of(&stage.snapshot), seen, "the next step's tree: {script}");
    names(&changeset)
}

fn assert_contents(changeset: &Changeset, merged: &Path) {
    for change in changeset.changes() {
        let Kind::File { size } = change.kind else { continue };
        let mut bytes = Vec::new();
        if let Some(content) = &change.content {
            content.open().unwrap().read_to_end(&mut bytes).unwrap();
        }
        assert_eq!(bytes.len() as u64, size);
        assert_eq!(
            fs::read(merged.join(OsStr::from_bytes(change.path.as_bytes()))).unwrap(),
            bytes
        );
    }
}

/// Whether a snapshot has what a step left, but for sockets and what is no part of a layer.
fn assert_shows(snapshot: &Snapshot, merged: &Tree, script: &str) {
    let without_times = |mut tree: BTreeMap<EntryPath, (Kind, Metadata)>| {
        for (kind, metadata) in tree.values_mut() {
            metadata.mtime.nanoseconds = 0;
            if kind.is_directory() {
                metadata.mtime = Timestamp::default();
            }
        }
        tree
    };
    let merged = without_times(without_names(merged.clone()));
    assert_eq!(without_times(tree_of(snapshot)), merged, "the snapshot: {script}");
}

pub fn without_names(tree: Tree) -> BTreeMap<EntryPath, (Kind, Metadata)> {
    let tree = without_marks(tree).into_iter();
    tree.map(|(path, seen)| (path, (seen.kind, seen.metadata))).collect()
}

pub fn tree_of(snapshot: &Snapshot) -> BTreeMap<EntryPath, (Kind, Metadata)> {
    let mut tree = BTreeMap::new();
    snapshot.walk(&EntryPath::root(), &mut |entry| {
        let mut metadata = entry.metadata().clone();
        let kind = if entry.is_directory() { Kind::DIRECTORY } else { entry.kind().clone() };
        if matches!(kind, Kind::Symlink { .. }) {
            metadata.mode = 0o777;
        }
        tree.insert(entry.row.path.clone(), (kind, metadata));
    });
    tree
}
