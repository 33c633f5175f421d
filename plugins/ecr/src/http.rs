//! The AWS SDK's HTTP, over core's connections: the same roots, proxies and name resolution as for registries.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_smithy_runtime_api::{
    client::{
        http::{
            HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings,
            SharedHttpConnector,
        },
        orchestrator::{HttpRequest, HttpResponse},
        result::ConnectorError,
        runtime_components::RuntimeComponents,
    },
    http::StatusCode,
};
use aws_smithy_types::body::SdkBody;
use bareboat_core::registry::{ClientOptions, RegistryError, service_client};

/// Where the caller sets none.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Before the second and the third connection to where nobody listens.
const CONNECT_PAUSES: [Duration; 2] = [Duration::from_millis(300), Duration::from_millis(900)];
/// Far above any answer that is read here.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Makes requests to AWS and to metadata services. Cheap to clone.
#[derive(Clone)]
pub struct Http(Arc<Inner>);

struct Inner {
    options: ClientOptions,
    /// By connect timeout.
    clients: Mutex<HashMap<Duration, reqwest::Client>>,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http")
    }
}

impl Http {
    /// # Errors
    /// A proxy or the TLS configuration can't be used.
    pub fn new(options: ClientOptions) -> Result<Self, RegistryError> {
        let http = Http(Arc::new(Inner { options, clients: Mutex::default() }));
        http.client(CONNECT_TIMEOUT)?;
        Ok(http)
    }

    /// The client for requests that are not the SDK's.
    pub(crate) fn client(&self, connect: Duration) -> Result<reqwest::Client, RegistryError> {
        let mut clients = self.0.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&connect) {
            return Ok(client.clone());
        }
        let client = service_client(&self.0.options, connect)?;
        clients.insert(connect, client.clone());
        Ok(client)
    }

    /// Sends `request` and reads the whole answer: status and body.
    pub(crate) async fn fetch(
        &self,
        request: reqwest::Request,
        connect: Duration,
        read: Duration,
    ) -> Result<(u16, Vec<u8>), String> {
        let client = self.client(connect).map_err(|error| error.to_string())?;
        let (status, _, body) =
            exchange(&client, request, connect + read).await.map_err(|error| error.text)?;
        Ok((status, body))
    }
}

impl HttpClient for Http {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let connect = settings.connect_timeout().unwrap_or(CONNECT_TIMEOUT);
        let read = settings.read_timeout().unwrap_or(READ_TIMEOUT);
        SharedHttpConnector::new(Connector { http: self.clone(), connect, read })
    }
}

#[derive(Debug)]
struct Connector {
    http: Http,
    connect: Duration,
    read: Duration,
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (http, connect, read) = (self.http.clone(), self.connect, self.read);
        HttpConnectorFuture::new(async move {
            let user = |text: String| ConnectorError::user(text.into());
            let client = http.client(connect).map_err(|error| user(error.to_string()))?;
            let request = convert(request).map_err(user)?;
            let (status, headers, body) = exchange_connected(&client, request, connect + read)
                .await
                .map_err(Failure::into_connector_error)?;
            respond(status, &headers, body).map_err(user)
        })
    }
}

fn convert(request: HttpRequest) -> Result<reqwest::Request, String> {
    let body = request.body().bytes().map(<[u8]>::to_vec);
    let body = body.ok_or("a request with a streaming body")?;
    let method = request.method().parse().map_err(|_| "a request with an odd method")?;
    let url = request.uri().parse().map_err(|_| format!("{:?} is no URL", request.uri()))?;
    let mut converted = reqwest::Request::new(method, url);
    for (name, value) in request.headers() {
        let name: reqwest::header::HeaderName =
            name.parse().map_err(|_| "a header with an odd name")?;
        let value = value.parse().map_err(|_| format!("a header {name} with an odd value"))?;
        converted.headers_mut().append(name, value);
    }
    if !body.is_empty() {
        *converted.body_mut() = Some(body.into());
    }
    Ok(converted)
}

fn respond(
    status: u16,
    headers: &reqwest::header::HeaderMap,
    body: Vec<u8>,
) -> Result<HttpResponse, String> {
    let status = StatusCode::try_from(status).map_err(|_| format!("the odd status {status}"))?;
    let mut response = HttpResponse::new(status, SdkBody::from(body));
    for (name, value) in headers {
        // A header that is no text is none that the SDK reads.
        if let Ok(value) = value.to_str() {
            let (name, value) = (name.as_str().to_owned(), value.to_owned());
            response.headers_mut().try_append(name, value).map_err(|error| error.to_string())?;
        }
    }
    Ok(response)
}

/// Why there is no answer.
struct Failure {
    kind: FailureKind,
    text: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum FailureKind {
    Timeout,
    /// Nobody listens, or there is no such name.
    Connect,
    /// There was no answer to the connection.
    Unreached,
    Broken,
}

impl Failure {
    fn into_connector_error(self) -> ConnectorError {
        match self.kind {
            FailureKind::Timeout => ConnectorError::timeout(self.text.into()),
            // The SDK would try for many seconds what is most often a wrong Region or a missing proxy.
            FailureKind::Connect | FailureKind::Unreached => {
                ConnectorError::other(self.text.into(), None).never_connected()
            }
            FailureKind::Broken => ConnectorError::io(self.text.into()),
        }
    }
}

/// [`exchange`], with a few tries to connect.
async fn exchange_connected(
    client: &reqwest::Client,
    request: reqwest::Request,
    limit: Duration,
) -> Result<(u16, reqwest::header::HeaderMap, Vec<u8>), Failure> {
    for pause in CONNECT_PAUSES {
        let Some(again) = request.try_clone() else { break };
        match exchange(client, again, limit).await {
            Err(failure) if failure.kind == FailureKind::Connect => {
                tracing::debug!(error = failure.text, "connecting again");
                tokio::time::sleep(pause).await;
            }
            result => return result,
        }
    }
    exchange(client, request, limit).await
}

async fn exchange(
    client: &reqwest::Client,
    request: reqwest::Request,
    limit: Duration,
) -> Result<(u16, reqwest::header::HeaderMap, Vec<u8>), Failure> {
    let place = request.url().host_str().unwrap_or_default().to_owned();
    let whole = async {
        let mut response =
            client.execute(request).await.map_err(|error| failure(&place, &error))?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| failure(&place, &error))? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                let text = format!("{place}: the answer is larger than {ANSWER_BYTES_MAX} bytes");
                return Err(Failure { kind: FailureKind::Broken, text });
            }
            body.extend_from_slice(&chunk);
        }
        Ok((status, headers, body))
    };
    tokio::time::timeout(limit, whole).await.unwrap_or_else(|_| {
        let text = format!("{place}: no answer within {} seconds", limit.as_secs());
        Err(Failure { kind: FailureKind::Timeout, text })
    })
}

fn failure(place: &str, error: &reqwest::Error) -> Failure {
    let kind = match (error.is_timeout(), error.is_connect()) {
        (true, true) => FailureKind::Unreached,
        (true, _) => FailureKind::Timeout,
        (_, true) => FailureKind::Connect,
        _ => FailureKind::Broken,
    };
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let reason = match cause.downcast_ref::<reqwest::Error>() {
        Some(_) => "the request could not be made".to_owned(),
        None => cause.to_string(),
    };
    Failure { kind, text: format!("{place}: {reason}") }
}
