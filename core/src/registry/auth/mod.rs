//! Who we are to a registry. The only room that makes an `Authorization` value, and it compares the origin first
//! (invariant 4).

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use url::Url;

use self::{
    challenge::Challenge,
    keychain::{Credential, CredentialKind, KeychainError},
};
use super::{client::Shared, error::RegistryError, host::Host};
use crate::secret::Secret;

pub(crate) mod challenge;
pub mod docker_config;
mod helper;
pub mod keychain;
mod token;

/// What a request needs to be allowed (Docker's token scopes).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Access {
    repository: String,
    push: bool,
    /// Repositories to mount from.
    sources: Vec<String>,
}

impl Access {
    pub(crate) fn pull(repository: &str) -> Self {
        Access { repository: repository.to_owned(), push: false, sources: Vec::new() }
    }

    pub(crate) fn push(repository: &str) -> Self {
        Access { push: true, ..Access::pull(repository) }
    }

    pub(crate) fn mount(repository: &str, source: &str) -> Self {
        Access { sources: vec![source.to_owned()], ..Access::push(repository) }
    }

    fn scopes(&self) -> Vec<String> {
        let actions = if self.push { "pull,push" } else { "pull" };
        let own = format!("repository:{}:{actions}", self.repository);
        let sources = self.sources.iter().map(|source| format!("repository:{source}:pull"));
        std::iter::once(own).chain(sources).collect()
    }

    /// Whether a token for `self` is good for `other`.
    fn covers(&self, other: &Access) -> bool {
        let pulls = |name: &String| *name == self.repository || self.sources.contains(name);
        let pushes = !other.push || self.push && self.repository == other.repository;
        pushes && pulls(&other.repository) && other.sources.iter().all(pulls)
    }
}

/// An `Authorization` value for one registry.
#[derive(Clone)]
pub(crate) struct Ticket {
    header: HeaderValue,
    id: u64,
    /// Where the credential behind it came from; `None` for anonymous.
    pub(crate) source: Option<String>,
    /// When the credential behind it is to be replaced.
    renew_at: Option<Instant>,
}

impl Ticket {
    /// Adds the header, if `url` is on `host`.
    pub(crate) fn apply(&self, host: &Host, url: &Url, headers: &mut HeaderMap) {
        if host.owns(url) {
            headers.insert(AUTHORIZATION, self.header.clone());
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticket({})", self.id)
    }
}

/// What is known about one registry's wishes, and what was got for them.
#[derive(Default)]
pub(crate) struct HostAuth {
    state: Mutex<State>,
    /// Held while a credential or a token is fetched: many requests wait for one.
    refresh: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    challenge: Option<Known>,
    /// By repository; `None` is anonymous.
    credentials: HashMap<String, Option<Credential>>,
    basic: HashMap<String, Ticket>,
    tokens: Vec<Token>,
    /// Scopes that the registry named itself.
    wanted: BTreeMap<Access, Vec<String>>,
    last_id: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Known {
    Basic,
    Bearer { realm: Url, service: Option<String> },
}

struct Token {
    access: Access,
    ticket: Ticket,
    renew_at: Instant,
}

impl HostAuth {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_ticket(&self, access: &Access) -> Option<Ticket> {
        let now = Instant::now();
        let mut state = self.state();
        match state.challenge {
            Some(Known::Basic) => {
                let known = state.basic.get(&access.repository);
                known.filter(|ticket| ticket.renew_at.is_none_or(|at| at > now)).cloned()
            }
            Some(Known::Bearer { .. }) => {
                state.tokens.retain(|token| token.renew_at > now);
                let found = state.tokens.iter().find(|token| token.access.covers(access));
                found.map(|token| token.ticket.clone())
            }
            None => None,
        }
    }

    /// Forgets `ticket`. Returns whether it was still in use.
    fn drop_ticket(&self, ticket: &Ticket) -> bool {
        let mut state = self.state();
        let before = state.tokens.len() + state.basic.len();
        state.tokens.retain(|token| token.ticket.id != ticket.id);
        state.basic.retain(|_, basic| basic.id != ticket.id);
        before != state.tokens.len() + state.basic.len()
    }
}

impl State {
    fn new_ticket(&mut self, header: HeaderValue, source: Option<String>) -> Ticket {
        self.last_id += 1;
        Ticket { header, id: self.last_id, source, renew_at: None }
    }

    /// Remembers a challenge and the scopes it names for `access`.
    fn learn(&mut self, known: Known, scope: Option<&str>, access: &Access) {
        if self.challenge.as_ref() != Some(&known) {
            self.tokens.clear();
            self.basic.clear();
            self.challenge = Some(known);
        }
        let scopes = scope.filter(|scope| scope.len() <= 2048).unwrap_or_default();
        let scopes: Vec<String> = scopes.split_whitespace().take(8).map(str::to_owned).collect();
        if !scopes.is_empty() && self.wanted.len() < 1000 {
            self.wanted.insert(access.clone(), scopes);
        }
    }
}

impl Shared {
    /// The credential for a request to `host` itself; `None` while the registry has asked for nothing, or where none is
    /// configured.
    pub(crate) async fn ticket(
        &self,
        host: &Host,
        access: &Access,
    ) -> Result<Option<Ticket>, RegistryError> {
        let Some(known) = host.auth.state().challenge.clone() else { return Ok(None) };
        if let Some(ticket) = host.auth.known_ticket(access) {
            return Ok(Some(ticket));
        }
        let _one = host.auth.refresh.lock().await;
        if let Some(ticket) = host.auth.known_ticket(access) {
            return Ok(Some(ticket));
        }
        let credential = self.credential(host, &access.repository).await?;
        match known {
            Known::Basic => {
                let renew_at =
                    credential.as_ref().and_then(|c| self.keychain.renew_at(&host.name, c));
                basic_ticket(host, access, credential, renew_at)
            }
            Known::Bearer { realm, service } => self
                .bearer_ticket(host, access, credential, &realm, service.as_deref())
                .await
                .map(Some),
        }
    }

    /// Whether a token with `access` can be had. For registries without tokens it can.
    pub(crate) async fn grants(&self, host: &Host, access: &Access) -> bool {
        match self.ticket(host, access).await {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(registry = host.name, %error, "no mount from another repository");
                false
            }
        }
    }

    async fn credential(
        &self,
        host: &Host,
        repository: &str,
    ) -> Result<Option<Credential>, KeychainError> {
        if let Some(known) = host.auth.state().credentials.get(repository)
            && !known.as_ref().is_some_and(|known| self.is_due(host, known))
        {
            return Ok(known.clone());
        }
        let found = self.keychain.credential(&host.name, repository).await?;
        let source = found.as_ref().map(|credential| credential.source.as_str());
        tracing::debug!(registry = host.name, repository, source, "credential");
        host.auth.state().credentials.insert(repository.to_owned(), found.clone());
        Ok(found)
    }

    /// Whether the keychain wants to be asked again.
    fn is_due(&self, host: &Host, credential: &Credential) -> bool {
        self.keychain.renew_at(&host.name, credential).is_some_and(|at| at <= Instant::now())
    }

    async fn bearer_ticket(
        &self,
        host: &Host,
        access: &Access,
        credential: Option<Credential>,
        realm: &Url,
        service: Option<&str>,
    ) -> Result<Ticket, RegistryError> {
        if let Some(Credential { source, kind: CredentialKind::RegistryToken(token) }) = &credential
        {
            let header = bearer(host, source, token)?;
            let ticket = host.auth.state().new_ticket(header, Some(source.clone()));
            return Ok(ticket);
        }
        let request = token::TokenRequest { host, realm, service, scopes: wanted(host, access) };
        let (token, credential) = self.fetch_token(&request, access, credential).await?;
        let source = credential.map(|credential| credential.source);
        let header = bearer(host, "the token endpoint", &token.value)?;
        let mut state = host.auth.state();
        let ticket = state.new_ticket(header, source);
        let (access, renew_at) = (access.clone(), token.renew_at);
        state.tokens.push(Token { access, ticket: ticket.clone(), renew_at });
        Ok(ticket)
    }

    /// Learns from a 401. Returns whether sending the request again may help.
    ///
    /// # Errors
    /// Says why a challenge can't be answered.
    pub(crate) async fn answer_challenge(
        &self,
        host: &Host,
        headers: &HeaderMap,
        ticket: Option<&Ticket>,
        access: &Access,
    ) -> Result<bool, RegistryError> {
        let Some(challenge) = challenge::parse(headers).into_iter().next() else {
            return Ok(false);
        };
        let (known, scope) = match challenge {
            Challenge::Basic => (Known::Basic, None),
            Challenge::Bearer { realm, service, scope } => {
                (Known::Bearer { realm: self.realm(host, &realm)?, service }, scope)
            }
        };
        let basic = known == Known::Basic;
        host.auth.state().learn(known, scope.as_deref(), access);
        match ticket {
            Some(ticket) => self.renew(host, ticket, access).await,
            None if basic => {
                let _one = host.auth.refresh.lock().await;
                Ok(self.credential(host, &access.repository).await?.is_some())
            }
            None => Ok(true),
        }
    }

    /// The token endpoint that a registry names, if it may be talked to.
    fn realm(&self, host: &Host, realm: &str) -> Result<Url, RegistryError> {
        let refuse = |reason: &str| {
            let shown = super::error::printable(realm.split('?').next().unwrap_or_default(), 200);
            let reason = format!("its token endpoint is refused: {reason}");
            RegistryError::Answer { url: shown, reason }
        };
        let url = Url::parse(realm).map_err(|_| refuse("it is no URL"))?;
        self.http.client_for(host, &url).map_err(refuse)?;
        Ok(url)
    }

    /// Gives up `ticket`, which the registry refused. Returns whether another one can be had.
    pub(crate) async fn renew(
        &self,
        host: &Host,
        ticket: &Ticket,
        access: &Access,
    ) -> Result<bool, RegistryError> {
        // Held to the end: who was refused with the same ticket waits, and then has another one already.
        let _one = host.auth.refresh.lock().await;
        let was_used = host.auth.drop_ticket(ticket);
        let bearer = matches!(host.auth.state().challenge, Some(Known::Bearer { .. }));
        let known = host.auth.state().credentials.get(&access.repository).cloned();
        Ok(match known {
            // It was given up together with another repository's.
            None => true,
            // A fresh token may do; without tokens there is nothing else to try.
            Some(None) => bearer,
            Some(Some(credential)) if is_fixed(&credential) => {
                self.replace_credential(host, &credential).await
            }
            Some(Some(_)) if bearer || !was_used => true,
            Some(Some(credential)) => self.replace_credential(host, &credential).await,
        })
    }

    /// Asks the keychain whether there is another credential than `refused`.
    async fn replace_credential(&self, host: &Host, refused: &Credential) -> bool {
        if !self.keychain.refused(&host.name, refused).await {
            return false;
        }
        let mut state = host.auth.state();
        state.credentials.retain(|_, known| known.as_ref() != Some(refused));
        state.basic.clear();
        true
    }
}

fn is_fixed(credential: &Credential) -> bool {
    matches!(credential.kind, CredentialKind::RegistryToken(_))
}

/// The scopes to ask for: what the registry named first, because some token servers read only one.
fn wanted(host: &Host, access: &Access) -> Vec<String> {
    let mut scopes = host.auth.state().wanted.get(access).cloned().unwrap_or_default();
    for scope in access.scopes() {
        if !scopes.iter().any(|known| same_scope(known, &scope)) {
            scopes.push(scope);
        }
    }
    scopes
}

/// Equal but for the order of the actions.
fn same_scope(a: &str, b: &str) -> bool {
    let parts = |scope: &str| {
        let (name, actions) = scope.rsplit_once(':').unwrap_or((scope, ""));
        let mut actions: Vec<String> = actions.split(',').map(str::to_owned).collect();
        actions.sort_unstable();
        (name.to_owned(), actions)
    };
    parts(a) == parts(b)
}

fn basic_ticket(
    host: &Host,
    access: &Access,
    credential: Option<Credential>,
    renew_at: Option<Instant>,
) -> Result<Option<Ticket>, RegistryError> {
    let Some(Credential { source, kind }) = credential else { return Ok(None) };
    let header = match &kind {
        CredentialKind::Password { username, password } => {
            basic(host, &source, username, password)?
        }
        CredentialKind::RegistryToken(token) => bearer(host, &source, token)?,
        CredentialKind::IdentityToken(_) => {
            let reason = "it is an identity token, but the registry asks for a password";
            return Err(wrong_credential(host, &source, reason).into());
        }
    };
    let mut state = host.auth.state();
    let ticket = Ticket { renew_at, ..state.new_ticket(header, Some(source)) };
    state.basic.insert(access.repository.clone(), ticket.clone());
    Ok(Some(ticket))
}

fn wrong_credential(host: &Host, source: &str, reason: &str) -> KeychainError {
    KeychainError {
        registry: host.name.clone(),
        keychain: source.to_owned(),
        reason: reason.to_owned(),
        hint: None,
    }
}

fn basic(
    host: &Host,
    source: &str,
    username: &str,
    password: &Secret<String>,
) -> Result<HeaderValue, KeychainError> {
    let pair = BASE64.encode(format!("{username}:{}", password.expose()));
    sensitive(host, source, format!("Basic {pair}"))
}

fn bearer(host: &Host, source: &str, token: &Secret<String>) -> Result<HeaderValue, KeychainError> {
    sensitive(host, source, format!("Bearer {}", token.expose()))
}

fn sensitive(host: &Host, source: &str, text: String) -> Result<HeaderValue, KeychainError> {
    let mut header = HeaderValue::try_from(text)
        .map_err(|_| wrong_credential(host, source, "it holds characters that a header can't"))?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_and_what_they_cover() {
        let mount = Access::mount("a", "b");
        assert_eq!(mount.scopes(), ["repository:a:pull,push", "repository:b:pull"]);
        assert!(mount.covers(&Access::push("a")));
        assert!(mount.covers(&Access::pull("b")));
        assert!(!mount.covers(&Access::push("b")));
        assert!(!Access::pull("a").covers(&Access::push("a")));
        assert!(!Access::push("a").covers(&mount));
        assert!(same_scope("repository:a:push,pull", "repository:a:pull,push"));
        assert!(!same_scope("repository:a:pull", "repository:a:pull,push"));
    }
}
