//! How far an address reaches, so that an answer from a public registry can't steer us at a machine inside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where an address lies, ordered from outside to inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    Public,
    /// RFC 1918, RFC 6598 and unique local addresses.
    Private,
    Loopback,
    /// Link-local (the metadata services), unspecified, multicast, reserved: never followed to.
    Special,
}

impl Reach {
    pub(crate) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Reach::of_v4(v4),
            IpAddr::V6(v6) => Reach::of_v6(v6),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        let [a, b, ..] = address.octets();
        match (a, b) {
            (127, _) => Reach::Loopback,
            (10, _) | (192, 168) | (172, 16..=31) | (100, 64..=127) => Reach::Private,
            (0, _) | (169, 254) | (224.., _) => Reach::Special,
            _ => Reach::Public,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        if let Some(v4) = embedded_v4(address) {
            return Reach::of_v4(v4);
        }
        if address.is_loopback() {
            return Reach::Loopback;
        }
        let metadata = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0).segments();
        match address.segments() {
            segments if segments[..2] == metadata[..2] => Reach::Special,
            [first, ..] if first & 0xfe00 == 0xfc00 => Reach::Private,
            [first, ..] if first & 0xffc0 == 0xfe80 || first & 0xff00 == 0xff00 => Reach::Special,
            _ if address.is_unspecified() => Reach::Special,
            _ => Reach::Public,
        }
    }
}

/// The IPv4 address inside `::ffff:a.b.c.d` and inside NAT64's `64:ff9b::/96`.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    if let Some(v4) = address.to_ipv4_mapped() {
        return Some(v4);
    }
    let octets = address.octets();
    let nat64 = octets[..12] == [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0];
    nat64.then(|| Ipv4Addr::new(octets[12], octets[13], octets[14], octets[15]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        for (text, reach) in [
            ("8.8.8.8", Reach::Public),
            ("2a00::1", Reach::Public),
            ("10.1.2.3", Reach::Private),
            ("172.31.0.1", Reach::Private),
            ("172.32.0.1", Reach::Public),
            ("100.64.0.1", Reach::Private),
            ("fd12::1", Reach::Private),
            ("127.9.9.9", Reach::Loopback),
            ("::1", Reach::Loopback),
            ("::ffff:127.0.0.1", Reach::Loopback),
            ("169.254.169.254", Reach::Special),
            ("::ffff:169.254.169.254", Reach::Special),
            ("64:ff9b::a9fe:a9fe", Reach::Special),
            ("fd00:ec2::254", Reach::Special),
            ("fe80::1", Reach::Special),
            ("0.0.0.0", Reach::Special),
            ("::", Reach::Special),
            ("255.255.255.255", Reach::Special),
        ] {
            assert_eq!(Reach::of(text.parse().unwrap()), reach, "{text}");
        }
    }
}
