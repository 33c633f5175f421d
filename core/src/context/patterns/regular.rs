//! One pattern as a matcher: through the regular expression that moby would give to Go.

use std::{iter::Peekable, str::Chars};

use regex::RegexBuilder;

use super::Matcher;

/// A pattern of this many bytes and more is not compiled.
const PATTERN_BYTES_MAX: usize = 64 * 1024;
/// What one compiled pattern may take.
const COMPILED_BYTES_MAX: usize = 64 << 20;

/// Bytes as Go reads them rune by rune: each byte that belongs to no character is U+FFFD.
pub(super) fn go_string(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|_| text.push(char::REPLACEMENT_CHARACTER));
    }
    text
}

/// `None` where Go would refuse the expression.
pub(super) fn compile(pattern: &[u8]) -> Option<Matcher> {
    if pattern.len() >= PATTERN_BYTES_MAX {
        return None;
    }
    let text = go_string(pattern);
    let (expression, kind) = go_expression(text.strip_prefix('\u{feff}').unwrap_or(&text));
    Some(match kind {
        Shape::Exact => Matcher::Exact,
        Shape::Prefix => Matcher::Prefix(pattern[..pattern.len() - 2].to_vec()),
        Shape::Suffix => Matcher::Suffix(pattern[2..].to_vec()),
        Shape::Regular => {
            let mut builder = RegexBuilder::new(&translate(&expression)?);
            Matcher::Regular(builder.size_limit(COMPILED_BYTES_MAX).build().ok()?)
        }
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Exact,
    Prefix,
    Suffix,
    Regular,
}

/// The expression in Go's syntax, and whether it is needed at all. The rules are moby's, down to their oddities.
fn go_expression(pattern: &str) -> (String, Shape) {
    let (mut out, mut shape) = (String::from("^"), Shape::Exact);
    let mut characters = pattern.chars().peekable();
    let mut first = true;
    while let Some(character) = characters.next() {
        match character {
            '*' if characters.next_if_eq(&'*').is_some() => {
                characters.next_if_eq(&'/');
                shape = double_star(&mut out, characters.peek().is_none(), shape);
                if first {
                    shape = Shape::Suffix;
                }
            }
            '*' | '?' => {
                out.push_str(if character == '*' { "[^/]*" } else { "[^/]" });
                shape = Shape::Regular;
            }
            '.' | '+' | '(' | ')' | '|' | '{' | '}' | '$' => out.extend(['\\', character]),
            '\\' => {
                out.push('\\');
                if let Some(escaped) = characters.next() {
                    out.push(escaped);
                    shape = Shape::Regular;
                }
            }
            '[' | ']' => {
                out.push(character);
                shape = Shape::Regular;
            }
            _ => out.push(character),
        }
        first = false;
    }
    out.push('$');
    (out, shape)
}

fn double_star(out: &mut String, at_end: bool, shape: Shape) -> Shape {
    if !at_end {
        // One is as good as several in a row, and far cheaper.
        if !out.ends_with("(.*/)?") {
            out.push_str("(.*/)?");
        }
        return Shape::Regular;
    }
    if shape == Shape::Exact {
        return Shape::Prefix;
    }
    out.push_str(".*");
    Shape::Regular
}

/// From Go's syntax into the regex crate's, for what `go_expression` writes. `None` where Go refuses it.
fn translate(expression: &str) -> Option<String> {
    let mut out = String::with_capacity(expression.len() * 2);
    let mut characters = expression.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '[' => class(&mut characters, &mut out)?,
            '\\' => out.push_str(&escape(&mut characters)?),
            '.' => out.push_str("[^\\n]"),
            '^' | '$' | '*' | '?' | '(' | ')' => out.push(character),
            _ => push_literal(&mut out, character),
        }
    }
    Some(out)
}

fn push_literal(out: &mut String, character: char) {
    out.push_str(&regex::escape(character.encode_utf8(&mut [0; 4])));
}

/// What follows a backslash outside of a class.
fn escape(characters: &mut Peekable<Chars<'_>>) -> Option<String> {
    Some(match characters.peek()? {
        'b' | 'B' | 'A' | 'z' => {
            let assertion = characters.next()?;
            match assertion {
                'b' => "(?-u:\\b)".into(),
                'B' => "(?-u:\\B)".into(),
                other => format!("\\{other}"),
            }
        }
        _ => match class_escape(characters)? {
            Item::Set(set) => set,
            Item::One(character) => regex::escape(character.encode_utf8(&mut [0; 4])),
        },
    })
}

/// A member of a class, or one escaped character.
enum Item {
    One(char),
    /// Several, in the regex crate's syntax.
    Set(String),
}

/// What follows a backslash: the escapes that Go knows and a pattern can reasonably hold.
fn class_escape(characters: &mut Peekable<Chars<'_>>) -> Option<Item> {
    let set = |text: &str| Some(Item::Set(text.to_owned()));
    match characters.next()? {
        'd' => set("[0-9]"),
        'D' => set("[^0-9]"),
        's' => set("[\\t\\n\\x0c\\r ]"),
        'S' => set("[^\\t\\n\\x0c\\r ]"),
        'w' => set("[0-9A-Za-z_]"),
        'W' => set("[^0-9A-Za-z_]"),
        'a' => Some(Item::One('\x07')),
        'f' => Some(Item::One('\x0c')),
        'n' => Some(Item::One('\n')),
        'r' => Some(Item::One('\r')),
        't' => Some(Item::One('\t')),
        'v' => Some(Item::One('\x0b')),
        'x' => hexadecimal(characters).map(Item::One),
        other if other.is_ascii() && !other.is_ascii_alphanumeric() => Some(Item::One(other)),
        _ => None,
    }
}

fn hexadecimal(characters: &mut Peekable<Chars<'_>>) -> Option<char> {
    let digits: String = if characters.next_if_eq(&'{').is_some() {
        characters.by_ref().take_while(|character| *character != '}').collect()
    } else {
        characters.by_ref().take(2).collect()
    };
    char::from_u32(u32::from_str_radix(&digits, 16).ok()?)
}

/// What follows a `[`, up to its `]`, as Go reads it: a `]` in first place is literal.
fn class(characters: &mut Peekable<Chars<'_>>, out: &mut String) -> Option<()> {
    out.push('[');
    if characters.next_if_eq(&'^').is_some() {
        out.push('^');
    }
    let mut first = true;
    while first || characters.peek() != Some(&']') {
        first = false;
        let low = match class_item(characters)? {
            Item::Set(set) => {
                out.push_str(&set);
                continue;
            }
            Item::One(low) => low,
        };
        let high = class_range_end(characters)?.unwrap_or(low);
        if high < low {
            return None;
        }
        out.push_str(&format!("\\x{{{:x}}}-\\x{{{:x}}}", u32::from(low), u32::from(high)));
    }
    characters.next();
    out.push(']');
    Some(())
}

fn class_item(characters: &mut Peekable<Chars<'_>>) -> Option<Item> {
    match characters.next()? {
        '\\' => class_escape(characters),
        '[' if characters.peek() == Some(&':') => posix_class(characters),
        character => Some(Item::One(character)),
    }
}

/// `-x` after the first character of a range. A `-` before the closing bracket is literal and left for the next item.
fn class_range_end(characters: &mut Peekable<Chars<'_>>) -> Option<Option<char>> {
    let mut ahead = characters.clone();
    if ahead.next() != Some('-') || ahead.peek().is_none_or(|next| *next == ']') {
        return Some(None);
    }
    *characters = ahead;
    let high = match characters.next()? {
        '\\' => class_escape(characters)?,
        character => Item::One(character),
    };
    match high {
        Item::One(high) => Some(Some(high)),
        Item::Set(_) => None,
    }
}

/// `[:alpha:]` and the like; without a closing `:]` the bracket is literal.
fn posix_class(characters: &mut Peekable<Chars<'_>>) -> Option<Item> {
    const NAMES: [&str; 14] = [
        "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct",
        "space", "upper", "word", "xdigit",
    ];
    let rest: String = characters.clone().skip(1).collect();
    let Some((name, _)) = rest.split_once(":]") else { return Some(Item::One('[')) };
    let plain = name.strip_prefix('^').unwrap_or(name);
    if !NAMES.contains(&plain) {
        return None;
    }
    let _ = characters.nth(name.chars().count() + 2);
    Some(Item::Set(format!("[:{name}:]")))
}
