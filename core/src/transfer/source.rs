//! Where an image comes from: a repository, or a layout.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    error::{Class, Error},
    image::{ImageConfig, platform::Platform},
    push::LayerSource,
    registry::{
        Client, Descriptor, FetchedManifest, ImageIndex, ImageManifest, Manifest, PinnedReference,
        Reference, Repository, manifest::DescriptorPlatform, select_platform,
    },
    resolve::layout::{BlobPlace, Layout, LayoutError},
};

use super::{LayoutPlace, Place};

/// Configurations beyond this many bytes are refused.
const CONFIG_BYTES_MAX: u64 = 8 << 20;
/// Indexes in indexes beyond this depth are refused.
pub(super) const INDEX_DEPTH_MAX: usize = 3;

#[derive(Clone)]
pub(super) enum Source {
    Registry { client: Client, reference: Reference },
    Layout { layout: Arc<Layout>, place: LayoutPlace },
}

impl Source {
    pub(super) fn open(place: &Place, client: &Client) -> Result<Self, Error> {
        Ok(match place {
            Place::Registry(reference) => {
                Source::Registry { client: client.clone(), reference: reference.clone() }
            }
            Place::Layout(place) => {
                let layout = Arc::new(Layout::open(&place.path).map_err(of_layout)?);
                Source::Layout { layout, place: place.clone() }
            }
        })
    }

    /// What the source's name says: an image, an index, or a platform's image.
    pub(super) async fn root(&self, platform: Option<&Platform>) -> Result<FetchedManifest, Error> {
        let root = match self {
            Source::Registry { client, reference } => {
                let fetched = client.manifest(reference).await;
                fetched.map_err(|error| error.into_error(Class::Source))?
            }
            Source::Layout { layout, place } => listed(layout, place, platform)?,
        };
        match platform {
            None => Ok(root),
            Some(platform) => self.selected(root, platform).await,
        }
    }

    /// Follows indexes to the platform's image. A plain image must be for the platform itself.
    async fn selected(
        &self,
        mut fetched: FetchedManifest,
        platform: &Platform,
    ) -> Result<FetchedManifest, Error> {
        for depth in 0..INDEX_DEPTH_MAX {
            let entry = match &fetched.manifest {
                // An index has said which platform its entry is for.
                Manifest::Image(_) if depth > 0 => return Ok(fetched),
                Manifest::Image(image) => {
                    let own = self.platform(image).await?;
                    let alone = index_of(vec![described(&fetched, own)]);
                    select_platform(&alone, platform).map_err(of_source)?;
                    return Ok(fetched);
                }
                Manifest::Index(index) => select_platform(index, platform).map_err(of_source)?,
            };
            fetched = self.child(entry).await?;
        }
        match fetched.manifest {
            Manifest::Image(_) => Ok(fetched),
            Manifest::Index(_) => Err(too_deep()),
        }
    }

    /// A manifest that an index names.
    pub(super) async fn child(&self, entry: &Descriptor) -> Result<FetchedManifest, Error> {
        let fetched = match self {
            Source::Layout { layout, .. } => layout.descriptor(entry).map_err(of_layout)?,
            Source::Registry { client, reference } => {
                let repository = Repository::from(reference);
                let pinned = PinnedReference { repository, digest: entry.digest };
                let fetched = client.pinned_manifest(&pinned).await;
                fetched.map_err(|error| error.into_error(Class::Source))?
            }
        };
        match entry.media_type.is_empty() || fetched.media_type == entry.media_type {
            true => Ok(fetched),
            false => Err(Error::new(
                Class::Source,
                format!(
                    "{} is of type {}, but its index says {:?}",
                    entry.digest, fetched.media_type, entry.media_type
                ),
            )),
        }
    }

    /// Where a blob's bytes are, and in which repository.
    pub(super) fn blob(
        &self,
        descriptor: &Descriptor,
    ) -> Result<(LayerSource, Option<Repository>), Error> {
        if let Some(inline) = descriptor.inline() {
            return Ok((LayerSource::Bytes(inline), None));
        }
        match self {
            Source::Registry { reference, .. } => {
                let repository = Repository::from(reference);
                Ok((LayerSource::Registry(repository.clone()), Some(repository)))
            }
            Source::Layout { layout, .. } => {
                let place = layout.blob_place(&descriptor.digest).map_err(of_layout)?;
                let source = match place {
                    BlobPlace::File(path) => LayerSource::File(path),
                    BlobPlace::Part(path, offset) => LayerSource::Part(path, offset),
                };
                Ok((source, None))
            }
        }
    }

    /// The platform that an image's configuration names.
    pub(super) async fn platform(&self, image: &ImageManifest) -> Result<Platform, Error> {
        let bytes = self.config(&image.config).await?;
        let digest = image.config.digest;
        let config: ImageConfig = serde_json::from_slice(&bytes).map_err(|error| {
            let title = format!("the configuration {digest} cannot be read: {error}");
            Error::new(Class::Source, title)
        })?;
        match config.os.is_empty() || config.architecture.is_empty() {
            true => Err(Error::new(
                Class::Source,
                format!("the configuration {digest} names no platform"),
            )
            .hint("only images of a platform can be chosen, or joined, by platform")),
            false => Ok(config.platform()),
        }
    }

    async fn config(&self, descriptor: &Descriptor) -> Result<Bytes, Error> {
        match self {
            Source::Registry { client, reference } => {
                let repository = Repository::from(reference);
                let fetched = client.fetch_small(&repository, descriptor, CONFIG_BYTES_MAX).await;
                fetched.map_err(|error| error.into_error(Class::Source))
            }
            Source::Layout { layout, .. } => {
                layout.small_blob(descriptor).map(Bytes::from).map_err(of_layout)
            }
        }
    }
}

/// What a layout's `index.json` has under the place's name; of several, the one for the platform.
fn listed(
    layout: &Layout,
    place: &LayoutPlace,
    platform: Option<&Platform>,
) -> Result<FetchedManifest, Error> {
    let digest = place.digest.map(|digest| digest.to_string());
    let (tag, digest) = (place.tag.as_deref(), digest.as_deref());
    let found = layout.candidates(tag, digest).map_err(of_layout)?;
    let fetched = match (found.as_slice(), platform) {
        ([_, _, ..], Some(platform)) => {
            let several = index_of(found.into_iter().cloned().collect());
            let entry = select_platform(&several, platform).map_err(of_source)?;
            layout.descriptor(entry)
        }
        ([_, _, ..], None) => Err(layout.missing("alone in it")),
        _ => layout.manifest(tag, digest),
    };
    fetched.map_err(|error| {
        let several = matches!(error, LayoutError::Missing { .. });
        let hint = "name one as PATH:NAME or PATH@DIGEST, or choose by --platform";
        of_layout(error).maybe_hint(several.then(|| hint.to_owned()))
    })
}

fn index_of(manifests: Vec<Descriptor>) -> ImageIndex {
    ImageIndex { manifests, artifact_type: None, subject: None, annotations: Default::default() }
}

/// A descriptor with a platform, to choose by.
fn described(fetched: &FetchedManifest, platform: Platform) -> Descriptor {
    let Platform { os, architecture, variant, os_version } = platform;
    Descriptor {
        media_type: fetched.media_type.clone(),
        digest: fetched.digest,
        size: fetched.bytes.len() as u64,
        urls: Vec::new(),
        annotations: Default::default(),
        data: None,
        artifact_type: None,
        platform: Some(DescriptorPlatform { os, architecture, variant, os_version }),
    }
}

pub(super) fn too_deep() -> Error {
    Error::new(Class::Source, "the image is an index of indexes without end")
}

pub(super) fn of_source(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::from_cause(Class::Source, error)
}

fn of_layout(error: LayoutError) -> Error {
    Error::from_cause(Class::Source, error)
}
