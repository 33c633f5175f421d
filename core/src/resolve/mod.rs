//! Names -> pinned manifests, configurations and layers. Each name is resolved once a build, so that all stages that use
//! it see the same image.

pub(crate) mod layout;

use std::sync::Arc;

use crate::{
    digest::Digest,
    error::{Class, Error, Location},
    image::ImageConfig,
    layer::LayerDescriptor,
    plan::{ImageSource, ImageUse},
    registry::{
        Client, PinnedReference, Reference,
        manifest::{Descriptor, FetchedManifest, ImageManifest, Manifest},
        reference, select_platform,
    },
    store::Store,
};

use layout::Layout;

/// Configurations beyond this many bytes are refused.
const CONFIG_BYTES_MAX: u64 = 8 << 20;
/// Indexes in indexes beyond this depth are refused.
const INDEX_DEPTH_MAX: usize = 3;

/// Where blobs can be fetched.
#[derive(Clone, Debug)]
pub enum Origin {
    Registry(PinnedReference),
    Layout(Arc<Layout>),
}

/// One layer of an image that the build reads or makes.
#[derive(Clone, Debug)]
pub struct LayerRef {
    pub descriptor: LayerDescriptor,
    pub diff_id: Digest,
    /// `None` for layers that this builder wrote.
    pub origin: Option<Origin>,
    /// Where the Dockerfile names the layer's image.
    pub place: Option<Location>,
}

/// An image as it was when the build began.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// Of the platform's manifest.
    pub digest: Digest,
    pub config: ImageConfig,
    pub layers: Vec<LayerRef>,
}

impl ResolvedImage {
    /// The image with the place that names it: errors of its layers are told there.
    pub fn named_at(mut self, place: &Location) -> Self {
        self.layers.iter_mut().for_each(|layer| layer.place = Some(place.clone()));
        self
    }
}

/// Resolves images, remembering manifests and configurations by digest in the store.
pub struct Resolver<'a> {
    pub client: &'a Client,
    pub store: &'a Store,
}

impl Resolver<'_> {
    /// Pins an image and reads its configuration.
    ///
    /// # Errors
    /// Class `Source`: the registry, the reference or the documents are at fault.
    pub async fn resolve(&self, image: &ImageUse) -> Result<ResolvedImage, Error> {
        let (origin, fetched) = match &image.source {
            ImageSource::Registry(name) => self.pull_manifest(name).await?,
            ImageSource::Layout { path, tag, digest } => {
                let layout = Layout::open(path).map_err(source)?;
                let fetched = layout.manifest(tag.as_deref(), digest.as_deref()).map_err(source)?;
                (Origin::Layout(Arc::new(layout)), fetched)
            }
        };
        let (origin, digest, manifest) = self.select(image, origin, fetched).await?;
        let config_bytes = self.config(&origin, &manifest.config).await?;
        let config: ImageConfig = serde_json::from_slice(&config_bytes).map_err(|error| {
            Error::new(
                Class::Source,
                format!("the configuration of {image} cannot be read: {error}"),
            )
        })?;
        let layers = layers(image, &origin, &manifest, &config)?;
        Ok(ResolvedImage { digest, config, layers })
    }

    async fn pull_manifest(&self, name: &str) -> Result<(Origin, FetchedManifest), Error> {
        let reference = reference::parse(name).map_err(source)?;
        let digest = match reference.digest() {
            Some(digest) => digest.parse().map_err(source)?,
            None if self.client.resolves_by_fetching(&reference) => {
                let fetched = self.fetch(&reference).await?;
                let repository = (&reference).into();
                let pinned = PinnedReference { repository, digest: fetched.digest };
                return Ok((Origin::Registry(pinned), fetched));
            }
            None => {
                self.client
                    .resolve(&reference)
                    .await
                    .map_err(|e| e.into_error(Class::Source))?
                    .digest
            }
        };
        let pinned = PinnedReference { repository: (&reference).into(), digest };
        let fetched = self.pinned_as(&pinned, &reference).await?;
        Ok((Origin::Registry(pinned), fetched))
    }

    /// A manifest by its digest: from the store, else from the registry.
    async fn pinned(&self, pinned: &PinnedReference) -> Result<FetchedManifest, Error> {
        self.pinned_as(pinned, &pinned.to_reference()).await
    }

    /// The same, asked for as `reference`, which may name a tag beside the digest.
    async fn pinned_as(
        &self,
        pinned: &PinnedReference,
        reference: &Reference,
    ) -> Result<FetchedManifest, Error> {
        if let Some(bytes) = self.store.read_blob(&pinned.digest)
            && let Ok(fetched) = FetchedManifest::new(bytes.into(), "")
        {
            return Ok(fetched);
        }
        let fetched = self.fetch(reference).await?;
        if fetched.digest != pinned.digest {
            let title = format!("{pinned} answered with a manifest of digest {}", fetched.digest);
            return Err(Error::new(Class::Source, title));
        }
        Ok(fetched)
    }

    async fn fetch(&self, reference: &Reference) -> Result<FetchedManifest, Error> {
        let fetched = self.client.manifest(reference).await;
        let fetched = fetched.map_err(|error| error.into_error(Class::Source))?;
        // A manifest without a mediaType of its own could not be read back without the registry's word for it.
        if FetchedManifest::new(fetched.bytes.clone(), "").is_ok() {
            self.store.put_blob(&fetched.bytes).map_err(host)?;
        }
        Ok(fetched)
    }

    /// Follows indexes to the platform's image.
    async fn select(
        &self,
        image: &ImageUse,
        mut origin: Origin,
        mut fetched: FetchedManifest,
    ) -> Result<(Origin, Digest, ImageManifest), Error> {
        for _ in 0..INDEX_DEPTH_MAX {
            let index = match fetched.manifest {
                Manifest::Image(manifest) => return Ok((origin, fetched.digest, *manifest)),
                Manifest::Index(index) => index,
            };
            let entry = select_platform(&index, &image.platform)
                .map_err(|error| source(error).context(image))?;
            (origin, fetched) = match origin {
                Origin::Registry(pinned) => {
                    let pinned = PinnedReference { digest: entry.digest, ..pinned };
                    let fetched = self.pinned(&pinned).await?;
                    (Origin::Registry(pinned), fetched)
                }
                Origin::Layout(layout) => {
                    let fetched = layout.descriptor(entry).map_err(source)?;
                    (Origin::Layout(layout), fetched)
                }
            };
        }
        Err(Error::new(Class::Source, format!("{image} is an index of indexes without end")))
    }

    async fn config(&self, origin: &Origin, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        if descriptor.size > CONFIG_BYTES_MAX {
            let title = format!("the configuration {} is too large", descriptor.digest);
            return Err(Error::new(Class::Source, title));
        }
        if let Some(bytes) = self.store.read_blob(&descriptor.digest) {
            return Ok(bytes);
        }
        let bytes = match origin {
            Origin::Registry(pinned) => self
                .client
                .fetch_small(&pinned.repository, descriptor, CONFIG_BYTES_MAX)
                .await
                .map_err(|error| error.into_error(Class::Source))?
                .to_vec(),
            Origin::Layout(layout) => layout.small_blob(descriptor).map_err(source)?,
        };
        self.store.put_blob(&bytes).map_err(host)?;
        Ok(bytes)
    }
}

fn layers(
    image: &ImageUse,
    origin: &Origin,
    manifest: &ImageManifest,
    config: &ImageConfig,
) -> Result<Vec<LayerRef>, Error> {
    let diff_ids = &config.rootfs.diff_ids;
    if diff_ids.len() != manifest.layers.len() {
        let title = format!(
            "{image} is damaged: its manifest has {} layers, its configuration {} diff IDs",
            manifest.layers.len(),
            diff_ids.len()
        );
        return Err(Error::new(Class::Source, title));
    }
    let layer = |(descriptor, diff_id): (&Descriptor, &Digest)| LayerRef {
        descriptor: LayerDescriptor {
            media_type: descriptor.media_type.clone(),
            digest: descriptor.digest,
            size: descriptor.size,
        },
        diff_id: *diff_id,
        origin: Some(origin.clone()),
        place: None,
    };
    Ok(manifest.layers.iter().zip(diff_ids).map(layer).collect())
}

fn source(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::from_cause(Class::Source, error)
}

fn host(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::from_cause(Class::Host, error)
}
