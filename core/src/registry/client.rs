//! The client: registries by name, mirrors, and what all requests share.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
};

use reqwest::{
    Method,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use url::Url;

use super::{
    auth::{Access, keychain::Keychain},
    connect::Http,
    error::RegistryError,
    hooks::RegistryHooks,
    host::Host,
    options::{ClientOptions, Limits},
    reference::{Repository, canonical},
    transport::{Call, Payload, Target},
};

/// A client for registries (OCI distribution-spec 1.1). Cheap to clone; clones share connections and tokens.
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

pub(crate) struct Shared {
    options: ClientOptions,
    pub(crate) http: Http,
    pub(crate) keychain: Arc<dyn Keychain>,
    hosts: Mutex<HashMap<String, Arc<Host>>>,
    /// Uploads that were opened to see whether they may be, by registry and repository: the first blob takes one.
    pub(super) sessions: Mutex<HashMap<(String, String), Url>>,
}

/// What a client has sent so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientStats {
    /// Requests on the wire, those to token endpoints included.
    pub requests: u64,
    /// How many of them were sent because an earlier one failed.
    pub retries: u64,
}

/// A place to pull from: the registry itself or a mirror of it.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub(crate) host: Arc<Host>,
    /// The repository's name there.
    pub(crate) repository: String,
    pub(crate) mirror: bool,
}

impl Client {
    /// # Errors
    /// A proxy or the TLS configuration can't be used.
    pub fn new(options: ClientOptions, keychain: Arc<dyn Keychain>) -> Result<Self, RegistryError> {
        let http = Http::new(&options)?;
        let hosts = Mutex::new(HashMap::new());
        Ok(Client {
            shared: Arc::new(Shared { options, http, keychain, hosts, sessions: Mutex::default() }),
        })
    }

    pub fn stats(&self) -> ClientStats {
        ClientStats {
            requests: self.shared.http.requests.load(Ordering::Relaxed),
            retries: self.shared.http.retries.load(Ordering::Relaxed),
        }
    }

    pub fn limits(&self) -> &Limits {
        self.shared.limits()
    }

    pub(crate) fn skip_immutable(&self) -> bool {
        self.shared.options.skip_immutable
    }

    /// The hooks of `repository`'s registry, where there are some.
    pub(crate) fn hooks(&self, repository: &Repository) -> Option<&dyn RegistryHooks> {
        self.shared.hooks(&canonical(&repository.registry))
    }

    /// Adds what the registry's provider says about `error`, which ends a pull or a push.
    pub(crate) async fn advised(
        &self,
        repository: &Repository,
        error: RegistryError,
    ) -> RegistryError {
        let Some(hooks) = self.hooks(repository) else { return error };
        match hooks.advise(repository, &error).await {
            Some(hint) => RegistryError::Advised { error: Box::new(error), hint },
            None => error,
        }
    }
}

impl Shared {
    pub(crate) fn limits(&self) -> &Limits {
        &self.options.limits
    }

    /// The hooks of the registry with the canonical name `registry`.
    pub(crate) fn hooks(&self, registry: &str) -> Option<&dyn RegistryHooks> {
        self.options.hooks.as_deref().filter(|hooks| hooks.knows(registry))
    }

    /// The registry called `name`; all repositories share it, with its tokens.
    pub(crate) fn host(&self, name: &str) -> Result<Arc<Host>, RegistryError> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let key = name.to_ascii_lowercase();
        if let Some(host) = hosts.get(&key) {
            return Ok(host.clone());
        }
        let host = Arc::new(Host::new(name, &self.options)?);
        self.http.check_identity(host.base())?;
        hosts.insert(key, host.clone());
        Ok(host)
    }

    /// The registry of `repository` itself.
    pub(crate) fn endpoint(&self, repository: &Repository) -> Result<Endpoint, RegistryError> {
        let host = self.host(&canonical(&repository.registry))?;
        Ok(Endpoint { host, repository: repository.name.clone(), mirror: false })
    }

    /// Where to pull `repository` from, in order: its mirrors, then its registry.
    pub(crate) fn endpoints(
        &self,
        repository: &Repository,
    ) -> Result<Vec<Endpoint>, RegistryError> {
        let registry = canonical(&repository.registry);
        let mirrors = self.options.mirrors.iter().filter(|(name, _)| canonical(name) == registry);
        let mut endpoints = Vec::new();
        for mirror in mirrors.flat_map(|(_, mirrors)| mirrors) {
            endpoints.push(self.mirror(mirror, repository)?);
        }
        endpoints.push(self.endpoint(repository)?);
        Ok(endpoints)
    }

    /// `host[:port][/prefix]`
    fn mirror(&self, mirror: &str, repository: &Repository) -> Result<Endpoint, RegistryError> {
        let (scheme, rest) = match mirror.split_once("://") {
            Some((scheme, rest)) => (format!("{scheme}://"), rest),
            None => (String::new(), mirror),
        };
        let (host, prefix) = rest.trim_end_matches('/').split_once('/').unwrap_or((rest, ""));
        let host = self.host(&format!("{scheme}{}", host.trim_end_matches('/')))?;
        let repository = match prefix {
            "" => repository.name.clone(),
            prefix => format!("{prefix}/{}", repository.name),
        };
        Ok(Endpoint { host, repository, mirror: true })
    }
}

impl Endpoint {
    /// A request for `path` below the repository.
    pub(crate) fn call<'a>(
        &'a self,
        method: Method,
        path: &str,
        access: Access,
        limits: &Limits,
    ) -> Call<'a> {
        // A dead mirror must not hold up the build for long.
        let tries = if self.mirror { limits.tries.min(2) } else { limits.tries };
        Call {
            host: &self.host,
            method,
            target: Target::Path(format!("{}/{path}", self.repository)),
            headers: HeaderMap::new(),
            payload: Payload::Empty,
            access,
            response_timeout: limits.response_timeout,
            tries,
            throttled_tries: tries,
        }
    }
}

impl<'a> Call<'a> {
    pub(crate) fn header(mut self, name: HeaderName, value: &str) -> Result<Self, RegistryError> {
        let value = HeaderValue::from_str(value)
            .map_err(|_| RegistryError::Options(format!("{value:?} can't be sent as a header")))?;
        self.headers.insert(name, value);
        Ok(self)
    }

    pub(crate) fn payload(mut self, payload: Payload<'a>) -> Self {
        self.payload = payload;
        self
    }

    /// For requests that are part of something which is tried again as a whole.
    pub(crate) fn once(mut self) -> Self {
        self.tries = 1;
        self
    }
}
