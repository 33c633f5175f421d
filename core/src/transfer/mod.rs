//! Images from one place to another, byte for byte: `push`, `copy` and `join`, with no build.
//!
//! Blobs go from their source to the destination as a verified stream; memory does not depend on their size. What is named
//! comes before what names it, tags come last.

mod collect;
mod join;
mod layout;
mod source;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use oci_distribution::Reference;
use serde_json::{Value, json};

use crate::{
    build::{Services, until_canceled},
    digest::Digest,
    error::{Class, Error},
    event::VertexKind,
    image::platform::Platform,
    push::{self, Bundle, Document, PushError, PushProgress, PushReport},
    registry::Client,
    solve::Vertex,
};

pub use join::{JoinRequest, JoinSource, join};

use source::Source;

/// An image in an OCI layout: a directory, or a tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutPlace {
    pub path: PathBuf,
    /// The name in its `index.json`.
    pub tag: Option<String>,
    /// Of a source: the image's digest.
    pub digest: Option<Digest>,
}

/// Where an image is, or shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Registry(Reference),
    Layout(LayoutPlace),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Registry(reference) => f.write_str(&reference.whole()),
            Place::Layout(place) => {
                write!(f, "oci:{}", place.path.display())?;
                if let Some(tag) = &place.tag {
                    write!(f, ":{tag}")?;
                }
                place.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
            }
        }
    }
}

/// A copy of an image or of a whole index.
#[derive(Clone, Debug)]
pub struct CopyRequest {
    pub source: Place,
    pub destinations: Vec<Place>,
    /// `None`: an index is copied whole.
    pub platform: Option<Platform>,
}

/// A push of what a layout holds.
#[derive(Clone, Debug)]
pub struct PushRequest {
    pub source: LayoutPlace,
    pub destinations: Vec<Reference>,
    /// `None`: an index is pushed whole.
    pub platform: Option<Platform>,
}

/// What a transfer did.
#[derive(Clone, Debug)]
pub struct Transferred {
    pub digest: Digest,
    pub media_type: String,
    /// Bytes of the manifest or index.
    pub size: u64,
    /// Of the destinations in registries, in full.
    pub names: Vec<String>,
    pub pushed_bytes: u64,
}

impl Transferred {
    pub fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.size})
    }

    fn of(root: &Document, names: Vec<String>, report: &PushReport) -> Self {
        Transferred {
            digest: root.digest,
            media_type: root.media_type.clone(),
            size: root.bytes.len() as u64,
            names,
            pushed_bytes: report.uploaded_bytes,
        }
    }
}

/// Pushes an image of a layout under each name.
///
/// # Errors
/// Class `Source` for the layout, `Push` for the registries.
pub async fn push(request: PushRequest, services: &Services) -> Result<Transferred, Error> {
    let PushRequest { source, destinations, platform } = request;
    let destinations = destinations.into_iter().map(Place::Registry).collect();
    copy(CopyRequest { source: Place::Layout(source), destinations, platform }, services).await
}

/// Copies an image to each destination.
///
/// # Errors
/// Class `Source` for where it comes from, `Push` for registries that it goes to, `Host` for layouts.
pub async fn copy(request: CopyRequest, services: &Services) -> Result<Transferred, Error> {
    let transfer = Transfer::new(services)?;
    until_canceled(&services.cancel, transfer.copy(&request)).await
}

/// What one transfer uses.
struct Transfer<'a> {
    services: &'a Services,
    client: Client,
    next_vertex: AtomicU32,
}

impl<'a> Transfer<'a> {
    fn new(services: &'a Services) -> Result<Self, Error> {
        let client = Client::new(services.registry.clone(), services.keychain.clone())
            .map_err(|error| error.into_error(Class::Usage))?;
        Ok(Transfer { services, client, next_vertex: AtomicU32::new(1) })
    }

    fn vertex(&self, kind: VertexKind, name: String) -> Vertex {
        let id = self.next_vertex.fetch_add(1, Ordering::Relaxed);
        Vertex::start(self.services.reporter.clone(), id, kind, name, None)
    }

    async fn copy(&self, request: &CopyRequest) -> Result<Transferred, Error> {
        let vertex = self.vertex(VertexKind::Pull, format!("reading {}", request.source));
        let bundle = vertex.end(self.read(request).await)?;
        let (registries, layouts) = sorted(&request.destinations);
        for place in layouts {
            self.write_layout(&bundle, place).await?;
        }
        let report = match registries.is_empty() {
            true => PushReport::default(),
            false => self.push_bundle(&bundle, &registries).await?,
        };
        let names = registries.iter().map(Reference::whole).collect();
        Ok(Transferred::of(&bundle.root, names, &report))
    }

    async fn read(&self, request: &CopyRequest) -> Result<Bundle, Error> {
        let source = Source::open(&request.source, &self.client)?;
        let root = source.root(request.platform.as_ref()).await?;
        collect::collect(&source, root).await
    }

    async fn write_layout(&self, bundle: &Bundle, place: &LayoutPlace) -> Result<(), Error> {
        let vertex = self.vertex(VertexKind::Export, format!("writing {}", place.path.display()));
        let written = layout::write(&self.client, bundle, place, &vertex).await;
        vertex.end(written)
    }

    async fn push_bundle(
        &self,
        bundle: &Bundle,
        destinations: &[Reference],
    ) -> Result<PushReport, Error> {
        let shown: Vec<String> = destinations.iter().map(Reference::whole).collect();
        let vertex = self.vertex(VertexKind::Push, format!("pushing {}", shown.join(", ")));
        let told = vertex.clone();
        let progress: PushProgress = Arc::new(move |repository, blob, done, total| {
            told.report_progress(format!("{} to {repository}", blob.short()), done, total);
        });
        let pushed = push::push_bundle(&self.client, bundle, destinations, progress).await;
        vertex.end(pushed.map_err(PushError::into_error))
    }
}

/// Registries and layouts apart, each destination once.
fn sorted(destinations: &[Place]) -> (Vec<Reference>, Vec<&LayoutPlace>) {
    let (mut registries, mut layouts) = (Vec::new(), Vec::new());
    let mut seen = BTreeSet::new();
    for place in destinations.iter().filter(|place| seen.insert(place.to_string())) {
        match place {
            Place::Registry(reference) => registries.push(reference.clone()),
            Place::Layout(place) => layouts.push(place),
        }
    }
    (registries, layouts)
}

#[cfg(test)]
mod tests;
