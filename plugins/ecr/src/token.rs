//! ECR's registry tokens: one for a partition, a region and an identity, in memory alone, renewed in time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use aws_sdk_ecr::Client;
use bareboat_core::secret::Secret;
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

use crate::{
    context::{Context, Flavour},
    error::AwsError,
    host::{EcrHost, Partition},
    identity::Identity,
    keys::{Keys, renewal},
    public,
};

/// What AWS documents; used where the answer's own time can't be true.
const LIFE: Duration = Duration::from_secs(12 * 3600);
/// A token that was fetched because its predecessor was refused, and is refused so soon, is not replaced again.
const REFUSED_AGAIN: Duration = Duration::from_secs(60);
const OPERATION: (&str, &str) = ("GetAuthorizationToken", "ecr:GetAuthorizationToken");

/// A user name and a password for registries.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) username: String,
    pub(crate) password: Secret<String>,
    /// Where the keys behind it came from.
    pub(crate) provider: String,
    renew_at: SystemTime,
    end: SystemTime,
}

/// What one token is good for: every registry of the partition's region that the identity may reach.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Scope {
    pub(crate) partition: Partition,
    pub(crate) region: String,
    pub(crate) public: bool,
    /// The identity, by its roles.
    pub(crate) roles: Vec<crate::profile::Role>,
}

#[derive(Debug, Default)]
pub(crate) struct Tokens {
    slots: Mutex<HashMap<Scope, Arc<Slot>>>,
}

#[derive(Debug, Default)]
struct Slot {
    state: Mutex<State>,
    /// Held while a token is fetched: many requests wait for one.
    flight: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    token: Option<Token>,
    refused: bool,
    /// When the last refusal made us ask again.
    refused_at: Option<Instant>,
}

impl Slot {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Option<Token> {
        let state = self.state();
        let now = SystemTime::now();
        state.token.clone().filter(|token| !state.refused && token.renew_at > now)
    }

    /// A token that should be renewed, but is not known to be bad.
    fn old(&self) -> Option<Token> {
        let state = self.state();
        let now = SystemTime::now();
        state.token.clone().filter(|token| !state.refused && token.end > now)
    }
}

impl Tokens {
    /// The token for `scope`, a new one where the old one is about to end or was refused.
    ///
    /// # Errors
    /// What AWS answered. While an old token is still good, a failed renewal is none.
    pub(crate) async fn get(
        &self,
        context: &Context,
        identity: &Identity,
        host: &EcrHost,
        scope: &Scope,
    ) -> Result<Token, AwsError> {
        let slot = self.slot(scope);
        if let Some(token) = slot.current() {
            return Ok(token);
        }
        let _one = slot.flight.lock().await;
        if let Some(token) = slot.current() {
            return Ok(token);
        }
        match fetch(context, identity, host).await {
            Ok(token) => {
                let mut state = slot.state();
                (state.token, state.refused) = (Some(token.clone()), false);
                Ok(token)
            }
            Err(error) => {
                tracing::debug!(%error, "no new ECR token");
                slot.old().ok_or(error)
            }
        }
    }

    /// A registry refused `password`. Returns whether asking again gives another one: each token is replaced at most
    /// once.
    pub(crate) fn refused(&self, scope: &Scope, password: &Secret<String>) -> bool {
        let slot = self.slot(scope);
        let mut state = slot.state();
        let Some(token) = &state.token else { return true };
        if token.password != *password || state.refused {
            return true;
        }
        let now = Instant::now();
        if state.refused_at.is_some_and(|at| now.duration_since(at) < REFUSED_AGAIN) {
            return false;
        }
        (state.refused, state.refused_at) = (true, Some(now));
        true
    }

    /// When `password` is to be replaced.
    pub(crate) fn renew_at(&self, scope: &Scope, password: &Secret<String>) -> Option<Instant> {
        let slot = self.slot(scope);
        let state = slot.state();
        let token = state.token.as_ref().filter(|token| token.password == *password)?;
        let left = token.renew_at.duration_since(SystemTime::now()).unwrap_or_default();
        Instant::now().checked_add(left)
    }

    fn slot(&self, scope: &Scope) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(scope.clone()).or_default().clone()
    }
}

/// Fetches a token; once more with new keys where the old ones have expired.
async fn fetch(context: &Context, identity: &Identity, host: &EcrHost) -> Result<Token, AwsError> {
    let keys = identity.keys(context).await?;
    match ask(context, &keys, host).await {
        Err(error)
            if error.failure().is_some_and(|failure| failure.is_expired())
                && identity.expired(&keys) =>
        {
            let keys = identity.keys(context).await?;
            ask(context, &keys, host).await
        }
        result => result,
    }
}

async fn ask(context: &Context, keys: &Keys, host: &EcrHost) -> Result<Token, AwsError> {
    let (encoded, told) = match host {
        EcrHost::Public => public::authorization(context, keys).await?,
        EcrHost::Private(private) => {
            let flavour = Flavour { fips: private.fips, dual_stack: private.dual_stack };
            let region = &private.region;
            let config = context.sdk_config(region, Some(&keys.credentials), flavour).await;
            let sent = Client::new(&config).get_authorization_token().send().await;
            let answer = sent.map_err(|error| AwsError::api(OPERATION, &keys.provider, &error))?;
            let data = answer.authorization_data.unwrap_or_default().into_iter().next();
            let data = data.ok_or_else(|| unusable("it holds no token"))?;
            let told = data.expires_at.and_then(|at| SystemTime::try_from(at).ok());
            (data.authorization_token.unwrap_or_default(), told)
        }
    };
    token(&encoded, told, keys)
}

/// Reads base64 of `user:password`.
fn token(encoded: &str, told: Option<SystemTime>, keys: &Keys) -> Result<Token, AwsError> {
    let decoded =
        BASE64.decode(encoded.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
    let (username, password) =
        pair.ok_or_else(|| unusable("its token is not user:password in base64"))?;
    let now = SystemTime::now();
    // Some servers answer with a time long past.
    let end = told.filter(|told| *told > now).unwrap_or(now + LIFE);
    // Nothing says that a token outlives the session that it was made with.
    let end = keys.credentials.expiry().map_or(end, |session| session.min(end));
    Ok(Token {
        username: username.to_owned(),
        password: Secret::new(password.to_owned()),
        provider: keys.provider.clone(),
        renew_at: renewal(now, end),
        end,
    })
}

fn unusable(reason: &str) -> AwsError {
    AwsError::Source {
        provider: OPERATION.0.into(),
        reason: format!("the answer can't be used: {reason}"),
        hint: None,
    }
}
