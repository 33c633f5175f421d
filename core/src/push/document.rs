//! Manifests and indexes: put under a name, and read back by it.

use std::time::Duration;

use bytes::Bytes;

use super::{
    PushError,
    tags::{self, Standing, name},
};
use crate::{
    digest::Digest,
    registry::{Client, Reference, RegistryError, Repository},
};

/// How often a manifest that was just put is looked for: registries that are many machines need a moment.
const LOOKS_MAX: u32 = 5;

/// A manifest or an index: exactly these bytes.
#[derive(Clone, Debug)]
pub struct Document {
    pub bytes: Bytes,
    pub media_type: String,
    pub digest: Digest,
}

/// The destination's repository, with the digest in place of a tag.
pub fn pinned(destination: &Reference, digest: Digest) -> Reference {
    let (registry, repository) = (destination.registry(), destination.repository());
    Reference::with_digest(registry.to_owned(), repository.to_owned(), digest.to_string())
}

/// Puts a document under `destination` and reads it back, unless it is there already. Whether it was not.
///
/// # Errors
/// The registry's refusal, and another document under that name afterwards.
pub async fn put_document(
    client: &Client,
    document: &Document,
    destination: &Reference,
) -> Result<bool, PushError> {
    let wrap = |error| failed(destination.whole(), error);
    match tags::standing(client, destination, document.digest).await.map_err(wrap)? {
        Standing::Same => return Ok(false),
        Standing::Free => {}
        Standing::Kept(there) => {
            tags::skip(client, destination, there, document.digest)?;
            return Ok(false);
        }
    }
    put(client, document, destination).await.map_err(wrap)?;
    verify(client, destination, document.digest).await?;
    Ok(true)
}

pub(super) async fn put(
    client: &Client,
    document: &Document,
    destination: &Reference,
) -> Result<(), RegistryError> {
    let (repository, name) = (Repository::from(destination), name(destination));
    let (media_type, bytes) = (&document.media_type, document.bytes.clone());
    client.put_manifest(&repository, &name, media_type, bytes).await.map(drop)
}

/// Reads the document back by the name it was put under.
pub(super) async fn verify(
    client: &Client,
    destination: &Reference,
    expected: Digest,
) -> Result<(), PushError> {
    let wrap = |error| failed(destination.whole(), error);
    let (repository, name) = (Repository::from(destination), name(destination));
    let mut looks = 1;
    let actual = loop {
        match client.read_back(&repository, &name).await {
            Err(missing) if missing.is_not_found() && looks < LOOKS_MAX => {
                tokio::time::sleep(Duration::from_millis(200 << looks)).await;
                looks += 1;
            }
            found => break found.map_err(wrap)?,
        }
    };
    if actual != expected {
        let what = destination.whole();
        return Err(wrap(RegistryError::Verify { what, expected, actual }));
    }
    Ok(())
}

pub(super) fn failed(destination: String, error: RegistryError) -> PushError {
    PushError::Registry { destination, error }
}
