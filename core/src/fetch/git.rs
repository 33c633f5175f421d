//! Trees by Git: which commit a reference means, and a checkout of it, with the `git` program.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use url::Url;

use super::{
    SecretLookup,
    checksum::is_object_name,
    error::FetchError,
    git_checkout::Task,
    git_command::Runner,
    git_reference::{GitMtime, GitReference, GitRemote, GitScheme},
    git_tree::{Shape, TREE},
    http::{HttpClient, refusal},
    origin::{Origin, basic, header_value, trimmed},
};
use crate::{
    registry::shown, request::SshSource, secret::Secret, sys::private_root, tree::Timestamp,
};

/// What git needs of its surroundings.
#[derive(Clone, Debug, Default)]
pub struct GitOptions {
    /// PATH: where git, and what it runs, is looked for.
    pub path: OsString,
    /// PEM file of trusted certificates for git, where they are not the system's.
    pub ca_file: Option<PathBuf>,
    /// `None`: nothing is reached by ssh.
    pub ssh: Option<SshAccess>,
}

/// Keys for ssh.
#[derive(Clone, Debug, Default)]
pub struct SshAccess {
    /// SSH_AUTH_SOCK of an agent.
    pub agent_socket: Option<PathBuf>,
    pub identity_files: Vec<PathBuf>,
    /// `None`: the hosts' keys are taken as they come (as BuildKit does).
    pub known_hosts: Option<PathBuf>,
}

impl From<&SshSource> for SshAccess {
    fn from(source: &SshSource) -> Self {
        match source {
            SshSource::Agent(socket) => {
                SshAccess { agent_socket: Some(socket.clone()), ..SshAccess::default() }
            }
            SshSource::Keys(files) => {
                SshAccess { identity_files: files.clone(), ..SshAccess::default() }
            }
        }
    }
}

/// What a reference means now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedCommit {
    /// The full name of the ref; `None` where the commit itself was named.
    pub name: Option<String>,
    /// The object that the ref points to: a commit, or an annotated tag.
    pub object: String,
    /// The commit of an annotated tag.
    pub peeled: Option<String>,
}

impl ResolvedCommit {
    /// The commit, as far as is known before the checkout: together with the folder, the submodules' and the `.git`'s
    /// treatment it says what the tree is.
    pub fn commit(&self) -> &str {
        self.peeled.as_deref().unwrap_or(&self.object)
    }
}

/// A plain tree of 0644 and 0755, everything 0:0 by rule (whoever owns it on disk), symbolic links kept.
#[derive(Clone, Debug)]
pub struct Checkout {
    pub directory: PathBuf,
    pub commit: String,
    /// When it was committed.
    pub commit_time: Timestamp,
}

/// The `git` program and a client for the first contact. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Git {
    options: GitOptions,
    http: HttpClient,
}

/// A repository that was found, and what to send it.
pub(super) struct Connection {
    pub(super) runner: Runner,
    /// The URL for git, after redirects.
    pub(super) remote: String,
}

/// A credential and the part of the remotes that it is for.
struct Credential {
    header: Secret<Vec<u8>>,
    scope: String,
}

impl Git {
    /// The proxies, timeouts and trusted redirect hosts are those of `http`.
    pub fn new(options: GitOptions, http: HttpClient) -> Self {
        Git { options, http }
    }

    /// Finds out which commit `reference` means, without fetching it. A whole commit is not looked up.
    ///
    /// Secrets: `GIT_AUTH_HEADER` and `GIT_AUTH_TOKEN`, each also with `.<host>`.
    ///
    /// # Errors
    /// The repository can't be reached, has no such ref, or the ref points to something else than the checksum.
    pub async fn resolve(
        &self,
        reference: &GitReference,
        secrets: &SecretLookup<'_>,
    ) -> Result<ResolvedCommit, FetchError> {
        if let Some(resolved) = resolve_offline(reference)? {
            return check(reference, resolved);
        }
        let connection = self.connect(reference, secrets).await?;
        let name = reference.reference.as_deref();
        let peeled = name.map(|name| format!("{name}^{{}}"));
        let mut arguments = vec!["ls-remote", "--quiet"];
        match (name, &peeled) {
            (Some(name), Some(peeled)) => {
                arguments.extend(["--", &connection.remote, name, peeled])
            }
            _ => arguments.extend(["--symref", "--", &connection.remote, "HEAD"]),
        }
        let refs = connection.runner.run_outside("reading the refs", &arguments).await?;
        let found = match name {
            Some(name) => find_ref(&refs, name),
            None => find_default(&refs),
        };
        let resolved = found.ok_or_else(|| FetchError::NoSuchReference {
            repository: reference.remote.url.clone(),
            reference: name.unwrap_or("HEAD").to_owned(),
        })?;
        check(reference, resolved)
    }

    /// Fetches one commit, its submodules unless they are unwanted, and makes a plain tree of it in `work`, an empty
    /// directory. Nothing of the repository is run: no hook, no filter, no LFS. What the future started ends when it
    /// is dropped.
    ///
    /// # Errors
    /// As [`Git::resolve`]; the commit or the folder does not exist, or git fails.
    pub async fn checkout(
        &self,
        reference: &GitReference,
        resolved: &ResolvedCommit,
        secrets: &SecretLookup<'_>,
        work: &Path,
    ) -> Result<Checkout, FetchError> {
        let connection = self.connect(reference, secrets).await?;
        // With a folder there is no place for it.
        let keep_git_dir = reference.keep_git_dir == Some(true) && reference.subdirectory.is_root();
        let task = Task { reference, resolved, connection, work, tree: work.join(TREE) };
        task.initialise().await?;
        task.fetch().await?;
        let commit = task.check_out().await?;
        if reference.submodules != Some(false) {
            task.update_submodules().await?;
        }
        let commit_time = task.commit_time(&commit).await?;
        if keep_git_dir {
            task.tidy_git_dir().await?;
        }
        let shape = Shape {
            keep_git_dir,
            mtime: (reference.mtime == GitMtime::Commit).then_some(commit_time),
            subdirectory: reference.subdirectory.clone(),
        };
        let directory = task.shape(shape).await?;
        Ok(Checkout { directory, commit, commit_time })
    }

    /// Prepares git for the repository. For http(s) the first request is our own: redirects follow our rules, and the
    /// credential does not follow them to another origin.
    async fn connect(
        &self,
        reference: &GitReference,
        secrets: &SecretLookup<'_>,
    ) -> Result<Connection, FetchError> {
        let remote = &reference.remote;
        if remote.scheme == GitScheme::Ssh && self.options.ssh.is_none() {
            return Err(FetchError::NoSsh { repository: remote.url.clone() });
        }
        let mut runner = {
            // Not while an image is at `/`: its git would be found.
            let _between_swaps = private_root::programs().await;
            Runner::new(&self.options, &remote.url)?
        };
        runner.set_network(self.http.proxies(), self.http.limits());
        if !matches!(remote.scheme, GitScheme::Http | GitScheme::Https) {
            return Ok(Connection { runner, remote: remote.url.clone() });
        }
        let credential = credential(remote, secrets);
        let (url, same_origin) = self.locate(remote, credential.as_ref()).await?;
        if let Some(credential) = credential.filter(|_| same_origin) {
            let header = [b"Authorization: ", credential.header.expose().as_slice()].concat();
            // A repository that moved on its server takes the credential along.
            let moved = credential.scope == remote.url;
            let scope = if moved { &url } else { &credential.scope };
            let name = |setting: &str| format!("http.{scope}.{setting}");
            runner.set_secret(&name("extraHeader"), &Secret::new(header));
            runner.set(&name("followRedirects"), "false");
        }
        runner.set(&format!("http.{url}.followRedirects"), "false");
        Ok(Connection { runner, remote: url })
    }

    /// Where a repository answers, and whether that is still the origin that was named.
    async fn locate(
        &self,
        remote: &GitRemote,
        credential: Option<&Credential>,
    ) -> Result<(String, bool), FetchError> {
        let wrong = |error: url::ParseError| FetchError::Url {
            url: remote.url.clone(),
            reason: error.to_string(),
        };
        let url = format!("{}/info/refs?service=git-upload-pack", remote.url);
        let header = match credential {
            Some(credential) => Some(
                header_value(&credential.header)
                    .ok_or_else(|| FetchError::Credential("for Git".into()))?,
            ),
            None => None,
        };
        let mut origin = Origin::new(Url::parse(&url).map_err(wrong)?, header);
        let found = self.first_contact(&mut origin).await?;
        let same_origin = origin.owns(&found);
        let Some(path) = found.path().strip_suffix("/info/refs") else {
            return Err(FetchError::Redirect {
                url: remote.url.clone(),
                target: shown(&found),
                reason: "that is not the same repository elsewhere",
            });
        };
        let host = &found[url::Position::BeforeHost..url::Position::AfterPort];
        Ok((format!("{}://{host}{path}", found.scheme()), same_origin))
    }

    async fn first_contact(&self, origin: &mut Origin) -> Result<Url, FetchError> {
        let mut headers = HeaderMap::new();
        headers
            .insert(HeaderName::from_static("git-protocol"), HeaderValue::from_static("version=2"));
        // Some servers look for a git at the other end.
        let agent = format!("git/2.40 ({})", self.http.user_agent());
        if let Ok(agent) = HeaderValue::from_str(&agent) {
            headers.insert(USER_AGENT, agent);
        }
        let mut failed = 0;
        loop {
            let error = match self.http.follow(origin, reqwest::Method::GET, &headers).await {
                Ok(answer) if answer.response.status().is_success() => return Ok(answer.url),
                Ok(answer) => refusal(&answer),
                Err(error) => error,
            };
            failed += 1;
            self.http.pause(failed, error).await?;
        }
    }
}

/// A secret's credential, else that of the URL.
fn credential(remote: &GitRemote, secrets: &SecretLookup<'_>) -> Option<Credential> {
    let header = |value: &Secret<Vec<u8>>| Secret::new(trimmed(value).to_vec());
    let token = |value: &Secret<Vec<u8>>| basic(b"x-access-token", trimmed(value));
    let named = |id: &str| secrets(&format!("{id}.{}", remote.host));
    let secret = named("GIT_AUTH_HEADER")
        .map(|value| header(&value))
        .or_else(|| named("GIT_AUTH_TOKEN").map(|value| token(&value)))
        .or_else(|| secrets("GIT_AUTH_HEADER").map(|value| header(&value)))
        .or_else(|| secrets("GIT_AUTH_TOKEN").map(|value| token(&value)));
    if let Some(header) = secret {
        return Some(Credential { header, scope: token_scope(&remote.url) });
    }
    let (user, password) = remote.login.as_ref()?;
    let header = basic(user.as_bytes(), password.expose().as_bytes());
    // Submodules with a relative URL are on the same host.
    let scheme = remote.url.split("://").next().unwrap_or_default();
    Some(Credential { header, scope: format!("{scheme}://{}/", remote.host) })
}

/// A token is for its repository; on github.com for all of them, as with actions/checkout and BuildKit.
fn token_scope(url: &str) -> String {
    let github = ["https://github.com/", "https://www.github.com/"];
    let scope = github.into_iter().find(|prefix| url.starts_with(prefix));
    scope.unwrap_or(url).to_owned()
}

/// What needs no look-up.
fn resolve_offline(reference: &GitReference) -> Result<Option<ResolvedCommit>, FetchError> {
    let name = reference.reference.as_deref();
    let commit = |object: &str, name: Option<String>| {
        Some(ResolvedCommit { name, object: object.to_owned(), peeled: None })
    };
    if let Some(object) = name.filter(|name| is_object_name(name)) {
        return Ok(commit(object, None));
    }
    if !reference.fetch_by_commit {
        return Ok(None);
    }
    let checksum = reference.checksum.as_ref().map(|checksum| checksum.as_str());
    let Some(object) = checksum.filter(|checksum| is_object_name(checksum)) else {
        return Err(FetchError::NotByCommit { repository: reference.remote.url.clone() });
    };
    let full = |name: &str| match name.starts_with("refs/") {
        true => name.to_owned(),
        false => format!("refs/heads/{name}"),
    };
    Ok(commit(object, name.map(full)))
}

pub(super) fn check(
    reference: &GitReference,
    resolved: ResolvedCommit,
) -> Result<ResolvedCommit, FetchError> {
    let Some(expected) = &reference.checksum else { return Ok(resolved) };
    let found = [Some(&resolved.object), resolved.peeled.as_ref()];
    if found.into_iter().flatten().any(|object| expected.fits(object)) {
        return Ok(resolved);
    }
    Err(FetchError::Commit {
        repository: reference.remote.url.clone(),
        expected: expected.to_string(),
        actual: resolved.commit().to_owned(),
    })
}

/// The lines of ls-remote that name an object: object and ref.
fn lines(refs: &str) -> impl Iterator<Item = (&str, &str)> {
    refs.lines()
        .filter_map(|line| line.split_once('\t'))
        .filter(|(object, _)| is_object_name(object))
}

/// Looks a name up as BuildKit does: a full name, then a branch, then a tag.
fn find_ref(refs: &str, name: &str) -> Option<ResolvedCommit> {
    let full = |prefix: &str| format!("{prefix}{}", name.strip_prefix(prefix).unwrap_or(name));
    let get =
        |wanted: &str| lines(refs).find(|(_, name)| *name == wanted).map(|(object, _)| object);
    for wanted in [full("refs/"), full("refs/heads/"), full("refs/tags/")] {
        let Some(object) = get(&wanted) else { continue };
        let peeled = get(&format!("{wanted}^{{}}")).map(str::to_owned);
        return Some(ResolvedCommit { name: Some(wanted), object: object.to_owned(), peeled });
    }
    None
}

/// What HEAD of the remote points to.
fn find_default(refs: &str) -> Option<ResolvedCommit> {
    let (object, _) = lines(refs).find(|(_, name)| *name == "HEAD")?;
    let symbolic = refs.lines().filter_map(|line| line.strip_prefix("ref: "));
    let name = symbolic.filter_map(|line| line.strip_suffix("\tHEAD")).next();
    let name = name.filter(|name| name.starts_with("refs/heads/")).map(str::to_owned);
    Some(ResolvedCommit { name, object: object.to_owned(), peeled: None })
}
