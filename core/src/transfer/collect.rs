//! All that a manifest or an index needs, down to the last blob.

use std::collections::BTreeSet;

use futures_util::{
    StreamExt, TryStreamExt,
    future::{BoxFuture, FutureExt},
    stream,
};

use crate::{
    digest::Digest,
    error::{Class, Error},
    push::{Bundle, Document, PushLayer},
    registry::{Descriptor, FetchedManifest, Manifest, manifest::known},
};

use super::source::{INDEX_DEPTH_MAX, Source, too_deep};

/// Manifests of one image beyond this number are refused. The largest official images have some dozens.
const DOCUMENTS_MAX: usize = 2_000;
/// Blobs of one image beyond this number are refused.
const BLOBS_MAX: usize = 100_000;
/// Manifests that are fetched at once.
const FETCHES_MAX: usize = 8;

/// What has been found so far: what is named before what names it.
#[derive(Default)]
struct Found {
    documents: Vec<Document>,
    blobs: Vec<PushLayer>,
}

/// Gathers all that `root` needs.
pub(super) async fn collect(source: &Source, root: FetchedManifest) -> Result<Bundle, Error> {
    let found = gather(source, root, 0).await?;
    let mut seen: BTreeSet<Digest> = BTreeSet::new();
    let mut children: Vec<Document> =
        found.documents.into_iter().filter(|document| seen.insert(document.digest)).collect();
    let blobs: Vec<PushLayer> =
        found.blobs.into_iter().filter(|blob| seen.insert(blob.digest)).collect();
    // The root comes last, because it names all others.
    let root = children.pop().ok_or_else(|| Error::new(Class::Bug, "no document was found"))?;
    Ok(Bundle { blobs, children, root })
}

fn gather(
    source: &Source,
    fetched: FetchedManifest,
    depth: usize,
) -> BoxFuture<'_, Result<Found, Error>> {
    async move {
        let mut found = match &fetched.manifest {
            Manifest::Image(image) => {
                let blobs = std::iter::once(&image.config).chain(&image.layers);
                let blobs = blobs.filter(|blob| !stays_where_it_is(blob));
                let blobs: Result<_, _> = blobs.map(|blob| push_layer(source, blob)).collect();
                Found { blobs: blobs?, ..Found::default() }
            }
            Manifest::Index(_) if depth >= INDEX_DEPTH_MAX => return Err(too_deep()),
            Manifest::Index(index) => gather_children(source, &index.manifests, depth).await?,
        };
        let FetchedManifest { bytes, media_type, digest, .. } = fetched;
        found.documents.push(Document { bytes, media_type, digest });
        if found.documents.len() > DOCUMENTS_MAX || found.blobs.len() > BLOBS_MAX {
            return Err(Error::new(Class::Source, "the image has too many manifests or blobs"));
        }
        Ok(found)
    }
    .boxed()
}

async fn gather_children(
    source: &Source,
    entries: &[Descriptor],
    depth: usize,
) -> Result<Found, Error> {
    if entries.len() > DOCUMENTS_MAX {
        return Err(Error::new(Class::Source, "the index names too many manifests"));
    }
    let children = entries.iter().map(|entry| async move {
        if !entry.media_type.is_empty() && !known(&entry.media_type) {
            let (digest, media_type) = (entry.digest, &entry.media_type);
            let title = format!("the index names {digest}, which is of type {media_type:?}");
            return Err(Error::new(Class::Source, title));
        }
        gather(source, source.child(entry).await?, depth + 1).await
    });
    let children: Vec<_> = children.collect();
    let mut all = Found::default();
    let mut found = stream::iter(children).buffered(FETCHES_MAX);
    while let Some(child) = found.try_next().await? {
        all.documents.extend(child.documents);
        all.blobs.extend(child.blobs);
        if all.documents.len() > DOCUMENTS_MAX || all.blobs.len() > BLOBS_MAX {
            return Err(Error::new(Class::Source, "the image has too many manifests or blobs"));
        }
    }
    Ok(all)
}

/// Layers that may not be distributed lie elsewhere, and registries do not take them (image-spec layer.md).
fn stays_where_it_is(blob: &Descriptor) -> bool {
    let media_type = &blob.media_type;
    let foreign = media_type.contains(".nondistributable.") || media_type.contains(".foreign.");
    foreign && !blob.urls.is_empty()
}

fn push_layer(source: &Source, blob: &Descriptor) -> Result<PushLayer, Error> {
    let (place, known_in) = source.blob(blob)?;
    Ok(PushLayer { digest: blob.digest, size: blob.size, source: place, known_in })
}
