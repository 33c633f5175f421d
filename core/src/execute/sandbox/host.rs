//! Choosing how RUN is executed on this host, and where the state lies.
//!
//! A user namespace can only be entered by a process without threads, and everything that writes, reads or deletes a
//! step's files has to be inside; so the whole builder enters it, before its first thread starts.

use std::{
    fmt,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{
    SandboxError,
    error::Errno,
    facts::Facts,
    id_map::{IdMap, OneId, enter},
    probe::{Attempt, attempt, make_state_directory, probe_swap, try_namespace},
    verdict::{Probe, Rung, Unavailable, Verdict, Way},
};
use crate::request::SandboxChoice;

/// The flavour of trees that the machine's root unpacks: owners as they are.
const ROOT_FLAVOUR: &str = "root";

/// The state's name on a volume that others use too.
const NAME_ON_VOLUME: &str = ".bareboat";

/// Where swap has its state: on the very mount that it swaps.
pub const SWAP_STATE: &str = "/.bareboat";

/// What is asked of a host.
#[derive(Clone, Debug, Default)]
pub struct HostRequest {
    pub choice: SandboxChoice,
    /// The state directory that was asked for; nothing else is tried then.
    pub named: Option<PathBuf>,
    /// Where the state lies if nothing speaks against it: the user's data directory.
    pub usual: Option<PathBuf>,
    /// No volume below any of them is taken: the build contexts, of which the state would be a part.
    pub contexts: Vec<PathBuf>,
    /// Where CI systems mount volumes that could hold the state, in a container.
    pub work_volumes: Vec<PathBuf>,
    /// Mounts that other processes of the job use while a step is executed.
    pub owned: Vec<PathBuf>,
}

/// How this host executes RUN.
#[derive(Clone, Debug)]
pub struct Host {
    /// `None`: RUN can't be executed here; `verdicts` say why.
    pub rung: Option<Rung>,
    pub state_directory: PathBuf,
    /// The user namespace that this process is in now, if it entered one.
    pub user_namespace: Option<IdMap>,
    /// Why that namespace has a single id, where it has.
    pub one_id: Option<OneId>,
    /// Under which trees are kept: they hold the ids of this namespace.
    pub flavour: String,
    /// A new /proc is refused: steps see the builder's processes.
    pub shares_processes: bool,
    /// On the swap rung: mounts that stay where they are unless the stage has files there, because others use them.
    pub owned: Vec<PathBuf>,
    /// Whether the rung was probed. A plain machine's is when the first RUN needs it.
    pub is_probed: bool,
    /// What was tried, in order.
    pub verdicts: Vec<Probe>,
}

impl Host {
    /// A machine's root, which is probed when the first RUN needs it.
    pub fn machine(state_directory: PathBuf) -> Self {
        Host {
            rung: Some(Rung::Overlay),
            state_directory,
            user_namespace: None,
            one_id: None,
            flavour: ROOT_FLAVOUR.to_owned(),
            shares_processes: false,
            owned: Vec::new(),
            is_probed: false,
            verdicts: Vec::new(),
        }
    }

    /// What was tried, a line each.
    pub fn table(&self) -> Table<'_> {
        Table(&self.verdicts)
    }
}

/// Verdicts as lines.
pub struct Table<'a>(&'a [Probe]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|probe| writeln!(f, "{probe}"))
    }
}

/// Chooses the best rung that works here, and enters the user namespace that it needs. To be called before the first
/// thread starts. No rung is no error: a build without RUN needs none.
///
/// # Errors
/// The namespace that worked in a probe could not be entered: this process must end.
pub fn choose(request: &HostRequest) -> Result<Host, SandboxError> {
    let facts = Facts::read();
    let forced = !matches!(request.choice, SandboxChoice::Auto | SandboxChoice::Overlay);
    if !forced && facts.is_plain_machine() {
        let directory = request.named.clone().or_else(|| request.usual.clone());
        return Ok(Host::machine(directory.unwrap_or_default()));
    }
    let (decision, verdicts) = survey_with(request, &facts, false);
    let map = decision.as_ref().and_then(|decision| decision.attempt.map.clone());
    if let Some(map) = &map {
        enter(map)?;
    }
    Ok(host(request, &facts, decision, verdicts))
}

/// Probes every rung, for people. Changes nothing; to be called before the first thread starts.
pub fn survey(request: &HostRequest) -> Vec<Probe> {
    survey_with(request, &Facts::read(), true).1
}

/// Where builds with these wishes have left a state directory; without one, where it usually lies.
pub fn existing_state(request: &HostRequest) -> Option<PathBuf> {
    let facts = Facts::read();
    let mut places = places(request, &facts);
    if request.named.is_none() && facts.container {
        places.extend([PathBuf::from(SWAP_STATE), last_place(&facts)]);
    }
    let usual = places.first().cloned();
    places.into_iter().find(|place| place.join("version").is_file()).or(usual)
}

/// Enters the namespace whose ids the trees of an ordinary user have, so that they can be deleted; does nothing where
/// there is none to enter or no need. To be called before the first thread starts.
///
/// # Errors
/// As [`choose`].
pub fn enter_for_deletion() -> Result<(), SandboxError> {
    let facts = Facts::read();
    if facts.uid == 0 {
        return Ok(());
    }
    match IdMap::of_user() {
        Ok(map) if try_namespace(&map).is_ok() => enter(&map),
        _ => Ok(()),
    }
}

fn host(
    request: &HostRequest,
    facts: &Facts,
    decision: Option<Decision>,
    verdicts: Vec<Probe>,
) -> Host {
    let Some(Decision { rung, attempt, one_id }) = decision else {
        return Host {
            rung: None,
            is_probed: true,
            verdicts,
            flavour: flavour(None, facts),
            ..Host::machine(state_without_rung(request, facts))
        };
    };
    Host {
        rung: Some(rung),
        state_directory: attempt.state_directory,
        flavour: flavour(attempt.map.as_ref(), facts),
        user_namespace: attempt.map,
        one_id,
        shares_processes: attempt.share_processes,
        owned: request.owned.clone(),
        is_probed: true,
        verdicts,
    }
}

fn flavour(map: Option<&IdMap>, facts: &Facts) -> String {
    match map {
        Some(map) => map.flavour(&facts.uid_map),
        None if facts.initial_user_namespace => ROOT_FLAVOUR.to_owned(),
        None => IdMap::identity(&facts.uid_map, &facts.gid_map).flavour(&facts.uid_map),
    }
}

/// What was decided.
struct Decision {
    rung: Rung,
    attempt: Attempt,
    one_id: Option<OneId>,
}

/// The calls that a survey makes. Tests give their own.
struct Calls<'a> {
    attempt: &'a mut dyn FnMut(&Attempt) -> Result<(), SandboxError>,
    swap: &'a mut dyn FnMut() -> Result<(), SandboxError>,
    maps: Vec<(IdMap, Option<OneId>)>,
}

fn survey_with(request: &HostRequest, facts: &Facts, all: bool) -> (Option<Decision>, Vec<Probe>) {
    let calls = Calls { attempt: &mut attempt, swap: &mut || probe_swap(facts), maps: maps(facts) };
    Survey { request, facts, all, calls, decision: None, verdicts: Vec::new() }.run()
}

/// The maps that this process may try, the better one first.
fn maps(facts: &Facts) -> Vec<(IdMap, Option<OneId>)> {
    if facts.uid == 0 && facts.may_write_maps() {
        return vec![(IdMap::identity(&facts.uid_map, &facts.gid_map), None)];
    }
    match IdMap::of_user() {
        Ok(map) => vec![(map, None), (IdMap::oneself(), Some(OneId::HelperRefused))],
        Err(reason) => vec![(IdMap::oneself(), Some(reason))],
    }
}

struct Survey<'a> {
    request: &'a HostRequest,
    facts: &'a Facts,
    /// Go on after a rung was found.
    all: bool,
    calls: Calls<'a>,
    decision: Option<Decision>,
    verdicts: Vec<Probe>,
}

impl Survey<'_> {
    fn run(mut self) -> (Option<Decision>, Vec<Probe>) {
        let choice = self.request.choice;
        if matches!(choice, SandboxChoice::Auto | SandboxChoice::Overlay) {
            if self.facts.may_mount() {
                self.overlay(Way::OverlayRoot, None, None);
            }
            self.user_namespaces();
        }
        if matches!(choice, SandboxChoice::Auto | SandboxChoice::Swap) && self.wants_more() {
            self.swap();
        }
        (self.decision, self.verdicts)
    }

    /// A poorer map is tried only where the better one was refused, not where nothing can be done in a namespace.
    fn user_namespaces(&mut self) {
        if !self.wants_more() {
            return;
        }
        for (map, one_id) in std::mem::take(&mut self.calls.maps) {
            self.overlay(Way::OverlayUserNamespace, Some(map), one_id);
            let refused = self.verdicts.last().is_some_and(is_map_refused);
            if !refused {
                return;
            }
        }
    }

    fn wants_more(&self) -> bool {
        self.all || self.decision.is_none()
    }

    fn overlay(&mut self, way: Way, map: Option<IdMap>, one_id: Option<OneId>) {
        let tried = self.try_places(&map);
        let verdict = match &tried {
            Ok(_) => Verdict::Available,
            Err((_, error)) => Verdict::Unavailable(Unavailable::new(error.clone(), self.facts)),
        };
        let probe = Probe {
            way,
            state_directory: match &tried {
                Ok(attempt) => attempt.state_directory.clone(),
                Err((place, _)) => place.clone(),
            },
            one_id: one_id.clone(),
            shares_processes: tried.as_ref().is_ok_and(|attempt| attempt.share_processes),
            verdict,
        };
        self.verdicts.push(probe);
        if let (Ok(attempt), None) = (tried, &self.decision) {
            self.decision = Some(Decision { rung: Rung::Overlay, attempt, one_id });
        }
    }

    /// The first place that works. Where none does, what the first one's failure was.
    fn try_places(&mut self, map: &Option<IdMap>) -> Result<Attempt, (PathBuf, SandboxError)> {
        let mut first = None;
        for state_directory in places(self.request, self.facts) {
            let attempt = Attempt { map: map.clone(), state_directory, share_processes: false };
            match self.try_place(attempt) {
                Ok(attempt) => return Ok(attempt),
                Err((place, error)) => {
                    let is_final = !is_of_place(&error);
                    let failure = (place, error);
                    if is_final {
                        return Err(failure);
                    }
                    first.get_or_insert(failure);
                }
            }
        }
        let none = SandboxError::Call {
            call: "mkdir".into(),
            object: "state directory".into(),
            errno: Errno(libc::ENOENT),
        };
        Err(first.unwrap_or((PathBuf::new(), none)))
    }

    /// With a /proc of its own; where that is refused, with the one that is there.
    fn try_place(&mut self, attempt: Attempt) -> Result<Attempt, (PathBuf, SandboxError)> {
        let shared = match (self.calls.attempt)(&attempt) {
            Ok(()) => return Ok(attempt),
            Err(error) if is_proc_refused(&error) => Attempt { share_processes: true, ..attempt },
            Err(error) => return Err((attempt.state_directory, error)),
        };
        match (self.calls.attempt)(&shared) {
            Ok(()) => Ok(shared),
            Err(error) => Err((shared.state_directory, error)),
        }
    }

    fn swap(&mut self) {
        let state_directory =
            self.request.named.clone().unwrap_or_else(|| PathBuf::from(SWAP_STATE));
        let tried = (self.calls.swap)();
        let verdict = match &tried {
            Ok(()) => Verdict::Available,
            Err(error) => Verdict::Unavailable(Unavailable::new(error.clone(), self.facts)),
        };
        if tried.is_ok() && self.decision.is_none() {
            let attempt = Attempt {
                map: None,
                state_directory: state_directory.clone(),
                share_processes: true,
            };
            self.decision = Some(Decision { rung: Rung::Swap, attempt, one_id: None });
        }
        let (one_id, shares_processes) = (None, true);
        self.verdicts.push(Probe {
            way: Way::Swap,
            state_directory,
            one_id,
            shares_processes,
            verdict,
        });
    }
}

fn is_map_refused(probe: &Probe) -> bool {
    matches!(
        &probe.verdict,
        Verdict::Unavailable(Unavailable { error: SandboxError::IdMap { .. }, .. })
    )
}

fn is_proc_refused(error: &SandboxError) -> bool {
    matches!(error, SandboxError::Call { call, errno, .. } if call == "mount proc" && errno.0 == libc::EPERM)
}

/// Whether another place may do better.
fn is_of_place(error: &SandboxError) -> bool {
    match error {
        SandboxError::StateOnOverlay { .. } => true,
        SandboxError::Call { call, errno, .. } => {
            call == "mkdir" || (call == "mount overlay" && errno.0 == libc::EINVAL)
        }
        _ => false,
    }
}

/// Where the state may lie, the most wanted place first.
fn places(request: &HostRequest, facts: &Facts) -> Vec<PathBuf> {
    if let Some(named) = &request.named {
        return vec![named.clone()];
    }
    let mut places: Vec<PathBuf> = request.usual.iter().cloned().collect();
    if facts.container {
        let volumes = request.work_volumes.iter().cloned();
        let volumes = volumes.chain(facts.empty_directories.iter().cloned());
        let is_free = |path: &PathBuf| {
            path.is_dir() && !request.contexts.iter().any(|context| path.starts_with(context))
        };
        places.extend(volumes.filter(is_free).map(|path| path.join(NAME_ON_VOLUME)));
    }
    places
}

/// Without a rung the state needs no more than to be written to.
fn state_without_rung(request: &HostRequest, facts: &Facts) -> PathBuf {
    if let Some(named) = &request.named {
        return named.clone();
    }
    let mut places = places(request, facts);
    places.push(last_place(facts));
    let usable = places.into_iter().find(|place| is_usable(place, facts.uid));
    usable.or_else(|| request.usual.clone()).unwrap_or_default()
}

/// Where a build without a rung goes when nothing else can be written to.
fn last_place(facts: &Facts) -> PathBuf {
    PathBuf::from(format!("/tmp/bareboat-{}", facts.uid))
}

/// Whether a directory is, or can be made, this user's own and writable.
fn is_usable(place: &Path, uid: u32) -> bool {
    let others = 0o022;
    let made = !place.exists();
    let usable = make_state_directory(place).is_ok()
        && place.metadata().is_ok_and(|found| found.uid() == uid && found.mode() & others == 0)
        && tempfile::tempfile_in(place).is_ok();
    if made && !usable {
        // If it could be made at all.
        let _ = std::fs::remove_dir(place);
    }
    usable
}

#[cfg(test)]
mod tests;
