//! One pass over a word.

use std::collections::BTreeSet;

use super::{Expanded, Expander, Reason, pattern};
use crate::dockerfile::limits;

type Lexed<T> = Result<T, Reason>;

/// How an error in Go's text package shows the end of input.
const END: char = '\u{fffd}';

pub(super) struct Lexer<'e, 'a> {
    modes: &'e Expander<'a>,
    rest: std::str::Chars<'e>,
    raw_escapes: bool,
    depth: usize,
    /// What may still be read and matched.
    work_left: usize,
    matched: BTreeSet<String>,
    unmatched: BTreeSet<String>,
}

/// Words being cut out of a value.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    open: String,
    in_word: bool,
}

impl Words {
    fn blank_or(&mut self, c: char) {
        if !c.is_whitespace() {
            self.literal(c);
        } else if self.in_word && !self.open.is_empty() {
            self.done.push(std::mem::take(&mut self.open));
            self.in_word = false;
        }
    }

    fn literal(&mut self, c: char) {
        self.open.push(c);
        self.in_word = true;
    }

    fn quoted(&mut self, text: &str) {
        self.open.push_str(text);
        self.in_word = true;
    }

    fn finish(mut self) -> Vec<String> {
        if !self.open.is_empty() {
            self.done.push(self.open);
        }
        self.done
    }
}

impl<'e, 'a> Lexer<'e, 'a> {
    pub(super) fn new(modes: &'e Expander<'a>, word: &'e str) -> Self {
        Lexer {
            modes,
            // Go's scanner drops a byte order mark in front.
            rest: word.strip_prefix('\u{feff}').unwrap_or(word).chars(),
            raw_escapes: modes.raw_escapes,
            depth: 0,
            work_left: limits::WORD_WORK_MAX,
            matched: BTreeSet::new(),
            unmatched: BTreeSet::new(),
        }
    }

    pub(super) fn value(&mut self) -> Lexed<String> {
        self.until(None, None)
    }

    pub(super) fn words(mut self) -> Lexed<Vec<String>> {
        let mut words = Words::default();
        self.until(None, Some(&mut words))?;
        Ok(words.finish())
    }

    pub(super) fn finish(self, value: String) -> Expanded {
        Expanded {
            value,
            matched: self.matched.into_iter().collect(),
            unmatched: self.unmatched.into_iter().collect(),
        }
    }

    fn peek(&self) -> Option<char> {
        self.rest.clone().next()
    }

    fn put(&self, value: &mut String, text: &str) -> Lexed<()> {
        if value.len() + text.len() > self.modes.bytes_max {
            return Err(Reason::TooLong(self.modes.bytes_max));
        }
        value.push_str(text);
        Ok(())
    }

    fn put_char(&self, value: &mut String, c: char) -> Lexed<()> {
        self.put(value, c.encode_utf8(&mut [0; 4]))
    }

    /// Everything up to `stop`, which is consumed, or to the end of input.
    fn until(&mut self, stop: Option<char>, mut words: Option<&mut Words>) -> Lexed<String> {
        let mut value = String::new();
        while let Some(c) = self.rest.next() {
            if Some(c) == stop {
                return Ok(value);
            }
            match c {
                '$' => {
                    let text = self.dollar()?;
                    self.put(&mut value, &text)?;
                    if let Some(words) = words.as_deref_mut() {
                        text.chars().for_each(|c| words.blank_or(c));
                    }
                }
                '<' => self.quoted_part(&mut value, words.as_deref_mut(), Self::less_than)?,
                '\'' if !self.modes.quotes_are_data => {
                    self.quoted_part(&mut value, words.as_deref_mut(), Self::single_quote)?
                }
                '"' if !self.modes.quotes_are_data => {
                    self.quoted_part(&mut value, words.as_deref_mut(), Self::double_quote)?
                }
                c => self.plain(c, &mut value, words.as_deref_mut())?,
            }
        }
        match stop {
            None => Ok(value),
            Some(_) => Err(Reason::MissingBrace),
        }
    }

    fn quoted_part(
        &mut self,
        value: &mut String,
        words: Option<&mut Words>,
        part: impl FnOnce(&mut Self) -> Lexed<String>,
    ) -> Lexed<()> {
        let text = part(self)?;
        if let Some(words) = words {
            words.quoted(&text);
        }
        self.put(value, &text)
    }

    /// A character outside quotes; an escape takes the next one as it is.
    fn plain(&mut self, c: char, value: &mut String, mut words: Option<&mut Words>) -> Lexed<()> {
        if c != self.modes.escape {
            if let Some(words) = words {
                words.blank_or(c);
            }
            return self.put_char(value, c);
        }
        let kept = self.raw_escapes.then_some(c);
        for c in kept.into_iter().chain(self.rest.next()) {
            if let Some(words) = words.as_deref_mut() {
                words.literal(c);
            }
            self.put_char(value, c)?;
        }
        Ok(())
    }

    /// After a `<`: a second one and the blanks behind it, which keep a here-document's mark in one word.
    fn less_than(&mut self) -> Lexed<String> {
        let mut text = String::from('<');
        if self.peek() == Some('<') {
            text.extend(self.rest.next());
            while self.peek().is_some_and(|c| matches!(c, '\t' | '\r' | ' ')) {
                text.extend(self.rest.next());
            }
        }
        Ok(text)
    }

    fn single_quote(&mut self) -> Lexed<String> {
        let text = self.rest.as_str();
        let end = text.find('\'').ok_or(Reason::SingleQuote)?;
        self.rest = text[end + 1..].chars();
        let inner = &text[..end];
        Ok(if self.modes.raw_quotes { format!("'{inner}'") } else { inner.to_owned() })
    }

    fn double_quote(&mut self) -> Lexed<String> {
        let mut value = String::new();
        let quote = if self.modes.raw_quotes { "\"" } else { "" };
        value.push_str(quote);
        loop {
            match self.rest.next().ok_or(Reason::DoubleQuote)? {
                '"' => {
                    self.put(&mut value, quote)?;
                    return Ok(value);
                }
                '$' => {
                    let text = self.dollar()?;
                    self.put(&mut value, &text)?;
                }
                c if c == self.modes.escape => self.escape_in_quotes(&mut value)?,
                c => self.put_char(&mut value, c)?,
            }
        }
    }

    /// Within double quotes an escape counts before `"`, `$` and itself only.
    fn escape_in_quotes(&mut self, value: &mut String) -> Lexed<()> {
        let escape = self.modes.escape;
        if self.raw_escapes {
            self.put_char(value, escape)?;
        }
        match self.peek() {
            None => Ok(()),
            Some(c) if c == '"' || c == '$' || c == escape => {
                self.rest.next();
                self.put_char(value, c)
            }
            Some(_) => self.put_char(value, escape),
        }
    }

    /// After a `$`.
    fn dollar(&mut self) -> Lexed<String> {
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return self.plain_variable(&name, &format!("${name}"));
        }
        self.rest.next();
        match self.peek() {
            None => return Err(Reason::MissingBrace),
            Some('{' | '}' | ':') => return Err(Reason::BadSubstitution),
            Some(_) => {}
        }
        let name = self.name();
        match self.rest.next() {
            Some('}') => self.plain_variable(&name, &format!("${{{name}}}")),
            Some('/') => self.nested(|lexer| lexer.replacement(&name)),
            Some(':') => {
                let operator = self.rest.next().unwrap_or(END);
                self.nested(|lexer| lexer.operation(&name, operator, true))
            }
            Some(operator @ ('+' | '-' | '?' | '#' | '%')) => {
                self.nested(|lexer| lexer.operation(&name, operator, false))
            }
            other => Err(Reason::Modifier(other.unwrap_or(END).to_string())),
        }
    }

    fn nested(&mut self, inner: impl FnOnce(&mut Self) -> Lexed<String>) -> Lexed<String> {
        if self.depth == limits::WORD_DEPTH_MAX {
            return Err(Reason::TooDeep);
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    fn plain_variable(&mut self, name: &str, as_written: &str) -> Lexed<String> {
        Ok(match self.look_up(name)? {
            None if self.modes.keep_unset => as_written.to_owned(),
            value => value.unwrap_or_default(),
        })
    }

    /// A name: letters, digits and `_`; or digits alone; or one of the shell's special parameters.
    fn name(&mut self) -> String {
        let text = self.rest.as_str();
        let end = match text.chars().next() {
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => 1,
            Some(first) if is_digit(first) => text.find(|c| !is_digit(c)).unwrap_or(text.len()),
            _ => text.find(|c| !is_letter(c) && !is_digit(c) && c != '_').unwrap_or(text.len()),
        };
        self.rest = text[end..].chars();
        text[..end].to_owned()
    }

    /// The word of an operator, up to `stop`. At the end of input every error is the missing `stop`'s.
    fn operand(&mut self, stop: char, raw_escapes: bool, at_end: Reason) -> Lexed<String> {
        let before = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        let result = self.until(Some(stop), None);
        self.raw_escapes = before;
        match result {
            Err(reason) if self.peek().is_none() && !reason.is_cap() => Err(at_end),
            result => result,
        }
    }

    /// `${name<operator>word}`, after the operator; `null_is_unset` where a colon stood before it.
    fn operation(&mut self, name: &str, operator: char, null_is_unset: bool) -> Lexed<String> {
        let colon = if null_is_unset { ":" } else { "" };
        let modifier = || format!("{colon}{operator}");
        let is_pattern = matches!(operator, '#' | '%');
        if null_is_unset && is_pattern {
            return Err(Reason::Modifier(modifier()));
        }
        let word = self.operand('}', is_pattern, Reason::MissingBrace)?;
        let value = self.look_up(name)?;
        if self.modes.keep_unset && value.is_none() {
            return Ok(format!("${{{name}{}{word}}}", modifier()));
        }
        let counts = value.as_ref().is_some_and(|value| !(null_is_unset && value.is_empty()));
        match operator {
            '-' if counts => Ok(value.unwrap_or_default()),
            '-' => Ok(word),
            '+' => Ok(if counts { word } else { String::new() }),
            '?' if counts => Ok(value.unwrap_or_default()),
            '?' => Err(required(name, word, value.is_some())),
            '#' | '%' => self.trim(operator, &word, &value.unwrap_or_default()),
            _ => Err(Reason::Modifier(modifier())),
        }
    }

    /// `${name#pattern}` and its kin: a doubled operator takes the longest match.
    fn trim(&mut self, operator: char, word: &str, value: &str) -> Lexed<String> {
        let (pattern, longest) = match word.strip_prefix(operator) {
            Some(pattern) => (pattern, true),
            None => (word, false),
        };
        self.charge_pattern(pattern, value)?;
        match operator {
            '#' => pattern::trim_prefix(pattern, value, longest),
            _ => pattern::trim_suffix(pattern, value, longest),
        }
    }

    /// `${name/pattern/text}`, after the first slash; a second slash replaces every match.
    fn replacement(&mut self, name: &str) -> Lexed<String> {
        let every = self.peek() == Some('/');
        if every {
            self.rest.next();
        }
        let pattern = self.operand('/', true, Reason::MissingSlash)?;
        let replacement = self.operand('}', true, Reason::MissingBrace)?;
        let value = match self.look_up(name)? {
            None if self.modes.keep_unset => {
                return Ok(format!("${{{name}/{pattern}/{replacement}}}"));
            }
            value => value.unwrap_or_default(),
        };
        self.charge_pattern(&pattern, &value)?;
        pattern::replace(&pattern, &value, &replacement, every, self.modes.bytes_max)
    }

    fn look_up(&mut self, name: &str) -> Lexed<Option<String>> {
        let value = (self.modes.lookup)(name);
        let names = if value.is_some() { &mut self.matched } else { &mut self.unmatched };
        if !names.contains(name) {
            names.insert(name.to_owned());
        }
        self.charge(value.as_ref().map_or(0, String::len))?;
        Ok(value)
    }

    fn charge(&mut self, work: usize) -> Lexed<()> {
        self.work_left = self.work_left.checked_sub(work).ok_or(Reason::TooMuchWork)?;
        Ok(())
    }

    fn charge_pattern(&mut self, pattern: &str, value: &str) -> Lexed<()> {
        if pattern.len() > limits::PATTERN_BYTES_MAX {
            return Err(Reason::TooMuchWork);
        }
        self.charge(limits::PATTERN_WORK + pattern.len() * value.len())
    }
}

fn required(name: &str, message: String, set: bool) -> Reason {
    let message = match message.is_empty() {
        false => message,
        true if set => "is not allowed to be empty".to_owned(),
        true => "is not allowed to be unset".to_owned(),
    };
    Reason::Required { name: name.to_owned(), message }
}

/// Go's `unicode.IsLetter` (category L); what Rust calls alphabetic and is no letter are marks and letter numbers.
fn is_letter(c: char) -> bool {
    c.is_ascii_alphabetic() || (!c.is_ascii() && c.is_alphabetic())
}

/// Go's `unicode.IsDigit` (category Nd).
fn is_digit(c: char) -> bool {
    c.is_ascii_digit() || (!c.is_ascii() && c.is_numeric() && !c.is_alphabetic())
}
