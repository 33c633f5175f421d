//! Uploading: one POST and one PUT a blob (distribution-spec, "Pushing blobs"), and manifests.

use std::{
    fmt::Write as _,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use reqwest::{
    Method, StatusCode,
    header::{CONTENT_TYPE, HeaderName, LOCATION},
};
use url::Url;

use super::{
    auth::Access,
    client::{Client, Endpoint, Shared},
    error::{RefusalKind, RegistryError},
    fetch::CONTENT_DIGEST,
    host::shown,
    reference::{Reference, Repository},
    source::{self, Source},
    transport::{Answer, Payload, Target, read_all},
};
use crate::digest::Digest;

const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// Where a blob's bytes are.
#[derive(Clone, Debug)]
pub enum BlobSource {
    File(PathBuf),
    /// A part of a file, from this offset on.
    Part(PathBuf, u64),
    Bytes(Bytes),
    /// Another repository, on any registry.
    Registry(Repository),
}

/// What it took to have a blob in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadOutcome {
    /// It was there.
    Existed,
    /// The registry took it from another of its repositories.
    Mounted,
    Uploaded,
}

/// Told the bytes of a blob that are on their way; falls back when an upload starts again.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// A blob to be put into a repository.
struct Upload<'a> {
    endpoint: Endpoint,
    digest: Digest,
    size: u64,
    source: &'a BlobSource,
    mount_from: Option<&'a str>,
    progress: &'a Progress,
}

impl Client {
    /// Puts a blob into `repository`, unless it is there: asks first, mounts it from the repository `mount_from` of the
    /// same registry if that works, and uploads it otherwise. What is sent is counted and hashed on its way; bytes that
    /// differ from `digest` and `size` never become a blob.
    ///
    /// # Errors
    /// After all tries, the last one's.
    pub async fn upload_blob(
        &self,
        repository: &Repository,
        digest: Digest,
        size: u64,
        source: &BlobSource,
        mount_from: Option<&str>,
        progress: &Progress,
    ) -> Result<UploadOutcome, RegistryError> {
        let endpoint = self.shared.endpoint(repository)?;
        let mount_from = mount_from.filter(|from| *from != repository.name);
        let upload = Upload { endpoint, digest, size, source, mount_from, progress };
        let (mut failed, mut closed, mut created) = (0, 0, false);
        loop {
            let mut error = match self.upload_once(&upload).await {
                Ok(outcome) => return Ok(outcome),
                Err(error) => error,
            };
            failed += 1;
            closed += u32::from(matches!(error, RegistryError::UploadClosed { .. }));
            // A request that was throttled has had its tries.
            if error.kind() == Some(RefusalKind::TooManyRequests) {
                return Err(error);
            }
            // Twice no answer to a POST is how ECR says "no such repository".
            if closed >= 2 || error.kind() == Some(RefusalKind::NameUnknown) {
                let hopeless = match created {
                    true => failed >= self.limits().tries,
                    false => !self.create_repository(repository).await?,
                };
                if hopeless {
                    return Err(error);
                }
                (closed, created) = (0, true);
                error = upload.not_seen_yet(&error);
            }
            self.before_next_upload(&upload, failed, error).await?;
        }
    }

    /// Has the registry's provider create `repository`. Returns whether it is there now.
    pub(super) async fn create_repository(
        &self,
        repository: &Repository,
    ) -> Result<bool, RegistryError> {
        let Some(hooks) = self.hooks(repository) else { return Ok(false) };
        Ok(hooks.create_repository(repository).await?)
    }

    /// Waits, if the whole upload may be tried again after `error`.
    async fn before_next_upload(
        &self,
        upload: &Upload<'_>,
        failed: u32,
        error: RegistryError,
    ) -> Result<(), RegistryError> {
        let lost = match &error {
            RegistryError::Refused(refusal) => refusal.kind == RefusalKind::UploadLost,
            RegistryError::Digest { .. } | RegistryError::UploadClosed { .. } => true,
            _ => false,
        };
        let (name, tries) = (&upload.endpoint.host.name, self.limits().tries);
        if !lost || failed >= tries {
            return self.shared.pause(name, failed, tries, error).await;
        }
        let url = format!("{name}/{}", upload.endpoint.repository);
        let again = RegistryError::Broken { url, reason: error.to_string() };
        self.shared.pause(name, failed, tries, again).await
    }

    async fn upload_once(&self, upload: &Upload<'_>) -> Result<UploadOutcome, RegistryError> {
        if self.is_there(upload).await? {
            return Ok(UploadOutcome::Existed);
        }
        let session = match self.start(upload).await? {
            Started::Mounted => return Ok(UploadOutcome::Mounted),
            Started::Session(session) => session,
        };
        self.put(upload, session).await?;
        Ok(UploadOutcome::Uploaded)
    }

    async fn is_there(&self, upload: &Upload<'_>) -> Result<bool, RegistryError> {
        let path = format!("blobs/{}", upload.digest);
        let access = Access::push(&upload.endpoint.repository);
        let call = upload.endpoint.call(Method::HEAD, &path, access, self.limits()).once();
        match self.shared.send(&call).await {
            Ok(answer) => {
                let length = answer.content_length().filter(|length| *length > 0);
                Ok(length.is_none_or(|length| length == upload.size))
            }
            // ECR says 403 for "no"; if it is meant, the POST says so with a reason.
            Err(RegistryError::Refused(refusal))
                if matches!(refusal.status.as_u16(), 403..=405) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Opens an upload, with a mount if there is a source for one.
    async fn start(&self, upload: &Upload<'_>) -> Result<Started, RegistryError> {
        if let Some(from) = upload.mount_from {
            let access = Access::mount(&upload.endpoint.repository, from);
            if self.shared.grants(&upload.endpoint.host, &access).await {
                let path = format!("blobs/uploads/?mount={}&from={from}", upload.digest);
                match self.post(upload, &path, access).await {
                    Ok(started) => return Ok(started),
                    // The registry may refuse the source; that is no reason not to upload.
                    Err(RegistryError::Refused(refusal))
                        if refusal.status.is_client_error()
                            && refusal.kind != RefusalKind::TooManyRequests =>
                    {
                        tracing::debug!(%refusal, "no mount");
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        if let Some(session) = self.shared.take_session(&upload.endpoint) {
            return Ok(Started::Session(session));
        }
        let access = Access::push(&upload.endpoint.repository);
        match self.post(upload, "blobs/uploads/", access).await {
            Err(RegistryError::Broken { .. }) => Err(RegistryError::UploadClosed {
                registry: upload.endpoint.host.name.clone(),
                repository: upload.endpoint.repository.clone(),
            }),
            other => other,
        }
    }

    async fn post(
        &self,
        upload: &Upload<'_>,
        path: &str,
        access: Access,
    ) -> Result<Started, RegistryError> {
        let call = upload.endpoint.call(Method::POST, path, access, self.limits()).once();
        let answer = self.shared.send(&call).await?;
        match answer.response.status() {
            StatusCode::CREATED => {
                check_told(&answer, upload.digest, || upload.what())?;
                Ok(Started::Mounted)
            }
            StatusCode::ACCEPTED => {
                Ok(Started::Session(session(&self.shared, &upload.endpoint, &answer)?))
            }
            status => Err(RegistryError::Answer {
                url: shown(&answer.url),
                reason: format!("unexpected status {status} to the start of an upload"),
            }),
        }
    }

    /// Sends the whole blob in one request.
    async fn put(&self, upload: &Upload<'_>, mut session: Url) -> Result<(), RegistryError> {
        session.query_pairs_mut().append_pair("digest", &upload.digest.to_string());
        let meter = Arc::new(Meter::new(upload.progress.clone()));
        let source = Source {
            client: self.clone(),
            digest: upload.digest,
            size: upload.size,
            source: upload.source.clone(),
            meter: meter.clone(),
        };
        let open = || {
            meter.restart();
            source::body(&source)
        };
        let access = Access::push(&upload.endpoint.repository);
        let mut call = upload.endpoint.call(Method::PUT, "", access, self.limits()).once();
        call.target = Target::Url(session);
        call = call
            .header(CONTENT_TYPE, "application/octet-stream")?
            .payload(Payload::Stream { bytes: upload.size, open: &open });
        let sent = self.watched(self.shared.send(&call), &meter, upload).await;
        // A source that failed shows as a broken connection.
        let answer = sent.map_err(|error| meter.take_failure().unwrap_or(error))?;
        check_told(&answer, upload.digest, || upload.what())?;
        if answer.response.status() == StatusCode::CREATED || self.is_there(upload).await? {
            return Ok(());
        }
        Err(RegistryError::Answer {
            url: shown(&answer.url),
            reason: format!("{} to an upload, but the blob is not there", answer.response.status()),
        })
    }

    /// Gives `sent` up when no bytes move, or when the answer does not come.
    async fn watched<T>(
        &self,
        sent: impl Future<Output = Result<T, RegistryError>>,
        meter: &Meter,
        upload: &Upload<'_>,
    ) -> Result<T, RegistryError> {
        let limits = self.limits();
        let tick = (limits.stall_timeout / 8).max(Duration::from_millis(10));
        let mut sent = std::pin::pin!(sent);
        loop {
            tokio::select! {
                result = &mut sent => return result,
                () = tokio::time::sleep(tick) => {}
            }
            let (what, limit) = match meter.complete.load(Ordering::Acquire) {
                true => ("the answer to an upload", limits.commit_timeout),
                false => ("taking the next bytes of an upload", limits.stall_timeout),
            };
            if meter.idle() > limit {
                return Err(RegistryError::TimedOut { url: upload.what(), what, limit });
            }
        }
    }

    /// Puts a manifest under `name`, a tag or its digest. The bytes go out as they are.
    ///
    /// # Errors
    /// The registry's refusal; that the tag is immutable and names the same digest already is none.
    pub async fn put_manifest(
        &self,
        repository: &Repository,
        name: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, RegistryError> {
        let digest = Digest::of(&bytes);
        let endpoint = self.shared.endpoint(repository)?;
        let access = Access::push(&endpoint.repository);
        let path = format!("manifests/{name}");
        let call = endpoint
            .call(Method::PUT, &path, access.clone(), self.limits())
            .header(CONTENT_TYPE, media_type)?
            .payload(Payload::Bytes(bytes));
        match self.shared.send(&call).await {
            Ok(answer) => {
                check_told(&answer, digest, || format!("{repository}:{name}"))?;
                // Read to its end, so that the connection can be used again.
                let _ = read_all(answer.response, &answer.url, 1 << 20, self.limits()).await;
                Ok(digest)
            }
            Err(error) if error.kind() == Some(RefusalKind::TagImmutable) => {
                let there = self.head_manifest_with(&endpoint, name, access).await;
                match there {
                    Ok(Some(there)) if there.digest == digest => Ok(digest),
                    _ => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }
}

impl Client {
    /// The digest that `name` has on the registry itself, if it says so without being asked for the manifest.
    pub(crate) async fn pushed_digest(
        &self,
        repository: &Repository,
        name: &str,
    ) -> Result<Option<Digest>, RegistryError> {
        let endpoint = self.shared.endpoint(repository)?;
        let access = Access::push(&endpoint.repository);
        let there = self.head_manifest_with(&endpoint, name, access).await?;
        Ok(there.map(|there| there.digest))
    }

    /// The digest of the manifest that the registry itself serves for `name`.
    pub(crate) async fn read_back(
        &self,
        repository: &Repository,
        name: &str,
    ) -> Result<Digest, RegistryError> {
        let endpoint = self.shared.endpoint(repository)?;
        let Repository { registry, name: path } = repository.clone();
        let reference = Reference::with_tag(registry, path, name.to_owned());
        let access = Access::push(&endpoint.repository);
        Ok(self.get_manifest(&endpoint, &reference, access).await?.digest)
    }
}

enum Started {
    Mounted,
    Session(Url),
}

impl Upload<'_> {
    /// A repository that was made a moment ago may not be seen everywhere yet: that is no reason to give up.
    fn not_seen_yet(&self, error: &RegistryError) -> RegistryError {
        RegistryError::Broken { url: self.what(), reason: error.to_string() }
    }

    fn what(&self) -> String {
        format!("{}/{}@{}", self.endpoint.host.name, self.endpoint.repository, self.digest)
    }
}

/// The address that an upload's bytes go to.
pub(super) fn session(
    shared: &Shared,
    endpoint: &Endpoint,
    answer: &Answer,
) -> Result<Url, RegistryError> {
    let wrong =
        |reason: &str| RegistryError::Answer { url: shown(&answer.url), reason: reason.to_owned() };
    let mut url = match (answer.header(LOCATION), answer.header(UPLOAD_UUID)) {
        (Some(location), _) => answer.url.join(location),
        (None, Some(uuid)) => answer.url.join(&uuid_path(endpoint, uuid)),
        (None, None) => return Err(wrong("an upload was started, but there is no Location")),
    }
    .map_err(|_| wrong("the Location of an upload is no URL"))?;
    url.set_fragment(None);
    shared.http.client_for(&endpoint.host, &url).map_err(|reason| RegistryError::Redirect {
        url: shown(&answer.url),
        target: shown(&url),
        reason,
    })?;
    Ok(url)
}

fn uuid_path(endpoint: &Endpoint, uuid: &str) -> String {
    let mut path = format!("/v2/{}/blobs/uploads/", endpoint.repository);
    for byte in uuid.bytes().take(200) {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'=' => {
                path.push(char::from(byte));
            }
            _ => {
                let _ = write!(path, "%{byte:02X}");
            }
        }
    }
    path
}

/// Compares the digest that a registry answers with, where it does.
fn check_told(
    answer: &Answer,
    expected: Digest,
    what: impl Fn() -> String,
) -> Result<(), RegistryError> {
    let told = answer.header(CONTENT_DIGEST).and_then(|digest| digest.parse::<Digest>().ok());
    match told {
        Some(actual) if actual != expected => {
            Err(RegistryError::Digest { what: what(), expected, actual })
        }
        _ => Ok(()),
    }
}

/// How far the body of one upload is.
pub(super) struct Meter {
    started: Instant,
    bytes: AtomicU64,
    /// When bytes last moved, in milliseconds since `started`.
    moved_at: AtomicU64,
    complete: AtomicBool,
    failure: Mutex<Option<RegistryError>>,
    progress: Progress,
}

impl Meter {
    fn new(progress: Progress) -> Self {
        Meter {
            started: Instant::now(),
            bytes: AtomicU64::new(0),
            moved_at: AtomicU64::new(0),
            complete: AtomicBool::new(false),
            failure: Mutex::new(None),
            progress,
        }
    }

    fn touch(&self) {
        self.moved_at.store(self.started.elapsed().as_millis() as u64, Ordering::Release);
    }

    fn restart(&self) {
        self.bytes.store(0, Ordering::Release);
        self.complete.store(false, Ordering::Release);
        self.touch();
    }

    /// `bytes` more are on their way.
    pub(super) fn add(&self, bytes: u64) {
        let done = self.bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        self.touch();
        (self.progress)(done);
    }

    pub(super) fn complete(&self) {
        self.touch();
        self.complete.store(true, Ordering::Release);
    }

    pub(super) fn fail(&self, error: RegistryError) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    fn take_failure(&self) -> Option<RegistryError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn idle(&self) -> Duration {
        let moved_at = Duration::from_millis(self.moved_at.load(Ordering::Acquire));
        self.started.elapsed().saturating_sub(moved_at)
    }
}
