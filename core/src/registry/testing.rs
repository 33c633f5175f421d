//! A registry that misbehaves on demand, for what a real one can't be made to do.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{
    Anonymous, Client, ClientOptions, Credential, CredentialKind, Keychain, Repository,
    StaticKeychain,
};
use crate::secret::Secret;

pub(crate) fn tls() -> rustls::ClientConfig {
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}

/// Options with delays that suit tests.
pub(crate) fn options() -> ClientOptions {
    let mut options = ClientOptions::new(tls());
    options.limits.backoff_first = Duration::from_millis(2);
    options.limits.backoff_max = Duration::from_millis(10);
    options.limits.stall_timeout = Duration::from_millis(400);
    options.limits.response_timeout = Duration::from_millis(800);
    options.limits.document_timeout = Duration::from_secs(2);
    options.limits.commit_timeout = Duration::from_millis(800);
    options
}

pub(crate) fn password(username: &str, password: &str) -> Credential {
    let kind = CredentialKind::Password {
        username: username.into(),
        password: Secret::new(password.into()),
    };
    Credential { source: "the test".into(), kind }
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(crate) fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// How an answer goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// The connection is closed without an answer.
    Close,
    /// It is closed after so many bytes of the body.
    Cut(usize),
    /// Nothing more comes after so many bytes of the body.
    Stall(usize),
    /// The body comes at 50 bytes a second.
    Dribble,
    /// No answer comes.
    Silent,
}

#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) fault: Fault,
    /// Instead of the body's own length.
    pub(crate) length: Option<u64>,
}

impl Reply {
    pub(crate) fn new(status: u16) -> Self {
        Reply { status, headers: Vec::new(), body: Vec::new(), fault: Fault::None, length: None }
    }

    pub(crate) fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.into(), value.to_string()));
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub(crate) fn fault(mut self, fault: Fault) -> Self {
        self.fault = fault;
        self
    }

    pub(crate) fn error(status: u16, code: &str, message: &str) -> Self {
        let body = serde_json::json!({"errors": [{"code": code, "message": message}]});
        Reply::new(status).body(body.to_string())
    }
}

/// A server on loopback that answers by a function of the request and of how many came before.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    log: Arc<Mutex<Vec<Request>>>,
    task: tokio::task::JoinHandle<()>,
}

type Answer = dyn Fn(&Request, usize) -> Reply + Send + Sync;

impl Fake {
    pub(crate) async fn start(
        answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let log: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (answer, shared): (Arc<Answer>, _) = (Arc::new(answer), log.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, answer.clone(), shared.clone()));
            }
        });
        Fake { address, log, task }
    }

    pub(crate) fn registry(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn repository(&self, name: &str) -> Repository {
        Repository { registry: self.registry(), name: name.into() }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(options(), Arc::new(Anonymous)).unwrap()
    }

    pub(crate) fn client_with(&self, credential: Credential) -> Client {
        self.client_keychain(Arc::new(StaticKeychain::new(&self.registry(), credential)))
    }

    pub(crate) fn client_keychain(&self, keychain: Arc<dyn Keychain>) -> Client {
        Client::new(options(), keychain).unwrap()
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.requests().iter().map(Request::line).collect()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, answer: Arc<Answer>, log: Arc<Mutex<Vec<Request>>>) {
    while let Some(request) = read(&mut stream).await {
        let count = {
            let mut log = log.lock().unwrap();
            log.push(request.clone());
            log.len() - 1
        };
        let reply = answer(&request, count);
        if !write(&mut stream, &request, reply).await {
            return;
        }
    }
}

async fn read(stream: &mut TcpStream) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = stream.read_u8().await.ok()?;
        if head.is_empty() && byte == 0x16 {
            // A TLS hello, answered as Go's plain server does.
            let _ = stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nno TLS here").await;
            return None;
        }
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    assert!(!headers.contains_key("transfer-encoding"), "no request may be chunked");
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Request { method, path, headers, body })
}

/// Returns whether the connection goes on.
async fn write(stream: &mut TcpStream, request: &Request, reply: Reply) -> bool {
    if reply.fault == Fault::Close {
        return false;
    }
    if reply.fault == Fault::Silent {
        tokio::time::sleep(Duration::from_secs(30)).await;
        return false;
    }
    let length = reply.length.unwrap_or(reply.body.len() as u64);
    let mut head = format!("HTTP/1.1 {} X\r\nContent-Length: {length}\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let body = if request.method == "HEAD" { &[][..] } else { &reply.body };
    let part = match reply.fault {
        Fault::Cut(bytes) | Fault::Stall(bytes) => &body[..bytes.min(body.len())],
        Fault::Dribble => &[],
        _ => body,
    };
    let sent = stream.write_all(head.as_bytes()).await.and(stream.write_all(part).await);
    if reply.fault == Fault::Dribble {
        for byte in body {
            if stream.write_u8(*byte).await.is_err() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    if let Fault::Stall(_) = reply.fault {
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    sent.is_ok() && reply.fault == Fault::None
}
