//! The seam to core: the shell's findings become core's services, core's result becomes what the shell prints.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use crate::{
    credentials::{self, Credentials},
    flags::TransferRequest,
    signals::Cancel,
};
use bareboat_core::{
    Class, Error,
    build::{self, Services as CoreServices},
    check::{self, Checked},
    digest::Digest,
    event::Reporter,
    execute::sandbox::Host,
    preview::{self, BaseConfigs, Preview},
    registry::{
        ChainKeychain, Client, ClientOptions, Diagnosis, Helpers, Keychain, Names, Proxies,
        RegistryError, TlsIdentity, reference,
    },
    request::BuildRequest,
    secret::Secret,
    store,
    transfer::{self, Transferred},
};

/// What a build needs besides its request.
pub struct Services {
    pub reporter: Arc<dyn Reporter>,
    pub registry: Registry,
    pub cancel: Cancel,
    /// How this host executes RUN, and where the state lies.
    pub host: Arc<Host>,
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
    pub credentials: Credentials,
    /// Where credential helpers are looked for, and what environment they get.
    pub helper_path: Vec<PathBuf>,
    pub helper_environment: Vec<(OsString, OsString)>,
    /// An immutable tag that holds another image is left as it is.
    pub skip_immutable: bool,
    #[cfg(feature = "aws")]
    pub aws: crate::aws::Aws,
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
    let built = build::build(request, core_services(services).await?).await?;
    Ok(result(&built))
}

/// Looks for what is known to fail.
pub async fn preflight(request: BuildRequest, services: Services) -> Result<(), Error> {
    build::preflight(request, core_services(services).await?).await
}

/// How a registry answers, for people and programs.
#[derive(serde::Serialize)]
pub struct Answer {
    pub reference: String,
    /// Where the credentials come from, never what they are; `None`: there are none.
    pub credentials: Option<String>,
    pub digest: Option<Digest>,
    pub error: Option<String>,
    pub remedy: Option<String>,
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: ", self.reference)?;
        match (&self.error, &self.digest) {
            (Some(error), _) => f.write_str(error)?,
            (None, Some(digest)) => write!(f, "is {digest}")?,
            (None, None) => f.write_str("the registry answers, and has no such image")?,
        }
        match &self.credentials {
            Some(source) => write!(f, "; credentials from {source}")?,
            None => f.write_str("; no credentials")?,
        }
        match &self.remedy {
            Some(remedy) => write!(f, "\n       remedy: {remedy}"),
            None => Ok(()),
        }
    }
}

/// Asks registries for images.
pub async fn diagnose(registry: Registry, references: &[String]) -> Result<Vec<Answer>, Error> {
    let (options, keychain) = client(registry).await?;
    let usage = |error: RegistryError| error.into_error(Class::Usage);
    let client = Client::new(options, keychain).map_err(usage)?;
    let mut answers = Vec::new();
    for name in references {
        let parsed = reference::parse(name);
        let parsed = parsed.map_err(|error| Error::from_cause(Class::Usage, error))?;
        let Diagnosis { credentials, answer } = client.diagnose(&parsed).await.map_err(usage)?;
        let (credentials, answer) = match (credentials, answer) {
            (Ok(source), answer) => (source, answer),
            (Err(error), _) => (None, Err(error)),
        };
        answers.push(Answer {
            reference: name.clone(),
            credentials,
            remedy: answer.as_ref().err().and_then(RegistryError::hint),
            digest: answer.as_ref().ok().copied().flatten(),
            error: answer.err().map(|error| error.to_string()),
        });
    }
    Ok(answers)
}

async fn core_services(services: Services) -> Result<CoreServices, Error> {
    let Services { reporter, registry, cancel, host } = services;
    // Names that PATH itself could not hold were never on it.
    let program_path = std::env::join_paths(&registry.helper_path).unwrap_or_default();
    let (registry, keychain) = client(registry).await?;
    Ok(CoreServices {
        reporter,
        registry,
        keychain,
        cancel,
        program_path,
        boot_id: boot_id(),
        resolv_conf: read("/etc/resolv.conf"),
        host,
    })
}

/// Checks a Dockerfile.
pub async fn check(request: &BuildRequest, services: Services) -> Result<Checked, Error> {
    check::check(request, &core_services(services).await?).await
}

/// Plans a build.
pub async fn preview(
    request: &BuildRequest,
    bases: &BaseConfigs,
    services: Services,
) -> Result<Preview, Error> {
    preview::preview(request, bases, &core_services(services).await?).await
}

/// Pushes, copies or joins.
pub async fn transfer(request: TransferRequest, services: Services) -> Result<Transferred, Error> {
    let services = core_services(services).await?;
    match request {
        TransferRequest::Push(request) => transfer::push(request, &services).await,
        TransferRequest::Copy(request) => transfer::copy(request, &services).await,
        TransferRequest::Join(request) => transfer::join(request, &services).await,
    }
}

async fn client(registry: Registry) -> Result<(ClientOptions, Arc<dyn Keychain>), Error> {
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
    options.skip_immutable = registry.skip_immutable;
    let helpers = Helpers::new(registry.helper_path, registry.helper_environment);
    let mut configs = credentials::parse(&registry.credentials.configs, &helpers)?;
    #[cfg(feature = "aws")]
    let login = crate::aws::take_helper(&mut configs);
    let shared = configs.drain(..).map(|config| Arc::new(config) as Arc<dyn Keychain>);
    let mut keychains: Vec<_> = shared.collect();
    let usual = keychains.split_off(registry.credentials.named);
    #[cfg(feature = "aws")]
    let (options, usual) = crate::aws::add(options, usual, login, registry.aws).await?;
    keychains.extend(usual);
    keychains.extend(credentials::of_jobs(registry.credentials.jobs));
    Ok((options, Arc::new(ChainKeychain(keychains))))
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
