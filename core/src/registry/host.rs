//! One registry as the client knows it: how it is reached, what it asks for, which tokens are in hand.

use std::{
    net::IpAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

use url::Url;

use super::{
    address::Reach,
    auth::HostAuth,
    error::RegistryError,
    options::{ClientOptions, is_loopback_name},
    pattern::HostPattern,
    reference,
};

const UNDECIDED: u8 = 0;
const TLS: u8 = 1;
const PLAIN: u8 = 2;

pub(crate) struct Host {
    /// Canonical: credentials and mirrors go by it.
    pub(crate) name: String,
    secure: Url,
    plain: Url,
    /// By the name as written; never by what it resolves to.
    may_be_plain: bool,
    scheme: AtomicU8,
    answered: AtomicBool,
    /// The innermost place that this registry answered from.
    peer: Mutex<Reach>,
    pub(crate) auth: HostAuth,
}

impl Host {
    /// `name` as a reference has it, possibly with `http://` before it in a mirror's configuration.
    pub(crate) fn new(name: &str, options: &ClientOptions) -> Result<Self, RegistryError> {
        let (name, forced_plain) = match name.split_once("://") {
            Some(("http", rest)) => (rest, true),
            Some((_, rest)) => (rest, false),
            None => (name, false),
        };
        let authority = reference::api_authority(name);
        let url = |scheme: &str| Url::parse(&format!("{scheme}://{authority}/"));
        let (Ok(secure), Ok(plain)) = (url("https"), url("http")) else {
            return Err(RegistryError::Options(format!("{name:?} is not the name of a registry")));
        };
        let host = secure.host_str().unwrap_or_default();
        let port = secure.port_or_known_default().unwrap_or(443);
        let insecure =
            options.insecure_registries.iter().filter_map(|text| HostPattern::parse(text));
        let literal = host.trim_matches(['[', ']']).parse::<IpAddr>().map(Reach::of);
        Ok(Host {
            name: reference::canonical(name),
            may_be_plain: forced_plain
                || is_loopback_name(host)
                || insecure.into_iter().any(|pattern| pattern.matches(host, port)),
            scheme: AtomicU8::new(if forced_plain { PLAIN } else { UNDECIDED }),
            answered: AtomicBool::new(false),
            peer: Mutex::new(literal.unwrap_or(Reach::Public)),
            secure,
            plain,
            auth: HostAuth::default(),
        })
    }

    /// Where requests go, as far as is known.
    pub(crate) fn base(&self) -> &Url {
        if self.is_plain() { &self.plain } else { &self.secure }
    }

    pub(crate) fn is_plain(&self) -> bool {
        self.scheme.load(Ordering::Acquire) == PLAIN
    }

    /// Whether there was an answer of any kind.
    pub(crate) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    pub(crate) fn note_answer(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// Whether plain http is to be tried when TLS does not work.
    pub(crate) fn may_try_plain(&self) -> bool {
        self.may_be_plain && self.scheme.load(Ordering::Acquire) == UNDECIDED
    }

    /// Remembers what answered.
    pub(crate) fn decide(&self, plain: bool) {
        let scheme = if plain { PLAIN } else { TLS };
        let _ =
            self.scheme.compare_exchange(UNDECIDED, scheme, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The port is written: an `https` address and an `http` one are then the same socket.
    pub(crate) fn has_port(&self) -> bool {
        self.secure.port().is_some()
    }

    /// Whether `url` has this registry's origin: the condition for sending it a credential.
    pub(crate) fn owns(&self, url: &Url) -> bool {
        same_origin(url, self.base())
    }

    /// How far inside this registry may send us.
    pub(crate) fn reach(&self) -> Reach {
        *self.peer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn answered_from(&self, address: IpAddr) {
        let mut peer = self.peer.lock().unwrap_or_else(PoisonError::into_inner);
        // A registry on a link-local address may not send us to other ones.
        let reach = Reach::of(address).min(Reach::Loopback);
        *peer = (*peer).max(reach);
    }
}

/// Scheme, host and port are equal (RFC 6454), a trailing dot aside.
pub(crate) fn same_origin(a: &Url, b: &Url) -> bool {
    fn host(url: &Url) -> &str {
        url.host_str().unwrap_or_default().trim_end_matches('.')
    }
    a.scheme() == b.scheme()
        && host(a) == host(b)
        && !host(a).is_empty()
        && a.port_or_known_default() == b.port_or_known_default()
}

/// For logs and errors: no user name, no query (signatures lie there), no fragment.
pub(crate) fn shown(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let path: String = url.path().chars().take(400).collect();
    format!("{}://{host}{port}{path}", url.scheme())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::testing;

    fn host(name: &str) -> Host {
        let mut options = testing::options();
        options.insecure_registries = vec!["reg.example:5000".into(), "10.0.0.0/8".into()];
        Host::new(name, &options).unwrap()
    }

    #[test]
    fn plain_http_goes_by_the_written_name() {
        for name in ["localhost:5000", "127.0.0.5", "[::1]:5000", "reg.example:5000", "10.1.1.1:80"]
        {
            assert!(host(name).may_try_plain(), "{name}");
        }
        for name in ["reg.example", "docker.io", "localhost.evil.example", "127.0.0.1.evil.example"]
        {
            assert!(!host(name).may_try_plain(), "{name}");
        }
    }

    #[test]
    fn origins_are_canonical() {
        let host = host("Reg.Example:443");
        let owns = |url: &str| host.owns(&Url::parse(url).unwrap());
        assert!(owns("https://reg.example/v2/"));
        assert!(owns("https://REG.example.:443/v2/"));
        for other in [
            "http://reg.example/",
            "https://reg.example:444/",
            "https://a.reg.example/",
            "https://reg.example.evil/",
            "https://reg.example@evil.example/",
        ] {
            assert!(!owns(other), "{other}");
        }
    }

    #[test]
    fn shown_urls_hold_no_secret() {
        let url = Url::parse("https://u:p@h.example:8443/a/b?X-Amz-Signature=s#f").unwrap();
        assert_eq!(shown(&url), "https://h.example:8443/a/b");
    }
}
