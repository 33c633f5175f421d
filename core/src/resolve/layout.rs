//! An OCI layout, a directory or a tar, as a source of images (image-layout.md). Every blob is verified.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    digest::{Digest, DigestError},
    layer::decompress::Format,
    registry::manifest::{Descriptor, FetchedManifest, ImageIndex, Manifest, ManifestError},
    store::VerifyingReader,
    sys::fs::descriptor_path,
};

/// Manifests and configurations beyond this many bytes are refused.
const DOCUMENT_BYTES_MAX: u64 = 8 << 20;
/// Far more blobs than any layout has.
const MEMBERS_MAX: usize = 1_000_000;
const REF_NAME: &str = "org.opencontainers.image.ref.name";

#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    #[error("{} is not an OCI layout", .0.display())]
    NotALayout(PathBuf),
    #[error("{} cannot be read as an OCI layout: {what}", path.display())]
    Tar { path: PathBuf, what: &'static str },
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
    /// The directory or tar: the path may lead elsewhere by the time that a blob is read.
    handle: Arc<OwnedFd>,
    /// Of a tar: where its files' content is.
    members: Option<BTreeMap<String, Part>>,
    index: ImageIndex,
}

/// A part of a tar.
#[derive(Clone, Copy, Debug)]
struct Part {
    offset: u64,
    size: u64,
}

/// Where a blob's bytes are: a whole file, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlobPlace {
    File(PathBuf),
    Part(PathBuf, u64),
}

impl Layout {
    pub fn open(path: &Path) -> Result<Self, LayoutError> {
        let members = path.is_file().then(|| members(path)).transpose()?;
        let index = ImageIndex {
            manifests: Vec::new(),
            artifact_type: None,
            subject: None,
            annotations: BTreeMap::new(),
        };
        let opened = File::open(path).map_err(|_| LayoutError::NotALayout(path.to_owned()))?;
        let handle = Arc::new(opened.into());
        let layout = Layout { path: path.to_owned(), handle, members, index };
        let bytes = layout.read_index()?;
        let media_type = crate::image::manifest::OCI_INDEX;
        let failed = |source| LayoutError::Manifest { path: path.to_owned(), source };
        match Manifest::parse(&bytes, media_type).map_err(failed)? {
            (Manifest::Index(index), _) => Ok(Layout { index, ..layout }),
            _ => Err(LayoutError::NotALayout(path.to_owned())),
        }
    }

    fn read_index(&self) -> Result<Vec<u8>, LayoutError> {
        let no_layout = || match self.members.as_ref().map(|m| m.contains_key("manifest.json")) {
            Some(true) => LayoutError::Tar {
                path: self.path.clone(),
                what: "it is a docker-archive without index.json (Docker before 25 writes those); \
                       `skopeo copy docker-archive:FILE oci:DIR` converts it",
            },
            _ => LayoutError::NotALayout(self.path.clone()),
        };
        let (reader, _) = self.open_file("index.json").map_err(|_| no_layout())?;
        let mut bytes = Vec::new();
        reader
            .take(DOCUMENT_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(|_| LayoutError::NotALayout(self.path.clone()))?;
        Ok(bytes)
    }

    /// The manifest of a digest, of a tag, or the only one.
    pub fn manifest(
        &self,
        tag: Option<&str>,
        digest: Option<&str>,
    ) -> Result<FetchedManifest, LayoutError> {
        let wanted = tag.unwrap_or("alone in it");
        match (self.candidates(tag, digest)?.as_slice(), digest) {
            ([entry], _) => self.descriptor(entry),
            (_, Some(digest)) => self.read_manifest(&digest.parse()?, None, ""),
            _ => Err(self.missing(wanted)),
        }
    }

    /// What `index.json` lists of a digest or of a tag, or all of it; each digest once.
    pub fn candidates(
        &self,
        tag: Option<&str>,
        digest: Option<&str>,
    ) -> Result<Vec<&Descriptor>, LayoutError> {
        let digest = digest.map(str::parse::<Digest>).transpose()?;
        let mut found: Vec<&Descriptor> = Vec::new();
        for entry in &self.index.manifests {
            let name = entry.annotations.get(REF_NAME).map(String::as_str);
            let fits = digest.map_or(tag.is_none() || name == tag, |digest| entry.digest == digest);
            if fits && !found.iter().any(|known| known.digest == entry.digest) {
                found.push(entry);
            }
        }
        Ok(found)
    }

    /// The error of an image that is not there, or not the only one.
    pub fn missing(&self, wanted: &str) -> LayoutError {
        let shown = |entry: &Descriptor| match entry.annotations.get(REF_NAME) {
            Some(name) => {
                format!("{} ({})", crate::registry::printable(name, 100), entry.digest)
            }
            None => entry.digest.to_string(),
        };
        let have: Vec<String> = self.index.manifests.iter().take(40).map(shown).collect();
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
    ) -> Result<(io::Take<File>, u64), LayoutError> {
        let opened = self.open_file(&blob_name(digest));
        let opened = opened.map(|(reader, found)| (reader, size.unwrap_or(found)));
        opened.map_err(|source| self.read_error(digest, source))
    }

    /// Where a blob lies.
    pub fn blob_place(&self, digest: &Digest) -> Result<BlobPlace, LayoutError> {
        let name = blob_name(digest);
        match &self.members {
            None => Ok(BlobPlace::File(self.path.join(name))),
            Some(members) => match members.get(&name) {
                Some(part) => Ok(BlobPlace::Part(self.path.clone(), part.offset)),
                None => Err(self.read_error(digest, io::ErrorKind::NotFound.into())),
            },
        }
    }

    /// Opens a regular file of the layout: its bytes and their number.
    fn open_file(&self, name: &str) -> io::Result<(io::Take<File>, u64)> {
        let Some(members) = &self.members else {
            let path = descriptor_path(self.handle.as_fd()).join(name);
            // A pipe would have no end, and opening it none either.
            if !path.metadata()?.is_file() {
                return Err(io::Error::other("it is no regular file"));
            }
            let file = File::open(path)?;
            let found = file.metadata()?.len();
            return Ok((file.take(u64::MAX), found));
        };
        let part = members.get(name).ok_or(io::ErrorKind::NotFound)?;
        let mut file = File::open(descriptor_path(self.handle.as_fd()))?;
        file.seek(SeekFrom::Start(part.offset))?;
        Ok((file.take(part.size), part.size))
    }

    fn read_error(&self, digest: &Digest, source: io::Error) -> LayoutError {
        LayoutError::Read {
            path: self.path.clone(),
            what: format!("blob {digest} cannot be read"),
            source,
        }
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The regular files of an uncompressed tar. Of several with one name the last counts, as for every reader of tars.
fn members(path: &Path) -> Result<BTreeMap<String, Part>, LayoutError> {
    let wrong = |what| LayoutError::Tar { path: path.to_owned(), what };
    let mut file = File::open(path).map_err(|_| LayoutError::NotALayout(path.to_owned()))?;
    let mut magic = Vec::new();
    let read = file.by_ref().take(8).read_to_end(&mut magic).and_then(|_| file.rewind());
    read.map_err(|_| wrong("it cannot be read"))?;
    if Format::of_magic(&magic) != Format::Plain {
        return Err(wrong("it is compressed: decompress it first"));
    }
    let mut archive = tar::Archive::new(file);
    let mut members = BTreeMap::new();
    let damaged = |_| wrong("it is no tar, or a damaged one");
    for (count, entry) in archive.entries_with_seek().map_err(damaged)?.enumerate() {
        let entry = entry.map_err(damaged)?;
        if count >= MEMBERS_MAX {
            return Err(wrong("it has too many members"));
        }
        if entry.header().entry_type() != tar::EntryType::Regular {
            continue;
        }
        let Ok(name) = String::from_utf8(entry.path_bytes().into_owned()) else { continue };
        let name = name.trim_start_matches("./").to_owned();
        members.insert(name, Part { offset: entry.raw_file_position(), size: entry.size() });
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::registry::manifest::OCI_MANIFEST;

    /// A layout with one manifest, under `tag`, as a directory.
    fn write(root: &Path, tag: &str) -> Digest {
        let blobs = root.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let config = Digest::of(b"{}");
        fs::write(blobs.join(config.hex()), "{}").unwrap();
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [],
            "config": {"mediaType": "x/y", "digest": config, "size": 2}})
        .to_string();
        let digest = Digest::of(manifest.as_bytes());
        fs::write(blobs.join(digest.hex()), &manifest).unwrap();
        let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": OCI_MANIFEST,
            "digest": digest, "size": manifest.len(), "annotations": {REF_NAME: tag}}]});
        fs::write(root.join("index.json"), index.to_string()).unwrap();
        fs::write(root.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        digest
    }

    #[test]
    fn a_tar_reads_as_its_directory() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("layout");
        let digest = write(&root, "v1");
        let tar_path = folder.path().join("layout.tar");
        let mut tar = tar::Builder::new(File::create(&tar_path).unwrap());
        tar.append_dir_all(".", &root).unwrap();
        tar.finish().unwrap();
        for place in [&root, &tar_path] {
            let layout = Layout::open(place).unwrap();
            assert_eq!(layout.manifest(None, None).unwrap().digest, digest);
            assert_eq!(layout.manifest(Some("v1"), None).unwrap().digest, digest);
            let text = digest.to_string();
            assert_eq!(layout.manifest(None, Some(&text)).unwrap().digest, digest);
            let error = layout.manifest(Some("v2"), None).unwrap_err().to_string();
            assert!(error.contains("v1 (sha256:"), "{error}");
        }
        let place = Layout::open(&tar_path).unwrap().blob_place(&Digest::of(b"{}")).unwrap();
        let BlobPlace::Part(_, offset) = place else { panic!("{place:?}") };
        let bytes = fs::read(&tar_path).unwrap();
        assert_eq!(&bytes[offset as usize..][..2], b"{}");
    }

    #[test]
    fn what_is_no_layout_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        for (bytes, word) in [
            (&[0x1f, 0x8b, 8, 0, 0, 0][..], "compressed"),
            (&[b'x'; 600], "tar"),
            (b"", "not an OCI layout"),
        ] {
            fs::write(&file, bytes).unwrap();
            let error = Layout::open(&file).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let mut tar = tar::Builder::new(File::create(&file).unwrap());
        let mut header = tar::Header::new_gnu();
        header.set_size(2);
        tar.append_data(&mut header, "manifest.json", &b"[]"[..]).unwrap();
        tar.finish().unwrap();
        drop(tar);
        assert!(Layout::open(&file).unwrap_err().to_string().contains("docker-archive"));
        assert!(Layout::open(folder.path()).is_err());
    }

    #[test]
    fn a_blob_that_is_a_pipe_is_no_blob() {
        let folder = tempfile::tempdir().unwrap();
        let digest = write(folder.path(), "v1");
        let path = folder.path().join(blob_name(&digest));
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(Layout::open(folder.path()).unwrap().manifest(None, None).is_err());
    }
}
