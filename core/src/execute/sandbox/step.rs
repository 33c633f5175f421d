//! The child that becomes the step: process 1 of its PID namespace, as in Docker and BuildKit.

use std::{
    ffi::CString,
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags, Uid, fchown},
    process::{
        Resource, Rlimit, Signal, fchdir, getcwd, set_parent_process_death_signal, setrlimit,
        setsid, umask,
    },
    thread::UnshareFlags,
};

use super::{
    SandboxError, capabilities,
    error::Named,
    program,
    spec::{StepSpec, Ulimit},
    system::mount_proc,
    wire,
};
use crate::sys::{
    credentials::become_user,
    fs::open_directory_handle,
    landlock::enter_domain,
    namespace::{change_root, make_mounts_private, unshare},
    process::{
        check_all_closed_but, close_all_but, execute, exit_now, install_descriptor, reset_signals,
        wait_readable,
    },
    resolve::open_in_root,
    seccomp::{Instruction, install_filter},
};

/// Everything that the child needs, made before the fork.
pub(super) struct StepPlan<'a> {
    pub spec: &'a StepSpec,
    pub place: StepPlace<'a>,
    pub stdin: OwnedFd,
    /// Where a failure is written.
    pub report: OwnedFd,
    /// Hung up when the helper is dead.
    pub helper_alive: OwnedFd,
    /// Do everything but execute.
    pub probe: bool,
}

/// Where the child goes, and how it is kept from the builder.
pub(super) enum StepPlace<'a> {
    Box {
        /// The step's root as the helper sees it.
        root: &'a OwnedFd,
        root_path: &'a Path,
        filter: Vec<Instruction>,
    },
    /// The root that the helper has, too: the stage is there.
    Here(Protection),
}

/// What keeps a step of the builder's own user from the builder's memory, environment and descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protection {
    /// One capability less than the builder, for good.
    LessCapability,
    /// Where that is not possible: a Landlock domain, with no_new_privs.
    Domain,
    /// Another user.
    User,
}

/// Runs in the child. Returns only as an exit of the process.
pub(super) fn become_step(plan: &StepPlan<'_>) -> ! {
    let report = match prepare(plan) {
        Ok(()) if plan.probe => exit_now(0),
        Ok(()) => match run_program(plan) {
            Ok(code) => exit_now(code),
            Err(error) => error,
        },
        Err(error) => error,
    };
    if let Ok(bytes) = wire::frame(&report) {
        // Nobody is left to tell if this fails: the helper sees an end without a word.
        let _ = rustix::io::write(&plan.report, &bytes);
    }
    exit_now(1)
}

fn prepare(plan: &StepPlan<'_>) -> Result<(), SandboxError> {
    setsid().named("setsid", "")?;
    die_with_helper(plan)?;
    if let StepPlace::Box { root, root_path, .. } = &plan.place {
        mount_proc(root, plan.spec)?;
        enter_root(root_path)?;
    }
    for limit in &plan.spec.ulimits {
        set_limit(limit)?;
    }
    connect_streams(plan)?;
    enter_working_directory(&plan.spec.working_directory)?;
    reset_signals().named("sigprocmask", "")?;
    umask(Mode::from_raw_mode(0o022));
    reduce_privileges(plan)?;
    // A change of user has cleared it.
    die_with_helper(plan)
}

/// Asks to be killed when the helper dies, and makes sure that it has not died before.
fn die_with_helper(plan: &StepPlan<'_>) -> Result<(), SandboxError> {
    set_parent_process_death_signal(Some(Signal::KILL)).named("prctl", "PR_SET_PDEATHSIG")?;
    match wait_readable([Some(plan.helper_alive.as_fd())], 0).named("poll", "helper")? {
        [false] => Ok(()),
        [true] => Err(SandboxError::Canceled),
    }
}

/// In a mount namespace of its own, so that the helper keeps its view.
fn enter_root(path: &Path) -> Result<(), SandboxError> {
    unshare(UnshareFlags::NEWNS).named("unshare", "mount namespace")?;
    make_mounts_private().named("mount MS_PRIVATE", "/")?;
    let root = open_directory_handle(path).named("open", path)?;
    change_root(root).named("pivot_root", path)?;
    Ok(())
}

fn connect_streams(plan: &StepPlan<'_>) -> Result<(), SandboxError> {
    install_descriptor(&plan.stdin, 0).named("dup2", "stdin")?;
    // The step's user opens /dev/stdout and its like by name: it must own them.
    let user = Some(Uid::from_raw(plan.spec.user.uid));
    fchown(&plan.stdin, user, None).named("fchown", "stdin")?;
    fchown(std::io::stdout(), user, None).named("fchown", "stdout")?;
    fchown(std::io::stderr(), user, None).named("fchown", "stderr")
}

/// By handle and without magic links: a working directory such as /proc/self/fd/7 must not lead out of the root.
fn enter_working_directory(path: &Path) -> Result<(), SandboxError> {
    let root = open_directory_handle(Path::new("/")).named("open", "/")?;
    let directory = open_in_root(root, path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
    fchdir(directory.named("chdir", path)?).named("chdir", path)?;
    let current = getcwd(Vec::new()).named("getcwd", path)?;
    if current.as_bytes().starts_with(b"/") {
        return Ok(());
    }
    Err(rustix::io::Errno::XDEV).named("chdir", path)
}

fn reduce_privileges(plan: &StepPlan<'_>) -> Result<(), SandboxError> {
    match &plan.place {
        StepPlace::Box { .. } if plan.spec.insecure => become_spec_user(plan),
        StepPlace::Box { filter, .. } => reduce_in_box(plan, filter),
        StepPlace::Here(protection) => reduce_here(plan, *protection),
    }
}

fn become_spec_user(plan: &StepPlan<'_>) -> Result<(), SandboxError> {
    let user = &plan.spec.user;
    become_user(user.uid, user.gid, &user.groups).named("setresuid", user.uid.to_string())
}

/// The filter comes first: without no_new_privs it takes CAP_SYS_ADMIN. It allows the calls that follow.
fn reduce_in_box(plan: &StepPlan<'_>, filter: &[Instruction]) -> Result<(), SandboxError> {
    install_filter(filter).named("seccomp", "filter")?;
    capabilities::reduce_bounding().named("prctl", "PR_CAPBSET_DROP")?;
    become_spec_user(plan)?;
    capabilities::reduce_current(plan.spec.user.uid).named("capset", "")
}

fn reduce_here(plan: &StepPlan<'_>, protection: Protection) -> Result<(), SandboxError> {
    match protection {
        Protection::LessCapability => {
            capabilities::reduce_bounding_below_own().named("prctl", "PR_CAPBSET_DROP")?;
        }
        Protection::Domain => enter_domain().named("landlock_restrict_self", "step")?,
        Protection::User => {}
    }
    become_spec_user(plan)?;
    capabilities::reduce_current_below_own().named("capset", "")
}

fn run_program(plan: &StepPlan<'_>) -> Result<i32, SandboxError> {
    // No path may lead to the builder's files any more, not by /proc/self/fd either.
    close_all_but(&plan.report).named("close_range", "")?;
    check_all_closed_but(&plan.report).named("close_range", "/proc/self/fd")?;
    let arguments = c_strings(&plan.spec.arguments, "an argument")?;
    let environment = c_strings(&plan.spec.environment, "a variable")?;
    let name = plan.spec.arguments.first().ok_or(SandboxError::NoCommand)?;
    let failure = match program::look_up(name, &plan.spec.environment) {
        Ok(path) => {
            let c_path = c_string(path.as_os_str().as_bytes(), "the command")?;
            let error = execute(&c_path, &arguments, &environment);
            program::explain(&path, &error)?
        }
        Err(failure) => failure,
    };
    // As from a shell: the step's own last words, and the usual exit code.
    let _ = writeln!(std::io::stderr(), "{}", failure.message);
    Ok(failure.exit_code)
}

fn c_strings<T: AsRef<std::ffi::OsStr>>(
    strings: &[T],
    what: &str,
) -> Result<Vec<CString>, SandboxError> {
    strings.iter().map(|string| c_string(string.as_ref().as_bytes(), what)).collect()
}

fn c_string(bytes: &[u8], what: &str) -> Result<CString, SandboxError> {
    CString::new(bytes).map_err(|_| SandboxError::NulByte { what: what.to_owned() })
}

/// The names that Docker takes, without `as`, which it does not know either.
pub(super) fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "core" => Resource::Core,
        "cpu" => Resource::Cpu,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "locks" => Resource::Locks,
        "memlock" => Resource::Memlock,
        "msgqueue" => Resource::Msgqueue,
        "nice" => Resource::Nice,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        "rss" => Resource::Rss,
        "rtprio" => Resource::Rtprio,
        "rttime" => Resource::Rttime,
        "sigpending" => Resource::Sigpending,
        "stack" => Resource::Stack,
        _ => return None,
    })
}

fn set_limit(limit: &Ulimit) -> Result<(), SandboxError> {
    let resource =
        resource(&limit.name).ok_or_else(|| SandboxError::Ulimit { name: limit.name.clone() })?;
    let value = |value: i64| u64::try_from(value).ok();
    let new = Rlimit { current: value(limit.soft), maximum: value(limit.hard) };
    setrlimit(resource, new).named("setrlimit", &limit.name)
}
