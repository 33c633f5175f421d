use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use serde_json::json;

use crate::{
    digest::Digest,
    registry::{
        Client, RefusalKind, RegistryError, Repository,
        manifest::{DOCKER_MANIFEST, OCI_MANIFEST},
        reference,
        testing::{Fake, Fault, Reply, options},
    },
};

fn image() -> String {
    let config = json!({"mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": Digest::of(b"{}"), "size": 2});
    json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []})
        .to_string()
}

fn served(body: &str) -> Reply {
    Reply::new(200)
        .header("Content-Type", OCI_MANIFEST)
        .header("Docker-Content-Digest", Digest::of(body.as_bytes()))
        .body(body)
}

async fn collect(
    client: &Client,
    repository: &Repository,
    body: &[u8],
) -> Result<Vec<u8>, RegistryError> {
    let mut stream = client.blob(repository, Digest::of(body), body.len() as u64);
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await {
        all.extend_from_slice(&chunk?);
    }
    Ok(all)
}

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 31 % 251) as u8).collect()
}

/// Serves `body` with ranges.
fn ranged(request: &crate::registry::testing::Request, body: &[u8]) -> Reply {
    match request.header("range").strip_prefix("bytes=") {
        None => Reply::new(200).body(body),
        Some(range) => {
            let (first, last) = range.split_once('-').unwrap();
            let first: usize = first.parse().unwrap();
            let end = last.parse().map_or(body.len(), |last: usize| last + 1);
            let range = format!("bytes {first}-{}/{}", end - 1, body.len());
            Reply::new(206).header("Content-Range", range).body(&body[first..end])
        }
    }
}

#[tokio::test]
async fn resolve_is_one_head_and_plain_http_is_found() {
    let body = image();
    let fake = Fake::start(move |_, _| served(&image())).await;
    let client = fake.client();
    let reference = reference::parse(&format!("{}/app:v1", fake.registry())).unwrap();
    let resolved = client.resolve(&reference).await.unwrap();
    assert_eq!(resolved.digest, Digest::of(body.as_bytes()));
    assert_eq!((resolved.media_type.as_str(), resolved.size), (OCI_MANIFEST, body.len() as u64));
    client.resolve(&reference).await.unwrap();
    assert_eq!(fake.lines(), ["HEAD /v2/app/manifests/v1"; 2]);
    let accept = fake.requests()[0].header("accept").to_owned();
    assert!(accept.contains(OCI_MANIFEST) && accept.contains(DOCKER_MANIFEST));
}

#[tokio::test]
async fn resolve_falls_back_to_get() {
    let fake = Fake::start(|request, _| match request.method.as_str() {
        "HEAD" => Reply::new(405),
        _ => served(&image()),
    })
    .await;
    let reference = reference::parse(&format!("{}/app", fake.registry())).unwrap();
    let resolved = fake.client().resolve(&reference).await.unwrap();
    assert_eq!(resolved.digest, Digest::of(image().as_bytes()));
}

#[tokio::test]
async fn a_manifest_is_checked_against_every_digest() {
    let fake = Fake::start(|request, _| match request.path.as_str() {
        "/v2/lie/manifests/latest" => Reply::new(200)
            .header("Content-Type", OCI_MANIFEST)
            .header("Docker-Content-Digest", Digest::of(b"other"))
            .body(image()),
        _ => Reply::new(200).header("Content-Type", OCI_MANIFEST).body(image()),
    })
    .await;
    let client = fake.client();
    let get = async |text: &str| {
        client.manifest(&reference::parse(&format!("{}/{text}", fake.registry())).unwrap()).await
    };
    let good = get(&format!("app@{}", Digest::of(image().as_bytes()))).await.unwrap();
    assert_eq!(good.bytes, image());
    for bad in ["lie".to_owned(), format!("app@{}", Digest::of(b"other"))] {
        assert!(matches!(get(&bad).await, Err(RegistryError::Digest { .. })), "{bad}");
    }
}

#[tokio::test]
async fn documents_that_are_no_manifests() {
    let fake = Fake::start(|request, _| match request.path.as_str() {
        "/v2/html/manifests/latest" => {
            Reply::new(200).header("Content-Type", "text/html").body("<html>login</html>")
        }
        "/v2/empty/manifests/latest" => Reply::new(204),
        "/v2/old/manifests/latest" => Reply::new(200)
            .header("Content-Type", "application/vnd.docker.distribution.manifest.v1+prettyjws")
            .body(r#"{"schemaVersion":1,"fsLayers":[]}"#),
        "/v2/large/manifests/latest" => served(&format!("{}{}", image(), " ".repeat(4 << 20))),
        "/v2/endless/manifests/latest" => {
            let mut reply = served(&image());
            reply.length = Some(1 << 40);
            reply
        }
        _ => Reply::error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
    })
    .await;
    let client = fake.client();
    for (name, words) in [
        ("html", "not clean JSON"),
        ("empty", "204"),
        ("old", "schema 1"),
        ("large", "larger than"),
        ("endless", "larger than"),
        ("none", "MANIFEST_UNKNOWN"),
    ] {
        let reference = reference::parse(&format!("{}/{name}", fake.registry())).unwrap();
        let error = client.manifest(&reference).await.unwrap_err().to_string();
        assert!(error.contains(words), "{name}: {error}");
    }
}

#[tokio::test]
async fn throttling_and_outages_are_waited_for() {
    let fake = Fake::start(|_, count| match count {
        0 => Reply::error(429, "TOOMANYREQUESTS", "slow down").header("Retry-After", "0"),
        1 => Reply::new(503),
        2 => Reply::new(200).fault(Fault::Close),
        3 => served(&image()).fault(Fault::Cut(10)),
        4 => served(&image()).fault(Fault::Stall(10)),
        _ => served(&image()),
    })
    .await;
    let client = fake.client();
    let reference = reference::parse(&format!("{}/app", fake.registry())).unwrap();
    client.manifest(&reference).await.unwrap();
    assert_eq!(client.stats().retries, 5);
}

#[tokio::test]
async fn tries_end() {
    let fake = Fake::start(|_, _| Reply::error(429, "TOOMANYREQUESTS", "slow down")).await;
    let reference = reference::parse(&format!("{}/app", fake.registry())).unwrap();
    let error = fake.client().manifest(&reference).await.unwrap_err();
    assert_eq!(error.kind(), Some(RefusalKind::TooManyRequests));
    assert!(error.hint().unwrap().contains("limits its requests"));
    assert_eq!(fake.requests().len(), 6);
}

#[tokio::test]
async fn an_absurd_retry_after_is_refused() {
    let fake = Fake::start(|_, _| Reply::new(429).header("Retry-After", "31536000")).await;
    let reference = reference::parse(&format!("{}/app", fake.registry())).unwrap();
    let start = Instant::now();
    let error = fake.client().manifest(&reference).await.unwrap_err();
    assert!(matches!(error, RegistryError::RetryTooLate { .. }), "{error}");
    assert!(error.to_string().contains("31536000") && error.to_string().contains("120"));
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_refusal_is_not_repeated() {
    let fake = Fake::start(|_, _| Reply::error(404, "NAME_UNKNOWN", "no such repository")).await;
    let reference = reference::parse(&format!("{}/app", fake.registry())).unwrap();
    let error = fake.client().manifest(&reference).await.unwrap_err();
    assert!(error.is_not_found() && error.kind() == Some(RefusalKind::NameUnknown));
    assert_eq!(fake.requests().len(), 1);
}

#[tokio::test]
async fn a_cut_blob_goes_on_where_it_was() {
    let body = content(3_000_000);
    let served = body.clone();
    let fake = Fake::start(move |request, count| {
        let reply = ranged(request, &served);
        match count {
            0 => reply.fault(Fault::Cut(1_000_000)),
            1 => reply.fault(Fault::Stall(700_000)),
            _ => reply,
        }
    })
    .await;
    let client = fake.client();
    assert_eq!(collect(&client, &fake.repository("app"), &body).await.unwrap(), body);
    let ranges: Vec<String> =
        fake.requests().iter().map(|request| request.header("range").to_owned()).collect();
    assert_eq!(ranges, ["", "bytes=1000000-", "bytes=1700000-"]);
}

#[tokio::test]
async fn a_registry_without_ranges_sends_it_all_again() {
    let body = content(300_000);
    let served = body.clone();
    let fake = Fake::start(move |_, count| {
        let reply = Reply::new(200).body(served.clone());
        if count == 0 { reply.fault(Fault::Cut(123_456)) } else { reply }
    })
    .await;
    let client = fake.client();
    assert_eq!(collect(&client, &fake.repository("app"), &body).await.unwrap(), body);
    let error = client.blob_range(&fake.repository("app"), Digest::of(&body), 5..10).await;
    assert!(matches!(error, Err(RegistryError::RangeUnsupported { .. })));
}

#[tokio::test]
async fn ranges() {
    let body = content(1000);
    let served = body.clone();
    let fake = Fake::start(move |request, _| match request.path.starts_with("/v2/lie/") {
        true => Reply::new(206).header("Content-Range", "bytes 0-4/1000").body("12345"),
        false => ranged(request, &served),
    })
    .await;
    let client = fake.client();
    let part = client.blob_range(&fake.repository("app"), Digest::of(&body), 5..10).await.unwrap();
    assert_eq!(part, body[5..10]);
    let error = client.blob_range(&fake.repository("lie"), Digest::of(&body), 5..10).await;
    assert!(matches!(error, Err(RegistryError::Answer { .. })));
}

#[tokio::test]
async fn blobs_of_the_wrong_size() {
    let body = content(1000);
    let fake = Fake::start(move |request, _| {
        let body = content(1000);
        match request.path.split('/').nth(2).unwrap() {
            "short" => Reply::new(200).body(&body[..999]),
            "long" => Reply::new(200).body([&body[..], b"x"].concat()),
            "html" => Reply::new(200).header("Content-Type", "text/html").body("<html>"),
            "encoded" => Reply::new(200).header("Content-Encoding", "gzip").body(body),
            "cut" => Reply::new(200).body(body).fault(Fault::Cut(10)),
            _ => Reply::error(404, "BLOB_UNKNOWN", "blob unknown"),
        }
    })
    .await;
    let client = fake.client();
    for (name, words) in [
        ("short", "999 bytes, expected 1000"),
        ("long", "1001 bytes, expected 1000"),
        ("html", "HTML page"),
        ("encoded", "Content-Encoding"),
        ("cut", "broke"),
        ("none", "BLOB_UNKNOWN"),
    ] {
        let error = collect(&client, &fake.repository(name), &body).await.unwrap_err().to_string();
        assert!(error.contains(words), "{name}: {error}");
    }
}

#[tokio::test]
async fn small_blobs_are_verified() {
    let fake = Fake::start(|_, _| Reply::new(200).body("{ }")).await;
    let client = fake.client();
    let descriptor = |content: &[u8], size: u64| {
        let text = json!({"digest": Digest::of(content), "size": size});
        serde_json::from_value(text).unwrap()
    };
    let repository = fake.repository("app");
    let good = client.fetch_small(&repository, &descriptor(b"{ }", 3), 10).await.unwrap();
    assert_eq!(good, "{ }");
    let wrong = client.fetch_small(&repository, &descriptor(b"{_}", 3), 10).await;
    assert!(matches!(wrong, Err(RegistryError::Digest { .. })));
    let large = client.fetch_small(&repository, &descriptor(b"{ }", 11), 10).await;
    assert!(matches!(large, Err(RegistryError::TooLarge { .. })));
}

#[tokio::test]
async fn mirrors_first_then_the_registry() {
    let body = content(5000);
    let served_body = body.clone();
    let mirror = Fake::start(|request, _| match request.path.contains("/manifests/") {
        true => served(&image()),
        false => Reply::new(500),
    })
    .await;
    let dead = Fake::start(|_, _| Reply::new(200).fault(Fault::Close)).await;
    let origin = Fake::start(move |_, _| Reply::new(200).body(served_body.clone())).await;
    let mut options = options();
    let mirrors = vec![dead.registry(), format!("{}/hub", mirror.registry())];
    options.mirrors.insert(origin.registry(), mirrors);
    let client = Client::new(options, std::sync::Arc::new(crate::registry::Anonymous)).unwrap();
    let reference = reference::parse(&format!("{}/team/app:v1", origin.registry())).unwrap();
    client.manifest(&reference).await.unwrap();
    assert_eq!(mirror.lines(), ["GET /v2/hub/team/app/manifests/v1"]);
    assert_eq!(collect(&client, &origin.repository("team/app"), &body).await.unwrap(), body);
    assert_eq!(origin.lines(), [format!("GET /v2/team/app/blobs/{}", Digest::of(&body))]);
    assert!(dead.requests().len() <= 4);
}

#[tokio::test]
async fn a_dribbling_body_is_given_up() {
    let body = content(1000);
    let served = body.clone();
    let fake = Fake::start(move |request, _| ranged(request, &served).fault(Fault::Dribble)).await;
    let mut options = options();
    options.limits.tries = 2;
    let client = Client::new(options, std::sync::Arc::new(crate::registry::Anonymous)).unwrap();
    let start = Instant::now();
    let error = collect(&client, &fake.repository("app"), &body).await.unwrap_err();
    assert!(matches!(error, RegistryError::TimedOut { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn a_dribbling_head_is_given_up() {
    // The status line never ends.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);
    let server = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        while let Ok((mut stream, _)) = listener.accept().await {
            CONNECTIONS.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                loop {
                    if stream.write_all(b"H").await.is_err() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            });
        }
    });
    let mut options = options();
    options.limits.tries = 2;
    options.limits.connect_timeout = Duration::from_millis(300);
    options.limits.response_timeout = Duration::from_millis(300);
    let client = Client::new(options, std::sync::Arc::new(crate::registry::Anonymous)).unwrap();
    let reference = reference::parse(&format!("{address}/app")).unwrap();
    let start = Instant::now();
    assert!(client.manifest(&reference).await.is_err());
    assert!(start.elapsed() < Duration::from_secs(4));
    server.abort();
}

#[tokio::test]
async fn futures_may_be_spawned() {
    fn spawnable<T: Send + 'static>(value: T) -> T {
        value
    }
    let fake = Fake::start(|_, _| served(&image())).await;
    let client = fake.client();
    let reference = reference::parse(&format!("{}/app", fake.registry())).unwrap();
    let task = spawnable(async move {
        client.resolve(&reference).await.unwrap();
        client.manifest(&reference).await.unwrap().digest
    });
    assert_eq!(tokio::spawn(task).await.unwrap(), Digest::of(image().as_bytes()));
}
