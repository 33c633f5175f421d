//! An OCI layout directory as a source of images (image-layout.md). Every blob is verified.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    digest::{Digest, DigestError},
    registry::manifest::{Descriptor, FetchedManifest, ImageIndex, Manifest, ManifestError},
    store::VerifyingReader,
    sys::fs::descriptor_path,
};

/// Manifests and configurations beyond this many bytes are refused.
const DOCUMENT_BYTES_MAX: u64 = 8 << 20;

#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    #[error("{} is not an OCI layout", .0.display())]
    NotALayout(PathBuf),
    #[error("OCI layout {}: {what}", path.display())]
    Read { path: PathBuf, what: String, source: io::Error },
    #[error("OCI layout {}", path.display())]
    Manifest { path: PathBuf, source: ManifestError },
    #[error("OCI layout {} has no image {wanted}; it has: {have}", path.display())]
    Missing { path: PathBuf, wanted: String, have: String },
    #[error(transparent)]
    Digest(#[from] DigestError),
}

#[derive(Clone, Debug)]
pub struct Layout {
    path: PathBuf,
    /// Blobs are opened below it: the path may lead elsewhere by then.
    directory: Arc<OwnedFd>,
    index: ImageIndex,
}

impl Layout {
    pub fn open(path: &Path) -> Result<Self, LayoutError> {
        let file = path.join("index.json");
        let bytes = fs::read(&file).map_err(|_| LayoutError::NotALayout(path.to_owned()))?;
        let media_type = crate::image::manifest::OCI_INDEX;
        let failed = |source| LayoutError::Manifest { path: path.to_owned(), source };
        let directory = File::open(path).map_err(|_| LayoutError::NotALayout(path.to_owned()))?;
        let directory = Arc::new(directory.into());
        match Manifest::parse(&bytes, media_type).map_err(failed)? {
            (Manifest::Index(index), _) => Ok(Layout { path: path.to_owned(), directory, index }),
            _ => Err(LayoutError::NotALayout(path.to_owned())),
        }
    }

    /// The manifest of a digest, of a tag, or the only one.
    pub fn manifest(
        &self,
        tag: Option<&str>,
        digest: Option<&str>,
    ) -> Result<FetchedManifest, LayoutError> {
        if let Some(digest) = digest {
            let digest: Digest = digest.parse()?;
            let known = self.index.manifests.iter().find(|entry| entry.digest == digest);
            return match known {
                Some(entry) => self.descriptor(entry),
                None => self.read_manifest(&digest, None, ""),
            };
        }
        let name = "org.opencontainers.image.ref.name";
        let mut named = self.index.manifests.iter().filter(|entry| match tag {
            Some(tag) => entry.annotations.get(name).is_some_and(|name| name == tag),
            None => true,
        });
        match (named.next(), named.next()) {
            (Some(entry), None) => self.descriptor(entry),
            (Some(entry), Some(other)) if other.digest == entry.digest => self.descriptor(entry),
            _ => Err(self.missing(tag.unwrap_or("alone in it"))),
        }
    }

    fn missing(&self, wanted: &str) -> LayoutError {
        let have: Vec<String> =
            self.index.manifests.iter().map(|entry| entry.digest.to_string()).collect();
        LayoutError::Missing {
            path: self.path.clone(),
            wanted: wanted.to_owned(),
            have: have.join(", "),
        }
    }

    pub fn descriptor(&self, entry: &Descriptor) -> Result<FetchedManifest, LayoutError> {
        self.read_manifest(&entry.digest, Some(entry.size), &entry.media_type)
    }

    fn read_manifest(
        &self,
        digest: &Digest,
        size: Option<u64>,
        media_type: &str,
    ) -> Result<FetchedManifest, LayoutError> {
        let bytes = self.document(digest, size)?;
        FetchedManifest::new(bytes.into(), media_type)
            .map_err(|source| LayoutError::Manifest { path: self.path.clone(), source })
    }

    pub fn small_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, LayoutError> {
        self.document(&descriptor.digest, Some(descriptor.size))
    }

    fn document(&self, digest: &Digest, size: Option<u64>) -> Result<Vec<u8>, LayoutError> {
        let (reader, size) = self.open_blob(digest, size)?;
        let mut bytes = Vec::new();
        let read = match size <= DOCUMENT_BYTES_MAX {
            true => VerifyingReader::new(reader, *digest, size).read_to_end(&mut bytes),
            false => Err(io::Error::other("the document is too large")),
        };
        read.map_err(|source| self.read_error(digest, source))?;
        Ok(bytes)
    }

    /// A blob's bytes, not verified yet, and its size.
    pub fn open_blob(
        &self,
        digest: &Digest,
        size: Option<u64>,
    ) -> Result<(File, u64), LayoutError> {
        let path = descriptor_path(self.directory.as_fd()).join("blobs/sha256").join(digest.hex());
        let open = || {
            let file = File::open(&path)?;
            let found = file.metadata()?.len();
            Ok((file, size.unwrap_or(found)))
        };
        open().map_err(|source| self.read_error(digest, source))
    }

    fn read_error(&self, digest: &Digest, source: io::Error) -> LayoutError {
        LayoutError::Read {
            path: self.path.clone(),
            what: format!("blob {digest} cannot be read"),
            source,
        }
    }
}
