//! What a file from a URL is called, and how old it is.

use percent_encoding::percent_decode_str;
use url::Url;

use super::error::FetchError;
use crate::{registry::shown, tree::Timestamp};

/// What a file is called whose URL's path has no name.
const UNNAMED: &[u8] = b"__unnamed__";

/// The last part of the URL's path, decoded. The query, redirects and a `Content-Disposition` do not count.
///
/// # Errors
/// No file can be called that.
pub(super) fn file_name(url: &Url) -> Result<Vec<u8>, FetchError> {
    let path: Vec<u8> = percent_decode_str(url.path()).collect();
    let name = path.rsplit(|byte| *byte == b'/').find(|part| !part.is_empty());
    match name {
        None | Some(b".") => Ok(UNNAMED.to_vec()),
        Some(name) if is_plain(name) => Ok(name.to_vec()),
        Some(_) => Err(FetchError::Name { url: shown(url) }),
    }
}

fn is_plain(name: &[u8]) -> bool {
    name != b".." && name.len() <= 255 && !name.iter().any(u8::is_ascii_control)
}

/// The time of an HTTP date in any of its three forms (RFC 9110 section 5.6.7); 1970 for what is none.
pub(super) fn last_modified(text: Option<&str>) -> Timestamp {
    Timestamp::from_seconds(text.and_then(http_date).unwrap_or(0))
}

fn http_date(text: &str) -> Option<i64> {
    let text = text.trim();
    // The weekday follows from the date.
    let (format, date) = match text.split_once(", ") {
        Some((_, date)) if date.contains('-') => ("%d-%b-%y %H:%M:%S GMT", date),
        Some((_, date)) => ("%d %b %Y %H:%M:%S GMT", date),
        None => ("%b %e %H:%M:%S %Y", text.split_once(' ')?.1.trim()),
    };
    let date = jiff::fmt::strtime::parse(format, date).ok()?.to_datetime().ok()?;
    Some(date.to_zoned_datetime(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(url: &str) -> Option<Vec<u8>> {
        file_name(&Url::parse(url).unwrap()).ok()
    }

    #[test]
    fn names() {
        for (url, expected) in [
            ("http://h/files/plain.txt", &b"plain.txt"[..]),
            ("http://h/files/plain.txt?v=1/2&w=2", b"plain.txt"),
            ("http://h/files/", b"files"),
            ("http://h/files//", b"files"),
            ("http://h/", b"__unnamed__"),
            ("http://h", b"__unnamed__"),
            ("http://h/a%20b", b"a b"),
            ("http://h/a%2Fb", b"b"),
            ("http://h/%FF", b"\xff"),
            ("http://h/x%2F.", b"__unnamed__"),
            ("http://h/..%5Cx", b"..\\x"),
        ] {
            assert_eq!(name(url).as_deref(), Some(expected), "{url}");
        }
        let long = format!("http://h/{}", "x".repeat(256));
        for url in
            ["http://h/a%2F..%2F", "http://h/a%2F..", "http://h/a%00b", "http://h/%0a", &long]
        {
            assert_eq!(name(url), None, "{url}");
        }
    }

    #[test]
    fn dates() {
        for text in [
            "Thu, 01 Jan 2015 12:00:00 GMT",
            "Thursday, 01-Jan-15 12:00:00 GMT",
            "Thu Jan  1 12:00:00 2015",
        ] {
            assert_eq!(last_modified(Some(text)).seconds, 1_420_113_600, "{text}");
        }
        for text in ["", "yesterday", "Thu, 41 Jan 2015 12:00:00 GMT", "0"] {
            assert_eq!(last_modified(Some(text)), Timestamp::default(), "{text}");
        }
        assert_eq!(last_modified(None), Timestamp::default());
    }
}
