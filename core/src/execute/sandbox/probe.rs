//! Whether a rung can be used here: found out by doing all of it in a child, short of executing a program.

use std::{
    fs::{DirBuilder, File},
    io::Read,
    os::{
        fd::OwnedFd,
        unix::{fs::DirBuilderExt, net::UnixStream},
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Mode, RenameFlags, mkdirat, renameat_with, stat, unlinkat},
    pipe::{PipeFlags, pipe_with},
    process::setsid,
};

use super::{
    SandboxError,
    error::Named,
    facts::Facts,
    helper,
    host::SWAP_STATE,
    id_map::{IdMap, enter},
    run::ask,
    spec::{OverlayRoot, StepSpec},
    verdict::{Probe, Unavailable, Verdict, Way},
    wire::{self, Request},
};
use crate::sys::{
    fs::{open_subdirectory, set_directory_mtime},
    process::{Fork, default_signal, exit_now, fork_single_threaded, install_descriptor, wait},
    remove::remove_tree,
};

/// Probes the `overlay` rung of a machine's root with its step directories in `work_directory`, which exists (the
/// state's `work`): the namespaces, an overlay of two layers there, /proc, /sys, /dev, the change of root, the seccomp
/// filter and the reduced capabilities.
pub async fn probe(work_directory: &Path) -> Probe {
    let verdict = match try_overlay(work_directory).await {
        Ok(()) => Verdict::Available,
        Err(error) => Verdict::Unavailable(Unavailable::new(error, &Facts::read())),
    };
    Probe {
        way: Way::OverlayRoot,
        state_directory: work_directory.to_owned(),
        one_id: None,
        shares_processes: false,
        verdict,
    }
}

async fn try_overlay(work_directory: &Path) -> Result<(), SandboxError> {
    let place = Place::new(work_directory)?;
    ask(Request::Probe(place.spec.clone()), |_, _| {}, std::future::pending()).await.map(|_| ())
}

/// The directories of a probe's step, removed at the end.
struct Place {
    directory: PathBuf,
    spec: StepSpec,
}

impl Place {
    fn new(work_directory: &Path) -> Result<Self, SandboxError> {
        let directory = tempfile::Builder::new().prefix("probe-").tempdir_in(work_directory);
        let directory = directory.named("mkdir", work_directory)?.keep();
        let below = |name: &str| {
            let path = directory.join(name);
            DirBuilder::new().mode(0o755).create(&path).named("mkdir", &path).map(|()| path)
        };
        let mut spec = StepSpec::new(OverlayRoot {
            lowers: vec![below("lower-a")?, below("lower-b")?],
            upper: below("upper")?,
            work: below("work")?,
            scratch: below("scratch")?,
        });
        spec.arguments = vec!["true".into()];
        Ok(Place { directory, spec })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The overlay leaves a directory of mode 0 in `work`, which only this removal looks into without privilege.
        let _ = remove_tree(&self.directory);
    }
}

/// One way to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attempt {
    /// The user namespace to enter first.
    pub map: Option<IdMap>,
    pub state_directory: PathBuf,
    pub share_processes: bool,
}

/// Does all of an attempt in a forked child; this process must have no other thread. A state directory that is missing
/// is made (mode 0700), and goes again if the attempt fails.
pub(super) fn attempt(attempt: &Attempt) -> Result<(), SandboxError> {
    let place = &attempt.state_directory;
    let made = !place.exists();
    let result = make_state_directory(place).and_then(|()| in_child(|| attempt_here(attempt)));
    if made && result.is_err() {
        // Kept where somebody has put something into it meanwhile.
        let _ = std::fs::remove_dir(place);
    }
    result
}

pub(super) fn make_state_directory(path: &Path) -> Result<(), SandboxError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).named("mkdir", path)
}

/// Tries to enter a user namespace, in a forked child.
pub(super) fn try_namespace(map: &IdMap) -> Result<(), SandboxError> {
    in_child(|| enter(map))
}

/// Does something in a forked child and returns what came of it.
fn in_child(work: impl FnOnce() -> Result<(), SandboxError>) -> Result<(), SandboxError> {
    let (answer, report) = pipe_with(PipeFlags::CLOEXEC).named("pipe", "")?;
    let child = match fork_single_threaded().named("fork", "")? {
        Fork::Child => {
            drop(answer);
            // A panic must not run the parent's frames in here.
            let sent = catch_unwind(AssertUnwindSafe(|| send(&work(), &report)));
            exit_now(if sent.is_ok_and(|sent| sent) { 0 } else { 1 })
        }
        Fork::Parent(child) => child,
    };
    drop(report);
    let mut bytes = Vec::new();
    let read = File::from(answer).read_to_end(&mut bytes).named("read", "pipe");
    let ended = wait(child).named("wait4", "")?.ended;
    read?;
    let answer: Option<Result<(), SandboxError>> = wire::receive_last(&bytes)?;
    answer.unwrap_or_else(|| Err(SandboxError::HelperDied { how: format!("{ended:?}") }))
}

fn send(answer: &Result<(), SandboxError>, report: &OwnedFd) -> bool {
    let Ok(bytes) = wire::frame(answer) else { return false };
    rustix::io::write(report, &bytes) == Ok(bytes.len())
}

fn attempt_here(attempt: &Attempt) -> Result<(), SandboxError> {
    default_signal(libc::SIGCHLD);
    setsid().named("setsid", "")?;
    if let Some(map) = &attempt.map {
        enter(map)?;
    }
    // A step becomes the owner of its output, which must not be the builder's own.
    let (_output, write) = pipe_with(PipeFlags::CLOEXEC).named("pipe", "")?;
    for number in [1, 2] {
        install_descriptor(&write, number).named("dup2", "output")?;
    }
    let (control, _other_end) = UnixStream::pair().named("socketpair", "")?;
    let place = Place::new(&attempt.state_directory)?;
    let spec = StepSpec { share_processes: attempt.share_processes, ..place.spec.clone() };
    helper::answer(Request::Probe(spec), &control).map(|_| ()).map_err(|error| match error {
        SandboxError::StateOnOverlay { .. } => SandboxError::StateOnOverlay {
            directory: attempt.state_directory.display().to_string(),
        },
        error => error,
    })
}

/// What the swap rung needs, tried: root with its capabilities in a container whose `/` is writable, and in which a
/// directory that was made can be renamed.
pub(super) fn probe_swap(facts: &Facts) -> Result<(), SandboxError> {
    if !facts.container {
        return Err(SandboxError::NoContainer);
    }
    if facts.uid != 0 {
        return Err(SandboxError::NotRoot { uid: facts.uid });
    }
    let missing = facts.missing_for_swap();
    if !missing.is_empty() {
        return Err(SandboxError::Capabilities { missing: missing.join(", ") });
    }
    rename_on_the_mount_of(Path::new("/"))
}

/// Makes a directory and renames it, in the swap rung's state where a build has made that: what is killed in between
/// leaves its trace there, and none at `root`.
fn rename_on_the_mount_of(root: &Path) -> Result<(), SandboxError> {
    let state = root.join(SWAP_STATE.trim_start_matches('/'));
    match stat(&state) {
        Ok(_) => rename_in(&state),
        Err(_) => {
            let before = stat(root);
            let renamed = rename_in(root);
            if let Ok(before) = before {
                let directory = open_subdirectory(CWD, root.as_os_str()).named("open", root)?;
                set_directory_mtime(&directory, before.st_mtime, before.st_mtime_nsec as u32)
                    .named("utimensat", root)?;
            }
            renamed
        }
    }
}

fn rename_in(place: &Path) -> Result<(), SandboxError> {
    let process = std::process::id();
    let old = place.join(format!(".bareboat-probe-{process}"));
    let new = place.join(format!(".bareboat-probed-{process}"));
    mkdirat(CWD, &old, Mode::RWXU).named("mkdir", &old)?;
    let renamed = renameat_with(CWD, &old, CWD, &new, RenameFlags::NOREPLACE);
    let left = if renamed.is_ok() { &new } else { &old };
    unlinkat(CWD, left, AtFlags::REMOVEDIR).named("rmdir", left)?;
    renamed.named("rename", old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_says_what_is_missing() {
        let all = super::super::capabilities::default_mask();
        let container = Facts { container: true, capabilities: all, ..Facts::default() };
        let refused = |facts: Facts| probe_swap(&facts).unwrap_err().to_string();
        assert!(refused(Facts { container: false, ..container.clone() }).contains("no container"));
        assert!(refused(Facts { uid: 1000, ..container.clone() }).contains("1000"));
        let less = Facts { capabilities: all & !1, ..container };
        assert!(refused(less).contains("CAP_CHOWN"));
    }

    #[test]
    fn a_root_where_nothing_can_be_made_is_told() {
        let scratch = tempfile::tempdir().unwrap();
        rename_on_the_mount_of(scratch.path()).unwrap();
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
        let error = rename_on_the_mount_of(&scratch.path().join("missing")).unwrap_err();
        assert!(error.to_string().contains("mkdir"), "{error}");
    }

    /// Whoever is killed while it probes could not put the root's time back.
    #[test]
    fn a_root_with_a_state_is_not_touched() {
        let scratch = tempfile::tempdir().unwrap();
        let state = scratch.path().join(SWAP_STATE.trim_start_matches('/'));
        std::fs::create_dir(&state).unwrap();
        let before = stat(scratch.path()).unwrap();
        rename_on_the_mount_of(scratch.path()).unwrap();
        let after = stat(scratch.path()).unwrap();
        assert_eq!((before.st_ctime, before.st_ctime_nsec), (after.st_ctime, after.st_ctime_nsec));
        assert_eq!(std::fs::read_dir(&state).unwrap().count(), 0);
    }
}
