//! Ports of EXPOSE, once their words are expanded and split.

use thiserror::Error;

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ExposeError {
    #[error("invalid port: {port:?}: no port specified")]
    NoPort { port: String },
    #[error("invalid port: {port:?}: invalid proto: {protocol}")]
    Protocol { port: String, protocol: String },
    #[error("invalid IP address: {0}")]
    Address(String),
    #[error("invalid containerPort: {0}")]
    ContainerPort(String),
    #[error("invalid hostPort: {0}")]
    HostPort(String),
    #[error("invalid ranges specified for container and host Ports: {container} and {host}")]
    Ranges { container: String, host: String },
}

/// What one word of EXPOSE names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposed {
    pub first: u16,
    pub last: u16,
    /// As written: `tcp` where not given.
    pub protocol: String,
    /// An address or a host port was given, which EXPOSE has no use for.
    pub has_host: bool,
}

impl Exposed {
    /// The config's entries, such as `80/tcp`, one a port.
    pub fn entries(&self) -> impl Iterator<Item = String> {
        let protocol = self.protocol.to_lowercase();
        (self.first..=self.last).map(move |port| format!("{port}/{protocol}"))
    }
}

/// Reads `[[ip:]host:]port[-port][/protocol]`; only the container's ports count.
pub fn parse(port: &str) -> Result<Exposed, ExposeError> {
    let (rest, container) = port.rsplit_once(':').unwrap_or(("", port));
    let (address, host) = rest.rsplit_once(':').unwrap_or(("", rest));
    let (range, protocol) = container.split_once('/').unwrap_or((container, ""));
    if range.is_empty() {
        return Err(ExposeError::NoPort { port: port.to_owned() });
    }
    let protocol = match protocol.to_lowercase().as_str() {
        "" => "tcp",
        "tcp" | "udp" | "sctp" => protocol,
        _ => {
            return Err(ExposeError::Protocol {
                port: port.to_owned(),
                protocol: protocol.to_owned(),
            });
        }
    };
    check_address(address)?;
    let (first, last) = ports(range).ok_or_else(|| ExposeError::ContainerPort(range.to_owned()))?;
    if !host.is_empty() {
        let (host_first, host_last) =
            ports(host).ok_or_else(|| ExposeError::HostPort(host.to_owned()))?;
        if first != last && last - first != host_last - host_first {
            return Err(ExposeError::Ranges { container: range.to_owned(), host: host.to_owned() });
        }
    }
    Ok(Exposed {
        first,
        last,
        protocol: protocol.to_owned(),
        has_host: !address.is_empty() || !host.is_empty(),
    })
}

fn check_address(address: &str) -> Result<(), ExposeError> {
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    if bare.is_empty() && address.is_empty() || bare.parse::<std::net::IpAddr>().is_ok() {
        return Ok(());
    }
    Err(ExposeError::Address(address.to_owned()))
}

fn ports(range: &str) -> Option<(u16, u16)> {
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

fn number(text: &str) -> Option<u16> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_protocols() {
        let entries = |port: &str| parse(port).unwrap().entries().collect::<Vec<_>>();
        assert_eq!(entries("80"), ["80/tcp"]);
        assert_eq!(entries("80/"), ["80/tcp"]);
        assert_eq!(entries("90-92/UDP"), ["90/udp", "91/udp", "92/udp"]);
        assert_eq!(entries("65535/sctp"), ["65535/sctp"]);
        assert_eq!(entries("127.0.0.1:8080:80"), ["80/tcp"]);
        assert_eq!(entries("[::1]:8080:80"), ["80/tcp"]);
        assert_eq!(entries("::1::80"), ["80/tcp"]);
        assert_eq!(entries("1000-2000:80"), ["80/tcp"]);
        assert!(parse("8080:80").unwrap().has_host);
        assert!(!parse("80/TCP").unwrap().has_host);
        assert_eq!(parse("80/TCP").unwrap().protocol, "TCP");
    }

    #[test]
    fn refusals() {
        for port in [
            "",
            "/tcp",
            "80/icmp",
            "http",
            "-1",
            "80-",
            "90-80",
            "70000",
            "x:80",
            "1-3:80-81",
            "a:1:80",
            "[::1:1:80",
        ] {
            assert!(parse(port).is_err(), "{port}");
        }
    }
}
