//! The step's box: the `overlay` rung of RUN. A helper process (this program once more, see [`helper_main`]) mounts the
//! layers in namespaces of its own and runs the step there with Docker's surroundings, capabilities and seccomp filter.
//! Any failed call of the set-up ends the step before anything is executed.

mod capabilities;
mod devices;
mod error;
mod facts;
mod helper;
mod host;
mod id_map;
mod mounts;
mod overlay;
mod probe;
mod program;
mod reap;
mod run;
mod seccomp;
mod spec;
mod staging;
mod step;
mod stubs;
pub mod swap;
mod system;
mod verdict;
mod visit;
mod wire;

use std::{
    os::fd::AsFd,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::fs::{FileType, fstat};

pub use self::{
    error::{Errno, SandboxError},
    facts::Facts,
    host::{
        Host, HostRequest, SWAP_STATE, Table, choose, enter_for_deletion, existing_state, survey,
    },
    id_map::{IdMap, IdRange, MapWriter, OneId, enter as enter_user_namespace},
    probe::probe,
    run::{StepExit, StepReport, repair, run},
    spec::{
        DEFAULT_HOST_NAME, DEFAULT_SHM_BYTES, Discard, MountSource, OverlayRoot, StepMount,
        StepNetwork, StepRoot, StepSpec, StepUser, SwapRoot, Ulimit,
    },
    swap::{EntryStat, LevelOutcome, RenamedEntry, StepNote, SwapError, SwapReport},
    verdict::{Probe, Rung, Unavailable, Verdict, Way},
    visit::{keep_root, keep_root_async, leave_root},
};

/// The name (argv[0]) under which this program is a helper.
const HELPER_NAME: &str = "bareboat-helper";

static WIRED: AtomicBool = AtomicBool::new(false);

/// Must be the first line of `main`, before any thread or runtime starts. Where this process was started as a helper
/// (by its name and a socket as standard input) it does the helper's work and exits; else it returns at once. Without
/// it [`run`] and [`probe`] refuse: they would start the whole program again.
pub fn helper_main() {
    WIRED.store(true, Ordering::Relaxed);
    let is_helper = std::env::args_os().next().is_some_and(|name| name == HELPER_NAME);
    if is_helper && is_socket(std::io::stdin()) {
        std::process::exit(if helper::serve().is_ok() { 0 } else { 1 });
    }
}

fn helper_is_wired() -> bool {
    WIRED.load(Ordering::Relaxed)
}

fn is_socket(fd: impl AsFd) -> bool {
    fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket)
}
