//! Token endpoints: Docker's GET and OAuth 2's POST (distribution, docs/spec/auth/token.md and oauth.md).

use std::time::{Duration, Instant};

use reqwest::{
    Method, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use serde::Deserialize;
use url::{Url, form_urlencoded};

use super::{
    Access, basic,
    keychain::{Credential, CredentialKind},
};
use crate::{
    registry::{
        client::Shared,
        error::{Refusal, RegistryError, printable},
        host::{Host, shown},
        transport::{execute, read_all},
    },
    secret::Secret,
};

const CLIENT_ID: &str = "bareboat";
/// ECR's are some kilobytes.
const ANSWER_BYTES_MAX: u64 = 256 << 10;
/// What the specification says where `expires_in` is absent.
const LIFE_DEFAULT: u64 = 60;
const LIFE_MAX: u64 = 24 * 3600;

pub(super) struct TokenRequest<'a> {
    pub(super) host: &'a Host,
    pub(super) realm: &'a Url,
    pub(super) service: Option<&'a str>,
    pub(super) scopes: Vec<String>,
}

pub(super) struct Fetched {
    pub(super) value: Secret<String>,
    pub(super) renew_at: Instant,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
    refresh_token: Option<String>,
}

/// How a token is asked for.
enum Grant<'a> {
    Get(Option<(&'a str, &'a Secret<String>)>),
    Password(&'a str, &'a Secret<String>),
    Refresh(&'a Secret<String>),
}

impl Shared {
    /// Gets a token, with another credential of the keychain if the first is refused. The endpoint's errors are the
    /// caller's: a configured credential that does not work never becomes "anonymous".
    pub(super) async fn fetch_token(
        &self,
        request: &TokenRequest<'_>,
        access: &Access,
        mut credential: Option<Credential>,
    ) -> Result<(Fetched, Option<Credential>), RegistryError> {
        let mut replaced = false;
        loop {
            let error = match self.token_for(request, access, credential.as_ref()).await {
                Ok(token) => return Ok((token, credential)),
                Err(error) => error,
            };
            let refused = error.status() == Some(StatusCode::UNAUTHORIZED);
            if let Some(used) = credential.as_ref().filter(|_| refused && !replaced)
                && self.keychain.refused(&request.host.name, used).await
            {
                replaced = true;
                request.host.auth.state().credentials.remove(&access.repository);
                credential = self.credential(request.host, &access.repository).await?;
                continue;
            }
            let registry = request.host.name.clone();
            return Err(RegistryError::Token { registry, error: Box::new(error) });
        }
    }

    async fn token_for(
        &self,
        request: &TokenRequest<'_>,
        access: &Access,
        credential: Option<&Credential>,
    ) -> Result<Fetched, RegistryError> {
        match credential.map(|credential| &credential.kind) {
            Some(CredentialKind::IdentityToken(token)) => {
                let (fetched, next) = self.ask(request, credential, &Grant::Refresh(token)).await?;
                if let Some(next) = next {
                    keep_identity(request.host, access, token, next);
                }
                Ok(fetched)
            }
            Some(CredentialKind::Password { username, password }) => {
                let get = Grant::Get(Some((username, password)));
                match self.ask(request, credential, &get).await {
                    Err(error) if wants_post(&error) => {
                        let post = Grant::Password(username, password);
                        Ok(self.ask(request, credential, &post).await?.0)
                    }
                    other => Ok(other?.0),
                }
            }
            _ => Ok(self.ask(request, credential, &Grant::Get(None)).await?.0),
        }
    }

    /// Asks, again where that may help.
    async fn ask(
        &self,
        request: &TokenRequest<'_>,
        credential: Option<&Credential>,
        grant: &Grant<'_>,
    ) -> Result<(Fetched, Option<Secret<String>>), RegistryError> {
        let mut failed = 0;
        loop {
            let error = match self.ask_once(request, credential, grant).await {
                Ok(token) => return Ok(token),
                Err(error) => error,
            };
            failed += 1;
            self.pause(&request.host.name, failed, self.limits().tries, error).await?;
        }
    }

    async fn ask_once(
        &self,
        request: &TokenRequest<'_>,
        credential: Option<&Credential>,
        grant: &Grant<'_>,
    ) -> Result<(Fetched, Option<Secret<String>>), RegistryError> {
        let source = credential.map(|credential| credential.source.as_str());
        let (method, url, headers, body) = request.parts(grant, source.unwrap_or_default())?;
        let refuse = |reason| RegistryError::Redirect {
            url: request.host.name.clone(),
            target: shown(&url),
            reason,
        };
        let client = self.http.client_for(request.host, &url).map_err(refuse)?;
        tracing::debug!(%method, url = shown(&url), scopes = ?request.scopes, "token request");
        self.http.requests.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let asked_at = Instant::now();
        let sent = client.request(method.clone(), url.clone()).headers(headers).body(body);
        let response = execute(sent, &url, Some(self.limits().response_timeout)).await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let max =
            if status.is_success() { ANSWER_BYTES_MAX } else { self.limits().error_bytes_max };
        let body = read_all(response, &url, max, self.limits()).await;
        if !status.is_success() {
            let body = body.unwrap_or_default();
            let mut refusal = Refusal::new(method, shown(&url), status, headers, &body);
            refusal.credential = source.map(str::to_owned);
            return Err(RegistryError::Refused(Box::new(refusal)));
        }
        read_answer(&body?, &url, asked_at)
    }
}

impl TokenRequest<'_> {
    fn parts(
        &self,
        grant: &Grant<'_>,
        source: &str,
    ) -> Result<(Method, Url, HeaderMap, String), RegistryError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let mut url = self.realm.clone();
        if let Grant::Get(pair) = grant {
            let mut query = url.query_pairs_mut();
            query.extend_pairs(self.service.map(|service| ("service", service)));
            query.extend_pairs(self.scopes.iter().map(|scope| ("scope", scope)));
            drop(query);
            if let Some((username, password)) = pair {
                headers.insert(AUTHORIZATION, basic(self.host, source, username, password)?);
            }
            return Ok((Method::GET, url, headers, String::new()));
        }
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        headers.insert(CONTENT_TYPE, form);
        Ok((Method::POST, url, headers, self.form(grant)))
    }

    fn form(&self, grant: &Grant<'_>) -> String {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("client_id", CLIENT_ID);
        form.append_pair("service", self.service.unwrap_or_default());
        form.append_pair("scope", &self.scopes.join(" "));
        match grant {
            Grant::Refresh(token) => {
                form.append_pair("grant_type", "refresh_token");
                form.append_pair("refresh_token", token.expose());
            }
            Grant::Password(username, password) => {
                form.append_pair("grant_type", "password");
                form.append_pair("username", username);
                form.append_pair("password", password.expose());
            }
            Grant::Get(_) => {}
        }
        form.finish()
    }
}

/// Some endpoints know only OAuth 2's form.
fn wants_post(error: &RegistryError) -> bool {
    matches!(error.status(), Some(StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED))
}

/// A new refresh token takes the place of the one that was used.
fn keep_identity(host: &Host, access: &Access, used: &Secret<String>, next: Secret<String>) {
    let mut state = host.auth.state();
    if let Some(Some(known)) = state.credentials.get_mut(&access.repository)
        && known.kind == CredentialKind::IdentityToken(used.clone())
    {
        known.kind = CredentialKind::IdentityToken(next);
    }
}

fn read_answer(
    body: &[u8],
    url: &Url,
    asked_at: Instant,
) -> Result<(Fetched, Option<Secret<String>>), RegistryError> {
    let wrong = |reason: &str| RegistryError::Answer {
        url: shown(url),
        reason: format!("the token endpoint's answer can't be used: {reason}"),
    };
    // serde_json's messages name positions and types, not the values of strings that are fine.
    let answer: TokenAnswer = serde_json::from_slice(body)
        .map_err(|error| wrong(&printable(&format!("line {}", error.line()), 60)))?;
    let value = answer.token.filter(|token| !token.is_empty()).or(answer.access_token);
    let value = value.filter(|token| !token.is_empty()).ok_or_else(|| wrong("no token in it"))?;
    if !value.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong("the token holds other than visible ASCII characters"));
    }
    let renew_at = asked_at + useful_life(answer.expires_in);
    let next = answer.refresh_token.filter(|token| !token.is_empty()).map(Secret::new);
    Ok((Fetched { value: Secret::new(value), renew_at }, next))
}

/// To 80 % of the life or 10 seconds before its end, but at least half of it.
fn useful_life(expires_in: Option<u64>) -> Duration {
    let seconds = expires_in.filter(|seconds| *seconds > 0).unwrap_or(LIFE_DEFAULT).min(LIFE_MAX);
    let life = Duration::from_secs(seconds);
    (life * 4 / 5).min(life.saturating_sub(Duration::from_secs(10))).max(life / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<String, String> {
        let url = Url::parse("https://auth.example/token?secret=1").unwrap();
        match read_answer(body.as_bytes(), &url, Instant::now()) {
            Ok((fetched, _)) => Ok(fetched.value.expose().clone()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn answers() {
        assert_eq!(read(r#"{"token":"a","access_token":"b"}"#).unwrap(), "a");
        assert_eq!(read(r#"{"token":"","access_token":"b"}"#).unwrap(), "b");
        for bad in ["", "<html>", "{}", r#"{"token":5}"#, r#"{"token":"a\nb"}"#, r#"{"token":"ä"}"#]
        {
            let error = read(bad).unwrap_err();
            assert!(error.contains("auth.example") && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn lives() {
        for (expires_in, useful) in
            [(None, 48), (Some(0), 48), (Some(300), 240), (Some(20), 10), (Some(4), 2)]
        {
            assert_eq!(useful_life(expires_in), Duration::from_secs(useful), "{expires_in:?}");
        }
        assert!(useful_life(Some(u64::MAX)) <= Duration::from_secs(LIFE_MAX));
    }
}
