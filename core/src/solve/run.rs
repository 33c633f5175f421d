//! Executing a RUN: the tree of its stage in an overlay, the step in its box, the upper directory as the layer.

use std::{
    collections::VecDeque,
    ffi::OsString,
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use crate::{
    error::{Class, Error},
    event::OutputStream,
    execute::{
        sandbox::{
            self, OverlayRoot, Probe, Rung, StepExit, StepNetwork, StepSpec, StepUser, Ulimit,
            Unavailable, Verdict,
        },
        users::RunUser,
    },
    plan::{Network, RunOp, TreeSource},
    resolve::LayerRef,
    rootfs,
    snapshot::{DiffOptions, LowerDirectories, overlay_diff, settle},
    tree::{Changeset, EntryPath, Kind, LastLink, Snapshot},
};

use super::{Solver, StageResult, blocking, layers::host, stage::Executed, vertex::Vertex};

/// The chains that overlayfs looks names up in quickly; older layers are merged beyond it (rules.md, trees on disk).
const LOWERS_MAX: usize = 128;
/// How much of a failing step's output its error repeats.
const TAIL_LINES: usize = 20;
const TAIL_BYTES: usize = 8 << 10;

/// A step's directories, deleted when the step is over.
struct Place {
    store: crate::store::Store,
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
    pub async fn execute_run(
        &self,
        run: &RunOp,
        below: &StageResult,
        vertex: &Vertex,
    ) -> Result<Executed, Error> {
        // Before the token: the stages that mounts read need tokens themselves.
        for source in run.mounts.iter().filter_map(|mount| mount.from.as_ref()) {
            if let TreeSource::Stage(index) = source {
                self.stage(*index).await?;
            }
        }
        let _token = self.tokens.acquire().await.map_err(|e| Error::from_cause(Class::Bug, e))?;
        self.find_rung().await?;
        let snapshot = self.layers.snapshot(&below.layers).await?;
        let user = self.run_user(run, &below.layers, &snapshot).await?;
        self.check_owners(run, &snapshot, &user)?;
        let trees = self.layers.trees(&below.layers).await?;
        let place = self.place()?;
        // overlayfs takes no opaque mark on a layer's root: what lies below one is left out.
        let visible = rootfs::lowest_visible_layer(&snapshot);
        let lowers = self.lowers(&below.layers[visible..], &trees[visible..]).await?;
        self.make_working_directory(run, &below.layers, &snapshot, &place).await?;
        let mut spec = StepSpec::new(OverlayRoot {
            lowers,
            upper: place.upper(),
            work: place.work.join("work"),
            scratch: place.work.join("box"),
        });
        let mounts = self.mounts(run, &place.work).await?;
        let environment = environment(run, &user, &mounts.environment);
        spec.mounts = mounts.mounts.clone();
        self.describe(&mut spec, run, user, environment);
        let tail = Arc::new(Mutex::new(Tail::default()));
        let report = self.run_step(spec, vertex, &tail).await;
        drop(mounts);
        let report = report?;
        check_exit(run, report.exit, &tail)?;
        let stubs = stub_paths(&report.stubs)?;
        self.layer_of_upper(place, snapshot, trees, stubs).await
    }

    /// Makes sure that steps can be executed on this host: by what was found out at the start, else, once a build, by
    /// doing it.
    async fn find_rung(&self) -> Result<(), Error> {
        let host = &self.parts.services.host;
        if host.is_probed {
            return match host.rung {
                Some(Rung::Overlay) => Ok(()),
                _ => Err(no_rung(&host.verdicts)),
            };
        }
        let probe = self.rung.get_or_init(|| sandbox::probe(self.parts.store.work())).await;
        match probe.is_available() {
            true => Ok(()),
            false => Err(no_rung(std::slice::from_ref(probe))),
        }
    }

    /// With a single id nothing can have another owner: unpacked layers would lose theirs, and with them the digests
    /// their truth.
    fn check_owners(&self, run: &RunOp, snapshot: &Snapshot, user: &RunUser) -> Result<(), Error> {
        let Some(reason) = &self.parts.services.host.one_id else { return Ok(()) };
        let rows = snapshot.layers().iter().flat_map(|layer| layer.index.rows());
        let foreign = rows
            .filter(|row| row.kind != Kind::Whiteout)
            .find(|row| (row.metadata.uid, row.metadata.gid) != (0, 0));
        let what = match foreign {
            Some(row) => format!(
                "{} in its base belongs to {}:{}",
                row.path, row.metadata.uid, row.metadata.gid
            ),
            None if (user.uid, user.gid) != (0, 0) => {
                format!("it runs as {}:{}", user.uid, user.gid)
            }
            None => return Ok(()),
        };
        let command = run.argv.join(" ");
        let title = format!(
            "RUN {command:?} needs more than one user id, and this user may map only its own: {what}"
        );
        Err(Error::new(Class::Host, title).hint(reason.remedy()))
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

    /// A WORKDIR that a step removed is made again, as BuildKit does.
    async fn make_working_directory(
        &self,
        run: &RunOp,
        layers: &[LayerRef],
        snapshot: &Snapshot,
        place: &Place,
    ) -> Result<(), Error> {
        let path = EntryPath::clean(run.working_directory.as_bytes())
            .map_err(|error| Error::from_cause(Class::Input, error))?;
        let there = snapshot.resolve(&path, LastLink::Follow);
        if there.map_err(|error| Error::from_cause(Class::Input, error))?.is_directory() {
            return Ok(());
        }
        let changeset = self.working_directory(&run.working_directory, layers, snapshot).await?;
        let upper = open(&place.upper())?;
        let cap = self.parts.request.source_date_epoch;
        blocking(move || rootfs::apply_changeset(upper, &changeset, cap)).await?.map_err(host)
    }

    fn describe(
        &self,
        spec: &mut StepSpec,
        run: &RunOp,
        user: RunUser,
        environment: Vec<OsString>,
    ) {
        let request = &self.parts.request;
        spec.arguments = run.argv.iter().map(OsString::from).collect();
        spec.environment = environment;
        if let Ok(path) = EntryPath::clean(run.working_directory.as_bytes()) {
            let path = OsString::from_vec([b"/", path.as_bytes()].concat());
            spec.working_directory = PathBuf::from(path);
        }
        spec.user = StepUser { uid: user.uid, gid: user.gid, groups: user.groups };
        if let Some(name) = &run.host_name {
            spec.host_name.clone_from(name);
        }
        spec.resolv_conf.clone_from(&self.parts.services.resolv_conf);
        spec.hosts = hosts(&spec.host_name, &request.add_hosts);
        spec.insecure = run.insecure;
        spec.network = match run.network {
            Network::None => StepNetwork::None,
            Network::Default | Network::Host => StepNetwork::Builder,
        };
        spec.shm_bytes = request.shm_bytes.unwrap_or(spec.shm_bytes);
        let limit = |(name, soft, hard): &(String, i64, i64)| Ulimit {
            name: name.clone(),
            soft: *soft,
            hard: *hard,
        };
        spec.ulimits = request.ulimits.iter().map(limit).collect();
        spec.share_processes = self.parts.services.host.shares_processes;
    }

    async fn run_step(
        &self,
        spec: StepSpec,
        vertex: &Vertex,
        tail: &Arc<Mutex<Tail>>,
    ) -> Result<sandbox::StepReport, Error> {
        let _ = self.sandbox.set("overlay");
        let mut cancel = self.parts.services.cancel.clone();
        let canceled = async move {
            if cancel.wait_for(Option::is_some).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let output = |stream: OutputStream, bytes: &[u8]| {
            vertex.output(stream, bytes);
            tail.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(bytes);
        };
        sandbox::run(spec, output, canceled).await.map_err(|error| {
            let hint = error.hint();
            let error = Error::from_cause(error.class(), error);
            error.maybe_hint(hint)
        })
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
        let upper = open(&place.upper())?;
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

/// The error of a RUN that no rung can execute: what was tried, and the first remedy.
fn no_rung(verdicts: &[Probe]) -> Error {
    let refused = |probe: &Probe| match &probe.verdict {
        Verdict::Unavailable(refused) => Some(refused.clone()),
        Verdict::Available => None,
    };
    let first: Option<Unavailable> = verdicts.iter().find_map(refused);
    let why = first
        .as_ref()
        .map_or("--sandbox none forbids it".to_owned(), |refused| refused.error.to_string());
    let hint = first.and_then(|refused| refused.remedy.or(refused.meaning.map(str::to_owned)));
    let hint = hint.unwrap_or_else(|| {
        "RUN needs a way to be executed; COPY, ADD and WORKDIR need none".into()
    });
    Error::new(Class::Host, format!("RUN cannot be executed on this host: {why}"))
        .hint(hint)
        .with_notes(verdicts.iter().map(Probe::to_string).collect())
}

fn diff(
    upper: &OwnedFd,
    snapshot: &Snapshot,
    trees: &[PathBuf],
    cap: Option<i64>,
    stubs: &[EntryPath],
) -> Result<Changeset, Error> {
    let trees = trees.iter().map(|tree| open(tree).map(Arc::new)).collect::<Result<_, _>>()?;
    let options = DiffOptions { mtime_seconds_max: cap, ignore: stubs };
    overlay_diff(upper.as_fd(), snapshot, &LowerDirectories(trees), &options)
        .map_err(|error| Error::from_cause(Class::Step, error))
}

fn stub_paths(stubs: &[PathBuf]) -> Result<Vec<EntryPath>, Error> {
    let clean =
        |path: &PathBuf| EntryPath::clean(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()));
    stubs.iter().map(clean).collect::<Result<_, _>>().map_err(host)
}

fn open(path: &Path) -> Result<OwnedFd, Error> {
    File::open(path).map(OwnedFd::from).map_err(host)
}

/// /etc/hosts as BuildKit writes it.
fn hosts(host_name: &str, added: &[(String, String)]) -> Vec<u8> {
    let mut text =
        format!("127.0.0.1\tlocalhost {host_name}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for (name, address) in added {
        text.push_str(&format!("{address}\t{name}\n"));
    }
    text.into_bytes()
}

/// The image's ENV and the ARGs, then proxies, HOME where it is not set, and what mounts ask for.
fn environment(run: &RunOp, user: &RunUser, mounts: &[(String, Vec<u8>)]) -> Vec<OsString> {
    let proxies = run.proxies.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let pairs = run.environment.pairs().into_iter().chain(proxies);
    let mut environment: Vec<OsString> =
        pairs.map(|(name, value)| OsString::from(format!("{name}={value}"))).collect();
    if run.environment.get("HOME").is_none() {
        let mut pair = b"HOME=".to_vec();
        pair.extend_from_slice(&user.home);
        environment.push(OsString::from_vec(pair));
    }
    for (name, value) in mounts {
        let mut pair = format!("{name}=").into_bytes();
        pair.extend_from_slice(value);
        environment.push(OsString::from_vec(pair));
    }
    environment
}

fn check_exit(run: &RunOp, exit: StepExit, tail: &Mutex<Tail>) -> Result<(), Error> {
    let how = match exit {
        StepExit::Code(0) => return Ok(()),
        StepExit::Code(code) => format!("exit code: {code}"),
        StepExit::Signal(signal) => format!("killed by signal {signal} ({})", signal_name(signal)),
    };
    let command = run.argv.join(" ");
    let title = format!("process {command:?} did not complete successfully: {how}");
    let error = Error::new(Class::Step, title);
    let tail = tail.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).text();
    Err(if tail.is_empty() { error } else { error.with_output(tail) })
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL, perhaps for want of memory",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        _ => "see signal(7)",
    }
}

/// The end of a step's output, bounded.
#[derive(Default)]
struct Tail(VecDeque<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(TAIL_BYTES)..];
        self.0.extend(bytes);
        let excess = self.0.len().saturating_sub(TAIL_BYTES);
        self.0.drain(..excess);
    }

    fn text(&self) -> String {
        let bytes: Vec<u8> = self.0.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.trim_end().lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_bounded_and_holds_the_last_lines() {
        let mut tail = Tail::default();
        for line in 0..10_000 {
            tail.push(format!("line {line}\n").as_bytes());
        }
        tail.push(&vec![b'x'; 100_000]);
        tail.push(b"\nend\n");
        assert!(tail.0.len() <= TAIL_BYTES);
        assert!(tail.text().ends_with("\nend"));
        let mut tail = Tail::default();
        (0..50).for_each(|line| tail.push(format!("{line}\n").as_bytes()));
        assert_eq!(tail.text().lines().collect::<Vec<_>>()[0], "30");
    }

    #[test]
    fn hosts_are_buildkits() {
        let text = hosts("box", &[("db".into(), "10.0.0.1".into())]);
        let expected =
            "127.0.0.1\tlocalhost box\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.1\tdb\n";
        assert_eq!(text, expected.as_bytes());
    }
}
