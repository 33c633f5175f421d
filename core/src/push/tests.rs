use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use serde_json::json;

use super::*;
use crate::registry::{
    manifest::OCI_MANIFEST,
    reference,
    testing::{Fake, Reply, Request},
};

const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";

/// What a registry keeps: blobs by repository, manifests by repository and name.
#[derive(Default)]
struct Kept {
    blobs: BTreeSet<(String, String)>,
    manifests: BTreeMap<(String, String), Vec<u8>>,
    /// So many manifests are refused because a blob is gone; the blobs go with it.
    forget: usize,
    /// Serves other bytes than were put.
    lie: bool,
}

impl Kept {
    fn answer(&mut self, request: &Request) -> Reply {
        let path = request.path.strip_prefix("/v2/").unwrap_or_default();
        let (repository, rest) = path.split_once('/').unwrap();
        let repository = repository.to_owned();
        let (kind, name) = rest.split_once('/').unwrap();
        match (request.method.as_str(), kind) {
            ("HEAD", "blobs") if self.blobs.contains(&(repository.clone(), name.to_owned())) => {
                Reply::new(200)
            }
            ("POST", _) => self.post(repository, name),
            ("PUT", "blobs") => {
                let digest = name.rsplit_once("digest=").unwrap().1.replace("%3A", ":");
                assert_eq!(Digest::of(&request.body).to_string(), digest);
                self.blobs.insert((repository, digest));
                Reply::new(201)
            }
            ("PUT", _) => self.put_manifest(repository, name, request),
            (_, "manifests") => self.manifest(repository, name),
            _ => Reply::new(404),
        }
    }

    fn post(&mut self, repository: String, name: &str) -> Reply {
        let mount = name.split_once("mount=").and_then(|(_, mount)| mount.split_once("&from="));
        if let Some((digest, from)) = mount
            && self.blobs.contains(&(from.to_owned(), digest.to_owned()))
        {
            self.blobs.insert((repository, digest.to_owned()));
            return Reply::new(201);
        }
        Reply::new(202).header("Location", format!("/v2/{repository}/blobs/uploads/1"))
    }

    fn put_manifest(&mut self, repository: String, name: &str, request: &Request) -> Reply {
        if self.forget > 0 {
            self.forget -= 1;
            self.blobs.clear();
            return Reply::error(404, "MANIFEST_BLOB_UNKNOWN", "blob unknown");
        }
        assert_eq!(request.header("content-type"), OCI_MANIFEST);
        self.manifests.insert((repository, name.to_owned()), request.body.clone());
        Reply::new(201)
    }

    fn manifest(&self, repository: String, name: &str) -> Reply {
        let Some(body) = self.manifests.get(&(repository, name.to_owned())) else {
            return Reply::new(404);
        };
        let mut body = body.clone();
        if self.lie {
            body.push(b' ');
        }
        Reply::new(200)
            .header("Content-Type", OCI_MANIFEST)
            .header("Docker-Content-Digest", Digest::of(&body))
            .body(body)
    }
}

async fn registry(kept: Kept) -> Fake {
    let kept = Mutex::new(kept);
    Fake::start(move |request, _| kept.lock().unwrap().answer(request)).await
}

struct Image {
    image: PushImage,
    _files: tempfile::TempDir,
}

fn image(layers: &[&str]) -> Image {
    let files = tempfile::tempdir().unwrap();
    let config = Bytes::from_static(b"{\"architecture\":\"amd64\"}");
    let mut push_layers = Vec::new();
    let mut descriptors = Vec::new();
    for text in layers {
        let (digest, size) = (Digest::of(text.as_bytes()), text.len() as u64);
        let path = files.path().join(digest.hex());
        std::fs::write(&path, text).unwrap();
        descriptors.push(json!({"mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": digest, "size": size}));
        let source = LayerSource::File(path);
        push_layers.push(PushLayer { digest, size, source, known_in: None });
    }
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": descriptors,
        "config": {"mediaType": CONFIG_TYPE, "digest": Digest::of(&config), "size": config.len()}});
    let manifest = Bytes::from(manifest.to_string());
    let image = PushImage {
        digest: Digest::of(&manifest),
        manifest,
        manifest_media_type: OCI_MANIFEST.into(),
        config: (Digest::of(&config), config),
        layers: push_layers,
    };
    Image { image, _files: files }
}

fn to(fake: &Fake, names: &[&str]) -> Vec<Reference> {
    let parse = |name: &&str| reference::parse(&format!("{}/{name}", fake.registry())).unwrap();
    names.iter().map(parse).collect()
}

fn quiet() -> PushProgress {
    Arc::new(|_, _, _, _| {})
}

#[tokio::test]
async fn pushes_once_and_then_nothing() {
    let fake = registry(Kept::default()).await;
    let image = image(&["one", "two", "one"]);
    let told = Arc::new(Mutex::new(BTreeMap::new()));
    let sink = told.clone();
    let progress: PushProgress = Arc::new(move |_, digest, done, total| {
        sink.lock().unwrap().insert(digest, (done, total));
    });
    let destinations = to(&fake, &["app:v1"]);
    let report = push(&fake.client(), &image.image, &destinations, progress).await.unwrap();
    assert_eq!((report.uploaded, report.existed, report.mounted), (3, 0, 0));
    assert_eq!(report.uploaded_bytes, 3 + 3 + image.image.config.1.len() as u64);
    assert_eq!((report.changed.len(), report.unchanged.len()), (1, 0));
    assert_eq!(told.lock().unwrap()[&Digest::of(b"two")], (3, 3));
    let lines = fake.lines();
    assert_eq!(report.requests as usize, lines.len());
    // The manifest goes last, and is read back.
    assert_eq!(lines[lines.len() - 2..], ["PUT /v2/app/manifests/v1", "GET /v2/app/manifests/v1"]);

    let before = fake.lines().len();
    let again = push(&fake.client(), &image.image, &destinations, quiet()).await.unwrap();
    assert_eq!((again.changed.len(), again.unchanged.len()), (0, 1));
    assert_eq!(fake.lines()[before..], ["HEAD /v2/app/manifests/v1"]);
}

#[tokio::test]
async fn several_tags_and_repositories() {
    let fake = registry(Kept::default()).await;
    let image = image(&["one"]);
    let pinned = format!("third@{}", image.image.digest);
    let destinations = to(&fake, &["app:v1", "app:v2", "other:v1", &pinned]);
    let report = push(&fake.client(), &image.image, &destinations, quiet()).await.unwrap();
    // Uploaded to the first repository, mounted into the others.
    assert_eq!((report.uploaded, report.mounted), (2, 4));
    assert_eq!(report.changed.len(), 4);
    let puts = fake
        .lines()
        .iter()
        .filter(|line| line.starts_with("PUT") && line.contains("manif"))
        .count();
    assert_eq!(puts, 4);
}

#[tokio::test]
async fn layers_may_start_early_and_come_from_elsewhere() {
    let fake = registry(Kept::default()).await;
    let base = Fake::start(|_, _| Reply::new(200).body("one")).await;
    let mut image = image(&["one", "two"]);
    image.image.layers[0].source = LayerSource::Registry(base.repository("base"));
    let client = fake.client();
    let uploader = Uploader::new(&client, &to(&fake, &["app:v1"]), quiet()).unwrap();
    uploader.start(&image.image.layers[1]);
    uploader.start(&image.image.layers[1]);
    let report = uploader.finish(&image.image).await.unwrap();
    assert_eq!(report.uploaded, 3);
    assert!(!fake.lines().iter().any(|line| line.contains("mount=")), "not the same registry");
    // A base on the same registry is mounted.
    image.image.layers[0].source = LayerSource::Registry(fake.repository("app"));
    let report = push(&client, &image.image, &to(&fake, &["fresh:v1"]), quiet()).await.unwrap();
    assert_eq!((report.mounted, report.uploaded), (1, 2));
}

#[tokio::test]
async fn a_blob_that_vanished_is_sent_again() {
    let fake = registry(Kept { forget: 1, ..Kept::default() }).await;
    let image = image(&["one"]);
    let report =
        push(&fake.client(), &image.image, &to(&fake, &["app:v1"]), quiet()).await.unwrap();
    assert_eq!(report.uploaded, 4);
    let fake = registry(Kept { forget: 2, ..Kept::default() }).await;
    let error = push(&fake.client(), &image.image, &to(&fake, &["app:v1"]), quiet()).await;
    assert!(error.unwrap_err().to_string().contains("MANIFEST_BLOB_UNKNOWN"));
}

#[tokio::test]
async fn a_registry_that_serves_other_bytes_fails_the_push() {
    let fake = registry(Kept { lie: true, ..Kept::default() }).await;
    let image = image(&["one"]);
    let error =
        push(&fake.client(), &image.image, &to(&fake, &["app:v1"]), quiet()).await.unwrap_err();
    assert!(matches!(&error, PushError::Registry { error: RegistryError::Verify { .. }, .. }));
    let error = error.into_error();
    assert_eq!(error.class(), Class::Push);
    assert!(error.hint_text().is_some());
}

#[tokio::test]
async fn a_failed_layer_fails_the_push_before_the_manifest() {
    let fake = registry(Kept::default()).await;
    let image = image(&["one", "two"]);
    let LayerSource::File(path) = &image.image.layers[0].source else { panic!("no file") };
    std::fs::write(path, "changed").unwrap();
    let error =
        push(&fake.client(), &image.image, &to(&fake, &["app:v1"]), quiet()).await.unwrap_err();
    assert!(error.to_string().contains("bytes, expected 3"), "{error}");
    assert!(!fake.lines().iter().any(|line| line.starts_with("PUT /v2/app/manifests")));
}

#[tokio::test]
async fn inconsistent_images_are_refused() {
    let fake = registry(Kept::default()).await;
    let good = image(&["one"]).image;
    let mut other_digest = good.clone();
    other_digest.digest = Digest::of(b"x");
    let mut other_config = good.clone();
    other_config.config.0 = Digest::of(b"x");
    let mut missing = good.clone();
    missing.layers.clear();
    for bad in [other_digest, other_config, missing] {
        let error = push(&fake.client(), &bad, &to(&fake, &["app:v1"]), quiet()).await.unwrap_err();
        assert!(matches!(error, PushError::Image(_)), "{error}");
    }
    let pinned = format!("app@{}", Digest::of(b"x"));
    let error = push(&fake.client(), &good, &to(&fake, &[&pinned]), quiet()).await.unwrap_err();
    assert!(matches!(error, PushError::OtherDigest { .. }), "{error}");
    assert!(push(&fake.client(), &good, &[], quiet()).await.is_err());
    assert!(fake.requests().is_empty());
}

/// A provider whose repositories keep every tag.
struct Keeps;

impl crate::registry::RegistryHooks for Keeps {
    fn knows(&self, _: &str) -> bool {
        true
    }

    fn create_repository<'a>(
        &'a self,
        _: &'a Repository,
    ) -> crate::registry::BoxFuture<'a, Result<bool, crate::registry::KeychainError>> {
        Box::pin(async { Ok(false) })
    }

    fn keeps_tag<'a>(
        &'a self,
        _: &'a Repository,
        _: &'a str,
    ) -> crate::registry::BoxFuture<'a, bool> {
        Box::pin(async { true })
    }

    fn advise<'a>(
        &'a self,
        _: &'a Repository,
        _: &'a RegistryError,
    ) -> crate::registry::BoxFuture<'a, Option<String>> {
        Box::pin(async { None })
    }
}

fn keeping(skip_immutable: bool) -> Client {
    let mut options = crate::registry::testing::options();
    options.hooks = Some(Arc::new(Keeps));
    options.skip_immutable = skip_immutable;
    Client::new(options, Arc::new(crate::registry::Anonymous)).unwrap()
}

#[tokio::test]
async fn a_tag_that_can_not_move_holds_uploads_back_until_the_digest_is_known() {
    let fake = registry(Kept::default()).await;
    let (first, second) = (image(&["one"]), image(&["two"]));
    let destinations = to(&fake, &["app:v1"]);
    push(&keeping(false), &first.image, &destinations, quiet()).await.unwrap();
    let before = fake.lines().len();
    let sent = |line: &String| line.starts_with("POST") || line.starts_with("PUT");

    // Its layers are given before anybody knows the digest.
    let uploader = Uploader::new(&keeping(false), &destinations, quiet()).unwrap();
    second.image.layers.iter().for_each(|layer| uploader.start(layer));
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    let error = uploader.finish(&second.image).await.unwrap_err();
    assert!(matches!(error, PushError::Immutable { .. }), "{error}");
    let error = error.into_error();
    assert!(error.title().contains("immutable") && error.class() == Class::Push, "{error}");
    assert!(!fake.lines()[before..].iter().any(sent), "{:?}", &fake.lines()[before..]);

    let report = push(&keeping(true), &second.image, &destinations, quiet()).await.unwrap();
    assert_eq!((report.changed.len(), report.skipped.len()), (0, 1));
    assert!(report.warnings()[0].message.contains("app:v1"));
    assert!(!fake.lines()[before..].iter().any(sent));

    // The same content, and another tag, go on.
    let uploader =
        Uploader::new(&keeping(false), &to(&fake, &["app:v1", "app:v2"]), quiet()).unwrap();
    first.image.layers.iter().for_each(|layer| uploader.start(layer));
    let report = uploader.finish(&first.image).await.unwrap();
    assert_eq!((report.changed.len(), report.unchanged.len()), (1, 1));
    let kept = kept_tags(&keeping(true), &[&destinations[0]], second.image.digest).await.unwrap();
    assert_eq!(kept, [destinations[0].whole()]);
    assert!(kept_tags(&keeping(false), &[&destinations[0]], second.image.digest).await.is_err());
}
