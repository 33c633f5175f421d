//! The seam to core: the shell's findings become core's services, core's result becomes what the shell prints.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use crate::signals::Cancel;
use bareboat_core::{
    Class, Error,
    build::{self, Services as CoreServices},
    check::{self, Checked},
    digest::Digest,
    event::Reporter,
    preview::{self, BaseConfigs, Preview},
    registry::{
        Anonymous, ClientOptions, DockerConfigKeychain, Helpers, Keychain, Names, Proxies,
        TlsIdentity,
    },
    request::BuildRequest,
    secret::Secret,
    store,
};

/// What a build needs besides its request.
pub struct Services {
    pub reporter: Arc<dyn Reporter>,
    pub registry: Registry,
    pub cancel: Cancel,
}

/// What registry clients are made of.
pub struct Registry {
    pub tls: rustls::ClientConfig,
    /// Registries with certificates of their own.
    pub identities: Vec<TlsIdentity>,
    /// Registry and mirror, in the order in which they are tried.
    pub mirrors: Vec<(String, String)>,
    pub http_proxy: Option<Secret<String>>,
    pub https_proxy: Option<Secret<String>>,
    pub no_proxy: Option<String>,
    /// Hosts and networks that may speak plain http.
    pub insecure: Vec<String>,
    /// Docker's configuration: its name and bytes, where there is one.
    pub docker_config: Option<(PathBuf, Secret<Vec<u8>>)>,
    /// Where credential helpers are looked for, and what environment they get.
    pub helper_path: Vec<PathBuf>,
    pub helper_environment: Vec<(OsString, OsString)>,
}

/// What a build made.
pub struct BuildResult {
    /// The manifest's digest.
    pub digest: Digest,
    pub config_digest: Digest,
    /// The manifest's descriptor, as JSON.
    pub descriptor: serde_json::Value,
    /// The image's names, in full.
    pub names: Vec<String>,
    /// In the order of the Dockerfile.
    pub steps: Vec<StepResult>,
    /// The rung that RUN was executed on, where one was needed.
    pub sandbox: Option<String>,
    pub bytes_pulled: u64,
    pub bytes_pushed: u64,
}

/// One instruction that was looked up or executed.
pub struct StepResult {
    pub instruction: String,
    pub line: u32,
    pub cached: bool,
    pub seconds: f64,
    /// Digest and bytes of the compressed layer.
    pub layer: Option<(Digest, u64)>,
}

/// One part of the state directory.
pub struct Usage {
    pub name: String,
    pub bytes: u64,
}

/// Builds.
pub async fn build(request: BuildRequest, services: Services) -> Result<BuildResult, Error> {
    let built = build::build(request, core_services(services)?).await?;
    Ok(result(&built))
}

fn core_services(services: Services) -> Result<CoreServices, Error> {
    let Services { reporter, registry, cancel } = services;
    // Names that PATH itself could not hold were never on it.
    let program_path = std::env::join_paths(&registry.helper_path).unwrap_or_default();
    let (registry, keychain) = client(registry)?;
    Ok(CoreServices {
        reporter,
        registry,
        keychain,
        cancel,
        program_path,
        boot_id: boot_id(),
        resolv_conf: read("/etc/resolv.conf"),
    })
}

/// Checks a Dockerfile.
pub async fn check(request: &BuildRequest, services: Services) -> Result<Checked, Error> {
    check::check(request, &core_services(services)?).await
}

/// Plans a build.
pub async fn preview(
    request: &BuildRequest,
    bases: &BaseConfigs,
    services: Services,
) -> Result<Preview, Error> {
    preview::preview(request, bases, &core_services(services)?).await
}

fn client(registry: Registry) -> Result<(ClientOptions, Arc<dyn Keychain>), Error> {
    let mut options = ClientOptions::new(registry.tls);
    options.proxies = Proxies {
        http: registry.http_proxy,
        https: registry.https_proxy,
        no_proxy: registry.no_proxy,
    };
    options.names = Names::new(&read("/etc/hosts"), &read("/etc/resolv.conf"));
    options.insecure_registries = registry.insecure;
    options.identities = registry.identities;
    for (host, mirror) in registry.mirrors {
        options.mirrors.entry(host).or_default().push(mirror);
    }
    let Some((path, config)) = registry.docker_config else {
        return Ok((options, Arc::new(Anonymous)));
    };
    let helpers = Helpers::new(registry.helper_path, registry.helper_environment);
    let keychain =
        DockerConfigKeychain::new(&path.display().to_string(), config.expose(), Some(helpers))
            .map_err(|error| Error::from_cause(Class::Usage, error))?;
    Ok((options, Arc::new(keychain)))
}

/// A file of the system that need not be there.
fn read(path: &str) -> Vec<u8> {
    fs::read(path).unwrap_or_default()
}

/// Names this boot: trees unpacked before the last crash or power cut are not trusted. Without /proc every build counts
/// as a boot of its own.
fn boot_id() -> String {
    match fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        Ok(id) => id.trim().to_owned(),
        Err(_) => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            format!("process {} at {}", std::process::id(), now.as_nanos())
        }
    }
}

fn result(built: &build::BuildResult) -> BuildResult {
    BuildResult {
        digest: built.artifact.digest(),
        config_digest: built.artifact.id(),
        descriptor: built.artifact.descriptor(),
        names: built.names.clone(),
        steps: built.steps.iter().map(step).collect(),
        sandbox: built.sandbox.map(str::to_owned),
        bytes_pulled: built.pulled_bytes,
        bytes_pushed: built.pushed_bytes,
    }
}

fn step(step: &bareboat_core::solve::StepReport) -> StepResult {
    StepResult {
        instruction: step.instruction.clone(),
        line: step.line,
        cached: step.cached,
        seconds: step.seconds,
        layer: Some((step.layer_digest, step.layer_bytes)),
    }
}

/// What the state directory holds, part by part.
pub async fn disk_usage(state_directory: &Path) -> Result<Vec<Usage>, Error> {
    let usage = store::usage(state_directory);
    let parts =
        [("blobs", usage.blobs_bytes), ("trees", usage.trees_bytes), ("other", usage.other_bytes)];
    Ok(parts.map(|(name, bytes)| Usage { name: name.to_owned(), bytes }).into())
}

/// Empties the state directory and returns how many bytes that freed.
pub async fn prune(state_directory: &Path) -> Result<u64, Error> {
    store::prune(state_directory).map_err(|error| Error::from_cause(Class::Host, error))
}
