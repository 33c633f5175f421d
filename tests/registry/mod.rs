//! The registry client and push against a real registry.

pub mod server;

use std::sync::Arc;

use bareboat_core::{
    digest::Digest,
    push::{LayerSource, PushImage, PushLayer, PushProgress, PushReport, Uploader, push},
    registry::{
        Anonymous, Client, ClientOptions, ConnectFailure, DockerConfigKeychain, Keychain, Manifest,
        RefusalKind, RegistryError, Repository, manifest::OCI_MANIFEST, reference,
    },
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use oci_distribution::{client as other, secrets::RegistryAuth};
use serde_json::json;
use server::{Certificates, Options, Server};
use tokio::io::AsyncReadExt;

fn tls(roots: &[std::path::PathBuf]) -> rustls::ClientConfig {
    let mut store = rustls::RootCertStore::empty();
    for path in roots {
        let pem = std::fs::read_to_string(path).unwrap();
        let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        store.add(BASE64.decode(body).unwrap().into()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(store)
        .with_no_client_auth()
}

fn client_with(roots: &[std::path::PathBuf], keychain: Arc<dyn Keychain>) -> Client {
    Client::new(ClientOptions::new(tls(roots)), keychain).unwrap()
}

fn client() -> Client {
    client_with(&[], Arc::new(Anonymous))
}

fn config_keychain(server: &Server, user: &str, password: &str) -> Arc<dyn Keychain> {
    let auth = BASE64.encode(format!("{user}:{password}"));
    let json = json!({"auths": {format!("https://{}/v1/", server.address): {"auth": auth}}});
    Arc::new(DockerConfigKeychain::new("config.json", json.to_string().as_bytes(), None).unwrap())
}

/// Content that does not repeat within a megabyte.
fn content(seed: u8, bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ (u64::from(seed) << 32 | 1);
    let mut all = Vec::with_capacity(bytes + 8);
    while all.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        all.extend_from_slice(&state.to_le_bytes());
    }
    all.truncate(bytes);
    all
}

struct Image {
    image: PushImage,
    layers: Vec<Vec<u8>>,
    _files: tempfile::TempDir,
}

fn image(layers: Vec<Vec<u8>>) -> Image {
    let files = tempfile::tempdir().unwrap();
    let config =
        br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let mut push_layers = Vec::new();
    let mut descriptors = Vec::new();
    for layer in &layers {
        let (digest, size) = (Digest::of(layer), layer.len() as u64);
        let path = files.path().join(digest.hex());
        std::fs::write(&path, layer).unwrap();
        let media_type = "application/vnd.oci.image.layer.v1.tar";
        descriptors.push(json!({"mediaType": media_type, "digest": digest, "size": size}));
        let source = LayerSource::File(path);
        push_layers.push(PushLayer { digest, size, source, known_in: None });
    }
    let config_type = "application/vnd.oci.image.config.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": descriptors,
        "config": {"mediaType": config_type, "digest": Digest::of(config), "size": config.len()}});
    let manifest = manifest.to_string();
    let image = PushImage {
        digest: Digest::of(manifest.as_bytes()),
        manifest: manifest.into(),
        manifest_media_type: OCI_MANIFEST.into(),
        config: (Digest::of(config), config.to_vec().into()),
        layers: push_layers,
    };
    Image { image, layers, _files: files }
}

fn quiet() -> PushProgress {
    Arc::new(|_, _, _, _| {})
}

fn parse(server: &Server, name: &str) -> reference::Reference {
    reference::parse(&format!("{}/{name}", server.address)).unwrap()
}

async fn push_to(client: &Client, image: &Image, server: &Server, name: &str) -> PushReport {
    push(client, &image.image, &[parse(server, name)], quiet()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn push_then_pull() {
    let server = Server::start(&Options::default());
    let (client, image) = (client(), image(vec![content(1, 20 << 20), content(2, 1000)]));
    let report = push_to(&client, &image, &server, "team/app:v1").await;
    assert_eq!((report.uploaded, report.existed, report.retries), (3, 0, 0));
    // For each blob HEAD, POST, PUT; for the manifest HEAD, PUT, GET.
    assert_eq!(report.requests, 3 * 3 + 3);
    assert_eq!(server.requests().len(), 12, "{:#?}", server.requests());

    let reference = parse(&server, "team/app:v1");
    let resolved = client.resolve(&reference).await.unwrap();
    assert_eq!(resolved.digest, image.image.digest);
    let fetched = client.manifest(&reference).await.unwrap();
    assert_eq!(fetched.bytes, image.image.manifest);
    let Manifest::Image(manifest) = &fetched.manifest else { panic!("no image") };
    let repository = Repository::from(&reference);
    let config = client.fetch_small(&repository, &manifest.config, 1 << 20).await.unwrap();
    assert_eq!(config, image.image.config.1);
    for (layer, expected) in manifest.layers.iter().zip(&image.layers) {
        let mut reader = client.blob_reader(&repository, layer.digest, layer.size);
        let mut all = Vec::new();
        reader.read_to_end(&mut all).await.unwrap();
        assert!(all == *expected);
        assert!(client.blob_exists(&repository, layer.digest).await.unwrap());
    }
    let layer = &manifest.layers[0];
    let part = client.blob_range(&repository, layer.digest, 1000..5000).await.unwrap();
    assert_eq!(part, image.layers[0][1000..5000]);
    assert!(!client.blob_exists(&repository, Digest::of(b"none")).await.unwrap());
}

#[tokio::test]
async fn the_same_again_is_one_request() {
    let server = Server::start(&Options::default());
    let (client, image) = (client(), image(vec![content(1, 100_000)]));
    push_to(&client, &image, &server, "app:v1").await;
    let before = server.requests().len();
    let report = push_to(&client, &image, &server, "app:v1").await;
    assert_eq!((report.requests, report.unchanged.len(), report.uploaded), (1, 1, 0));
    assert_eq!(server.requests()[before..], ["HEAD /v2/app/manifests/v1 200"]);
    // Another tag sends the manifest alone.
    let report = push_to(&client, &image, &server, "app:v2").await;
    assert_eq!((report.uploaded, report.existed, report.changed.len()), (0, 2, 1));
}

#[tokio::test]
async fn layers_are_mounted_from_the_base() {
    let server = Server::start(&Options::default());
    let client = client();
    let base = image(vec![content(3, 300_000)]);
    push_to(&client, &base, &server, "base:v1").await;
    let mut app = image(vec![content(3, 300_000), content(4, 5_000)]);
    app.image.layers[0].known_in = Some(Repository::from(&parse(&server, "base:v1")));
    let report = push_to(&client, &app, &server, "app:v1").await;
    // The config is the same bytes in both, but nothing says so.
    assert_eq!((report.mounted, report.uploaded), (1, 2));
    assert_eq!(client.manifest(&parse(&server, "app:v1")).await.unwrap().digest, app.image.digest);
}

#[tokio::test]
async fn layers_stream_from_another_registry() {
    let (origin, server) = (Server::start(&Options::default()), Server::start(&Options::default()));
    let client = client();
    let mut app = image(vec![content(5, 3_000_000)]);
    push_to(&client, &app, &origin, "base:v1").await;
    app.image.layers[0].source =
        LayerSource::Registry(Repository::from(&parse(&origin, "base:v1")));
    let uploader = Uploader::new(&client, &[parse(&server, "app:v1")], quiet()).unwrap();
    uploader.start(&app.image.layers[0]);
    let report = uploader.finish(&app.image).await.unwrap();
    assert_eq!((report.uploaded, report.mounted), (2, 0));
}

#[tokio::test]
async fn another_client_agrees() {
    let server = Server::start(&Options::default());
    let (client, image) = (client(), image(vec![content(6, 200_000)]));
    push_to(&client, &image, &server, "app:v1").await;
    let config = other::ClientConfig { protocol: other::ClientProtocol::Http, ..<_>::default() };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let theirs = other::Client::new(config);
    let (manifest, digest) = theirs
        .pull_manifest_raw(&parse(&server, "app:v1"), &RegistryAuth::Anonymous, &[OCI_MANIFEST])
        .await
        .unwrap();
    assert_eq!((manifest, digest), (image.image.manifest.clone(), image.image.digest.to_string()));
}

#[tokio::test]
async fn names_that_are_not_there() {
    let server = Server::start(&Options::default());
    let error = client().manifest(&parse(&server, "none:v1")).await.unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(error.kind(), Some(RefusalKind::ManifestUnknown));
    assert_eq!(
        client().resolve(&parse(&server, "none:v1")).await.unwrap_err().kind(),
        error.kind()
    );
    let pinned = format!("none@{}", Digest::of(b"x"));
    assert!(client().manifest(&parse(&server, &pinned)).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn passwords() {
    let server = Server::start(&Options { login: Some(("AWS", "s3:cret")), ..<_>::default() });
    let image = image(vec![content(7, 50_000)]);
    let good = client_with(&[], config_keychain(&server, "AWS", "s3:cret"));
    let report = push_to(&good, &image, &server, "app:v1").await;
    // One request finds out that a password is wanted.
    assert_eq!((report.uploaded, report.requests), (2, 2 * 3 + 3 + 1));
    let destinations = [parse(&server, "app:v2")];
    for (keychain, words) in [
        (config_keychain(&server, "AWS", "wrong"), "came from config.json"),
        (Arc::new(Anonymous) as Arc<dyn Keychain>, "no credential is configured"),
    ] {
        let bad = client_with(&[], keychain);
        let error = push(&bad, &image.image, &destinations, quiet()).await.unwrap_err();
        let error = error.into_error();
        assert!(error.title().contains("401"), "{error}");
        assert!(error.hint_text().unwrap().contains(words), "{:?}", error.hint_text());
        assert!(!format!("{error:?}").contains("wrong\""));
    }
    assert!(!server.log().contains("s3:cret"));
}

#[tokio::test]
async fn tls_with_a_private_authority() {
    let certificates = Certificates::make();
    let (pem, key) = (certificates.path("server.pem"), certificates.path("server.key"));
    let tls = Some((pem.as_path(), key.as_path()));
    let server = Server::start(&Options { tls, login: Some(("u", "p")) });
    let image = image(vec![content(8, 2_000_000)]);
    let keychain = config_keychain(&server, "u", "p");
    let trusting = client_with(&[certificates.path("ca.pem")], keychain.clone());
    let report = push_to(&trusting, &image, &server, "app:v1").await;
    assert_eq!((report.uploaded, report.retries), (2, 0));
    assert_eq!(
        trusting.resolve(&parse(&server, "app:v1")).await.unwrap().digest,
        image.image.digest
    );

    // A certificate that is not trusted ends it at once: no other tries, and no plain http although loopback may.
    let before = server.requests().len();
    let error = client_with(&[], keychain).resolve(&parse(&server, "app:v1")).await.unwrap_err();
    let RegistryError::Connect { failure, .. } = &error else { panic!("{error}") };
    assert_eq!(*failure, ConnectFailure::Certificate);
    assert!(error.hint().unwrap().contains("CA"));
    assert_eq!(server.requests().len(), before);
}

#[tokio::test]
async fn a_file_that_changes_is_not_pushed() {
    let server = Server::start(&Options::default());
    let image = image(vec![content(9, 3 << 20)]);
    let LayerSource::File(path) = &image.image.layers[0].source else { panic!("no file") };
    std::fs::write(path, content(10, 3 << 20)).unwrap();
    let error = push(&client(), &image.image, &[parse(&server, "app:v1")], quiet()).await;
    assert!(error.unwrap_err().to_string().contains("digest"));
    let blob =
        format!("docker/registry/v2/blobs/sha256/{}", &image.image.layers[0].digest.hex()[..2]);
    assert!(!server.data().join(blob).join(image.image.layers[0].digest.hex()).exists());
    assert!(client().manifest(&parse(&server, "app:v1")).await.unwrap_err().is_not_found());
}
