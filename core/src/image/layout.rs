//! The OCI image layout as an output, a directory or a tar (image-layout.md); with `manifest.json` it is Docker's archive,
//! too.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{digest::Digest, store::Store};

use super::{Artifact, manifest};

/// What goes into a layout.
#[derive(Clone, Copy)]
pub struct LayoutContent<'a> {
    pub store: &'a Store,
    pub artifact: &'a Artifact,
    /// Full names with their tags.
    pub names: &'a [(String, String)],
    /// With `manifest.json`, as `docker save` writes it.
    pub docker: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} exists and is no empty directory and no OCI layout", .0.display())]
    Occupied(PathBuf),
    #[error("blob {digest} of the image is missing from the state directory")]
    Blob { digest: Digest, source: io::Error },
}

/// The bytes of `index.json`: one descriptor for each name, or one without a name.
fn index_document(artifact: &Artifact, names: &[(String, String)]) -> Vec<u8> {
    let descriptor = artifact.descriptor();
    let named = |(name, tag): &(String, String)| {
        let mut named = descriptor.clone();
        named["annotations"]["io.containerd.image.name"] = name.as_str().into();
        named["annotations"]["org.opencontainers.image.ref.name"] = tag.as_str().into();
        named
    };
    let manifests: Vec<Value> =
        if names.is_empty() { vec![descriptor.clone()] } else { names.iter().map(named).collect() };
    json!({"schemaVersion": 2, "mediaType": manifest::OCI_INDEX, "manifests": manifests})
        .to_string()
        .into_bytes()
}

/// The documents of an artifact by their digests.
fn documents(artifact: &Artifact) -> BTreeMap<Digest, &[u8]> {
    let mut documents: BTreeMap<Digest, &[u8]> = BTreeMap::new();
    for image in &artifact.images {
        documents.insert(image.digest, &image.manifest);
        documents.insert(image.config_digest, &image.config);
    }
    documents.extend(artifact.index().map(|index| (index.digest, index.bytes.as_slice())));
    documents
}

/// The layers of all images by their digests, with their sizes.
fn layers(artifact: &Artifact) -> BTreeMap<Digest, u64> {
    let layers = artifact.images.iter().flat_map(|image| &image.layers);
    layers.map(|layer| (layer.digest, layer.size)).collect()
}

/// The bytes of Docker's `manifest.json` (moby's image/tarexport): the layout's blobs by their paths.
fn docker_document(artifact: &Artifact, names: &[(String, String)]) -> Vec<u8> {
    let blob = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    let tags: Vec<&str> = names.iter().map(|(name, _)| familiar(name)).collect();
    let entry = |image: &super::Image| {
        let layers: Vec<String> = image.layers.iter().map(|layer| blob(&layer.digest)).collect();
        json!({"Config": blob(&image.config_digest), "RepoTags": tags, "Layers": layers})
    };
    Value::Array(artifact.images.iter().map(entry).collect()).to_string().into_bytes()
}

/// A name without what Docker leaves out.
fn familiar(name: &str) -> &str {
    let short = name.strip_prefix("docker.io/").unwrap_or(name);
    short.strip_prefix("library/").filter(|_| short.len() < name.len()).unwrap_or(short)
}

/// The files beside the blobs.
fn top_files(content: &LayoutContent<'_>) -> Vec<(&'static str, Vec<u8>)> {
    let LayoutContent { artifact, names, .. } = content;
    let mut files = vec![("index.json", index_document(artifact, names))];
    if content.docker {
        files.push(("manifest.json", docker_document(artifact, names)));
    }
    files.push(("oci-layout", MARKER.to_vec()));
    files
}

const MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// Writes a layout directory. An existing layout is replaced as a whole once the new one is complete; anything else that
/// is no empty directory is left alone.
pub fn write_directory(content: &LayoutContent<'_>, target: &Path) -> Result<(), LayoutError> {
    let failed = |source| LayoutError::Write { path: target.to_owned(), source };
    check_target(target)?;
    let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(failed)?;
    let fresh = tempfile::Builder::new().prefix(".bareboat-").tempdir_in(parent).map_err(failed)?;
    let blobs = fresh.path().join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(failed)?;
    for (digest, size) in layers(content.artifact) {
        copy_blob(content.store, &digest, size, &blobs.join(digest.hex()))?;
    }
    for (digest, bytes) in documents(content.artifact) {
        fs::write(blobs.join(digest.hex()), bytes).map_err(failed)?;
    }
    for (name, bytes) in top_files(content) {
        fs::write(fresh.path().join(name), bytes).map_err(failed)?;
    }
    set_modes(fresh.path()).map_err(failed)?;
    replace(fresh, target).map_err(failed)
}

fn check_target(target: &Path) -> Result<(), LayoutError> {
    let free = match fs::read_dir(target) {
        Ok(mut entries) => target.join("oci-layout").is_file() || entries.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    if free { Ok(()) } else { Err(LayoutError::Occupied(target.to_owned())) }
}

fn set_modes(root: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for directory in [root.to_owned(), root.join("blobs"), root.join("blobs/sha256")] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn replace(fresh: tempfile::TempDir, target: &Path) -> io::Result<()> {
    if target.exists() {
        let old = tempfile::Builder::new().prefix(".bareboat-").tempdir_in(
            target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")),
        )?;
        fs::rename(target, old.path().join("old"))?;
    }
    fs::rename(fresh.path(), target)?;
    let _ = fresh.keep();
    Ok(())
}

fn copy_blob(store: &Store, digest: &Digest, size: u64, target: &Path) -> Result<(), LayoutError> {
    let copy = || {
        let mut reader = store.open_blob(digest, size).map_err(io::Error::other)?;
        let mut file = File::create(target)?;
        copy_large(&mut reader, &mut file)
    };
    copy().map_err(|source| LayoutError::Blob { digest: *digest, source })
}

fn copy_large(reader: &mut impl io::Read, writer: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(()),
            got => writer.write_all(&buffer[..got])?,
        }
    }
}

/// Writes a layout in a tar: names sorted, owner 0:0, mtimes `mtime_seconds`.
pub fn write_tar(
    content: &LayoutContent<'_>,
    mtime_seconds: u64,
    out: &mut dyn Write,
) -> Result<(), LayoutError> {
    let failed = |source| LayoutError::Write { path: PathBuf::from("the layout's tar"), source };
    let mut tar = tar::Builder::new(out);
    for directory in ["blobs/", "blobs/sha256/"] {
        append(&mut tar, directory, 0, mtime_seconds, &mut io::empty()).map_err(failed)?;
    }
    append_blobs(content, mtime_seconds, &mut tar)?;
    for (name, bytes) in top_files(content) {
        append(&mut tar, name, bytes.len() as u64, mtime_seconds, &mut bytes.as_slice())
            .map_err(failed)?;
    }
    tar.finish().map_err(failed)
}

fn append_blobs(
    content: &LayoutContent<'_>,
    mtime_seconds: u64,
    tar: &mut tar::Builder<&mut dyn Write>,
) -> Result<(), LayoutError> {
    let documents = documents(content.artifact);
    let mut blobs = layers(content.artifact);
    blobs.extend(documents.iter().map(|(digest, bytes)| (*digest, bytes.len() as u64)));
    for (digest, size) in blobs {
        let name = format!("blobs/sha256/{}", digest.hex());
        let result = match documents.get(&digest) {
            Some(bytes) => append(tar, &name, size, mtime_seconds, &mut &**bytes),
            None => {
                let blob = content.store.open_blob(&digest, size).map_err(io::Error::other);
                blob.and_then(|mut blob| append(tar, &name, size, mtime_seconds, &mut blob))
            }
        };
        result.map_err(|source| LayoutError::Blob { digest, source })?;
    }
    Ok(())
}

fn append(
    tar: &mut tar::Builder<&mut dyn Write>,
    name: &str,
    size: u64,
    mtime_seconds: u64,
    bytes: &mut dyn io::Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    let directory = name.ends_with('/');
    header.set_entry_type(if directory {
        tar::EntryType::Directory
    } else {
        tar::EntryType::Regular
    });
    header.set_path(name)?;
    header.set_mode(if directory { 0o755 } else { 0o644 });
    header.set_size(size);
    header.set_mtime(mtime_seconds);
    header.set_cksum();
    tar.append(&header, bytes)
}

#[cfg(test)]
mod tests {
    use super::familiar;

    #[test]
    fn names_are_dockers() {
        assert_eq!(familiar("docker.io/library/app:1"), "app:1");
        assert_eq!(familiar("docker.io/me/app:1"), "me/app:1");
        assert_eq!(familiar("library/app:1"), "library/app:1");
        assert_eq!(familiar("reg.test/library/app:1"), "reg.test/library/app:1");
    }
}
