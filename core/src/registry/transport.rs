//! Requests: one policy for tries, redirects, plain http and what is refused.

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use reqwest::{
    Method, Response, StatusCode,
    header::{CONTENT_LENGTH, HeaderMap, LOCATION},
};
use url::Url;

use super::{
    auth::{Access, Ticket},
    client::Shared,
    connect::transport_error,
    error::{ConnectFailure, Refusal, RefusalKind, RegistryError},
    host::{Host, shown},
    options::Limits,
    retry,
};

/// Where a request goes.
pub(crate) enum Target {
    /// A path (and query) below the registry's `/v2/`.
    Path(String),
    /// An address that the registry gave.
    Url(Url),
}

/// What a request carries; it must be possible to send it again.
pub(crate) enum Payload<'a> {
    Empty,
    Bytes(Bytes),
    Stream { bytes: u64, open: &'a (dyn Fn() -> reqwest::Body + Send + Sync) },
}

pub(crate) struct Call<'a> {
    pub(crate) host: &'a Host,
    pub(crate) method: Method,
    pub(crate) target: Target,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Payload<'a>,
    pub(crate) access: Access,
    pub(crate) response_timeout: Duration,
    pub(crate) tries: u32,
    /// Instead of `tries` where the registry throttles: nothing has happened then, only this request need be sent again.
    pub(crate) throttled_tries: u32,
}

/// An answer in 2xx, its body not read yet.
pub(crate) struct Answer {
    pub(crate) response: Response,
    /// Where it came from, after redirects.
    pub(crate) url: Url,
}

impl Answer {
    pub(crate) fn header(&self, name: impl reqwest::header::AsHeaderName) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// The length that the answer's head gives.
    pub(crate) fn content_length(&self) -> Option<u64> {
        self.header(CONTENT_LENGTH)?.parse().ok()
    }
}

/// An exchange that ended in an answer of any status.
struct Hop {
    response: Response,
    url: Url,
    ticket: Option<Ticket>,
    own: bool,
}

impl Shared {
    /// Sends `call`, again where that may help.
    pub(crate) async fn send(&self, call: &Call<'_>) -> Result<Answer, RegistryError> {
        let mut failed = 0;
        loop {
            let error = match self.exchange(call).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            failed += 1;
            let tries = self.tries(call, &error);
            self.pause(&call.host.name, failed, tries, error).await?;
        }
    }

    /// How often `call` is sent, after `error`.
    fn tries(&self, call: &Call<'_>, error: &RegistryError) -> u32 {
        match error {
            // The kernel has tried for long.
            RegistryError::Connect { failure: ConnectFailure::TimedOut, .. }
                if !call.host.has_answered() =>
            {
                1
            }
            RegistryError::Connect { .. } if !call.host.has_answered() => {
                call.tries.min(self.limits().first_tries)
            }
            error if error.kind() == Some(RefusalKind::TooManyRequests) => call.throttled_tries,
            _ => call.tries,
        }
    }

    /// Waits before the next try after `error`.
    ///
    /// # Errors
    /// Gives `error` back when there is no next try.
    pub(crate) async fn pause(
        &self,
        registry: &str,
        failed: u32,
        tries: u32,
        error: RegistryError,
    ) -> Result<(), RegistryError> {
        if !error.retryable() || failed >= tries {
            return Err(error);
        }
        let asked = error.retry_after(jiff::Timestamp::now());
        let limit = self.limits().retry_after_max;
        if let Some(asked) = asked.filter(|asked| *asked > limit) {
            return Err(RegistryError::RetryTooLate {
                registry: registry.to_owned(),
                asked,
                limit,
            });
        }
        let delay = retry::delay(self.limits(), failed, asked);
        tracing::warn!(%error, failed, delay_ms = delay.as_millis() as u64, "trying again");
        self.http.retries.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(delay).await;
        Ok(())
    }

    /// One exchange, with the round that gets a credential or a fresh one.
    async fn exchange(&self, call: &Call<'_>) -> Result<Answer, RegistryError> {
        let mut renewed = false;
        loop {
            let hop = self.follow(call).await?;
            let status = hop.response.status();
            if status.is_success() {
                return Ok(Answer { response: hop.response, url: hop.url });
            }
            let own = hop.own;
            let (refusal, ticket) = self.refusal(call, hop).await?;
            // A challenge from where the registry sent us is not answered: it is not the registry's.
            if own && self.may_renew(call, &refusal, ticket.as_ref(), renewed).await? {
                renewed = ticket.is_some();
                continue;
            }
            return Err(RegistryError::Refused(Box::new(refusal)));
        }
    }

    async fn may_renew(
        &self,
        call: &Call<'_>,
        refusal: &Refusal,
        ticket: Option<&Ticket>,
        renewed: bool,
    ) -> Result<bool, RegistryError> {
        match refusal.status {
            StatusCode::UNAUTHORIZED if !renewed => {
                self.answer_challenge(call.host, &refusal.headers, ticket, &call.access).await
            }
            StatusCode::FORBIDDEN if refusal.kind == RefusalKind::Expired => {
                match ticket.filter(|_| !renewed) {
                    Some(ticket) => self.renew(call.host, ticket, &call.access).await,
                    None => Ok(false),
                }
            }
            _ => Ok(false),
        }
    }

    /// Reads what came with an answer outside 2xx.
    async fn refusal(
        &self,
        call: &Call<'_>,
        hop: Hop,
    ) -> Result<(Refusal, Option<Ticket>), RegistryError> {
        let (status, headers) = (hop.response.status(), hop.response.headers().clone());
        let url = shown(&hop.url);
        // A body that can't be read does not hide the status.
        let limits = self.limits();
        let body = read_some(hop.response, limits.error_bytes_max, limits.response_timeout).await;
        tracing::debug!(method = %call.method, %url, %status, "refused");
        let mut refusal = Refusal::new(call.method.clone(), url, status, headers, &body);
        refusal.credential = hop.ticket.as_ref().and_then(|ticket| ticket.source.clone());
        Ok((refusal, hop.ticket))
    }

    /// Follows redirects, with the registry's credential on its own origin only.
    async fn follow(&self, call: &Call<'_>) -> Result<Hop, RegistryError> {
        let mut url = match &call.target {
            Target::Path(path) => v2(call.host.base(), path)?,
            Target::Url(url) => url.clone(),
        };
        let mut from = shown(&url);
        for _ in 0..=self.limits().redirects_max {
            let hop = self.hop(call, url, &from).await?;
            let status = hop.response.status();
            if !status.is_redirection() || status == StatusCode::NOT_MODIFIED {
                return Ok(hop);
            }
            from = shown(&hop.url);
            url = redirect_target(call, &hop)?;
            tracing::debug!(from, to = shown(&url), "redirected");
        }
        Err(RegistryError::Redirects { url: from, limit: self.limits().redirects_max })
    }

    async fn hop(&self, call: &Call<'_>, url: Url, from: &str) -> Result<Hop, RegistryError> {
        let own = call.host.owns(&url);
        let ticket = if own { self.ticket(call.host, &call.access).await? } else { None };
        let client = self.http.client_for(call.host, &url).map_err(|reason| {
            RegistryError::Redirect { url: from.to_owned(), target: shown(&url), reason }
        })?;
        if !own || !call.host.may_try_plain() {
            let response = self.wire(client, call, &url, ticket.as_ref()).await?;
            if own {
                call.host.note_answer();
                self.http.note_peer(call.host, &url, response.remote_addr());
            }
            return Ok(Hop { response, url, ticket, own });
        }
        let (response, url) = self.wire_undecided(client, call, url, ticket.as_ref()).await?;
        call.host.note_answer();
        self.http.note_peer(call.host, &url, response.remote_addr());
        Ok(Hop { response, url, ticket, own })
    }

    /// TLS first; plain http where the answer is not TLS.
    async fn wire_undecided(
        &self,
        client: &reqwest::Client,
        call: &Call<'_>,
        url: Url,
        ticket: Option<&Ticket>,
    ) -> Result<(Response, Url), RegistryError> {
        let error = match self.wire(client, call, &url, ticket).await {
            Ok(response) => {
                call.host.decide(false);
                return Ok((response, url));
            }
            Err(error) => error,
        };
        if !speaks_no_tls(&error, call.host.has_port()) {
            return Err(error);
        }
        let mut plain = url;
        // From https to http is always possible.
        let _ = plain.set_scheme("http");
        let response = self.wire(client, call, &plain, None).await?;
        tracing::debug!(registry = call.host.name, "speaks plain http");
        call.host.decide(true);
        Ok((response, plain))
    }

    /// Puts one request on the wire and waits for the answer's head.
    async fn wire(
        &self,
        client: &reqwest::Client,
        call: &Call<'_>,
        url: &Url,
        ticket: Option<&Ticket>,
    ) -> Result<Response, RegistryError> {
        let mut headers = call.headers.clone();
        if let Some(ticket) = ticket {
            ticket.apply(call.host, url, &mut headers);
        }
        let mut request = client.request(call.method.clone(), url.clone());
        let mut limit = Some(call.response_timeout);
        match &call.payload {
            Payload::Empty if matches!(call.method, Method::POST | Method::PUT) => {
                request = request.header(CONTENT_LENGTH, 0);
            }
            Payload::Empty => {}
            Payload::Bytes(bytes) => request = request.body(bytes.clone()),
            Payload::Stream { bytes, open } => {
                // With the length given, the body is not sent in chunks, which some registries refuse.
                request = request.header(CONTENT_LENGTH, *bytes).body(open());
                // The upload has its own watch.
                limit = None;
            }
        }
        tracing::debug!(method = %call.method, url = shown(url), "request");
        let result = execute(request.headers(headers), url, limit).await;
        if !matches!(result, Err(RegistryError::Connect { .. })) {
            self.http.requests.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}

/// Sends `request` and waits for the head of its answer.
pub(crate) async fn execute(
    request: reqwest::RequestBuilder,
    url: &Url,
    limit: Option<Duration>,
) -> Result<Response, RegistryError> {
    let sent = request.send();
    let result = match limit {
        Some(limit) => tokio::time::timeout(limit, sent)
            .await
            .map_err(|_| RegistryError::TimedOut { url: shown(url), what: "the answer", limit })?,
        None => sent.await,
    };
    result.map_err(|error| transport_error(&error, url))
}

/// `/v2/` and `path` below `base`.
fn v2(base: &Url, path: &str) -> Result<Url, RegistryError> {
    base.join(&format!("/v2/{path}")).map_err(|error| RegistryError::Answer {
        url: shown(base),
        reason: format!("{path:?} is no path: {error}"),
    })
}

fn redirect_target(call: &Call<'_>, hop: &Hop) -> Result<Url, RegistryError> {
    let status = hop.response.status();
    let wrong = |target: &str, reason| RegistryError::Redirect {
        url: shown(&hop.url),
        target: super::error::printable(target, 200),
        reason,
    };
    let location = hop.response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let Some(location) = location else { return Err(wrong("nowhere", "there is no Location")) };
    let keeps_method = matches!(status.as_u16(), 307 | 308);
    if !keeps_method && !matches!(call.method, Method::GET | Method::HEAD) {
        return Err(wrong("another place", "the request would lose its method"));
    }
    let mut url = hop.url.join(location).map_err(|_| wrong("no URL", "it can't be read"))?;
    url.set_fragment(None);
    Ok(url)
}

/// Reads at most `max` bytes; what can't be read is left out.
async fn read_some(mut response: Response, max: u64, limit: Duration) -> Vec<u8> {
    let mut body = Vec::new();
    let _ = tokio::time::timeout(limit, async {
        while let Ok(Some(chunk)) = response.chunk().await {
            let room = (max as usize).saturating_sub(body.len());
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if chunk.len() >= room {
                break;
            }
        }
    })
    .await;
    body
}

/// Reads a whole document of at most `max` bytes.
pub(crate) async fn read_all(
    mut response: Response,
    url: &Url,
    max: u64,
    limits: &Limits,
) -> Result<Bytes, RegistryError> {
    let too_large = || RegistryError::TooLarge { what: shown(url), limit: max };
    if response.content_length().is_some_and(|length| length > max) {
        return Err(too_large());
    }
    let read = async {
        let mut body = Vec::new();
        while let Some(chunk) =
            response.chunk().await.map_err(|error| transport_error(&error, url))?
        {
            if (body.len() + chunk.len()) as u64 > max {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Bytes::from(body))
    };
    let limit = limits.document_timeout;
    tokio::time::timeout(limit, read).await.map_err(|_| RegistryError::TimedOut {
        url: shown(url),
        what: "the document",
        limit,
    })?
}

/// Whether `error` is what a server without TLS causes. A wrong certificate is none of that.
fn speaks_no_tls(error: &RegistryError, has_port: bool) -> bool {
    match error {
        RegistryError::Connect { failure, .. } => match failure {
            ConnectFailure::NotTls | ConnectFailure::HandshakeCut => true,
            // Nobody listens on 443: without a written port, 80 is the other place to look.
            // A proxy for http may know the name.
            ConnectFailure::Network | ConnectFailure::NoSuchHost | ConnectFailure::TimedOut => {
                !has_port
            }
            ConnectFailure::Certificate | ConnectFailure::ClientCertificate => false,
        },
        _ => false,
    }
}
