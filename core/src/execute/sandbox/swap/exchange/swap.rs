//! A stage's way in and out.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::{
    Exchange, Options, RenamedEntry, SwapError,
    attributes::Attributes,
    directory::{find, find_or_make_path, stat_name},
    engine::Engine,
    error::Named,
    journal::{Mark, Record, Story},
    layout::{Layout, Level, Volume},
    survey::{self, PROBE, Survey, Surveyor},
    text,
};
use crate::tree::EntryPath;

/// The parent of the directory that renames are tried on.
const PROBES: &[u8] = b"probe";

/// What is to be exchanged. Nothing has moved yet.
pub struct Plan<'e> {
    exchange: &'e Exchange,
    layout: Layout,
}

/// A stage is at the container's root.
#[must_use = "the stage stays at the container's root until it is swapped out"]
pub struct SwappedIn<'e> {
    exchange: &'e Exchange,
    story: Story,
    renamed: Vec<RenamedEntry>,
}

/// A level, as the step left it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LevelOutcome {
    /// From the stage's root on; the root itself is among them.
    #[serde(with = "text::path")]
    pub path: EntryPath,
    /// Whether owner, mode, modification time or attributes differ from what the stage's directory had before. Its change
    /// time says nothing.
    pub changed: bool,
}

/// A stage is back in the side directory, and the container's root is as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwappedOut {
    /// What was at the root when the step had ended, before it was renamed: new entries too.
    pub renamed: Vec<RenamedEntry>,
    /// The stage's directories whose children were renamed one by one.
    pub levels: Vec<LevelOutcome>,
    /// Directories of the stage whose contents were copied back from a volume: all below them are new inodes.
    #[serde(with = "text::paths")]
    pub rewritten: Vec<EntryPath>,
    /// The container's own entries that the step has removed from the side directory or a volume's hidden one.
    #[serde(with = "text::paths")]
    pub lost: Vec<EntryPath>,
}

impl Exchange {
    /// Finds out what has to move for the stage whose tree is at `stage`, a path below the side directory. Refuses by
    /// name what can't be exchanged. Fails with [`SwapError::Layered`] where [`Exchange::delayer`] has to come first.
    pub fn plan(&self, stage: &EntryPath, options: &Options) -> Result<Plan<'_>, SwapError> {
        self.require_clean()?;
        let survey = self.survey(stage, options)?;
        if let Some(path) = survey.layered.first() {
            return Err(SwapError::Layered { path: path.to_string() });
        }
        let Survey { levels, volumes, .. } = survey;
        Ok(Plan { exchange: self, layout: Layout { stage: stage.clone(), levels, volumes } })
    }

    pub(super) fn survey(&self, stage: &EntryPath, options: &Options) -> Result<Survey, SwapError> {
        let table = (self.place.mounts)().named("read", "mountinfo")?;
        if table.covering(&EntryPath::root()).is_some_and(|mount| mount.read_only) {
            return Err(SwapError::ReadOnlyRoot);
        }
        let side = EntryPath::root().child(&self.place.side_name);
        if table.at(&side).is_some() {
            return Err(SwapError::SideElsewhere { side: side.to_string() });
        }
        let tree = find(&self.place.side, stage).named("open", stage)?;
        let tree = tree.ok_or(rustix::io::Errno::NOENT).named("open", stage)?;
        if stat_name(&tree, &self.place.side_name).named("stat", &side)?.is_some() {
            return Err(SwapError::ReservedName { path: side.to_string() });
        }
        let probe = self.probe()?;
        let is_layered = |path: &EntryPath, at: BorrowedFd<'_>, name: &[u8]| {
            self.is_layered(path, at, name, probe.as_fd())
        };
        Surveyor::new(&self.place, &table, Some(tree.as_fd()), options, &is_layered)?.run()
    }

    /// As [`survey::is_layered`] for a name in the container's directory `path`, which is open as `at`; a repair gives that
    /// its time back. For use while nothing is going on.
    pub(super) fn is_layered(
        &self,
        path: &EntryPath,
        at: BorrowedFd<'_>,
        name: &[u8],
        probe: BorrowedFd<'_>,
    ) -> Result<bool, SwapError> {
        let attributes = Attributes::of(at).named("read metadata of", path)?;
        self.journal.begin(&self.ops, &[Record::Trying { path: path.clone(), attributes }])?;
        let layered = survey::is_layered(at, name, probe).named("probe", path.child(name));
        self.record(&[Record::Done])?;
        layered
    }

    /// The directory for [`is_layered`](super::survey::is_layered).
    pub(super) fn probe(&self) -> Result<OwnedFd, SwapError> {
        let probes = EntryPath::root().child(PROBES);
        let filled = probes.child(PROBE.as_bytes()).child(PROBE.as_bytes());
        let side = self.place.side.as_fd();
        find_or_make_path(&self.ops, side, &filled).named("mkdir", &filled)?;
        find_or_make_path(&self.ops, side, &probes).named("open", &probes)
    }

    pub(super) fn engine<'e>(&'e self, layout: &'e Layout) -> Engine<'e> {
        Engine { place: &self.place, ops: &self.ops, layout }
    }

    pub(super) fn record(&self, records: &[Record]) -> Result<(), SwapError> {
        self.journal.append(&self.ops, records)
    }

    /// Makes the root whole after a failure in the middle.
    pub(super) fn recover(&self, cause: SwapError) -> SwapError {
        match self.repair() {
            Ok(_) => cause,
            Err(repair) => {
                SwapError::NotRestored { cause: Box::new(cause), repair: Box::new(repair) }
            }
        }
    }
}

impl<'e> Plan<'e> {
    /// Mounts and directories of the container that the step will see in its levels, the kernel's own aside.
    pub fn staying(&self) -> Vec<EntryPath> {
        let is_level = |path: &EntryPath| self.layout.levels.iter().any(|l| l.path == *path);
        let is_volume = |path: &EntryPath| self.layout.volumes.iter().any(|v| v.path == *path);
        let kept = |level: &Level| {
            level.kept.iter().map(|name| level.path.child(name)).collect::<Vec<_>>()
        };
        let paths = self.layout.levels.iter().flat_map(kept);
        paths.filter(|path| !is_level(path) && !is_volume(path)).collect()
    }

    /// The volumes whose contents will give way to the stage's: both are copied.
    pub fn volumes(&self) -> Vec<EntryPath> {
        self.layout.volumes.iter().map(|volume| volume.path.clone()).collect()
    }

    /// Moves the container's own children aside and the stage's in. If that fails, the root is restored and the stage
    /// unharmed.
    pub fn swap_in(self) -> Result<SwappedIn<'e>, SwapError> {
        let exchange = self.exchange;
        self.exchange_in().map_err(|error| exchange.recover(error))
    }

    fn exchange_in(self) -> Result<SwappedIn<'e>, SwapError> {
        let exchange = self.exchange;
        let mut story = self.begin()?;
        let engine = exchange.engine(&self.layout);
        story.moved_levels = engine.levels_aside()?;
        story.moved_volumes = engine.volumes_aside()?;
        let (levels, volumes) = (story.moved_levels.clone(), story.moved_volumes.clone());
        let mut records = vec![Record::Aside { levels, volumes }];
        records.extend(numbered(&story.stage, Record::Stage));
        exchange.record(&records)?;
        engine.stage_in(&story.stage)?;
        engine.volumes_in()?;
        exchange.record(&[Record::In])?;
        let renamed = engine.entries()?;
        Ok(SwappedIn { exchange, story, renamed })
    }

    /// Takes all metadata and writes what a repair needs.
    fn begin(&self) -> Result<Story, SwapError> {
        let engine = self.exchange.engine(&self.layout);
        let stage_attributes = |level: &Level| {
            let stage = engine.stage(level)?;
            let taken = stage.map(|stage| Attributes::of(stage.as_fd())).transpose();
            taken.named("read metadata of", &level.path)
        };
        let volume_attributes = |volume: &Volume| {
            let root = engine.volume(volume)?;
            Attributes::of(root.as_fd()).named("read metadata of", &volume.path).map(Some)
        };
        let story = Story {
            layout: self.layout.clone(),
            mark: Mark::Planned,
            spoilt: false,
            levels: engine.found()?,
            volumes: self.layout.volumes.iter().map(volume_attributes).collect::<Result<_, _>>()?,
            stage: self.layout.levels.iter().map(stage_attributes).collect::<Result<_, _>>()?,
            moved_levels: Vec::new(),
            moved_volumes: Vec::new(),
        };
        let mut records = vec![Record::Plan(self.layout.clone())];
        records.extend(numbered(&story.levels, Record::Level));
        records.extend(numbered(&story.volumes, Record::Volume));
        self.exchange.journal.begin(&self.exchange.ops, &records)?;
        Ok(story)
    }
}

fn numbered(
    attributes: &[Option<Attributes>],
    record: impl Fn(usize, Attributes) -> Record,
) -> Vec<Record> {
    let present = attributes.iter().enumerate();
    present.filter_map(|(at, one)| Some(record(at, one.clone()?))).collect()
}

impl SwappedIn<'_> {
    /// The stage's entries that were renamed, with the values that the baseline is to have for them.
    pub fn renamed(&self) -> &[RenamedEntry] {
        &self.renamed
    }

    /// Moves the stage out and the container's own children back. To be called when no process of the step is left. If it
    /// fails, the root is restored and the stage spoilt: its tree is to be discarded.
    pub fn swap_out(self) -> Result<SwappedOut, SwapError> {
        self.exchange_out().map_err(|error| self.exchange.recover(error))
    }

    fn exchange_out(&self) -> Result<SwappedOut, SwapError> {
        let (exchange, story) = (self.exchange, &self.story);
        let engine = exchange.engine(&story.layout);
        if let Some(path) = engine.levels_home()? {
            return Err(SwapError::LevelMoved { path: path.to_string() });
        }
        let renamed = engine.entries()?;
        let found = engine.found()?;
        engine.volumes_out()?;
        engine.stage_out(&found)?;
        exchange.record(&[Record::Out { spoilt: false }])?;
        let lost = exchange.restore(story, Mark::Out)?;
        let rewritten = story.layout.volumes.iter().map(|volume| volume.path.clone()).collect();
        Ok(SwappedOut { renamed, levels: outcomes(&engine, story, &found)?, rewritten, lost })
    }
}

/// Of the levels for which the stage has a directory.
fn outcomes(
    engine: &Engine<'_>,
    story: &Story,
    found: &[Option<Attributes>],
) -> Result<Vec<LevelOutcome>, SwapError> {
    let mut outcomes = Vec::new();
    for (at, level) in story.layout.levels.iter().enumerate() {
        if engine.stage(level)?.is_some() {
            let changed = found[at] != story.stage[at];
            outcomes.push(LevelOutcome { path: level.path.clone(), changed });
        }
    }
    Ok(outcomes)
}

impl Exchange {
    /// The last part of every way: from the mark `Out` or `Cleared` (or `Planned`, where nothing was in) to the end.
    pub(super) fn restore(&self, story: &Story, from: Mark) -> Result<Vec<EntryPath>, SwapError> {
        let engine = self.engine(&story.layout);
        if from == Mark::Out {
            engine.clear_volumes()?;
            self.record(&[Record::Cleared])?;
        }
        engine.restore_levels(&story.levels)?;
        engine.restore_volumes(&story.volumes)?;
        let mut lost = engine.lost(&story.moved_levels)?;
        lost.extend(engine.lost_of_volumes(&story.moved_volumes)?);
        self.record(&[Record::Done])?;
        Ok(lost)
    }
}
