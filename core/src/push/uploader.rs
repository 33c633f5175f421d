//! Uploads in the background, and the manifest when they are done.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::Semaphore,
    task::{AbortHandle, JoinSet},
};

use super::{LayerSource, PushError, PushImage, PushLayer, PushProgress, PushReport};
use crate::{
    digest::Digest,
    registry::{
        BlobSource, Client, ClientStats, Reference, RefusalKind, RegistryError, Repository,
        UploadOutcome, reference::canonical,
    },
};

/// More connections to one registry bring no more bytes.
const BLOBS_AT_ONCE: usize = 4;

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
    digest: Digest,
    size: u64,
    source: BlobSource,
    known_in: Option<Repository>,
    progress: PushProgress,
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
        let mut groups: BTreeMap<String, Group> = BTreeMap::new();
        for repository in destinations.iter().map(Repository::from) {
            let group = groups.entry(canonical(&repository.registry)).or_insert_with(|| Group {
                repositories: Vec::new(),
                complete: None,
                permits: Arc::new(Semaphore::new(BLOBS_AT_ONCE)),
            });
            if !group.repositories.contains(&repository) {
                group.repositories.push(repository);
            }
        }
        Ok(Uploader {
            client: client.clone(),
            destinations: destinations.to_vec(),
            groups,
            progress,
            runtime: Handle::current(),
            tasks: Mutex::default(),
            before: client.stats(),
        })
    }

    /// Begins to upload `layer`; once for each blob, however often it is called. Failures show in
    /// [`Uploader::finish`].
    pub fn start(&self, layer: &PushLayer) {
        let (source, known_in) = match &layer.source {
            LayerSource::File(path) => (BlobSource::File(path.clone()), layer.known_in.clone()),
            LayerSource::Registry(repository) => {
                let known_in = layer.known_in.clone().unwrap_or_else(|| repository.clone());
                (BlobSource::Registry(repository.clone()), Some(known_in))
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
    ) -> Option<AbortHandle> {
        let mut tasks = self.tasks();
        if !tasks.started.insert((registry.to_owned(), digest)) {
            return None;
        }
        let job = Job {
            client: self.client.clone(),
            repositories: group.repositories.clone(),
            permits: group.permits.clone(),
            digest,
            size,
            source: source.clone(),
            known_in: known_in
                .filter(|known| canonical(&known.registry) == registry)
                .or(group.complete.as_ref())
                .cloned(),
            progress: self.progress.clone(),
        };
        Some(tasks.running.spawn_on(job.run(), &self.runtime))
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uploads what is missing of `image`, waits for it, puts the manifest under every destination and reads it back.
    ///
    /// # Errors
    /// The first failure; the other uploads are given up.
    pub async fn finish(mut self, image: &PushImage) -> Result<PushReport, PushError> {
        image.check()?;
        let mut report = PushReport::default();
        let mut changed = Vec::new();
        for destination in &self.destinations {
            if self.names_already(destination, image).await? {
                report.unchanged.push(destination.whole());
                let repository = Repository::from(destination);
                if let Some(group) = self.groups.get_mut(&canonical(&repository.registry)) {
                    group.complete = Some(repository);
                }
            } else {
                changed.push(destination.clone());
            }
        }
        self.keep_only(&changed);
        self.upload(image, &mut report).await?;
        for destination in &changed {
            self.put(destination, image, &mut report).await?;
            self.verify(destination, image).await?;
            report.changed.push(destination.whole());
        }
        let now = self.client.stats();
        report.requests = now.requests - self.before.requests;
        report.retries = now.retries - self.before.retries;
        Ok(report)
    }

    /// Gives up the repositories in which nothing changes.
    fn keep_only(&mut self, changed: &[Reference]) {
        let wanted: HashSet<Repository> = changed.iter().map(Repository::from).collect();
        for group in self.groups.values_mut() {
            group.repositories.retain(|repository| wanted.contains(repository));
        }
        self.groups.retain(|_, group| !group.repositories.is_empty());
        if changed.is_empty() {
            self.tasks().running.abort_all();
        }
    }

    /// Whether there is nothing to do for `destination`.
    async fn names_already(
        &self,
        destination: &Reference,
        image: &PushImage,
    ) -> Result<bool, PushError> {
        let other = |digest: &str| digest.parse() != Ok(image.digest);
        if destination.digest().is_some_and(other) {
            let (destination, digest) = (destination.whole(), image.digest);
            return Err(PushError::OtherDigest { destination, digest });
        }
        match self.client.pushed_digest(&Repository::from(destination), &name(destination)).await {
            Ok(found) => Ok(found == Some(image.digest)),
            // What the push itself will be told comes with a reason.
            Err(RegistryError::Refused(_)) => Ok(false),
            Err(error) => Err(failed(destination.whole(), error)),
        }
    }

    async fn upload(&self, image: &PushImage, report: &mut PushReport) -> Result<(), PushError> {
        let (digest, bytes) = &image.config;
        let config = BlobSource::Bytes(bytes.clone());
        for (registry, group) in &self.groups {
            self.spawn(registry, group, *digest, bytes.len() as u64, &config, None);
        }
        for layer in &image.layers {
            self.start(layer);
        }
        let mut running = std::mem::take(&mut self.tasks().running);
        while let Some(ended) = running.join_next().await {
            // On a failure `running` is dropped, which ends the others.
            for done in ended.map_err(|error| PushError::Task(error.to_string()))?? {
                report.count(&done);
            }
        }
        Ok(())
    }

    async fn put(
        &self,
        destination: &Reference,
        image: &PushImage,
        report: &mut PushReport,
    ) -> Result<(), PushError> {
        let result = self.put_once(destination, image).await;
        match &result {
            // A blob vanished since it was asked for: look at all of them again, once.
            Err(error) if error.kind() == Some(RefusalKind::BlobUnknown) => {
                tracing::warn!(%error, "a blob is gone, checking all again");
                self.tasks().started.clear();
                self.upload(image, report).await?;
                self.put_once(destination, image).await
            }
            _ => result,
        }
        .map_err(|error| failed(destination.whole(), error))
    }

    async fn put_once(
        &self,
        destination: &Reference,
        image: &PushImage,
    ) -> Result<(), RegistryError> {
        let (repository, name) = (Repository::from(destination), name(destination));
        let (media_type, bytes) = (&image.manifest_media_type, image.manifest.clone());
        self.client.put_manifest(&repository, &name, media_type, bytes).await.map(drop)
    }

    /// Reads the manifest back by the name it was put under.
    async fn verify(&self, destination: &Reference, image: &PushImage) -> Result<(), PushError> {
        let wrap = |error| failed(destination.whole(), error);
        let (repository, name) = (Repository::from(destination), name(destination));
        let mut tries = 0;
        let actual = loop {
            match self.client.read_back(&repository, &name).await {
                // Registries that are many machines need a moment.
                Err(missing) if missing.is_not_found() && tries < 4 => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(200 << tries)).await;
                }
                found => break found.map_err(wrap)?,
            }
        };
        if actual != image.digest {
            let (what, expected) = (destination.whole(), image.digest);
            return Err(wrap(RegistryError::Verify { what, expected, actual }));
        }
        Ok(())
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
        let _permit = self.permits.acquire().await;
        let mut done = Vec::new();
        for (at, repository) in self.repositories.iter().enumerate() {
            let first = self.repositories.first().filter(|_| at > 0);
            let mount_from = first.or(self.known_in.as_ref()).map(|known| known.name.as_str());
            let outcome = self
                .upload(repository, mount_from)
                .await
                .map_err(|error| failed(repository.to_string(), error))?;
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

/// What the manifest is put under: the tag, else the digest.
fn name(destination: &Reference) -> String {
    destination.tag().or_else(|| destination.digest()).unwrap_or("latest").to_owned()
}

fn failed(destination: String, error: RegistryError) -> PushError {
    PushError::Registry { destination, error }
}
