//! The words of EXPOSE.

use super::{
    super::ast::Span,
    Rule,
    linter::{Linter, Local},
};

pub(super) static EXPOSE_PROTO_CASING: Rule = Rule::new(
    "ExposeProtoCasing",
    "expose-proto-casing",
    "Protocol in EXPOSE instruction should be lowercase",
);

pub(super) static EXPOSE_INVALID_FORMAT: Rule = Rule::new(
    "ExposeInvalidFormat",
    "expose-invalid-format",
    "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release",
);

/// `port` is expanded: `[[ip:]host:]port[-port][/protocol]`, with a protocol that exists.
pub(super) fn check(port: &str, span: Span, local: &Local, linter: &mut Linter) {
    let (host, container) = port.rsplit_once(':').unwrap_or(("", port));
    let protocol = container.split_once('/').map_or("", |(_, protocol)| protocol);
    if protocol != protocol.to_lowercase() {
        let detail = format!("Defined protocol '{port}' in EXPOSE instruction should be lowercase");
        linter.add_at(&EXPOSE_PROTO_CASING, span, local, detail);
    }
    // `:80` and `::80` name neither an address nor a port of the host.
    if !matches!(host, "" | ":") {
        let detail = format!(
            "EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'"
        );
        linter.add_at(&EXPOSE_INVALID_FORMAT, span, local, detail);
    }
}
