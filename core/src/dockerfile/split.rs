//! An instruction's text -> keyword, flags and arguments; arguments -> words. Words keep their quotes and escapes.

use super::ast::Escape;

/// What the keyword is separated from its arguments by, and words of the plain form from each other.
pub(super) fn is_blank(c: char) -> bool {
    matches!(c, '\t' | '\x0b' | '\x0c' | '\r' | ' ')
}

/// Keyword and rest.
pub(super) struct Split<'t> {
    pub keyword: &'t str,
    pub flags: Vec<String>,
    /// Without blanks around it.
    pub arguments: &'t str,
}

pub(super) fn split(text: &str, escape: Escape) -> Split<'_> {
    let text = text.trim();
    let (keyword, rest) = match text.split_once(is_blank) {
        Some((keyword, rest)) => (keyword, rest.trim_start_matches(is_blank)),
        None => (text, ""),
    };
    let (flags, rest) = take_flags(rest, escape.as_char());
    Split { keyword, flags, arguments: rest.trim() }
}

/// The leading words that start with `--`, quotes and escapes resolved, and what follows them. A lone `--` ends them.
fn take_flags(text: &str, escape: char) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        if !rest.starts_with("--") {
            return (flags, rest);
        }
        let (word, after) = flag_word(rest, escape);
        rest = after;
        if word == "--" {
            return (flags, rest);
        }
        flags.push(word);
    }
}

/// One word of `text`: its value, and what follows it.
fn flag_word(text: &str, escape: char) -> (String, &str) {
    let mut word = String::new();
    let mut quote = None;
    let mut rest = text.chars();
    loop {
        let before = rest.as_str();
        match rest.next() {
            None => return (word, ""),
            Some(c) if quote == Some(c) => quote = None,
            Some(c) if c == escape => word.extend(rest.next()),
            Some(c) if quote.is_some() => word.push(c),
            Some(c @ ('\'' | '"')) => quote = Some(c),
            Some(c) if c.is_whitespace() => return (word, before),
            Some(c) => word.push(c),
        }
    }
}

/// Words split at blanks outside quotes, quotes and escapes kept (ENV, LABEL, ARG).
pub(super) fn quoted_words(text: &str, escape: Escape) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (word, after) = quoted_word(rest, escape.as_char());
        if !word.is_empty() {
            words.push(word);
        }
        rest = after.trim_start();
    }
    words
}

/// One word of `text`, quotes and escapes kept; an escape character at the very end is dropped.
fn quoted_word(text: &str, escape: char) -> (String, &str) {
    let mut word = String::new();
    let mut quote = None;
    let mut rest = text.chars();
    loop {
        let before = rest.as_str();
        let Some(c) = rest.next() else { return (word, "") };
        if quote.is_none() && c.is_whitespace() {
            return (word, before);
        }
        if c == escape && quote != Some('\'') {
            let Some(escaped) = rest.next() else { return (word, "") };
            word.extend([c, escaped]);
            continue;
        }
        match quote {
            Some(open) if open == c => quote = None,
            None if matches!(c, '\'' | '"') => quote = Some(c),
            _ => {}
        }
        word.push(c);
    }
}

/// Words split at blanks, whatever quotes say.
pub(super) fn plain_words(text: &str) -> Vec<String> {
    text.split(is_blank).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// What a text is as a JSON array.
pub(super) enum Json {
    Strings(Vec<String>),
    /// An array of other things too.
    Mixed,
    /// No array, or not JSON.
    No,
}

/// Whether all of `text` is one JSON array.
pub(super) fn json(text: &str) -> Json {
    let text = text.trim_start();
    if !text.starts_with('[') {
        return Json::No;
    }
    let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(text) else { return Json::No };
    let strings = values.into_iter().map(|value| match value {
        serde_json::Value::String(text) => Some(text),
        _ => None,
    });
    strings.collect::<Option<Vec<_>>>().map_or(Json::Mixed, Json::Strings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_end_at_the_first_other_word() {
        let split = split(r#"  COPY  --from=a --chown='x y'"z"\  -- --x  b  "#, Escape::Backslash);
        assert_eq!(split.keyword, "COPY");
        assert_eq!(split.flags, ["--from=a", "--chown=x yz "]);
        assert_eq!(split.arguments, "--x  b");
    }

    #[test]
    fn flags_with_odd_ends() {
        let of = |text| split(text, Escape::Backslash);
        assert_eq!(of("RUN --a=\\").flags, ["--a="]);
        assert_eq!(of("RUN --a='b").flags, ["--a=b"]);
        assert_eq!(of("RUN --é=ü x").flags, ["--é=ü"]);
        assert_eq!(of("RUN - --a").arguments, "- --a");
        assert_eq!(of("RUN \"--a\" b").arguments, "\"--a\" b");
        assert_eq!(of("RUN").arguments, "");
        assert_eq!(of("").keyword, "");
    }

    #[test]
    fn quoted_words_keep_quotes() {
        let words = quoted_words(r#" a="b c"d 'e \' f\ g "" h\"#, Escape::Backslash);
        assert_eq!(words, [r#"a="b c"d"#, r"'e \'", r"f\ g", r#""""#, "h"]);
        assert_eq!(quoted_words("a=` b`", Escape::Backtick), ["a=` b"]);
        assert_eq!(quoted_words(r#"a="b"#, Escape::Backslash), [r#"a="b"#]);
        assert_eq!(quoted_words("안\u{3000}녕", Escape::Backslash), ["안", "녕"]);
    }

    #[test]
    fn json_arrays() {
        assert!(matches!(json(r#" ["a", "b\n"] "#), Json::Strings(s) if s == ["a", "b\n"]));
        assert!(matches!(json("[]"), Json::Strings(s) if s.is_empty()));
        for text in [r#"["a", 1]"#, "[[]]", "[null]", r#"[{"a": 1}]"#] {
            assert!(matches!(json(text), Json::Mixed), "{text}");
        }
        for text in ["", "['a']", r#"["a"] x"#, r#"["a""#, r#"["a",]"#, "“a”", r#"[“a”]"#, "[ x ]"]
        {
            assert!(matches!(json(text), Json::No), "{text}");
        }
        assert!(matches!(json(&"[".repeat(1 << 20)), Json::No));
    }
}
