//! Amazon ECR for bareboat: which hosts are ECR's, AWS keys from wherever a build has them, registry tokens that are renewed
//! in time, repositories, and what ECR's answers mean.
//!
//! [`Ecr`] is a keychain and the hooks of core's registry client. It reads no environment: [`Variables`] are given in. All
//! that has a path is opened by [`Ecr::open`] (see [`Files`]).

mod advice;
mod context;
mod error;
mod files;
mod host;
mod http;
mod identity;
mod keys;
mod metadata;
mod oidc;
mod profile;
mod public;
mod repository;
mod source;
mod sts;
#[cfg(test)]
mod tests;
mod text;
mod token;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use bareboat_core::{
    registry::{
        BoxFuture, ClientOptions, Credential, CredentialKind, Keychain, KeychainError,
        RegistryError, RegistryHooks, Repository, reference::canonical,
    },
    secret::Secret,
};

pub use error::{ApiFailure, AwsError};
pub use files::{Files, Variables};
pub use host::{EcrHost, Partition, PrivateHost};
pub use http::Http;
pub use repository::{Encryption, Mutability, RepositorySettings};

use advice::Around;
use context::{Context, Pace};
use identity::Identity;
use profile::Role;
use repository::{Place, Repositories};
use source::{Choice, Source};
use token::{Scope, Token, Tokens};

/// Told every secret value as soon as it is known, so that an adapter can have it masked in logs.
#[derive(Clone)]
pub struct SecretSink(Arc<Tell>);

type Tell = dyn Fn(&Secret<String>) + Send + Sync;

impl SecretSink {
    pub fn new(tell: impl Fn(&Secret<String>) + Send + Sync + 'static) -> Self {
        SecretSink(Arc::new(tell))
    }
}

impl fmt::Debug for SecretSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretSink")
    }
}

/// What the user said about AWS.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Roles to assume one after the other, by ARN.
    pub roles: Vec<String>,
    /// For each role that is assumed with keys.
    pub external_id: Option<String>,
    pub session_name: Option<String>,
    /// Registries and the role to assume for each, after `roles`.
    pub registry_roles: Vec<(String, String)>,
    /// The variable that holds an ID token. `None`: `AWS_ID_TOKEN`, where it is set.
    pub id_token_variable: Option<String>,
    /// Private names of ECR registries, with their regions.
    pub aliases: Vec<(String, String)>,
    /// What the build pushes to: in ECR Public nothing else needs keys.
    pub destinations: Vec<Repository>,
    /// How a missing repository is created; `None`: not at all.
    pub create: Option<RepositorySettings>,
    /// The same for cache repositories, which differ in their settings.
    pub create_cache: Vec<(Repository, RepositorySettings)>,
    /// Registries for which Docker's configuration names the helper `ecr-login`, or all ECR registries: they get their
    /// credential here before that configuration is looked at.
    pub ecr_login: EcrLogin,
    pub secrets: Option<SecretSink>,
}

/// Where the credential helper `ecr-login` is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EcrLogin {
    pub registries: Vec<String>,
    /// As the store of all credentials.
    pub everywhere: bool,
}

/// By the roles and the partition.
type Identities = HashMap<(Vec<Role>, Partition), Arc<Identity>>;

/// Keychain and hooks for ECR's registries.
pub struct Ecr {
    context: Context,
    options: Options,
    identities: Mutex<Identities>,
    tokens: Tokens,
    repositories: Repositories,
}

impl fmt::Debug for Ecr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ecr")
    }
}

/// Where in the order of keychains [`Ecr`] answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// Before Docker's configuration: where keys were given for this build, or `ecr-login` is configured.
    First,
    /// After it: keys of the machine or the pod.
    Last,
}

impl Ecr {
    /// Opens and reads everything that has a path. Asks nothing of AWS.
    ///
    /// # Errors
    /// A proxy or the TLS configuration of `http` can't be used; an alias's region is none.
    pub async fn open(
        variables: Variables,
        http: ClientOptions,
        options: Options,
    ) -> Result<Arc<Self>, AwsError> {
        Self::open_paced(variables, http, options, Pace::default()).await
    }

    async fn open_paced(
        variables: Variables,
        http: ClientOptions,
        options: Options,
        pace: Pace,
    ) -> Result<Arc<Self>, AwsError> {
        if let Some((host, region)) =
            options.aliases.iter().find(|(_, region)| EcrHost::alias(region).is_none())
        {
            let what = format!("--ecr-registry {host}={region}: {region:?} is not an AWS Region");
            return Err(AwsError::Option(what));
        }
        let context = Context { files: Files::open(variables).await, http: Http::new(http)?, pace };
        Ok(Arc::new(Ecr {
            context,
            options,
            identities: Mutex::default(),
            tokens: Tokens::default(),
            repositories: Repositories::default(),
        }))
    }

    /// `between` with ECR's credentials in their two places around it.
    pub fn keychains(self: &Arc<Self>, between: Vec<Arc<dyn Keychain>>) -> Vec<Arc<dyn Keychain>> {
        let at = |position| -> Arc<dyn Keychain> {
            Arc::new(Positioned { ecr: self.clone(), position })
        };
        let mut all = vec![at(Position::First)];
        all.extend(between);
        all.push(at(Position::Last));
        all
    }

    /// Begins to get the tokens of the destinations in the background. ID tokens live for minutes, so they are exchanged
    /// at once and not when the push comes.
    pub fn prepare(self: &Arc<Self>) {
        for repository in &self.options.destinations {
            let registry = canonical(&repository.registry);
            if self.host(&registry).is_none() {
                continue;
            }
            let (ecr, registry) = (self.clone(), registry);
            tokio::spawn(async move {
                // The error comes again, and is shown, when the token is needed.
                if let Err(error) = ecr.token(&registry).await {
                    tracing::debug!(registry, %error, "no ECR token yet");
                }
            });
        }
    }

    fn host(&self, registry: &str) -> Option<EcrHost> {
        let registry = registry.to_ascii_lowercase();
        let alias = self.options.aliases.iter().find(|(name, _)| canonical(name) == registry);
        match alias {
            Some((_, region)) => EcrHost::alias(region),
            None => EcrHost::parse(&registry),
        }
    }

    /// The roles for `registry`.
    fn roles(&self, registry: &str) -> Vec<Role> {
        let own =
            self.options.registry_roles.iter().filter(|(name, _)| canonical(name) == registry);
        let arns = self.options.roles.iter().chain(own.map(|(_, arn)| arn));
        arns.map(|arn| self.role(arn)).collect()
    }

    fn role(&self, arn: &str) -> Role {
        Role {
            arn: arn.to_owned(),
            external_id: self.options.external_id.clone(),
            session: self.options.session_name.clone(),
            seconds: None,
        }
    }

    fn choice(&self, roles: &[Role]) -> Choice<'_> {
        let id_token_variable = self.options.id_token_variable.as_deref();
        Choice { role: !roles.is_empty(), id_token_variable }
    }

    fn identity(&self, registry: &str, host: &EcrHost) -> Arc<Identity> {
        let mut roles = self.roles(registry);
        let source = source::choose(&self.context.files, &self.choice(&roles));
        if roles.is_empty()
            && matches!(source, Ok(Source::GitHub { .. } | Source::IdToken { .. }))
            && let Some(arn) = self.context.files.variables.get("AWS_ROLE_ARN")
        {
            roles.push(self.role(arn));
        }
        let mut identities = self.identities.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (roles.clone(), host.partition());
        let new = || Arc::new(Identity::new(source, roles, host.partition(), host.region()));
        identities.entry(key).or_insert_with(new).clone()
    }

    fn scope(&self, registry: &str, host: &EcrHost) -> Scope {
        Scope {
            partition: host.partition(),
            region: host.region().to_owned(),
            public: *host == EcrHost::Public,
            roles: self.roles(registry),
        }
    }

    async fn token(&self, registry: &str) -> Result<Token, AwsError> {
        let host = self
            .host(registry)
            .ok_or_else(|| AwsError::Option(format!("{registry} is not a registry of ECR")))?;
        let identity = self.identity(registry, &host);
        let scope = self.scope(registry, &host);
        let token = self.tokens.get(&self.context, &identity, &host, &scope).await?;
        if let Some(tell) = &self.options.secrets {
            (tell.0)(&token.password);
        }
        Ok(token)
    }

    /// Whether the credential for `registry` comes from here before Docker's configuration is asked.
    fn position(&self, registry: &str) -> Position {
        let login = &self.options.ecr_login;
        if login.everywhere || login.registries.iter().any(|name| canonical(name) == registry) {
            return Position::First;
        }
        let roles = self.roles(registry);
        let choice = self.choice(&roles);
        match source::choose(&self.context.files, &choice) {
            Ok(source) if source::is_explicit(&source, &self.context.files.variables, &choice) => {
                Position::First
            }
            // Something was set for this build, by half: that is told.
            Err(AwsError::Source { .. }) => Position::First,
            _ => Position::Last,
        }
    }

    async fn credential(
        &self,
        registry: &str,
        repository: &str,
    ) -> Result<Option<Credential>, KeychainError> {
        if self.host(registry) == Some(EcrHost::Public)
            && !self.is_destination(registry, repository)
        {
            return Ok(None);
        }
        let token =
            self.token(registry).await.map_err(|error| error.into_keychain_error(registry))?;
        let source = format!("{}{}", advice::SOURCE, token.provider);
        let kind = CredentialKind::Password { username: token.username, password: token.password };
        Ok(Some(Credential { source, kind }))
    }

    fn is_destination(&self, registry: &str, repository: &str) -> bool {
        let cache = self.options.create_cache.iter().map(|(repository, _)| repository);
        self.options.destinations.iter().chain(cache).any(|destination| {
            destination.name == repository && canonical(&destination.registry) == registry
        })
    }

    /// How a missing repository is to be made.
    fn settings(&self, repository: &Repository) -> Option<&RepositorySettings> {
        let same =
            |other: &Repository| other.name == repository.name && other.same_registry(repository);
        let cache = self.options.create_cache.iter().find(|(other, _)| same(other));
        cache.map(|(_, settings)| settings).or(self.options.create.as_ref())
    }

    /// The private repository's place in AWS; `None` for other ones.
    fn place<R>(
        &self,
        repository: &Repository,
        with: impl FnOnce(Arc<Identity>, host::PrivateHost) -> R,
    ) -> Option<R> {
        let registry = canonical(&repository.registry);
        let host = self.host(&registry)?;
        let identity = self.identity(&registry, &host);
        match host {
            EcrHost::Private(host) => Some(with(identity, host)),
            EcrHost::Public => None,
        }
    }

    async fn around(&self, repository: &Repository, error: &RegistryError) -> Around {
        let registry = canonical(&repository.registry);
        let host = self.host(&registry);
        let mut around = Around {
            repository: repository.to_string(),
            creates: self.settings(repository).is_some(),
            public: host == Some(EcrHost::Public),
            ..Around::default()
        };
        let Some(host) = host else { return around };
        if let EcrHost::Private(private) = &host {
            around.account.clone_from(&private.account);
        }
        let signed = !around.public || self.is_destination(&registry, &repository.name);
        if signed && advice::names_caller(error) {
            let identity = self.identity(&registry, &host);
            let keys = identity.keys(&self.context).await.ok();
            around.provider = keys.map(|keys| keys.provider);
            around.caller = identity.caller(&self.context).await;
        }
        around
    }
}

impl RegistryHooks for Ecr {
    fn knows(&self, registry: &str) -> bool {
        self.host(registry).is_some()
    }

    fn create_repository<'a>(
        &'a self,
        repository: &'a Repository,
    ) -> BoxFuture<'a, Result<bool, KeychainError>> {
        Box::pin(async move {
            let Some(settings) = self.settings(repository) else { return Ok(false) };
            let found = self.place(repository, |identity, host| (identity, host));
            let Some((identity, host)) = found else { return Ok(false) };
            let (context, identity, host) = (&self.context, &*identity, &host);
            let place = Place { context, identity, host, repository };
            let created = self.repositories.create(&place, settings).await;
            created.map_err(|error| error.into_keychain_error(&repository.registry))?;
            Ok(true)
        })
    }

    fn keeps_tag<'a>(&'a self, repository: &'a Repository, tag: &'a str) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let found = self.place(repository, |identity, host| (identity, host));
            let Some((identity, host)) = found else { return false };
            let (context, identity, host) = (&self.context, &*identity, &host);
            let place = Place { context, identity, host, repository };
            self.repositories.keeps_tag(&place, tag).await
        })
    }

    fn advise<'a>(
        &'a self,
        repository: &'a Repository,
        error: &'a RegistryError,
    ) -> BoxFuture<'a, Option<String>> {
        Box::pin(async move { advice::advice(error, &self.around(repository, error).await) })
    }
}

/// [`Ecr`] in one of its two places among the keychains.
struct Positioned {
    ecr: Arc<Ecr>,
    position: Position,
}

impl Keychain for Positioned {
    fn credential<'a>(
        &'a self,
        registry: &'a str,
        repository: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credential>, KeychainError>> {
        Box::pin(async move {
            if !self.ecr.knows(registry) || self.ecr.position(registry) != self.position {
                return Ok(None);
            }
            self.ecr.credential(registry, repository).await
        })
    }

    fn refused<'a>(&'a self, registry: &'a str, credential: &'a Credential) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let Some((scope, password)) = self.scoped(registry, credential) else { return false };
            self.ecr.tokens.refused(&scope, password)
        })
    }

    fn renew_at(&self, registry: &str, credential: &Credential) -> Option<Instant> {
        let (scope, password) = self.scoped(registry, credential)?;
        self.ecr.tokens.renew_at(&scope, password)
    }
}

impl Positioned {
    /// The scope of a credential that was given from here.
    fn scoped<'a>(
        &self,
        registry: &str,
        credential: &'a Credential,
    ) -> Option<(Scope, &'a Secret<String>)> {
        let host = self.ecr.host(registry)?;
        match &credential.kind {
            CredentialKind::Password { password, .. }
                if credential.source.starts_with(advice::SOURCE)
                    && self.ecr.position(registry) == self.position =>
            {
                Some((self.ecr.scope(registry, &host), password))
            }
            _ => None,
        }
    }
}
