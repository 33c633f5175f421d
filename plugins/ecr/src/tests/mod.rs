//! The AWS side against a server that says what a test wants.

mod server;

use std::{
    fs,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bareboat_core::{
    registry::{Credential, CredentialKind, Keychain, KeychainError, RegistryHooks, Repository},
    secret::Secret,
};
use serde_json::json;

use crate::{Ecr, EcrLogin, Options, RepositorySettings, SecretSink};
use server::{
    Reply, Request, Server, client_options, ecr_error, metadata_keys, role_keys, sts_error, token,
};

const HOST: &str = "123456789012.dkr.ecr.us-east-1.amazonaws.com";
const CHINA: &str = "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn";
const ROLE: &str = "arn:aws:iam::123456789012:role/ci";
const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "AKIATEST"), ("AWS_SECRET_ACCESS_KEY", "s")];

fn with_role() -> Options {
    Options { roles: vec![ROLE.into()], ..Options::default() }
}

fn keychains(ecr: &Arc<Ecr>) -> Vec<Arc<dyn Keychain>> {
    ecr.keychains(Vec::new())
}

/// The credential of the first keychain that has one.
async fn credential(ecr: &Arc<Ecr>, registry: &str) -> Result<Option<Credential>, KeychainError> {
    for keychain in keychains(ecr) {
        if let Some(found) = keychain.credential(registry, "app").await? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

async fn password(ecr: &Arc<Ecr>, registry: &str) -> Result<String, String> {
    match credential(ecr, registry).await {
        Ok(Some(Credential { kind: CredentialKind::Password { username, password }, .. })) => {
            Ok(format!("{username}:{}", password.expose()))
        }
        Ok(other) => Err(format!("{other:?}")),
        Err(error) => Err(format!("{error} | {}", error.hint.as_deref().unwrap_or_default())),
    }
}

/// Whether asking again gives another one than `credential`.
async fn refused(ecr: &Arc<Ecr>, credential: &Credential) -> bool {
    let mut again = false;
    for keychain in keychains(ecr) {
        again |= keychain.refused(HOST, credential).await;
    }
    again
}

/// A token for each call.
fn tokens(request: &Request, before: usize) -> Reply {
    match request.what().as_str() {
        "GetAuthorizationToken" => token(&format!("p{}", before + 1), 43200.0),
        "AssumeRole" => role_keys("AssumeRole", "AKIAROLE", 3600),
        "AssumeRoleWithWebIdentity" => role_keys("AssumeRoleWithWebIdentity", "AKIAWEB", 3600),
        what => panic!("{what}"),
    }
}

#[tokio::test]
async fn many_requests_wait_for_one_token() {
    let server = Server::start(tokens).await;
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let sink = told.clone();
    let secrets = Some(SecretSink::new(move |secret: &Secret<String>| {
        sink.lock().unwrap().push(secret.expose().clone());
    }));
    let ecr = server.ecr(&KEYS, Options { secrets, ..Options::default() }).await;
    let (a, b, c, d) = tokio::join!(
        password(&ecr, HOST),
        password(&ecr, HOST),
        // Another account of the Region needs no token of its own.
        password(&ecr, "999999999999.dkr.ecr.us-east-1.amazonaws.com"),
        password(&ecr, HOST)
    );
    assert!([a, b, c, d].iter().all(|p| p.as_deref() == Ok("AWS:p1")));
    assert_eq!(
        password(&ecr, "123456789012.dkr.ecr.eu-west-1.amazonaws.com").await.unwrap(),
        "AWS:p2"
    );
    assert_eq!(server.requests("GetAuthorizationToken").len(), 2);
    assert!(told.lock().unwrap().contains(&"p1".to_owned()));
    assert_eq!(password(&ecr, "registry.example").await, Err("None".into()));
}

#[tokio::test]
async fn a_refused_token_is_replaced_once() {
    let server = Server::start(tokens).await;
    let ecr = server.ecr(&KEYS, Options::default()).await;
    let first = credential(&ecr, HOST).await.unwrap().unwrap();
    assert!(refused(&ecr, &first).await);
    // Another upload was refused with the same token.
    assert!(refused(&ecr, &first).await);
    let second = credential(&ecr, HOST).await.unwrap().unwrap();
    assert_ne!(first, second);
    assert!(refused(&ecr, &first).await);
    assert_eq!(credential(&ecr, HOST).await.unwrap().unwrap(), second);
    // The new one is no better: that is the end of it.
    assert!(!refused(&ecr, &second).await);
    assert_eq!(server.requests("GetAuthorizationToken").len(), 2);
}

#[tokio::test]
async fn a_token_is_renewed_before_its_end_and_before_its_sessions() {
    let server = Server::start(|request: &Request, _| match request.what().as_str() {
        "GetAuthorizationToken" if request.key() == "AKIAROLE" => token("role", 43200.0),
        // As some servers answer: long past.
        "GetAuthorizationToken" => token("plain", -300_000_000.0),
        "AssumeRole" => role_keys("AssumeRole", "AKIAROLE", 900),
        what => panic!("{what}"),
    })
    .await;
    let left = async |options: Options| {
        let ecr = server.ecr(&KEYS, options).await;
        let found = credential(&ecr, HOST).await.unwrap().unwrap();
        let at = keychains(&ecr).iter().filter_map(|k| k.renew_at(HOST, &found)).min().unwrap();
        assert_eq!(credential(&ecr, HOST).await.unwrap().unwrap(), found);
        at.duration_since(Instant::now()).as_secs()
    };
    // 12 hours and 15 minutes, less 5 minutes.
    assert!((42_800..42_901).contains(&left(Options::default()).await));
    assert!((590..601).contains(&left(with_role()).await));
}

#[tokio::test]
async fn session_keys_that_ended_are_fetched_again() {
    let server = Server::start(|request: &Request, before| match request.what().as_str() {
        "GetAuthorizationToken" if before == 0 => {
            ecr_error("ExpiredTokenException", "the security token has expired")
        }
        "GetAuthorizationToken" => token("p", 43200.0),
        "AssumeRole" => role_keys("AssumeRole", &format!("AKIAROLE{before}"), 3600),
        what => panic!("{what}"),
    })
    .await;
    let ecr = server.ecr(&KEYS, with_role()).await;
    assert_eq!(password(&ecr, HOST).await.unwrap(), "AWS:p");
    assert_eq!(server.requests("AssumeRole").len(), 2);

    let server =
        Server::start(|_: &Request, _| ecr_error("ExpiredTokenException", "expired")).await;
    let ecr = server.ecr(&KEYS, Options::default()).await;
    let error = password(&ecr, HOST).await.unwrap_err();
    assert!(error.contains("ExpiredTokenException") && error.contains("--aws-role-arn"), "{error}");
    assert!(error.contains("AWS_ACCESS_KEY_ID") && error.contains("request r-1"), "{error}");
    assert_eq!(server.all(), ["GetAuthorizationToken"]);
}

fn github(server: &Server) -> [(&'static str, String); 2] {
    let url = server.url("/token?api-version=2.0");
    [("ACTIONS_ID_TOKEN_REQUEST_URL", url), ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "request".into())]
}

fn borrowed<'a>(pairs: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    pairs.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

#[tokio::test]
async fn githubs_token_is_asked_for_again_and_has_the_partitions_audience() {
    let server = Server::start(|request: &Request, before| match request.what().as_str() {
        what if what.starts_with("GET /token") && before == 0 => (503, "busy".into()),
        what if what.starts_with("GET /token") => {
            (200, json!({"value": "the.id.token\n"}).to_string())
        }
        // Its keys are fetched in time, though they end at once: a new session needs a new token.
        "AssumeRoleWithWebIdentity" => {
            role_keys("AssumeRoleWithWebIdentity", "AKIAWEB", i64::from(before > 0) * 3600)
        }
        "GetAuthorizationToken" => token("p", 43200.0),
        what => panic!("{what}"),
    })
    .await;
    let pairs = github(&server);
    let ecr = server.ecr(&borrowed(&pairs), with_role()).await;
    assert_eq!(password(&ecr, CHINA).await.unwrap(), "AWS:p");
    let asked = "GET /token?api-version=2.0&audience=sts.amazonaws.com.cn";
    assert_eq!(server.requests(asked).len(), 2);
    assert_eq!(server.requests(asked)[0].header("authorization"), "Bearer request");
    let exchanged = server.requests("AssumeRoleWithWebIdentity");
    assert_eq!(exchanged[0].field("WebIdentityToken").unwrap(), "the.id.token");
    assert_eq!(exchanged[0].field("DurationSeconds").unwrap(), "3600");
    assert_eq!(exchanged[0].key(), "");
    assert_eq!(password(&ecr, CHINA).await.unwrap(), "AWS:p");
    assert_eq!(
        (server.requests(asked).len(), server.requests("AssumeRoleWithWebIdentity").len()),
        (3, 2)
    );
}

#[tokio::test]
async fn a_long_session_is_asked_for_and_a_shorter_one_taken() {
    let server = Server::start(|request: &Request, _| match request.what().as_str() {
        "AssumeRoleWithWebIdentity"
            if request.field("DurationSeconds").as_deref() == Some("43200") =>
        {
            sts_error(
                "ValidationError",
                "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.",
            )
        }
        _ => tokens(request, 0),
    })
    .await;
    let ecr = server.ecr(&[("AWS_ID_TOKEN", "j")], with_role()).await;
    assert_eq!(password(&ecr, HOST).await.unwrap(), "AWS:p1");
    let exchanged = server.requests("AssumeRoleWithWebIdentity");
    let seconds: Vec<_> = exchanged.iter().filter_map(|r| r.field("DurationSeconds")).collect();
    assert_eq!(seconds, ["43200", "3600"]);
}

#[tokio::test]
async fn an_issuer_that_sts_can_not_reach_is_waited_for() {
    for (code, message) in [
        ("InvalidIdentityToken", "Couldn't retrieve verification key from your identity provider"),
        ("IDPCommunicationError", "The identity provider could not be reached"),
    ] {
        let server =
            Server::start(move |request: &Request, before| match request.what().as_str() {
                "AssumeRoleWithWebIdentity" if before < 3 => sts_error(code, message),
                _ => tokens(request, before),
            })
            .await;
        let ecr = server.ecr(&[("AWS_ID_TOKEN", "j")], with_role()).await;
        assert_eq!(password(&ecr, HOST).await.unwrap(), "AWS:p1", "{code}");
    }
}

#[tokio::test]
async fn a_token_that_sts_refuses_ends_the_search_and_is_not_shown() {
    for (code, hint) in [
        ("InvalidIdentityToken", "identity provider"),
        ("AccessDenied", "trust policy"),
        ("ExpiredTokenException", "expired"),
    ] {
        let server = Server::start(move |request: &Request, _| match request.what().as_str() {
            "AssumeRoleWithWebIdentity" => sts_error(code, "No OpenIDConnect provider found"),
            what => panic!("{what}"),
        })
        .await;
        let ecr = server.ecr(&[("AWS_ID_TOKEN", "hunter2")], with_role()).await;
        let error = password(&ecr, HOST).await.unwrap_err();
        assert!(error.contains(code) && error.contains(hint) && error.contains(ROLE), "{error}");
        assert!(error.contains("AWS_ID_TOKEN") && !error.contains("hunter2"), "{error}");
        assert_eq!(server.all(), ["AssumeRoleWithWebIdentity"]);
    }
}

#[tokio::test]
async fn pods_and_machines() {
    let answer = |request: &Request, before: usize| match request.what().as_str() {
        "GET /creds" if before == 0 => (503, "starting".into()),
        "GET /creds" => (200, metadata_keys("AKIAPOD").to_string()),
        "PUT /latest/api/token" => (200, "imds-token".into()),
        "GET /latest/meta-data/iam/security-credentials/" => (200, "node".into()),
        "GET /latest/meta-data/iam/security-credentials/node" => {
            (200, metadata_keys("AKIANODE").to_string())
        }
        _ => tokens(request, before),
    };
    let server = Server::start(answer).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    fs::write(&file, "pod-token\n").unwrap();
    let (url, file) = (server.url("/creds"), file.display().to_string());
    let variables = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", url.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &file),
    ];
    let ecr = server.ecr(&variables, Options::default()).await;
    password(&ecr, HOST).await.unwrap();
    assert_eq!(server.requests("GET /creds")[1].header("authorization"), "pod-token");
    assert_eq!(server.requests("GetAuthorizationToken")[0].key(), "AKIAPOD");
    let ecr = server.ecr(&[], Options::default()).await;
    password(&ecr, HOST).await.unwrap();
    assert_eq!(server.requests("GetAuthorizationToken")[1].key(), "AKIANODE");
}

#[tokio::test]
async fn a_metadata_service_that_is_a_black_hole_costs_little() {
    let server = Server::start(|request: &Request, _| panic!("{}", request.what())).await;
    // TEST-NET-1: packets go nowhere, or are refused at once.
    let variables = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://192.0.2.1")];
    let ecr = server.ecr(&variables, Options::default()).await;
    let began = Instant::now();
    let error = password(&ecr, HOST).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(
        error.contains("no AWS keys were found") && error.contains("id-token: write"),
        "{error}"
    );
}

#[tokio::test]
async fn a_configured_source_that_fails_is_not_replaced_by_the_machines_role() {
    let server = Server::start(|request: &Request, _| match request.what().as_str() {
        "GET /creds" => (403, json!({"code": "AccessDenied", "message": "no"}).to_string()),
        what => panic!("{what}"),
    })
    .await;
    let url = server.url("/creds");
    for (variables, words) in [
        (vec![("AWS_CONTAINER_CREDENTIALS_FULL_URI", url.as_str())], "403"),
        (vec![("AWS_PROFILE", "nobody")], "nobody"),
        (vec![("AWS_ACCESS_KEY_ID", "x")], "AWS_SECRET_ACCESS_KEY"),
        (vec![("AWS_WEB_IDENTITY_TOKEN_FILE", "/none"), ("AWS_ROLE_ARN", ROLE)], "/none"),
        (vec![("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://evil.example/")], "neither"),
    ] {
        let ecr = server.ecr(&variables, Options::default()).await;
        let error = password(&ecr, HOST).await.unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    assert!(server.all().iter().all(|what| what == "GET /creds"), "{:?}", server.all());
}

#[tokio::test]
async fn roles_by_registry_have_tokens_of_their_own() {
    let server = Server::start(|request: &Request, before| match request.what().as_str() {
        "AssumeRole" => role_keys(
            "AssumeRole",
            &request.field("RoleArn").unwrap().replace(['/', ':'], "-"),
            3600,
        ),
        _ => tokens(request, before),
    })
    .await;
    let other = "999999999999.dkr.ecr.us-east-1.amazonaws.com";
    let own = "arn:aws:iam::999999999999:role/own";
    let options = Options {
        registry_roles: vec![(other.into(), own.into())],
        external_id: Some("x".into()),
        session_name: Some("me".into()),
        ..with_role()
    };
    let ecr = server.ecr(&KEYS, options).await;
    password(&ecr, HOST).await.unwrap();
    password(&ecr, other).await.unwrap();
    let assumed = server.requests("AssumeRole");
    let roles: Vec<_> = assumed.iter().filter_map(|r| r.field("RoleArn")).collect();
    assert_eq!(roles, [ROLE, ROLE, own]);
    let last = &assumed[2];
    assert_eq!(
        (last.field("ExternalId").as_deref(), last.field("RoleSessionName").as_deref()),
        (Some("x"), Some("me"))
    );
    assert_eq!(server.requests("GetAuthorizationToken")[1].key(), own.replace(['/', ':'], "-"));
}

#[tokio::test]
async fn ecr_public() {
    let server = Server::start(|request: &Request, _| match request.what().as_str() {
        "GetAuthorizationToken" => {
            let (_, body) = token("public", 3600.0);
            let body: serde_json::Value = serde_json::from_str(&body).unwrap();
            // One object where the private API has a list.
            (200, json!({"authorizationData": body["authorizationData"][0]}).to_string())
        }
        what => panic!("{what}"),
    })
    .await;
    let destination = Repository { registry: "public.ecr.aws".into(), name: "app".into() };
    let options = Options { destinations: vec![destination], ..Options::default() };
    let ecr = server.ecr(&KEYS, options).await;
    assert_eq!(password(&ecr, "public.ecr.aws").await.unwrap(), "AWS:public");
    let asked = &server.requests("GetAuthorizationToken")[0];
    assert_eq!(asked.header("x-amz-target"), "SpencerFrontendService.GetAuthorizationToken");
    assert!(asked.header("authorization").contains("/us-east-1/ecr-public/aws4_request"));
    for keychain in keychains(&ecr) {
        assert_eq!(keychain.credential("public.ecr.aws", "docker/library/x").await.unwrap(), None);
    }
}

fn repository(name: &str) -> Repository {
    Repository { registry: HOST.into(), name: name.into() }
}

#[tokio::test]
async fn a_repository_that_somebody_else_created_is_fine() {
    let server = Server::start(|request: &Request, _| match request.what().as_str() {
        "CreateRepository" => ecr_error("RepositoryAlreadyExistsException", "it exists"),
        what => panic!("{what}"),
    })
    .await;
    let cache = RepositorySettings { scan_on_push: true, ..RepositorySettings::default() };
    let options = Options {
        create: Some(RepositorySettings {
            lifecycle_policy: Some("{}".into()),
            ..Default::default()
        }),
        create_cache: vec![(repository("cache"), cache)],
        ..Options::default()
    };
    let ecr = server.ecr(&KEYS, options).await;
    let (app, cache) = (repository("app"), repository("cache"));
    let (a, b, c) = tokio::join!(
        ecr.create_repository(&app),
        ecr.create_repository(&app),
        ecr.create_repository(&cache)
    );
    assert_eq!((a, b, c), (Ok(true), Ok(true), Ok(true)));
    // Its policies are somebody else's too.
    assert_eq!(server.all(), ["CreateRepository", "CreateRepository"]);
    let bodies: Vec<String> =
        server.requests("CreateRepository").into_iter().map(|r| r.body).collect();
    assert!(
        bodies.iter().any(|body| body.contains("\"cache\"") && body.contains("scanOnPush")),
        "{bodies:?}"
    );
    let ecr = server.ecr(&KEYS, Options::default()).await;
    assert_eq!(ecr.create_repository(&app).await, Ok(false));
}

#[tokio::test]
async fn tags_that_can_not_move_are_known_where_aws_tells() {
    let server = Server::start(|request: &Request, _| match request.what().as_str() {
        "DescribeRepositories" if request.body.contains("\"denied\"") => ecr_error("AccessDeniedException", "no"),
        "DescribeRepositories" => {
            let filters = json!([{"filterType": "WILDCARD", "filter": "dev-*"}]);
            let one = json!({"imageTagMutability": "IMMUTABLE_WITH_EXCLUSION", "imageTagMutabilityExclusionFilters": filters});
            (200, json!({"repositories": [one]}).to_string())
        }
        what => panic!("{what}"),
    })
    .await;
    let ecr = server.ecr(&KEYS, Options::default()).await;
    let (app, denied) = (repository("app"), repository("denied"));
    assert!(ecr.keeps_tag(&app, "v1").await && !ecr.keeps_tag(&app, "dev-1").await);
    assert!(!ecr.keeps_tag(&denied, "v1").await);
    assert_eq!(server.requests("DescribeRepositories").len(), 2);
}

#[tokio::test]
async fn https_goes_through_the_proxy_and_metadata_does_not() {
    let proxy = Server::start(|_: &Request, _| (502, String::new())).await;
    let server = Server::start(|request: &Request, before| match request.what().as_str() {
        "GET /creds" => (200, metadata_keys("AKIAPOD").to_string()),
        _ => tokens(request, before),
    })
    .await;
    let mut http = client_options();
    http.proxies.https = Some(Secret::new(proxy.url("")));
    http.proxies.http = Some(Secret::new("http://192.0.2.1:1".into()));
    let url = server.url("/creds");
    let variables = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", url.as_str()),
        ("AWS_ENDPOINT_URL_ECR", "https://ecr.example"),
    ];
    let ecr = server.ecr_with(&variables, Options::default(), http).await;
    assert!(password(&ecr, HOST).await.unwrap_err().contains("ecr.example"));
    assert_eq!(server.all(), ["GET /creds"]);
    assert!(proxy.all().iter().all(|what| what == "CONNECT ecr.example:443"), "{:?}", proxy.all());
    assert!(!proxy.all().is_empty());
}

#[tokio::test]
async fn the_order_among_keychains() {
    let server = Server::start(tokens).await;
    let first = async |variables: &[(&str, &str)], options: Options| {
        let ecr = server.ecr(variables, options).await;
        let before = keychains(&ecr).remove(0);
        matches!(before.credential(HOST, "app").await, Ok(Some(_)) | Err(_))
    };
    let url = server.url("/creds");
    let pod = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", url.as_str())];
    assert!(first(&KEYS, Options::default()).await);
    assert!(!first(&pod, Options::default()).await);
    let login = |registries: &[&str], everywhere| Options {
        ecr_login: EcrLogin {
            registries: registries.iter().map(|r| (*r).into()).collect(),
            everywhere,
        },
        ..Options::default()
    };
    assert!(first(&pod, login(&[HOST], false)).await);
    assert!(!first(&pod, login(&["other.example"], false)).await);
    assert!(first(&pod, login(&[], true)).await);
    // What is set by half is told before an old password is tried.
    assert!(first(&[("AWS_PROFILE", "nobody")], Options::default()).await);
}
