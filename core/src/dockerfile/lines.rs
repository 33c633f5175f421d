//! Physical lines, and the logical ones that continuations make of them.

use super::{
    ast::{Escape, Span},
    directive::{self, Zone},
    error::{ParseError, Problem},
    limits,
};

/// Physical lines with their ends in place.
#[derive(Clone)]
pub(super) struct Lines<'a> {
    rest: &'a [u8],
    /// The number of the line read last; 0 before the first.
    pub number: u32,
    too_long: bool,
}

impl<'a> Lines<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Lines { rest: bytes, number: 0, too_long: false }
    }

    /// Set once a line was too long: reading ended before it.
    pub(super) fn too_long(&self) -> Option<ParseError> {
        let span = Span { first_line: self.number + 1, last_line: self.number + 1, column: None };
        self.too_long.then(|| ParseError::new(span, &Problem::LineTooLong))
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() || self.too_long {
            return None;
        }
        let newline = self.rest.iter().position(|b| *b == b'\n');
        if newline.unwrap_or(self.rest.len()) > limits::LINE_BYTES_MAX {
            self.too_long = true;
            return None;
        }
        let (line, rest) = self.rest.split_at(newline.map_or(self.rest.len(), |at| at + 1));
        self.rest = rest;
        self.number += 1;
        Some(line)
    }
}

/// An instruction's text: continuations joined, comments and blank lines within dropped.
pub(super) struct Logical<'a> {
    pub text: Vec<u8>,
    pub span: Span,
    /// Its first physical line.
    pub head: &'a [u8],
    pub comments: Vec<String>,
    pub empty_continuation: bool,
}

/// Joins physical lines; knows the directives.
pub(super) struct Joiner<'a> {
    pub lines: Lines<'a>,
    pub escape: Escape,
    zone: Zone,
    comments: Vec<String>,
}

impl<'a> Joiner<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Joiner {
            lines: Lines::new(bytes),
            escape: Escape::default(),
            zone: Zone::new(),
            comments: Vec::new(),
        }
    }

    /// The next instruction's text, or `None` at the end of the file. A bad directive is an error.
    pub(super) fn next(&mut self) -> Result<Option<Logical<'a>>, ParseError> {
        while let Some(head) = self.lines.next() {
            let bare = if self.lines.number == 1 {
                head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head)
            } else {
                head
            };
            let line = trim_start(trim_newline(bare));
            if line.starts_with(b"#") {
                self.comment(bare, line)?;
                continue;
            }
            self.zone.close();
            let (start, complete) = self.without_continuation(line);
            if complete && start.is_empty() {
                continue;
            }
            return Ok(Some(self.join(head, start, complete)));
        }
        Ok(None)
    }

    fn comment(&mut self, bare: &[u8], line: &[u8]) -> Result<(), ParseError> {
        let span =
            Span { first_line: self.lines.number, last_line: self.lines.number, column: None };
        let located = |problem| ParseError::new(span, &problem);
        match self.zone.read(line, "#").map_err(located)? {
            Some(found) if found.name == "escape" => {
                self.escape = directive::escape(&found.value).map_err(located)?;
            }
            Some(_) => {}
            None => {
                // BuildKit drops one byte of the unstripped line, so an indented comment keeps its sign.
                let text = String::from_utf8_lossy(&bare[1..]).trim().to_owned();
                if text.is_empty() { self.comments.clear() } else { self.comments.push(text) }
            }
        }
        Ok(())
    }

    fn join(&mut self, head: &'a [u8], start: &[u8], mut complete: bool) -> Logical<'a> {
        let first_line = self.lines.number;
        let mut text = start.to_vec();
        let mut empty_continuation = false;
        while !complete && let Some(line) = self.lines.next() {
            let stripped = trim_start(line);
            if stripped.starts_with(b"#") {
                continue;
            }
            if stripped.is_empty() {
                empty_continuation = true;
                continue;
            }
            let (part, ends) = self.without_continuation(trim_newline(line));
            text.extend_from_slice(part);
            complete = ends;
        }
        let column =
            head.len() - trim_start(head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head)).len();
        Logical {
            text,
            span: Span { first_line, last_line: self.lines.number, column: Some(column as u32) },
            head,
            comments: std::mem::take(&mut self.comments),
            empty_continuation,
        }
    }

    /// `line` without an escape character at its end, and whether the instruction ends here. There is no look further
    /// back than one character: an escaped escape character is none, three of them are no continuation either.
    fn without_continuation<'l>(&self, line: &'l [u8]) -> (&'l [u8], bool) {
        let escape = self.escape.as_char() as u8;
        let end = line.iter().rposition(|b| !matches!(b, b' ' | b'\t')).map_or(0, |last| last + 1);
        match &line[..end] {
            [before @ .., last] if *last == escape && before.last() != Some(&escape) => {
                (before, false)
            }
            _ => (line, true),
        }
    }
}

/// `line` without its end: every newline and carriage return there.
pub(super) fn trim_newline(line: &[u8]) -> &[u8] {
    let end = line.iter().rposition(|b| !matches!(b, b'\r' | b'\n')).map_or(0, |last| last + 1);
    &line[..end]
}

/// `line` without blanks in front, Unicode's included.
fn trim_start(line: &[u8]) -> &[u8] {
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        let Some(blank) = wide_blank(rest) else { return rest };
        rest = &rest[blank..];
    }
}

/// The bytes of the blank that `text` starts with, other than ASCII's but with the vertical tab.
fn wide_blank(text: &[u8]) -> Option<usize> {
    if text.first() == Some(&b'\x0b') {
        return Some(1);
    }
    if text.first()?.is_ascii() {
        return None;
    }
    let start = &text[..text.len().min(4)];
    let valid = start.utf8_chunks().next()?.valid().chars().next()?;
    valid.is_whitespace().then(|| valid.len_utf8())
}
