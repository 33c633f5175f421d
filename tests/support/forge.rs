//! Forges images: right ones from any layers, and wrong ones by overriding what descriptors say.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};

use super::{Layout, Peers, oci};

/// An image under construction.
pub struct ImageForge {
    layers: Vec<LayerForge>,
    config: Value,
    /// Keys to set in the manifest when it is written.
    manifest: BTreeMap<String, Value>,
    /// Keys to set in the config's descriptor.
    config_descriptor: BTreeMap<String, Value>,
}

struct LayerForge {
    blob: Vec<u8>,
    diff_id: String,
    descriptor: Value,
}

impl ImageForge {
    /// No layers; PATH and nothing else in the config.
    pub fn scratch() -> ImageForge {
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        ImageForge {
            layers: Vec::new(),
            config: json!({"architecture": architecture, "os": "linux", "config": {"Env": [path]}}),
            manifest: BTreeMap::new(),
            config_descriptor: BTreeMap::new(),
        }
    }

    /// The busybox base, so that a RUN can look at what the next layers did.
    pub fn busybox() -> ImageForge {
        let layers = Layout::open(&Peers::get().layout("busybox")).layers();
        layers.into_iter().fold(ImageForge::scratch(), |forge, layer| forge.layer(&layer))
    }

    /// A gzip layer of a tar.
    pub fn layer(self, tar: &[u8]) -> ImageForge {
        self.blob(oci::gzip(tar), tar, oci::LAYER_GZIP)
    }

    /// A layer whose blob, uncompressed bytes and media type may contradict each other.
    pub fn blob(mut self, blob: Vec<u8>, tar: &[u8], media_type: &str) -> ImageForge {
        let descriptor =
            json!({"mediaType": media_type, "digest": oci::digest(&blob), "size": blob.len()});
        self.layers.push(LayerForge { blob, diff_id: oci::digest(tar), descriptor });
        self
    }

    /// Overrides a key of the last layer's descriptor (`digest`, `size`, `mediaType`, `data`, …).
    pub fn last_descriptor(mut self, key: &str, value: impl Into<Value>) -> ImageForge {
        self.last().descriptor[key] = value.into();
        self
    }

    /// Overrides the last layer's bytes; what the documents say of them stays.
    pub fn last_bytes(mut self, change: impl FnOnce(&mut Vec<u8>)) -> ImageForge {
        change(&mut self.last().blob);
        self
    }

    pub fn last_diff_id(mut self, diff_id: &str) -> ImageForge {
        self.last().diff_id = diff_id.to_owned();
        self
    }

    fn last(&mut self) -> &mut LayerForge {
        self.layers.last_mut().expect("there is a layer")
    }

    /// Sets a key of the config's `config` object.
    pub fn config(mut self, key: &str, value: impl Into<Value>) -> ImageForge {
        self.config["config"][key] = value.into();
        self
    }

    pub fn manifest(mut self, key: &str, value: impl Into<Value>) -> ImageForge {
        self.manifest.insert(key.to_owned(), value.into());
        self
    }

    pub fn config_descriptor(mut self, key: &str, value: impl Into<Value>) -> ImageForge {
        self.config_descriptor.insert(key.to_owned(), value.into());
        self
    }

    /// The finished documents and blobs.
    pub fn forge(mut self) -> Forged {
        let diff_ids: Vec<&str> = self.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        self.config["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids});
        self.config["history"] =
            self.layers.iter().map(|_| json!({"created_by": "forged"})).collect();
        let config = self.config.to_string().into_bytes();
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": oci::MANIFEST,
            "config": {"mediaType": oci::CONFIG, "digest": oci::digest(&config), "size": config.len()},
            "layers": self.layers.iter().map(|layer| layer.descriptor.clone()).collect::<Vec<_>>(),
        });
        manifest.as_object_mut().unwrap().extend(self.manifest);
        manifest["config"].as_object_mut().unwrap().extend(self.config_descriptor);
        let mut blobs = BTreeMap::from([(oci::digest(&config), config)]);
        for layer in self.layers {
            blobs.insert(
                layer.descriptor["digest"].as_str().unwrap_or("none").to_owned(),
                layer.blob,
            );
        }
        Forged::new(manifest.to_string().into_bytes(), blobs)
    }
}

/// An image's bytes: each blob under the digest that the documents give it, which may be a lie.
#[derive(Clone)]
pub struct Forged {
    pub digest: String,
    pub manifest: Vec<u8>,
    pub blobs: BTreeMap<String, Vec<u8>>,
}

impl Forged {
    pub fn new(manifest: Vec<u8>, blobs: BTreeMap<String, Vec<u8>>) -> Forged {
        Forged { digest: oci::digest(&manifest), manifest, blobs }
    }

    /// Writes an OCI layout directory; blobs whose digest is not one (`sha256:../x`) are left out.
    pub fn write(&self, directory: &Path) {
        fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
        fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let descriptor =
            json!({"mediaType": oci::MANIFEST, "digest": self.digest, "size": self.manifest.len()});
        let index = json!({"schemaVersion": 2, "manifests": [descriptor]});
        fs::write(directory.join("index.json"), index.to_string()).unwrap();
        for (digest, bytes) in self.blobs.iter().chain([(&self.digest, &self.manifest)]) {
            if let Some(hex) = digest.strip_prefix("sha256:").filter(|hex| !hex.contains('/')) {
                fs::write(directory.join("blobs/sha256").join(hex), bytes).unwrap();
            }
        }
    }
}
