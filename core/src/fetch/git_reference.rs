//! Which sources are Git repositories, and what of them is wanted: a pure parser, by the rules of BuildKit's frontend.
//!
//! `https://host/path.git`, `ssh://…`, `git://…` and `user@host:path`, each with `#ref:subdir` or a query after it.

use std::fmt;

use percent_encoding::percent_decode_str;

use super::checksum::{ChecksumError, CommitPrefix};
use crate::{
    secret::Secret,
    tree::{EntryPath, PathError},
};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GitReferenceError {
    #[error("query {0:?} of a Git URL has no value")]
    NoValue(String),
    #[error("query {0:?} of a Git URL has multiple values")]
    ManyValues(String),
    #[error("unexpected query {0:?} of a Git URL")]
    UnknownKey(String),
    #[error("invalid {key} value of a Git URL: {value:?}")]
    Value { key: &'static str, value: String },
    #[error("{what} of a Git URL conflicts: {first:?} and {second:?}")]
    Conflict { what: &'static str, first: String, second: String },
    #[error("the branch of a Git URL conflicts with its tag")]
    BranchAndTag,
    #[error("invalid git ref {0:?}")]
    Ref(String),
    #[error("the Git URL {0:?} names no repository that can be fetched")]
    Remote(String),
    #[error("the folder of a Git URL can't be used: {0}")]
    Subdirectory(#[from] PathError),
    #[error(transparent)]
    Checksum(#[from] ChecksumError),
    #[error("inconsistent keep-git-dir configuration: the URL and the flag differ")]
    KeepGitDir,
}

/// How a repository is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GitScheme {
    Http,
    Https,
    Ssh,
    Git,
}

/// Where a repository is. Shown without what may be a password.
#[derive(Clone, PartialEq, Eq)]
pub struct GitRemote {
    pub scheme: GitScheme,
    /// As git takes it; holds a user name only for ssh, and never a password.
    pub url: String,
    /// `host` or `host:port`.
    pub host: String,
    /// User name and password of an http(s) URL, decoded.
    pub login: Option<(String, Secret<String>)>,
}

impl fmt::Display for GitRemote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl fmt::Debug for GitRemote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GitRemote({})", self.url)
    }
}

/// The mtimes of a checkout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum GitMtime {
    /// The time of the checkout.
    #[default]
    Checkout,
    /// The time of the commit.
    Commit,
}

/// A Git repository as a source, with what of it is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitReference {
    pub remote: GitRemote,
    /// A branch, tag, full ref name or commit; `None` is the default branch.
    pub reference: Option<String>,
    /// Cleaned; the root is the whole tree.
    pub subdirectory: EntryPath,
    pub checksum: Option<CommitPrefix>,
    pub keep_git_dir: Option<bool>,
    pub submodules: Option<bool>,
    /// BuildKit honours it for build contexts only; its ADD takes the key and leaves it at that.
    pub mtime: GitMtime,
    /// The checksum is the commit to fetch: the remote is not asked where the ref points to.
    pub fetch_by_commit: bool,
    /// `github.com/…` without a scheme: a local path for ADD, a repository only as a build context.
    pub like_local_path: bool,
}

impl GitReference {
    /// Whether the connection is neither encrypted nor authenticated.
    pub fn unencrypted(&self) -> bool {
        matches!(self.remote.scheme, GitScheme::Http | GitScheme::Git)
    }

    /// Adds what ADD's flags say.
    ///
    /// # Errors
    /// A flag contradicts the URL, or the checksum is none of a commit.
    pub fn with_flags(
        mut self,
        keep_git_dir: Option<bool>,
        checksum: Option<&str>,
    ) -> Result<Self, GitReferenceError> {
        match (keep_git_dir, self.keep_git_dir) {
            (Some(flag), Some(url)) if flag != url => return Err(GitReferenceError::KeepGitDir),
            (flag, url) => self.keep_git_dir = url.or(flag),
        }
        if let Some(checksum) = checksum.filter(|checksum| !checksum.is_empty()) {
            self.set_checksum(checksum)?;
        }
        Ok(self)
    }

    fn set_checksum(&mut self, text: &str) -> Result<(), GitReferenceError> {
        let checksum = CommitPrefix::parse(text)?;
        match self.checksum.replace(checksum) {
            Some(first) if first.as_str() != text => {
                Err(conflict("the checksum", first.as_str(), text))
            }
            _ => Ok(()),
        }
    }
}

/// Reads `text` as a Git repository. `None`: it is something else (a path, or a URL of a file).
///
/// # Errors
/// It is a Git repository, but its query or its ref can't be used.
pub fn parse(text: &str) -> Result<Option<GitReference>, GitReferenceError> {
    if text.starts_with("./") || text.starts_with("../") {
        return Ok(None);
    }
    let like_local_path = text.starts_with("github.com/");
    let split = if like_local_path {
        split_url("https", text)
    } else if let Some((scheme, rest)) = url_scheme(text) {
        split_url(&scheme, rest)
    } else {
        split_scp(text)
    };
    let Some(split) = split else { return Ok(None) };
    let http = matches!(split.scheme, GitScheme::Http | GitScheme::Https);
    if http && !like_local_path && !split.path.ends_with(".git") {
        return Ok(None);
    }
    split.into_reference(like_local_path).map(Some)
}

/// The parts of a source, before it is known whether they make sense.
struct Split {
    scheme: GitScheme,
    url: String,
    host: String,
    login: Option<(String, Secret<String>)>,
    /// Decoded.
    path: String,
    query: Vec<(String, String)>,
    fragment: String,
}

/// `scheme` in lower case and what follows `://`, where `text` begins with letters and digits and `://`.
fn url_scheme(text: &str) -> Option<(String, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let plain = !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric());
    plain.then(|| (scheme.to_ascii_lowercase(), rest))
}

fn split_url(scheme: &str, rest: &str) -> Option<Split> {
    let kind = match scheme {
        "http" => GitScheme::Http,
        "https" => GitScheme::Https,
        "ssh" => GitScheme::Ssh,
        "git" => GitScheme::Git,
        _ => return None,
    };
    if rest.bytes().any(|byte| byte.is_ascii_control()) {
        return None;
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (userinfo, host) = match authority.rsplit_once('@') {
        Some((userinfo, host)) => (Some(userinfo), host),
        None => (None, authority),
    };
    if !is_host(host) {
        return None;
    }
    let (user, login) = userinfo.map_or(Some(("", None)), |text| split_userinfo(kind, text))?;
    let at = if user.is_empty() { "" } else { "@" };
    Some(Split {
        scheme: kind,
        url: format!("{scheme}://{user}{at}{host}{path}"),
        host: host.to_owned(),
        login,
        path: decode(path)?,
        query: pairs(query).into_iter().flatten().collect(),
        fragment: decode(fragment)?,
    })
}

type Login = Option<(String, Secret<String>)>;

/// What git gets of the part before the `@` (for ssh, the user), and what it gets as a credential.
fn split_userinfo(scheme: GitScheme, text: &str) -> Option<(&str, Login)> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&byte);
    if !text.bytes().all(allowed) {
        return None;
    }
    let (user, password) = text.split_once(':').map_or((text, None), |(u, p)| (u, Some(p)));
    Some(match scheme {
        GitScheme::Ssh => (user, None),
        GitScheme::Git => ("", None),
        // A user name alone is no credential: git would have to ask for the password.
        GitScheme::Http | GitScheme::Https => match password {
            Some(password) => ("", Some((decode(user)?, Secret::new(decode(password)?)))),
            None => ("", None),
        },
    })
}

/// A host name or address, with a port or without one.
fn is_host(text: &str) -> bool {
    let (name, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => (address, port),
        Some(_) => return false,
        None => match text.split_once(':') {
            Some((name, _)) => (name, &text[name.len()..]),
            None => (text, ""),
        },
    };
    let digits = port.strip_prefix(':').unwrap_or(port);
    let strange = |byte: u8| byte <= b' ' || b"\"<>\\^`{|}%/?#@[]".contains(&byte);
    !name.is_empty()
        && !name.bytes().any(strange)
        && (digits.len() < port.len() || port.is_empty())
        && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// `user@host:path`, with a query and a fragment or without.
fn split_scp(text: &str) -> Option<Split> {
    let (user, rest) = text.split_once('@')?;
    let (host, rest) = rest.split_once(':')?;
    let word = |text: &str, more: &[u8]| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || more.contains(&byte);
        !text.is_empty() && text.bytes().all(fits)
    };
    if !word(user, b"-_") || !word(host, b"-.") || rest.contains('\n') {
        return None;
    }
    let (path, query, fragment) = split_scp_path(rest);
    Some(Split {
        scheme: GitScheme::Ssh,
        url: format!("{user}@{host}:{path}"),
        host: host.to_owned(),
        login: None,
        path: path.to_owned(),
        query: pairs(query).into_iter().collect::<Option<Vec<_>>>()?,
        fragment: fragment.to_owned(),
    })
}

/// A query begins at the first `?`, a fragment at the first `#`, also where that comes before.
fn split_scp_path(text: &str) -> (&str, &str, &str) {
    match text.find(['?', '#']) {
        Some(at) if text[at..].starts_with('?') => {
            let (query, fragment) = text[at + 1..].split_once('#').unwrap_or((&text[at + 1..], ""));
            (&text[..at], query, fragment)
        }
        Some(at) => (&text[..at], "", &text[at + 1..]),
        None => (text, "", ""),
    }
}

/// The pairs of a query, `None` for each that can't be decoded.
fn pairs(query: &str) -> Vec<Option<(String, String)>> {
    let pair = |text: &str| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        let part = |text: &str| decode(&text.replace('+', " "));
        if text.contains(';') { None } else { Some((part(key)?, part(value)?)) }
    };
    query.split('&').filter(|text| !text.is_empty()).map(pair).collect()
}

/// Decodes `%XX`. `None`: a `%` stands alone, or the result is no UTF-8.
fn decode(text: &str) -> Option<String> {
    let hexadecimal =
        |part: &str| part.len() >= 2 && part.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    if !text.split('%').skip(1).all(hexadecimal) {
        return None;
    }
    percent_decode_str(text).decode_utf8().ok().map(|text| text.into_owned())
}

impl Split {
    fn into_reference(self, like_local_path: bool) -> Result<GitReference, GitReferenceError> {
        self.check_remote()?;
        let (reference, folder) = self.fragment.split_once(':').unwrap_or((&self.fragment, ""));
        let mut wanted = Wanted {
            reference: reference.to_owned(),
            subdirectory: cleaned(folder)?,
            ..Wanted::default()
        };
        let mut result = GitReference {
            remote: GitRemote {
                scheme: self.scheme,
                url: self.url,
                host: self.host,
                login: self.login,
            },
            reference: None,
            subdirectory: EntryPath::root(),
            checksum: None,
            keep_git_dir: None,
            submodules: None,
            mtime: GitMtime::default(),
            fetch_by_commit: false,
            like_local_path,
        };
        wanted.read(&self.query, &mut result)?;
        result.subdirectory = EntryPath::clean(wanted.subdirectory.as_bytes())?;
        result.reference = wanted.reference()?;
        Ok(result)
    }

    /// Git itself refuses these; so does this, before anything runs.
    fn check_remote(&self) -> Result<(), GitReferenceError> {
        let user = self.url.split_once("://").map_or(&*self.url, |(_, rest)| rest);
        let path = self.path.trim_start_matches('/');
        if user.starts_with('-') || self.host.starts_with('-') || self.path.starts_with('-') {
            return Err(GitReferenceError::Remote(self.url.clone()));
        }
        if path.is_empty() || self.url.chars().any(char::is_control) {
            return Err(GitReferenceError::Remote(self.url.clone()));
        }
        Ok(())
    }
}

/// What a fragment and a query say together.
#[derive(Default)]
struct Wanted {
    reference: String,
    subdirectory: String,
    tag: Option<String>,
    branch: Option<String>,
}

impl Wanted {
    fn read(
        &mut self,
        query: &[(String, String)],
        result: &mut GitReference,
    ) -> Result<(), GitReferenceError> {
        for (at, (key, value)) in query.iter().enumerate() {
            if query[..at].iter().any(|(earlier, _)| earlier == key) {
                return Err(GitReferenceError::ManyValues(key.clone()));
            }
            let may_be_empty = matches!(&**key, "submodules" | "keep-git-dir" | "fetch-by-commit");
            if value.is_empty() && !may_be_empty {
                return Err(GitReferenceError::NoValue(key.clone()));
            }
            self.read_pair(key, value, result)?;
        }
        Ok(())
    }

    fn read_pair(
        &mut self,
        key: &str,
        value: &str,
        result: &mut GitReference,
    ) -> Result<(), GitReferenceError> {
        match key {
            "ref" => agree("the ref", &mut self.reference, value)?,
            "tag" => self.tag = Some(with_prefix("refs/tags/", value)),
            "branch" => self.branch = Some(with_prefix("refs/heads/", value)),
            "subdir" => agree("the folder", &mut self.subdirectory, value)?,
            "checksum" | "commit" => result.set_checksum(value)?,
            "keep-git-dir" => result.keep_git_dir = Some(boolean("keep-git-dir", value)?),
            "submodules" => result.submodules = Some(boolean("submodules", value)?),
            "fetch-by-commit" => result.fetch_by_commit = boolean("fetch-by-commit", value)?,
            "mtime" => result.mtime = mtime(value)?,
            _ => return Err(GitReferenceError::UnknownKey(key.to_owned())),
        }
        Ok(())
    }

    /// The one ref that all of it names.
    fn reference(mut self) -> Result<Option<String>, GitReferenceError> {
        if self.tag.is_some() && self.branch.is_some() {
            return Err(GitReferenceError::BranchAndTag);
        }
        if let Some(name) = self.tag.or(self.branch) {
            agree("the ref", &mut self.reference, &name)?;
        }
        let strange = |c: char| c.is_control() || c.is_whitespace();
        if self.reference.starts_with('-') || self.reference.contains(strange) {
            return Err(GitReferenceError::Ref(self.reference));
        }
        Ok(Some(self.reference).filter(|reference| !reference.is_empty()))
    }
}

/// A fragment's folder as Go's `path.Join` leaves it, without the leading slash.
fn cleaned(folder: &str) -> Result<String, PathError> {
    let path = EntryPath::clean(folder.as_bytes())?;
    Ok(String::from_utf8_lossy(path.as_bytes()).into_owned())
}

fn agree(what: &'static str, first: &mut String, second: &str) -> Result<(), GitReferenceError> {
    if !first.is_empty() && first != second {
        return Err(conflict(what, first, second));
    }
    second.clone_into(first);
    Ok(())
}

fn conflict(what: &'static str, first: &str, second: &str) -> GitReferenceError {
    GitReferenceError::Conflict { what, first: first.to_owned(), second: second.to_owned() }
}

fn with_prefix(prefix: &str, name: &str) -> String {
    if name.starts_with(prefix) { name.to_owned() } else { format!("{prefix}{name}") }
}

/// As Go's `strconv.ParseBool`; no value is `true`.
fn boolean(key: &'static str, value: &str) -> Result<bool, GitReferenceError> {
    match value {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(GitReferenceError::Value { key, value: value.to_owned() }),
    }
}

fn mtime(value: &str) -> Result<GitMtime, GitReferenceError> {
    match value {
        "checkout" => Ok(GitMtime::Checkout),
        "commit" => Ok(GitMtime::Commit),
        _ => Err(GitReferenceError::Value { key: "mtime", value: value.to_owned() }),
    }
}
