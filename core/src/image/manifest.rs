//! The manifest of an image that was built (OCI image-spec manifest.md).

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{digest::Digest, layer::LayerDescriptor};

use super::{ImageConfig, platform::Platform};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A finished image: its documents as bytes and the blobs that they name.
#[derive(Clone, Debug)]
pub struct Image {
    pub manifest: Vec<u8>,
    pub digest: Digest,
    pub config: Vec<u8>,
    pub config_digest: Digest,
    pub layers: Vec<LayerDescriptor>,
    pub platform: Platform,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    schema_version: u32,
    media_type: &'a str,
    config: Descriptor<'a>,
    layers: Vec<Descriptor<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor<'a> {
    media_type: &'a str,
    digest: Digest,
    size: u64,
}

impl Image {
    /// Writes config and manifest. Docker's layer media types become OCI's: the bytes are the same.
    pub fn new(
        config: &ImageConfig,
        layers: Vec<LayerDescriptor>,
        annotations: &BTreeMap<String, String>,
    ) -> serde_json::Result<Self> {
        let layers: Vec<LayerDescriptor> = layers.into_iter().map(with_oci_media_type).collect();
        let config_bytes = serde_json::to_vec(config)?;
        let config_digest = Digest::of(&config_bytes);
        let manifest = Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST,
            config: Descriptor {
                media_type: OCI_CONFIG,
                digest: config_digest,
                size: config_bytes.len() as u64,
            },
            layers: layers.iter().map(describe).collect(),
            annotations,
        };
        let manifest = serde_json::to_vec(&manifest)?;
        let digest = Digest::of(&manifest);
        let platform = config.platform();
        Ok(Image { digest, manifest, config: config_bytes, config_digest, layers, platform })
    }

    /// The manifest's descriptor with the image's platform.
    pub fn descriptor(&self) -> serde_json::Value {
        serde_json::json!({
            "mediaType": OCI_MANIFEST,
            "digest": self.digest,
            "size": self.manifest.len(),
            "platform": self.platform,
        })
    }
}

/// What a build makes: an image, or an index of one image for each platform.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// In the order of the platforms asked for.
    pub images: Vec<Image>,
    index: Option<(Vec<u8>, Digest)>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index<'a> {
    schema_version: u32,
    media_type: &'a str,
    manifests: Vec<serde_json::Value>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

impl Artifact {
    /// One image stands for itself, several become an index (image-spec image-index.md).
    pub fn new(
        images: Vec<Image>,
        annotations: &BTreeMap<String, String>,
    ) -> serde_json::Result<Self> {
        if images.len() == 1 {
            return Ok(Artifact { images, index: None });
        }
        let index = Index {
            schema_version: 2,
            media_type: OCI_INDEX,
            manifests: images.iter().map(Image::descriptor).collect(),
            annotations,
        };
        let bytes = serde_json::to_vec(&index)?;
        let digest = Digest::of(&bytes);
        Ok(Artifact { images, index: Some((bytes, digest)) })
    }

    /// The bytes and digest of the index, where there is one.
    pub fn index(&self) -> Option<(&[u8], Digest)> {
        self.index.as_ref().map(|(bytes, digest)| (bytes.as_slice(), *digest))
    }

    /// Of the index, else of the image's manifest.
    pub fn digest(&self) -> Digest {
        self.index().map_or_else(|| self.images[0].digest, |(_, digest)| digest)
    }

    /// What identifies it to a container engine: the configuration's digest, or the index's.
    pub fn id(&self) -> Digest {
        self.index().map_or_else(|| self.images[0].config_digest, |(_, digest)| digest)
    }

    /// The descriptor of what `digest` names.
    pub fn descriptor(&self) -> serde_json::Value {
        match self.index() {
            None => self.images[0].descriptor(),
            Some((bytes, digest)) => serde_json::json!({
                "mediaType": OCI_INDEX,
                "digest": digest,
                "size": bytes.len(),
            }),
        }
    }

    /// Bytes of all documents and all layers, each once.
    pub fn total_bytes(&self) -> u64 {
        let mut blobs: BTreeMap<Digest, u64> = BTreeMap::new();
        for image in &self.images {
            blobs.extend(image.layers.iter().map(|layer| (layer.digest, layer.size)));
            blobs.insert(image.digest, image.manifest.len() as u64);
            blobs.insert(image.config_digest, image.config.len() as u64);
        }
        blobs.values().sum::<u64>() + self.index().map_or(0, |(bytes, _)| bytes.len() as u64)
    }
}

fn describe(layer: &LayerDescriptor) -> Descriptor<'_> {
    Descriptor { media_type: &layer.media_type, digest: layer.digest, size: layer.size }
}

fn with_oci_media_type(layer: LayerDescriptor) -> LayerDescriptor {
    let media_type = match layer.media_type.as_str() {
        "application/vnd.docker.image.rootfs.diff.tar" => OCI_LAYER.to_owned(),
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => format!("{OCI_LAYER}+gzip"),
        "application/vnd.docker.image.rootfs.diff.tar.zstd" => format!("{OCI_LAYER}+zstd"),
        other => other.to_owned(),
    };
    LayerDescriptor { media_type, ..layer }
}
