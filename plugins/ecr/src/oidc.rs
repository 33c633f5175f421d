//! GitHub Actions' ID tokens: a request to an address that the job is given, with a token that the job is given.

use std::net::IpAddr;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue};
use serde::Deserialize;
use url::Url;

use crate::{context::Context, error::AwsError, source::Bearer, text::printable};

const PROVIDER: &str = "GitHub's OIDC token";

#[derive(Deserialize)]
struct Answer {
    value: String,
}

impl Context {
    /// Gets an ID token for `audience`.
    ///
    /// # Errors
    /// The endpoint refuses, can't be reached after all tries, or is none that a token may be sent to.
    pub(crate) async fn github_token(
        &self,
        url: &str,
        bearer: &Bearer,
        audience: &str,
    ) -> Result<Bearer, AwsError> {
        let url = request_url(url, audience).map_err(|reason| failed(reason, None))?;
        let mut authorization = HeaderValue::try_from(format!("Bearer {}", bearer.0))
            .map_err(|_| failed("its request token can't be sent as a header".into(), None))?;
        authorization.set_sensitive(true);
        let mut tries = 0;
        loop {
            tries += 1;
            let mut request = reqwest::Request::new(reqwest::Method::GET, url.clone());
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
            let accept = HeaderValue::from_static("application/json; api-version=2.0");
            request.headers_mut().insert(ACCEPT, accept);
            let reason = match self.http.fetch(request, self.pace.connect, self.pace.attempt).await
            {
                Ok((200, body)) => return read(&body),
                Ok((status, body)) if status < 500 && status != 429 => {
                    return Err(failed(refusal(status, &body), Some(HINT)));
                }
                Ok((status, body)) => refusal(status, &body),
                Err(reason) => reason,
            };
            if tries >= self.pace.tries {
                return Err(failed(reason, None));
            }
            self.back_off(tries).await;
        }
    }
}

const HINT: &str = "the job needs `permissions: id-token: write`, and its token ends with the job";

fn refusal(status: u16, body: &[u8]) -> String {
    let text = printable(&String::from_utf8_lossy(body), 200);
    format!("the endpoint of ACTIONS_ID_TOKEN_REQUEST_URL answered {status}: {text}")
}

fn read(body: &[u8]) -> Result<Bearer, AwsError> {
    match serde_json::from_slice::<Answer>(body) {
        Ok(answer) if !answer.value.trim().is_empty() => Ok(Bearer(answer.value.trim().to_owned())),
        _ => Err(failed("the endpoint's answer holds no token".into(), None)),
    }
}

/// Adds the audience to the query that is there.
fn request_url(text: &str, audience: &str) -> Result<Url, String> {
    let mut url =
        Url::parse(text).map_err(|_| "ACTIONS_ID_TOKEN_REQUEST_URL is not a URL".to_owned())?;
    if url.scheme() != "https" && !(url.scheme() == "http" && is_loopback(&url)) {
        return Err("ACTIONS_ID_TOKEN_REQUEST_URL is neither https nor on this machine".into());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("ACTIONS_ID_TOKEN_REQUEST_URL holds a user name".into());
    }
    let others: Vec<(String, String)> = url
        .query_pairs()
        .filter(|(name, _)| name != "audience")
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    url.query_pairs_mut().clear().extend_pairs(others).append_pair("audience", audience);
    Ok(url)
}

/// By the name as written.
pub(crate) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn failed(reason: String, hint: Option<&str>) -> AwsError {
    let hint = hint.map(str::to_owned);
    AwsError::Source { provider: PROVIDER.into(), reason, hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_audience_joins_the_query() {
        let url = request_url(
            "https://x.example/token?api-version=2.0&audience=old",
            "sts.amazonaws.com",
        );
        assert_eq!(url.unwrap().query(), Some("api-version=2.0&audience=sts.amazonaws.com"));
        let url = request_url("http://127.0.0.1:80/token", "a b").unwrap();
        assert_eq!(url.query(), Some("audience=a+b"));
    }

    #[test]
    fn the_token_goes_to_no_other_place() {
        for bad in [
            "http://evil.example/",
            "ftp://127.0.0.1/",
            "x",
            "https://user:pw@x.example/",
            "http://127.0.0.1.evil.example/",
        ] {
            assert!(request_url(bad, "a").is_err(), "{bad}");
        }
    }
}
