use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    digest::Digest,
    registry::{
        BlobSource, BoxFuture, Client, Credential, Keychain, KeychainError, RegistryError,
        RegistryHooks, Repository, UploadOutcome,
        manifest::OCI_MANIFEST,
        reference,
        testing::{Fake, Reply, Request, options, password},
    },
};

/// A provider that knows every registry.
#[derive(Default)]
struct Provider {
    creates: bool,
    created: AtomicUsize,
}

impl RegistryHooks for Provider {
    fn knows(&self, _: &str) -> bool {
        true
    }

    fn create_repository<'a>(
        &'a self,
        _: &'a Repository,
    ) -> BoxFuture<'a, Result<bool, KeychainError>> {
        self.created.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Ok(self.creates) })
    }

    fn keeps_tag<'a>(&'a self, _: &'a Repository, _: &'a str) -> BoxFuture<'a, bool> {
        Box::pin(async { false })
    }

    fn advise<'a>(
        &'a self,
        _: &'a Repository,
        error: &'a RegistryError,
    ) -> BoxFuture<'a, Option<String>> {
        Box::pin(async move { error.kind().map(|kind| format!("advice on {kind:?}")) })
    }
}

fn client(provider: Arc<Provider>, keychain: Arc<dyn Keychain>) -> Client {
    let mut options = options();
    options.hooks = Some(provider);
    Client::new(options, keychain).unwrap()
}

fn anonymous() -> Arc<dyn Keychain> {
    Arc::new(crate::registry::Anonymous)
}

async fn upload(client: &Client, fake: &Fake) -> Result<UploadOutcome, RegistryError> {
    let content = BlobSource::Bytes(Bytes::from_static(b"content"));
    let (digest, repository) = (Digest::of(b"content"), fake.repository("app"));
    let quiet: crate::registry::Progress = Arc::new(|_| {});
    client.upload_blob(&repository, digest, 7, &content, None, &quiet).await
}

#[tokio::test]
async fn a_missing_repository_is_created_once_and_seen_late() {
    for closes in [false, true] {
        let posts = AtomicUsize::new(0);
        let fake = Fake::start(move |request, _| match request.method.as_str() {
            "HEAD" => Reply::new(404),
            "POST" if posts.fetch_add(1, Ordering::SeqCst) < 3 => match closes {
                true => Reply::new(200).fault(crate::registry::testing::Fault::Close),
                false => Reply::error(404, "NAME_UNKNOWN", "no such repository"),
            },
            "POST" => Reply::new(202).header("Location", "/v2/app/blobs/uploads/1"),
            _ => Reply::new(201),
        })
        .await;
        let provider = Arc::new(Provider { creates: true, ..Provider::default() });
        let client = client(provider.clone(), anonymous());
        assert_eq!(upload(&client, &fake).await.unwrap(), UploadOutcome::Uploaded);
        assert_eq!(provider.created.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn a_repository_that_is_not_to_be_created_or_never_appears_is_an_error() {
    for creates in [false, true] {
        let fake = Fake::start(|request, _| match request.method.as_str() {
            "HEAD" => Reply::new(404),
            _ => Reply::error(404, "NAME_UNKNOWN", "no such repository"),
        })
        .await;
        let provider = Arc::new(Provider { creates, ..Provider::default() });
        let client = client(provider.clone(), anonymous());
        let error = upload(&client, &fake).await.unwrap_err();
        assert!(error.to_string().contains("no such repository"), "{error}");
        assert_eq!(provider.created.load(Ordering::SeqCst), 1);
    }
}

fn manifest() -> Vec<u8> {
    let config = serde_json::json!({"mediaType": "x/y", "digest": Digest::of(b"{}"), "size": 2});
    let document = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": config, "layers": []});
    document.to_string().into_bytes()
}

/// Serves the manifest by tag from the second request on, by digest when a tag was asked for.
fn importing(request: &Request, imported: &AtomicUsize) -> Reply {
    let by_tag = request.path.ends_with("/v1");
    let served = imported.load(Ordering::SeqCst);
    if by_tag {
        imported.store(served + 1, Ordering::SeqCst);
    }
    match (request.method.as_str(), served) {
        ("GET", 1..) => Reply::new(200).header("Content-Type", OCI_MANIFEST).body(manifest()),
        _ => Reply::error(404, "MANIFEST_UNKNOWN", "not yet"),
    }
}

#[tokio::test]
async fn a_cache_is_filled_by_a_get_of_the_tag() {
    let imported = AtomicUsize::new(0);
    let fake = Fake::start(move |request, _| importing(request, &imported)).await;
    let client = client(Arc::default(), anonymous());
    let digest = Digest::of(&manifest());
    let name = format!("{}/app:v1@{digest}", fake.registry());
    let fetched = client.manifest(&reference::parse(&name).unwrap()).await.unwrap();
    assert_eq!(fetched.digest, digest);
    let tag = "GET /v2/app/manifests/v1".to_owned();
    assert_eq!(fake.lines(), [tag.clone(), format!("GET /v2/app/manifests/{digest}")]);
    let name = format!("{}/app:v1", fake.registry());
    client.resolve(&reference::parse(&name).unwrap()).await.unwrap();
    assert_eq!(fake.lines()[2..], [tag]);
}

#[tokio::test]
async fn the_providers_advice_is_the_hint() {
    let fake = Fake::start(|_, _| Reply::error(403, "DENIED", "no")).await;
    let client = client(Arc::default(), anonymous());
    let name = format!("{}/app:v1", fake.registry());
    let error = client.resolve(&reference::parse(&name).unwrap()).await.unwrap_err();
    assert_eq!(error.hint().as_deref(), Some("advice on Denied"));
    assert!(error.to_string().contains("DENIED") && error.refusal().is_some());
}

/// Gives another password each time, and wants each to be replaced after a moment.
struct ShortLived(AtomicUsize);

impl Keychain for ShortLived {
    fn credential<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credential>, KeychainError>> {
        let number = self.0.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move { Ok(Some(password("u", &format!("p{number}")))) })
    }

    fn renew_at(&self, _: &str, credential: &Credential) -> Option<Instant> {
        let old = *credential == password("u", "p0");
        Instant::now().checked_add(Duration::from_secs(if old { 0 } else { 60 }))
    }
}

#[tokio::test]
async fn a_credential_is_replaced_before_the_registry_refuses_it() {
    let fake = Fake::start(|request, _| match request.header("authorization") {
        "" => Reply::new(401).header("WWW-Authenticate", "Basic realm=\"r\""),
        _ => Reply::new(200).header("Content-Type", OCI_MANIFEST).body(manifest()),
    })
    .await;
    let keychain = Arc::new(ShortLived(AtomicUsize::new(0)));
    let client = client(Arc::default(), keychain.clone());
    let reference = reference::parse(&format!("{}/app:v1", fake.registry())).unwrap();
    for _ in 0..4 {
        client.manifest(&reference).await.unwrap();
    }
    assert_eq!(keychain.0.load(Ordering::SeqCst), 2);
}

/// Gives `p0` until it is refused, then `p1`, slowly.
#[derive(Default)]
struct Slow {
    refused: std::sync::atomic::AtomicBool,
    asked: AtomicUsize,
}

impl Keychain for Slow {
    fn credential<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credential>, KeychainError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Box::pin(async {
            let word = if self.refused.load(Ordering::SeqCst) { "p1" } else { "p0" };
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok(Some(password("u", word)))
        })
    }

    fn refused<'a>(&'a self, _: &'a str, _: &'a Credential) -> BoxFuture<'a, bool> {
        let first = !self.refused.swap(true, Ordering::SeqCst);
        Box::pin(async move { first })
    }
}

/// Requests that are refused while another one already gets the new password wait for that one.
#[tokio::test(flavor = "multi_thread")]
async fn many_requests_renew_a_credential_once() {
    use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

    let arrived = AtomicUsize::new(0);
    let old = format!("Basic {}", BASE64.encode("u:p0"));
    let fake = Fake::start(move |request, _| match request.header("authorization") {
        "" => Reply::new(401).header("WWW-Authenticate", "Basic realm=\"r\""),
        given if given == old => {
            // One after the other, so that they meet each stage of the renewal.
            let turn = arrived.fetch_add(1, Ordering::SeqCst) as u64;
            std::thread::sleep(Duration::from_millis(7 * turn));
            Reply::error(403, "DENIED", "Your authorization token has expired.")
        }
        _ => Reply::new(200).header("Content-Type", OCI_MANIFEST).body(manifest()),
    })
    .await;
    let keychain = Arc::new(Slow::default());
    let client = client(Arc::default(), keychain.clone());
    let reference = reference::parse(&format!("{}/app:v1", fake.registry())).unwrap();
    let requests = (0..12).map(|_| {
        let (client, reference) = (client.clone(), reference.clone());
        tokio::spawn(async move { client.manifest(&reference).await.map(drop) })
    });
    for request in requests.collect::<Vec<_>>() {
        request.await.unwrap().unwrap();
    }
    assert_eq!(keychain.asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn the_question_for_the_right_to_push_creates_what_is_missing() {
    for (closes, creates) in [(false, true), (true, true), (false, false), (true, false)] {
        let fake = Fake::start(move |_, _| match closes {
            true => Reply::new(200).fault(crate::registry::testing::Fault::Close),
            false => Reply::error(404, "NAME_UNKNOWN", "no such repository"),
        })
        .await;
        let provider = Arc::new(Provider { creates, ..Provider::default() });
        let client = client(provider.clone(), anonymous());
        let checked = client.check_push(&fake.repository("app")).await;
        assert_eq!(checked.is_ok(), creates, "{checked:?}");
        assert_eq!(provider.created.load(Ordering::SeqCst), 1);
        let advised = |error: RegistryError| error.hint().is_some_and(|h| h.contains("advice on"));
        assert!(creates || closes || checked.is_err_and(advised));
    }
}

#[tokio::test]
async fn a_registry_that_never_answered_is_given_up_soon() {
    let client = client(Arc::default(), anonymous());
    let reference = reference::parse("127.0.0.1:1/app:v1").unwrap();
    let error = client.resolve(&reference).await.unwrap_err();
    assert!(matches!(error, RegistryError::Connect { .. }), "{error}");
    assert_eq!(client.stats().retries, u64::from(client.limits().first_tries) - 1);
}
