//! Who we are to AWS: a source of keys and the roles that are assumed with them, renewed in time.

use std::{
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use aws_config::credential_process::CredentialProcessProvider;
use aws_credential_types::{Credentials, provider::ProvideCredentials};
use tokio::sync::OnceCell;

use crate::{
    context::Context,
    error::AwsError,
    host::Partition,
    keys::Keys,
    profile::{Base, Role},
    source::{Bearer, Source},
    sts::{SECONDS, SECONDS_MAX, WebIdentity},
    text::printable,
};

/// One identity in one partition. Its keys are fetched once and kept in memory until shortly before their end.
#[derive(Debug)]
pub(crate) struct Identity {
    source: Result<Source, AwsError>,
    /// To assume, in order; with an ID token the first is what it is exchanged for.
    roles: Vec<Role>,
    partition: Partition,
    /// Where STS is asked.
    region: String,
    kept: Mutex<Option<Kept>>,
    /// Held while keys are fetched: many requests wait for one.
    flight: tokio::sync::Mutex<()>,
    caller: OnceCell<Option<String>>,
}

#[derive(Clone, Debug)]
struct Kept {
    keys: Keys,
    renew_at: Option<SystemTime>,
}

impl Identity {
    pub(crate) fn new(
        source: Result<Source, AwsError>,
        roles: Vec<Role>,
        partition: Partition,
        region: &str,
    ) -> Self {
        Identity {
            source,
            roles,
            partition,
            region: region.to_owned(),
            kept: Mutex::default(),
            flight: tokio::sync::Mutex::default(),
            caller: OnceCell::new(),
        }
    }

    /// The keys, new ones where the old ones are about to end.
    ///
    /// # Errors
    /// The source's or STS's own. While old keys are still good, a failed renewal is none.
    pub(crate) async fn keys(&self, context: &Context) -> Result<Keys, AwsError> {
        if let Some(keys) = self.current() {
            return Ok(keys);
        }
        let _one = self.flight.lock().await;
        if let Some(keys) = self.current() {
            return Ok(keys);
        }
        match self.load(context).await {
            Ok(keys) => {
                tracing::info!("ECR: keys from {}", keys.provider);
                let renew_at = keys.renew_at(SystemTime::now());
                *self.kept() = Some(Kept { keys: keys.clone(), renew_at });
                Ok(keys)
            }
            Err(error) => self.old_keys().ok_or(error),
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Option<Keys> {
        let now = SystemTime::now();
        let kept = self.kept();
        let good = kept.as_ref().filter(|kept| kept.renew_at.is_none_or(|at| at > now));
        good.map(|kept| kept.keys.clone())
    }

    /// Keys that should be renewed, but still work.
    fn old_keys(&self) -> Option<Keys> {
        let now = SystemTime::now();
        let kept = self.kept();
        let good = kept.as_ref().filter(|kept| {
            kept.renew_at.is_some() && kept.keys.credentials.expiry().is_some_and(|end| end > now)
        });
        good.map(|kept| kept.keys.clone())
    }

    /// Gives the keys up: AWS says that they have expired. Returns whether others can be had.
    pub(crate) fn expired(&self, used: &Keys) -> bool {
        let mut kept = self.kept();
        if kept.as_ref().is_some_and(|kept| same(&kept.keys, used)) {
            *kept = None;
        }
        match &self.source {
            // The same ones would come again.
            Ok(Source::Variables) => !self.roles.is_empty(),
            Ok(_) => true,
            Err(_) => false,
        }
    }

    /// The ARN of the caller, asked for once.
    pub(crate) async fn caller(&self, context: &Context) -> Option<String> {
        let ask = || async {
            let keys = self.keys(context).await.ok()?;
            context.caller(&self.region, &keys).await
        };
        self.caller.get_or_init(ask).await.clone()
    }

    async fn load(&self, context: &Context) -> Result<Keys, AwsError> {
        let source = self.source.as_ref().map_err(AwsError::clone)?;
        let (mut keys, rest) = self.first(context, source).await?;
        let profile: &[Role] = match source {
            Source::Profile(profile) => &profile.roles,
            _ => &[],
        };
        for role in profile.iter().chain(rest) {
            keys = context.assume(&self.region, &keys, role).await?;
        }
        Ok(keys)
    }

    /// The source's keys, and the roles that are still to be assumed.
    async fn first(&self, context: &Context, source: &Source) -> Result<(Keys, &[Role]), AwsError> {
        let name = source.name();
        let credentials = match source {
            Source::GitHub { url, token } => {
                let audience = self.partition.token_audience();
                let token = context.github_token(url, token, audience).await?;
                return self.by_token(context, &name, &token, &[SECONDS]).await;
            }
            // It can't be renewed: the longer the session the better.
            Source::IdToken { token, .. } => {
                let seconds = [SECONDS_MAX, SECONDS];
                return self.by_token(context, &name, token, &seconds).await;
            }
            Source::Variables => variables(context)?,
            Source::Profile(profile) => self.base(context, &name, &profile.base).await?,
            Source::TokenFile { path, role, session } => {
                self.by_file(context, &name, path, role, session.clone()).await?
            }
            Source::Container => context.container().await?,
            Source::Instance => context.instance().await?,
        };
        Ok((Keys { credentials, provider: name }, &self.roles))
    }

    async fn by_token(
        &self,
        context: &Context,
        name: &str,
        token: &Bearer,
        seconds: &[i32],
    ) -> Result<(Keys, &[Role]), AwsError> {
        let Some((role, rest)) = self.roles.split_first() else {
            let reason = "there is no role to use it for".to_owned();
            return Err(AwsError::Source { provider: name.to_owned(), reason, hint: None });
        };
        let provider = format!("{name} for the role {}", role.arn);
        let exchanged = WebIdentity { provider: &provider, token, role, seconds };
        let credentials = context.exchange(&self.region, &exchanged).await?;
        Ok((Keys { credentials, provider }, rest))
    }

    async fn by_file(
        &self,
        context: &Context,
        name: &str,
        path: &str,
        arn: &str,
        session: Option<String>,
    ) -> Result<Credentials, AwsError> {
        let failed = |reason| AwsError::Source { provider: name.to_owned(), reason, hint: None };
        let token = Bearer(context.files.token(path).map_err(failed)?);
        let role = Role { arn: arn.to_owned(), external_id: None, session, seconds: None };
        let exchanged =
            WebIdentity { provider: name, token: &token, role: &role, seconds: &[SECONDS] };
        context.exchange(&self.region, &exchanged).await
    }

    async fn base(
        &self,
        context: &Context,
        name: &str,
        base: &Base,
    ) -> Result<Credentials, AwsError> {
        match base {
            Base::Keys { id, secret, token } => {
                let (id, secret) = (id.clone(), secret.clone());
                Ok(Credentials::new(id, secret, token.clone(), None, "profile"))
            }
            Base::Process(command) => process(name, command).await,
            Base::TokenFile { path, role, session } => {
                self.by_file(context, name, path, role, session.clone()).await
            }
            Base::Variables => variables(context),
            Base::Container => context.container().await,
            Base::Instance => context.instance().await,
        }
    }
}

fn same(a: &Keys, b: &Keys) -> bool {
    let parts = |keys: &Keys| {
        let credentials = &keys.credentials;
        (credentials.access_key_id().to_owned(), credentials.session_token().map(str::to_owned))
    };
    parts(a) == parts(b)
}

fn variables(context: &Context) -> Result<Credentials, AwsError> {
    let variables = &context.files.variables;
    let value = |name: &str| variables.get(name).map(str::to_owned);
    let secret = value("AWS_SECRET_ACCESS_KEY").or_else(|| value("SECRET_ACCESS_KEY"));
    let (Some(id), Some(secret)) = (value("AWS_ACCESS_KEY_ID"), secret) else {
        return Err(AwsError::Source {
            provider: "the environment".into(),
            reason: "AWS_ACCESS_KEY_ID or AWS_SECRET_ACCESS_KEY is not set".into(),
            hint: None,
        });
    };
    Ok(Credentials::new(id, secret, value("AWS_SESSION_TOKEN"), None, "environment"))
}

/// Runs the program that a profile names. What it wrote to standard error may hold secrets and is not repeated.
async fn process(name: &str, command: &str) -> Result<Credentials, AwsError> {
    let provider = CredentialProcessProvider::new(command.to_owned());
    provider.provide_credentials().await.map_err(|error| {
        let mut cause: &dyn std::error::Error = &error;
        while let Some(next) = cause.source() {
            cause = next;
        }
        let text = cause.to_string();
        let reason = printable(text.split("Stderr:").next().unwrap_or_default(), 300);
        let provider = format!("credential_process of {name}");
        let hint = Some("run the command by hand: it must print the keys as JSON".to_owned());
        AwsError::Source { provider, reason, hint }
    })
}
