//! Tags that a registry does not move: known before any layer is sent.

use tokio::sync::{OnceCell, watch};

use super::PushError;
use crate::{
    digest::Digest,
    registry::{Client, Reference, RegistryError, Repository},
};

/// What stands under a destination's name before the push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing, or something that may be replaced.
    Free,
    /// The image itself: there is nothing to do.
    Same,
    /// Other content under a tag that can't be moved.
    Kept(Digest),
}

/// What stands under `destination` that concerns a push of `digest`.
///
/// # Errors
/// The registry can't be asked. That it refuses to tell is none: what the push itself is told comes with a reason.
pub(super) async fn standing(
    client: &Client,
    destination: &Reference,
    digest: Digest,
) -> Result<Standing, RegistryError> {
    let repository = Repository::from(destination);
    let there = match client.pushed_digest(&repository, &name(destination)).await {
        Ok(Some(there)) => there,
        Ok(None) | Err(RegistryError::Refused(_)) => return Ok(Standing::Free),
        Err(error) => return Err(error),
    };
    if there == digest {
        return Ok(Standing::Same);
    }
    match keeps(client, destination).await {
        true => Ok(Standing::Kept(there)),
        false => Ok(Standing::Free),
    }
}

/// What `destination`'s tag names, where it can't be moved to anything else, as far as that can be found out.
pub async fn kept(client: &Client, destination: &Reference) -> Option<Digest> {
    let repository = Repository::from(destination);
    client.hooks(&repository)?;
    let tag = destination.tag()?;
    let there = client.pushed_digest(&repository, tag).await.ok().flatten()?;
    keeps(client, destination).await.then_some(there)
}

/// Of `destinations`, the ones that are left as they are because their tags name other content than `digest` and can't be
/// moved. For what is not pushed by an [`super::Uploader`], such as an index.
///
/// # Errors
/// There is one, and the client may not skip it; or the registry can't be asked.
pub async fn kept_tags(
    client: &Client,
    destinations: &[&Reference],
    digest: Digest,
) -> Result<Vec<String>, PushError> {
    let mut kept = Vec::new();
    for destination in destinations {
        let asked = standing(client, destination, digest).await;
        let wrap = |error| PushError::Registry { destination: destination.whole(), error };
        if let Standing::Kept(there) = asked.map_err(wrap)? {
            kept.push(skip(client, destination, there, digest)?);
        }
    }
    Ok(kept)
}

/// Passes over a tag that holds `there`, if that is allowed.
pub(super) fn skip(
    client: &Client,
    destination: &Reference,
    there: Digest,
    digest: Digest,
) -> Result<String, PushError> {
    let destination = destination.whole();
    match client.skip_immutable() {
        true => Ok(destination),
        false => Err(PushError::Immutable { destination, there, digest }),
    }
}

async fn keeps(client: &Client, destination: &Reference) -> bool {
    let (repository, tag) = (Repository::from(destination), destination.tag());
    match (client.hooks(&repository), tag) {
        (Some(hooks), Some(tag)) => hooks.keeps_tag(&repository, tag).await,
        _ => false,
    }
}

/// What the manifest is put under: the tag, else the digest.
pub(super) fn name(destination: &Reference) -> String {
    destination.tag().or_else(|| destination.digest()).unwrap_or("latest").to_owned()
}

/// Holds back uploads to a registry where an immutable tag exists already: until the image's digest is known, nobody
/// knows whether they are of use.
pub(super) struct Gate {
    destinations: Vec<Reference>,
    held: OnceCell<bool>,
    open: watch::Sender<bool>,
}

impl Gate {
    pub(super) fn new(destinations: Vec<Reference>) -> Self {
        Gate { destinations, held: OnceCell::new(), open: watch::Sender::new(false) }
    }

    pub(super) fn open(&self) {
        self.open.send_replace(true);
    }

    /// Waits where uploads are held back.
    pub(super) async fn pass(&self, client: &Client) {
        if *self.held.get_or_init(|| self.any_kept(client)).await {
            // The sender lives as long as `self`.
            let _ = self.open.subscribe().wait_for(|open| *open).await;
        }
    }

    async fn any_kept(&self, client: &Client) -> bool {
        if *self.open.borrow() {
            return false;
        }
        for destination in &self.destinations {
            if kept(client, destination).await.is_some() {
                tracing::debug!(%destination, "an immutable tag exists: layers wait for the digest");
                return true;
            }
        }
        false
    }
}
