use futures_util::StreamExt;

use crate::{
    digest::Digest,
    registry::{
        Client, RegistryError,
        connect::Http,
        host::Host,
        testing::{self, Fake, Reply, Request, password},
    },
};

async fn blob(client: &Client, fake: &Fake, body: &[u8]) -> Result<Vec<u8>, RegistryError> {
    let mut stream = client.blob(&fake.repository("app"), Digest::of(body), body.len() as u64);
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await {
        all.extend_from_slice(&chunk?);
    }
    Ok(all)
}

/// Asks for a password, then does `then`.
fn guarded(request: &Request, then: impl Fn() -> Reply) -> Reply {
    match request.header("authorization") {
        "" => Reply::new(401).header("WWW-Authenticate", "Basic realm=\"r\""),
        _ => then(),
    }
}

#[tokio::test]
async fn another_origin_gets_no_credential() {
    let store = Fake::start(|_, _| Reply::new(200).body("content")).await;
    let target = store.url("/bucket/x?X-Amz-Signature=s");
    let fake = Fake::start(move |request, _| {
        guarded(request, || Reply::new(307).header("Location", &target))
    })
    .await;
    let client = fake.client_with(password("u", "p"));
    assert_eq!(blob(&client, &fake, b"content").await.unwrap(), b"content");
    let request = &store.requests()[0];
    assert_eq!(request.line(), "GET /bucket/x?X-Amz-Signature=s");
    for name in ["authorization", "cookie", "referer"] {
        assert!(!request.headers.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn the_own_origin_gets_it_again() {
    let fake = Fake::start(|request, _| {
        guarded(request, || match request.path.as_str() {
            "/elsewhere" => Reply::new(200).body("content"),
            _ => Reply::new(302).header("Location", "/elsewhere"),
        })
    })
    .await;
    let client = fake.client_with(password("u", "p"));
    assert_eq!(blob(&client, &fake, b"content").await.unwrap(), b"content");
}

#[tokio::test]
async fn a_challenge_from_another_origin_is_not_answered() {
    let store =
        Fake::start(|_, _| Reply::new(401).header("WWW-Authenticate", "Basic realm=\"evil\""))
            .await;
    let target = store.url("/x");
    let fake = Fake::start(move |request, _| {
        guarded(request, || Reply::new(307).header("Location", &target))
    })
    .await;
    let client = fake.client_with(password("u", "p"));
    assert!(blob(&client, &fake, b"content").await.is_err());
    assert!(store.requests().iter().all(|request| !request.headers.contains_key("authorization")));
}

#[tokio::test]
async fn loops_end() {
    let fake = Fake::start(|request, _| Reply::new(307).header("Location", &request.path)).await;
    let error = blob(&fake.client(), &fake, b"x").await.unwrap_err();
    assert!(matches!(error, RegistryError::Redirects { limit: 8, .. }), "{error}");
    assert_eq!(fake.requests().len(), 9);
}

#[tokio::test]
async fn odd_redirects() {
    for location in [
        "http://169.254.169.254/latest/meta-data",
        "http://[fd00:ec2::254]/x",
        "http://0.0.0.0/x",
        "http://[::ffff:169.254.169.254]/x",
        "http://user:pass@127.0.0.1/x",
        "file:///etc/passwd",
        "http://",
    ] {
        let fake = Fake::start(move |_, _| Reply::new(307).header("Location", location)).await;
        let error = blob(&fake.client(), &fake, b"x").await.unwrap_err();
        assert!(matches!(error, RegistryError::Redirect { .. }), "{location}: {error}");
        assert!(!error.to_string().contains("pass@"));
    }
    let fake = Fake::start(|_, _| Reply::new(307)).await;
    assert!(blob(&fake.client(), &fake, b"x").await.unwrap_err().to_string().contains("Location"));
}

#[test]
fn a_registry_outside_may_not_lead_inside() {
    let mut options = testing::options();
    options.trusted_redirect_hosts = vec!["store.corp.example".into(), "10.9.0.0/16".into()];
    let http = Http::new(&options).unwrap();
    let host = Host::new("reg.example", &options).unwrap();
    let allowed = |host: &Host, url: &str| http.client_for(host, &url.parse().unwrap()).is_ok();
    for url in [
        "https://store.example/x",
        "https://8.8.8.8/x",
        "https://store.corp.example/x",
        "https://10.9.1.1/x",
        "https://reg.example/x",
    ] {
        assert!(allowed(&host, url), "{url}");
    }
    for url in [
        "http://store.example/x",
        "http://reg.example/x",
        "https://10.0.0.1/x",
        "https://127.0.0.1/x",
        "https://[::1]/x",
        "https://169.254.169.254/x",
        "https://[fd00::1]/x",
        "https://0x7f.1/x",
    ] {
        assert!(!allowed(&host, url), "{url}");
    }
    host.answered_from("10.1.1.1".parse().unwrap());
    assert!(allowed(&host, "https://10.0.0.1/x"));
    assert!(!allowed(&host, "https://127.0.0.1/x"));
    assert!(!allowed(&host, "https://169.254.169.254/x"));
}

#[tokio::test]
async fn a_name_that_leads_inside_is_found_at_the_connection() {
    // The registry is on loopback, but is taken for one outside: `localhost` is then too far inside.
    let options = testing::options();
    let http = Http::new(&options).unwrap();
    let outside = Host::new("reg.example", &options).unwrap();
    let url: url::Url = "https://localhost:1/x".parse().unwrap();
    let client = http.client_for(&outside, &url).unwrap();
    let error = client.get(url.clone()).send().await.unwrap_err();
    let error = crate::registry::connect::transport_error(&error, &url);
    assert!(matches!(error, RegistryError::Redirect { .. }), "{error}");
    assert!(!error.retryable());
}
