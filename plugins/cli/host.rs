//! What is settled while this process has one thread: how the host executes RUN, where the state lies, and the user
//! namespace that both need.

use std::path::{Path, PathBuf};

use bareboat_core::{
    Error,
    execute::sandbox::{self, Host, HostRequest, Rung},
    request::{BuildRequest, ContextSource, NamedContext, Output},
};

use crate::flags::{Build, Task, no_state_directory};

/// Chooses for a build, and enters what a prune needs. What has no RUN gets a host that is never asked.
pub fn prepare(task: &mut Task) -> Result<Host, Error> {
    match task {
        Task::Build(build) | Task::Preflight(build) => choose(build),
        Task::CachePrune { state_directory } => {
            sandbox::enter_for_deletion()?;
            Ok(Host::machine(state_directory.clone()))
        }
        Task::Doctor(doctor) => {
            let request = doctor.state.request();
            let directory = request.named.clone().or_else(|| request.usual.clone());
            let machine = Host::machine(directory.unwrap_or_default());
            Ok(Host { verdicts: sandbox::survey(&request), is_probed: true, ..machine })
        }
        Task::Check(_) | Task::Plan(_) | Task::Transfer(_) | Task::CacheDu { .. } => {
            Ok(Host::machine(PathBuf::new()))
        }
    }
}

fn choose(build: &mut Build) -> Result<Host, Error> {
    let host = sandbox::choose(&HostRequest {
        choice: build.request.sandbox,
        contexts: directories(&build.request),
        ..build.state.request()
    })?;
    if host.state_directory.as_os_str().is_empty() {
        return Err(no_state_directory());
    }
    build.request.state_directory.clone_from(&host.state_directory);
    if host.rung == Some(Rung::Swap) {
        make_absolute(build);
    }
    Ok(host)
}

/// On this rung the process leaves its working directory.
fn make_absolute(build: &mut Build) {
    let files = [&mut build.metadata_file, &mut build.iidfile].into_iter().flatten();
    let outputs = build.request.outputs.iter_mut().filter_map(Output::path_mut);
    for path in files.chain(outputs).filter(|path| *path != Path::new("-")) {
        if let Ok(whole) = std::path::absolute(&*path) {
            *path = whole;
        }
    }
}

/// The context directories, without links.
fn directories(request: &BuildRequest) -> Vec<PathBuf> {
    let main = match &request.context {
        Some(ContextSource::Directory(path)) => Some(path),
        _ => None,
    };
    let named = request.build_contexts.values().filter_map(|context| match context {
        NamedContext::Directory(path) => Some(path),
        _ => None,
    });
    main.into_iter().chain(named).map(|path| real(path)).collect()
}

fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}
