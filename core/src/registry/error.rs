//! What can go wrong with a registry, and what the user can do about it.

use std::{fmt, path::PathBuf, time::Duration};

use oci_distribution::errors::{OciEnvelope, OciErrorCode};
use reqwest::{Method, StatusCode, header::HeaderMap};

use super::{
    auth::keychain::KeychainError, manifest::ManifestError, reference::ReferenceError, retry,
};
use crate::{
    Class, Error,
    digest::{Digest, DigestError},
};

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error("the registry client can't be set up: {0}")]
    Options(String),
    #[error("cannot connect to {url}: {reason}")]
    Connect { url: String, reason: String, failure: ConnectFailure },
    #[error("the connection to {url} broke: {reason}")]
    Broken { url: String, reason: String },
    #[error("{url}: {what} took longer than {} seconds", limit.as_secs())]
    TimedOut { url: String, what: &'static str, limit: Duration },
    #[error(transparent)]
    Refused(Box<Refusal>),
    #[error(
        "{registry} asks to wait {} seconds before the next request, more than the {} seconds that are allowed",
        asked.as_secs(),
        limit.as_secs()
    )]
    RetryTooLate { registry: String, asked: Duration, limit: Duration },
    #[error("{url} redirects to {target}: {reason}")]
    Redirect { url: String, target: String, reason: &'static str },
    #[error("{url}: more than {limit} redirects")]
    Redirects { url: String, limit: u32 },
    #[error("{url}: {reason}")]
    Answer { url: String, reason: String },
    #[error("{what} is not a manifest that can be used: {error}")]
    Manifest { what: String, error: ManifestError },
    #[error("{what} has the digest {actual}, expected {expected}")]
    Digest { what: String, expected: Digest, actual: Digest },
    #[error("{what} has {actual} bytes, expected {expected}")]
    Size { what: String, expected: u64, actual: u64 },
    #[error("{what} is larger than {limit} bytes")]
    TooLarge { what: String, limit: u64 },
    #[error("{url}: the registry does not serve ranges of a blob")]
    RangeUnsupported { url: String },
    #[error(transparent)]
    Keychain(#[from] KeychainError),
    #[error("no token for {registry}: {error}")]
    Token { registry: String, error: Box<RegistryError> },
    #[error("cannot read {}: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    #[error("the bytes to upload can't be had: {error}")]
    Source { error: Box<RegistryError> },
    #[error("{registry} closed the connection on the upload to {repository}, without an answer")]
    UploadClosed { registry: String, repository: String },
    #[error("{what} names {actual} after the push, expected {expected}")]
    Verify { what: String, expected: Digest, actual: Digest },
    #[error("the upload was given up because another one failed")]
    Canceled,
    #[error(transparent)]
    BadDigest(#[from] DigestError),
    /// With a hint of the registry's provider.
    #[error("{error}")]
    Advised { error: Box<RegistryError>, hint: String },
}

/// Why there was no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectFailure {
    /// Nobody listens, no way there, the address can't be found out.
    Network,
    /// There was no answer at all.
    TimedOut,
    /// The name has no address.
    NoSuchHost,
    /// The other side does not speak TLS.
    NotTls,
    /// The other side hung up during the handshake.
    HandshakeCut,
    /// The certificate is not trusted, or is for another name.
    Certificate,
    /// The other side wants a client certificate, or another one.
    ClientCertificate,
}

/// A registry's answer outside 2xx, read to its end.
#[derive(Debug)]
pub struct Refusal {
    pub method: Method,
    /// Without user name, query and fragment.
    pub url: String,
    pub status: StatusCode,
    /// The first error code of the distribution-spec's envelope.
    pub code: Option<String>,
    /// What the registry said, control characters made visible, cut.
    pub message: String,
    pub kind: RefusalKind,
    /// Where the credential that was sent came from.
    pub credential: Option<String>,
    pub(crate) headers: HeaderMap,
}

/// What a refusal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    Unauthorized,
    /// The credential was good once.
    Expired,
    Denied,
    QuotaExceeded,
    NameUnknown,
    ManifestUnknown,
    BlobUnknown,
    UploadLost,
    TagImmutable,
    Unsupported,
    TooManyRequests,
    NotFound,
    Unavailable,
    Other,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.method, self.url, self.status)?;
        if let Some(code) = &self.code {
            write!(f, " {code}")?;
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

impl Refusal {
    pub(crate) fn new(
        method: Method,
        url: String,
        status: StatusCode,
        headers: HeaderMap,
        body: &[u8],
    ) -> Self {
        let (code, message) = read_body(body);
        let kind = classify(status, code.as_deref(), &message);
        Refusal { method, url, status, code, message, kind, credential: None, headers }
    }

    fn retryable(&self) -> bool {
        matches!(self.kind, RefusalKind::TooManyRequests | RefusalKind::Unavailable)
    }

    fn hint(&self) -> Option<String> {
        let from = || match &self.credential {
            Some(source) => format!("the credential came from {source}"),
            None => "no credential is configured for this registry".to_owned(),
        };
        Some(match self.kind {
            RefusalKind::Unauthorized => {
                format!("{}; log in, or give the right one in Docker's config.json", from())
            }
            RefusalKind::Expired => format!("{}; it has expired, log in again", from()),
            RefusalKind::Denied => {
                format!("{}; it lacks the permission that this request needs", from())
            }
            RefusalKind::QuotaExceeded => {
                "a limit of the registry is reached: delete old images or raise it".into()
            }
            RefusalKind::NameUnknown => {
                "the repository does not exist: create it, or correct its name".into()
            }
            RefusalKind::ManifestUnknown => "check the tag's spelling".into(),
            RefusalKind::TagImmutable => {
                "the repository keeps its tags: push under another tag, or leave this one as it is with --skip-immutable".into()
            }
            RefusalKind::TooManyRequests => {
                "the registry limits its requests: log in, or try again later".into()
            }
            RefusalKind::Unsupported => {
                "the registry does not take this kind of manifest or request".into()
            }
            _ => return None,
        })
    }
}

impl RegistryError {
    /// Whether asking again may help.
    pub(crate) fn retryable(&self) -> bool {
        match self {
            RegistryError::Connect { failure, .. } => {
                use ConnectFailure::{Certificate, ClientCertificate, NoSuchHost};
                !matches!(failure, Certificate | ClientCertificate | NoSuchHost)
            }
            RegistryError::Broken { .. } | RegistryError::TimedOut { .. } => true,
            RegistryError::Refused(refusal) => refusal.retryable(),
            RegistryError::Token { error, .. } => error.retryable(),
            _ => false,
        }
    }

    /// What the registry asked for with `Retry-After`, when it throttles.
    pub(crate) fn retry_after(&self, now: jiff::Timestamp) -> Option<Duration> {
        match self {
            RegistryError::Refused(refusal) => retry::retry_after(&refusal.headers, now),
            RegistryError::Token { error, .. } => error.retry_after(now),
            _ => None,
        }
    }

    /// The registry's refusal, if that is what this is.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            RegistryError::Refused(refusal) => Some(refusal),
            RegistryError::Advised { error, .. } => error.refusal(),
            _ => None,
        }
    }

    pub fn kind(&self) -> Option<RefusalKind> {
        self.refusal().map(|refusal| refusal.kind)
    }

    pub fn status(&self) -> Option<StatusCode> {
        self.refusal().map(|refusal| refusal.status)
    }

    /// Whether the thing that was asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(StatusCode::NOT_FOUND)
    }

    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            RegistryError::Refused(refusal) => return refusal.hint(),
            RegistryError::Advised { hint, .. } => hint.clone(),
            RegistryError::Keychain(error) => return error.hint.clone(),
            RegistryError::Token { error, .. } | RegistryError::Source { error, .. } => {
                return error.hint();
            }
            RegistryError::Connect { failure: ConnectFailure::Certificate, .. } => {
                "the registry's certificate is not trusted: give its CA with --registry-certificate HOST=FILE, or to all with --ca-file".into()
            }
            RegistryError::Connect { failure: ConnectFailure::ClientCertificate, .. } => {
                "the registry asks for a client certificate: give it with --registry-client-cert HOST=CERTIFICATE,KEY, or in certs.d".into()
            }
            RegistryError::Connect { failure: ConnectFailure::NotTls, .. } => {
                "if the registry speaks plain http, name it with --insecure-registry".into()
            }
            RegistryError::Connect { failure: ConnectFailure::NoSuchHost, .. } => {
                "check the name's spelling, and whether this machine's name servers know it".into()
            }
            RegistryError::UploadClosed { .. } => {
                "some registries answer so when the repository does not exist, or when the credential may not push to it".into()
            }
            RegistryError::RetryTooLate { .. } => {
                "the registry limits its requests: log in, or try again later".into()
            }
            RegistryError::Redirect { .. } => {
                "if that host is yours, name it among the trusted redirect hosts".into()
            }
            RegistryError::Manifest { error, .. } => return error.hint(),
            RegistryError::Verify { .. } => {
                "something else pushed the same tag at the same time, or the registry changed the manifest".into()
            }
            _ => return None,
        })
    }

    /// The error that leaves core, with its hint.
    pub fn into_error(self, class: Class) -> Error {
        let hint = self.hint();
        let error = Error::from_cause(class, self);
        error.maybe_hint(hint)
    }
}

/// The code and the message of an error's body: the distribution-spec's envelope, other JSON, or plain text.
fn read_body(body: &[u8]) -> (Option<String>, String) {
    if let Ok(envelope) = serde_json::from_slice::<OciEnvelope>(body)
        && let Some(first) = envelope.errors.first()
    {
        let detail = match &first.detail {
            serde_json::Value::String(text) => format!(" ({text})"),
            _ => String::new(),
        };
        return (code_name(&first.code), printable(&format!("{}{detail}", first.message), 600));
    }
    if let Ok(serde_json::Value::Object(fields)) = serde_json::from_slice(body) {
        let field = |name: &str| fields.get(name).and_then(|value| value.as_str());
        let text = ["message", "details", "error_description", "error"].into_iter().find_map(field);
        return (field("code").map(|code| printable(code, 60)), printable(text.unwrap_or(""), 600));
    }
    let text = String::from_utf8_lossy(body);
    let text = text.trim();
    if text.starts_with('<') {
        return (None, "the answer is an HTML page".into());
    }
    (None, printable(text, 300))
}

fn code_name(code: &OciErrorCode) -> Option<String> {
    match code {
        OciErrorCode::Other(code) => Some(printable(code, 60)),
        known => serde_json::to_value(known).ok()?.as_str().map(str::to_owned),
    }
}

/// `text` on one line: control characters made visible, cut after `max` characters.
pub(crate) fn printable(text: &str, max: usize) -> String {
    let mut shown = String::new();
    for c in text.trim().chars().take(max) {
        match c {
            '\n' | '\r' | '\t' => shown.push(' '),
            c if c.is_control() || is_invisible(c) => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    shown
}

/// Characters that reorder or hide text.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// By status and code first; words only where codes are shared (their wording changes over the years).
fn classify(status: StatusCode, code: Option<&str>, message: &str) -> RefusalKind {
    let message = message.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    let code = code.unwrap_or_default();
    match status.as_u16() {
        429 => return RefusalKind::TooManyRequests,
        408 | 500 | 502 | 503 | 504 | 520..=530 => return RefusalKind::Unavailable,
        _ => {}
    }
    if matches!(status.as_u16(), 400 | 403 | 409 | 412) && says(&["immutab"])
        || code == "TAG_INVALID" && says(&["already exists"])
    {
        return RefusalKind::TagImmutable;
    }
    if says(&["quota", "limit exceeded", "limitexceeded", "has reached", "maximum allowed number"])
    {
        return RefusalKind::QuotaExceeded;
    }
    match (code, status.as_u16()) {
        ("TOOMANYREQUESTS", _) => RefusalKind::TooManyRequests,
        (_, 401 | 403) if says(&["expired", "token is invalid"]) => RefusalKind::Expired,
        ("UNAUTHORIZED", _) | (_, 401) => RefusalKind::Unauthorized,
        ("DENIED", _) | (_, 403) => RefusalKind::Denied,
        ("NAME_UNKNOWN" | "NAME_INVALID", _) => RefusalKind::NameUnknown,
        ("MANIFEST_UNKNOWN", _) => RefusalKind::ManifestUnknown,
        ("BLOB_UNKNOWN" | "MANIFEST_BLOB_UNKNOWN", _) => RefusalKind::BlobUnknown,
        // ECR's name for it.
        (_, 400 | 404) if says(&["layersnotfound", "layers not found"]) => RefusalKind::BlobUnknown,
        ("BLOB_UPLOAD_UNKNOWN" | "BLOB_UPLOAD_INVALID" | "DIGEST_INVALID" | "SIZE_INVALID", _) => {
            RefusalKind::UploadLost
        }
        ("UNSUPPORTED", _) | (_, 405 | 415) => RefusalKind::Unsupported,
        (_, 404) => RefusalKind::NotFound,
        _ => RefusalKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(status: u16, body: &str) -> Refusal {
        let status = StatusCode::from_u16(status).unwrap();
        Refusal::new(
            Method::PUT,
            "https://r/v2/x".into(),
            status,
            HeaderMap::new(),
            body.as_bytes(),
        )
    }

    fn envelope(code: &str, message: &str) -> String {
        serde_json::json!({"errors": [{"code": code, "message": message}]}).to_string()
    }

    #[test]
    fn kinds() {
        let old = "The image tag 'v1' already exists in the 'app' repository and cannot be overwritten because the repository is immutable.";
        let new = "The image tag 'v1' already exists in the 'app' repository and cannot be overwritten because the tag is immutable.";
        for (status, code, message, kind) in [
            (400, "TAG_INVALID", old, RefusalKind::TagImmutable),
            (400, "TAG_INVALID", new, RefusalKind::TagImmutable),
            (404, "NAME_UNKNOWN", "no", RefusalKind::NameUnknown),
            (403, "DENIED", "Your authorization token has expired.", RefusalKind::Expired),
            (403, "DENIED", "User x is not authorized to perform", RefusalKind::Denied),
            (
                403,
                "DENIED",
                "The repository has reached its image quota",
                RefusalKind::QuotaExceeded,
            ),
            (
                403,
                "DENIED",
                "already has the maximum allowed number of images",
                RefusalKind::QuotaExceeded,
            ),
            (429, "TOOMANYREQUESTS", "slow down", RefusalKind::TooManyRequests),
            (404, "BLOB_UPLOAD_UNKNOWN", "", RefusalKind::UploadLost),
            (405, "UNSUPPORTED", "", RefusalKind::Unsupported),
            (404, "MANIFEST_UNKNOWN", "", RefusalKind::ManifestUnknown),
            (503, "X", "", RefusalKind::Unavailable),
        ] {
            assert_eq!(refusal(status, &envelope(code, message)).kind, kind, "{message}");
        }
        assert_eq!(refusal(401, "Not Authorized\n").message, "Not Authorized");
        assert_eq!(refusal(403, "").kind, RefusalKind::Denied);
        assert_eq!(refusal(404, "<html>").message, "the answer is an HTML page");
    }

    #[test]
    fn messages_can_not_drive_the_terminal() {
        let shown = refusal(400, &envelope("X", "a\u{1b}[2Jb\nc\u{202e}d")).to_string();
        assert!(!shown.contains('\u{1b}') && !shown.contains('\n') && !shown.contains('\u{202e}'));
        assert!(refusal(400, &"x".repeat(9999)).message.len() <= 300);
    }
}
