//! Image references by Docker's rules (distribution/reference): `[registry/]repository[:tag][@digest]`.

use std::{fmt, net::Ipv6Addr};

use oci_distribution::ParseError;
pub use oci_distribution::Reference;

use crate::digest::{Digest, DigestError};

/// Docker Hub's name in references.
pub const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_API: &str = "registry-1.docker.io";

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("{text:?} is not an image reference: {reason}")]
    Invalid { text: String, reason: &'static str },
    #[error("{text:?} is not an image reference: {error}")]
    Digest { text: String, error: DigestError },
}

/// Parses `text`: `docker.io/library` where no registry is named, tag `latest` where neither tag nor digest is.
///
/// # Errors
/// Schemes, user names, upper-case repositories and digests that are not sha256 are refused by name.
pub fn parse(text: &str) -> Result<Reference, ReferenceError> {
    let invalid = |reason| ReferenceError::Invalid { text: shown(text), reason };
    if let Some(reason) = why_not(text) {
        return Err(invalid(reason));
    }
    check_digest(text)?;
    let reference = match text.strip_prefix('[') {
        Some(rest) => parse_ipv6(rest).map_err(invalid)?,
        None => Reference::try_from(text).map_err(|error| invalid(explain(text, &error)))?,
    };
    // A first part without dot or port is a part of the repository, and those are lower-case.
    if reference.repository().bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(invalid("the repository must be lower-case"));
    }
    if reference.registry().len() + 1 + reference.repository().len() > 255 {
        return Err(invalid("the name is longer than 255 characters"));
    }
    Ok(reference)
}

fn shown(text: &str) -> String {
    // `https://user:password@host/…` is a common mistake: the password is not repeated.
    let text = match text.split_once("://") {
        Some((scheme, rest)) => match rest.rsplit_once('@') {
            Some((_, host)) => format!("{scheme}://…@{host}"),
            None => text.to_owned(),
        },
        None => match text.split_once('@') {
            Some((user, _)) if !text.contains("@sha") && user.contains(':') => "…@…".to_owned(),
            _ => text.to_owned(),
        },
    };
    text.chars().take(300).collect()
}

/// The mistakes that deserve their own words.
fn why_not(text: &str) -> Option<&'static str> {
    let name = text.split('@').next().unwrap_or_default();
    let is_hex = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if text.is_empty() {
        Some("it is empty")
    } else if text.len() > 2048 {
        Some("it is too long")
    } else if text.bytes().any(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control()) {
        Some("it holds white space")
    } else if text.contains("://") {
        Some("leave out the scheme, write host/repository:tag")
    } else if text.split_once('@').is_some_and(|(_, rest)| rest.contains(['/', '@'])) {
        Some("a user name has no place in it")
    } else if is_hex(name) || name.strip_prefix("sha256:").is_some_and(is_hex) {
        Some("a digest alone names no repository, write repository@sha256:…")
    } else {
        None
    }
}

fn check_digest(text: &str) -> Result<(), ReferenceError> {
    let Some((_, digest)) = text.split_once('@') else { return Ok(()) };
    match digest.parse::<Digest>() {
        Ok(_) => Ok(()),
        Err(error) => Err(ReferenceError::Digest { text: shown(text), error }),
    }
}

/// `[address]:port/repository`, which the crate's grammar lacks: the rest is parsed below a stand-in host.
fn parse_ipv6(rest: &str) -> Result<Reference, &'static str> {
    const WRONG: &str = "expected [IPv6 address]:port/repository";
    let (address, rest) = rest.split_once(']').ok_or(WRONG)?;
    let address: Ipv6Addr = address.parse().map_err(|_| WRONG)?;
    let (port, rest) = rest.split_once('/').ok_or(WRONG)?;
    let good_port = |port: &str| port.strip_prefix(':').is_some_and(|p| p.parse::<u16>().is_ok());
    if !(port.is_empty() || good_port(port)) {
        return Err(WRONG);
    }
    let stand_in = format!("localhost/{rest}");
    let parsed = Reference::try_from(stand_in.as_str()).map_err(|error| explain(rest, &error))?;
    let (registry, repository) = (format!("[{address}]{port}"), parsed.repository().to_owned());
    Ok(match (parsed.tag().map(str::to_owned), parsed.digest().map(str::to_owned)) {
        (Some(tag), Some(digest)) => {
            Reference::with_tag_and_digest(registry, repository, tag, digest)
        }
        (None, Some(digest)) => Reference::with_digest(registry, repository, digest),
        (tag, None) => Reference::with_tag(registry, repository, tag.unwrap_or_default()),
    })
}

fn explain(text: &str, error: &ParseError) -> &'static str {
    let path = text.split_once('/').map_or(text, |(_, path)| path);
    let path = path.split(['@', ':']).next().unwrap_or_default();
    match error {
        _ if path.bytes().any(|byte| byte.is_ascii_uppercase()) => {
            "the repository must be lower-case"
        }
        ParseError::NameTooLong => "the name is longer than 255 characters",
        _ => "expected [registry/]repository[:tag][@sha256:…]",
    }
}

/// A repository on a registry: what blobs and manifests belong to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    /// As written: `docker.io`, `localhost:5000`.
    pub registry: String,
    /// `library/debian`
    pub name: String,
}

impl Repository {
    /// Whether both lie on one registry, whatever their names' spelling.
    pub fn same_registry(&self, other: &Repository) -> bool {
        canonical(&self.registry) == canonical(&other.registry)
    }
}

impl From<&Reference> for Repository {
    fn from(reference: &Reference) -> Self {
        Repository {
            registry: reference.registry().to_owned(),
            name: reference.repository().to_owned(),
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.name)
    }
}

/// A manifest named by its content: it can't change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PinnedReference {
    pub repository: Repository,
    pub digest: Digest,
}

impl PinnedReference {
    /// The same manifest as a reference without a tag.
    pub fn to_reference(&self) -> Reference {
        let Repository { registry, name } = self.repository.clone();
        Reference::with_digest(registry, name, self.digest.to_string())
    }
}

impl fmt::Display for PinnedReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.repository, self.digest)
    }
}

/// The name that credentials, mirrors and comparisons go by: lower-case, Docker Hub's names made one.
pub fn canonical(registry: &str) -> String {
    let registry = registry.trim_end_matches('.').to_ascii_lowercase();
    match registry.as_str() {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => {
            DOCKER_HUB.to_owned()
        }
        _ => registry,
    }
}

/// The `host[:port]` that answers the API for `registry`.
pub(crate) fn api_authority(registry: &str) -> String {
    match canonical(registry) {
        hub if hub == DOCKER_HUB => DOCKER_HUB_API.to_owned(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn docker_defaults() {
        for (text, whole) in [
            ("debian", "docker.io/library/debian:latest"),
            ("me/app:1", "docker.io/me/app:1"),
            ("index.docker.io/debian", "docker.io/library/debian:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/a/b:c", "localhost:5000/a/b:c"),
            ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"),
            ("[::1]:5000/a:b", "[::1]:5000/a:b"),
            ("Reg.Example/app", "Reg.Example/app:latest"),
            ("a__b/c-d.e_f:T-1.2_3", "docker.io/a__b/c-d.e_f:T-1.2_3"),
        ] {
            assert_eq!(parse(text).unwrap().whole(), whole);
        }
        let pinned = parse(&format!("a/b:t@sha256:{HEX}")).unwrap();
        assert_eq!((pinned.tag(), pinned.digest().is_some()), (Some("t"), true));
        assert_eq!(parse(&format!("a/b@sha256:{HEX}")).unwrap().tag(), None);
    }

    #[test]
    fn refuses_with_a_reason() {
        for (text, words) in [
            ("".to_owned(), "empty"),
            ("UPPER/x".into(), "lower-case"),
            ("docker.io/Lib/x".into(), "lower-case"),
            ("Debian".into(), "lower-case"),
            ("https://reg.example/x".into(), "scheme"),
            ("user:pass@reg.example/x".into(), "user name"),
            ("reg.example@evil.example/x".into(), "user name"),
            (HEX.into(), "repository@"),
            (format!("sha256:{HEX}"), "repository@"),
            (format!("a@sha256:{}", HEX.to_uppercase()), "digest"),
            ("a@sha256:abc".into(), "digest"),
            (format!("a@sha512:{HEX}{HEX}"), "not supported"),
            ("a b".into(), "white space"),
            ("a:b:c".into(), "expected"),
            ("a//b".into(), "expected"),
            ("../x".into(), "expected"),
            ("reg.example/../x".into(), "expected"),
            ("a:".into(), "expected"),
            ("[::1/x".into(), "IPv6"),
            ("[1.2.3.4]:5/x".into(), "IPv6"),
            ("reg.example./x".into(), "expected"),
            (format!("a/{}", "b".repeat(300)), "255"),
            ("bücher.example/x".into(), "expected"),
        ] {
            let error = parse(&text).expect_err(&text).to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn a_password_is_not_repeated() {
        for text in ["https://me:hunter2@reg.example/x", "me:hunter2@reg.example/x"] {
            assert!(!parse(text).unwrap_err().to_string().contains("hunter2"));
        }
    }

    #[test]
    fn hub_names_are_one() {
        assert_eq!(canonical("Index.Docker.IO"), "docker.io");
        assert_eq!(api_authority("docker.io"), "registry-1.docker.io");
        assert_eq!(api_authority("Reg.Example:5000"), "reg.example:5000");
        let hub = |registry: &str| Repository { registry: registry.into(), name: "x".into() };
        assert!(hub("docker.io").same_registry(&hub("index.docker.io")));
    }

    proptest::proptest! {
        #[test]
        fn never_panics_and_round_trips(text in "\\PC{0,80}") {
            if let Ok(reference) = parse(&text) {
                proptest::prop_assert_eq!(parse(&reference.whole()).unwrap(), reference);
            }
        }
    }
}
