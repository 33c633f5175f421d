//! One logical line as a node: what its keyword says of the form of its arguments, and nothing of their meaning.

use super::{
    ast::{Escape, Heredoc, Pair, Span},
    error::Problem,
    heredoc,
    split::{self, Json},
};

/// The keywords, in lower case.
pub(super) const KEYWORDS: [&str; 18] = [
    "add",
    "arg",
    "cmd",
    "copy",
    "entrypoint",
    "env",
    "expose",
    "from",
    "healthcheck",
    "label",
    "maintainer",
    "onbuild",
    "run",
    "shell",
    "stopsignal",
    "user",
    "volume",
    "workdir",
];

/// The arguments of an instruction, in the form that its keyword gives them.
#[derive(Debug)]
pub(super) enum Arguments {
    /// Words of the plain form, or the whole text as one word.
    Words(Vec<String>),
    Json(Vec<String>),
    Pairs(Vec<Pair>),
    /// HEALTHCHECK: the kind of test, and its command.
    Test {
        kind: String,
        command: Box<Arguments>,
    },
    Trigger(Box<Node<'static>>),
}

impl Arguments {
    fn none() -> Self {
        Arguments::Words(Vec::new())
    }

    fn whole(text: &str) -> Self {
        Arguments::Words(if text.is_empty() { Vec::new() } else { vec![text.to_owned()] })
    }

    pub(super) fn count(&self) -> usize {
        match self {
            Arguments::Words(words) | Arguments::Json(words) => words.len(),
            Arguments::Pairs(pairs) => pairs.len(),
            Arguments::Test { command, .. } => 1 + command.count(),
            Arguments::Trigger(node) => 1 + node.arguments.count(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Node<'a> {
    /// As written.
    pub keyword: String,
    pub flags: Vec<String>,
    pub arguments: Arguments,
    pub heredocs: Vec<Heredoc>,
    /// The logical line, blanks at its end in place.
    pub original: String,
    pub span: Span,
    /// The first physical line.
    pub head: &'a [u8],
    pub comments: Vec<String>,
}

impl Node<'_> {
    /// The node of a line; its place, comments and here-documents are the caller's to add.
    pub(super) fn of_line(line: &str, escape: Escape) -> Result<Node<'static>, Problem> {
        Self::of_text(line, escape, true)
    }

    fn of_text(line: &str, escape: Escape, triggers: bool) -> Result<Node<'static>, Problem> {
        let parts = split::split(line, escape);
        let arguments = match parts.keyword.to_ascii_lowercase().as_str() {
            "onbuild" if triggers => trigger(parts.arguments, escape)?,
            keyword => arguments(keyword, parts.arguments, escape)?,
        };
        Ok(Node {
            keyword: parts.keyword.to_owned(),
            flags: parts.flags,
            arguments,
            heredocs: Vec::new(),
            original: line.to_owned(),
            span: Span::default(),
            head: &[],
            comments: Vec::new(),
        })
    }

    pub(super) fn is_known(&self) -> bool {
        KEYWORDS.iter().any(|known| known.eq_ignore_ascii_case(&self.keyword))
    }

    fn takes_heredocs(&self) -> bool {
        match &self.arguments {
            Arguments::Trigger(node) => node.takes_heredocs(),
            Arguments::Json(_) => false,
            _ => {
                ["add", "copy", "run"].iter().any(|known| known.eq_ignore_ascii_case(&self.keyword))
            }
        }
    }

    /// The marks of the here-documents that follow the node's line.
    pub(super) fn marks(&self) -> Result<Vec<heredoc::Mark>, Problem> {
        Ok(if self.takes_heredocs() { heredoc::marks(&self.original)? } else { Vec::new() })
    }
}

/// ONBUILD's argument is an instruction; an ONBUILD within is refused later and not looked into.
fn trigger(text: &str, escape: Escape) -> Result<Arguments, Problem> {
    if text.is_empty() {
        return Ok(Arguments::none());
    }
    Ok(Arguments::Trigger(Box::new(Node::of_text(text, escape, false)?)))
}

fn arguments(keyword: &str, text: &str, escape: Escape) -> Result<Arguments, Problem> {
    Ok(match keyword {
        "add" | "copy" | "volume" => {
            json_or(text, |text| Arguments::Words(split::plain_words(text)))?
        }
        "cmd" | "entrypoint" | "run" | "shell" => json_or(text, Arguments::whole)?,
        "expose" | "from" => Arguments::Words(split::plain_words(text)),
        "arg" => Arguments::Words(split::quoted_words(text, escape)),
        "env" => pairs(text, "ENV", escape)?,
        "label" => pairs(text, "LABEL", escape)?,
        "healthcheck" => test(text)?,
        "maintainer" | "stopsignal" | "user" | "workdir" => Arguments::whole(text),
        _ => Arguments::none(),
    })
}

fn json_or(text: &str, plain: impl FnOnce(&str) -> Arguments) -> Result<Arguments, Problem> {
    match split::json(text) {
        Json::Strings(strings) => Ok(Arguments::Json(strings)),
        Json::Mixed => Err(Problem::NotStrings),
        Json::No => Ok(plain(text)),
    }
}

fn test(text: &str) -> Result<Arguments, Problem> {
    if text.is_empty() {
        return Ok(Arguments::none());
    }
    let (kind, command) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let command = json_or(command.trim_start(), Arguments::whole)?;
    Ok(Arguments::Test { kind: kind.to_owned(), command: Box::new(command) })
}

/// `name=value …`, or the old form `name the rest`; the first word decides.
fn pairs(text: &str, instruction: &'static str, escape: Escape) -> Result<Arguments, Problem> {
    let words = split::quoted_words(text, escape);
    let Some(first) = words.first() else { return Ok(Arguments::none()) };
    if !first.contains('=') {
        let (key, value) =
            text.split_once(split::is_blank).ok_or(Problem::TwoArguments { instruction })?;
        let value = value.trim_start_matches(split::is_blank).to_owned();
        return Ok(Arguments::Pairs(vec![Pair { key: key.to_owned(), value, delimited: false }]));
    }
    let pair = |word: String| match word.split_once('=') {
        Some((key, value)) => {
            Ok(Pair { key: key.to_owned(), value: value.to_owned(), delimited: true })
        }
        None => Err(Problem::NoEqualsSign { word }),
    };
    Ok(Arguments::Pairs(words.into_iter().map(pair).collect::<Result<_, _>>()?))
}
