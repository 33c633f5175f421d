//! One index of images that were pushed one by one, a platform each.

use std::collections::BTreeMap;

use oci_distribution::Reference;
use serde_json::{Value, json};

use crate::{
    build::{Services, until_canceled},
    digest::Digest,
    error::{Class, Error},
    event::{Event, VertexKind, Warning},
    image::{
        annotations::{Annotations, Level},
        platform::Platform,
    },
    push::{Bundle, Document},
    registry::{FetchedManifest, Manifest, Repository, manifest::OCI_INDEX},
};

use super::{Place, Transfer, Transferred, collect, source::Source};

/// What is joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinSource {
    /// An image, or an index, in the destination's repository.
    Digest(Digest),
    /// One in any repository.
    Reference(Reference),
}

#[derive(Clone, Debug)]
pub struct JoinRequest {
    /// The name of the index.
    pub destination: Reference,
    /// Images, and indexes whose entries are taken. In this order they stand in the index, each digest once.
    pub sources: Vec<JoinSource>,
    /// Of the index, and of the descriptors in it.
    pub annotations: Annotations,
}

/// Makes an index of images and pushes it. What lies in other repositories is copied into the destination's.
///
/// # Errors
/// Class `Source` for what is joined, `Push` for the destination.
pub async fn join(request: JoinRequest, services: &Services) -> Result<Transferred, Error> {
    let transfer = Transfer::new(services)?;
    until_canceled(&services.cancel, transfer.join(&request)).await
}

/// The index on its way.
#[derive(Default)]
struct Joined {
    entries: Vec<Value>,
    /// Where an entry's digest stands.
    places: BTreeMap<Digest, usize>,
    bundles: Vec<Bundle>,
}

impl Transfer<'_> {
    async fn join(&self, request: &JoinRequest) -> Result<Transferred, Error> {
        let mut joined = Joined::default();
        for source in &request.sources {
            let reference = match source {
                JoinSource::Reference(reference) => reference.clone(),
                JoinSource::Digest(digest) => crate::push::pinned(&request.destination, *digest),
            };
            let vertex = self.vertex(VertexKind::Pull, format!("reading {}", reference.whole()));
            vertex.end(self.add(&mut joined, reference, &request.destination).await)?;
        }
        self.warn_of_twins(&joined);
        let bundle = joined.into_bundle(&request.annotations)?;
        let destination = std::slice::from_ref(&request.destination);
        let report = self.push_bundle(&bundle, destination).await?;
        Ok(Transferred::of(&bundle.root, vec![request.destination.whole()], &report))
    }

    async fn add(
        &self,
        joined: &mut Joined,
        reference: Reference,
        destination: &Reference,
    ) -> Result<(), Error> {
        let elsewhere = !same_repository(&reference, destination);
        let source = Source::open(&Place::Registry(reference), &self.client)?;
        let fetched = source.root(None).await?;
        match &fetched.manifest {
            Manifest::Image(image) => {
                let platform = source.platform(image).await?;
                joined.insert(entry(&fetched, &platform))?;
            }
            Manifest::Index(_) => {
                for entry in entries(&fetched)? {
                    joined.insert(entry)?;
                }
            }
        }
        if elsewhere {
            joined.bundles.push(collect::collect(&source, fetched).await?);
        }
        Ok(())
    }

    /// Of two images for one platform, clients take the first.
    fn warn_of_twins(&self, joined: &Joined) {
        let mut seen: Vec<&Value> = Vec::new();
        for platform in joined.entries.iter().map(|entry| &entry["platform"]) {
            let is_image = platform["os"] != "unknown" && !platform.is_null();
            if is_image && seen.contains(&platform) {
                let message = format!("two images of the index are for {}", shown(platform));
                let hint = Some("most clients take the first of them".to_owned());
                let warning = Warning { message, location: None, hint };
                self.services.reporter.report(Event::Warning(warning));
            }
            seen.push(platform);
        }
    }
}

fn shown(platform: &Value) -> String {
    let part = |key: &str| platform[key].as_str().unwrap_or_default().to_owned();
    [part("os"), part("architecture"), part("variant")].join("/").trim_end_matches('/').to_owned()
}

fn same_repository(one: &Reference, other: &Reference) -> bool {
    let (one, other) = (Repository::from(one), Repository::from(other));
    one.same_registry(&other) && one.name == other.name
}

fn entry(fetched: &FetchedManifest, platform: &Platform) -> Value {
    json!({
        "mediaType": fetched.media_type,
        "digest": fetched.digest,
        "size": fetched.bytes.len(),
        "platform": platform,
    })
}

/// An index's entries as they stand there.
fn entries(index: &FetchedManifest) -> Result<Vec<Value>, Error> {
    let parsed: Result<Value, _> = serde_json::from_slice(&index.bytes);
    match parsed.ok().and_then(|mut index| index["manifests"].as_array_mut().map(std::mem::take)) {
        Some(entries) => Ok(entries),
        None => Err(Error::new(Class::Source, format!("{} has no manifests", index.digest))),
    }
}

impl Joined {
    /// Adds an entry; what a known digest has more is added to it (as buildx's imagetools does).
    fn insert(&mut self, entry: Value) -> Result<(), Error> {
        let digest: Digest = entry["digest"]
            .as_str()
            .and_then(|digest| digest.parse().ok())
            .ok_or_else(|| Error::new(Class::Source, "an index has an entry without a digest"))?;
        let Some(place) = self.places.get(&digest) else {
            self.places.insert(digest, self.entries.len());
            self.entries.push(entry);
            return Ok(());
        };
        let known = &mut self.entries[*place];
        if known["platform"].is_null() && !entry["platform"].is_null() {
            known["platform"] = entry["platform"].clone();
        }
        for (key, value) in entry["annotations"].as_object().into_iter().flatten() {
            known["annotations"][key] = value.clone();
        }
        Ok(())
    }

    fn into_bundle(mut self, annotations: &Annotations) -> Result<Bundle, Error> {
        for entry in &mut self.entries {
            annotate(entry, annotations);
        }
        let mut index = json!({
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": self.entries,
        });
        let own = annotations.of(Level::Index, None);
        if !own.is_empty() {
            index["annotations"] = json!(own);
        }
        let bytes = serde_json::to_vec(&index).map_err(|error| {
            Error::new(Class::Bug, format!("the index cannot be written: {error}"))
        })?;
        let digest = Digest::of(&bytes);
        let root = Document { bytes: bytes.into(), media_type: OCI_INDEX.to_owned(), digest };
        let mut whole = Bundle { blobs: Vec::new(), children: Vec::new(), root };
        for bundle in self.bundles {
            whole.blobs.extend(bundle.blobs);
            whole.children.extend(bundle.children);
            // An index that was joined is not needed itself.
            let is_index = bundle.root.media_type == OCI_INDEX
                || bundle.root.media_type == crate::registry::manifest::DOCKER_LIST;
            whole.children.extend(Some(bundle.root).filter(|_| !is_index));
        }
        Ok(whole)
    }
}

fn annotate(entry: &mut Value, annotations: &Annotations) {
    let platform: Option<Platform> = serde_json::from_value(entry["platform"].clone()).ok();
    let platform = platform.map(Platform::normalized);
    for (key, value) in annotations.of(Level::ManifestDescriptor, platform.as_ref()) {
        entry["annotations"][key] = value.into();
    }
}
