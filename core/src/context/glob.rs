//! Go's `filepath.Match`: the wildcards of COPY and ADD.

/// A parsed wildcard. Works on bytes; `?` and classes take a whole UTF-8 character, or one byte that begins none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    tokens: Vec<Token>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// `*`: any bytes but `/`.
    Star,
    /// `?`: one character but `/`.
    Any,
    Byte(u8),
    /// `[…]`: one character, `/` too.
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// The pattern is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed wildcard")]
pub struct GlobError;

impl Glob {
    /// Parses all of the pattern, so that a malformed one is an error whatever it is matched with.
    pub fn parse(pattern: &[u8]) -> Result<Self, GlobError> {
        let (mut tokens, mut rest) = (Vec::new(), pattern);
        while let Some((first, after)) = rest.split_first() {
            rest = after;
            tokens.push(match first {
                b'*' => Token::Star,
                b'?' => Token::Any,
                b'[' => parse_class(&mut rest)?,
                b'\\' => {
                    let (literal, after) = rest.split_first().ok_or(GlobError)?;
                    rest = after;
                    Token::Byte(*literal)
                }
                byte => Token::Byte(*byte),
            });
        }
        Ok(Glob { tokens })
    }

    /// Whether a class is in it, which may match a slash.
    pub fn has_class(&self) -> bool {
        self.tokens.iter().any(|token| matches!(token, Token::Class { .. }))
    }

    /// Whether all of `name` matches. Goes back to the last star only, as Go does: quadratic at worst.
    pub fn matches(&self, name: &[u8]) -> bool {
        let (mut token_at, mut name_at) = (0, 0);
        let mut last_star: Option<(usize, usize)> = None;
        loop {
            match self.tokens.get(token_at) {
                Some(Token::Star) => {
                    token_at += 1;
                    last_star = Some((token_at, name_at));
                    continue;
                }
                Some(token) => {
                    if let Some(length) = token.match_one(&name[name_at..]) {
                        (token_at, name_at) = (token_at + 1, name_at + length);
                        continue;
                    }
                }
                None if name_at == name.len() => return true,
                None => {}
            }
            match last_star {
                Some((after, from)) if name.get(from).is_some_and(|byte| *byte != b'/') => {
                    last_star = Some((after, from + 1));
                    (token_at, name_at) = (after, from + 1);
                }
                _ => return false,
            }
        }
    }
}

impl Token {
    /// The bytes that a token other than a star takes from the front of `name`.
    fn match_one(&self, name: &[u8]) -> Option<usize> {
        match self {
            Token::Byte(byte) => (name.first() == Some(byte)).then_some(1),
            Token::Any => {
                let (character, length) = first_character(name)?;
                (character != '/').then_some(length)
            }
            Token::Class { negated, ranges } => {
                let (character, length) = first_character(name)?;
                let inside = ranges.iter().any(|(low, high)| (low..=high).contains(&&character));
                (inside != *negated).then_some(length)
            }
            Token::Star => None,
        }
    }
}

/// The first character and its length; U+FFFD and 1 where the bytes are no UTF-8.
fn first_character(bytes: &[u8]) -> Option<(char, usize)> {
    let head = &bytes[..bytes.len().min(4)];
    let valid = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default(),
    };
    match valid.chars().next() {
        Some(character) => Some((character, character.len_utf8())),
        None if bytes.is_empty() => None,
        None => Some((char::REPLACEMENT_CHARACTER, 1)),
    }
}

/// What follows a `[`, up to its `]`.
fn parse_class(rest: &mut &[u8]) -> Result<Token, GlobError> {
    let negated = rest.first() == Some(&b'^');
    if negated {
        *rest = &rest[1..];
    }
    let mut ranges = Vec::new();
    loop {
        if rest.first() == Some(&b']') && !ranges.is_empty() {
            *rest = &rest[1..];
            return Ok(Token::Class { negated, ranges });
        }
        let low = class_character(rest)?;
        let mut high = low;
        if rest.first() == Some(&b'-') {
            *rest = &rest[1..];
            high = class_character(rest)?;
        }
        ranges.push((low, high));
    }
}

/// One end of a range, perhaps escaped. Something must follow it.
fn class_character(rest: &mut &[u8]) -> Result<char, GlobError> {
    match rest.first() {
        None | Some(b'-' | b']') => return Err(GlobError),
        Some(b'\\') => *rest = &rest[1..],
        Some(_) => {}
    }
    let (character, length) = first_character(rest).ok_or(GlobError)?;
    if length == 1 && character == char::REPLACEMENT_CHARACTER {
        return Err(GlobError);
    }
    *rest = &rest[length..];
    if rest.is_empty() { Err(GlobError) } else { Ok(character) }
}

/// Whether a path component is a wildcard (an escaped character is none).
pub fn has_wildcard(component: &[u8]) -> bool {
    let mut bytes = component.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'*' | b'?' | b'[' => return true,
            b'\\' => drop(bytes.next()),
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        Glob::parse(pattern.as_bytes()).unwrap().matches(name.as_bytes())
    }

    #[test]
    fn wildcards_stay_within_a_component() {
        for (pattern, name) in [
            ("*", "abc"),
            ("a*", "a"),
            ("a*/b", "abc/b"),
            ("a*b*c/f", "axbxcxbxc/f"),
            ("a?c", "a\u{e9}c"),
            ("[a-c]x", "bx"),
            ("[^a]x", "bx"),
            ("[\\]a]", "]"),
            ("a\\*b", "a*b"),
            ("[^x]b", "/b"),
            ("*x", "xxx"),
            ("", ""),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("*", "a/b"),
            ("a?c", "a/c"),
            ("a*b", "a/b"),
            ("*.txt", "x.txt.gz"),
            ("[a-c]", "d"),
            ("[^a]", "a"),
            ("a", "A"),
            ("a\\*b", "axb"),
            ("*", "/"),
            ("?", "ab"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn malformed_patterns_are_errors_wherever_the_fault_is() {
        for pattern in ["[", "a[", "[]a]", "[-]", "[x-]", "[a-b-c]", "\\", "ab[c\\", "[^]", "[^bc"]
        {
            assert_eq!(Glob::parse(pattern.as_bytes()), Err(GlobError), "{pattern}");
        }
        assert!(Glob::parse(b"[\xff]").is_err());
    }

    #[test]
    fn an_escaped_wildcard_is_none() {
        assert!(has_wildcard(b"a*") && has_wildcard(b"[x]") && has_wildcard(b"\\\\?"));
        assert!(!has_wildcard(b"a\\*b") && !has_wildcard(b"]") && !has_wildcard(b"\\"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(pattern: Vec<u8>, name: Vec<u8>) {
            if let Ok(glob) = Glob::parse(&pattern) {
                let _ = glob.matches(&name);
            }
        }

        #[test]
        fn an_escaped_name_matches_itself(name: Vec<u8>) {
            let escaped: Vec<u8> = name.iter().flat_map(|byte| [b'\\', *byte]).collect();
            prop_assert!(Glob::parse(&escaped).unwrap().matches(&name));
        }
    }
}
