//! ECR Public's one call: JSON 1.1, signed (SigV4), in us-east-1.

use std::time::SystemTime;

use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4,
};
use aws_smithy_runtime_api::client::identity::Identity as SmithyIdentity;
use reqwest::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use serde::Deserialize;
use url::Url;

use crate::{
    context::Context,
    error::{ApiFailure, AwsError},
    host::PUBLIC_REGION,
    keys::Keys,
    text::printable,
};

const ENDPOINT: &str = "https://api.ecr-public.us-east-1.amazonaws.com/";
const SIGNING_NAME: &str = "ecr-public";
const TARGET: &str = "SpencerFrontendService.GetAuthorizationToken";
const JSON: &str = "application/x-amz-json-1.1";
const OPERATION: (&str, &str) =
    ("GetAuthorizationToken of ECR Public", "ecr-public:GetAuthorizationToken");

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    authorization_data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    authorization_token: String,
    /// Seconds since 1970.
    expires_at: Option<f64>,
}

#[derive(Deserialize, Default)]
struct Refused {
    #[serde(rename = "__type")]
    code: Option<String>,
    #[serde(alias = "Message")]
    message: Option<String>,
}

/// The token as base64 of `user:password`, and when it ends.
pub(crate) async fn authorization(
    context: &Context,
    keys: &Keys,
) -> Result<(String, Option<SystemTime>), AwsError> {
    let failed = |failure| {
        let (operation, action) = OPERATION;
        let (provider, failure) = (keys.provider.clone(), Box::new(failure));
        AwsError::Api { operation, action, provider, failure }
    };
    let silent = |message: String| failed(ApiFailure { code: None, message, request_id: None });
    let mut tries = 0;
    loop {
        tries += 1;
        let request = request(context, keys).map_err(silent)?;
        let sent = context.http.fetch(request, context.pace.connect, context.pace.attempt).await;
        let failure = match sent {
            Ok((200, body)) => return read(&body).ok_or_else(|| silent(NO_TOKEN.into())),
            Ok((status, body)) => {
                let failure = refusal(status, &body);
                if status < 500 && !failure.is(&["Throttling", "TooManyRequests"]) {
                    return Err(failed(failure));
                }
                failure
            }
            Err(message) => ApiFailure { code: None, message, request_id: None },
        };
        if tries >= context.pace.tries {
            return Err(failed(failure));
        }
        context.back_off(tries).await;
    }
}

const NO_TOKEN: &str = "the answer holds no token";

fn read(body: &[u8]) -> Option<(String, Option<SystemTime>)> {
    let data = serde_json::from_slice::<Answer>(body).ok()?.authorization_data?;
    let end = data.expires_at.filter(|end| (0.0..1e11).contains(end));
    let end = end.map(|end| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs_f64(end));
    Some((data.authorization_token, end))
}

fn refusal(status: u16, body: &[u8]) -> ApiFailure {
    let refused: Refused = serde_json::from_slice(body).unwrap_or_default();
    let code = refused.code.map(|code| code.rsplit('#').next().unwrap_or_default().to_owned());
    let message = refused.message.unwrap_or_else(|| format!("status {status} without a message"));
    ApiFailure {
        code: code.map(|code| printable(&code, 100)),
        message: printable(&message, 600),
        request_id: None,
    }
}

/// The address: the environment may name another one, as for the SDK's services.
fn endpoint(context: &Context) -> Result<Url, String> {
    let variables = &context.files.variables;
    let ignored = variables.is_true("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS");
    let named = ["AWS_ENDPOINT_URL_ECR_PUBLIC", "AWS_ENDPOINT_URL"];
    let named = named.iter().find_map(|name| variables.get(name)).filter(|_| !ignored);
    Url::parse(named.unwrap_or(ENDPOINT)).map_err(|_| "its endpoint is no URL".to_owned())
}

fn request(context: &Context, keys: &Keys) -> Result<reqwest::Request, String> {
    let url = endpoint(context)?;
    let body = b"{}";
    let target = HeaderName::from_static("x-amz-target");
    let identity: SmithyIdentity = keys.credentials.clone().into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(PUBLIC_REGION)
        .name(SIGNING_NAME)
        .time(SystemTime::now())
        .settings(SigningSettings::default())
        .build()
        .map_err(|error| error.to_string())?
        .into();
    let signed = [(CONTENT_TYPE.as_str(), JSON), (target.as_str(), TARGET)];
    let signable =
        SignableRequest::new("POST", url.as_str(), signed.into_iter(), SignableBody::Bytes(body));
    let signable = signable.map_err(|error| error.to_string())?;
    let (instructions, _) =
        sign(signable, &params).map_err(|error| error.to_string())?.into_parts();
    let mut request = reqwest::Request::new(reqwest::Method::POST, url);
    let (signature, _) = instructions.into_parts();
    for header in signature {
        let mut value = HeaderValue::from_str(header.value()).map_err(|error| error.to_string())?;
        value.set_sensitive(true);
        request.headers_mut().insert(HeaderName::from_static(header.name()), value);
    }
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    request.headers_mut().insert(target, HeaderValue::from_static(TARGET));
    *request.body_mut() = Some(body.to_vec().into());
    Ok(request)
}
