//! What can go wrong on the AWS side, and what to do about it.

use aws_smithy_runtime_api::client::{
    orchestrator::HttpResponse,
    result::{ConnectorError, SdkError},
};
use aws_types::request_id::RequestId;
use bareboat_core::registry::{KeychainError, RegistryError};

use crate::text::printable;

/// Cheap to clone: many requests wait for one answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AwsError {
    #[error("the AWS configuration can't be read: {0}")]
    ConfigFile(String),
    #[error("{0}")]
    Option(String),
    #[error("no AWS keys were found ({tried})")]
    NoSource { tried: String },
    /// A source that is configured and does not work. No other one is asked then.
    #[error("{provider}: {reason}")]
    Source { provider: String, reason: String, hint: Option<String> },
    #[error("{operation} (keys from {provider}): {failure}")]
    Api {
        operation: &'static str,
        action: &'static str,
        provider: String,
        failure: Box<ApiFailure>,
    },
    #[error("the AWS connections can't be set up: {0}")]
    Setup(String),
}

/// What an API answered, or why it did not.
#[derive(Clone, Debug)]
pub struct ApiFailure {
    /// The service's own name for it: `AccessDeniedException`.
    pub code: Option<String>,
    pub message: String,
    pub request_id: Option<String>,
}

impl std::fmt::Display for ApiFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(code) = &self.code {
            write!(f, "{code}: ")?;
        }
        f.write_str(&self.message)?;
        match &self.request_id {
            Some(id) => write!(f, " (request {id})"),
            None => Ok(()),
        }
    }
}

impl ApiFailure {
    /// Code, message and request ID, not the dump that the SDK would print.
    pub(crate) fn new<E>(error: &SdkError<E, HttpResponse>) -> Self
    where
        E: aws_smithy_types::error::metadata::ProvideErrorMetadata + std::error::Error + 'static,
    {
        if let Some(service) = error.as_service_error() {
            let meta = service.meta();
            let status = error.raw_response().map(|response| response.status().as_u16());
            let silent = || format!("status {} without a message", status.unwrap_or_default());
            return ApiFailure {
                code: meta.code().map(|code| printable(code, 100)),
                message: meta.message().map_or_else(silent, |text| printable(text, 600)),
                request_id: error.request_id().map(|id| printable(id, 100)),
            };
        }
        let text = match error {
            SdkError::DispatchFailure(failure) => {
                failure.as_connector_error().map(|error| innermost(error))
            }
            SdkError::TimeoutError(_) => Some("no answer in time".to_owned()),
            _ => None,
        };
        let message = printable(&text.unwrap_or_else(|| innermost(error)), 600);
        ApiFailure { code: None, message, request_id: None }
    }

    /// Whether the code is one of `codes`, with or without the `Exception` that some services append.
    pub(crate) fn is(&self, codes: &[&str]) -> bool {
        let Some(code) = &self.code else { return false };
        let bare =
            |code: &str| code.trim_end_matches("Exception").trim_end_matches("Error").to_owned();
        codes.iter().any(|known| bare(known) == bare(code))
    }

    /// The keys that were used are no good any more.
    pub(crate) fn is_expired(&self) -> bool {
        self.is(&["ExpiredToken", "RequestExpired"])
    }

    pub(crate) fn is_denied(&self) -> bool {
        self.is(&["AccessDenied", "UnauthorizedOperation", "NotAuthorized"])
    }
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    match cause.downcast_ref::<ConnectorError>() {
        Some(_) => "the request could not be made".to_owned(),
        None => cause.to_string(),
    }
}

impl From<RegistryError> for AwsError {
    fn from(error: RegistryError) -> Self {
        AwsError::Setup(error.to_string())
    }
}

impl AwsError {
    /// A failure of the call `action` (its IAM name) of the operation that people know as `operation`.
    pub(crate) fn api<E>(
        (operation, action): (&'static str, &'static str),
        provider: &str,
        error: &SdkError<E, HttpResponse>,
    ) -> Self
    where
        E: aws_smithy_types::error::metadata::ProvideErrorMetadata + std::error::Error + 'static,
    {
        let (provider, failure) = (provider.to_owned(), Box::new(ApiFailure::new(error)));
        AwsError::Api { operation, action, provider, failure }
    }

    pub(crate) fn failure(&self) -> Option<&ApiFailure> {
        match self {
            AwsError::Api { failure, .. } => Some(failure),
            _ => None,
        }
    }

    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            AwsError::NoSource { .. } => Some(NO_SOURCE_HINT.into()),
            AwsError::Source { hint, .. } => hint.clone(),
            AwsError::Api { action, failure, .. } => api_hint(action, failure),
            _ => None,
        }
    }

    pub(crate) fn into_keychain_error(self, registry: &str) -> KeychainError {
        KeychainError {
            registry: registry.to_owned(),
            keychain: "AWS".to_owned(),
            reason: self.to_string(),
            hint: self.hint(),
        }
    }
}

const NO_SOURCE_HINT: &str = "on GitHub give `permissions: id-token: write` and --aws-role-arn, on GitLab id_tokens: \
     AWS_ID_TOKEN and --aws-role-arn; elsewhere AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role of \
     the pod or the machine";

fn api_hint(action: &str, failure: &ApiFailure) -> Option<String> {
    let hint = if failure.is_denied() {
        match action {
            "sts:AssumeRoleWithWebIdentity" => {
                "the role's trust policy must allow sts:AssumeRoleWithWebIdentity to this token's issuer, audience and subject".into()
            }
            "sts:AssumeRole" => {
                "the role's trust policy and the caller's own policy must allow sts:AssumeRole (with the external ID, where the trust policy asks for one: --aws-external-id)".into()
            }
            "ecr-public:GetAuthorizationToken" => {
                "allow ecr-public:GetAuthorizationToken and sts:GetServiceBearerToken on * to the caller".into()
            }
            "ecr:GetAuthorizationToken" => {
                "allow ecr:GetAuthorizationToken on * to the caller".into()
            }
            action => format!("allow {action} to the caller"),
        }
    } else if failure.is_expired() {
        "the keys have expired: exported session keys can't be renewed, let bareboat get its own with --aws-role-arn".into()
    } else if failure.is(&[
        "InvalidClientTokenId",
        "UnrecognizedClient",
        "InvalidSignature",
        "SignatureDoesNotMatch",
    ]) {
        "the keys are not valid: check the access key, its secret and the session token; and this machine's clock".into()
    } else if failure.is(&["InvalidIdentityToken"]) {
        "the account must have an IAM identity provider for the token's issuer, with the token's audience".into()
    } else if failure.is(&["LimitExceeded"]) {
        "a quota of the account is reached: delete what is not needed or ask AWS to raise it".into()
    } else if failure.is(&["RegionDisabled"]) {
        "the region, or STS in it, is not enabled for the account".into()
    } else if failure.code.is_none() {
        "check that this machine reaches the region's AWS API: HTTPS_PROXY, AWS_CA_BUNDLE, VPC endpoints".into()
    } else {
        return None;
    };
    Some(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(code: &str) -> ApiFailure {
        ApiFailure { code: Some(code.into()), message: "no".into(), request_id: None }
    }

    #[test]
    fn codes_are_known_in_both_spellings() {
        assert!(
            failure("AccessDenied").is_denied() && failure("AccessDeniedException").is_denied()
        );
        assert!(failure("ExpiredTokenException").is_expired());
        assert!(!failure("ExpiredTokenX").is_expired());
    }

    #[test]
    fn hints_name_the_action() {
        let hint = |action, code: &str| api_hint(action, &failure(code)).unwrap_or_default();
        assert!(
            hint("ecr:CreateRepository", "AccessDeniedException").contains("ecr:CreateRepository")
        );
        assert!(
            hint("ecr-public:GetAuthorizationToken", "AccessDenied")
                .contains("GetServiceBearerToken")
        );
        assert!(hint("sts:AssumeRole", "AccessDenied").contains("trust policy"));
        assert!(hint("ecr:GetAuthorizationToken", "ExpiredToken").contains("--aws-role-arn"));
        let unreachable = ApiFailure { code: None, message: "x".into(), request_id: None };
        assert!(api_hint("ecr:X", &unreachable).unwrap().contains("HTTPS_PROXY"));
    }
}
