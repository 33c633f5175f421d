//! AWS's APIs and a machine's metadata services, played by one loopback server.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bareboat_core::registry::ClientOptions;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

use crate::{Ecr, Options, Variables, context::Pace};

/// `METHOD path`, headers in lower case, and the body.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) line: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// What is asked for: the operation of an API, else the path.
    pub(crate) fn what(&self) -> String {
        if let Some((_, target)) = self.header("x-amz-target").rsplit_once('.') {
            return target.to_owned();
        }
        match self.field("Action") {
            Some(action) => action,
            None => self.line.clone(),
        }
    }

    /// A field of a form.
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        let mut pairs = url::form_urlencoded::parse(self.body.as_bytes());
        pairs.find(|(known, _)| known == name).map(|(_, value)| value.into_owned())
    }

    /// The access key that signed it.
    pub(crate) fn key(&self) -> &str {
        let header = self.header("authorization");
        let key = header.split_once("Credential=").map_or("", |(_, rest)| rest);
        key.split('/').next().unwrap_or_default()
    }
}

pub(crate) type Reply = (u16, String);
type Answer = dyn Fn(&Request, usize) -> Reply + Send + Sync;

/// Answers by a function of the request and of how many of the same kind came before.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    log: Arc<Mutex<Vec<Request>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
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
        Server { address, log, task }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn requests(&self, what: &str) -> Vec<Request> {
        let log = self.log.lock().unwrap();
        log.iter().filter(|request| request.what() == what).cloned().collect()
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.log.lock().unwrap().iter().map(Request::what).collect()
    }

    /// ECR's side of a build whose AWS is this server.
    pub(crate) async fn ecr(&self, variables: &[(&str, &str)], options: Options) -> Arc<Ecr> {
        self.ecr_with(variables, options, client_options()).await
    }

    pub(crate) async fn ecr_with(
        &self,
        variables: &[(&str, &str)],
        options: Options,
        http: ClientOptions,
    ) -> Arc<Ecr> {
        let url = self.url("");
        let own = [("AWS_ENDPOINT_URL", url.as_str()), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url)];
        let all = own.iter().chain(variables);
        let variables = all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let pace = Pace {
            backoff_first: Duration::from_millis(1),
            connect: Duration::from_secs(2),
            attempt: Duration::from_secs(2),
            metadata_connect: Duration::from_millis(300),
            ..Pace::default()
        };
        Ecr::open_paced(Variables::new(variables), http, options, pace).await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn client_options() -> ClientOptions {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    ClientOptions::new(tls)
}

async fn serve(stream: TcpStream, answer: Arc<Answer>, log: Arc<Mutex<Vec<Request>>>) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream).await {
        let before = {
            let mut log = log.lock().unwrap();
            let before = log.iter().filter(|known| known.what() == request.what()).count();
            log.push(request.clone());
            before
        };
        let (status, body) = answer(&request, before);
        let kind = if body.starts_with('<') { "text/xml" } else { "application/x-amz-json-1.1" };
        let ttl = "x-aws-ec2-metadata-token-ttl-seconds: 21600";
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\n{ttl}\r\nx-amzn-requestid: r-1\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        if stream.write_all((head + &body).as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            text => lines.push(text.to_owned()),
        }
    }
    let line = lines[0].rsplit_once(' ')?.0.to_owned();
    let headers: Vec<(String, String)> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let mut body = vec![0; length.map_or(0, |(_, length)| length.parse().unwrap())];
    stream.read_exact(&mut body).await.ok()?;
    Some(Request { line, headers, body: String::from_utf8(body).unwrap() })
}

/// A token of ECR: `AWS:password`, ending in so many seconds from now.
pub(crate) fn token(password: &str, seconds: f64) -> Reply {
    use base64::Engine;
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("AWS:{password}"));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let data = json!({"authorizationToken": encoded, "expiresAt": now.as_secs_f64() + seconds});
    (200, json!({"authorizationData": [data]}).to_string())
}

/// Keys for a role, ending in so many seconds.
pub(crate) fn role_keys(action: &str, key: &str, seconds: i64) -> Reply {
    let end = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
    (
        200,
        format!(
            "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result><Credentials>\
             <AccessKeyId>{key}</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>\
             <Expiration>{end:.0}</Expiration></Credentials></{action}Result></{action}Response>"
        ),
    )
}

pub(crate) fn sts_error(code: &str, message: &str) -> Reply {
    let text = format!(
        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
         <Code>{code}</Code><Message>{message}</Message></Error><RequestId>r-1</RequestId></ErrorResponse>"
    );
    (400, text)
}

pub(crate) fn ecr_error(code: &str, message: &str) -> Reply {
    (400, json!({"__type": code, "message": message}).to_string())
}

/// Keys as metadata services give them.
pub(crate) fn metadata_keys(key: &str) -> Value {
    let end = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3600);
    json!({"Code": "Success", "AccessKeyId": key, "SecretAccessKey": "s", "Token": "t",
        "Expiration": format!("{end:.0}")})
}
