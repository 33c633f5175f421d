//! The patterns of `.dockerignore`, `--exclude` and `--parents`, with the semantics of moby's patternmatcher.
//!
//! What a pattern means there is what its translation into one of Go's regular expressions means, oddities included, so
//! the same is done here: pattern -> Go's syntax -> the regex crate's, which matches in linear time.

mod regular;

use regex::Regex;

use super::glob::{Glob, GlobError};

/// A list of patterns, of which the last one that matches counts.
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    patterns: Vec<Pattern>,
    exceptions: bool,
}

#[derive(Clone, Debug)]
struct Pattern {
    /// Cleaned, without `!`.
    text: Vec<u8>,
    exception: bool,
    matcher: Matcher,
}

#[derive(Clone, Debug)]
enum Matcher {
    Exact,
    /// All that begins so.
    Prefix(Vec<u8>),
    /// All that ends so; what begins with a slash also matches without it.
    Suffix(Vec<u8>),
    Regular(Regex),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("a lone \"!\" is no pattern")]
    LoneException,
    #[error("malformed pattern \"{}\"", .0.escape_ascii())]
    Malformed(Vec<u8>),
}

/// Which patterns matched a path or one of its ancestors: handed from a directory to what it holds.
pub type Matched = Vec<bool>;

impl Patterns {
    /// Blank patterns do not count; the others are cleaned as paths are.
    pub fn parse<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, PatternError> {
        let mut patterns = Patterns::default();
        for line in lines {
            let line = trim_space(line);
            if line.is_empty() {
                continue;
            }
            let pattern = Pattern::parse(clean(line))?;
            patterns.exceptions |= pattern.exception;
            patterns.patterns.push(pattern);
        }
        Ok(patterns)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether a pattern begins with `!`.
    pub fn has_exceptions(&self) -> bool {
        self.exceptions
    }

    /// Whether `path` matches, given what its directory's look-up gave (`None` at the root).
    pub fn matches(&self, path: &[u8], parent: Option<&Matched>) -> (bool, Matched) {
        let text = regular::go_string(path);
        let mut matched = false;
        let mut each = vec![false; self.patterns.len()];
        for (at, pattern) in self.patterns.iter().enumerate() {
            let inherited = parent.is_some_and(|parent| parent.get(at) == Some(&true));
            // What can't change the outcome here is not remembered for the paths below either, as moby does it.
            if !inherited && pattern.exception != matched {
                continue;
            }
            each[at] = inherited || pattern.matches(path, &text);
            if each[at] {
                matched = !pattern.exception;
            }
        }
        (matched, each)
    }

    /// Whether something below `directory` may match although the directory does not: what `select` says of each pattern
    /// decides which ones are looked at.
    fn may_match_below(&self, directory: &[u8], exceptions: bool) -> bool {
        let patterns = self.patterns.iter().filter(|pattern| pattern.exception == exceptions);
        patterns.map(|pattern| pattern.without_trailing_star()).any(|text| {
            has_special(text)
                || text.strip_prefix(directory).is_some_and(|rest| rest.starts_with(b"/"))
        })
    }

    /// Whether a path below an unmatched directory can match.
    pub fn may_include_below(&self, directory: &[u8]) -> bool {
        self.may_match_below(directory, false)
    }

    /// Whether a `!` pattern can take back a path below a matched directory.
    pub fn may_except_below(&self, directory: &[u8]) -> bool {
        self.may_match_below(directory, true)
    }
}

impl Pattern {
    fn parse(cleaned: Vec<u8>) -> Result<Self, PatternError> {
        let (exception, text) = match cleaned.strip_prefix(b"!") {
            Some(b"") => return Err(PatternError::LoneException),
            Some(rest) => (true, rest.to_vec()),
            None => (false, cleaned),
        };
        let malformed = || PatternError::Malformed(text.clone());
        Glob::parse(&text).map_err(|GlobError| malformed())?;
        let matcher = regular::compile(&text).ok_or_else(malformed)?;
        Ok(Pattern { text, exception, matcher })
    }

    fn matches(&self, path: &[u8], text: &str) -> bool {
        match &self.matcher {
            Matcher::Exact => path == self.text,
            Matcher::Prefix(prefix) => path.starts_with(prefix),
            Matcher::Suffix(suffix) => {
                path.ends_with(suffix) || suffix.strip_prefix(b"/").is_some_and(|name| name == path)
            }
            Matcher::Regular(regex) => regex.is_match(text),
        }
    }

    fn without_trailing_star(&self) -> &[u8] {
        let text = self.text.strip_suffix(b"/**").unwrap_or(&self.text);
        text.strip_suffix(b"/*").unwrap_or(text)
    }
}

fn has_special(text: &[u8]) -> bool {
    text.iter().any(|byte| b"*[]?^\\".contains(byte))
}

/// Go's `filepath.Clean`. Never empty: what is nothing becomes `.`.
pub(super) fn clean(path: &[u8]) -> Vec<u8> {
    let rooted = path.first() == Some(&b'/');
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if parts.last().is_some_and(|last| *last != b"..") => drop(parts.pop()),
            b".." if rooted => {}
            _ => parts.push(part),
        }
    }
    let joined = parts.join(&b'/');
    match (rooted, joined.is_empty()) {
        (true, _) => [b"/", joined.as_slice()].concat(),
        (false, true) => b".".to_vec(),
        (false, false) => joined,
    }
}

/// Without white space around, as Unicode defines it.
pub(crate) fn trim_space(bytes: &[u8]) -> &[u8] {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.trim().as_bytes(),
        Err(_) => {
            let space = |byte: &u8| byte.is_ascii_whitespace() || *byte == 0x0b;
            let start = bytes.iter().position(|byte| !space(byte)).unwrap_or(bytes.len());
            let end = bytes.iter().rposition(|byte| !space(byte)).map_or(start, |at| at + 1);
            &bytes[start..end]
        }
    }
}

#[cfg(test)]
mod tests;
