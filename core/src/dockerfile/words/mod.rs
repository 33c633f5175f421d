//! WORDS: raw words of an instruction -> values, as BuildKit's shell lexer makes them (Dockerfile reference,
//! "Environment replacement").
//!
//! `$name` and `${name}`, the operators `- :- + :+ ? :? # ## % %% / //`, quotes and escapes. Words within braces nest.
//! A value that is put in is never looked at again: no word can expand itself.

mod lexer;
mod pattern;
#[cfg(test)]
mod tests;

use std::fmt;

use thiserror::Error;

use super::{ast::Escape, limits};

/// What a word became.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expanded {
    pub value: String,
    /// Names that the word uses and the environment has, sorted.
    pub matched: Vec<String>,
    /// Names that the word uses and the environment lacks, sorted.
    pub unmatched: Vec<String>,
}

/// A word that can't be expanded.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("failed to process {}: {reason}", Shortened(word))]
pub struct WordError {
    pub word: String,
    pub reason: Reason,
}

/// Why a word can't be expanded; the texts are BuildKit's.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Reason {
    #[error("unexpected end of statement while looking for matching single-quote")]
    SingleQuote,
    #[error("unexpected end of statement while looking for matching double-quote")]
    DoubleQuote,
    #[error("syntax error: missing '}}'")]
    MissingBrace,
    #[error("syntax error: missing '/' in ${{}}")]
    MissingSlash,
    #[error("syntax error: bad substitution")]
    BadSubstitution,
    #[error("unsupported modifier ({0}) in substitution")]
    Modifier(String),
    /// `${name?message}` of a name that is unset, or `${name:?message}` of one that is empty too.
    #[error("{name}: {message}")]
    Required { name: String, message: String },
    #[error("invalid pattern ({pattern}) in substitution: {why}")]
    Pattern { pattern: String, why: String },
    #[error("the value grows beyond {0} bytes")]
    TooLong(usize),
    #[error("more than {} levels of braces", limits::WORD_DEPTH_MAX)]
    TooDeep,
    #[error("the word reads too much: use fewer or shorter variables and patterns in it")]
    TooMuchWork,
}

impl Reason {
    /// Whether this is a cap rather than an error in the word.
    fn is_cap(&self) -> bool {
        matches!(self, Reason::TooLong(_) | Reason::TooDeep | Reason::TooMuchWork)
    }
}

/// The start of a text, quoted, for messages.
struct Shortened<'a>(&'a str);

impl fmt::Display for Shortened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CHARS_MAX: usize = 200;
        match self.0.char_indices().nth(CHARS_MAX) {
            None => write!(f, "{:?}", self.0),
            Some((end, _)) => write!(f, "{:?}…", &self.0[..end]),
        }
    }
}

/// Whether expansion leaves `word` as it is, whatever the environment: `COPY --from` takes only such a one.
pub fn is_constant(word: &str, escape: Escape) -> bool {
    let expander = Expander::new(escape, &|_| None);
    expander.expand(word).is_ok_and(|expanded| expanded.value == word)
}

/// Expands words in one environment, which is that from before the instruction.
#[derive(Clone, Copy)]
pub struct Expander<'a> {
    escape: char,
    lookup: &'a dyn Fn(&str) -> Option<String>,
    raw_quotes: bool,
    raw_escapes: bool,
    quotes_are_data: bool,
    keep_unset: bool,
    bytes_max: usize,
}

impl<'a> Expander<'a> {
    /// An expander whose variables come from `lookup`; `escape` is the Dockerfile's.
    pub fn new(escape: Escape, lookup: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Expander {
            escape: escape.as_char(),
            lookup,
            raw_quotes: false,
            raw_escapes: false,
            quotes_are_data: false,
            keep_unset: false,
            bytes_max: limits::WORD_BYTES_MAX,
        }
    }

    /// For the body of a here-document of COPY or ADD: quotes are data, and the escape is `\` whatever the directive says.
    pub fn heredoc(lookup: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Expander {
            quotes_are_data: true,
            bytes_max: limits::DOCKERFILE_BYTES_MAX + limits::WORD_BYTES_MAX,
            ..Expander::new(Escape::Backslash, lookup)
        }
    }

    /// Quotes stay in the value (BuildKit's `RawQuotes`, for the log's text of a RUN).
    pub fn raw_quotes(self) -> Self {
        Expander { raw_quotes: true, ..self }
    }

    /// Escape characters stay in the value (BuildKit's `RawEscapes`).
    pub fn raw_escapes(self) -> Self {
        Expander { raw_escapes: true, ..self }
    }

    /// A variable that is not set stays as written (BuildKit's `SkipUnsetEnv`).
    pub fn keep_unset(self) -> Self {
        Expander { keep_unset: true, ..self }
    }

    /// For text that is as long as a line of a Dockerfile may get, and has no environment.
    pub(super) fn for_lines(self) -> Self {
        Expander { bytes_max: 2 * limits::DOCKERFILE_BYTES_MAX, ..self }
    }

    /// The value of `word`, blanks in place.
    pub fn expand(&self, word: &str) -> Result<Expanded, WordError> {
        let mut lexer = lexer::Lexer::new(self, word);
        let value = lexer.value().map_err(|reason| WordError { word: word.to_owned(), reason })?;
        Ok(lexer.finish(value))
    }

    /// The words that `word` becomes when split at blanks **after** expansion, outside quotes (EXPOSE).
    pub fn expand_words(&self, word: &str) -> Result<Vec<String>, WordError> {
        let lexer = lexer::Lexer::new(self, word);
        lexer.words().map_err(|reason| WordError { word: word.to_owned(), reason })
    }
}
