//! Files by URL: one GET, redirects followed by our rules, tried again and resumed where that is safe.

use std::{
    fmt,
    fs::File,
    io::SeekFrom,
    sync::Arc,
    time::{Duration, Instant},
};

use reqwest::{
    StatusCode,
    header::{
        ACCEPT_ENCODING, AUTHORIZATION, ETAG, HeaderMap, HeaderValue, IF_RANGE, LAST_MODIFIED,
        LOCATION, RANGE,
    },
};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use url::Url;

use super::{
    SecretLookup,
    error::FetchError,
    name::{file_name, last_modified},
    origin::{self, Origin},
};
use crate::{
    digest::Digest,
    registry::{
        Answer, Body, ClientOptions, Http, Limits, Proxies, check_range, execute, printable, retry,
        shown,
    },
    tree::Timestamp,
};

/// As Go's client, so as BuildKit.
const REDIRECTS_MAX: u32 = 10;
/// More than any file that belongs into an image.
const BYTES_MAX: u64 = 10 << 30;
/// For one file with all tries: `BYTES_MAX` at half a megabyte a second.
const DOWNLOAD_TIME_MAX: Duration = Duration::from_secs(6 * 60 * 60);
/// A connection that brought more than this before it was cut does not count against the tries.
const PROGRESS_BYTES: u64 = 1 << 20;

/// A file to fetch.
#[derive(Clone, Copy)]
pub struct HttpRequest<'a> {
    /// As it stands in the Dockerfile, variables expanded.
    pub url: &'a str,
    /// What the bytes must be.
    pub checksum: Option<Digest>,
    /// Asked for `HTTP_AUTH_TOKEN_<host>` and `HTTP_AUTH_HEADER_<host>`.
    pub secrets: &'a SecretLookup<'a>,
}

/// A file that was fetched: 0600, 0:0, never unpacked and never decoded.
#[derive(Clone, Debug)]
pub struct Download {
    /// The last part of the URL's path, or `__unnamed__`.
    pub name: Vec<u8>,
    pub file: Arc<File>,
    /// In bytes.
    pub length: u64,
    /// `Last-Modified`, or 1970.
    pub mtime: Timestamp,
    pub digest: Digest,
    /// Without its `W/`.
    pub etag: Option<String>,
}

/// A client for files and for the heads of Git repositories. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct HttpClient(Arc<Inner>);

struct Inner {
    http: Http,
    limits: Limits,
    user_agent: String,
    proxies: Proxies,
    bytes_max: u64,
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HttpClient")
    }
}

impl HttpClient {
    /// A client with the registries' TLS roots, proxies, limits and trusted redirect hosts.
    ///
    /// # Errors
    /// A proxy or the TLS configuration can't be used.
    pub fn new(options: &ClientOptions) -> Result<Self, FetchError> {
        HttpClient::with_bytes_max(options, BYTES_MAX)
    }

    pub(super) fn with_bytes_max(
        options: &ClientOptions,
        bytes_max: u64,
    ) -> Result<Self, FetchError> {
        let http = Http::new(options).map_err(|error| FetchError::of_exchange(error, ""))?;
        Ok(HttpClient(Arc::new(Inner {
            http,
            limits: options.limits.clone(),
            user_agent: options.user_agent.clone(),
            proxies: options.proxies.clone(),
            bytes_max,
        })))
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.0.limits
    }

    pub(super) fn proxies(&self) -> &Proxies {
        &self.0.proxies
    }

    pub(super) fn user_agent(&self) -> &str {
        &self.0.user_agent
    }

    /// Fetches a file into `spool`, an empty file open for reading and writing.
    ///
    /// Follows up to 10 redirects. A host outside may not lead inside (private, loopback, link-local, metadata
    /// addresses, by name or by number); a host that the URL itself names may be anywhere. Stops at 10 GiB.
    ///
    /// # Errors
    /// The URL can't be read, the server can't be reached or refuses, or the bytes are not what `checksum` says.
    pub async fn download(
        &self,
        request: HttpRequest<'_>,
        spool: File,
    ) -> Result<Download, FetchError> {
        let name = file_name(&origin::parse(request.url)?)?;
        let mut origin = Origin::of_url(request.url, request.secrets)?;
        let url = shown(&origin.url);
        let mut transfer = Transfer::new(spool, &url);
        let whole = self.transfer(&mut origin, &mut transfer);
        let limit = DOWNLOAD_TIME_MAX;
        tokio::time::timeout(limit, whole).await.map_err(|_| FetchError::TimedOut {
            url: url.clone(),
            what: "the download",
            limit,
        })??;
        transfer.finish(name, request.checksum).await
    }

    /// Asks whether the file still has the ETag that a former download had, without fetching it.
    ///
    /// # Errors
    /// As [`HttpClient::download`]; a server that does not answer HEAD is no error.
    pub async fn is_unchanged(
        &self,
        request: HttpRequest<'_>,
        etag: &str,
    ) -> Result<bool, FetchError> {
        let mut origin = Origin::of_url(request.url, request.secrets)?;
        let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, identity())]);
        let answer = self.follow(&mut origin, reqwest::Method::HEAD, &headers).await?;
        let status = answer.response.status();
        Ok(status == StatusCode::OK && entity_tag(&answer).as_deref() == Some(etag))
    }

    async fn transfer(
        &self,
        origin: &mut Origin,
        transfer: &mut Transfer,
    ) -> Result<(), FetchError> {
        let mut failed = 0;
        let mut furthest = 0;
        loop {
            let Err(error) = self.attempt(origin, transfer).await else { return Ok(()) };
            if transfer.length >= furthest + PROGRESS_BYTES {
                (failed, furthest) = (0, transfer.length);
            }
            failed += 1;
            self.pause(failed, error).await?;
        }
    }

    /// Waits before the next try after `error`, or gives it back when there is none.
    pub(super) async fn pause(&self, failed: u32, error: FetchError) -> Result<(), FetchError> {
        let limits = self.limits();
        let asked = match &error {
            FetchError::Status { retry_after, .. } => *retry_after,
            _ => None,
        };
        let too_late = asked.is_some_and(|asked| asked > limits.retry_after_max);
        if !error.retryable() || failed >= limits.tries || too_late {
            return Err(error);
        }
        let delay = retry::delay(limits, failed, asked);
        tracing::warn!(%error, failed, delay_ms = delay.as_millis() as u64, "trying again");
        tokio::time::sleep(delay).await;
        Ok(())
    }

    /// One request, for what is still missing where the server can send that.
    async fn attempt(
        &self,
        origin: &mut Origin,
        transfer: &mut Transfer,
    ) -> Result<(), FetchError> {
        let mut headers = HeaderMap::from_iter([(ACCEPT_ENCODING, identity())]);
        let resumes = transfer.ask_for_rest(&mut headers);
        let answer = self.follow(origin, reqwest::Method::GET, &headers).await?;
        match answer.response.status() {
            StatusCode::PARTIAL_CONTENT if resumes => {
                check_range(&answer, transfer.length)
                    .map_err(|error| FetchError::of_exchange(error, &transfer.url))?;
            }
            StatusCode::RANGE_NOT_SATISFIABLE if resumes => {
                transfer.restart().await?;
                let reason = "the server can't send the rest of the file".to_owned();
                return Err(FetchError::Broken { url: transfer.url.clone(), reason });
            }
            StatusCode::PARTIAL_CONTENT => {
                let reason = "a part of the file came, which was not asked for".to_owned();
                return Err(FetchError::Answer { url: transfer.url.clone(), reason });
            }
            status if status.is_success() => transfer.begin(&answer).await?,
            _ => return Err(refusal(&answer)),
        }
        self.receive(answer, transfer).await
    }

    async fn receive(&self, answer: Answer, transfer: &mut Transfer) -> Result<(), FetchError> {
        let limit = self.0.bytes_max;
        let expected = answer.content_length().unwrap_or(0);
        if transfer.length.saturating_add(expected) > limit {
            return Err(FetchError::TooLarge { url: transfer.url.clone(), limit });
        }
        let mut body = Body::new(answer, self.limits());
        loop {
            let chunk = body.next().await;
            let chunk = chunk.map_err(|error| FetchError::of_exchange(error, &transfer.url))?;
            let Some(chunk) = chunk else { return Ok(()) };
            if transfer.length + chunk.len() as u64 > limit {
                return Err(FetchError::TooLarge { url: transfer.url.clone(), limit });
            }
            transfer.write(&chunk).await?;
        }
    }

    /// Sends a request without a body and follows redirects, with the credential on the origin only. The answer may
    /// have any status.
    pub(super) async fn follow(
        &self,
        origin: &mut Origin,
        method: reqwest::Method,
        headers: &HeaderMap,
    ) -> Result<Answer, FetchError> {
        let mut url = origin.url.clone();
        let mut from = shown(&url);
        for _ in 0..=REDIRECTS_MAX {
            let answer = self.hop(origin, method.clone(), url, headers, &from).await?;
            if !matches!(answer.response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(answer);
            }
            from = shown(&answer.url);
            url = redirect_target(&answer)?;
            tracing::debug!(from, to = shown(&url), "redirected");
        }
        Err(FetchError::Redirects { url: shown(&origin.url), limit: REDIRECTS_MAX })
    }

    async fn hop(
        &self,
        origin: &mut Origin,
        method: reqwest::Method,
        url: Url,
        headers: &HeaderMap,
        from: &str,
    ) -> Result<Answer, FetchError> {
        let inner = &*self.0;
        let own = origin.owns(&url);
        let client =
            if own { Ok(inner.http.own()) } else { inner.http.foreign(&url, origin.reach()) };
        let client = client.map_err(|reason| FetchError::Redirect {
            url: from.to_owned(),
            target: shown(&url),
            reason,
        })?;
        let mut headers = headers.clone();
        if let Some(authorization) = origin.authorization.as_ref().filter(|_| own) {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let request = client.request(method, url.clone()).headers(headers);
        let sent = execute(request, &url, Some(inner.limits.response_timeout)).await;
        let response = sent.map_err(|error| FetchError::of_exchange(error, from))?;
        let peer = inner.http.peer_of(&url, response.remote_addr());
        if let Some(peer) = peer.filter(|_| own) {
            origin.answered_from(peer);
        }
        Ok(Answer { response, url })
    }
}

/// Bytes as they are: nothing is decoded on the way.
fn identity() -> HeaderValue {
    HeaderValue::from_static("identity")
}

fn redirect_target(answer: &Answer) -> Result<Url, FetchError> {
    let wrong = |target: &str, reason| FetchError::Redirect {
        url: shown(&answer.url),
        target: printable(target, 200),
        reason,
    };
    let Some(location) = answer.header(LOCATION) else {
        return Err(wrong("nowhere", "there is no Location"));
    };
    let mut url = answer.url.join(location).map_err(|_| wrong("no URL", "it can't be read"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong(url.scheme(), "it leaves http and https"));
    }
    url.set_fragment(None);
    Ok(url)
}

/// An answer that is no file.
pub(super) fn refusal(answer: &Answer) -> FetchError {
    FetchError::Status {
        url: shown(&answer.url),
        host: answer.url.host_str().unwrap_or_default().to_owned(),
        status: answer.response.status().as_u16(),
        retry_after: retry::retry_after(answer.response.headers(), jiff::Timestamp::now()),
    }
}

fn entity_tag(answer: &Answer) -> Option<String> {
    answer.header(ETAG).map(|etag| etag.strip_prefix("W/").unwrap_or(etag).to_owned())
}

/// A file on its way into the spool.
struct Transfer {
    url: String,
    file: tokio::fs::File,
    hasher: Sha256,
    /// Bytes that are there.
    length: u64,
    /// By which the server knows whether it still has the same file.
    validator: Option<HeaderValue>,
    etag: Option<String>,
    mtime: Timestamp,
    started: Instant,
}

impl Transfer {
    fn new(spool: File, url: &str) -> Self {
        Transfer {
            url: url.to_owned(),
            file: tokio::fs::File::from_std(spool),
            hasher: Sha256::new(),
            length: 0,
            validator: None,
            etag: None,
            mtime: Timestamp::default(),
            started: Instant::now(),
        }
    }

    /// Adds the headers that ask for what is missing, where a part is there.
    fn ask_for_rest(&self, headers: &mut HeaderMap) -> bool {
        let Some(validator) = self.validator.as_ref().filter(|_| self.length > 0) else {
            return false;
        };
        let range = HeaderValue::from_str(&format!("bytes={}-", self.length));
        let Ok(range) = range else { return false };
        headers.insert(RANGE, range);
        headers.insert(IF_RANGE, validator.clone());
        true
    }

    /// Begins with the head of a whole file.
    async fn begin(&mut self, answer: &Answer) -> Result<(), FetchError> {
        self.restart().await?;
        // A weak tag says nothing about bytes (RFC 9110 section 13.1.5).
        let strong =
            answer.response.headers().get(ETAG).filter(|tag| tag.as_bytes().starts_with(b"\""));
        self.validator = strong.cloned();
        self.etag = entity_tag(answer);
        self.mtime = last_modified(answer.header(LAST_MODIFIED));
        Ok(())
    }

    async fn restart(&mut self) -> Result<(), FetchError> {
        self.validator = None;
        if self.length == 0 {
            return Ok(());
        }
        self.hasher = Sha256::new();
        self.length = 0;
        let empty = async {
            self.file.flush().await?;
            self.file.set_len(0).await?;
            self.file.seek(SeekFrom::Start(0)).await
        };
        empty.await.map(drop).map_err(|source| self.lost(source))
    }

    async fn write(&mut self, chunk: &[u8]) -> Result<(), FetchError> {
        self.hasher.update(chunk);
        self.length += chunk.len() as u64;
        self.file.write_all(chunk).await.map_err(|source| self.lost(source))
    }

    fn lost(&self, source: std::io::Error) -> FetchError {
        FetchError::Spool { url: self.url.clone(), source }
    }

    async fn finish(
        mut self,
        name: Vec<u8>,
        checksum: Option<Digest>,
    ) -> Result<Download, FetchError> {
        self.file.flush().await.map_err(|source| self.lost(source))?;
        let digest = Digest::from_bytes(self.hasher.finalize().into());
        if let Some(expected) = checksum.filter(|expected| *expected != digest) {
            return Err(FetchError::Mismatch { url: self.url, expected, actual: digest });
        }
        let seconds = self.started.elapsed().as_secs_f64();
        tracing::debug!(url = self.url, bytes = self.length, seconds, "fetched");
        Ok(Download {
            name,
            file: Arc::new(self.file.into_std().await),
            length: self.length,
            mtime: self.mtime,
            digest,
            etag: self.etag,
        })
    }
}
