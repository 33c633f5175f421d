//! Docker's config.json (and containers' auth.json): `auths`, `credHelpers`, `credsStore`.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Deserializer};

pub use super::helper::Helpers;
use super::keychain::{BoxFuture, Credential, CredentialKind, Keychain, KeychainError};
use crate::{
    registry::reference::{DOCKER_HUB, canonical},
    secret::Secret,
};

/// Docker Hub's name towards helpers.
const HUB_SERVER: &str = "https://index.docker.io/v1/";

#[derive(Debug, thiserror::Error)]
#[error("{file} is not a Docker configuration: {reason} (line {line}, column {column})")]
pub struct DockerConfigError {
    pub file: String,
    pub line: usize,
    pub column: usize,
    reason: &'static str,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct File {
    #[serde(deserialize_with = "null_is_default")]
    auths: BTreeMap<String, Auth>,
    #[serde(deserialize_with = "null_is_default")]
    cred_helpers: BTreeMap<String, String>,
    #[serde(deserialize_with = "null_is_default")]
    creds_store: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    #[serde(deserialize_with = "null_is_default")]
    auth: String,
    #[serde(deserialize_with = "null_is_default")]
    username: String,
    #[serde(deserialize_with = "null_is_default")]
    password: String,
    #[serde(deserialize_with = "null_is_default")]
    identitytoken: String,
    #[serde(deserialize_with = "null_is_default")]
    registrytoken: String,
}

fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// The credentials of one configuration file. Inside it: the host's helper, then the store, then `auths`.
pub struct DockerConfigKeychain {
    /// For messages.
    name: String,
    /// By canonical `host[/path]`.
    auths: BTreeMap<String, Auth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
    /// `None`: configured helpers are an error, because nothing may be run.
    helpers: Option<Helpers>,
}

impl DockerConfigKeychain {
    /// Reads a configuration from `json`; `name` is what messages call it. The helpers `ecr-login` and so on are run
    /// with `helpers`; without it, a registry that is configured to need one gives an error.
    ///
    /// # Errors
    /// What is not JSON of the right shape, with its place, never its content.
    pub fn new(
        name: &str,
        json: &[u8],
        helpers: Option<Helpers>,
    ) -> Result<Self, DockerConfigError> {
        let text = json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json);
        // serde takes a list for a struct.
        if text.trim_ascii_start().first().is_some_and(|first| *first != b'{') {
            let (file, reason) = (name.to_owned(), "it is not a JSON object");
            return Err(DockerConfigError { file, line: 1, column: 1, reason });
        }
        let file: File = serde_json::from_slice(text).map_err(|error| DockerConfigError {
            file: name.to_owned(),
            line: error.line(),
            column: error.column(),
            reason: match error.classify() {
                serde_json::error::Category::Data => "a value has the wrong type",
                _ => "it is not JSON",
            },
        })?;
        let by_key = |(key, auth): (String, Auth)| (canonical_key(&key), auth);
        let helper = |(key, helper): (String, String)| (canonical_key(&key), helper);
        Ok(DockerConfigKeychain {
            name: name.to_owned(),
            auths: file.auths.into_iter().map(by_key).collect(),
            cred_helpers: file.cred_helpers.into_iter().map(helper).collect(),
            creds_store: Some(file.creds_store).filter(|store| !store.is_empty()),
            helpers,
        })
    }

    /// The registries (canonical) for which the file names `helper`, and whether it is the store of all credentials.
    pub fn uses_of_helper(&self, helper: &str) -> (Vec<String>, bool) {
        let named = self.cred_helpers.iter().filter(|(_, name)| *name == helper);
        let everywhere = self.creds_store.as_deref() == Some(helper);
        (named.map(|(registry, _)| registry.clone()).collect(), everywhere)
    }

    /// Takes `helper` out of the file, for callers that answer for it themselves.
    pub fn without_helper(mut self, helper: &str) -> Self {
        self.cred_helpers.retain(|_, name| name != helper);
        self.creds_store = self.creds_store.filter(|store| store != helper);
        self
    }

    async fn find(&self, host: &str, repository: &str) -> Result<Option<Credential>, String> {
        let paths = paths(host, repository);
        let own = paths.iter().find_map(|path| self.cred_helpers.get_key_value(path));
        let own = own.map(|(server, helper)| (server.as_str(), helper));
        let store = self.creds_store.as_ref().map(|store| (host, store));
        for (server, helper) in own.into_iter().chain(store) {
            if let Some(kind) = self.ask_helper(helper, server).await? {
                let source = format!("docker-credential-{helper}{}", self.named_in());
                return Ok(Some(Credential { source, kind }));
            }
        }
        for (path, auth) in paths.iter().filter_map(|path| self.auths.get_key_value(path)) {
            let kind = auth.kind().map_err(|reason| format!("the entry for {path}: {reason}"))?;
            // An empty entry says that the store was to be asked.
            if let Some(kind) = kind {
                return Ok(Some(Credential { source: self.name.clone(), kind }));
            }
        }
        Ok(None)
    }

    /// The end of a source that is a helper of this file.
    fn named_in(&self) -> String {
        format!(" (named in {})", self.name)
    }

    async fn ask_helper(&self, helper: &str, host: &str) -> Result<Option<CredentialKind>, String> {
        let Some(helpers) = &self.helpers else {
            return Err(format!("it names the helper {helper:?}, but helpers are switched off"));
        };
        let server = if host == DOCKER_HUB { HUB_SERVER } else { host };
        helpers.get(helper, server).await
    }
}

/// The keys of a repository, longest first: `host/a/b`, `host/a`, `host`.
fn paths(host: &str, repository: &str) -> Vec<String> {
    let mut paths = vec![format!("{host}/{repository}")];
    while let Some((shorter, _)) = paths.last().and_then(|path| path.rsplit_once('/')) {
        paths.push(shorter.to_owned());
    }
    paths
}

impl Auth {
    fn kind(&self) -> Result<Option<CredentialKind>, &'static str> {
        let secret = |text: &str| Secret::new(text.to_owned());
        if !self.registrytoken.is_empty() {
            return Ok(Some(CredentialKind::RegistryToken(secret(&self.registrytoken))));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Some(CredentialKind::IdentityToken(secret(&self.identitytoken))));
        }
        if self.auth.is_empty() {
            let (username, password) = (self.username.clone(), secret(&self.password));
            let whole = !username.is_empty() && !self.password.is_empty();
            return Ok(whole.then_some(CredentialKind::Password { username, password }));
        }
        let decoded = BASE64.decode(self.auth.trim()).map_err(|_| "its auth is not base64")?;
        let decoded = String::from_utf8(decoded).map_err(|_| "its auth is not UTF-8")?;
        let (username, password) =
            decoded.split_once(':').ok_or("its auth is not user:password in base64")?;
        let password = secret(password.trim_end_matches('\0'));
        Ok(Some(CredentialKind::Password { username: username.to_owned(), password }))
    }
}

/// `https://Host/v1/` -> `host`; `host/ns/repo` keeps its path; Docker Hub's names are one.
fn canonical_key(key: &str) -> String {
    let key = key.trim();
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let host = canonical(host);
    match path {
        "" | "v1" | "v2" => host,
        path => format!("{host}/{path}"),
    }
}

impl Keychain for DockerConfigKeychain {
    fn credential<'a>(
        &'a self,
        registry: &'a str,
        repository: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credential>, KeychainError>> {
        Box::pin(async move {
            let host = canonical(registry);
            self.find(&host, repository).await.map_err(|reason| KeychainError {
                registry: host,
                keychain: self.name.clone(),
                reason,
                hint: None,
            })
        })
    }

    /// A helper may know a new one; what is written in the file stays as it is.
    fn refused<'a>(&'a self, _: &'a str, credential: &'a Credential) -> BoxFuture<'a, bool> {
        Box::pin(async { credential.source.ends_with(&self.named_in()) })
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    async fn lookup(json: &str, registry: &str, repository: &str) -> Result<String, String> {
        let keychain = DockerConfigKeychain::new("config.json", json.as_bytes(), None).unwrap();
        match keychain.credential(registry, repository).await {
            Ok(None) => Ok("none".into()),
            Ok(Some(credential)) => Ok(match credential.kind {
                CredentialKind::Password { username, password } => {
                    format!("{username}:{}", password.expose())
                }
                CredentialKind::IdentityToken(token) => format!("identity {}", token.expose()),
                CredentialKind::RegistryToken(token) => format!("registry {}", token.expose()),
            }),
            Err(error) => Err(error.to_string()),
        }
    }

    fn auth(pair: &str) -> String {
        format!(r#"{{"auth":"{}"}}"#, BASE64.encode(pair))
    }

    #[tokio::test]
    async fn keys_are_canonical() {
        for (key, registry) in [
            ("reg.example", "reg.example"),
            ("https://Reg.Example/v1/", "reg.example"),
            ("http://reg.example/v2/", "REG.example"),
            ("reg.example:5000", "reg.example:5000"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("docker.io", "index.docker.io"),
            ("registry-1.docker.io", "docker.io"),
        ] {
            let json = format!(r#"{{"auths":{{"{key}":{}}}}}"#, auth("u:p:q\0\0"));
            assert_eq!(lookup(&json, registry, "a/b").await.unwrap(), "u:p:q", "{key}");
            assert_eq!(lookup(&json, "other.example", "a").await.unwrap(), "none");
        }
    }

    #[tokio::test]
    async fn the_longest_path_wins() {
        let json = format!(
            r#"{{"auths":{{"r.example":{},"r.example/team":{},"r.example/team/app":{},"r.example/empty":{{}}}}}}"#,
            auth("host:1"),
            auth("team:2"),
            auth("app:3")
        );
        for (repository, expected) in [
            ("team/app", "app:3"),
            ("team/app/sub", "app:3"),
            ("team/apple", "team:2"),
            ("teams/app", "host:1"),
            ("empty/app", "host:1"),
        ] {
            assert_eq!(lookup(&json, "r.example", repository).await.unwrap(), expected);
        }
    }

    #[tokio::test]
    async fn kinds_of_entries() {
        let entry = |entry: &str| format!(r#"{{"auths":{{"r.example":{entry}}}, "x": 1}}"#);
        for (text, expected) in [
            (r#"{"identitytoken":"i","auth":"dTpw"}"#, "identity i"),
            (r#"{"registrytoken":"r"}"#, "registry r"),
            (r#"{"username":"u","password":"p","auth":""}"#, "u:p"),
            (r#"{"username":"u","password":"p","auth":"YTpi"}"#, "a:b"),
            (r#"{"username":"u"}"#, "none"),
            (r#"{"auth":null}"#, "none"),
            ("{}", "none"),
        ] {
            assert_eq!(lookup(&entry(text), "r.example", "a").await.unwrap(), expected, "{text}");
        }
        for text in [r#"{"auth":"%%%"}"#, r#"{"auth":"aHVudGVyMg=="}"#] {
            let error = lookup(&entry(text), "r.example", "a").await.unwrap_err();
            assert!(error.contains("config.json") && !error.contains("hunter2"), "{error}");
        }
        assert_eq!(lookup(r#"{"auths":null,"credsStore":""}"#, "r", "a").await.unwrap(), "none");
        let error = lookup(r#"{"credsStore":"desktop"}"#, "r.example", "a").await.unwrap_err();
        assert!(error.contains("switched off"), "{error}");
    }

    #[test]
    fn bad_files_do_not_show_their_content() {
        for bad in ["", "hunter2", r#"{"auths":{"r":{"auth":["hunter2"]}}}"#, "[]"] {
            let error = DockerConfigKeychain::new("c.json", bad.as_bytes(), None).err().unwrap();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[tokio::test]
    async fn helpers_before_the_store_before_auths() {
        let directory = tempfile::tempdir().unwrap();
        for (name, script) in [
            ("host", r#"echo '{"Username":"helper","Secret":"h"}'"#),
            (
                "store",
                r#"read s; [ "$s" = "https://index.docker.io/v1/" ] && echo '{"Username":"hub","Secret":"s"}' || { echo credentials not found; exit 1; }"#,
            ),
        ] {
            let program = directory.path().join(format!("docker-credential-{name}"));
            fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let helpers = Helpers::new(vec![directory.path().to_owned()], Vec::new());
        let json = format!(
            r#"{{"credHelpers":{{"h.example":"host"}},"credsStore":"store","auths":{{"h.example":{0},"a.example":{0}}}}}"#,
            auth("file:f")
        );
        let keychain = DockerConfigKeychain::new("c", json.as_bytes(), Some(helpers)).unwrap();
        for (registry, user) in
            [("h.example", "helper"), ("docker.io", "hub"), ("a.example", "file")]
        {
            let found = keychain.credential(registry, "x").await.unwrap().unwrap();
            assert!(
                matches!(&found.kind, CredentialKind::Password { username, .. } if username == user)
            );
        }
    }
}
