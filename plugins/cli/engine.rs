//! The seam to core: what the shell hands over and what it gets back.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
};

use bareboat_core::{
    Class, Error, digest::Digest, event::Reporter, request::BuildRequest, secret::Secret,
};

use crate::signals::Cancel;

/// What a build needs besides its request.
pub struct Services {
    pub reporter: Arc<dyn Reporter>,
    pub registry: Registry,
    pub cancel: Cancel,
}

/// What registry clients are made of.
pub struct Registry {
    pub tls: rustls::ClientConfig,
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
    let Services { reporter, registry, cancel } = services;
    let Registry { tls, http_proxy, https_proxy, no_proxy, insecure, .. } = registry;
    let Registry { docker_config, helper_path, helper_environment, .. } = registry;
    drop((tls, http_proxy, https_proxy, no_proxy, insecure));
    drop((docker_config, helper_path, helper_environment, request, reporter, cancel));
    Err(missing("builder"))
}

/// What the state directory holds, part by part.
pub async fn disk_usage(state_directory: &Path) -> Result<Vec<Usage>, Error> {
    Err(missing("store").context(state_directory.display()))
}

/// Empties the state directory and returns how many bytes that freed.
pub async fn prune(state_directory: &Path) -> Result<u64, Error> {
    Err(missing("store").context(state_directory.display()))
}

fn missing(part: &str) -> Error {
    Error::new(Class::Host, format!("this bareboat was compiled without its {part}"))
}
