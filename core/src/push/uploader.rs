//! Uploads in the background, and the manifest when they are done.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{runtime::Handle, sync::Semaphore, task::JoinSet};

use super::{
    Bundle, Document, LayerSource, PushError, PushImage, PushLayer, PushProgress, PushReport,
    document::{self, failed, put, verify},
    tags::{self, Gate, Standing},
};
use crate::{
    digest::Digest,
    registry::{
        BlobSource, Client, ClientStats, Reference, RefusalKind, RegistryError, Repository,
        UploadOutcome, reference::canonical,
    },
};

/// Small blobs wait for answers more than for bytes; beyond this, a registry brings no more of either.
const BLOBS_AT_ONCE: usize = 8;

/// Brings the layers of one image into its destinations' repositories.
pub struct Uploader {
    client: Client,
    destinations: Vec<Reference>,
    /// The destinations' repositories by canonical registry, each once.
    groups: BTreeMap<String, Group>,
    progress: PushProgress,
    runtime: Handle,
    tasks: Mutex<Tasks>,
    before: ClientStats,
}

struct Group {
    repositories: Vec<Repository>,
    /// One that has the whole image already: what another one lacks can be mounted from it.
    complete: Option<Repository>,
    permits: Arc<Semaphore>,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Tasks {
    running: JoinSet<Result<Vec<Done>, PushError>>,
    started: HashSet<(String, Digest)>,
}

/// A blob that is in a repository now.
struct Done {
    outcome: UploadOutcome,
    size: u64,
}

/// A blob on its way into the repositories of one registry.
struct Job {
    client: Client,
    repositories: Vec<Repository>,
    permits: Arc<Semaphore>,
    gate: Arc<Gate>,
    digest: Digest,
    size: u64,
    source: BlobSource,
    known_in: Option<Repository>,
    progress: PushProgress,
}

/// The destinations' repositories by canonical registry.
fn groups(destinations: &[Reference]) -> BTreeMap<String, Group> {
    let mut named: BTreeMap<String, Vec<Reference>> = BTreeMap::new();
    for destination in destinations {
        named.entry(canonical(destination.registry())).or_default().push(destination.clone());
    }
    let group = |destinations: Vec<Reference>| {
        let mut repositories: Vec<Repository> = Vec::new();
        for repository in destinations.iter().map(Repository::from) {
            if !repositories.contains(&repository) {
                repositories.push(repository);
            }
        }
        let permits = Arc::new(Semaphore::new(BLOBS_AT_ONCE));
        Group { repositories, complete: None, permits, gate: Arc::new(Gate::new(destinations)) }
    };
    named.into_iter().map(|(registry, named)| (registry, group(named))).collect()
}

impl Uploader {
    /// For one image that goes to `destinations`. To be made on the runtime that is to carry the uploads. Dropping it
    /// gives them up.
    ///
    /// # Errors
    /// There is no destination.
    pub fn new(
        client: &Client,
        destinations: &[Reference],
        progress: PushProgress,
    ) -> Result<Self, PushError> {
        if destinations.is_empty() {
            return Err(PushError::Image("there is no destination".into()));
        }
        Ok(Uploader {
            client: client.clone(),
            destinations: destinations.to_vec(),
            groups: groups(destinations),
            progress,
            runtime: Handle::current(),
            tasks: Mutex::default(),
            before: client.stats(),
        })
    }

    /// Begins to upload `layer`; once for each blob, however often it is called. Failures show in
    /// [`Uploader::finish`].
    pub fn start(&self, layer: &PushLayer) {
        let mut known_in = layer.known_in.clone();
        let source = match &layer.source {
            LayerSource::File(path) => BlobSource::File(path.clone()),
            LayerSource::Part(path, offset) => BlobSource::Part(path.clone(), *offset),
            LayerSource::Bytes(bytes) => BlobSource::Bytes(bytes.clone()),
            LayerSource::Registry(repository) => {
                known_in.get_or_insert_with(|| repository.clone());
                BlobSource::Registry(repository.clone())
            }
        };
        for (registry, group) in &self.groups {
            self.spawn(registry, group, layer.digest, layer.size, &source, known_in.as_ref());
        }
    }

    fn spawn(
        &self,
        registry: &str,
        group: &Group,
        digest: Digest,
        size: u64,
        source: &BlobSource,
        known_in: Option<&Repository>,
    ) {
        let mut tasks = self.tasks();
        if !tasks.started.insert((registry.to_owned(), digest)) {
            return;
        }
        let job = Job {
            client: self.client.clone(),
            repositories: group.repositories.clone(),
            permits: group.permits.clone(),
            gate: group.gate.clone(),
            digest,
            size,
            source: source.clone(),
            known_in: known_in
                .filter(|known| canonical(&known.registry) == registry)
                .or(group.complete.as_ref())
                .cloned(),
            progress: self.progress.clone(),
        };
        tasks.running.spawn_on(job.run(), &self.runtime);
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// [`Uploader::finish`] under the image's digest alone, in each of the destinations' repositories.
    ///
    /// # Errors
    /// As there.
    pub async fn finish_by_digest(mut self, image: &PushImage) -> Result<PushReport, PushError> {
        let mut pinned: Vec<Reference> = Vec::new();
        for destination in &self.destinations {
            let destination = document::pinned(destination, image.digest);
            if !pinned.contains(&destination) {
                pinned.push(destination);
            }
        }
        self.destinations = pinned;
        self.finish(image).await
    }

    /// Uploads what is missing of `image`, waits for it, puts the manifest under every destination and reads it back.
    ///
    /// # Errors
    /// The first failure; the other uploads are given up.
    pub async fn finish(self, image: &PushImage) -> Result<PushReport, PushError> {
        let bundle = image.bundle()?;
        self.finish_bundle(&bundle).await
    }

    /// The same for a bundle.
    ///
    /// # Errors
    /// As for an image.
    pub async fn finish_bundle(mut self, bundle: &Bundle) -> Result<PushReport, PushError> {
        let mut report = PushReport::default();
        let mut changed = Vec::new();
        for destination in &self.destinations {
            match self.standing(destination, bundle.root.digest).await? {
                Standing::Same => {
                    report.unchanged.push(destination.whole());
                    let repository = Repository::from(destination);
                    if let Some(group) = self.groups.get_mut(&canonical(&repository.registry)) {
                        group.complete = Some(repository);
                    }
                }
                Standing::Free => changed.push(destination.clone()),
                Standing::Kept(there) => {
                    let digest = bundle.root.digest;
                    report.skipped.push(tags::skip(&self.client, destination, there, digest)?)
                }
            }
        }
        self.keep_only(&changed);
        self.upload(bundle, &mut report).await?;
        self.put_children(bundle, &changed, &mut report).await?;
        for destination in &changed {
            if self.put(destination, &bundle.root, bundle, &mut report).await? {
                verify(&self.client, destination, bundle.root.digest).await?;
                report.changed.push(destination.whole());
            }
        }
        let now = self.client.stats();
        report.requests = now.requests - self.before.requests;
        report.retries = now.retries - self.before.retries;
        Ok(report)
    }

    /// Puts what the root names into each repository, by digest.
    async fn put_children(
        &self,
        bundle: &Bundle,
        destinations: &[Reference],
        report: &mut PushReport,
    ) -> Result<(), PushError> {
        let mut done = HashSet::new();
        for destination in destinations.iter().filter(|d| done.insert(Repository::from(*d))) {
            for child in &bundle.children {
                let place = document::pinned(destination, child.digest);
                if self.standing(&place, child.digest).await? != Standing::Same {
                    self.put(&place, child, bundle, report).await?;
                    verify(&self.client, &place, child.digest).await?;
                }
            }
        }
        Ok(())
    }

    /// Gives up the repositories in which nothing changes.
    fn keep_only(&mut self, changed: &[Reference]) {
        let wanted: HashSet<Repository> = changed.iter().map(Repository::from).collect();
        for group in self.groups.values_mut() {
            group.repositories.retain(|repository| wanted.contains(repository));
        }
        self.groups.retain(|_, group| !group.repositories.is_empty());
        self.groups.values().for_each(|group| group.gate.open());
        if changed.is_empty() {
            self.tasks().running.abort_all();
        }
    }

    async fn standing(
        &self,
        destination: &Reference,
        digest: Digest,
    ) -> Result<Standing, PushError> {
        let other = |named: &str| named.parse() != Ok(digest);
        if destination.digest().is_some_and(other) {
            return Err(PushError::OtherDigest { destination: destination.whole(), digest });
        }
        match tags::standing(&self.client, destination, digest).await {
            Ok(found) => Ok(found),
            Err(error) => Err(self.failed(destination, error).await),
        }
    }

    /// With what the registry's provider says about it.
    async fn failed(&self, destination: &Reference, error: RegistryError) -> PushError {
        let error = self.client.advised(&Repository::from(destination), error).await;
        failed(destination.whole(), error)
    }

    async fn upload(&self, bundle: &Bundle, report: &mut PushReport) -> Result<(), PushError> {
        bundle.blobs.iter().for_each(|blob| self.start(blob));
        let mut running = std::mem::take(&mut self.tasks().running);
        while let Some(ended) = running.join_next().await {
            // On a failure `running` is dropped, which ends the others.
            let done = match ended {
                // What was given up because nothing changes.
                Err(error) if error.is_cancelled() => continue,
                ended => ended.map_err(|error| PushError::Task(error.to_string()))??,
            };
            done.iter().for_each(|done| report.count(done));
        }
        Ok(())
    }

    /// Returns whether it names the image now; not so for an immutable tag that may be skipped.
    async fn put(
        &self,
        destination: &Reference,
        document: &Document,
        bundle: &Bundle,
        report: &mut PushReport,
    ) -> Result<bool, PushError> {
        let mut result = put(&self.client, document, destination).await;
        // A blob vanished since it was asked for: look at all of them again, once.
        if let Err(error) = &result
            && error.kind() == Some(RefusalKind::BlobUnknown)
        {
            tracing::warn!(%error, "a blob is gone, checking all again");
            self.tasks().started.clear();
            self.upload(bundle, report).await?;
            result = put(&self.client, document, destination).await;
        }
        match result {
            Ok(()) => Ok(true),
            Err(error)
                if error.kind() == Some(RefusalKind::TagImmutable)
                    && self.client.skip_immutable() =>
            {
                report.skipped.push(destination.whole());
                Ok(false)
            }
            Err(error) => Err(self.failed(destination, error).await),
        }
    }
}

impl PushReport {
    fn count(&mut self, done: &Done) {
        match done.outcome {
            UploadOutcome::Existed => self.existed += 1,
            UploadOutcome::Mounted => self.mounted += 1,
            UploadOutcome::Uploaded => {
                self.uploaded += 1;
                self.uploaded_bytes += done.size;
            }
        }
    }
}

impl Job {
    /// Into one repository after the other: from the second on, the registry can mount it from the first.
    async fn run(self) -> Result<Vec<Done>, PushError> {
        self.gate.pass(&self.client).await;
        let _permit = self.permits.acquire().await;
        let mut done = Vec::new();
        for (at, repository) in self.repositories.iter().enumerate() {
            let first = self.repositories.first().filter(|_| at > 0);
            let mount_from = first.or(self.known_in.as_ref()).map(|known| known.name.as_str());
            let outcome = self.upload(repository, mount_from).await;
            let outcome = match outcome {
                Ok(outcome) => outcome,
                Err(error) => {
                    let error = self.client.advised(repository, error).await;
                    return Err(failed(repository.to_string(), error));
                }
            };
            tracing::debug!(%repository, digest = %self.digest, ?outcome, "blob");
            done.push(Done { outcome, size: self.size });
        }
        Ok(done)
    }

    async fn upload(
        &self,
        repository: &Repository,
        mount_from: Option<&str>,
    ) -> Result<UploadOutcome, RegistryError> {
        let (progress, named) = (self.progress.clone(), repository.clone());
        let (digest, size) = (self.digest, self.size);
        let tell = move |bytes| progress(&named, digest, bytes, size);
        let tell: crate::registry::Progress = Arc::new(tell);
        self.client.upload_blob(repository, digest, size, &self.source, mount_from, &tell).await
    }
}
