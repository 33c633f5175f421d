//! Downloading blobs: streams that survive cut connections.

use std::{
    ops::Range,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use reqwest::{
    Method, Response, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, RANGE},
};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncRead;
use url::Url;

use super::{
    auth::Access,
    client::{Client, Endpoint, Shared},
    connect::transport_error,
    error::RegistryError,
    fetch::{mirror_failed, no_endpoint},
    host::shown,
    manifest::Descriptor,
    options::Limits,
    reference::Repository,
    transport::{Answer, Call},
};
use crate::digest::Digest;

/// A blob's bytes in order. Ends after exactly the descriptor's size, or with an error. The digest is the consumer's to
/// check, which sees every byte anyway.
pub type BlobStream = Pin<Box<dyn Stream<Item = Result<Bytes, RegistryError>> + Send>>;

/// A connection that brought less than this before it was cut counts against the tries.
const PROGRESS_BYTES: u64 = 1 << 20;

impl Client {
    /// Streams the blob `digest` of `size` bytes. Nothing is sent before the first poll. After a cut connection it goes
    /// on where it was.
    pub fn blob(&self, repository: &Repository, digest: Digest, size: u64) -> BlobStream {
        let shared = self.shared.clone();
        let endpoints = match shared.endpoints(repository) {
            Ok(endpoints) => endpoints,
            Err(error) => return Box::pin(stream::once(async { Err(error) })),
        };
        let download = Download {
            shared,
            endpoints,
            place: 0,
            digest,
            size,
            offset: 0,
            failed: 0,
            since_failure: 0,
            current: None,
            ended: false,
        };
        Box::pin(stream::unfold(download, |mut download| async move {
            download.next().await.map(|item| (item, download))
        }))
    }

    /// [`Client::blob`] as a reader.
    pub fn blob_reader(
        &self,
        repository: &Repository,
        digest: Digest,
        size: u64,
    ) -> impl AsyncRead + Send + Unpin + use<> {
        let stream = self.blob(repository, digest, size);
        tokio_util::io::StreamReader::new(stream.map(|item| item.map_err(std::io::Error::other)))
    }

    /// A whole small blob, such as a config, checked against its descriptor.
    ///
    /// # Errors
    /// Too large for `max` bytes, or not what the descriptor says.
    pub async fn fetch_small(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        max: u64,
    ) -> Result<Bytes, RegistryError> {
        if let Some(inline) = descriptor.inline() {
            return Ok(inline);
        }
        let what = || format!("{repository}@{}", descriptor.digest);
        if descriptor.size > max {
            return Err(RegistryError::TooLarge { what: what(), limit: max });
        }
        let mut stream = self.blob(repository, descriptor.digest, descriptor.size);
        let mut body = Vec::with_capacity(descriptor.size as usize);
        let mut hasher = Sha256::new();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk?;
            hasher.update(&chunk);
            body.extend_from_slice(&chunk);
        }
        let (expected, actual) = (descriptor.digest, Digest::from_bytes(hasher.finalize().into()));
        if expected != actual {
            return Err(RegistryError::Digest { what: what(), expected, actual });
        }
        Ok(Bytes::from(body))
    }

    /// The bytes in `range` of a blob. The digest can't be checked on a part.
    ///
    /// # Errors
    /// [`RegistryError::RangeUnsupported`] where the registry answers with the whole blob.
    pub async fn blob_range(
        &self,
        repository: &Repository,
        digest: Digest,
        range: Range<u64>,
    ) -> Result<Bytes, RegistryError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        for endpoint in &self.shared.endpoints(repository)? {
            match self.range_at(endpoint, digest, &range).await {
                Err(error) if endpoint.mirror => mirror_failed(endpoint, &error),
                result => return result,
            }
        }
        Err(no_endpoint(repository))
    }

    async fn range_at(
        &self,
        endpoint: &Endpoint,
        digest: Digest,
        range: &Range<u64>,
    ) -> Result<Bytes, RegistryError> {
        let call = blob_call(&self.shared, endpoint, digest)
            .header(RANGE, &format!("bytes={}-{}", range.start, range.end - 1))?;
        let mut failed = 0;
        loop {
            let answer = self.shared.send(&call).await?;
            let error = match read_range(&self.shared, answer, range).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => error,
            };
            failed += 1;
            self.shared.pause(&endpoint.host.name, failed, call.tries, error).await?;
        }
    }

    /// Whether the registry itself has the blob.
    ///
    /// # Errors
    /// What it answers other than yes or no.
    pub async fn blob_exists(
        &self,
        repository: &Repository,
        digest: Digest,
    ) -> Result<bool, RegistryError> {
        let endpoint = self.shared.endpoint(repository)?;
        let access = Access::pull(&endpoint.repository);
        let path = format!("blobs/{digest}");
        let call = endpoint.call(Method::HEAD, &path, access, self.limits());
        match self.shared.send(&call).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn blob_call<'a>(shared: &Shared, endpoint: &'a Endpoint, digest: Digest) -> Call<'a> {
    let access = Access::pull(&endpoint.repository);
    endpoint.call(Method::GET, &format!("blobs/{digest}"), access, shared.limits())
}

async fn read_range(
    shared: &Shared,
    answer: Answer,
    range: &Range<u64>,
) -> Result<Bytes, RegistryError> {
    let url = shown(&answer.url);
    if answer.response.status() == StatusCode::OK {
        return Err(RegistryError::RangeUnsupported { url });
    }
    check_range(&answer, range.start)?;
    let expected = range.end - range.start;
    let mut body = Body::new(answer, shared.limits());
    let mut bytes = Vec::new();
    while let Some(chunk) = body.next().await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > expected {
            break;
        }
    }
    match bytes.len() as u64 {
        actual if actual < expected => {
            let reason = format!("{actual} bytes of {expected} arrived");
            Err(RegistryError::Broken { url, reason })
        }
        actual if actual > expected => {
            Err(RegistryError::Size { what: format!("a range of {url}"), expected, actual })
        }
        _ => Ok(Bytes::from(bytes)),
    }
}

/// Whether a 206 begins where it was asked to.
pub(crate) fn check_range(answer: &Answer, start: u64) -> Result<(), RegistryError> {
    let range = answer.header(CONTENT_RANGE).unwrap_or_default();
    let begins = range
        .trim()
        .strip_prefix("bytes ")
        .and_then(|range| range.split_once('-'))
        .and_then(|(first, _)| first.trim().parse::<u64>().ok());
    let status = answer.response.status();
    if status == StatusCode::PARTIAL_CONTENT && begins == Some(start) {
        return Ok(());
    }
    let range = super::error::printable(range, 80);
    let reason = format!("asked for bytes from {start}, got {status} with the range {range:?}");
    Err(RegistryError::Answer { url: shown(&answer.url), reason })
}

/// A download under way.
struct Download {
    shared: Arc<Shared>,
    endpoints: Vec<Endpoint>,
    /// The endpoint in use.
    place: usize,
    digest: Digest,
    size: u64,
    /// Bytes handed on.
    offset: u64,
    failed: u32,
    since_failure: u64,
    current: Option<Body>,
    ended: bool,
}

impl Download {
    async fn next(&mut self) -> Option<Result<Bytes, RegistryError>> {
        while !self.ended {
            match self.step().await {
                Ok(Some(chunk)) => return Some(Ok(chunk)),
                Ok(None) => {}
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }

    /// Brings the next bytes, or one step towards them.
    async fn step(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let result = match self.current.as_mut() {
            None => match self.open().await {
                Ok(body) => {
                    self.current = Some(body);
                    return Ok(None);
                }
                Err(error) => Err(error),
            },
            Some(body) => body.next().await,
        };
        match result {
            Ok(Some(chunk)) => self.deliver(chunk),
            Ok(None) if self.offset == self.size => {
                self.ended = true;
                Ok(None)
            }
            Ok(None) => {
                let (url, reason) = (self.what(), format!("it ended after {} bytes", self.offset));
                self.recover(RegistryError::Broken { url, reason }).await
            }
            Err(error) => self.recover(error).await,
        }
    }

    fn deliver(&mut self, chunk: Bytes) -> Result<Option<Bytes>, RegistryError> {
        let end = self.offset + chunk.len() as u64;
        if end > self.size {
            return Err(RegistryError::Size {
                what: self.what(),
                expected: self.size,
                actual: end,
            });
        }
        self.offset = end;
        self.since_failure += chunk.len() as u64;
        Ok(Some(chunk).filter(|chunk| !chunk.is_empty()))
    }

    /// Waits for the next try, or goes to the next endpoint.
    async fn recover(&mut self, error: RegistryError) -> Result<Option<Bytes>, RegistryError> {
        self.current = None;
        if self.since_failure >= PROGRESS_BYTES {
            self.failed = 0;
        }
        self.since_failure = 0;
        self.failed += 1;
        let Some(endpoint) = self.endpoints.get(self.place) else { return Err(error) };
        let tries = self.shared.limits().tries;
        let tries = if endpoint.mirror { tries.min(2) } else { tries };
        if let Err(error) = self.shared.pause(&endpoint.host.name, self.failed, tries, error).await
        {
            if !endpoint.mirror {
                return Err(error);
            }
            mirror_failed(endpoint, &error);
            self.place += 1;
            self.failed = 0;
        }
        Ok(None)
    }

    async fn open(&self) -> Result<Body, RegistryError> {
        let endpoint = self.endpoints.get(self.place).ok_or(RegistryError::Canceled)?;
        let mut call = blob_call(&self.shared, endpoint, self.digest).once();
        if self.offset > 0 {
            call = call.header(RANGE, &format!("bytes={}-", self.offset))?;
        }
        let answer = self.shared.send(&call).await?;
        let url = shown(&answer.url);
        if answer.response.headers().contains_key(CONTENT_ENCODING) {
            let reason = "it comes with a Content-Encoding, which changes its bytes".to_owned();
            return Err(RegistryError::Answer { url, reason });
        }
        let skip = match answer.response.status() {
            StatusCode::PARTIAL_CONTENT => {
                check_range(&answer, self.offset)?;
                0
            }
            // A registry without ranges sends it all again.
            StatusCode::OK => self.offset,
            status => {
                let reason = format!("unexpected status {status}");
                return Err(RegistryError::Answer { url, reason });
            }
        };
        self.check_length(&answer, skip)?;
        let mut body = Body::new(answer, self.shared.limits());
        body.skip = skip;
        Ok(body)
    }

    fn check_length(&self, answer: &Answer, skip: u64) -> Result<(), RegistryError> {
        let expected = self.size - self.offset + skip;
        match answer.content_length() {
            Some(actual) if actual != expected => {
                if answer.header(CONTENT_TYPE).is_some_and(|kind| kind.starts_with("text/html")) {
                    let reason = "the answer is an HTML page, not the blob".to_owned();
                    return Err(RegistryError::Answer { url: shown(&answer.url), reason });
                }
                Err(RegistryError::Size { what: self.what(), expected, actual })
            }
            _ => Ok(()),
        }
    }

    fn what(&self) -> String {
        match self.endpoints.get(self.place) {
            Some(place) => format!("{}/{}@{}", place.host.name, place.repository, self.digest),
            None => self.digest.to_string(),
        }
    }
}

/// The body of one answer, watched for stalls.
pub(crate) struct Body {
    response: Response,
    url: Url,
    /// Bytes to leave out at the beginning.
    skip: u64,
    stall: Duration,
    window_bytes_min: u64,
    /// Time spent waiting for bytes in the running window; the consumer's own time does not count.
    waited: Duration,
    window_bytes: u64,
}

impl Body {
    pub(crate) fn new(answer: Answer, limits: &Limits) -> Self {
        Body {
            response: answer.response,
            url: answer.url,
            skip: 0,
            stall: limits.stall_timeout,
            window_bytes_min: (limits.bytes_per_second_min as f64
                * limits.stall_timeout.as_secs_f64()) as u64,
            waited: Duration::ZERO,
            window_bytes: 0,
        }
    }

    /// The next bytes; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let stalled = |limit| RegistryError::TimedOut {
            url: shown(&self.url),
            what: "bringing the next bytes",
            limit,
        };
        let start = Instant::now();
        let chunk = tokio::time::timeout(self.stall, self.response.chunk())
            .await
            .map_err(|_| stalled(self.stall))?
            .map_err(|error| transport_error(&error, &self.url))?;
        let Some(mut chunk) = chunk else { return Ok(None) };
        self.waited += start.elapsed();
        self.window_bytes += chunk.len() as u64;
        if self.waited > self.stall {
            if self.window_bytes < self.window_bytes_min {
                return Err(stalled(self.stall));
            }
            (self.waited, self.window_bytes) = (Duration::ZERO, 0);
        }
        let skipped = (self.skip).min(chunk.len() as u64);
        self.skip -= skipped;
        Ok(Some(chunk.split_off(skipped as usize)))
    }
}
