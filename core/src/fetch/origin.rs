//! The place that the user named: its credential, and how far inside it may send us.

use std::net::IpAddr;

use base64::{Engine, engine::general_purpose::STANDARD};
use percent_encoding::percent_decode_str;
use reqwest::header::HeaderValue;
use url::Url;

use super::{SecretLookup, error::FetchError, without_password};
use crate::{
    registry::{Reach, same_origin},
    secret::Secret,
};

pub(super) struct Origin {
    /// Without user name, password and fragment.
    pub(super) url: Url,
    /// Sent to this origin only.
    pub(super) authorization: Option<HeaderValue>,
    /// The innermost place that it answered from.
    reach: Reach,
}

impl Origin {
    /// The origin of a URL in a Dockerfile. The secrets `HTTP_AUTH_TOKEN_host` and `HTTP_AUTH_HEADER_host` go before a
    /// password in the URL, and the former before the latter.
    pub(super) fn of_url(text: &str, secrets: &SecretLookup<'_>) -> Result<Self, FetchError> {
        let url = parse(text)?;
        let decode = |text: &str| percent_decode_str(text).collect::<Vec<u8>>();
        let password = url.password();
        let login = (password.is_some() || !url.username().is_empty())
            .then(|| basic(&decode(url.username()), &decode(password.unwrap_or_default())));
        let mut origin = Origin::new(url, None);
        let secret = secret_header(origin.url.host_str().unwrap_or_default(), secrets);
        origin.authorization = match secret {
            Some((id, value)) => Some(header_value(&value).ok_or(FetchError::Credential(id))?),
            None => login.as_ref().and_then(header_value),
        };
        Ok(origin)
    }

    pub(super) fn new(mut url: Url, authorization: Option<HeaderValue>) -> Self {
        // These can't fail for http and https.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        url.set_fragment(None);
        let literal = url.host_str().and_then(|host| host.trim_matches(['[', ']']).parse().ok());
        let reach = literal.map_or(Reach::Public, limited);
        Origin { url, authorization, reach }
    }

    pub(super) fn owns(&self, url: &Url) -> bool {
        same_origin(&self.url, url)
    }

    pub(super) fn reach(&self) -> Reach {
        self.reach
    }

    pub(super) fn answered_from(&mut self, address: IpAddr) {
        self.reach = self.reach.max(limited(address));
    }
}

/// A host on a link-local address may not send us to other ones.
fn limited(address: IpAddr) -> Reach {
    Reach::of(address).min(Reach::Loopback)
}

/// An http(s) URL as it stands in a Dockerfile.
pub(super) fn parse(text: &str) -> Result<Url, FetchError> {
    let wrong = |reason: &str| FetchError::Url {
        url: without_password(text).chars().take(400).collect(),
        reason: reason.to_owned(),
    };
    // A URL parser would leave some of these out in silence.
    if text.bytes().any(|byte| byte.is_ascii_control()) {
        return Err(wrong("it holds control characters"));
    }
    let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("only http and https are supported"));
    }
    Ok(url)
}

/// The value of an `Authorization` header from the secrets for `host`, with the id of the secret.
fn secret_header(host: &str, secrets: &SecretLookup<'_>) -> Option<(String, Secret<Vec<u8>>)> {
    let host = host.trim_matches(['[', ']']);
    let token = format!("HTTP_AUTH_TOKEN_{host}");
    if let Some(value) = secrets(&token) {
        let value = [b"Bearer ", trimmed(&value)].concat();
        return Some((token, Secret::new(value)));
    }
    let header = format!("HTTP_AUTH_HEADER_{host}");
    let value = secrets(&header)?;
    let value = trimmed(&value).to_vec();
    Some((header, Secret::new(value)))
}

/// Without the line end that files have.
pub(super) fn trimmed(secret: &Secret<Vec<u8>>) -> &[u8] {
    secret.expose().trim_ascii_end()
}

/// HTTP's Basic scheme (RFC 7617).
pub(super) fn basic(user: &[u8], password: &[u8]) -> Secret<Vec<u8>> {
    let login = STANDARD.encode([user, b":", password].concat());
    Secret::new(format!("Basic {login}").into_bytes())
}

/// `value` as a header that is not shown, where it can be one.
pub(super) fn header_value(value: &Secret<Vec<u8>>) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_bytes(value.expose()).ok()?;
    value.set_sensitive(true);
    Some(value)
}
