//! Where credentials come from: a port that adapters implement.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Instant};

use crate::{registry::reference::canonical, secret::Secret};

/// A boxed future, as trait objects need it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a registry is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// Where it came from, for messages: `Docker's config.json`.
    pub source: String,
    pub kind: CredentialKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialKind {
    Password {
        username: String,
        password: Secret<String>,
    },
    /// An OAuth 2 refresh token for the token endpoint.
    IdentityToken(Secret<String>),
    /// A token that the registry itself takes as a Bearer.
    RegistryToken(Secret<String>),
}

/// A configured source of credentials that failed: shown, never taken for "none".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no credential for {registry} from {keychain}: {reason}")]
pub struct KeychainError {
    pub registry: String,
    pub keychain: String,
    pub reason: String,
    /// What to do next.
    pub hint: Option<String>,
}

/// Gives credentials for registries.
pub trait Keychain: Send + Sync {
    /// The credential for `repository` on `registry` (canonical: `docker.io`, `localhost:5000`); `None` where none is
    /// configured, which means anonymous. The answer is kept until the registry refuses it.
    fn credential<'a>(
        &'a self,
        registry: &'a str,
        repository: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credential>, KeychainError>>;

    /// The registry refused `credential`. Returns whether asking again may give another one; called at most once a request.
    fn refused<'a>(&'a self, registry: &'a str, credential: &'a Credential) -> BoxFuture<'a, bool> {
        let _ = (registry, credential);
        Box::pin(async { false })
    }

    /// When to ask for another credential than `credential` although the registry still takes it; `None`: never.
    fn renew_at(&self, registry: &str, credential: &Credential) -> Option<Instant> {
        let _ = (registry, credential);
        None
    }
}

impl fmt::Debug for dyn Keychain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keychain")
    }
}

/// No credentials at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Anonymous;

impl Keychain for Anonymous {
    fn credential<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credential>, KeychainError>> {
        Box::pin(async { Ok(None) })
    }
}

/// One credential for one registry.
#[derive(Clone, Debug)]
pub struct StaticKeychain {
    registry: String,
    credential: Credential,
}

impl StaticKeychain {
    pub fn new(registry: &str, credential: Credential) -> Self {
        StaticKeychain { registry: canonical(registry), credential }
    }
}

impl Keychain for StaticKeychain {
    fn credential<'a>(
        &'a self,
        registry: &'a str,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credential>, KeychainError>> {
        Box::pin(async move {
            Ok((canonical(registry) == self.registry).then(|| self.credential.clone()))
        })
    }
}

/// Keychains in order: the first that has a credential gives it, the first that fails ends the search.
#[derive(Clone, Debug, Default)]
pub struct ChainKeychain(pub Vec<Arc<dyn Keychain>>);

impl Keychain for ChainKeychain {
    fn credential<'a>(
        &'a self,
        registry: &'a str,
        repository: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credential>, KeychainError>> {
        Box::pin(async move {
            for keychain in &self.0 {
                if let Some(credential) = keychain.credential(registry, repository).await? {
                    return Ok(Some(credential));
                }
            }
            Ok(None)
        })
    }

    fn refused<'a>(&'a self, registry: &'a str, credential: &'a Credential) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let mut again = false;
            for keychain in &self.0 {
                again |= keychain.refused(registry, credential).await;
            }
            again
        })
    }

    fn renew_at(&self, registry: &str, credential: &Credential) -> Option<Instant> {
        self.0.iter().filter_map(|keychain| keychain.renew_at(registry, credential)).min()
    }
}
