//! Keys from services of the machine: container credentials (ECS, EKS Pod Identity) and the instance metadata service.

use std::time::Duration;

use aws_config::{
    imds::{self, client::error::ImdsError},
    provider_config::ProviderConfig,
};
use aws_credential_types::Credentials;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue};
use url::{Host, Url};

use crate::{context::Context, error::AwsError, keys, oidc::is_loopback, text::printable};

const ECS: &str = "http://169.254.170.2";
/// EKS Pod Identity's agent, on IPv4 and IPv6.
const AGENTS: [&str; 3] = ["169.254.170.2", "169.254.170.23", "fd00:ec2::23"];
const READ_TIMEOUT: Duration = Duration::from_secs(5);
const IMDS: &str = "http://169.254.169.254";
const IMDS_IPV6: &str = "http://[fd00:ec2::254]";
const IMDS_TRIES: u32 = 4;
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";

impl Context {
    /// Keys from the endpoint that the container's environment names.
    ///
    /// # Errors
    /// It is none that may be asked, it can't be reached, or it refuses.
    pub(crate) async fn container(&self) -> Result<Credentials, AwsError> {
        let (variable, url) = self.container_url()?;
        let failed = |reason: String| source(variable, reason, None);
        let mut request = reqwest::Request::new(reqwest::Method::GET, url);
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
        let mut tries = 0;
        loop {
            if let Some(token) = self.container_token().map_err(failed)? {
                request.headers_mut().insert(AUTHORIZATION, token);
            }
            let sent = request.try_clone().ok_or_else(|| failed("it can't be asked".into()))?;
            tries += 1;
            let reason = match self.http.fetch(sent, self.pace.connect, READ_TIMEOUT).await {
                Ok((200, body)) => return keys::read(&body, "container").map_err(failed),
                Ok((status, body)) if status < 500 && status != 429 => {
                    return Err(failed(format!("it answered {status}: {}", shown(&body))));
                }
                Ok((status, body)) => format!("it answered {status}: {}", shown(&body)),
                Err(reason) => reason,
            };
            if tries >= self.pace.tries.min(3) {
                return Err(failed(reason));
            }
            self.back_off(tries).await;
        }
    }

    fn container_url(&self) -> Result<(&'static str, Url), AwsError> {
        const RELATIVE: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
        const FULL: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
        let variables = &self.files.variables;
        if let Some(path) = variables.get(RELATIVE) {
            let url = path.starts_with('/').then(|| Url::parse(&format!("{ECS}{path}")).ok());
            let url = url.flatten().filter(|url| url.host_str() == Some(AGENTS[0]));
            let wrong = || source(RELATIVE, "it is no path".into(), None);
            return Ok((RELATIVE, url.ok_or_else(wrong)?));
        }
        let text = variables.get(FULL).unwrap_or_default();
        let url = Url::parse(text).map_err(|_| source(FULL, "it is no URL".into(), None))?;
        if !may_be_asked(&url) {
            let reason = "it is neither https nor an address of this machine or of AWS's agents";
            return Err(source(FULL, reason.into(), None));
        }
        Ok((FULL, url))
    }

    fn container_token(&self) -> Result<Option<HeaderValue>, String> {
        const FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
        let variables = &self.files.variables;
        let token = match variables.get(FILE) {
            Some(path) => Some(self.files.token(path)?),
            None => variables.get("AWS_CONTAINER_AUTHORIZATION_TOKEN").map(str::to_owned),
        };
        let Some(token) = token else { return Ok(None) };
        let mut header = HeaderValue::try_from(token)
            .map_err(|_| "its token can't be sent as a header".to_owned())?;
        header.set_sensitive(true);
        Ok(Some(header))
    }

    /// Keys of the role of the machine, by the instance metadata service (version 2 only).
    ///
    /// # Errors
    /// It does not answer, or the machine has no role.
    pub(crate) async fn instance(&self) -> Result<Credentials, AwsError> {
        let client = self.imds()?;
        let role = client.get(ROLES).await.map_err(|error| instance_error(&error))?;
        let role = role.as_ref().lines().next().unwrap_or_default().trim().to_owned();
        let answer = client.get(format!("{ROLES}{role}")).await;
        let answer = answer.map_err(|error| instance_error(&error))?;
        keys::read(answer.as_ref().as_bytes(), "imds")
            .map_err(|reason| source(INSTANCE, reason, None))
    }

    fn imds(&self) -> Result<imds::Client, AwsError> {
        let variables = &self.files.variables;
        let mode = variables.get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE").unwrap_or("IPv4");
        let endpoint = match variables.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") {
            Some(endpoint) => endpoint,
            None if mode.eq_ignore_ascii_case("ipv6") => IMDS_IPV6,
            None => IMDS,
        };
        let config = ProviderConfig::without_region().with_http_client(self.http.clone());
        let builder = imds::Client::builder()
            .configure(&config)
            .max_attempts(IMDS_TRIES)
            .connect_timeout(self.pace.metadata_connect)
            .endpoint(endpoint)
            .map_err(|error| source(INSTANCE, format!("{endpoint}: {error}"), None))?;
        Ok(builder.build())
    }
}

const INSTANCE: &str = "the instance metadata service (IMDSv2)";

fn instance_error(error: &ImdsError) -> AwsError {
    match error {
        ImdsError::ErrorResponse(answer) if answer.response().status().as_u16() == 404 => {
            let hint = "give the machine an instance profile, or configure another source";
            source(INSTANCE, "this machine has no role".into(), Some(hint))
        }
        ImdsError::ErrorResponse(answer) => {
            let status = answer.response().status().as_u16();
            source(INSTANCE, format!("it answered {status}"), Some(HOPS_HINT))
        }
        _ => AwsError::NoSource {
            tried: "no ID token with a role, AWS_ACCESS_KEY_ID, profile, AWS_WEB_IDENTITY_TOKEN_FILE or \
                    AWS_CONTAINER_CREDENTIALS_*, and the instance metadata service does not answer"
                .into(),
        },
    }
}

const HOPS_HINT: &str =
    "a container reaches IMDSv2 only where the instance's hop limit is 2 or more";

/// HTTPS, this machine by its address, or one of AWS's agents: no token may go elsewhere.
fn may_be_asked(url: &Url) -> bool {
    let agent = match url.host() {
        Some(Host::Ipv4(address)) => AGENTS.contains(&address.to_string().as_str()),
        Some(Host::Ipv6(address)) => AGENTS.contains(&address.to_string().as_str()),
        _ => false,
    };
    url.scheme() == "https" || url.scheme() == "http" && (agent || is_loopback(url))
}

fn shown(body: &[u8]) -> String {
    printable(&String::from_utf8_lossy(body), 200)
}

fn source(provider: &str, reason: String, hint: Option<&str>) -> AwsError {
    AwsError::Source { provider: provider.to_owned(), reason, hint: hint.map(str::to_owned) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_stay_on_this_machine_or_with_aws() {
        let asked = |url: &str| may_be_asked(&Url::parse(url).unwrap());
        for good in [
            "http://169.254.170.23/v1/credentials",
            "http://[fd00:ec2::23]/v1/credentials",
            "http://127.0.0.1:1/x",
            "http://[::1]/x",
            "http://localhost:1338/x",
            "https://any.example/x",
        ] {
            assert!(asked(good), "{good}");
        }
        for bad in [
            "http://169.254.169.254/latest",
            "http://evil.example/",
            "http://169.254.170.23.evil.example/",
            "http://10.0.0.1/",
            "ftp://127.0.0.1/",
        ] {
            assert!(!asked(bad), "{bad}");
        }
    }
}
