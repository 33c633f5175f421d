//! The helper: one single-threaded process a step, which puts the box together, forks the step and ends it. It answers
//! once on its socket; when the builder's end of that closes, it kills the step.

use std::{
    io::Read,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, setsid, umask},
    thread::UnshareFlags,
};

use super::{
    SandboxError,
    error::Named,
    mounts::mount_all,
    overlay::Layers,
    reap::{PATIENCE, Reaper},
    seccomp::step_filter,
    spec::{OverlayRoot, StepNetwork, StepRoot, StepSpec},
    staging::Staging,
    step::{StepPlace, StepPlan, become_step, resource},
    stubs::Stubs,
    swap,
    system::mount_system,
    wire::{self, Answer, Request},
};
use crate::sys::{
    fs::open_directory_handle,
    namespace::{make_mounts_private, set_host_name, unshare},
    network::bring_loopback_up,
    process::{
        Fork, Waited, adopt_descriptor, default_signal, fork_single_threaded, install_descriptor,
        set_nondumpable, wait, wait_now, wait_readable,
    },
};

/// How often the child is asked for where its end can't be waited for by descriptor.
const POLL_MILLISECONDS: i32 = 20;

/// Serves one request on the socket that is descriptor 0. Descriptors 1 and 2 are the step's output.
pub(super) fn serve() -> Result<(), SandboxError> {
    let mut control = UnixStream::from(adopt_descriptor(0).named("fcntl", "socket")?);
    // With an inherited SIG_IGN the step could not be waited for.
    default_signal(libc::SIGCHLD);
    // Signals of the terminal are the builder's to handle.
    setsid().named("setsid", "")?;
    set_nondumpable().named("prctl", "PR_SET_DUMPABLE")?;
    let answer = match wire::receive(&control).and_then(|request| answer(request, &control)) {
        Ok(answer) => answer,
        Err(error) => Answer::Failed(error),
    };
    wire::send(&mut control, &answer)
}

/// Does what is asked, in this process, which must have no other thread.
pub(super) fn answer(request: Request, control: &UnixStream) -> Result<Answer, SandboxError> {
    let (spec, probe) = match request {
        Request::Run(spec) => (spec, false),
        Request::Probe(spec) => (spec, true),
        Request::Repair(request) => return swap::repair_all(&request),
    };
    check(&spec)?;
    umask(Mode::empty());
    match &spec.root {
        StepRoot::Overlay(root) => answer_in_box(root, &spec, probe, control),
        StepRoot::Swap(root) => swap::run_at_root(root, &spec, control),
    }
}

fn answer_in_box(
    root: &OverlayRoot,
    spec: &StepSpec,
    probe: bool,
    control: &UnixStream,
) -> Result<Answer, SandboxError> {
    // Without a PID namespace that ends with its first process.
    let reaper = spec.share_processes.then(Reaper::adopt_orphans).transpose()?;
    enter_namespaces(spec)?;
    let boxed = StepBox::set_up(root, spec)?;
    let place = StepPlace::Box {
        root: boxed.stubs.root(),
        root_path: &boxed.root_path,
        filter: step_filter()?,
    };
    let waited = Execution { spec, probe, control, has_reaper: reaper.is_some() }.run(place);
    if let Some(reaper) = reaper {
        reaper.end_all(PATIENCE)?;
    }
    let waited = waited?;
    let stubs = boxed.take_down()?;
    Ok(Answer::ended(waited, stubs, None))
}

/// What can be refused before anything is done.
fn check(spec: &StepSpec) -> Result<(), SandboxError> {
    if spec.arguments.is_empty() {
        return Err(SandboxError::NoCommand);
    }
    match spec.ulimits.iter().find(|limit| resource(&limit.name).is_none()) {
        Some(limit) => Err(SandboxError::Ulimit { name: limit.name.clone() }),
        None => Ok(()),
    }
}

fn enter_namespaces(spec: &StepSpec) -> Result<(), SandboxError> {
    let mut flags = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    if !spec.share_processes {
        flags |= UnshareFlags::NEWPID;
    }
    if spec.network == StepNetwork::None {
        flags |= UnshareFlags::NEWNET;
    }
    unshare(flags).named("unshare", "namespaces")?;
    // Older kernels have none; then /sys/fs/cgroup stays empty.
    let _ = unshare(UnshareFlags::NEWCGROUP);
    make_mounts_private().named("mount MS_PRIVATE", "/")?;
    set_host_name(&spec.host_name).named("sethostname", &spec.host_name)?;
    if spec.network == StepNetwork::None {
        bring_loopback_up().named("ioctl SIOCSIFFLAGS", "lo")?;
    }
    Ok(())
}

/// A step's file systems, mounted.
struct StepBox {
    layers: Layers,
    staging: Staging,
    stubs: Stubs,
    root_path: PathBuf,
}

impl StepBox {
    fn set_up(root: &OverlayRoot, spec: &StepSpec) -> Result<Self, SandboxError> {
        let mut layers = Layers::open(&root.lowers, Some((&root.upper, &root.work)))?;
        let staging = Staging::mount(root.scratch.clone(), spec)?;
        layers.copy_root_attributes()?;
        layers.pad(&staging.directory(Some("empty"))?)?;
        let root_path = staging.directory(Some("root"))?;
        layers.mount(open(&root_path)?, &root_path)?;
        let mut stubs = Stubs::new(open(&root_path)?)?;
        mount_system(spec, &staging, &mut stubs)?;
        mount_all(&spec.mounts, &staging, &mut stubs)?;
        Ok(StepBox { layers, staging, stubs, root_path })
    }

    /// Unmounts everything and removes the mount points; returns those that were made.
    fn take_down(self) -> Result<Vec<PathBuf>, SandboxError> {
        self.staging.unmount()?;
        let upper = self.layers.upper().ok_or(Errno::BADF).named("open", "upper directory")?;
        self.stubs.remove(upper)
    }
}

fn open(path: &Path) -> Result<OwnedFd, SandboxError> {
    open_directory_handle(path).named("open", path)
}

/// The execution of one step.
pub(super) struct Execution<'a> {
    pub spec: &'a StepSpec,
    /// Do everything but execute.
    pub probe: bool,
    pub control: &'a UnixStream,
    /// Whether the caller ends the step's processes; else they end with the first one.
    pub has_reaper: bool,
}

impl Execution<'_> {
    /// Forks the step and waits for its end. The output ends with the step, not with this process.
    pub fn run(&self, place: StepPlace<'_>) -> Result<Waited, SandboxError> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).named("pipe", "");
        let null = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let null = null.named("open", "/dev/null")?;
        let (stdin, _) = pipe()?;
        let (failure, report) = pipe()?;
        let (helper_alive, alive) = pipe()?;
        let plan =
            StepPlan { spec: self.spec, place, stdin, report, helper_alive, probe: self.probe };
        let child = match fork_single_threaded().named("fork", "")? {
            Fork::Child => {
                drop(alive);
                become_step(&plan)
            }
            Fork::Parent(child) => child,
        };
        drop(plan);
        for number in [1, 2] {
            install_descriptor(&null, number).named("dup2", "/dev/null")?;
        }
        self.supervise(child, failure)
    }

    /// Waits for the step, and kills it when the builder is gone or wants no more.
    fn supervise(&self, child: Pid, failure: OwnedFd) -> Result<Waited, SandboxError> {
        let pidfd = pidfd_open(child, PidfdFlags::empty()).ok();
        let timeout = if pidfd.is_some() { -1 } else { POLL_MILLISECONDS };
        let ended = loop {
            let fds = [Some(self.control.as_fd()), pidfd.as_ref().map(|fd| fd.as_fd())];
            let [hung_up, _] = wait_readable(fds, timeout).named("poll", "")?;
            if hung_up {
                self.kill(child)?;
                return Err(SandboxError::Canceled);
            }
            if let Some(waited) = wait_now(child).named("wait4", "step")? {
                break waited;
            }
        };
        match read_failure(failure)? {
            Some(error) => Err(error),
            None => Ok(ended),
        }
    }

    fn kill(&self, child: Pid) -> Result<(), SandboxError> {
        if !self.has_reaper {
            // The rest of the namespace goes with its first process.
            kill_process(child, Signal::KILL).named("kill", "step")?;
            wait(child).named("wait4", "step")?;
        }
        Ok(())
    }
}

/// What the child wrote before it gave up. All ends of the pipe are closed: by exec or by death.
fn read_failure(failure: OwnedFd) -> Result<Option<SandboxError>, SandboxError> {
    let mut bytes = Vec::new();
    std::fs::File::from(failure).read_to_end(&mut bytes).map_err(wire::protocol)?;
    wire::receive_last(&bytes)
}
