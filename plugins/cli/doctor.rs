//! `bareboat doctor`: how RUN can be executed on this host, where the state would lie, and whether registries answer.

use std::path::{Path, PathBuf};

use bareboat_core::{
    Class, Error,
    execute::sandbox::{Host, Probe, SandboxError, Unavailable, Verdict},
};
use rustix::{
    fs::{statfs, statvfs},
    system::uname,
};
use serde::Serialize;

use crate::{
    engine::{self, Answer, Registry},
    outputs::print_line,
    render,
};

/// The form's version: fields are added under the same one, never changed.
const FORM: u32 = 1;

/// What is known of a host.
#[derive(Serialize)]
struct Report {
    v: u32,
    version: &'static str,
    kernel: String,
    architecture: &'static str,
    user: u32,
    /// The rung of the best way that works.
    rung: Option<String>,
    ways: Vec<Way>,
    state: Option<State>,
    registries: Vec<Answer>,
}

#[derive(Serialize)]
struct Way {
    rung: String,
    way: String,
    available: bool,
    state_directory: Option<PathBuf>,
    error: Option<String>,
    errno: Option<i32>,
    meaning: Option<String>,
    remedy: Option<String>,
}

#[derive(Serialize)]
struct State {
    directory: PathBuf,
    file_system: String,
    free_bytes: u64,
}

/// Prints what was found out; a host without a rung is an error (exit code 7), a registry that does not answer too (4).
pub async fn doctor(
    host: &Host,
    json: bool,
    registry: Registry,
    references: &[String],
) -> anyhow::Result<()> {
    let registries = engine::diagnose(registry, references).await?;
    let report = report(host, registries);
    if json {
        print_line(&serde_json::to_string_pretty(&report)?)?;
    } else {
        print_line(&text(&report))?;
    }
    Ok(verdict(&report)?)
}

fn report(host: &Host, registries: Vec<Answer>) -> Report {
    let chosen = host.verdicts.iter().find(|probe| probe.is_available());
    let directory = chosen.map_or(&host.state_directory, |probe| &probe.state_directory);
    let machine = uname();
    Report {
        v: FORM,
        version: env!("CARGO_PKG_VERSION"),
        kernel: machine.release().to_string_lossy().into_owned(),
        architecture: std::env::consts::ARCH,
        user: rustix::process::getuid().as_raw(),
        rung: chosen.map(|probe| probe.way.rung().to_string()),
        ways: host.verdicts.iter().map(way).collect(),
        state: state(directory),
        registries,
    }
}

fn way(probe: &Probe) -> Way {
    let refused = match &probe.verdict {
        Verdict::Available => None,
        Verdict::Unavailable(refused) => Some(refused),
    };
    let directory = &probe.state_directory;
    Way {
        rung: probe.way.rung().to_string(),
        way: probe.way.to_string(),
        available: refused.is_none(),
        state_directory: (!directory.as_os_str().is_empty()).then(|| directory.clone()),
        error: refused.map(|refused| refused.error.to_string()),
        errno: refused.and_then(errno),
        meaning: refused.and_then(|refused| refused.meaning.map(str::to_owned)),
        remedy: refused.and_then(|refused| refused.remedy.clone()),
    }
}

fn errno(refused: &Unavailable) -> Option<i32> {
    match &refused.error {
        SandboxError::Call { errno, .. } => Some(errno.0),
        _ => None,
    }
}

/// Where the state lies: its own file system, or that of the nearest directory above it that is there.
fn state(directory: &Path) -> Option<State> {
    let there = directory.ancestors().find(|path| path.is_dir())?;
    let room = statvfs(there).ok()?;
    #[allow(clippy::unnecessary_cast)] // The field's type differs between architectures.
    let kind = statfs(there).ok()?.f_type as i64;
    Some(State {
        directory: directory.to_owned(),
        file_system: file_system(kind),
        free_bytes: room.f_bavail.saturating_mul(room.f_frsize),
    })
}

/// statfs(2)'s numbers.
fn file_system(kind: i64) -> String {
    match kind {
        0xef53 => "ext4".into(),
        0x5846_5342 => "xfs".into(),
        0x9123_683e => "btrfs".into(),
        0x794c_7630 => "overlay".into(),
        0x0102_1994 => "tmpfs".into(),
        0x6969 => "nfs".into(),
        0x2fc1_2fc1 => "zfs".into(),
        0x6573_5546 => "fuse".into(),
        0x0102_1997 => "9p".into(),
        other => format!("{other:#x}"),
    }
}

fn text(report: &Report) -> String {
    let mut lines = vec![format!(
        "bareboat {} on {}, Linux {}, user {}",
        report.version, report.architecture, report.kernel, report.user
    )];
    lines.push("How RUN can be executed here:".into());
    for way in &report.ways {
        let mark = if way.available { "yes" } else { "no " };
        let mut said = format!("  {mark}  {}", way.way);
        if let (true, Some(directory)) = (way.available, &way.state_directory) {
            said += &format!(", with the state in {}", directory.display());
        }
        lines.push(said);
        let details = [("", &way.error), ("that is: ", &way.meaning), ("remedy: ", &way.remedy)];
        lines.extend(details.iter().filter_map(|(label, detail)| {
            detail.as_ref().map(|detail| format!("       {label}{detail}"))
        }));
    }
    lines.push(match &report.rung {
        Some(rung) => format!("A build uses the sandbox {rung}."),
        None => "No RUN can be executed here; COPY, ADD and WORKDIR need no sandbox.".into(),
    });
    if let Some(state) = &report.state {
        lines.push(format!(
            "State: {}, on {}, {} free",
            state.directory.display(),
            state.file_system,
            render::bytes(state.free_bytes)
        ));
    }
    lines.extend(report.registries.iter().map(Answer::to_string));
    lines.join("\n")
}

fn verdict(report: &Report) -> Result<(), Error> {
    if let Some(failed) = report.registries.iter().find(|answer| answer.error.is_some()) {
        let title = format!("{} can't be used", failed.reference);
        return Err(Error::new(Class::Source, title));
    }
    match report.rung {
        Some(_) => Ok(()),
        None => Err(Error::new(Class::Host, "no RUN can be executed on this host")),
    }
}
