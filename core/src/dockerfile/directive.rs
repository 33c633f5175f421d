//! Parser directives: `# syntax=`, `# escape=` and `# check=` in the first lines of a file.

use super::{ast::Escape, error::Problem};

const KNOWN: [&str; 3] = ["syntax", "escape", "check"];

/// The zone of directives at the top: it ends at the first line that is not a known directive.
pub(super) struct Zone {
    seen: Vec<&'static str>,
    open: bool,
}

/// One directive: its name in lower case, and its value without blanks around it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Directive {
    pub name: &'static str,
    pub value: String,
}

impl Zone {
    pub(super) fn new() -> Self {
        Zone { seen: Vec::new(), open: true }
    }

    /// The zone once a line has passed that is no comment.
    pub(super) fn close(&mut self) {
        self.open = false;
    }

    /// The directive in `line`, where the zone is open still; `prefix` begins a comment.
    pub(super) fn read(&mut self, line: &[u8], prefix: &str) -> Result<Option<Directive>, Problem> {
        if !self.open {
            return Ok(None);
        }
        let directive = line.strip_prefix(prefix.as_bytes()).and_then(directive);
        match &directive {
            None => self.open = false,
            Some(Directive { name, .. }) if self.seen.contains(name) => {
                return Err(Problem::DirectiveRepeated { name });
            }
            Some(Directive { name, .. }) => self.seen.push(name),
        }
        Ok(directive)
    }
}

/// The escape character that a directive names.
pub(super) fn escape(value: &str) -> Result<Escape, Problem> {
    match value {
        "\\" => Ok(Escape::Backslash),
        "`" => Ok(Escape::Backtick),
        _ => Err(Problem::EscapeToken { value: value.to_owned() }),
    }
}

/// `name = value` behind the comment's sign, for a known name.
fn directive(comment: &[u8]) -> Option<Directive> {
    let comment = String::from_utf8_lossy(comment);
    let (name, value) = comment.trim_start().split_once('=')?;
    let name = name.trim_end_matches(is_blank);
    let name = KNOWN.into_iter().find(|known| known.eq_ignore_ascii_case(name))?;
    let trimmed = value.trim_matches(is_blank);
    // A value of blanks alone is the last of them.
    let value =
        if trimmed.is_empty() { value.get(value.len().checked_sub(1)?..)? } else { trimmed };
    Some(Directive { name, value: value.to_owned() })
}

fn is_blank(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\x0c' | '\r' | ' ')
}

/// The value of directive `name` in a comment's text, wherever the comment stands.
pub(super) fn of_comment(comment: &str, name: &str) -> Option<String> {
    directive(comment.as_bytes()).filter(|found| found.name == name).map(|found| found.value)
}

pub(super) fn first_word(value: &str) -> &str {
    value.split(' ').next().unwrap_or_default()
}

/// A directive found by [`detect`]: its value's first word, and its 1-based line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Detected {
    pub value: String,
    pub line: u32,
}

/// `syntax`, as BuildKit looks for it before it parses anything: behind a `#!` line too, in `//` comments, and as the
/// key of a JSON document.
pub(super) fn detect_syntax(bytes: &[u8]) -> Option<Detected> {
    let (bytes, skipped) = without_shebang(bytes);
    detect(bytes, skipped, "syntax", "#")
        .or_else(|| detect(bytes, skipped, "syntax", "//"))
        .or_else(|| detect_json(bytes, skipped))
}

/// `check`, which may stand behind a `#!` line too.
pub(super) fn detect_check(bytes: &[u8]) -> Option<Detected> {
    let (bytes, skipped) = without_shebang(bytes);
    detect(bytes, skipped, "check", "#")
}

fn without_shebang(bytes: &[u8]) -> (&[u8], u32) {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if !bytes.starts_with(b"#!") {
        return (bytes, 0);
    }
    let end = bytes.iter().position(|b| *b == b'\n').map_or(bytes.len(), |newline| newline + 1);
    (&bytes[end..], 1)
}

fn detect(bytes: &[u8], skipped: u32, name: &str, prefix: &str) -> Option<Detected> {
    let mut zone = Zone::new();
    for (line, number) in bytes.split(|b| *b == b'\n').zip(skipped + 1..) {
        let directive = zone.read(line.strip_suffix(b"\r").unwrap_or(line), prefix).ok()??;
        if directive.name == name {
            return Some(Detected { value: first_word(&directive.value).to_owned(), line: number });
        }
    }
    None
}

fn detect_json(bytes: &[u8], skipped: u32) -> Option<Detected> {
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    let document: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    Some(Detected { value: document.get("syntax")?.as_str()?.to_owned(), line: skipped + 1 })
}

/// Whether a frontend image is (a copy of) the Dockerfile frontend, whose language is the one built in.
pub(super) fn is_dockerfile_frontend(image: &str) -> bool {
    let name = image.split('@').next().unwrap_or_default();
    let last = name.rsplit('/').next().unwrap_or_default();
    let last = last.split(':').next().unwrap_or_default();
    let shown = image.chars().all(|c| !c.is_control() && !c.is_whitespace());
    shown && matches!(last, "dockerfile" | "dockerfile-upstream")
}

/// Whether a frontend image asks for the features of the labs channel.
pub(super) fn is_labs(image: &str) -> bool {
    image.split('@').next().is_some_and(|name| name.ends_with("labs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Option<Directive> {
        Zone::new().read(line.as_bytes(), "#").unwrap()
    }

    #[test]
    fn blanks_and_case() {
        let escape = |value: &str| Some(Directive { name: "escape", value: value.to_owned() });
        assert_eq!(read("#escape=`"), escape("`"));
        assert_eq!(read("#  Escape \t= ` "), escape("`"));
        assert_eq!(read("# escape=  "), escape(" "));
        for line in ["# escape=", "# escapes=`", "escape=`", "# two words=x", "#", ""] {
            assert_eq!(read(line), None, "{line}");
        }
    }

    #[test]
    fn the_zone_ends_and_knows_repeats() {
        let mut zone = Zone::new();
        assert!(zone.read(b"# check=skip=all", "#").unwrap().is_some());
        assert!(zone.read(b"# Check=skip=all", "#").is_err());
        let mut zone = Zone::new();
        assert!(zone.read(b"# words", "#").unwrap().is_none());
        assert!(zone.read(b"# escape=`", "#").unwrap().is_none());
    }

    #[test]
    fn syntax_is_found_in_other_comments() {
        let found =
            |text: &str| detect_syntax(text.as_bytes()).map(|found| (found.value, found.line));
        let syntax = |line: u32| Some(("a/b:1".to_owned(), line));
        assert_eq!(found("# syntax=a/b:1\nFROM x"), syntax(1));
        assert_eq!(
            found("\u{feff}#!/bin/sh\n# check=skip=all\r\n# syntax = a/b:1 rest\r\n"),
            syntax(3)
        );
        assert_eq!(found("// syntax=a/b:1\n"), syntax(1));
        assert_eq!(found("{\"syntax\": \"a/b:1\"}"), syntax(1));
        assert_eq!(found("FROM x\n# syntax=a/b:1\n"), None);
    }

    #[test]
    fn frontends() {
        for image in [
            "docker/dockerfile",
            "docker/dockerfile:1",
            "mirror.example:5000/hub/docker/dockerfile:1.7@sha256:0",
        ] {
            assert!(is_dockerfile_frontend(image), "{image}");
        }
        for image in
            ["", "example/nix", "docker/dockerfile/x", "docker/dockerfile\u{7}:1/dockerfile"]
        {
            assert!(!is_dockerfile_frontend(image), "{image}");
        }
        assert!(is_labs("docker/dockerfile:1-labs@sha256:0") && !is_labs("docker/dockerfile:1"));
    }
}
