//! The keeper: one process a step, single-threaded, without secrets but those of the step. It holds the lock of the
//! container's root, and whatever becomes of the step, the root is as before when it ends.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    fs::{Mode, OFlags, open},
    io::Errno,
    process::{Pid, getpid},
};

use super::{
    StepNote, SwapReport,
    canary::Canary,
    exchange::{Exchange, Options, Place, RenamedEntry, Repaired, SwappedOut},
    hidden::Hidden,
    placed::{self, Etc, Placed, Places, TakenOut},
    volumes::Volumes,
};
use crate::{
    execute::sandbox::{
        SandboxError, capabilities,
        error::Named,
        helper::Execution,
        reap::{PATIENCE, Reaper},
        spec::{StepNetwork, StepSpec, SwapRoot},
        step::{Protection, StepPlace},
        stubs::{Stubs, open_directories},
        wire::{self, Answer, RepairRequest},
    },
    snapshot::wait_for_clock,
    sys::{
        process::{Waited, exit_now, wait_readable},
        resolve::{LastLink, walk_in_root},
    },
    tree::EntryPath,
};

/// How often a keeper that waits for another build looks whether its own is still there.
const LOCK_MILLISECONDS: i32 = 20;

/// What is copied out of an image no larger than our own costs too little to be told.
const DELAYERED_BYTES_UNTOLD: u64 = 64 << 20;

/// Runs a step at the container's root.
pub(in super::super) fn run_at_root(
    root: &SwapRoot,
    spec: &StepSpec,
    control: &UnixStream,
) -> Result<Answer, SandboxError> {
    refuse(spec)?;
    let reaper = Reaper::adopt_orphans()?;
    let keeper = Keeper::lock(&root.side, Some(control))?;
    keeper.repair()?;
    let places =
        Places { root: &keeper.root, side_path: &root.side, side: &keeper.side, tree: &root.tree };
    let etc =
        Etc { added_hosts: &root.added_hosts, hosts: &spec.hosts, resolv_conf: &spec.resolv_conf };
    keeper.make_mount_points(&root.tree)?;
    let placed = Placed::put(&places, &spec.mounts, &etc)?;
    let step = Step { keeper: &keeper, root, spec, control, reaper: &reaper };
    let swapped = step.run();
    // Whatever happened: nothing of it may stay in the tree.
    let taken = placed.take_out();
    let swapped = swapped?;
    Ok(swapped.answer(taken?))
}

/// What can't be had where nothing may be unshared.
fn refuse(spec: &StepSpec) -> Result<(), SandboxError> {
    let not_possible = |what: &str| Err(SandboxError::NotOnSwap { what: what.to_owned() });
    match spec {
        StepSpec { network: StepNetwork::None, .. } => not_possible("RUN --network=none"),
        StepSpec { insecure: true, .. } => not_possible("RUN --security=insecure"),
        _ => Ok(()),
    }
}

/// Makes whole what a keeper that died has left, and ends the step's processes: all below `orphans_of`, or those that can be
/// told by what every step lacks.
pub(in super::super) fn repair_all(request: &RepairRequest) -> Result<Answer, SandboxError> {
    let own = getpid().as_raw_nonzero().get();
    let orphans = match request.orphans_of.and_then(Pid::from_raw) {
        Some(parent) => Reaper::observe()?.end_below(parent, &[own].into(), PATIENCE)?,
        None => Vec::new(),
    };
    if !request.side.exists() {
        return Ok(Answer::Repaired { orphans, found: false });
    }
    let keeper = Keeper::lock(&request.side, None)?;
    if request.orphans_of.is_none() && keeper.exchange.is_interrupted()? {
        // They are nobody's descendants any more.
        Reaper::observe()?.end_without(capabilities::WITHHELD, PATIENCE)?;
    }
    let found = keeper.repair()?;
    Ok(Answer::Repaired { orphans, found })
}

struct Keeper {
    root: OwnedFd,
    side: OwnedFd,
    side_path: PathBuf,
    exchange: Exchange,
}

impl Keeper {
    /// Opens everything and takes the lock. Where another build has it and `control` hangs up, the process ends.
    fn lock(side_path: &Path, control: Option<&UnixStream>) -> Result<Self, SandboxError> {
        let name = side_name(side_path)?;
        let root = open_directory(Path::new("/"))?;
        let side = open_directory(side_path)?;
        let place = Place::of_root(root.try_clone().named("dup", "/")?, name.as_bytes())?;
        let exchange = Exchange::lock(place, || wait_or_end(control))?;
        Ok(Keeper { root, side, side_path: side_path.to_owned(), exchange })
    }

    /// The three directories that every step has; they stay in the tree, as BuildKit leaves them behind.
    fn make_mount_points(&self, tree: &Path) -> Result<(), SandboxError> {
        let directory = open_directories(&self.side, tree).named("open", tree)?;
        let mut stubs = Stubs::new(directory.ok_or(Errno::NOENT).named("open", tree)?)?;
        for name in ["proc", "sys", "dev"] {
            stubs.plain_directory(name)?;
        }
        Ok(())
    }

    /// Whether there was anything to repair.
    fn repair(&self) -> Result<bool, SandboxError> {
        let repaired = self.exchange.repair()?;
        let placed = placed::repair(&self.root, &self.side, &self.side_path)?;
        Ok(placed || repaired != Repaired::Nothing)
    }
}

/// The side directory's name directly below the root.
fn side_name(side: &Path) -> Result<&OsStr, SandboxError> {
    let name = side.file_name().filter(|_| side.parent() == Some(Path::new("/")));
    name.ok_or_else(|| wire::protocol(format!("{} is not directly below /", side.display())))
}

fn open_directory(path: &Path) -> Result<OwnedFd, SandboxError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).named("open", path)
}

/// Nothing has been changed yet, so that the process may simply end when its builder is gone.
fn wait_or_end(control: Option<&UnixStream>) {
    let fds = [control.map(|control| control.as_fd())];
    if wait_readable(fds, LOCK_MILLISECONDS).is_ok_and(|[hung_up]| hung_up) {
        exit_now(1);
    }
}

struct Step<'a> {
    keeper: &'a Keeper,
    root: &'a SwapRoot,
    spec: &'a StepSpec,
    control: &'a UnixStream,
    reaper: &'a Reaper,
}

/// A step that was executed, with the root as it was.
struct Swapped {
    waited: Waited,
    entered: Vec<RenamedEntry>,
    out: SwappedOut,
    /// There and back.
    milliseconds: [u64; 2],
    notes: Vec<StepNote>,
}

impl Step<'_> {
    fn run(&self) -> Result<Swapped, SandboxError> {
        let exchange = &self.keeper.exchange;
        let stage = entry_path(&self.root.tree)?;
        let mut options = Options::new(self.working_directory()?);
        options.owned =
            self.root.owned.iter().map(|path| entry_path(path)).collect::<Result<_, _>>()?;
        let delayered = exchange.delayer(&stage, &options, self.root.delayer_bytes_max)?;
        let began = Instant::now();
        let plan = exchange.plan(&stage, &options)?;
        let volumes = Volumes::observe(&self.keeper.root, self.volumes(plan.staying()));
        let hidden = self.hidden(&plan.staying())?;
        let (protection, mut notes) = protection(self.spec)?;
        if delayered.bytes > DELAYERED_BYTES_UNTOLD {
            let milliseconds = Duration::from_secs_f64(delayered.seconds).as_millis();
            let milliseconds = u64::try_from(milliseconds).unwrap_or(u64::MAX);
            notes.push(StepNote::Delayered { bytes: delayered.bytes, milliseconds });
        }
        let swapped_in = plan.swap_in()?;
        let milliseconds_in = milliseconds(began);
        let entered = swapped_in.renamed().to_vec();
        if let Some(newest) = entered.iter().map(|entry| entry.stat.changed_at()).max() {
            wait_for_clock(newest);
        }
        let canary = Canary::set_out(self.keeper.side.try_clone().named("dup", &self.root.side)?);
        let execution =
            Execution { spec: self.spec, probe: false, control: self.control, has_reaper: true };
        let waited = execution.run(StepPlace::Here(protection));
        let ended = self.reaper.end_all(PATIENCE);
        notes.extend(canary.take_in().then_some(StepNote::ReachedAside));
        let shown = hidden.restore().named("restore", &self.root.tree);
        // Also with processes that can't be killed: the job goes on in this container.
        let began = Instant::now();
        let out = swapped_in.swap_out()?;
        let milliseconds = [milliseconds_in, milliseconds(began)];
        ended?;
        shown?;
        notes.extend(volumes.changed(&self.keeper.root));
        Ok(Swapped { waited: waited?, entered, out, milliseconds, notes })
    }

    /// What the stage has where something stays.
    fn hidden(&self, staying: &[EntryPath]) -> Result<Hidden, SandboxError> {
        let tree = open_directories(&self.keeper.side, &self.root.tree);
        let tree = tree.named("open", &self.root.tree)?;
        let tree = tree.ok_or(Errno::NOENT).named("open", &self.root.tree)?;
        let paths = staying.iter().map(|path| Path::new(OsStr::from_bytes(path.as_bytes())));
        Hidden::observe(&tree, paths).named("read", &self.root.tree)
    }

    /// What stays and is neither the kernel's nor ours.
    fn volumes(&self, staying: Vec<EntryPath>) -> Vec<EntryPath> {
        let side = self.root.side.file_name().unwrap_or_default();
        let own = [OsStr::new("dev"), OsStr::new("proc"), OsStr::new("sys"), side];
        let is_own = |path: &EntryPath| own.iter().any(|own| own.as_bytes() == path.as_bytes());
        staying.into_iter().filter(|path| !is_own(path)).collect()
    }

    /// Where the step works, its links resolved in the stage.
    fn working_directory(&self) -> Result<EntryPath, SandboxError> {
        let path = &self.spec.working_directory;
        let tree = open_directories(&self.keeper.side, &self.root.tree).named("open", path)?;
        let tree = tree.ok_or(Errno::NOENT).named("open", &self.root.tree)?;
        let resolved = walk_in_root(tree, path, LastLink::Follow).named("chdir", path)?;
        entry_path(&resolved.real)
    }
}

fn milliseconds(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn entry_path(path: &Path) -> Result<EntryPath, SandboxError> {
    EntryPath::clean(path.as_os_str().as_bytes()).map_err(wire::protocol)
}

/// What keeps the step from this process and the builder, and what is to be said of it.
fn protection(spec: &StepSpec) -> Result<(Protection, Vec<StepNote>), SandboxError> {
    if capabilities::may_reduce_bounding().named("capget", "")? {
        return Ok((Protection::LessCapability, Vec::new()));
    }
    match spec.user.uid {
        0 => Ok((Protection::Domain, vec![StepNote::NoNewPrivileges])),
        _ => Ok((Protection::User, Vec::new())),
    }
}

impl Swapped {
    fn answer(self, taken: TakenOut) -> Answer {
        let path = |path: &EntryPath| PathBuf::from(OsStr::from_bytes(path.as_bytes()));
        let mut notes = self.notes;
        notes.extend(taken.notes);
        let report = SwapReport {
            entered: self.entered,
            left: self.out.renamed,
            levels: self.out.levels,
            rewritten: self.out.rewritten.iter().map(path).collect(),
            lost: self.out.lost.iter().map(path).collect(),
            milliseconds_in: self.milliseconds[0],
            milliseconds_out: self.milliseconds[1],
            notes,
        };
        Answer::ended(self.waited, taken.stubs, Some(report))
    }
}
