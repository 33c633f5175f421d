//! PUSH: blobs, then the manifest, then the tags one by one, then a look at what the registry made of it.
//!
//! Uploads may start while the build still runs: [`Uploader::start`] takes each layer as soon as it is written,
//! [`Uploader::finish`] the image. [`push`] does both at once.

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;

use crate::{
    Class, Error,
    digest::Digest,
    event::Warning,
    registry::{Client, Manifest, Reference, RegistryError, Repository, manifest::ManifestError},
};

mod document;
mod tags;
mod uploader;

pub use document::{Document, pinned, put_document};
pub use tags::{kept, kept_tags};
pub use uploader::Uploader;

/// A layer of an image to push.
#[derive(Clone, Debug)]
pub struct PushLayer {
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    pub source: LayerSource,
    /// A repository that has the blob: where it lies on a destination's registry, the registry is asked to mount it.
    pub known_in: Option<Repository>,
}

/// Where a layer's bytes are.
#[derive(Clone, Debug)]
pub enum LayerSource {
    /// The blob as it goes to the registry.
    File(PathBuf),
    /// A part of a file, from this offset on.
    Part(PathBuf, u64),
    Bytes(Bytes),
    /// A repository, on any registry. Implies `known_in`.
    Registry(Repository),
}

/// An image to push: exactly these bytes.
#[derive(Clone, Debug)]
pub struct PushImage {
    pub manifest: Bytes,
    pub manifest_media_type: String,
    pub digest: Digest,
    pub config: (Digest, Bytes),
    pub layers: Vec<PushLayer>,
}

/// Manifests, and the blobs that they name.
#[derive(Clone, Debug)]
pub struct Bundle {
    pub blobs: Vec<PushLayer>,
    /// What each repository gets by digest, in this order: what is named comes before what names it.
    pub children: Vec<Document>,
    /// What goes under the destinations' names.
    pub root: Document,
}

/// Told (repository, blob, bytes on their way, bytes in all). Bytes fall back when an upload starts again.
pub type PushProgress = Arc<dyn Fn(&Repository, Digest, u64, u64) + Send + Sync>;

/// What a push took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PushReport {
    /// Blobs by what it took to have them there, over all repositories.
    pub uploaded: u64,
    pub mounted: u64,
    pub existed: u64,
    /// Bytes of the uploaded blobs.
    pub uploaded_bytes: u64,
    /// Tags (or digests) that name the image now and did not before.
    pub changed: Vec<String>,
    /// Those that named it already: nothing was sent for them.
    pub unchanged: Vec<String>,
    /// Immutable tags that keep their other content, because the client may skip them.
    pub skipped: Vec<String>,
    /// Requests and retries of the client since the uploader was made.
    pub requests: u64,
    pub retries: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error("cannot push to {destination}: {error}")]
    Registry { destination: String, error: RegistryError },
    #[error(
        "cannot push to {destination}: the tag is immutable and names {there} already, not {digest}"
    )]
    Immutable { destination: String, there: Digest, digest: Digest },
    #[error(
        "cannot push to {destination}: the tag is immutable and names {there} already, and this build makes another image"
    )]
    Kept { destination: String, there: Digest },
    #[error("cannot push to {destination}: the image's digest is {digest}")]
    OtherDigest { destination: String, digest: Digest },
    #[error("the manifest to push is not valid: {0}")]
    Manifest(ManifestError),
    #[error("the image to push is not consistent: {0}")]
    Image(String),
    #[error("an upload ended without a result: {0}")]
    Task(String),
}

const IMMUTABLE_HINT: &str =
    "push under another tag, or leave the tag as it is with --skip-immutable";

impl PushError {
    /// The error that leaves core, with its hint.
    pub fn into_error(self) -> Error {
        let class = match self {
            PushError::Registry { .. }
            | PushError::Immutable { .. }
            | PushError::Kept { .. }
            | PushError::OtherDigest { .. } => Class::Push,
            _ => Class::Bug,
        };
        let hint = match &self {
            PushError::Registry { error, .. } => error.hint(),
            PushError::Immutable { .. } | PushError::Kept { .. } => Some(IMMUTABLE_HINT.into()),
            _ => None,
        };
        let error = Error::from_cause(class, self);
        error.maybe_hint(hint)
    }
}

impl PushReport {
    /// What the user should know although the push succeeded.
    pub fn warnings(&self) -> Vec<Warning> {
        let warning = |name: &String| Warning {
            message: format!("{name} is immutable and keeps its other content: it was not pushed"),
            location: None,
            hint: Some("push under another tag, or leave out --skip-immutable".into()),
        };
        self.skipped.iter().map(warning).collect()
    }
}

impl PushImage {
    /// The image as a bundle, once its parts are seen to belong together.
    fn bundle(&self) -> Result<Bundle, PushError> {
        self.check()?;
        let (digest, bytes) = self.config.clone();
        let config = PushLayer {
            digest,
            size: bytes.len() as u64,
            source: LayerSource::Bytes(bytes),
            known_in: None,
        };
        let root = Document {
            bytes: self.manifest.clone(),
            media_type: self.manifest_media_type.clone(),
            digest: self.digest,
        };
        let blobs = std::iter::once(config).chain(self.layers.iter().cloned()).collect();
        Ok(Bundle { blobs, children: Vec::new(), root })
    }

    fn check(&self) -> Result<(), PushError> {
        let wrong = |what: String| Err(PushError::Image(what));
        if Digest::of(&self.manifest) != self.digest {
            return wrong(format!("the manifest's digest is not {}", self.digest));
        }
        if Digest::of(&self.config.1) != self.config.0 {
            return wrong(format!("the config's digest is not {}", self.config.0));
        }
        let (manifest, _) = Manifest::parse(&self.manifest, &self.manifest_media_type)
            .map_err(PushError::Manifest)?;
        let Manifest::Image(manifest) = manifest else {
            return wrong("it is an index".into());
        };
        if manifest.config.digest != self.config.0 {
            return wrong("the manifest names another config".into());
        }
        for named in &manifest.layers {
            let given =
                |layer: &PushLayer| (layer.digest, layer.size) == (named.digest, named.size);
            if !self.layers.iter().any(given) {
                return wrong(format!("the layer {} is missing", named.digest));
            }
        }
        Ok(())
    }
}

/// Pushes `image` to every destination: a tag, or `@digest` of the image itself.
///
/// A tag that names the image already gets nothing. Blobs go in parallel, four a registry; what the registry has, or
/// can mount, is not sent.
///
/// # Errors
/// The first failure; uploads under way are given up then.
pub async fn push(
    client: &Client,
    image: &PushImage,
    destinations: &[Reference],
    progress: PushProgress,
) -> Result<PushReport, PushError> {
    Uploader::new(client, destinations, progress)?.finish(image).await
}

/// Pushes a bundle to every destination, as [`push`] does an image: blobs, then what the root names, then the root.
///
/// # Errors
/// As there.
pub async fn push_bundle(
    client: &Client,
    bundle: &Bundle,
    destinations: &[Reference],
    progress: PushProgress,
) -> Result<PushReport, PushError> {
    Uploader::new(client, destinations, progress)?.finish_bundle(bundle).await
}

#[cfg(test)]
mod tests;
