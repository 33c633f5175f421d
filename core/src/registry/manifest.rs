//! Manifests and indexes (OCI image-spec manifest.md, image-index.md; Docker schema 2): read strictly, never rewritten.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use oci_distribution::manifest as names;
use serde::Deserialize;

use super::strict_json::{self, JsonError};
use crate::digest::Digest;

pub const OCI_MANIFEST: &str = names::OCI_IMAGE_MEDIA_TYPE;
pub const OCI_INDEX: &str = names::OCI_IMAGE_INDEX_MEDIA_TYPE;
pub const DOCKER_MANIFEST: &str = names::IMAGE_MANIFEST_MEDIA_TYPE;
pub const DOCKER_LIST: &str = names::IMAGE_MANIFEST_LIST_MEDIA_TYPE;
const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// For the `Accept` header: without all four, registries convert what they have and the digest changes.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error(transparent)]
    Json(#[from] JsonError),
    #[error("{0}")]
    Shape(String),
    #[error("it is a Docker schema 1 manifest, which is not supported")]
    Schema1,
    #[error("it has both layers and manifests")]
    Ambiguous,
    #[error("it calls itself {inside:?}, but the registry calls it {outside:?}")]
    Contradiction { inside: String, outside: String },
    #[error("nothing says what it is: no mediaType inside, {0:?} outside")]
    NoMediaType(String),
    #[error("its media type {0:?} is not one of an image or an index")]
    UnknownMediaType(String),
    #[error("the descriptor of {digest} is wrong: {reason}")]
    Descriptor { digest: Digest, reason: &'static str },
}

impl ManifestError {
    pub fn hint(&self) -> Option<String> {
        matches!(self, ManifestError::Schema1).then(|| {
            "build and push the image again with a tool of this decade: it then becomes schema 2 or OCI".into()
        })
    }
}

/// What a manifest says of a blob or of another manifest (image-spec descriptor.md).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Where else the blob lies; never followed.
    #[serde(default)]
    pub urls: Vec<String>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// The content itself in base64; checked against digest and size.
    #[serde(default)]
    pub data: Option<String>,
    #[serde(default)]
    pub artifact_type: Option<String>,
    /// Of index entries.
    #[serde(default)]
    pub platform: Option<DescriptorPlatform>,
}

/// An index entry's platform as it stands there, not normalised.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DescriptorPlatform {
    pub os: String,
    pub architecture: String,
    pub variant: String,
    #[serde(rename = "os.version")]
    pub os_version: String,
}

impl Descriptor {
    /// The inline content, if there is some (image-spec descriptor.md, "data").
    pub fn inline(&self) -> Option<Bytes> {
        self.data.as_ref().and_then(|data| BASE64.decode(data).ok()).map(Bytes::from)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let wrong = |reason| Err(ManifestError::Descriptor { digest: self.digest, reason });
        if self.data.is_some() {
            let Some(data) = self.inline() else { return wrong("its data is not base64") };
            if data.len() as u64 != self.size || Digest::of(&data) != self.digest {
                return wrong("its data does not have its digest and size");
            }
        }
        if self.media_type == OCI_EMPTY && (self.size != 2 || self.digest != Digest::of(b"{}")) {
            return wrong("the empty JSON document is {} and nothing else");
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageManifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    #[serde(default)]
    pub artifact_type: Option<String>,
    #[serde(default)]
    pub subject: Option<Box<Descriptor>>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageIndex {
    pub manifests: Vec<Descriptor>,
    #[serde(default)]
    pub artifact_type: Option<String>,
    #[serde(default)]
    pub subject: Option<Box<Descriptor>>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manifest {
    Image(Box<ImageManifest>),
    Index(ImageIndex),
}

/// The fields that decide what a document is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    schema_version: Option<u64>,
    media_type: Option<String>,
    layers: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Manifest {
    /// Reads a manifest or an index. `outside` is the media type that the registry or the descriptor gave.
    ///
    /// Returns it with its media type.
    ///
    /// # Errors
    /// Everything of which two readers might think differently: duplicate keys, `layers` beside `manifests`, a media
    /// type that is absent or contradicts `outside`, wrong descriptors; and Docker schema 1.
    pub fn parse(bytes: &[u8], outside: &str) -> Result<(Manifest, String), ManifestError> {
        strict_json::check(bytes)?;
        check_spelling(bytes)?;
        let head: Head = read(bytes)?;
        let outside = outside.split(';').next().unwrap_or_default().trim();
        if head.schema_version == Some(1) || head.fs_layers.is_some() {
            return Err(ManifestError::Schema1);
        }
        if head.schema_version != Some(2) {
            return Err(ManifestError::Shape("its schemaVersion is not 2".into()));
        }
        if head.layers.is_some() && head.manifests.is_some() {
            return Err(ManifestError::Ambiguous);
        }
        let media_type = media_type(head.media_type.as_deref(), outside)?;
        let manifest = match media_type {
            OCI_INDEX | DOCKER_LIST => Manifest::Index(read(bytes)?),
            _ => Manifest::Image(Box::new(read(bytes)?)),
        };
        manifest.descriptors().try_for_each(Descriptor::check)?;
        Ok((manifest, media_type.to_owned()))
    }

    fn descriptors(&self) -> impl Iterator<Item = &Descriptor> {
        let (config, list, subject) = match self {
            Manifest::Image(image) => (Some(&image.config), &image.layers, &image.subject),
            Manifest::Index(index) => (None, &index.manifests, &index.subject),
        };
        config.into_iter().chain(list).chain(subject.as_deref())
    }
}

fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, ManifestError> {
    serde_json::from_slice(bytes)
        .map_err(|error| ManifestError::Shape(super::error::printable(&error.to_string(), 300)))
}

/// Go's readers take `Layers` for `layers`: a document with such a twin means two things.
fn check_spelling(bytes: &[u8]) -> Result<(), ManifestError> {
    const FIELDS: [&str; 9] = [
        "schemaVersion",
        "mediaType",
        "artifactType",
        "config",
        "layers",
        "manifests",
        "fsLayers",
        "subject",
        "annotations",
    ];
    let fields: BTreeMap<String, serde::de::IgnoredAny> = read(bytes)?;
    let wrong = fields
        .keys()
        .find(|key| FIELDS.iter().any(|field| *field != **key && field.eq_ignore_ascii_case(key)));
    match wrong {
        Some(key) => Err(ManifestError::Shape(format!("the key {key:?} is misspelt"))),
        None => Ok(()),
    }
}

/// Whether `media_type` is one of an image or an index.
pub(crate) fn known(media_type: &str) -> bool {
    [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST].contains(&media_type)
}

fn media_type<'a>(inside: Option<&'a str>, outside: &'a str) -> Result<&'a str, ManifestError> {
    // What servers say when they do not know.
    const VAGUE: [&str; 4] = ["", "application/json", "application/octet-stream", "text/plain"];
    match inside {
        Some(inside) if !known(inside) => Err(ManifestError::UnknownMediaType(inside.to_owned())),
        Some(inside) if inside == outside || VAGUE.contains(&outside) => Ok(inside),
        Some(inside) => Err(ManifestError::Contradiction {
            inside: inside.to_owned(),
            outside: outside.chars().take(100).collect(),
        }),
        None if known(outside) => Ok(outside),
        None => Err(ManifestError::NoMediaType(outside.chars().take(100).collect())),
    }
}

/// A manifest or an index as a registry served it.
#[derive(Clone, Debug)]
pub struct FetchedManifest {
    /// Exactly the bytes whose digest it is.
    pub bytes: Bytes,
    pub media_type: String,
    pub digest: Digest,
    pub manifest: Manifest,
}

impl FetchedManifest {
    /// Reads `bytes`, whose digest the caller has compared already.
    pub(crate) fn new(bytes: Bytes, outside: &str) -> Result<Self, ManifestError> {
        let digest = Digest::of(&bytes);
        // Docker schema 1 media types carry no mediaType inside.
        if outside.contains("docker.distribution.manifest.v1") {
            return Err(ManifestError::Schema1);
        }
        let (manifest, media_type) = Manifest::parse(&bytes, outside)?;
        Ok(FetchedManifest { bytes, media_type, digest, manifest })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn descriptor(content: &[u8]) -> serde_json::Value {
        json!({"mediaType": "x/y", "digest": Digest::of(content), "size": content.len()})
    }

    fn image() -> serde_json::Value {
        json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(b"{}"),
               "layers": [descriptor(b"one")]})
    }

    fn parse(document: &serde_json::Value, outside: &str) -> Result<String, ManifestError> {
        Manifest::parse(document.to_string().as_bytes(), outside).map(|(_, media_type)| media_type)
    }

    #[test]
    fn media_types() {
        let mut document = image();
        for outside in
            [OCI_MANIFEST, "application/json", "", &format!("{OCI_MANIFEST}; charset=utf-8")]
        {
            assert_eq!(parse(&document, outside).unwrap(), OCI_MANIFEST);
        }
        for outside in [DOCKER_MANIFEST, OCI_INDEX, "text/html"] {
            assert!(matches!(parse(&document, outside), Err(ManifestError::Contradiction { .. })));
        }
        document.as_object_mut().unwrap().remove("mediaType");
        assert_eq!(parse(&document, OCI_MANIFEST).unwrap(), OCI_MANIFEST);
        assert!(matches!(parse(&document, "application/json"), Err(ManifestError::NoMediaType(_))));
        // An image that is called an index has no manifests.
        assert!(matches!(parse(&document, OCI_INDEX), Err(ManifestError::Shape(_))));
    }

    #[test]
    fn ambiguous_documents() {
        let mut both = image();
        both["manifests"] = json!([]);
        assert!(matches!(parse(&both, ""), Err(ManifestError::Ambiguous)));
        let mut twin = image();
        twin["Layers"] = json!([]);
        assert!(matches!(parse(&twin, ""), Err(ManifestError::Shape(_))));
        let text = image().to_string().replacen('{', r#"{"schemaVersion":2,"#, 1);
        assert!(matches!(Manifest::parse(text.as_bytes(), ""), Err(ManifestError::Json(_))));
    }

    #[test]
    fn schema_1_is_named() {
        let old = json!({"schemaVersion": 1, "name": "x", "tag": "y", "fsLayers": []});
        let error = parse(&old, "application/vnd.docker.distribution.manifest.v1+prettyjws");
        assert!(matches!(error, Err(ManifestError::Schema1)));
        assert!(ManifestError::Schema1.hint().unwrap().contains("push"));
    }

    #[test]
    fn wrong_descriptors() {
        for (field, value) in [
            ("size", json!(-1)),
            ("size", json!(1.5)),
            ("size", json!("3")),
            ("digest", json!("sha256:../../x")),
            ("digest", json!(format!("md5:{}", "a".repeat(32)))),
            ("data", json!("b25l")),
            ("data", json!("!")),
        ] {
            let mut document = image();
            document["layers"][0][field] = value.clone();
            if field == "data" {
                document["layers"][0]["digest"] = json!(Digest::of(b"two"));
            }
            assert!(parse(&document, "").is_err(), "{field} {value}");
        }
        let mut inline = image();
        inline["layers"][0]["data"] = json!("b25l");
        parse(&inline, "").unwrap();
        let mut empty = image();
        empty["config"]["mediaType"] = json!(OCI_EMPTY);
        parse(&empty, "").unwrap();
        empty["config"]["digest"] = json!(Digest::of(b"[]"));
        assert!(parse(&empty, "").is_err());
    }
}
