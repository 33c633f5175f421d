//! Names to addresses, by a resolver of our own that is made from bytes given at the start. libc's would open, and load
//! code by, whatever lies at `/etc` at that moment, which may be an image's.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::options::is_loopback_name;
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{op::ResponseCode, rr::Name},
};

const DNS_PORT: u16 = 53;
/// As many as glibc takes (MAXNS).
const SERVERS_MAX: usize = 3;
/// For one name with all servers, search domains and tries.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(30);

/// Looks names up: in a hosts file first, `localhost` by itself, then with the name servers of a resolv.conf(5). Cheap
/// to clone; clones share the answers.
#[derive(Clone)]
pub struct Names(Arc<Inner>);

struct Inner {
    hosts: HashMap<String, Vec<IpAddr>>,
    /// One for each server: a pool of hickory's gives the second one no time when the first is silent.
    servers: Vec<TokioResolver>,
    /// Which server answered last; it is asked first.
    answered: AtomicUsize,
    settings: Settings,
}

/// Why a name has no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("there is no host called {name} (asked {servers})")]
    Unknown { name: String, servers: String },
    #[error("the address of {name} can't be had from {servers}: {reason}")]
    Failed { name: String, servers: String, reason: String },
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Names({} of the hosts file, {})", self.0.hosts.len(), self.servers())
    }
}

impl Names {
    /// From the bytes of a hosts(5) file and of a resolv.conf(5). What is not understood in them is passed over, as libc
    /// does; without a name server the one at 127.0.0.1 is asked.
    pub fn new(hosts: &[u8], resolv_conf: &[u8]) -> Self {
        let settings = Settings::parse(&String::from_utf8_lossy(resolv_conf));
        Names::with_settings(hosts, &settings)
    }

    fn with_settings(hosts: &[u8], settings: &Settings) -> Self {
        Names(Arc::new(Inner {
            hosts: parse_hosts(&String::from_utf8_lossy(hosts)),
            servers: settings.resolvers(),
            answered: AtomicUsize::new(0),
            settings: settings.clone(),
        }))
    }

    /// The addresses of `name`, in the order in which they are to be tried: a hosts file's own, else IPv6 first
    /// (RFC 6724, RFC 8305). Never empty.
    ///
    /// # Errors
    /// That there is no such name, or why that can't be found out.
    pub async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, NameError> {
        let plain = name.trim_end_matches('.').to_ascii_lowercase();
        if let Ok(address) = plain.trim_matches(['[', ']']).parse() {
            return Ok(vec![address]);
        }
        if let Some(addresses) = self.0.hosts.get(&plain) {
            return Ok(addresses.clone());
        }
        // RFC 6761: never a question for a name server.
        if is_loopback_name(&plain) {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        tokio::time::timeout(LOOKUP_TIMEOUT, self.look_up(name))
            .await
            .unwrap_or_else(|_| Err(self.failed(name, "no answer in time".into())))
    }

    /// Asks for the name with each search domain, as resolv.conf(5) has it.
    async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, NameError> {
        let mut failure = None;
        for candidate in self.0.settings.candidates(name) {
            match self.ask(&candidate).await {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(reason) => failure = Some(reason),
            }
        }
        Err(failure.map_or_else(|| self.unknown(name), |reason| self.failed(name, reason)))
    }

    /// Asks one server after the other, and all of them again, for a full name. `None`: it has no address.
    async fn ask(&self, name: &Name) -> Result<Option<Vec<IpAddr>>, String> {
        let servers = &self.0.servers;
        let mut failure = "there is no name server".to_owned();
        for turn in 0..servers.len() * self.0.settings.attempts {
            let at = (self.0.answered.load(Ordering::Relaxed) + turn) % servers.len();
            let result = servers[at].lookup_ip(name.clone()).await;
            failure = match result {
                Err(error) if !is_final(&error) => reason(&error),
                answer => {
                    self.0.answered.store(at, Ordering::Relaxed);
                    let found = answer.map(|found| found.iter().collect::<Vec<_>>());
                    return Ok(found.ok().filter(|found| !found.is_empty()));
                }
            };
        }
        Err(failure)
    }

    fn servers(&self) -> String {
        let servers: Vec<String> =
            self.0.settings.servers.iter().map(|server| server.ip().to_string()).collect();
        servers.join(", ")
    }

    fn unknown(&self, name: &str) -> NameError {
        NameError::Unknown { name: name.to_owned(), servers: self.servers() }
    }

    fn failed(&self, name: &str, reason: String) -> NameError {
        NameError::Failed { name: name.to_owned(), servers: self.servers(), reason }
    }
}

/// Whether the answer was that there is nothing.
fn is_final(error: &NetError) -> bool {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            matches!(none.response_code, ResponseCode::NXDomain | ResponseCode::NoError)
        }
        NetError::Proto(_) => true,
        _ => false,
    }
}

fn reason(error: &NetError) -> String {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => none.response_code.to_string(),
        NetError::Dns(DnsError::ResponseCode(code)) => code.to_string(),
        NetError::Timeout => "no answer".into(),
        other => super::printable(&other.to_string(), 200),
    }
}

/// What a resolv.conf(5) says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Settings {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
    ndots: usize,
    timeout_seconds: u64,
    attempts: usize,
    tcp_only: bool,
    v4_only: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            servers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
            timeout_seconds: 5,
            attempts: 2,
            tcp_only: false,
            v4_only: false,
        }
    }
}

impl Settings {
    fn parse(text: &str) -> Self {
        let mut settings = Settings::default();
        for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => settings.add_server(words.next().unwrap_or_default()),
                // The last line of the two kinds counts.
                Some("domain") => settings.search = words.take(1).map(str::to_owned).collect(),
                Some("search") => settings.search = words.map(str::to_owned).collect(),
                Some("options") => words.for_each(|word| settings.set(word)),
                _ => {}
            }
        }
        if settings.servers.is_empty() {
            settings.servers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), DNS_PORT));
        }
        settings
    }

    fn add_server(&mut self, text: &str) {
        match text.parse::<IpAddr>() {
            Ok(address) if self.servers.len() < SERVERS_MAX => {
                self.servers.push(SocketAddr::new(address, DNS_PORT));
            }
            Ok(_) => {}
            Err(_) => tracing::debug!(text, "a name server of resolv.conf is passed over"),
        }
    }

    /// The limits are glibc's.
    fn set(&mut self, option: &str) {
        let (name, value) = option.split_once(':').unwrap_or((option, ""));
        let number = value.parse::<usize>().ok();
        match (name, number) {
            ("ndots", Some(ndots)) => self.ndots = ndots.min(15),
            ("timeout", Some(seconds)) => self.timeout_seconds = seconds.clamp(1, 30) as u64,
            ("attempts", Some(attempts)) => self.attempts = attempts.clamp(1, 5),
            ("use-vc", _) => self.tcp_only = true,
            ("no-aaaa", _) => self.v4_only = true,
            // Others steer glibc's own ways (rotate, edns0, trust-ad, single-request).
            _ => {}
        }
    }

    /// The full names to ask for: with few dots the search domains come first, and the name as it is last.
    fn candidates(&self, name: &str) -> Vec<Name> {
        let Ok(mut full) = Name::from_utf8(name.trim_end_matches('.')) else { return Vec::new() };
        full.set_fqdn(true);
        if name.ends_with('.') {
            return vec![full];
        }
        let mut candidates: Vec<Name> = self
            .search
            .iter()
            .filter_map(|domain| {
                Name::from_utf8(format!("{name}.{}.", domain.trim_matches('.'))).ok()
            })
            .collect();
        let dots = name.matches('.').count();
        candidates.insert(if dots >= self.ndots { 0 } else { candidates.len() }, full);
        candidates
    }

    fn resolvers(&self) -> Vec<TokioResolver> {
        let built = self.servers.iter().map(|server| self.resolver(*server));
        built
            .filter_map(|resolver| match resolver {
                Ok(resolver) => Some(resolver),
                Err(error) => {
                    tracing::warn!(%error, "a name server can't be used");
                    None
                }
            })
            .collect()
    }

    fn resolver(&self, server: SocketAddr) -> Result<TokioResolver, NetError> {
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![self.server(server)]);
        let mut builder =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        options.timeout = Duration::from_secs(self.timeout_seconds);
        // Counted by us, over all servers; zero retries.
        options.attempts = 0;
        options.use_hosts_file = ResolveHosts::Never;
        if self.v4_only {
            options.ip_strategy = LookupIpStrategy::Ipv4Only;
        }
        builder.build()
    }

    fn server(&self, address: SocketAddr) -> NameServerConfig {
        let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
        if self.tcp_only {
            connections.remove(0);
        }
        for connection in &mut connections {
            connection.port = address.port();
        }
        NameServerConfig::new(address.ip(), true, connections)
    }
}

/// Lower-case names with their addresses in the order of the lines.
fn parse_hosts(text: &str) -> HashMap<String, Vec<IpAddr>> {
    let mut hosts: HashMap<String, Vec<IpAddr>> = HashMap::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>) else { continue };
        for name in words {
            let known = hosts.entry(name.trim_end_matches('.').to_ascii_lowercase()).or_default();
            if !known.contains(&address) {
                known.push(address);
            }
        }
    }
    hosts
}

#[cfg(test)]
mod tests;
