use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde_json::json;

use crate::{
    digest::Digest,
    registry::{
        BoxFuture, Credential, CredentialKind, Keychain, KeychainError, RefusalKind, RegistryError,
        reference::{self, Reference},
        testing::{Fake, Reply, Request, password},
    },
    secret::Secret,
};

fn basic(pair: &str) -> String {
    format!("Basic {}", BASE64.encode(pair))
}

fn reference_on(fake: &Fake) -> Reference {
    reference::parse(&format!("{}/app:v1", fake.registry())).unwrap()
}

fn found() -> Reply {
    Reply::new(200)
        .header("Content-Type", "application/vnd.oci.image.manifest.v1+json")
        .header("Docker-Content-Digest", Digest::of(b"x"))
        .body("x")
}

/// A registry with a token endpoint on the same server; `token` answers for it.
fn with_tokens(
    request: &Request,
    valid: impl Fn(&str) -> bool,
    token: impl Fn() -> Reply,
) -> Reply {
    if request.path.starts_with("/token") {
        return token();
    }
    if valid(request.header("authorization")) {
        return found();
    }
    let host = request.header("host");
    let challenge =
        format!(r#"Bearer realm="http://{host}/token",service="s",scope="repository:app:pull""#);
    Reply::new(401).header("WWW-Authenticate", challenge)
}

#[tokio::test]
async fn basic_is_sent_only_after_the_challenge() {
    let fake = Fake::start(|request, _| match request.header("authorization") {
        auth if auth == basic("AWS:secret") => found(),
        _ => Reply::new(401)
            .header("WWW-Authenticate", r#"Basic realm="r",service="ecr.amazonaws.com""#),
    })
    .await;
    let client = fake.client_with(password("AWS", "secret"));
    client.resolve(&reference_on(&fake)).await.unwrap();
    client.resolve(&reference_on(&fake)).await.unwrap();
    let sent: Vec<bool> = fake
        .requests()
        .iter()
        .map(|request| request.headers.contains_key("authorization"))
        .collect();
    assert_eq!(sent, [false, true, true]);
}

#[tokio::test]
async fn without_a_credential_the_refusal_is_told() {
    let fake = Fake::start(|_, _| {
        Reply::new(401).header("WWW-Authenticate", "Basic realm=\"r\"").body("Not Authorized\n")
    })
    .await;
    let error = fake.client().resolve(&reference_on(&fake)).await.unwrap_err();
    assert_eq!(error.kind(), Some(RefusalKind::Unauthorized));
    assert!(error.to_string().contains("Not Authorized"), "{error}");
    assert!(error.hint().unwrap().contains("no credential is configured"));
}

#[tokio::test]
async fn a_wrong_password_is_tried_once_and_its_source_named() {
    let fake =
        Fake::start(|_, _| Reply::new(401).header("WWW-Authenticate", "Basic realm=\"r\"")).await;
    let client = fake.client_with(password("u", "wrong-password"));
    let error = client.manifest(&reference_on(&fake)).await.unwrap_err();
    assert!(error.hint().unwrap().contains("came from the test"));
    assert!(!format!("{error:?}").contains("wrong-password"));
    assert_eq!(fake.requests().len(), 2);
}

#[tokio::test]
async fn many_requests_wait_for_one_token() {
    let fake = Fake::start(|request, _| {
        with_tokens(
            request,
            |auth| auth == "Bearer t1",
            || Reply::new(200).body(json!({"token": "t1", "expires_in": 300}).to_string()),
        )
    })
    .await;
    let client = fake.client_with(password("u", "p"));
    let reference = reference_on(&fake);
    let all = (0..8).map(|_| client.resolve(&reference));
    for result in futures_util::future::join_all(all).await {
        result.unwrap();
    }
    let requests = fake.requests();
    let tokens: Vec<&Request> =
        requests.iter().filter(|request| request.path.starts_with("/token")).collect();
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].line(), "GET /token?service=s&scope=repository%3Aapp%3Apull");
    assert_eq!(tokens[0].header("authorization"), basic("u:p"));
}

#[tokio::test]
async fn an_expired_token_is_renewed_once() {
    let round = Arc::new(AtomicUsize::new(0));
    let counter = round.clone();
    let fake = Fake::start(move |request, count| {
        let current = counter.load(Ordering::SeqCst);
        if count == 4 {
            // The token of the first round dies without notice.
            counter.fetch_add(1, Ordering::SeqCst);
        }
        let current = current.max(counter.load(Ordering::SeqCst));
        with_tokens(
            request,
            |auth| auth == format!("Bearer t{current}"),
            || Reply::new(200).body(json!({"access_token": format!("t{current}")}).to_string()),
        )
    })
    .await;
    let client = fake.client();
    for _ in 0..4 {
        client.resolve(&reference_on(&fake)).await.unwrap();
    }
    let tokens = fake.lines().iter().filter(|line| line.contains("/token")).count();
    assert_eq!(tokens, 2);
}

#[tokio::test]
async fn a_token_that_never_works_ends() {
    let fake = Fake::start(|request, _| {
        with_tokens(request, |_| false, || Reply::new(200).body(r#"{"token":"t"}"#))
    })
    .await;
    let error = fake.client().manifest(&reference_on(&fake)).await.unwrap_err();
    assert_eq!(error.kind(), Some(RefusalKind::Unauthorized));
    assert!(fake.requests().len() <= 6, "{:?}", fake.lines());
}

#[tokio::test]
async fn a_refused_login_never_becomes_anonymous() {
    let fake = Fake::start(|request, _| {
        with_tokens(
            request,
            |auth| !auth.is_empty(),
            || Reply::new(401).body(r#"{"details":"incorrect username or password"}"#),
        )
    })
    .await;
    let client = fake.client_with(password("u", "p"));
    let error = client.manifest(&reference_on(&fake)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Token { .. }));
    assert!(error.to_string().contains("incorrect username or password"), "{error}");
    for request in fake.requests().iter().filter(|request| request.path.starts_with("/token")) {
        assert!(request.headers.contains_key("authorization"));
    }
}

#[tokio::test]
async fn identity_tokens_go_by_post_and_rotate() {
    let fake = Fake::start(|request, _| {
        with_tokens(
            request,
            |auth| auth == "Bearer t",
            || {
                let form = String::from_utf8(request.body.clone()).unwrap();
                let good = request.method == "POST"
                    && form.contains("grant_type=refresh_token")
                    && form.contains("refresh_token=identity")
                    && form.contains("scope=repository%3Aapp%3Apull");
                match good {
                    true => {
                        Reply::new(200).body(r#"{"access_token":"t","refresh_token":"identity2"}"#)
                    }
                    false => Reply::new(400).body(form),
                }
            },
        )
    })
    .await;
    let kind = CredentialKind::IdentityToken(Secret::new("identity".into()));
    let client = fake.client_with(Credential { source: "x".into(), kind });
    client.resolve(&reference_on(&fake)).await.unwrap();
}

#[tokio::test]
async fn registry_tokens_are_the_bearer_themselves() {
    let fake = Fake::start(|request, _| {
        with_tokens(request, |auth| auth == "Bearer given", || Reply::new(500))
    })
    .await;
    let kind = CredentialKind::RegistryToken(Secret::new("given".into()));
    let client = fake.client_with(Credential { source: "x".into(), kind });
    client.resolve(&reference_on(&fake)).await.unwrap();
    assert!(fake.lines().iter().all(|line| !line.contains("/token")));
}

/// Gives `first` until that is refused, then `second`.
struct Renewing {
    generation: AtomicUsize,
}

impl Keychain for Renewing {
    fn credential<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credential>, KeychainError>> {
        let generation = self.generation.load(Ordering::SeqCst);
        Box::pin(async move { Ok(Some(password("AWS", &format!("p{generation}")))) })
    }

    fn refused<'a>(&'a self, _: &'a str, _: &'a Credential) -> BoxFuture<'a, bool> {
        self.generation.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { true })
    }
}

#[tokio::test]
async fn an_expired_password_is_asked_for_again() {
    for status in [401, 403] {
        let fake = Fake::start(move |request, _| match request.header("authorization") {
            "" => Reply::new(401).header("WWW-Authenticate", "Basic realm=\"r\""),
            auth if auth == basic("AWS:p1") => found(),
            _ if status == 403 => Reply::error(
                403,
                "DENIED",
                "Your authorization token has expired. Reauthenticate and try again.",
            ),
            _ => Reply::new(401)
                .header("WWW-Authenticate", "Basic realm=\"r\"")
                .body("Not Authorized"),
        })
        .await;
        let keychain = Arc::new(Renewing { generation: AtomicUsize::new(0) });
        let client = fake.client_keychain(keychain.clone());
        // HEAD has no body to tell "expired" by: GET does.
        let _ = client.resolve(&reference_on(&fake)).await.map_err(|error| error.to_string());
        assert_eq!(keychain.generation.load(Ordering::SeqCst), 1, "{status}");
    }
}

struct Broken;

impl Keychain for Broken {
    fn credential<'a>(
        &'a self,
        registry: &'a str,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credential>, KeychainError>> {
        let (registry, keychain) = (registry.to_owned(), "the helper".to_owned());
        Box::pin(async {
            Err(KeychainError { registry, keychain, reason: "it is locked".into(), hint: None })
        })
    }
}

#[tokio::test]
async fn a_failing_keychain_is_told() {
    let fake = Fake::start(|request, _| {
        with_tokens(request, |_| true, || Reply::new(200).body(r#"{"token":"t"}"#))
    })
    .await;
    // A registry that asks for nothing needs no keychain.
    fake.client_keychain(Arc::new(Broken)).resolve(&reference_on(&fake)).await.unwrap();
    let fake = Fake::start(|request, _| {
        with_tokens(request, |auth| !auth.is_empty(), || Reply::new(200).body(r#"{"token":"t"}"#))
    })
    .await;
    let error = fake.client_keychain(Arc::new(Broken)).resolve(&reference_on(&fake)).await;
    assert!(error.unwrap_err().to_string().contains("it is locked"));
}

#[tokio::test]
async fn a_realm_that_leads_inside_is_refused() {
    for realm in [
        "http://169.254.169.254/token",
        "http://user@127.0.0.1:1/token",
        "ftp://127.0.0.1/token",
        "token",
    ] {
        let fake = Fake::start(move |_, _| {
            Reply::new(401).header("WWW-Authenticate", format!("Bearer realm=\"{realm}\""))
        })
        .await;
        let client = fake.client_with(password("u", "p"));
        let error = client.manifest(&reference_on(&fake)).await.unwrap_err();
        assert!(error.to_string().contains("token endpoint is refused"), "{realm}: {error}");
    }
}
