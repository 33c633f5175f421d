//! Resolving names and fetching manifests.

use reqwest::{
    Method, StatusCode,
    header::{ACCEPT, CONTENT_TYPE, HeaderName},
};

use super::{
    auth::Access,
    client::{Client, Endpoint},
    error::RegistryError,
    manifest::{self, ACCEPT as MANIFEST_TYPES, FetchedManifest},
    reference::{PinnedReference, Reference, Repository},
    transport::{Answer, read_all},
};
use crate::digest::Digest;

pub(crate) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What a tag names at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub digest: Digest,
    pub media_type: String,
    /// Bytes of the manifest.
    pub size: u64,
}

impl Client {
    /// Asks what `reference` names, without fetching it where the registry allows that.
    ///
    /// # Errors
    /// The registry's last answer, when its mirrors fail too.
    pub async fn resolve(&self, reference: &Reference) -> Result<Resolved, RegistryError> {
        let repository = Repository::from(reference);
        let endpoints = self.shared.endpoints(&repository)?;
        for endpoint in &endpoints {
            match self.resolve_at(endpoint, reference).await {
                Err(error) if endpoint.mirror => mirror_failed(endpoint, &error),
                Err(error) => return Err(self.advised(&repository, error).await),
                found => return found,
            }
        }
        Err(no_endpoint(&repository))
    }

    async fn resolve_at(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
    ) -> Result<Resolved, RegistryError> {
        let head = match self.imports(endpoint) {
            true => Ok(None),
            false => self.head_manifest(endpoint, manifest_name(reference)).await,
        };
        match head {
            Ok(Some(resolved)) => {
                check_asked(reference, resolved.digest)?;
                return Ok(resolved);
            }
            // 401, 403 and 405 to HEAD say nothing: GET gives the reason.
            Err(error) if !has_no_body(&error) => return Err(error),
            Ok(None) | Err(_) => {}
        }
        let fetched = self.manifest_at(endpoint, reference).await?;
        Ok(Resolved {
            digest: fetched.digest,
            media_type: fetched.media_type,
            size: fetched.bytes.len() as u64,
        })
    }

    /// `None` where the answer lacks what is asked for.
    pub(crate) async fn head_manifest(
        &self,
        endpoint: &Endpoint,
        name: &str,
    ) -> Result<Option<Resolved>, RegistryError> {
        let access = Access::pull(&endpoint.repository);
        self.head_manifest_with(endpoint, name, access).await
    }

    pub(crate) async fn head_manifest_with(
        &self,
        endpoint: &Endpoint,
        name: &str,
        access: Access,
    ) -> Result<Option<Resolved>, RegistryError> {
        let path = format!("manifests/{name}");
        let call = endpoint
            .call(Method::HEAD, &path, access, self.limits())
            .header(ACCEPT, MANIFEST_TYPES)?;
        let answer = self.shared.send(&call).await?;
        let digest = answer.header(CONTENT_DIGEST).and_then(|digest| digest.parse().ok());
        let media_type = answer.header(CONTENT_TYPE).map(bare_media_type);
        let size = answer.content_length().filter(|size| *size > 0);
        Ok(match (digest, media_type, size) {
            (Some(digest), Some(media_type), Some(size)) if manifest::known(&media_type) => {
                Some(Resolved { digest, media_type, size })
            }
            _ => None,
        })
    }

    /// Fetches the manifest or index that `reference` names, checked: its digest over the bytes as they came, its shape
    /// and its media type.
    ///
    /// # Errors
    /// The registry's last answer, when its mirrors fail too.
    pub async fn manifest(&self, reference: &Reference) -> Result<FetchedManifest, RegistryError> {
        let repository = Repository::from(reference);
        let endpoints = self.shared.endpoints(&repository)?;
        for endpoint in &endpoints {
            match self.manifest_at(endpoint, reference).await {
                Err(error) if endpoint.mirror => mirror_failed(endpoint, &error),
                Err(error) => return Err(self.advised(&repository, error).await),
                found => return found,
            }
        }
        Err(no_endpoint(&repository))
    }

    /// Whether [`Client::resolve`] would fetch what `reference` names, so that [`Client::manifest`] costs no more.
    pub(crate) fn resolves_by_fetching(&self, reference: &Reference) -> bool {
        self.hooks(&Repository::from(reference)).is_some()
    }

    /// [`Client::manifest`] by digest.
    ///
    /// # Errors
    /// As there.
    pub async fn pinned_manifest(
        &self,
        pinned: &PinnedReference,
    ) -> Result<FetchedManifest, RegistryError> {
        self.manifest(&pinned.to_reference()).await
    }

    async fn manifest_at(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
    ) -> Result<FetchedManifest, RegistryError> {
        if self.imports(endpoint) {
            return self.import(endpoint, reference).await;
        }
        let access = Access::pull(&endpoint.repository);
        self.get_manifest(endpoint, reference, access).await
    }

    /// Whether a GET makes the registry fetch what it lacks from another one (a pull-through cache).
    fn imports(&self, endpoint: &Endpoint) -> bool {
        self.shared.hooks(&endpoint.host.name).is_some()
    }

    /// A manifest that may have to be imported first. Only a pull by tag imports, so a reference with a tag and a digest
    /// is asked for by its tag first.
    async fn import(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
    ) -> Result<FetchedManifest, RegistryError> {
        let access = Access::pull(&endpoint.repository);
        let get = |name| self.get_manifest_as(endpoint, reference, name, access.clone());
        if let (Some(tag), Some(_)) = (reference.tag(), reference.digest()) {
            match get(tag).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => tracing::debug!(%error, "not by tag, trying by digest"),
            }
        }
        match get(manifest_name(reference)).await {
            // The first answer of an import that is under way.
            Err(error) if error.is_not_found() => {
                tokio::time::sleep(self.limits().backoff_first).await;
                get(manifest_name(reference)).await
            }
            result => result,
        }
    }

    pub(crate) async fn get_manifest(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        access: Access,
    ) -> Result<FetchedManifest, RegistryError> {
        self.get_manifest_as(endpoint, reference, manifest_name(reference), access).await
    }

    /// Asks for `name`, which must be what `reference` names.
    async fn get_manifest_as(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        name: &str,
        access: Access,
    ) -> Result<FetchedManifest, RegistryError> {
        let path = format!("manifests/{name}");
        let mut call = endpoint
            .call(Method::GET, &path, access, self.limits())
            .header(ACCEPT, MANIFEST_TYPES)?;
        if self.imports(endpoint) {
            call.response_timeout = self.limits().import_timeout;
        }
        let mut failed = 0;
        loop {
            let answer = self.shared.send(&call).await?;
            // A document that was cut on the way is asked for again.
            let error = match self.read_manifest(answer, reference).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => error,
            };
            failed += 1;
            self.shared.pause(&endpoint.host.name, failed, call.tries, error).await?;
        }
    }

    async fn read_manifest(
        &self,
        answer: Answer,
        reference: &Reference,
    ) -> Result<FetchedManifest, RegistryError> {
        if answer.response.status() != StatusCode::OK {
            let reason = format!("unexpected status {}", answer.response.status());
            return Err(RegistryError::Answer { url: super::host::shown(&answer.url), reason });
        }
        let media_type = answer.header(CONTENT_TYPE).unwrap_or_default().to_owned();
        let told: Option<Digest> =
            answer.header(CONTENT_DIGEST).and_then(|digest| digest.parse().ok());
        let max = self.limits().manifest_bytes_max;
        let bytes = read_all(answer.response, &answer.url, max, self.limits()).await?;
        let actual = Digest::of(&bytes);
        if let Some(expected) = told.filter(|told| *told != actual) {
            return Err(RegistryError::Digest { what: reference.whole(), expected, actual });
        }
        check_asked(reference, actual)?;
        FetchedManifest::new(bytes, &media_type)
            .map_err(|error| RegistryError::Manifest { what: reference.whole(), error })
    }
}

fn check_asked(reference: &Reference, actual: Digest) -> Result<(), RegistryError> {
    let Some(expected) = reference.digest() else { return Ok(()) };
    let expected: Digest = expected.parse()?;
    if expected == actual {
        return Ok(());
    }
    Err(RegistryError::Digest { what: reference.whole(), expected, actual })
}

/// The digest, else the tag.
fn manifest_name(reference: &Reference) -> &str {
    reference.digest().or_else(|| reference.tag()).unwrap_or("latest")
}

fn bare_media_type(value: &str) -> String {
    value.split(';').next().unwrap_or_default().trim().to_owned()
}

/// A refusal that GET explains better.
fn has_no_body(error: &RegistryError) -> bool {
    matches!(error.status().map(|status| status.as_u16()), Some(400 | 401 | 403 | 404 | 405 | 501))
}

pub(crate) fn mirror_failed(endpoint: &Endpoint, error: &RegistryError) {
    tracing::warn!(mirror = endpoint.host.name, %error, "the mirror failed, trying the next");
}

pub(crate) fn no_endpoint(repository: &Repository) -> RegistryError {
    RegistryError::Options(format!("there is no place to pull {repository} from"))
}
