//! Sources from outside: files by URL and trees by Git, for ADD and for build contexts.
//!
//! What a Dockerfile names is the user's choice; what these servers answer is not trusted: not where they redirect to,
//! not how much they send, not what a repository holds. A credential goes to the origin that it was given for.

pub mod checksum;
mod error;
pub mod git;
mod git_checkout;
mod git_command;
pub mod git_reference;
mod git_tree;
pub mod http;
mod name;
mod origin;

pub use error::FetchError;

pub use git::{Checkout, Git, GitOptions, ResolvedCommit, SshAccess};
pub use git_reference::{GitMtime, GitReference, GitReferenceError, GitRemote, GitScheme};
pub use http::{Download, HttpClient, HttpRequest};

use crate::secret::Secret;

#[cfg(test)]
mod tests;

/// Looks a build's secret up by its id.
pub type SecretLookup<'a> = dyn Fn(&str) -> Option<Secret<Vec<u8>>> + Send + Sync + 'a;

/// A lookup that knows no secret.
pub fn no_secrets(_: &str) -> Option<Secret<Vec<u8>>> {
    None
}

/// What a source of ADD is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddSource {
    /// A path in the build context.
    Local,
    /// A file at an http(s) URL.
    Url,
    Git(Box<GitReference>),
}

impl AddSource {
    /// Sorts a source, its variables expanded, as BuildKit's frontend does. Does no I/O.
    ///
    /// # Errors
    /// It is a Git repository that can't be used.
    pub fn of(text: &str) -> Result<Self, GitReferenceError> {
        match git_reference::parse(text)? {
            Some(reference) if !reference.like_local_path => {
                Ok(AddSource::Git(Box::new(reference)))
            }
            _ if text.starts_with("http://") || text.starts_with("https://") => Ok(AddSource::Url),
            _ => Ok(AddSource::Local),
        }
    }
}

/// `source` for a history, a log or an error: a URL loses its password, and for http(s) its user name too.
pub fn without_password(source: &str) -> String {
    let Some((scheme, rest)) = source.split_once("://") else { return source.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let Some((userinfo, _)) = rest[..end].rsplit_once('@') else { return source.to_owned() };
    let after = &rest[userinfo.len() + 1..];
    let user = userinfo.split(':').next().unwrap_or_default();
    match scheme.eq_ignore_ascii_case("ssh") && !user.is_empty() {
        true => format!("{scheme}://{user}@{after}"),
        false => format!("{scheme}://{after}"),
    }
}
