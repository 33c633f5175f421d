//! Patterns of host names as NO_PROXY and lists of insecure registries write them.

use std::net::IpAddr;

/// `*`, `host`, `.domain`, `*.domain`, an address or a network in CIDR form; each but the last with an optional `:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPattern {
    host: HostMatch,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum HostMatch {
    Any,
    Name(String),
    /// The domain and everything below it.
    Below(String),
    Network(IpAddr, u8),
}

impl HostPattern {
    /// `None` for what is empty.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        if text.is_empty() {
            return None;
        }
        if let Some((address, bits)) = text.split_once('/') {
            let address = address.parse().ok()?;
            return Some(HostPattern {
                host: HostMatch::Network(address, bits.parse().ok()?),
                port: None,
            });
        }
        let (host, port) = split_port(&text);
        let host = host.trim_end_matches('.');
        let host = match host.strip_prefix("*.").or_else(|| host.strip_prefix('.')) {
            Some(domain) => HostMatch::Below(domain.to_owned()),
            None if host == "*" => HostMatch::Any,
            None => HostMatch::Name(host.to_owned()),
        };
        Some(HostPattern { host, port })
    }

    /// NO_PROXY's reading: a bare domain stands for everything below it too.
    pub(crate) fn parse_no_proxy(text: &str) -> Option<Self> {
        let mut pattern = HostPattern::parse(text)?;
        if let HostMatch::Name(name) = &pattern.host
            && name.parse::<IpAddr>().is_err()
        {
            pattern.host = HostMatch::Below(name.clone());
        }
        Some(pattern)
    }

    /// `host` as a URL has it (an IPv6 address in brackets).
    pub(crate) fn matches(&self, host: &str, port: u16) -> bool {
        if self.port.is_some_and(|wanted| wanted != port) {
            return false;
        }
        let host = bare(host).to_ascii_lowercase();
        match &self.host {
            HostMatch::Any => true,
            HostMatch::Name(name) => *name == host,
            HostMatch::Below(domain) => {
                host == *domain
                    || host.strip_suffix(domain.as_str()).is_some_and(|rest| rest.ends_with('.'))
            }
            HostMatch::Network(network, bits) => {
                host.parse().is_ok_and(|address| in_network(address, *network, *bits))
            }
        }
    }
}

/// A host without brackets and without the dot of the root.
fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.')
}

fn split_port(text: &str) -> (&str, Option<u16>) {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']').unwrap_or((rest, ""));
        return (host, port.strip_prefix(':').and_then(|port| port.parse().ok()));
    }
    match text.split_once(':') {
        Some((host, port)) if !port.contains(':') => (host, port.parse().ok()),
        _ => (text, None),
    }
}

fn in_network(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let wide = |address: IpAddr| match address {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, 32),
        IpAddr::V6(v6) => (u128::from(v6), 128),
    };
    let ((a, a_bits), (b, b_bits)) = (wide(address), wide(network));
    if a_bits != b_bits || bits > a_bits {
        return false;
    }
    bits == 0 || (a ^ b) >> (128 - u32::from(bits)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, host: &str, port: u16) -> bool {
        HostPattern::parse(pattern).unwrap().matches(host, port)
    }

    #[test]
    fn hosts_ports_and_networks() {
        assert!(matches("Reg.example:5000", "reg.example", 5000));
        assert!(!matches("reg.example:5000", "reg.example", 443));
        assert!(matches("reg.example", "reg.example", 5000));
        assert!(!matches("reg.example", "evil-reg.example", 443));
        assert!(matches("10.0.0.0/8", "10.200.3.4", 80));
        assert!(!matches("10.0.0.0/8", "11.0.0.1", 80));
        assert!(!matches("10.0.0.0/8", "10.evil.example", 80));
        assert!(matches("fd00::/8", "[fd12::1]", 80));
        assert!(matches("[::1]:5000", "[::1]", 5000));
        assert!(matches("::1", "[::1]", 1));
        assert!(matches("*", "anything", 1));
        assert!(HostPattern::parse(" ").is_none());
    }

    #[test]
    fn no_proxy_reads_domains() {
        let pattern = HostPattern::parse_no_proxy("corp.example").unwrap();
        assert!(pattern.matches("registry.corp.example", 443));
        assert!(pattern.matches("corp.example.", 443));
        assert!(!pattern.matches("evilcorp.example", 443));
        assert!(HostPattern::parse_no_proxy(".corp.example").unwrap().matches("a.corp.example", 1));
        assert!(!HostPattern::parse_no_proxy("10.0.0.1").unwrap().matches("110.0.0.1", 1));
    }
}
