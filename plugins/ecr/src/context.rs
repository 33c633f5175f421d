//! What every call to AWS needs.

use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_smithy_types::{retry::RetryConfig, timeout::TimeoutConfig};
use aws_types::{SdkConfig, region::Region};

use crate::{files::Files, http::Http};

/// AWS throttles for seconds.
const TRIES: u32 = 6;

/// How patient calls are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) tries: u32,
    pub(crate) backoff_first: Duration,
    pub(crate) connect: Duration,
    pub(crate) attempt: Duration,
    /// The same for the metadata service: usually it answers at once or not at all.
    pub(crate) metadata_connect: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            tries: TRIES,
            backoff_first: Duration::from_millis(500),
            connect: Duration::from_secs(5),
            attempt: Duration::from_secs(30),
            metadata_connect: Duration::from_secs(1),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) files: Files,
    pub(crate) http: Http,
    pub(crate) pace: Pace,
}

/// Which endpoint of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flavour {
    pub(crate) fips: bool,
    pub(crate) dual_stack: bool,
}

impl Context {
    /// The SDK's configuration for calls in `region`, unsigned where there are no `credentials`. What the environment and
    /// the profiles say of endpoints holds.
    pub(crate) async fn sdk_config(
        &self,
        region: &str,
        credentials: Option<&Credentials>,
        flavour: Flavour,
    ) -> SdkConfig {
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .env(self.files.env.clone())
            .fs(self.files.fs.clone())
            .http_client(self.http.clone())
            .region(Region::new(region.to_owned()))
            .retry_config(self.retries())
            .timeout_config(self.timeouts());
        loader = match credentials {
            Some(credentials) => {
                loader.credentials_provider(SharedCredentialsProvider::new(credentials.clone()))
            }
            None => loader.no_credentials(),
        };
        // Only turned on here: off would override the environment.
        if flavour.fips {
            loader = loader.use_fips(true);
        }
        if flavour.dual_stack {
            loader = loader.use_dual_stack(true);
        }
        loader.load().await
    }

    fn retries(&self) -> RetryConfig {
        RetryConfig::standard()
            .with_max_attempts(self.pace.tries)
            .with_initial_backoff(self.pace.backoff_first)
    }

    fn timeouts(&self) -> TimeoutConfig {
        TimeoutConfig::builder()
            .connect_timeout(self.pace.connect)
            .read_timeout(self.pace.attempt)
            .operation_attempt_timeout(self.pace.connect + self.pace.attempt)
            .build()
    }

    /// Waits before the try after `failed` failures.
    pub(crate) async fn back_off(&self, failed: u32) {
        let doublings = failed.saturating_sub(1).min(6);
        tokio::time::sleep(self.pace.backoff_first.saturating_mul(1 << doublings)).await;
    }
}
