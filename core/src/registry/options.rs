//! What a client is made of: TLS, proxies, mirrors, limits. Core looks none of it up itself.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use url::Url;

use super::{error::RegistryError, hooks::RegistryHooks, names::Names, pattern::HostPattern};
use crate::secret::Secret;

/// How to reach registries.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Roots, client certificates and the crypto provider. The protocol list (ALPN) is set by the client.
    pub tls: rustls::ClientConfig,
    /// Registries that are met with certificates of their own; the first that fits a host counts.
    pub identities: Vec<TlsIdentity>,
    pub proxies: Proxies,
    /// How the addresses of registries, mirrors and proxies are looked up.
    pub names: Names,
    /// `host`, `host:port` or networks in CIDR form that may speak plain http. Loopback names always may.
    pub insecure_registries: Vec<String>,
    /// For pulls: registry name -> mirrors as `host[:port][/prefix]`, tried in order before the registry itself.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// `host`, `.domain` or networks inside the private network that a registry outside may redirect to.
    pub trusted_redirect_hosts: Vec<String>,
    pub user_agent: String,
    pub limits: Limits,
    /// A provider's knowledge of its own registries.
    pub hooks: Option<Arc<dyn RegistryHooks>>,
    /// A tag that can't be moved and holds other content is left as it is, with a warning.
    pub skip_immutable: bool,
}

impl ClientOptions {
    pub fn new(tls: rustls::ClientConfig) -> Self {
        ClientOptions {
            tls,
            identities: Vec::new(),
            proxies: Proxies::default(),
            names: Names::new(b"", b""),
            insecure_registries: Vec::new(),
            mirrors: BTreeMap::new(),
            trusted_redirect_hosts: Vec::new(),
            user_agent: concat!("bareboat/", env!("CARGO_PKG_VERSION")).into(),
            limits: Limits::default(),
            hooks: None,
            skip_immutable: false,
        }
    }
}

/// How one registry is met over TLS, instead of with [`ClientOptions::tls`].
#[derive(Clone, Debug)]
pub struct TlsIdentity {
    /// `HOST` (at any port) or `HOST:PORT`.
    pub host: String,
    /// Or why its certificates can't be used: an error when the registry is needed, no sooner.
    pub tls: Result<rustls::ClientConfig, String>,
}

/// Proxy URLs by the scheme of what is asked for, as HTTP_PROXY, HTTPS_PROXY and NO_PROXY have them. They may hold a
/// password, hence the type.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    pub http: Option<Secret<String>>,
    pub https: Option<Secret<String>>,
    /// Comma-separated: hosts, domains, addresses, CIDR networks, `*`.
    pub no_proxy: Option<String>,
}

/// Every limit of the client, each with its reason.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How often a request is tried: registries throttle for seconds, not minutes.
    pub tries: u32,
    /// The same for connections to a registry that has not answered yet: its name or its port may be wrong.
    pub first_tries: u32,
    pub backoff_first: Duration,
    pub backoff_max: Duration,
    /// A `Retry-After` above this is a refusal.
    pub retry_after_max: Duration,
    pub connect_timeout: Duration,
    /// Until the head of an answer is there.
    pub response_timeout: Duration,
    /// The same for a manifest that the registry may first have to import.
    pub import_timeout: Duration,
    /// For a whole small document (manifest, config, token, error).
    pub document_timeout: Duration,
    /// A blob's transfer without progress.
    pub stall_timeout: Duration,
    /// A download slower than this over `stall_timeout` counts as stalled.
    pub bytes_per_second_min: u64,
    /// From the last byte of an upload to the registry's answer: registries hash and move the blob then.
    pub commit_timeout: Duration,
    /// What registries take (distribution-spec: at least 4 MiB).
    pub manifest_bytes_max: u64,
    pub error_bytes_max: u64,
    pub redirects_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            tries: 6,
            first_tries: 3,
            backoff_first: Duration::from_millis(500),
            backoff_max: Duration::from_secs(30),
            retry_after_max: Duration::from_secs(120),
            connect_timeout: Duration::from_secs(15),
            response_timeout: Duration::from_secs(60),
            import_timeout: Duration::from_secs(300),
            document_timeout: Duration::from_secs(120),
            stall_timeout: Duration::from_secs(60),
            bytes_per_second_min: 256,
            commit_timeout: Duration::from_secs(600),
            manifest_bytes_max: 4 << 20,
            error_bytes_max: 64 << 10,
            redirects_max: 8,
        }
    }
}

/// The proxies, parsed: one place decides for reqwest and for us whether a request goes through one.
#[derive(Clone)]
pub(crate) struct ProxyRules {
    http: Option<Url>,
    https: Option<Url>,
    direct: Vec<HostPattern>,
}

impl fmt::Debug for ProxyRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProxyRules")
    }
}

impl ProxyRules {
    pub(crate) fn new(proxies: &Proxies) -> Result<Self, RegistryError> {
        let direct = proxies.no_proxy.as_deref().unwrap_or_default();
        Ok(ProxyRules {
            http: proxies.http.as_ref().map(|url| proxy_url("http", url)).transpose()?.flatten(),
            https: proxies.https.as_ref().map(|url| proxy_url("https", url)).transpose()?.flatten(),
            direct: direct.split(',').filter_map(HostPattern::parse_no_proxy).collect(),
        })
    }

    /// The proxy that a request to `url` goes through.
    pub(crate) fn proxy_for(&self, url: &Url) -> Option<&Url> {
        let proxy = if url.scheme() == "https" { self.https.as_ref() } else { self.http.as_ref() };
        let proxy = proxy?;
        let (host, port) = (url.host_str()?, url.port_or_known_default()?);
        (!is_loopback_name(host) && !self.direct.iter().any(|pattern| pattern.matches(host, port)))
            .then_some(proxy)
    }

    /// The host names of the proxies themselves.
    pub(crate) fn hosts(&self) -> Vec<String> {
        let urls = [&self.http, &self.https];
        urls.into_iter().flatten().filter_map(|url| url.host_str().map(str::to_owned)).collect()
    }
}

fn proxy_url(kind: &'static str, text: &Secret<String>) -> Result<Option<Url>, RegistryError> {
    let text = text.expose().trim();
    if text.is_empty() {
        return Ok(None);
    }
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    match Url::parse(&url) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(Some(url)),
        // The text may hold a password: it is not shown.
        _ => Err(RegistryError::Options(format!(
            "the {kind} proxy is not an http:// or https:// URL with a host"
        ))),
    }
}

/// localhost, 127/8 and ::1, by the name as written.
pub(crate) fn is_loopback_name(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    host.eq_ignore_ascii_case("localhost")
        || host.to_ascii_lowercase().ends_with(".localhost")
        || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(https: &str, no_proxy: &str) -> ProxyRules {
        ProxyRules::new(&Proxies {
            http: None,
            https: Some(Secret::new(https.into())),
            no_proxy: Some(no_proxy.into()),
        })
        .unwrap()
    }

    #[test]
    fn proxies_by_scheme_and_host() {
        let rules = rules("user:pass@proxy.example:3128", "corp.example,10.0.0.0/8");
        let proxied = |url: &str| rules.proxy_for(&Url::parse(url).unwrap()).is_some();
        assert!(proxied("https://registry.example/v2/"));
        assert!(!proxied("http://registry.example/v2/"));
        assert!(!proxied("https://r.corp.example/v2/"));
        assert!(!proxied("https://10.2.3.4/v2/"));
        assert!(!proxied("https://localhost:5000/v2/"));
        assert_eq!(rules.hosts(), ["proxy.example"]);
    }

    #[test]
    fn a_bad_proxy_is_refused_without_showing_it() {
        let bad =
            Proxies { https: Some(Secret::new("ftp://u:hunter2@x".into())), ..<_>::default() };
        let error = ProxyRules::new(&bad).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
