//! When to try again, and after how long.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::options::Limits;

/// Exponential with full jitter before try `failed + 1`; never before what the registry asked for.
pub(crate) fn delay(limits: &Limits, failed: u32, asked: Option<Duration>) -> Duration {
    let doublings = failed.saturating_sub(1).min(20);
    let ceiling = limits.backoff_first.saturating_mul(1 << doublings).min(limits.backoff_max);
    let jitter = ceiling.mul_f64(random_fraction());
    match asked {
        Some(asked) => asked + jitter.min(Duration::from_secs(1)),
        None => jitter,
    }
}

/// In [0, 1). Jitter needs no better source than the seed of the standard library's hash maps.
fn random_fraction() -> f64 {
    let bits = RandomState::new().build_hasher().finish() >> 11;
    bits as f64 / (1_u64 << 53) as f64
}

/// `Retry-After` in seconds or as a date (RFC 9110 section 10.2.3). What can't be read counts as absent.
pub(crate) fn retry_after(headers: &HeaderMap, now: jiff::Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    let seconds = date.as_second().saturating_sub(now.as_second());
    Some(Duration::from_secs(seconds.try_into().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, text.parse().unwrap());
        retry_after(&headers, "2026-01-02T03:04:05Z".parse().unwrap())
    }

    #[test]
    fn reads_seconds_and_dates() {
        assert_eq!(asked("7"), Some(Duration::from_secs(7)));
        assert_eq!(asked("Fri, 02 Jan 2026 03:04:35 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(asked("Fri, 02 Jan 2015 03:04:35 GMT"), Some(Duration::ZERO));
        assert_eq!(asked("99999999999999999999999"), Some(Duration::from_secs(u64::MAX)));
        assert_eq!(asked("soon"), None);
        assert_eq!(asked("-5"), None);
        assert_eq!(retry_after(&HeaderMap::new(), jiff::Timestamp::UNIX_EPOCH), None);
    }

    #[test]
    fn backs_off_within_bounds() {
        let limits = Limits::default();
        for failed in 1..100 {
            assert!(delay(&limits, failed, None) <= limits.backoff_max);
        }
        let asked = Duration::from_secs(9);
        assert!((asked..=asked + Duration::from_secs(1)).contains(&delay(&limits, 3, Some(asked))));
    }
}
