//! A reader of OCI layouts that trusts nothing: every digest, size and diff ID on the way is verified.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{Tree, oci};

/// The one image of an OCI layout directory.
pub struct Layout {
    pub path: PathBuf,
    /// The manifest's digest.
    pub digest: String,
    /// The descriptor in index.json.
    pub descriptor: Value,
    pub manifest: Value,
    pub config: Value,
}

impl Layout {
    /// # Panics
    /// If a document is missing or malformed, a digest, size or diff ID is wrong, or there is not exactly one image.
    #[track_caller]
    pub fn open(path: &Path) -> Layout {
        let version: Value = json(
            &fs::read(path.join("oci-layout"))
                .unwrap_or_else(|error| panic!("{}: {error}", path.display())),
        );
        assert_eq!(version["imageLayoutVersion"], "1.0.0", "{}", path.display());
        let index = json(&fs::read(path.join("index.json")).unwrap());
        let manifests = index["manifests"].as_array().expect("index.json has manifests");
        assert_eq!(manifests.len(), 1, "{index:#}");
        Layout::read(path, manifests[0].clone())
    }

    fn read(path: &Path, descriptor: Value) -> Layout {
        let manifest = json(&verified(path, &descriptor));
        assert_eq!(manifest["schemaVersion"], 2, "{manifest:#}");
        let config = json(&verified(path, &manifest["config"]));
        let digest = descriptor["digest"].as_str().unwrap().to_owned();
        let layout = Layout { path: path.to_owned(), digest, descriptor, manifest, config };
        layout.verify_layers();
        layout
    }

    fn verify_layers(&self) {
        let diff_ids = self.diff_ids();
        let descriptors = self.layer_descriptors();
        assert_eq!(descriptors.len(), diff_ids.len(), "layers and diff IDs");
        for (descriptor, diff_id) in descriptors.iter().zip(&diff_ids) {
            let bytes = verified(&self.path, descriptor);
            assert_compression(descriptor, &bytes);
            let plain =
                oci::decompress(&bytes).unwrap_or_else(|error| panic!("{descriptor}: {error}"));
            assert_eq!(&oci::digest(&plain), diff_id, "diff ID of {descriptor}");
        }
        let history = self.config["history"].as_array().cloned().unwrap_or_default();
        let with_layer = history.iter().filter(|entry| entry["empty_layer"] != true).count();
        assert!(
            history.is_empty() || with_layer == diff_ids.len(),
            "history tells of {with_layer} layers: {:#}",
            self.config
        );
    }

    pub fn layer_descriptors(&self) -> Vec<Value> {
        self.manifest["layers"].as_array().expect("the manifest has layers").clone()
    }

    pub fn diff_ids(&self) -> Vec<String> {
        let ids = self.config["rootfs"]["diff_ids"].as_array().expect("the config has diff IDs");
        ids.iter().map(|id| id.as_str().unwrap().to_owned()).collect()
    }

    /// The uncompressed tars, lowest first.
    pub fn layers(&self) -> Vec<Vec<u8>> {
        let plain =
            |descriptor: &Value| oci::decompress(&verified(&self.path, descriptor)).unwrap();
        self.layer_descriptors().iter().map(plain).collect()
    }

    /// The names in layer `number` (from the end if negative) as they stand in the tar.
    pub fn layer_names(&self, number: isize) -> Vec<String> {
        let layers = self.layers();
        let at = if number < 0 { layers.len() as isize + number } else { number };
        let mut archive = tar::Archive::new(&layers[at as usize][..]);
        let name =
            |entry: tar::Entry<'_, _>| String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        archive.entries().unwrap().map(|entry| name(entry.unwrap())).collect()
    }

    /// The tree that the layers make together.
    pub fn tree(&self) -> Tree {
        Tree::of_layers(&self.layers())
    }

    /// The content of a regular file of the flattened tree.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn content(&self, path: &str) -> Vec<u8> {
        let tree = self.tree();
        let entry = tree.get(path);
        assert_eq!(entry.kind, super::Kind::File, "{path}");
        entry.content.clone().unwrap_or_else(|| panic!("{path} is too large to be kept"))
    }
}

fn assert_compression(descriptor: &Value, bytes: &[u8]) {
    let media_type = descriptor["mediaType"].as_str().expect("a layer has a media type");
    let expected = match bytes {
        [0x1f, 0x8b, ..] => "gzip",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        _ => "tar",
    };
    assert!(media_type.ends_with(expected), "{media_type}, but the bytes are {expected}");
}

/// The blob of a descriptor.
fn verified(layout: &Path, descriptor: &Value) -> Vec<u8> {
    let digest =
        descriptor["digest"].as_str().unwrap_or_else(|| panic!("no digest in {descriptor}"));
    let hex = digest.strip_prefix("sha256:").expect("digests are SHA-256");
    let path = layout.join("blobs/sha256").join(hex);
    let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(descriptor["size"].as_u64(), Some(bytes.len() as u64), "size in {descriptor}");
    assert_eq!(oci::sha256_hex(&bytes), hex, "bytes of {descriptor}");
    bytes
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(bytes)))
}
