use std::sync::Arc;

use crate::{
    digest::Digest,
    registry::{
        Anonymous, Client, Proxies, reference,
        testing::{Fake, Reply, options},
    },
    secret::Secret,
};

async fn through(fake: &Fake) -> Client {
    let mut options = options();
    options.insecure_registries = vec!["reg.invalid".into()];
    options.proxies = Proxies {
        http: Some(Secret::new(format!("http://user:hunter2@{}", fake.address))),
        https: None,
        no_proxy: Some("direct.invalid".into()),
    };
    options.limits.tries = 1;
    Client::new(options, Arc::new(Anonymous)).unwrap()
}

#[tokio::test]
async fn requests_go_through_the_proxy() {
    let fake = Fake::start(|request, _| match request.path.as_str() {
        "http://reg.invalid/v2/app/manifests/v1" => Reply::new(200)
            .header("Content-Type", "application/vnd.oci.image.manifest.v1+json")
            .header("Docker-Content-Digest", Digest::of(b"x"))
            .body("x"),
        _ => Reply::new(500),
    })
    .await;
    let client = through(&fake).await;
    client.resolve(&reference::parse("reg.invalid/app:v1").unwrap()).await.unwrap();
    assert!(fake.requests()[0].header("proxy-authorization").starts_with("Basic "));
    assert!(client.resolve(&reference::parse("direct.invalid/app:v1").unwrap()).await.is_err());
    assert_eq!(fake.requests().len(), 1);
}

#[tokio::test]
async fn a_proxy_that_refuses_is_told_without_its_password() {
    let fake = Fake::start(|_, _| Reply::new(407).body("Proxy Authentication Required")).await;
    let client = through(&fake).await;
    let error = client.manifest(&reference::parse("reg.invalid/app:v1").unwrap()).await;
    let error = error.unwrap_err();
    assert!(error.to_string().contains("407"), "{error}");
    assert!(!format!("{error} {error:?}").contains("hunter2"));
}
