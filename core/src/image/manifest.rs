//! The manifest of an image that was built (OCI image-spec manifest.md, image-index.md; Docker's schema 2).

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{digest::Digest, layer::LayerDescriptor, request::ImageOptions};

use super::{ImageConfig, annotations::Level, platform::Platform};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("the layer {0} is compressed by zstd, which Docker's media types have no name for")]
    ZstdInDocker(Digest),
    #[error("the image's documents cannot be written")]
    Json(#[from] serde_json::Error),
}

/// A finished image: its documents as bytes and the blobs that they name.
#[derive(Clone, Debug)]
pub struct Image {
    pub manifest: Vec<u8>,
    pub media_type: &'static str,
    pub digest: Digest,
    pub config: Vec<u8>,
    pub config_digest: Digest,
    pub layers: Vec<LayerDescriptor>,
    pub platform: Platform,
    /// Of the manifest's descriptor.
    pub annotations: BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    schema_version: u32,
    media_type: &'a str,
    config: Descriptor<'a>,
    layers: Vec<Descriptor<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor<'a> {
    media_type: &'a str,
    digest: Digest,
    size: u64,
}

impl Image {
    /// Writes config and manifest. Layers get the media types of the documents' kind: the bytes are the same.
    ///
    /// # Errors
    /// A layer that Docker's media types cannot name.
    pub fn new(
        config: &ImageConfig,
        layers: Vec<LayerDescriptor>,
        options: &ImageOptions,
    ) -> Result<Self, ImageError> {
        let docker = options.docker_media_types;
        let layers: Result<Vec<_>, _> =
            layers.into_iter().map(|layer| renamed(layer, docker)).collect();
        let layers = layers?;
        let platform = config.platform();
        let config_bytes = serde_json::to_vec(config)?;
        let config_digest = Digest::of(&config_bytes);
        let media_type = if docker { DOCKER_MANIFEST } else { OCI_MANIFEST };
        let manifest = Manifest {
            schema_version: 2,
            media_type,
            config: Descriptor {
                media_type: if docker { DOCKER_CONFIG } else { OCI_CONFIG },
                digest: config_digest,
                size: config_bytes.len() as u64,
            },
            layers: layers.iter().map(describe).collect(),
            annotations: options.annotations.of(Level::Manifest, Some(&platform)),
        };
        let manifest = serde_json::to_vec(&manifest)?;
        Ok(Image {
            digest: Digest::of(&manifest),
            manifest,
            media_type,
            config: config_bytes,
            config_digest,
            layers,
            annotations: options.annotations.of(Level::ManifestDescriptor, Some(&platform)),
            platform,
        })
    }

    /// The manifest's descriptor with the image's platform.
    pub fn descriptor(&self) -> serde_json::Value {
        let mut descriptor = serde_json::json!({
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.manifest.len(),
            "platform": self.platform,
        });
        if !self.annotations.is_empty() {
            descriptor["annotations"] = serde_json::json!(self.annotations);
        }
        descriptor
    }
}

/// The index of an artifact's images.
#[derive(Clone, Debug)]
pub struct ArtifactIndex {
    pub bytes: Vec<u8>,
    pub media_type: &'static str,
    pub digest: Digest,
    /// Of its descriptor.
    pub annotations: BTreeMap<String, String>,
}

/// What a build makes: an image, or an index of one image for each platform.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// In the order of the platforms asked for.
    pub images: Vec<Image>,
    index: Option<ArtifactIndex>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: &'static str,
    manifests: Vec<serde_json::Value>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

impl Artifact {
    /// One image stands for itself, several become an index (image-spec image-index.md).
    pub fn new(images: Vec<Image>, options: &ImageOptions) -> serde_json::Result<Self> {
        if images.len() == 1 {
            return Ok(Artifact { images, index: None });
        }
        let media_type = if options.docker_media_types { DOCKER_LIST } else { OCI_INDEX };
        let index = Index {
            schema_version: 2,
            media_type,
            manifests: images.iter().map(Image::descriptor).collect(),
            annotations: options.annotations.of(Level::Index, None),
        };
        let bytes = serde_json::to_vec(&index)?;
        let digest = Digest::of(&bytes);
        let annotations = options.annotations.of(Level::IndexDescriptor, None);
        let index = ArtifactIndex { bytes, media_type, digest, annotations };
        Ok(Artifact { images, index: Some(index) })
    }

    /// The index, where there is one.
    pub fn index(&self) -> Option<&ArtifactIndex> {
        self.index.as_ref()
    }

    /// Of the index, else of the image's manifest.
    pub fn digest(&self) -> Digest {
        self.index().map_or_else(|| self.images[0].digest, |index| index.digest)
    }

    /// What identifies it to a container engine: the configuration's digest, or the index's.
    pub fn id(&self) -> Digest {
        self.index().map_or_else(|| self.images[0].config_digest, |index| index.digest)
    }

    /// The descriptor of what `digest` names.
    pub fn descriptor(&self) -> serde_json::Value {
        let Some(index) = self.index() else { return self.images[0].descriptor() };
        let mut descriptor = serde_json::json!({
            "mediaType": index.media_type,
            "digest": index.digest,
            "size": index.bytes.len(),
        });
        if !index.annotations.is_empty() {
            descriptor["annotations"] = serde_json::json!(index.annotations);
        }
        descriptor
    }

    /// Bytes of all documents and all layers, each once.
    pub fn total_bytes(&self) -> u64 {
        let mut blobs: BTreeMap<Digest, u64> = BTreeMap::new();
        for image in &self.images {
            blobs.extend(image.layers.iter().map(|layer| (layer.digest, layer.size)));
            blobs.insert(image.digest, image.manifest.len() as u64);
            blobs.insert(image.config_digest, image.config.len() as u64);
        }
        blobs.values().sum::<u64>() + self.index().map_or(0, |index| index.bytes.len() as u64)
    }
}

fn describe(layer: &LayerDescriptor) -> Descriptor<'_> {
    Descriptor { media_type: &layer.media_type, digest: layer.digest, size: layer.size }
}

/// A layer with the media type that OCI, or Docker, has for its compression.
fn renamed(layer: LayerDescriptor, docker: bool) -> Result<LayerDescriptor, ImageError> {
    let name = layer.media_type.as_str();
    let compression = name
        .strip_prefix(OCI_LAYER)
        .or_else(|| name.strip_prefix(DOCKER_LAYER))
        .map(|suffix| suffix.trim_start_matches(['+', '.']));
    let media_type = match (compression, docker) {
        (Some(""), true) => DOCKER_LAYER.to_owned(),
        (Some("gzip"), true) => format!("{DOCKER_LAYER}.gzip"),
        (Some("zstd"), true) => return Err(ImageError::ZstdInDocker(layer.digest)),
        (Some(""), false) => OCI_LAYER.to_owned(),
        (Some(compression @ ("gzip" | "zstd")), false) => format!("{OCI_LAYER}+{compression}"),
        _ => layer.media_type,
    };
    Ok(LayerDescriptor { media_type, ..layer })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::annotations::{Annotation, Annotations};

    fn layer(media_type: &str) -> LayerDescriptor {
        LayerDescriptor { media_type: media_type.into(), digest: Digest::of(b"x"), size: 1 }
    }

    #[test]
    fn layers_are_named_as_the_documents_are() {
        for (oci, docker) in [
            (OCI_LAYER, Some(DOCKER_LAYER)),
            (
                "application/vnd.oci.image.layer.v1.tar+gzip",
                Some("application/vnd.docker.image.rootfs.diff.tar.gzip"),
            ),
            ("application/vnd.oci.image.layer.v1.tar+zstd", None),
        ] {
            assert_eq!(renamed(layer(oci), false).unwrap().media_type, oci);
            let Some(docker) = docker else {
                assert!(matches!(renamed(layer(oci), true), Err(ImageError::ZstdInDocker(_))));
                continue;
            };
            assert_eq!(renamed(layer(oci), true).unwrap().media_type, docker);
            assert_eq!(renamed(layer(docker), false).unwrap().media_type, oci);
        }
        let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        assert_eq!(renamed(layer(foreign), false).unwrap().media_type, foreign);
    }

    #[test]
    fn each_level_has_its_annotations() {
        let annotation = |level, value: &str| Annotation {
            level,
            platform: None,
            key: "k".into(),
            value: value.into(),
        };
        let annotations = Annotations(vec![
            annotation(Level::Manifest, "manifest"),
            annotation(Level::Index, "index"),
            annotation(Level::ManifestDescriptor, "of-manifest"),
            annotation(Level::IndexDescriptor, "of-index"),
        ]);
        let options = ImageOptions { annotations, ..ImageOptions::default() };
        let image = |platform: &str| {
            let config = ImageConfig::scratch(&platform.parse().unwrap());
            Image::new(&config, Vec::new(), &options).unwrap()
        };
        let both = Artifact::new(vec![image("linux/amd64"), image("linux/arm64")], &options);
        let both = both.unwrap();
        let read = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
        assert_eq!(read(&both.images[0].manifest)["annotations"]["k"], "manifest");
        let index = read(&both.index().unwrap().bytes);
        assert_eq!(index["annotations"]["k"], "index");
        assert_eq!(index["manifests"][1]["annotations"]["k"], "of-manifest");
        assert_eq!(both.descriptor()["annotations"]["k"], "of-index");
    }
}
