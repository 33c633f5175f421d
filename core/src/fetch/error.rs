//! What can go wrong with a source from outside.

use std::{io, path::PathBuf, time::Duration};

use super::{checksum::ChecksumError, git_reference::GitReferenceError};
use crate::{
    Class, Error,
    digest::Digest,
    registry::{ConnectFailure, RegistryError},
};

/// URLs in these are without user name, password and query.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("{url:?} is not a URL that can be fetched: {reason}")]
    Url { url: String, reason: String },
    #[error("the last part of {url} can't be the name of a file")]
    Name { url: String },
    #[error(transparent)]
    Checksum(#[from] ChecksumError),
    #[error("digest mismatch of {url}: expected {expected}, got {actual}")]
    Mismatch { url: String, expected: Digest, actual: Digest },
    #[error("{url}: the server answered with status {status}")]
    Status { url: String, host: String, status: u16, retry_after: Option<Duration> },
    #[error("cannot connect to {url}: {reason}")]
    Connect { url: String, reason: String, failure: ConnectFailure },
    #[error("the connection to {url} broke: {reason}")]
    Broken { url: String, reason: String },
    #[error("{url}: {what} took longer than {} seconds", limit.as_secs())]
    TimedOut { url: String, what: &'static str, limit: Duration },
    #[error("{url} redirects to {target}: {reason}")]
    Redirect { url: String, target: String, reason: &'static str },
    #[error("{url}: more than {limit} redirects")]
    Redirects { url: String, limit: u32 },
    #[error("{url}: {reason}")]
    Answer { url: String, reason: String },
    #[error("{url} is larger than {limit} bytes")]
    TooLarge { url: String, limit: u64 },
    #[error("the secret {0} can't be sent as a header")]
    Credential(String),
    #[error("the client can't be set up: {0}")]
    Options(String),
    #[error("what {url} sends can't be kept")]
    Spool { url: String, source: io::Error },

    #[error(transparent)]
    Reference(#[from] GitReferenceError),
    #[error("git is needed for {repository}, and there is none on PATH")]
    GitMissing { repository: String },
    #[error("git can't be run for {repository}")]
    GitStart { repository: String, source: io::Error },
    #[error("repository {repository} does not contain ref {reference}")]
    NoSuchReference { repository: String, reference: String },
    #[error("repository {repository} does not contain commit {commit}")]
    NoSuchCommit { repository: String, commit: String },
    #[error("{repository}: expected checksum to match {expected}, got {actual}")]
    Commit { repository: String, expected: String, actual: String },
    #[error(
        "{repository}: fetch-by-commit needs the whole name of a commit as the ref or the checksum"
    )]
    NotByCommit { repository: String },
    #[error("invalid subdir {subdirectory} of {repository}: {reason}")]
    Subdirectory { repository: String, subdirectory: String, reason: &'static str },
    #[error("{repository} is reached by ssh, and this build has no ssh keys")]
    NoSsh { repository: String },
    #[error("{repository}: {action} failed: {message}")]
    Git { repository: String, action: &'static str, message: String },
    #[error("the checkout of {repository} in {} failed", path.display())]
    Work { repository: String, path: PathBuf, source: io::Error },
}

impl FetchError {
    /// Of an exchange with `url`, to which `from` had sent us.
    pub(super) fn of_exchange(error: RegistryError, from: &str) -> Self {
        match error {
            RegistryError::Connect { url, reason, failure } => {
                FetchError::Connect { url, reason, failure }
            }
            RegistryError::Broken { url, reason } => FetchError::Broken { url, reason },
            RegistryError::TimedOut { url, what, limit } => {
                FetchError::TimedOut { url, what, limit }
            }
            RegistryError::Redirect { target, reason, .. } => {
                FetchError::Redirect { url: from.to_owned(), target, reason }
            }
            RegistryError::Options(reason) => FetchError::Options(reason),
            other => FetchError::Answer { url: from.to_owned(), reason: other.to_string() },
        }
    }

    /// Whether asking again may help.
    pub(super) fn retryable(&self) -> bool {
        match self {
            FetchError::Connect { failure, .. } => {
                use ConnectFailure::{Certificate, ClientCertificate, NoSuchHost, NotTls};
                !matches!(failure, Certificate | ClientCertificate | NotTls | NoSuchHost)
            }
            FetchError::Broken { .. } | FetchError::TimedOut { .. } => true,
            FetchError::Status { status, .. } => {
                matches!(status, 408 | 429 | 500 | 502..=504 | 520..=530)
            }
            _ => false,
        }
    }

    pub fn class(&self) -> Class {
        match self {
            FetchError::Url { .. }
            | FetchError::Name { .. }
            | FetchError::Checksum(_)
            | FetchError::Reference(_)
            | FetchError::NotByCommit { .. } => Class::Input,
            FetchError::Credential(_) | FetchError::Options(_) | FetchError::NoSsh { .. } => {
                Class::Usage
            }
            FetchError::Spool { .. }
            | FetchError::GitMissing { .. }
            | FetchError::GitStart { .. }
            | FetchError::Work { .. } => Class::Host,
            _ => Class::Source,
        }
    }

    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            FetchError::Status { status: 401 | 403, host, .. } => format!(
                "give a credential as a secret: HTTP_AUTH_TOKEN_{host} (a bearer token) or HTTP_AUTH_HEADER_{host} for a URL, GIT_AUTH_TOKEN for a Git repository"
            ),
            FetchError::Status { status: 404, .. } => {
                "check the URL's spelling; some servers answer so without a credential".into()
            }
            FetchError::Connect { failure: ConnectFailure::Certificate, .. } => {
                "the server's certificate is not trusted: give its CA (SSL_CERT_FILE)".into()
            }
            FetchError::Redirect { .. } => {
                "if that host is yours, name it in the Dockerfile, or among the trusted redirect hosts".into()
            }
            FetchError::Mismatch { .. } => {
                "the file has changed, or the checksum is that of another one".into()
            }
            FetchError::GitMissing { .. } => {
                "install git, or fetch the repository before the build and COPY it".into()
            }
            FetchError::NoSsh { .. } => "give this build an ssh agent or a key: --ssh default".into(),
            FetchError::NoSuchReference { .. } => {
                "name a branch, a tag, a full ref name or a whole commit".into()
            }
            _ => return None,
        })
    }

    /// The error that leaves core, with its class and hint.
    pub fn into_error(self) -> Error {
        let (class, hint) = (self.class(), self.hint());
        let error = Error::from_cause(class, self);
        error.maybe_hint(hint)
    }
}
