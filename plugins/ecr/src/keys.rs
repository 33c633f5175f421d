//! AWS keys, and the JSON that metadata services give them in.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use serde::Deserialize;

use crate::text::printable;

/// Keys that live longer than this are renewed so long before their end, others at half of what is left.
const RENEW_BEFORE: Duration = Duration::from_secs(300);

/// Keys and where they came from.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    pub(crate) credentials: Credentials,
    /// For messages.
    pub(crate) provider: String,
}

impl Keys {
    /// When to get others, if they end at all.
    pub(crate) fn renew_at(&self, now: SystemTime) -> Option<SystemTime> {
        self.credentials.expiry().map(|end| renewal(now, end))
    }
}

/// When to renew what ends at `end`.
pub(crate) fn renewal(now: SystemTime, end: SystemTime) -> SystemTime {
    let left = end.duration_since(now).unwrap_or_default();
    now + left.saturating_sub(RENEW_BEFORE).max(left / 2)
}

/// The answer of IMDS and of container credential endpoints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    access_key_id: Option<String>,
    secret_access_key: Option<String>,
    token: Option<String>,
    expiration: Option<String>,
    #[serde(alias = "code")]
    code: Option<String>,
    #[serde(alias = "message")]
    message: Option<String>,
}

/// Reads keys out of a metadata service's answer.
///
/// # Errors
/// Says what is wrong with it, without its content but for an error's own words.
pub(crate) fn read(json: &[u8], provider: &'static str) -> Result<Credentials, String> {
    let document: Document = serde_json::from_slice(json)
        .map_err(|error| format!("its answer is not JSON (line {})", error.line()))?;
    let failed = document.code.as_deref().filter(|code| *code != "Success");
    if let Some(code) = failed {
        let message = printable(&document.message.unwrap_or_default(), 300);
        return Err(format!("it answered {}: {message}", printable(code, 100)));
    }
    let (Some(id), Some(secret)) = (document.access_key_id, document.secret_access_key) else {
        return Err("its answer holds no keys".into());
    };
    let expiry = document.expiration.as_deref().map(instant).transpose()?;
    Ok(Credentials::new(id, secret, document.token, expiry, provider))
}

fn instant(text: &str) -> Result<SystemTime, String> {
    let time: jiff::Timestamp =
        text.parse().map_err(|_| format!("its Expiration {:?} is no time", printable(text, 60)))?;
    let seconds = u64::try_from(time.as_second()).unwrap_or_default();
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let whole = br#"{"Code":"Success","AccessKeyId":"i","SecretAccessKey":"s","Token":"t",
            "Expiration":"2033-05-18T03:33:20Z","LastUpdated":"x"}"#;
        let keys = read(whole, "test").unwrap();
        assert_eq!((keys.access_key_id(), keys.session_token()), ("i", Some("t")));
        assert_eq!(
            keys.expiry(),
            Some(SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000))
        );
        let refused = br#"{"code":"AccessDenied","message":"no\u001b[2J"}"#;
        let error = read(refused, "test").unwrap_err();
        assert!(error.contains("AccessDenied") && !error.contains('\u{1b}'), "{error}");
        for bad in [
            &b"<html>"[..],
            b"{}",
            br#"{"AccessKeyId":"i"}"#,
            br#"{"AccessKeyId":"i","SecretAccessKey":"hunter2","Expiration":"soon"}"#,
        ] {
            assert!(!read(bad, "test").unwrap_err().contains("hunter2"));
        }
    }

    #[test]
    fn renewal_comes_before_the_end() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        for (left, renewed) in [(3600, 3300), (400, 200), (10, 5), (0, 0)] {
            let at = renewal(now, now + Duration::from_secs(left));
            assert_eq!(at, now + Duration::from_secs(renewed), "{left}");
        }
        assert_eq!(renewal(now, SystemTime::UNIX_EPOCH), now);
    }
}
