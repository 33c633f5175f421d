//! `WWW-Authenticate` (RFC 9110 section 11.6.1): several challenges in one header or in several, quoted strings.

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// More than any registry sends.
const HEADER_BYTES_MAX: usize = 8 << 10;

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The challenges that can be answered, Bearer first.
pub(crate) fn parse(headers: &HeaderMap) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE) {
        if let Ok(text) = std::str::from_utf8(value.as_bytes())
            && text.len() <= HEADER_BYTES_MAX
        {
            challenges.extend(parse_header(text));
        }
    }
    challenges.sort_by_key(|challenge| *challenge == Challenge::Basic);
    challenges
}

fn parse_header(text: &str) -> Vec<Challenge> {
    let mut schemes: Vec<(String, Vec<(String, String)>)> = Vec::new();
    for part in split_commas(text) {
        let (scheme, parameter) = split_scheme(part);
        if let Some(scheme) = scheme {
            schemes.push((scheme.to_ascii_lowercase(), Vec::new()));
        }
        if let (Some((_, parameters)), Some((name, value))) =
            (schemes.last_mut(), parameter.split_once('='))
        {
            parameters.push((name.trim().to_ascii_lowercase(), unquote(value.trim())));
        }
    }
    schemes.into_iter().filter_map(|(scheme, parameters)| known(&scheme, parameters)).collect()
}

fn known(scheme: &str, parameters: Vec<(String, String)>) -> Option<Challenge> {
    let take = |wanted: &str| {
        let found = parameters.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
    };
    match scheme {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer {
            realm: take("realm")?,
            service: take("service"),
            scope: take("scope"),
        }),
        _ => None,
    }
}

/// Splits at commas outside of quotes.
fn split_commas(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

/// `Bearer realm="…"` -> scheme and first parameter; `service="…"` -> no scheme.
fn split_scheme(part: &str) -> (Option<&str>, &str) {
    let token =
        part.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'-').count();
    let (name, rest) = part.split_at(token);
    if name.is_empty() || rest.trim_start().starts_with('=') {
        return (None, part);
    }
    (Some(name), rest.trim())
}

fn unquote(value: &str) -> String {
    let Some(inner) = value.strip_prefix('"') else { return value.to_owned() };
    let (mut text, mut escaped) = (String::new(), false);
    for c in inner.chars() {
        match c {
            _ if escaped => {
                escaped = false;
                text.push(c);
            }
            '\\' => escaped = true,
            '"' => break,
            _ => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&str]) -> Vec<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        parse(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer { realm: realm.into(), service: owned(service), scope: owned(scope) }
    }

    #[test]
    fn one_header() {
        let text = r#"Bearer realm="https://a/t",service="s",scope="repository:x:pull,push""#;
        let expected = bearer("https://a/t", Some("s"), Some("repository:x:pull,push"));
        assert_eq!(of(&[text]), [expected]);
        let ecr = r#"Basic realm="https://1.dkr.ecr.us-east-1.amazonaws.com/",service="ecr.amazonaws.com""#;
        assert_eq!(of(&[ecr]), [Challenge::Basic]);
        assert_eq!(of(&["Basic"]), [Challenge::Basic]);
    }

    #[test]
    fn several_challenges() {
        let expected = [bearer("https://a/t", Some("s"), None), Challenge::Basic];
        let joined = r#"Basic realm="x, y", Bearer realm="https://a/t", service=s"#;
        assert_eq!(of(&[joined]), expected);
        let separate = [r#"Basic realm="x""#, r#"bearer  Realm = "https://a/t" ,SERVICE="s""#];
        assert_eq!(of(&separate), expected);
        assert_eq!(of(&["Negotiate, NTLM abc=="]), []);
    }

    #[test]
    fn quoting() {
        let text = r#"Bearer realm="https://a/\"t\\",service="a\,b"#;
        assert_eq!(of(&[text]), [bearer("https://a/\"t\\", Some("a,b"), None)]);
        for odd in
            ["", ",,,", "=", "Bearer", "Bearer realm=", "\"", "Bearer \"", "Bearer realm=\"\\"]
        {
            assert_eq!(of(&[odd]), [], "{odd}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[ -~]{0,60}") {
            parse_header(&text);
        }
    }
}
