//! From what was typed to what is meant: the only place that gives flags their meaning.

mod annotations;
#[cfg(feature = "aws")]
mod aws;
mod credentials;
mod csv;
mod output;
mod secret;
mod source;
mod ssh;
mod surroundings;
mod transfer;
mod values;

use std::path::PathBuf;

use bareboat_core::{
    Class, Error,
    image::annotations::Level,
    request::{BuildRequest, NoCache, SandboxChoice},
    transfer::{CopyRequest, JoinRequest, PushRequest},
};

use super::{Environment, RawRequest, table::Command};
use crate::{check::Format, plan};
pub use credentials::{AuthFile, CredentialSources, JobCredential};
use surroundings::Proxies;
pub use surroundings::{StateDirectory, no_state_directory};

/// What standard error shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Tty,
    Plain,
    Json,
    Quiet,
}

/// What registry requests need, and what the shell makes a client from.
#[derive(Clone, Debug, Default)]
pub struct RegistryOptions {
    /// `HOST` or `HOST:PORT`, lower case.
    pub insecure: Vec<String>,
    /// Registry and mirror, in the order in which they are tried.
    pub mirrors: Vec<(String, String)>,
    /// Registry and a PEM file of certificates to trust for it.
    pub certificates: Vec<(String, PathBuf)>,
    /// Registry, certificate and key.
    pub client_certificates: Vec<(String, PathBuf, PathBuf)>,
    /// Registries whose certificates are not verified.
    pub unverified: Vec<String>,
    /// Folders with one folder for each registry's certificates, whether or not they exist; the first counts.
    pub certificate_folders: Vec<PathBuf>,
    /// PEM files whose certificates are trusted besides the system's.
    pub ca_files: Vec<PathBuf>,
    pub credentials: CredentialSources,
    pub proxies: Proxies,
    /// An immutable tag that holds another image is left as it is.
    pub skip_immutable: bool,
    #[cfg(feature = "aws")]
    pub aws: bareboat_ecr::Options,
}

/// A build with everything around it.
#[derive(Debug)]
pub struct Build {
    /// Its state directory is what is wished for until the host is asked.
    pub request: BuildRequest,
    pub state: StateDirectory,
    pub registry: RegistryOptions,
    pub metadata_file: Option<PathBuf>,
    pub iidfile: Option<PathBuf>,
    /// A tar goes to standard output, so the digest does not.
    pub stdout_taken: bool,
}

/// A check of a Dockerfile.
#[derive(Debug)]
pub struct Check {
    pub request: BuildRequest,
    pub registry: RegistryOptions,
    pub format: Format,
}

/// A plan of a build.
#[derive(Debug)]
pub struct Plan {
    pub request: BuildRequest,
    pub registry: RegistryOptions,
    pub format: plan::Format,
    /// References and the files with their configurations.
    pub base_configs: Vec<(String, PathBuf)>,
}

/// A look at this host.
#[derive(Debug)]
pub struct Doctor {
    pub state: StateDirectory,
    pub registry: RegistryOptions,
    pub references: Vec<String>,
    pub json: bool,
}

/// A transfer without a build.
#[derive(Debug)]
pub struct Transfer {
    pub what: TransferRequest,
    pub registry: RegistryOptions,
    pub metadata_file: Option<PathBuf>,
}

#[derive(Debug)]
pub enum TransferRequest {
    Push(PushRequest),
    Copy(CopyRequest),
    Join(JoinRequest),
}

/// What is to be done.
#[derive(Debug)]
pub enum Task {
    Build(Box<Build>),
    /// Only what a build would look for before it begins.
    Preflight(Box<Build>),
    Check(Box<Check>),
    Plan(Box<Plan>),
    Transfer(Box<Transfer>),
    CacheDu {
        state_directory: PathBuf,
    },
    CachePrune {
        state_directory: PathBuf,
    },
    Doctor(Box<Doctor>),
}

/// A command line, understood.
#[derive(Debug)]
pub struct Invocation {
    pub task: Task,
    pub progress: Progress,
    /// How often `-v` was given.
    pub verbosity: u8,
}

/// Gives what was typed its meaning.
///
/// Errors: class usage (exit 2) for what makes no sense, class input (exit 3) for a context that is not there.
pub fn convert(mut raw: RawRequest, environment: &Environment) -> Result<Invocation, Error> {
    let verbosity = raw.take_text("verbose")?.and_then(|count| count.parse().ok()).unwrap_or(0);
    let progress = progress(raw.take_text("progress")?, environment)?;
    let task = match transfer(&mut raw, environment)? {
        Some(transfer) => Task::Transfer(Box::new(transfer)),
        None => stateful(&mut raw, environment)?,
    };
    let progress = match (&task, progress) {
        // Neither has steps for a live list.
        (Task::Check(_) | Task::Plan(_) | Task::Preflight(_) | Task::Doctor(_), Progress::Tty) => {
            Progress::Plain
        }
        (_, progress) => progress,
    };
    match raw.left() {
        Some(flag) => Err(Error::new(Class::Bug, format!("--{flag} was taken and not looked at"))),
        None => Ok(Invocation { task, progress, verbosity }),
    }
}

/// The commands that need no state directory.
fn transfer(raw: &mut RawRequest, environment: &Environment) -> Result<Option<Transfer>, Error> {
    let what = match raw.command() {
        Command::Push => TransferRequest::Push(transfer::push(raw)?),
        Command::Copy => TransferRequest::Copy(transfer::copy(raw)?),
        Command::Join => TransferRequest::Join(transfer::join(raw)?),
        _ => return Ok(None),
    };
    let registry = registry(raw, environment)?;
    Ok(Some(Transfer { what, registry, metadata_file: file_to_write("metadata-file", raw)? }))
}

fn stateful(raw: &mut RawRequest, environment: &Environment) -> Result<Task, Error> {
    let state =
        surroundings::state_directory(raw.take_one("state-dir").map(PathBuf::from), environment)?;
    Ok(match raw.command() {
        Command::Build => {
            let (is_check, is_preflight) =
                (raw.take_switch("check"), raw.take_switch("preflight-only"));
            let build = build(raw, state, environment)?;
            match (is_check, is_preflight) {
                (true, true) => {
                    return Err(usage("--check and --preflight-only exclude each other"));
                }
                (true, false) => Task::Check(Box::new(check_of(build)?)),
                (false, true) if !build.request.preflight => {
                    return Err(usage("--preflight-only and --no-preflight exclude each other"));
                }
                (false, true) => Task::Preflight(Box::new(build)),
                (false, false) => Task::Build(Box::new(build)),
            }
        }
        Command::Check => Task::Check(Box::new(check(raw, state, environment)?)),
        Command::Plan => Task::Plan(Box::new(plan(raw, state, environment)?)),
        Command::CacheDu => Task::CacheDu { state_directory: state.existing()? },
        Command::CachePrune => Task::CachePrune { state_directory: state.existing()? },
        Command::Doctor => Task::Doctor(Box::new(Doctor {
            state,
            registry: registry(raw, environment)?,
            references: raw.take_texts("registry")?,
            json: raw.take_switch("json"),
        })),
        command @ (Command::Push | Command::Copy | Command::Join) => {
            return Err(Error::new(Class::Bug, format!("{command:?} was not taken")));
        }
    })
}

fn progress(typed: Option<String>, environment: &Environment) -> Result<Progress, Error> {
    match typed.as_deref() {
        Some("plain") => Ok(Progress::Plain),
        Some("json") => Ok(Progress::Json),
        Some("quiet") => Ok(Progress::Quiet),
        Some("tty") if environment.stderr_is_terminal => Ok(Progress::Tty),
        Some("tty") => Err(usage("--progress tty: standard error is no terminal")),
        _ if is_interactive(environment) => Ok(Progress::Tty),
        _ => Ok(Progress::Plain),
    }
}

fn is_interactive(environment: &Environment) -> bool {
    let ci = environment.text("CI").is_some_and(|ci| ci != "false" && ci != "0");
    environment.stderr_is_terminal
        && !ci
        && environment.text("TERM").is_some_and(|term| term != "dumb")
}

fn build(
    raw: &mut RawRequest,
    state: StateDirectory,
    environment: &Environment,
) -> Result<Build, Error> {
    let state_directory = state.named.clone().or_else(|| state.usual.clone()).unwrap_or_default();
    let mut request = BuildRequest { state_directory, ..BuildRequest::default() };
    what_to_build(raw, environment, &mut request)?;
    how_steps_run(raw, environment, &mut request)?;
    request.no_cache = no_cache(raw)?;
    request.preflight = !raw.take_switch("no-preflight");
    request.pull = raw.take_switch("pull");
    let outputs = output::outputs(
        &raw.take_texts("output")?,
        raw.take_switch("push"),
        raw.take_texts("tag")?,
        annotations::of_flag(raw.take_texts("annotation")?, Level::Manifest)?,
        environment,
    )?;
    let stdout_taken = outputs.take_stdout();
    request.outputs = outputs.outputs;
    request.compression = outputs.compression;
    request.image = outputs.image;
    request.tags = outputs.tags;
    let mut registry = registry(raw, environment)?;
    registry.skip_immutable = raw.take_switch("skip-immutable");
    #[cfg(feature = "aws")]
    aws::pushes(raw, &request, &mut registry.aws)?;
    Ok(Build {
        request,
        state,
        registry,
        metadata_file: file_to_write("metadata-file", raw)?,
        iidfile: file_to_write("iidfile", raw)?,
        stdout_taken,
    })
}

fn check(
    raw: &mut RawRequest,
    state: StateDirectory,
    environment: &Environment,
) -> Result<Check, Error> {
    let state_directory = state.existing()?;
    let mut request = BuildRequest { state_directory, ..BuildRequest::default() };
    what_to_build(raw, environment, &mut request)?;
    let format = match raw.take_text("format")?.as_deref() {
        Some("json") => Format::Json,
        Some("sarif") => Format::Sarif,
        _ => Format::Human,
    };
    Ok(Check { request, registry: registry(raw, environment)?, format })
}

/// A plan of a build with the same options. What only says where the result goes is judged all the same.
fn plan(
    raw: &mut RawRequest,
    state: StateDirectory,
    environment: &Environment,
) -> Result<Plan, Error> {
    let format = match raw.take_text("format")?.as_deref() {
        Some("json") => plan::Format::Json,
        Some("sarif") => return Err(usage("--format sarif is for the findings of check")),
        _ => plan::Format::Human,
    };
    let base_configs = values::base_configs(raw.take_texts("base-config")?)?;
    let state_directory = state.existing()?;
    let Build { request, registry, .. } = build(raw, state, environment)?;
    let request = BuildRequest { state_directory, ..request };
    Ok(Plan { request, registry, format, base_configs })
}

/// `build --check`
fn check_of(build: Build) -> Result<Check, Error> {
    let state_directory = build.state.existing()?;
    let request = BuildRequest { state_directory, ..build.request };
    Ok(Check { request, registry: build.registry, format: Format::Human })
}

fn what_to_build(
    raw: &mut RawRequest,
    environment: &Environment,
    request: &mut BuildRequest,
) -> Result<(), Error> {
    let typed = raw.argument().ok_or_else(|| usage("no build context was named"))?;
    let context = source::context(typed, environment)?;
    let file = raw.take_one("file").map(PathBuf::from);
    request.dockerfile =
        file.map(|file| source::dockerfile(file, &context, environment)).transpose()?;
    request.context = Some(context);
    request.target = raw.take_text("target")?;
    request.build_contexts = source::named_contexts(raw.take_texts("build-context")?)?;
    request.build_args = values::build_args(raw.take_texts("build-arg")?, environment)?;
    request.ssh = ssh::sources(&raw.take_texts("ssh")?, environment)?;
    request.secrets = secret::secrets(&raw.take_texts("secret")?, environment)?;
    request.labels = values::pairs("label", raw.take_texts("label")?)?;
    request.platforms = values::platforms(raw.take_texts("platform")?)?;
    request.source_date_epoch =
        surroundings::source_date_epoch(&mut request.build_args, environment)?;
    Ok(())
}

fn how_steps_run(
    raw: &mut RawRequest,
    environment: &Environment,
    request: &mut BuildRequest,
) -> Result<(), Error> {
    request.network = raw.take_text("network")?;
    let allowed = raw.take_texts("allow")?;
    request.allow_host_network = allowed.iter().any(|name| name == "network.host");
    request.allow_insecure = allowed.iter().any(|name| name == "security.insecure");
    for host in raw.take_texts("add-host")? {
        request.add_hosts.push(values::add_host(&host)?);
    }
    for limit in raw.take_texts("ulimit")? {
        let limit = values::ulimit(&limit)?;
        request.ulimits.retain(|(name, ..)| *name != limit.0);
        request.ulimits.push(limit);
    }
    let shm = raw.take_text("shm-size")?;
    request.shm_bytes = shm.map(|shm| values::bytes("shm-size", &shm)).transpose()?;
    request.sandbox = match raw.take_text("sandbox")?.as_deref() {
        Some("overlay") => SandboxChoice::Overlay,
        Some("swap") => SandboxChoice::Swap,
        Some("none") => SandboxChoice::None,
        _ => SandboxChoice::Auto,
    };
    let jobs = raw.take_text("jobs")?.map(|jobs| values::jobs(&jobs)).transpose()?;
    request.jobs = jobs.unwrap_or(environment.cpus).max(1);
    Ok(())
}

fn no_cache(raw: &mut RawRequest) -> Result<NoCache, Error> {
    let stages = values::stages(raw.take_texts("no-cache-filter")?);
    match (raw.take_switch("no-cache"), stages.is_empty()) {
        (true, false) => Err(usage("--no-cache and --no-cache-filter exclude each other")),
        (true, true) => Ok(NoCache::All),
        (false, false) => Ok(NoCache::Stages(stages)),
        (false, true) => Ok(NoCache::Use),
    }
}

fn registry(raw: &mut RawRequest, environment: &Environment) -> Result<RegistryOptions, Error> {
    Ok(RegistryOptions {
        insecure: each(raw, "insecure-registry", values::registry_or_network)?,
        mirrors: each(raw, "registry-mirror", values::mirror)?,
        certificates: each(raw, "registry-certificate", values::registry_file)?,
        client_certificates: each(raw, "registry-client-cert", values::registry_files)?,
        unverified: each(raw, "skip-tls-verify-registry", values::registry_host)?,
        certificate_folders: surroundings::certificate_folders(environment),
        ca_files: raw.take_all("ca-file").into_iter().map(PathBuf::from).collect(),
        credentials: credentials::sources(raw, environment),
        proxies: surroundings::proxies(environment),
        skip_immutable: false,
        #[cfg(feature = "aws")]
        aws: aws::options(raw, environment)?,
    })
}

/// Every value of a flag, converted.
fn each<T>(
    raw: &mut RawRequest,
    flag: &str,
    convert: fn(&str, &str) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    raw.take_texts(flag)?.iter().map(|value| convert(flag, value)).collect()
}

fn file_to_write(flag: &str, raw: &mut RawRequest) -> Result<Option<PathBuf>, Error> {
    surroundings::writable_file(flag, raw.take_one(flag).map(PathBuf::from))
}

fn usage(title: &str) -> Error {
    Error::new(Class::Usage, title)
}

#[cfg(test)]
mod tests;
