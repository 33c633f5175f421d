use std::io::{Read, Seek};

use crate::{
    Class,
    digest::Digest,
    fetch::{Download, FetchError, HttpClient, HttpRequest, no_secrets},
    registry::{
        ClientOptions, Proxies,
        testing::{Fake, Fault, Reply, Request, options},
    },
    secret::Secret,
};

use super::secrets;

fn request(url: &str) -> HttpRequest<'_> {
    HttpRequest { url, checksum: None, secrets: &no_secrets }
}

fn spool() -> std::fs::File {
    tempfile::tempfile().unwrap()
}

async fn fetch_with(options: &ClientOptions, url: &str) -> Result<Download, FetchError> {
    HttpClient::new(options).unwrap().download(request(url), spool()).await
}

async fn fetch(url: &str) -> Result<Download, FetchError> {
    fetch_with(&options(), url).await
}

fn bytes(download: &Download) -> Vec<u8> {
    let mut file = &*download.file;
    file.rewind().unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn redirect(to: impl ToString) -> Reply {
    Reply::new(302).header("Location", to)
}

#[tokio::test]
async fn a_file_with_what_is_known_of_it() {
    let server = Fake::start(|_, _| {
        Reply::new(200)
            .header("Last-Modified", "Thu, 01 Jan 2015 12:00:00 GMT")
            .header("ETag", "W/\"abc\"")
            .header("Content-Disposition", "attachment; filename=\"../../evil\"")
            .header("Content-Encoding", "gzip")
            .body("not gzip")
    })
    .await;
    let download = fetch(&server.url("/files/named?v=1#part")).await.unwrap();
    assert_eq!(download.name, b"named");
    assert_eq!(download.mtime.seconds, 1_420_113_600);
    assert_eq!(download.etag.as_deref(), Some("\"abc\""));
    assert_eq!((download.length, download.digest), (8, Digest::of(b"not gzip")));
    assert_eq!(bytes(&download), b"not gzip");
    let sent = &server.requests()[0];
    assert_eq!(sent.path, "/files/named?v=1");
    assert_eq!((sent.header("accept-encoding"), sent.header("authorization")), ("identity", ""));
}

#[tokio::test]
async fn nothing_said_means_1970() {
    let server = Fake::start(|_, _| Reply::new(200)).await;
    let download = fetch(&server.url("/")).await.unwrap();
    assert_eq!((download.mtime.seconds, download.etag), (0, None));
    assert_eq!(download.name, b"__unnamed__");
}

#[tokio::test]
async fn checksums() {
    let server = Fake::start(|_, _| Reply::new(200).body("plain")).await;
    let (url, client) = (server.url("/x"), HttpClient::new(&options()).unwrap());
    let with = |digest| HttpRequest { checksum: Some(digest), ..request(&url) };
    assert!(client.download(with(Digest::of(b"plain")), spool()).await.is_ok());
    let error = client.download(with(Digest::of(b"other")), spool()).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&Digest::of(b"plain").to_string()), "{text}");
    assert!(text.contains(&Digest::of(b"other").to_string()), "{text}");
    assert_eq!(error.class(), Class::Source);
}

#[tokio::test]
async fn a_redirect_keeps_the_name_and_loses_the_credential() {
    let other = Fake::start(|_, _| Reply::new(200).body("x")).await;
    let target = other.url("/elsewhere?signature=s");
    let server = Fake::start(move |request, _| match &*request.path {
        "/a" => redirect("/b#fragment"),
        _ => redirect(&target),
    })
    .await;
    let url = server.url("/a").replace("http://", "http://user:p%40ss@");
    let download = fetch(&url).await.unwrap();
    assert_eq!(download.name, b"a");
    let expected = "Basic dXNlcjpwQHNz";
    let sent: Vec<_> =
        server.requests().iter().map(|r| r.header("authorization").to_owned()).collect();
    assert_eq!(sent, [expected, expected]);
    let [arrived]: [Request; 1] = other.requests().try_into().unwrap();
    assert_eq!((arrived.header("authorization"), arrived.header("referer")), ("", ""));
}

#[tokio::test]
async fn secrets_by_host() {
    let server = Fake::start(|_, _| Reply::new(200)).await;
    let url = server.url("/x").replace("http://", "http://user:password@");
    let client = HttpClient::new(&options()).unwrap();
    for (known, expected) in [
        (&[("HTTP_AUTH_HEADER_127.0.0.1", "Digest x\n")][..], "Digest x"),
        (
            &[("HTTP_AUTH_TOKEN_127.0.0.1", "t\r\n"), ("HTTP_AUTH_HEADER_127.0.0.1", "h")],
            "Bearer t",
        ),
        (&[("HTTP_AUTH_TOKEN_other.example", "t")], "Basic dXNlcjpwYXNzd29yZA=="),
    ] {
        let lookup = secrets(known);
        client.download(HttpRequest { secrets: &*lookup, ..request(&url) }, spool()).await.unwrap();
        assert_eq!(server.requests().last().unwrap().header("authorization"), expected);
    }
    let lookup = secrets(&[("HTTP_AUTH_TOKEN_127.0.0.1", "hunter2\nX-Evil: 1")]);
    let request = HttpRequest { secrets: &*lookup, ..request(&url) };
    let error = client.download(request, spool()).await.unwrap_err();
    assert!(matches!(&error, FetchError::Credential(id) if id == "HTTP_AUTH_TOKEN_127.0.0.1"));
    assert!(!format!("{error} {error:?}").contains("hunter2"));
}

#[tokio::test]
async fn errors_show_no_credential() {
    let server = Fake::start(|_, _| Reply::new(404)).await;
    let url = server.url("/x?signature=hunter2").replace("http://", "http://user:hunter2@");
    let error = fetch(&url).await.unwrap_err();
    assert!(matches!(error, FetchError::Status { status: 404, .. }));
    assert_eq!((error.class(), server.requests().len()), (Class::Source, 1));
    let error = error.into_error();
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    for url in ["http://user:hunter2@h:x/", "https://user:hunter2@/", "http://user:hunter2@h/a\nb"]
    {
        let error = fetch(url).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        assert_eq!(error.class(), Class::Input);
    }
}

#[tokio::test]
async fn a_host_outside_leads_not_inside() {
    let inside = Fake::start(|_, _| Reply::new(200).body("inside")).await;
    let port = inside.address.port();
    let targets = [
        format!("http://127.0.0.1:{port}/"),
        format!("http://localhost:{port}/"),
        format!("http://[::1]:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
        format!("http://2130706433:{port}/"),
        "http://169.254.169.254/latest/meta-data/".into(),
        "http://10.0.0.1/".into(),
        "https://192.168.0.1/".into(),
        "http://0.0.0.0/".into(),
        "http://[fd00:ec2::254]/".into(),
    ];
    for target in targets {
        let to = target.clone();
        // A proxy stands for a host outside: through it no address is known.
        let proxy = Fake::start(move |_, _| redirect(&to)).await;
        let mut options = options();
        let proxy_url = Secret::new(proxy.url(""));
        options.proxies = Proxies { http: Some(proxy_url), ..Proxies::default() };
        let error = fetch_with(&options, "http://outside.example/x").await.unwrap_err();
        assert!(matches!(error, FetchError::Redirect { .. }), "{target}: {error}");
        assert_eq!(proxy.requests().len(), 1, "{target}");
    }
    assert_eq!(inside.requests().len(), 0);
}

#[tokio::test]
async fn redirects_that_are_refused() {
    for target in
        ["file:///etc/passwd", "gopher://h/", "ftp://h/x", "http://u:p@127.0.0.1:1/", "http://", ""]
    {
        let server = Fake::start(move |_, _| match target {
            "" => Reply::new(302),
            target => redirect(target),
        })
        .await;
        let error = fetch(&server.url("/x")).await.unwrap_err();
        assert!(matches!(error, FetchError::Redirect { .. }), "{target}: {error}");
        assert_eq!(server.requests().len(), 1);
    }
    for url in ["file:///etc/passwd", "gopher://h/x", "ftp://h/x", "/etc/passwd"] {
        assert!(matches!(fetch(url).await, Err(FetchError::Url { .. })), "{url}");
    }
}

#[tokio::test]
async fn redirects_end() {
    let server = Fake::start(|request, _| redirect(&request.path)).await;
    let error = fetch(&server.url("/x")).await.unwrap_err();
    assert!(matches!(error, FetchError::Redirects { limit: 10, .. }), "{error}");
    assert_eq!(server.requests().len(), 11);
}

#[tokio::test]
async fn tries_again_where_that_may_help() {
    let server = Fake::start(|_, count| match count {
        0 => Reply::new(503),
        1 => Reply::new(200).fault(Fault::Close),
        2 => Reply::new(429).header("Retry-After", 0),
        _ => Reply::new(200).body("x"),
    })
    .await;
    assert!(fetch(&server.url("/x")).await.is_ok());
    assert_eq!(server.requests().len(), 4);
    let server = Fake::start(|_, _| Reply::new(429).header("Retry-After", 86_400)).await;
    assert!(fetch(&server.url("/x")).await.is_err());
    assert_eq!(server.requests().len(), 1);
    let server = Fake::start(|_, _| Reply::new(500)).await;
    assert!(fetch(&server.url("/x")).await.is_err());
    assert_eq!(server.requests().len(), options().limits.tries as usize);
}

const LONG: &str = "0123456789";

fn part(request: &Request, etag: &str, length: usize) -> Reply {
    let start = request.header("range").trim_start_matches("bytes=").trim_end_matches('-');
    let Ok(start) = start.parse::<usize>() else {
        return Reply::new(200).header("ETag", etag).body(LONG).fault(Fault::Cut(length));
    };
    assert_eq!(request.header("if-range"), etag);
    let range = format!("bytes {start}-9/10");
    Reply::new(206).header("Content-Range", range).body(&LONG[start..])
}

#[tokio::test]
async fn a_cut_download_is_resumed() {
    let server = Fake::start(|request, _| part(request, "\"strong\"", 4)).await;
    let download = fetch(&server.url("/x")).await.unwrap();
    assert_eq!(bytes(&download), LONG.as_bytes());
    assert_eq!((download.digest, download.length), (Digest::of(LONG.as_bytes()), 10));
    let ranges: Vec<_> = server.requests().iter().map(|r| r.header("range").to_owned()).collect();
    assert_eq!(ranges, ["", "bytes=4-"]);
}

#[tokio::test]
async fn another_file_is_not_appended() {
    for etag in ["\"strong\"", "W/\"weak\"", ""] {
        let server = Fake::start(move |_, count| {
            let reply = Reply::new(200).header("ETag", etag);
            match count {
                0 => reply.body(LONG).fault(Fault::Cut(4)),
                _ => reply.body("other"),
            }
        })
        .await;
        let download = fetch(&server.url("/x")).await.unwrap();
        assert_eq!(bytes(&download), b"other");
        assert_eq!(download.digest, Digest::of(b"other"));
    }
    // A range that begins elsewhere, and one that was not asked for.
    let server = Fake::start(|request, _| match request.header("range") {
        "" => part(request, "\"x\"", 4),
        _ => Reply::new(206).header("Content-Range", "bytes 3-9/10").body("3456789"),
    })
    .await;
    assert!(matches!(fetch(&server.url("/x")).await, Err(FetchError::Answer { .. })));
    let server = Fake::start(|_, _| Reply::new(206).body("x")).await;
    assert!(matches!(fetch(&server.url("/x")).await, Err(FetchError::Answer { .. })));
}

#[tokio::test]
async fn a_range_that_is_gone_starts_again() {
    let server = Fake::start(|request, count| match (count, request.header("range")) {
        (0, _) => part(request, "\"x\"", 4),
        (_, "") => Reply::new(200).body("new"),
        _ => Reply::new(416),
    })
    .await;
    assert_eq!(bytes(&fetch(&server.url("/x")).await.unwrap()), b"new");
}

#[tokio::test]
async fn sizes_and_stalls_are_limited() {
    let server = Fake::start(|_, _| Reply::new(200).body("x").header("X", "").body(LONG)).await;
    let url = server.url("/x");
    for (limit, fits) in [(10, true), (9, false)] {
        let client = HttpClient::with_bytes_max(&options(), limit).unwrap();
        let result = client.download(request(&url), spool()).await;
        assert_eq!(result.is_ok(), fits, "{result:?}");
    }
    let huge = Fake::start(|_, _| Reply { length: Some(10 << 40), ..Reply::new(200) }).await;
    let error = fetch(&huge.url("/x")).await.unwrap_err();
    assert!(matches!(error, FetchError::TooLarge { limit, .. } if limit == 10 << 30), "{error}");
    let slow = Fake::start(|_, _| Reply::new(200).body(LONG).fault(Fault::Stall(3))).await;
    let mut options = options();
    options.limits.tries = 1;
    let error = fetch_with(&options, &slow.url("/x")).await.unwrap_err();
    assert!(matches!(error, FetchError::TimedOut { .. }), "{error}");
}

#[tokio::test]
async fn entity_tags_tell_what_is_unchanged() {
    let server = Fake::start(|_, _| Reply::new(200).header("ETag", "W/\"a\"").body(LONG)).await;
    let client = HttpClient::new(&options()).unwrap();
    let url = server.url("/x");
    assert!(client.is_unchanged(request(&url), "\"a\"").await.unwrap());
    assert!(!client.is_unchanged(request(&url), "\"b\"").await.unwrap());
    assert_eq!(server.lines(), ["HEAD /x", "HEAD /x"]);
}
