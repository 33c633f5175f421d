//! Patterns of `#`, `##`, `%`, `%%`, `/` and `//`: `*` and `?` only, a backslash before `* ? \` takes them literally.
//!
//! They become regular expressions of a linear-time engine. As in BuildKit, neither wildcard matches a newline.

use regex::Regex;

use super::Reason;

/// `value` without its shortest (or longest) start that matches `pattern`.
pub(super) fn trim_prefix(pattern: &str, value: &str, longest: bool) -> Result<String, Reason> {
    let regex = compile(pattern, longest, true)?;
    let end = regex.find(value).map_or(0, |found| found.end());
    Ok(value[end..].to_owned())
}

/// `value` without its shortest (or longest) end that matches `pattern`. The shortest match that ends at the end is not
/// the leftmost one, so both are turned round.
pub(super) fn trim_suffix(pattern: &str, value: &str, longest: bool) -> Result<String, Reason> {
    let reversed: String = value.chars().rev().collect();
    let kept = trim_prefix(&reverse_pattern(pattern), &reversed, longest)?;
    Ok(kept.chars().rev().collect())
}

/// `value` with the first match of `pattern`, or every one, replaced. The result may have `bytes_max` bytes.
pub(super) fn replace(
    pattern: &str,
    value: &str,
    replacement: &str,
    every: bool,
    bytes_max: usize,
) -> Result<String, Reason> {
    let regex = compile(pattern, true, false)?;
    let mut result = String::new();
    let mut copied = 0;
    for found in regex.find_iter(value).take(if every { usize::MAX } else { 1 }) {
        result.push_str(&value[copied..found.start()]);
        result.push_str(replacement);
        copied = found.end();
        if result.len() > bytes_max {
            return Err(Reason::TooLong(bytes_max));
        }
    }
    result.push_str(&value[copied..]);
    Ok(result)
}

fn compile(pattern: &str, longest: bool, anchored: bool) -> Result<Regex, Reason> {
    let invalid = |why: String| Reason::Pattern { pattern: pattern.to_owned(), why };
    let mut regex = String::from(if anchored { "^" } else { "" });
    let mut rest = pattern.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '*' if longest => regex.push_str(".*"),
            '*' => regex.push_str(".*?"),
            '?' => regex.push('.'),
            // `\}` and `\/` had to be written so for the braces' sake.
            '\\' if matches!(rest.peek(), Some('}' | '/')) => {}
            '\\' => match rest.next() {
                Some(c @ ('*' | '?' | '\\')) => push_literal(&mut regex, c),
                other => {
                    return Err(invalid(format!(
                        "invalid escape '\\{}'",
                        other.unwrap_or('\u{fffd}')
                    )));
                }
            },
            c => push_literal(&mut regex, c),
        }
    }
    Regex::new(&regex).map_err(|error| invalid(error.to_string()))
}

fn push_literal(regex: &mut String, c: char) {
    regex.push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
}

/// The pattern of the reversed text: characters reversed, each with the backslash before it.
fn reverse_pattern(pattern: &str) -> String {
    let mut parts = Vec::new();
    let mut rest = pattern.char_indices();
    while let Some((start, c)) = rest.next() {
        let end = match (c, rest.clone().next()) {
            ('\\', Some((next, escaped))) => {
                rest.next();
                next + escaped.len_utf8()
            }
            _ => start + c.len_utf8(),
        };
        parts.push(&pattern[start..end]);
    }
    parts.into_iter().rev().collect()
}
