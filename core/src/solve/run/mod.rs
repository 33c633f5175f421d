//! Executing a RUN: the tree of its stage, the step in its box, what it changed as the layer.

mod overlay;
mod swap;
mod trees;

use std::{
    collections::VecDeque,
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use tokio::sync::SemaphorePermit;

use crate::{
    error::{Class, Error},
    event::OutputStream,
    execute::{
        sandbox::{
            self, Probe, Rung, StepExit, StepNetwork, StepSpec, StepUser, Ulimit, Unavailable,
            Verdict,
        },
        users::RunUser,
    },
    plan::{Network, RunOp, TreeSource},
    resolve::LayerRef,
    tree::{Changeset, EntryPath, Kind, LastLink, Snapshot},
};

pub use trees::PlainTrees;

use super::{Solver, StageResult, layers::host, stage::Executed, vertex::Vertex};

/// How much of a failing step's output its error repeats.
const TAIL_LINES: usize = 20;
const TAIL_BYTES: usize = 8 << 10;

/// A step that ended well.
struct Ran {
    report: sandbox::StepReport,
    /// What its mounts made in the image.
    stubs: Vec<EntryPath>,
}

impl Solver {
    /// `stage` is the index of the step's stage.
    pub async fn execute_run(
        &self,
        stage: usize,
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
        self.find_rung().await?;
        match self.parts.services.host.rung {
            Some(Rung::Swap) => self.run_on_swap(stage, run, below, vertex).await,
            _ => self.run_on_overlay(run, below, vertex).await,
        }
    }

    /// The right to execute a step, until it is dropped.
    async fn token(&self) -> Result<SemaphorePermit<'_>, Error> {
        self.tokens.acquire().await.map_err(|error| Error::from_cause(Class::Bug, error))
    }

    /// Makes sure that steps can be executed on this host: by what was found out at the start, else, once a build, by
    /// doing it.
    pub async fn find_rung(&self) -> Result<(), Error> {
        let host = &self.parts.services.host;
        if host.is_probed {
            return match host.rung {
                Some(_) => Ok(()),
                None => Err(no_rung(&host.verdicts)),
            };
        }
        let probe =
            self.rung.get_or_init(|| async { sandbox::probe(&self.parts.store.work()).await });
        let probe = probe.await;
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

    /// Runs a step with all that the Dockerfile and the request say of it; a step that fails is an error.
    async fn run_step(
        &self,
        mut spec: StepSpec,
        run: &RunOp,
        layers: &[LayerRef],
        snapshot: &Snapshot,
        work: &Path,
        vertex: &Vertex,
    ) -> Result<Ran, Error> {
        let user = self.run_user(run, layers, snapshot).await?;
        let mounts = self.mounts(run, work).await?;
        let environment = environment(run, &user, &mounts.environment);
        spec.mounts = mounts.mounts.clone();
        self.describe(&mut spec, run, user, environment);
        let tail = Arc::new(Mutex::new(Tail::default()));
        let report = self.execute(spec, vertex, &tail).await;
        drop(mounts);
        let report = report?;
        check_exit(run, report.exit, &tail)?;
        let stubs = stub_paths(&report.stubs)?;
        Ok(Ran { report, stubs })
    }

    /// The changes that make a WORKDIR that a step removed, as BuildKit does; none where it is there.
    async fn missing_working_directory(
        &self,
        run: &RunOp,
        layers: &[LayerRef],
        snapshot: &Snapshot,
    ) -> Result<Option<Changeset>, Error> {
        let path = EntryPath::clean(run.working_directory.as_bytes())
            .map_err(|error| Error::from_cause(Class::Input, error))?;
        let there = snapshot.resolve(&path, LastLink::Follow);
        if there.map_err(|error| Error::from_cause(Class::Input, error))?.is_directory() {
            return Ok(None);
        }
        self.working_directory(&run.working_directory, layers, snapshot).await.map(Some)
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

    async fn execute(
        &self,
        spec: StepSpec,
        vertex: &Vertex,
        tail: &Arc<Mutex<Tail>>,
    ) -> Result<sandbox::StepReport, Error> {
        let rung = self.parts.services.host.rung.unwrap_or(Rung::Overlay);
        let _ = self.sandbox.set(rung.name());
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

fn stub_paths(stubs: &[PathBuf]) -> Result<Vec<EntryPath>, Error> {
    let clean =
        |path: &PathBuf| EntryPath::clean(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()));
    stubs.iter().map(clean).collect::<Result<_, _>>().map_err(host)
}

/// /etc/hosts as BuildKit writes it.
fn hosts(host_name: &str, added: &[(String, String)]) -> Vec<u8> {
    let own =
        format!("127.0.0.1\tlocalhost {host_name}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    [own.into_bytes(), host_lines(added)].concat()
}

/// The lines of `--add-host`.
fn host_lines(added: &[(String, String)]) -> Vec<u8> {
    added.iter().flat_map(|(name, address)| format!("{address}\t{name}\n").into_bytes()).collect()
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
