//! Connections: TLS, proxies, and where a registry may send us.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::Url;

use super::{
    address::Reach,
    error::{ConnectFailure, RegistryError, printable},
    host::{Host, shown},
    names::{NameError, Names},
    options::{ClientOptions, ProxyRules},
    pattern::HostPattern,
    reference::api_authority,
};

/// The connections, and the rules for where they may lead.
pub(crate) struct Http {
    usual: Connections,
    /// For the registries that are met with certificates of their own.
    special: Vec<(HostPattern, Result<Connections, String>)>,
    proxies: ProxyRules,
    trusted: Vec<HostPattern>,
    pub(crate) requests: AtomicU64,
    pub(crate) retries: AtomicU64,
}

/// Connections that share a TLS configuration.
struct Connections {
    /// To registries that the user named.
    own: reqwest::Client,
    /// To where those sent us: by how far inside that may be.
    foreign: [reqwest::Client; 3],
}

impl Connections {
    fn new(
        options: &ClientOptions,
        tls: &rustls::ClientConfig,
        proxies: &ProxyRules,
    ) -> Result<Self, RegistryError> {
        let build = |reach: Reach| {
            let exempt = proxies.hosts().into();
            let guard = Guard { names: options.names.clone(), reach, exempt };
            build_client(options, tls.clone(), proxies, guard)
        };
        let foreign = [build(Reach::Public)?, build(Reach::Private)?, build(Reach::Loopback)?];
        Ok(Connections { own: build(Reach::Special)?, foreign })
    }
}

impl Http {
    pub(crate) fn new(options: &ClientOptions) -> Result<Self, RegistryError> {
        let proxies = ProxyRules::new(&options.proxies)?;
        let mut special = Vec::new();
        for identity in &options.identities {
            let Some(pattern) = HostPattern::parse(&api_authority(&identity.host)) else {
                continue;
            };
            let connections = match &identity.tls {
                Ok(tls) => Ok(Connections::new(options, tls, &proxies)?),
                Err(reason) => Err(reason.clone()),
            };
            special.push((pattern, connections));
        }
        Ok(Http {
            usual: Connections::new(options, &options.tls, &proxies)?,
            special,
            trusted: options
                .trusted_redirect_hosts
                .iter()
                .filter_map(|text| HostPattern::parse(text))
                .collect(),
            proxies,
            requests: AtomicU64::new(0),
            retries: AtomicU64::new(0),
        })
    }

    /// The connections that belong to the host of `url`.
    ///
    /// # Errors
    /// Why its certificates can't be used.
    fn connections(&self, url: &Url) -> Result<&Connections, &str> {
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or(443);
        let found = self.special.iter().find(|(pattern, _)| pattern.matches(host, port));
        found.map_or(Ok(&self.usual), |(_, special)| special.as_ref().map_err(String::as_str))
    }

    /// Whether the certificates that are configured for the host of `url` can be used.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check_identity(&self, url: &Url) -> Result<(), RegistryError> {
        self.connections(url).map(drop).map_err(|reason| RegistryError::Options(reason.to_owned()))
    }

    /// The connections for `url`, to which `host` sent us unless it is its own.
    ///
    /// # Errors
    /// Says why `url` is refused: another scheme than the registry's, or a place further inside than the registry.
    pub(crate) fn client_for(
        &self,
        host: &Host,
        url: &Url,
    ) -> Result<&reqwest::Client, &'static str> {
        let connections =
            self.connections(url).map_err(|_| "the certificates for its host can't be used")?;
        if host.owns(url) {
            return Ok(&connections.own);
        }
        if !matches!((url.scheme(), host.is_plain()), ("https", _) | ("http", true)) {
            return Err("it leaves https");
        }
        self.sent_from(connections, url, host.reach())
    }

    /// The connections to hosts that the user named, registries aside.
    pub(crate) fn own(&self) -> &reqwest::Client {
        &self.usual.own
    }

    /// The connections for `url`, to which a host, no registry, that lies at `reach` sent us.
    ///
    /// # Errors
    /// Says why `url` is refused: a user name in it, or a place further inside than `reach`.
    pub(crate) fn foreign(
        &self,
        url: &Url,
        reach: Reach,
    ) -> Result<&reqwest::Client, &'static str> {
        self.sent_from(&self.usual, url, reach)
    }

    fn sent_from<'a>(
        &self,
        connections: &'a Connections,
        url: &Url,
        reach: Reach,
    ) -> Result<&'a reqwest::Client, &'static str> {
        let name = url.host_str().ok_or("it names no host")?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("it holds a user name");
        }
        let port = url.port_or_known_default().unwrap_or(443);
        if self.trusted.iter().any(|pattern| pattern.matches(name, port)) {
            return Ok(&connections.own);
        }
        if let Ok(address) = name.trim_matches(['[', ']']).parse::<IpAddr>()
            && Reach::of(address) > reach
        {
            return Err("it leads to an address inside");
        }
        if self.proxies.hosts().iter().any(|proxy| proxy == name) {
            return Err("it leads to the proxy itself");
        }
        Ok(&connections.foreign[(reach as usize).min(2)])
    }

    /// Remembers from where a registry answers.
    pub(crate) fn note_peer(&self, host: &Host, url: &Url, peer: Option<SocketAddr>) {
        if let Some(address) = self.peer_of(url, peer) {
            host.answered_from(address);
        }
    }

    /// The address that answered for `url`. Behind a proxy that is not known.
    pub(crate) fn peer_of(&self, url: &Url, peer: Option<SocketAddr>) -> Option<IpAddr> {
        peer.filter(|_| self.proxies.proxy_for(url).is_none()).map(|peer| peer.ip())
    }
}

/// A client for a cloud provider's API, with the roots, the proxies and the resolver of registry requests. Plain http goes
/// to no proxy: what speaks it here are metadata services of this machine.
///
/// # Errors
/// As for [`super::Client::new`].
pub fn service_client(
    options: &ClientOptions,
    connect_timeout: Duration,
) -> Result<reqwest::Client, RegistryError> {
    let mut options = options.clone();
    options.proxies.http = None;
    options.limits.connect_timeout = connect_timeout;
    let proxies = ProxyRules::new(&options.proxies)?;
    let exempt = proxies.hosts().into();
    let guard = Guard { names: options.names.clone(), reach: Reach::Special, exempt };
    build_client(&options, options.tls.clone(), &proxies, guard)
}

fn build_client(
    options: &ClientOptions,
    mut tls: rustls::ClientConfig,
    proxies: &ProxyRules,
    guard: Guard,
) -> Result<reqwest::Client, RegistryError> {
    // One connection a blob moves large blobs faster than many streams on one.
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let rules = proxies.clone();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .http1_only()
        .no_proxy()
        .proxy(reqwest::Proxy::custom(move |url| rules.proxy_for(url).cloned()))
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .user_agent(&options.user_agent)
        .connect_timeout(options.limits.connect_timeout)
        .tcp_keepalive(Duration::from_secs(30))
        .dns_resolver(Arc::new(guard))
        .build()
        .map_err(|error| RegistryError::Options(reason(&error)))
}

/// Resolves names, but not to addresses further inside than `reach`: the check sits where the connection is made, so
/// that a name can't change in between.
struct Guard {
    names: Names,
    reach: Reach,
    /// The proxies' own names.
    exempt: Arc<[String]>,
}

#[derive(Debug, thiserror::Error)]
#[error("the name leads to an address inside")]
struct Inside;

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let (names, reach, exempt) = (self.names.clone(), self.reach, self.exempt.clone());
        Box::pin(async move {
            let name = name.as_str();
            let any = reach == Reach::Special || exempt.iter().any(|proxy| proxy == name);
            let found = names.resolve(name).await?.into_iter();
            let allowed: Vec<SocketAddr> = found
                .filter(|address| any || Reach::of(*address) <= reach)
                .map(|address| SocketAddr::new(address, 0))
                .collect();
            if allowed.is_empty() {
                return Err(Inside.into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

pub(crate) fn transport_error(error: &reqwest::Error, url: &Url) -> RegistryError {
    if find::<Inside>(error).is_some() {
        let reason = "its host's name leads to an address inside";
        return RegistryError::Redirect { url: "the registry".into(), target: shown(url), reason };
    }
    let (url, reason) = (shown(url), reason(error));
    if error.is_connect() || wants_certificate(error) {
        return RegistryError::Connect { url, reason, failure: connect_failure(error) };
    }
    RegistryError::Broken { url, reason }
}

fn connect_failure(error: &reqwest::Error) -> ConnectFailure {
    use std::io::ErrorKind::{ConnectionReset, UnexpectedEof};
    if matches!(find::<NameError>(error), Some(NameError::Unknown { .. })) {
        return ConnectFailure::NoSuchHost;
    }
    if error.is_timeout() {
        return ConnectFailure::TimedOut;
    }
    match find::<rustls::Error>(error) {
        Some(rustls::Error::InvalidMessage(_)) => return ConnectFailure::NotTls,
        Some(_) if wants_certificate(error) => return ConnectFailure::ClientCertificate,
        Some(_) => return ConnectFailure::Certificate,
        None => {}
    }
    match find::<std::io::Error>(error).map(std::io::Error::kind) {
        Some(UnexpectedEof | ConnectionReset) => ConnectFailure::HandshakeCut,
        _ => ConnectFailure::Network,
    }
}

/// With TLS 1.3 the other side says so only after the handshake.
fn wants_certificate(error: &reqwest::Error) -> bool {
    use rustls::AlertDescription::{
        AccessDenied, BadCertificate, CertificateExpired, CertificateRequired, CertificateUnknown,
        UnknownCA,
    };
    match find::<rustls::Error>(error) {
        Some(rustls::Error::AlertReceived(alert)) => matches!(
            alert,
            AccessDenied
                | BadCertificate
                | CertificateExpired
                | CertificateRequired
                | CertificateUnknown
                | UnknownCA
        ),
        _ => false,
    }
}

/// The innermost cause: the outer ones repeat the URL.
fn reason(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let text = match cause.downcast_ref::<reqwest::Error>() {
        Some(_) => "the request could not be made".to_owned(),
        None => cause.to_string(),
    };
    printable(&text, 300)
}

/// Looks for an error of type `T` among the causes, also inside of `io::Error`s.
fn find<T: std::error::Error + 'static>(error: &reqwest::Error) -> Option<&T> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(found) = current.downcast_ref::<T>() {
            return Some(found);
        }
        if let Some(io) = current.downcast_ref::<std::io::Error>()
            && let Some(inner) = io.get_ref()
        {
            cause = Some(inner);
            continue;
        }
        cause = current.source();
    }
    None
}
