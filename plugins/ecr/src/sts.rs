//! The Security Token Service: keys for a token, keys for a role, whose keys these are.

use aws_credential_types::Credentials;
use aws_sdk_sts::{
    Client, operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityError,
    types::Credentials as StsCredentials,
};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use crate::{
    context::{Context, Flavour},
    error::{ApiFailure, AwsError},
    keys::Keys,
    profile::Role,
    source::Bearer,
};

const SESSION: &str = "bareboat";
/// Every role allows this much.
pub(crate) const SECONDS: i32 = 3600;
/// The most that a role can allow.
pub(crate) const SECONDS_MAX: i32 = 12 * 3600;

const WEB_IDENTITY: (&str, &str) = ("AssumeRoleWithWebIdentity", "sts:AssumeRoleWithWebIdentity");
const ASSUME_ROLE: (&str, &str) = ("AssumeRole", "sts:AssumeRole");

/// A token to exchange for a role's keys.
pub(crate) struct WebIdentity<'a> {
    /// For messages.
    pub(crate) provider: &'a str,
    pub(crate) token: &'a Bearer,
    pub(crate) role: &'a Role,
    /// To be tried in turn, because a role may allow less.
    pub(crate) seconds: &'a [i32],
}

impl Context {
    /// The Region's own endpoint: keys of the global one are refused in Regions that have to be opted into.
    async fn sts(&self, region: &str, credentials: Option<&Credentials>) -> Client {
        Client::new(&self.sdk_config(region, credentials, Flavour::default()).await)
    }

    /// Exchanges a token. STS itself asks the token's issuer, and is told to wait when that fails.
    ///
    /// # Errors
    /// After all tries, the last answer.
    pub(crate) async fn exchange(
        &self,
        region: &str,
        identity: &WebIdentity<'_>,
    ) -> Result<Credentials, AwsError> {
        let client = self.sts(region, None).await;
        let (mut failed, mut durations) = (0, identity.seconds.iter().copied());
        let mut seconds = durations.next();
        loop {
            let sent = client
                .assume_role_with_web_identity()
                .role_arn(&identity.role.arn)
                .role_session_name(session(identity.role))
                .web_identity_token(&identity.token.0)
                .set_duration_seconds(identity.role.seconds.or(seconds))
                .send()
                .await;
            let error = match sent {
                Ok(answer) => return credentials(answer.credentials, identity.provider),
                Err(error) => error,
            };
            match error.as_service_error() {
                Some(refused) if is_too_long(refused) && durations.len() > 0 => {
                    seconds = durations.next();
                }
                Some(refused) if is_issuer_unreachable(refused) && failed + 1 < self.pace.tries => {
                    failed += 1;
                    tracing::debug!(
                        failed,
                        code = refused.code(),
                        "STS could not verify the token"
                    );
                    self.back_off(failed).await;
                }
                _ => return Err(AwsError::api(WEB_IDENTITY, identity.provider, &error)),
            }
        }
    }

    /// Assumes `role` with `keys`.
    ///
    /// # Errors
    /// What STS answered.
    pub(crate) async fn assume(
        &self,
        region: &str,
        keys: &Keys,
        role: &Role,
    ) -> Result<Keys, AwsError> {
        let client = self.sts(region, Some(&keys.credentials)).await;
        let sent = client
            .assume_role()
            .role_arn(&role.arn)
            .role_session_name(session(role))
            .set_external_id(role.external_id.clone())
            .set_duration_seconds(role.seconds)
            .send()
            .await;
        let answer = sent.map_err(|error| AwsError::api(ASSUME_ROLE, &keys.provider, &error))?;
        let provider = format!("{}, then the role {}", keys.provider, role.arn);
        Ok(Keys { credentials: credentials(answer.credentials, &provider)?, provider })
    }

    /// The ARN of whom `keys` belong to; `None` where STS does not say.
    pub(crate) async fn caller(&self, region: &str, keys: &Keys) -> Option<String> {
        let client = self.sts(region, Some(&keys.credentials)).await;
        match client.get_caller_identity().send().await {
            Ok(answer) => answer.arn,
            Err(error) => {
                tracing::debug!(error = %ApiFailure::new(&error), "GetCallerIdentity");
                None
            }
        }
    }
}

fn session(role: &Role) -> &str {
    role.session.as_deref().unwrap_or(SESSION)
}

fn is_too_long(error: &AssumeRoleWithWebIdentityError) -> bool {
    let message = error.message().unwrap_or_default();
    error.code().is_some_and(|code| code.starts_with("ValidationError"))
        && (message.contains("DurationSeconds") || message.contains("durationSeconds"))
}

/// The issuer did not give STS its keys in time; the token itself may be good.
fn is_issuer_unreachable(error: &AssumeRoleWithWebIdentityError) -> bool {
    let code = error.code().unwrap_or_default();
    let message = error.message().unwrap_or_default();
    code.starts_with("IDPCommunicationError")
        || code.starts_with("InvalidIdentityToken") && message.contains("verification key")
}

fn credentials(answer: Option<StsCredentials>, provider: &str) -> Result<Credentials, AwsError> {
    let answer = answer.ok_or_else(|| AwsError::Source {
        provider: provider.to_owned(),
        reason: "the answer of STS holds no keys".into(),
        hint: None,
    })?;
    let expiry = answer.expiration.try_into().ok();
    let (id, secret, token) =
        (answer.access_key_id, answer.secret_access_key, answer.session_token);
    Ok(Credentials::new(id, secret, Some(token), expiry, "sts"))
}
