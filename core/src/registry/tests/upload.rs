use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;

use crate::{
    digest::Digest,
    registry::{
        Anonymous, BlobSource, Client, Progress, RefusalKind, RegistryError, Repository,
        UploadOutcome,
        manifest::OCI_MANIFEST,
        testing::{Fake, Fault, Reply, Request, options, password},
    },
};

fn quiet() -> Progress {
    Arc::new(|_| {})
}

fn bytes(text: &str) -> BlobSource {
    BlobSource::Bytes(Bytes::copy_from_slice(text.as_bytes()))
}

async fn upload(
    fake: &Fake,
    text: &str,
    from: Option<&str>,
) -> Result<UploadOutcome, RegistryError> {
    let (digest, size) = (Digest::of(text.as_bytes()), text.len() as u64);
    let repository = fake.repository("app");
    fake.client().upload_blob(&repository, digest, size, &bytes(text), from, &quiet()).await
}

/// A registry that behaves.
fn good(request: &Request) -> Reply {
    match request.method.as_str() {
        "HEAD" => Reply::new(404),
        "POST" => Reply::new(202).header("Location", "/v2/app/blobs/uploads/1?_state=a%2Bb"),
        _ => Reply::new(201),
    }
}

#[tokio::test]
async fn one_post_and_one_put() {
    let fake = Fake::start(|request, _| good(request)).await;
    assert_eq!(upload(&fake, "content", None).await.unwrap(), UploadOutcome::Uploaded);
    let requests = fake.requests();
    let digest = Digest::of(b"content");
    let digest_query = digest.to_string().replace(':', "%3A");
    assert_eq!(
        fake.lines(),
        [
            format!("HEAD /v2/app/blobs/{digest}"),
            "POST /v2/app/blobs/uploads/".into(),
            format!("PUT /v2/app/blobs/uploads/1?_state=a%2Bb&digest={digest_query}"),
        ]
    );
    assert_eq!(requests[1].header("content-length"), "0");
    assert_eq!(requests[2].header("content-length"), "7");
    assert_eq!(requests[2].body, b"content");
}

#[tokio::test]
async fn what_is_there_is_not_sent() {
    let fake = Fake::start(|_, _| Reply::new(200).body("content")).await;
    assert_eq!(upload(&fake, "content", Some("base")).await.unwrap(), UploadOutcome::Existed);
    assert_eq!(fake.requests().len(), 1);
}

#[tokio::test]
async fn mounts() {
    let fake = Fake::start(|request, _| match request.path.contains("from=base") {
        true => Reply::new(201),
        false => good(request),
    })
    .await;
    assert_eq!(upload(&fake, "content", Some("base")).await.unwrap(), UploadOutcome::Mounted);
    let digest = Digest::of(b"content");
    let post = format!("POST /v2/app/blobs/uploads/?mount={digest}&from=base");
    assert_eq!(fake.lines()[1], post);
    // A mount that is not possible opens an upload, which is used.
    let fake = Fake::start(|request, _| good(request)).await;
    assert_eq!(upload(&fake, "content", Some("base")).await.unwrap(), UploadOutcome::Uploaded);
    assert_eq!(fake.requests().len(), 3);
    // One that is refused does not end the push.
    let fake = Fake::start(|request, _| match request.path.contains("from=base") {
        true => Reply::error(403, "DENIED", "not yours"),
        false => good(request),
    })
    .await;
    assert_eq!(upload(&fake, "content", Some("base")).await.unwrap(), UploadOutcome::Uploaded);
}

#[tokio::test]
async fn a_token_without_the_mount_source_does() {
    let fake = Fake::start(|request, _| {
        if request.path.starts_with("/token") {
            return match request.path.contains("base") {
                true => Reply::new(403).body(r#"{"message":"no access to base"}"#),
                false => Reply::new(200).body(r#"{"token":"t"}"#),
            };
        }
        let challenge = format!("Bearer realm=\"http://{}/token\"", request.header("host"));
        match request.header("authorization") {
            "Bearer t" => good(request),
            _ => Reply::new(401).header("WWW-Authenticate", challenge),
        }
    })
    .await;
    assert_eq!(upload(&fake, "content", Some("base")).await.unwrap(), UploadOutcome::Uploaded);
    assert!(!fake.lines().iter().any(|line| line.contains("from=base")));
}

#[tokio::test]
async fn a_failed_upload_starts_from_the_beginning() {
    // 500, cut, lost session, other digest; each time the whole blob again.
    let puts = Arc::new(AtomicU64::new(0));
    let counter = puts.clone();
    let fake = Fake::start(move |request, _| {
        if request.method != "PUT" {
            return good(request);
        }
        match counter.fetch_add(1, Ordering::SeqCst) {
            0 => Reply::new(500),
            1 => Reply::new(201).fault(Fault::Close),
            2 => Reply::error(404, "BLOB_UPLOAD_UNKNOWN", "upload unknown"),
            3 => Reply::new(201).header("Docker-Content-Digest", Digest::of(b"other")),
            _ => Reply::new(201),
        }
    })
    .await;
    assert_eq!(upload(&fake, "content", None).await.unwrap(), UploadOutcome::Uploaded);
    let count = |method: &str| fake.requests().iter().filter(|r| r.method == method).count();
    assert_eq!((count("HEAD"), count("POST"), count("PUT")), (5, 5, 5));
}

#[tokio::test]
async fn a_put_whose_answer_was_lost_is_found_by_head() {
    let fake = Fake::start(|request, count| match (request.method.as_str(), count) {
        ("PUT", _) => Reply::new(201).fault(Fault::Close),
        ("HEAD", 3..) => Reply::new(200).body("content"),
        _ => good(request),
    })
    .await;
    assert_eq!(upload(&fake, "content", None).await.unwrap(), UploadOutcome::Existed);
}

fn hurried() -> Client {
    let mut options = options();
    options.limits.tries = 2;
    Client::new(options, Arc::new(Anonymous)).unwrap()
}

#[tokio::test]
async fn an_unanswered_put_is_given_up() {
    let fake = Fake::start(|request, _| match request.method.as_str() {
        "PUT" => Reply::new(201).fault(Fault::Silent),
        _ => good(request),
    })
    .await;
    let (digest, repository) = (Digest::of(b"content"), fake.repository("app"));
    let source = bytes("content");
    let result = hurried().upload_blob(&repository, digest, 7, &source, None, &quiet()).await;
    let error = result.unwrap_err().to_string();
    assert!(error.contains("the answer to an upload"), "{error}");
    assert_eq!(fake.lines().iter().filter(|line| line.starts_with("PUT")).count(), 2);
}

#[tokio::test]
async fn a_registry_that_stops_reading_is_given_up() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let registry = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    let reply: &[u8] = match &buffer[..read.min(4)] {
                        b"HEAD" => b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n",
                        b"POST" => b"HTTP/1.1 202 X\r\nLocation: /u\r\nContent-Length: 0\r\n\r\n",
                        b"PUT " => return tokio::time::sleep(Duration::from_secs(30)).await,
                        _ => b"HTTP/1.0 400 X\r\n\r\n",
                    };
                    stream.write_all(reply).await.unwrap();
                    if reply.starts_with(b"HTTP/1.0") {
                        return;
                    }
                }
            });
        }
    });
    let body = Bytes::from(vec![7; 32 << 20]);
    let (digest, size) = (Digest::of(&body), body.len() as u64);
    let repository = Repository { registry, name: "app".into() };
    let source = BlobSource::Bytes(body);
    let result = hurried().upload_blob(&repository, digest, size, &source, None, &quiet()).await;
    let error = result.unwrap_err().to_string();
    assert!(error.contains("taking the next bytes"), "{error}");
    server.abort();
}

#[tokio::test]
async fn a_post_without_answer_twice_is_a_missing_repository() {
    let fake = Fake::start(|request, _| match request.method.as_str() {
        "POST" => Reply::new(202).fault(Fault::Close),
        _ => good(request),
    })
    .await;
    let error = upload(&fake, "content", None).await.unwrap_err();
    assert!(matches!(error, RegistryError::UploadClosed { .. }), "{error}");
    assert!(error.hint().unwrap().contains("does not exist"));
}

#[tokio::test]
async fn wrong_bytes_never_become_a_blob() {
    let fake = Fake::start(|request, _| good(request)).await;
    let client = fake.client();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&[7; 3 << 20]).unwrap();
    let (path, size) = (BlobSource::File(file.path().into()), 3_u64 << 20);
    let good_digest = Digest::of(&[7; 3 << 20]);
    let missing = BlobSource::File("/nonexistent/blob".into());
    for (digest, size, source, words) in [
        (Digest::of(b"x"), size, &path, "digest"),
        (good_digest, size + 1, &path, "bytes, expected"),
        (good_digest, size - 1, &path, "bytes, expected"),
        (good_digest, size, &missing, "/nonexistent/blob"),
        (Digest::of(b"y"), 1, &bytes("x"), "digest"),
    ] {
        let repository = fake.repository("app");
        let result = client.upload_blob(&repository, digest, size, source, None, &quiet()).await;
        let error = result.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert!(fake.requests().iter().all(|request| request.method != "PUT"), "{:?}", fake.lines());
    let repository = fake.repository("app");
    let told = Arc::new(AtomicU64::new(0));
    let counter = told.clone();
    let progress: Progress = Arc::new(move |done| counter.store(done, Ordering::SeqCst));
    client.upload_blob(&repository, good_digest, size, &path, None, &progress).await.unwrap();
    assert_eq!(told.load(Ordering::SeqCst), size);
}

#[tokio::test]
async fn a_blob_streams_from_another_registry() {
    let origin = Fake::start(|_, count| {
        let reply = Reply::new(200).body("content");
        if count == 0 { reply.fault(Fault::Cut(3)) } else { reply }
    })
    .await;
    let fake = Fake::start(|request, _| good(request)).await;
    let source = BlobSource::Registry(origin.repository("base"));
    let (digest, repository) = (Digest::of(b"content"), fake.repository("app"));
    let client = fake.client();
    client.upload_blob(&repository, digest, 7, &source, None, &quiet()).await.unwrap();
    assert_eq!(fake.requests()[2].body, b"content");
}

#[tokio::test]
async fn a_location_elsewhere_gets_no_credential() {
    let store = Fake::start(|_, _| Reply::new(201)).await;
    let target = store.url("/upload?sig=s");
    let fake = Fake::start(move |request, _| match request.header("authorization") {
        "" => Reply::new(401).header("WWW-Authenticate", "Basic realm=\"r\""),
        _ if request.method == "POST" => Reply::new(202).header("Location", &target),
        _ => Reply::new(404),
    })
    .await;
    let client = fake.client_with(password("u", "p"));
    let (digest, repository) = (Digest::of(b"content"), fake.repository("app"));
    client.upload_blob(&repository, digest, 7, &bytes("content"), None, &quiet()).await.unwrap();
    let put = &store.requests()[0];
    assert!(
        !put.headers.contains_key("authorization") && put.path.starts_with("/upload?sig=s&digest=")
    );
}

#[tokio::test]
async fn odd_locations() {
    for location in ["http://169.254.169.254/x", "http://[fd00:ec2::254]/x", "ftp://127.0.0.1/x"] {
        let fake = Fake::start(move |request, _| match request.method.as_str() {
            "POST" => Reply::new(202).header("Location", location),
            _ => good(request),
        })
        .await;
        let error = upload(&fake, "content", None).await.unwrap_err();
        assert!(matches!(error, RegistryError::Redirect { .. }), "{location}: {error}");
    }
    let fake = Fake::start(|request, _| match request.method.as_str() {
        "POST" => Reply::new(202).header("Docker-Upload-UUID", "a-b/../c"),
        _ => good(request),
    })
    .await;
    upload(&fake, "content", None).await.unwrap();
    assert!(fake.lines()[2].starts_with("PUT /v2/app/blobs/uploads/a-b%2F%2E%2E%2Fc?digest="));
    let fake = Fake::start(|request, _| match request.method.as_str() {
        "POST" => Reply::new(202),
        _ => good(request),
    })
    .await;
    assert!(upload(&fake, "content", None).await.unwrap_err().to_string().contains("Location"));
}

#[tokio::test]
async fn manifests() {
    let manifest = Bytes::from_static(b"{}");
    let digest = Digest::of(b"{}");
    let other = Digest::of(b"other");
    let immutable =
        "The image tag 'v1' already exists and cannot be overwritten because the tag is immutable.";
    let fake = Fake::start(move |request, _| {
        let name = request.path.split('/').nth(2).unwrap();
        match (name, request.method.as_str()) {
            ("same" | "changed", "PUT") => Reply::error(400, "TAG_INVALID", immutable),
            ("same" | "changed", "HEAD") => {
                let there = if name == "same" { digest } else { other };
                Reply::new(200)
                    .header("Content-Type", OCI_MANIFEST)
                    .header("Docker-Content-Digest", there)
                    .body("x")
            }
            ("liar", _) => Reply::new(201).header("Docker-Content-Digest", other),
            ("quota", _) => Reply::error(403, "DENIED", "repository has reached its quota"),
            ("missing", _) => Reply::error(404, "NAME_UNKNOWN", "no such repository"),
            // No Location, no digest.
            _ => Reply::new(201),
        }
    })
    .await;
    let client = fake.client();
    let put = async |name: &str| {
        client.put_manifest(&fake.repository(name), "v1", OCI_MANIFEST, manifest.clone()).await
    };
    assert_eq!(put("app").await.unwrap(), digest);
    assert_eq!(put("same").await.unwrap(), digest);
    assert_eq!(put("changed").await.unwrap_err().kind(), Some(RefusalKind::TagImmutable));
    assert!(matches!(put("liar").await, Err(RegistryError::Digest { .. })));
    let quota = put("quota").await.unwrap_err();
    assert!(quota.hint().unwrap().contains("delete old images"));
    let missing = put("missing").await.unwrap_err();
    assert!(missing.hint().unwrap().contains("create it"));
    let first = &fake.requests()[0];
    assert_eq!((first.header("content-type"), &first.body[..]), (OCI_MANIFEST, &b"{}"[..]));
}
