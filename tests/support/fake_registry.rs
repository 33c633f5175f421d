//! A registry that serves whatever bytes it is given, true or not, and remembers what it was asked for. It takes nothing of
//! its own accord: a script answers what is pushed.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use super::{forge::Forged, oci};

/// An answer that replaces the usual one.
#[derive(Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    pub cut: Option<usize>,
}

impl Answer {
    pub fn new(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Answer {
        Answer {
            status,
            headers: vec![("Content-Type".into(), content_type.into())],
            body: body.into(),
            cut: None,
        }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Answer {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// Says what to answer to the n-th request (from 0) of a path; `None` is the usual answer.
pub type Fault = Box<dyn Fn(&str, usize) -> Option<Answer> + Send + Sync>;

/// The same by method and path.
pub type Script = Box<dyn Fn(&str, &str, usize) -> Option<Answer> + Send + Sync>;

struct Shared {
    images: BTreeMap<String, Forged>,
    script: Script,
    log: Mutex<Vec<String>>,
}

pub struct FakeRegistry {
    pub address: String,
    shared: Arc<Shared>,
}

impl FakeRegistry {
    /// Serves `image` as `ADDRESS/name:latest`.
    pub fn of(name: &str, image: Forged) -> FakeRegistry {
        FakeRegistry::with_faults([(name.to_owned(), image)], Box::new(|_, _| None))
    }

    pub fn with_faults(
        images: impl IntoIterator<Item = (String, Forged)>,
        fault: Fault,
    ) -> FakeRegistry {
        FakeRegistry::scripted(images, Box::new(move |_, path, seen| fault(path, seen)))
    }

    pub fn scripted(
        images: impl IntoIterator<Item = (String, Forged)>,
        script: Script,
    ) -> FakeRegistry {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            images: images.into_iter().collect(),
            script,
            log: Mutex::default(),
        });
        let served = shared.clone();
        // The thread waits in accept() until the test process ends: there is nothing of it to clean up.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = served.clone();
                thread::spawn(move || answer_all(stream, &shared));
            }
        });
        FakeRegistry { address, shared }
    }

    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}:latest", self.address)
    }

    /// `METHOD PATH` of every request so far.
    pub fn requests(&self) -> Vec<String> {
        self.shared.log.lock().unwrap().clone()
    }

    pub fn forget_requests(&self) {
        self.shared.log.lock().unwrap().clear();
    }

    /// How many blobs were asked for by GET.
    pub fn blob_requests(&self) -> usize {
        self.requests()
            .iter()
            .filter(|request| request.starts_with("GET ") && request.contains("/blobs/"))
            .count()
    }
}

fn answer_all(stream: TcpStream, shared: &Shared) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    if speaks_tls(&mut reader) {
        let _ = (&stream)
            .write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nclient speaks TLS to an HTTP server\n");
        let _ = stream.shutdown(std::net::Shutdown::Both);
        return;
    }
    while let Some((method, path)) = read_request(&mut reader) {
        let seen = {
            let mut log = shared.log.lock().unwrap();
            let line = format!("{method} {path}");
            let seen = log.iter().filter(|earlier| **earlier == line).count();
            log.push(line);
            seen
        };
        let answer = (shared.script)(&method, &path, seen).unwrap_or_else(|| usual(&path, shared));
        if send(&stream, &method, &answer).is_err() || answer.cut.is_some() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
    }
}

/// A client that tries TLS first gets the answer of a real plain server. Its greeting may hold no newline to wait for.
fn speaks_tls(reader: &mut impl BufRead) -> bool {
    reader.fill_buf().is_ok_and(|bytes| bytes.first() == Some(&0x16))
}

fn read_request(reader: &mut impl BufRead) -> Option<(String, String)> {
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|count| *count > 0)?;
    let mut body_bytes = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
        if line.trim_end().is_empty() {
            break;
        }
        if let Some(("content-length", value)) = line.to_ascii_lowercase().split_once(": ") {
            body_bytes = value.trim().parse().ok()?;
        }
    }
    std::io::copy(&mut reader.take(body_bytes), &mut std::io::sink()).ok()?;
    let mut words = first.split_whitespace();
    Some((words.next()?.to_owned(), words.next()?.to_owned()))
}

fn usual(path: &str, shared: &Shared) -> Answer {
    if path.trim_end_matches('/') == "/v2" {
        return Answer::new(200, "application/json", "{}");
    }
    find(path, shared).unwrap_or_else(|| {
        Answer::new(
            404,
            "application/json",
            r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"not here"}]}"#,
        )
    })
}

fn find(path: &str, shared: &Shared) -> Option<Answer> {
    let path = path.strip_prefix("/v2/")?;
    if let Some((name, reference)) = path.split_once("/manifests/") {
        let image = shared.images.get(name)?;
        let known = reference == "latest" || reference == image.digest;
        let own = serde_json::from_slice::<serde_json::Value>(&image.manifest).ok();
        let own = own.as_ref().and_then(|manifest| manifest["mediaType"].as_str());
        let kind = own.filter(|kind| *kind == oci::INDEX).unwrap_or(oci::MANIFEST);
        let answer = Answer::new(200, kind, image.manifest.clone());
        return known.then(|| answer.header("Docker-Content-Digest", &image.digest));
    }
    let (name, digest) = path.split_once("/blobs/")?;
    let bytes = shared.images.get(name)?.blobs.get(digest)?;
    Some(Answer::new(200, "application/octet-stream", bytes.clone()))
}

fn send(mut stream: &TcpStream, method: &str, answer: &Answer) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} Answer\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let own_length = ["content-length", "transfer-encoding"];
    let has = |(name, _): &(String, String)| own_length.contains(&&*name.to_ascii_lowercase());
    if !answer.headers.iter().any(has) && answer.status != 204 {
        head += &format!("Content-Length: {}\r\n", answer.body.len());
    }
    stream.write_all(head.as_bytes())?;
    stream.write_all(b"\r\n")?;
    if method != "HEAD" {
        let end = answer.cut.unwrap_or(answer.body.len()).min(answer.body.len());
        stream.write_all(&answer.body[..end])?;
    }
    stream.flush()
}
