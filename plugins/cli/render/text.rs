//! Makes foreign text harmless: a step's output, names and messages that quote input (HOSTILE X101).
//!
//! Escape sequences could rewrite what stands above, set a clipboard or a window title; `##[name]` and `##vso[name]`
//! are commands to GitHub's and Azure's runners wherever they stand in a line.

use std::fmt::Write as _;

/// What becomes of colours (`ESC [ … m`). Every other escape sequence is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colors {
    Drop,
    /// Kept, and reset at the end.
    Keep,
}

const RESET: &str = "\u{1b}[0m";

/// One line that can be shown anywhere: no control characters, no escape sequences, no runner commands.
pub fn printable(bytes: &[u8], colors: Colors) -> String {
    let text = String::from_utf8_lossy(bytes);
    if bytes.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~')) {
        return defang(text.into_owned());
    }
    let mut line = String::with_capacity(text.len());
    let mut colored = false;
    let mut rest: &str = &text;
    while let Some(character) = rest.chars().next() {
        if character == '\u{1b}' {
            let (sequence, after) = split_escape(rest);
            if colors == Colors::Keep && is_color(sequence) {
                line.push_str(sequence);
                colored = true;
            }
            rest = after;
        } else {
            push(&mut line, character);
            rest = &rest[character.len_utf8()..];
        }
    }
    if colored {
        line.push_str(RESET);
    }
    defang(line)
}

/// One line of a message that may quote input.
pub fn message(text: &str) -> String {
    printable(text.as_bytes(), Colors::Drop)
}

/// At most `characters` of a line, and a mark where something is left out.
pub fn shortened(line: String, characters: usize) -> String {
    match line.char_indices().nth(characters) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

fn push(line: &mut String, character: char) {
    match character {
        '\t' => line.push('\t'),
        '\n' => line.push_str("\\n"),
        '\r' => line.push_str("\\r"),
        _ if character.is_control() && character.is_ascii() => {
            let _ = write!(line, "\\x{:02x}", u32::from(character));
        }
        _ if character.is_control() || is_invisible(character) => {
            let _ = write!(line, "\\u{{{:x}}}", u32::from(character));
        }
        _ => line.push(character),
    }
}

/// Characters that change the order or the lines of what is shown around them.
fn is_invisible(character: char) -> bool {
    matches!(character,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Splits an escape sequence (ECMA-48) off the front of `text`, which begins with ESC. One that does not end takes all.
fn split_escape(text: &str) -> (&str, &str) {
    let after = &text[1..];
    let length = match after.chars().next() {
        Some('[') => {
            let body = &after[1..];
            1 + body.find(|c| matches!(c, '\u{40}'..='\u{7e}')).map_or(body.len(), |at| at + 1)
        }
        Some(']' | 'P' | 'X' | '^' | '_') => string_end(after),
        Some(_) => {
            let end = after.find(|c: char| !matches!(c, '\u{20}'..='\u{2f}'));
            end.map_or(after.len(), |at| at + after[at..].chars().next().map_or(0, char::len_utf8))
        }
        None => 0,
    };
    text.split_at(1 + length)
}

/// The length of a control string up to BEL or ESC \.
fn string_end(text: &str) -> usize {
    let bell = text.find('\u{7}').map(|at| at + 1);
    let terminator = text.find("\u{1b}\\").map(|at| at + 2);
    match (bell, terminator) {
        (Some(one), Some(other)) => one.min(other),
        (one, other) => one.or(other).unwrap_or(text.len()),
    }
}

fn is_color(sequence: &str) -> bool {
    let body = sequence.strip_prefix("\u{1b}[").and_then(|body| body.strip_suffix('m'));
    body.is_some_and(|body| body.bytes().all(|byte| byte.is_ascii_digit() || b";:".contains(&byte)))
}

/// Puts a space into `##[`, `##vso[` and the like.
fn defang(line: String) -> String {
    if !line.contains("##") {
        return line;
    }
    let mut safe = String::with_capacity(line.len() + 8);
    let mut rest = line.as_str();
    while let Some(at) = rest.find("##") {
        let (before, after) = rest.split_at(at + 2);
        safe.push_str(before);
        if after.trim_start_matches(|c: char| c.is_ascii_alphabetic()).starts_with('[') {
            safe.push(' ');
        }
        // The second # may begin another pair.
        rest = after;
        if after.starts_with("#[") {
            safe.push_str("# ");
            rest = &after[1..];
        }
    }
    safe.push_str(rest);
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        printable(text.as_bytes(), Colors::Drop)
    }

    #[test]
    fn escape_sequences_are_dropped() {
        for (text, expected) in [
            ("plain\ttext", "plain\ttext"),
            ("\u{1b}[31mred\u{1b}[0m!", "red!"),
            ("\u{1b}]0;title\u{7}after", "after"),
            ("\u{1b}]52;c;AAAA\u{1b}\\after", "after"),
            ("\u{1b}Pq#0\u{1b}\\after", "after"),
            ("\u{1b}(Bafter", "after"),
            ("\u{1b}cafter", "after"),
            ("\u{1b}[2J\u{1b}[Hafter", "after"),
            ("before\u{1b}]0;never ends", "before"),
            ("before\u{1b}[12", "before"),
            ("before\u{1b}", "before"),
            ("before\u{1b}é after", "before after"),
        ] {
            assert_eq!(shown(text), expected, "{text:?}");
        }
    }

    #[test]
    fn control_and_direction_characters_are_made_visible() {
        assert_eq!(shown("a\u{8}b\u{7f}"), "a\\x08b\\x7f");
        assert_eq!(shown("a\nb\rc"), "a\\nb\\rc");
        assert_eq!(shown("\u{9b}31m"), "\\u{9b}31m");
        assert_eq!(shown("a\u{202e}b\u{2028}"), "a\\u{202e}b\\u{2028}");
        assert_eq!(printable(b"a\xffb", Colors::Drop), "a\u{fffd}b");
    }

    #[test]
    fn colors_may_stay_and_are_reset() {
        let kept = printable(b"\x1b[1;31mred\x1b[2K\x1b]0;t\x07", Colors::Keep);
        assert_eq!(kept, "\u{1b}[1;31mred\u{1b}[0m");
        assert_eq!(printable(b"\x1b[?25lx", Colors::Keep), "x");
        assert_eq!(printable(b"x", Colors::Keep), "x");
    }

    #[test]
    fn runner_commands_are_broken_wherever_they_stand() {
        for text in [
            "##[add-mask]x",
            "a ##[x]",
            "###[x]",
            "##vso[task.set]x",
            "####[x]",
            "##\u{1b}[0m[x]",
            "#\u{1b}[0m#[x]",
        ] {
            let line = shown(text);
            assert!(!line.contains("##[") && !line.contains("##vso["), "{text:?} gave {line}");
        }
        assert_eq!(shown("## heading ##"), "## heading ##");
    }

    #[test]
    fn shortening_counts_characters() {
        assert_eq!(shortened("äöü".into(), 2), "äö…");
        assert_eq!(shortened("äö".into(), 2), "äö");
    }
}
