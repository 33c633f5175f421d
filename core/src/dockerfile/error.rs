//! What can be wrong with a Dockerfile's text. Where BuildKit has words for it, the texts are BuildKit's.

use std::{fmt, sync::Arc};

use thiserror::Error;

use super::{
    ast::Span, check::CheckError, duration::DurationError, limits, mount::MountError, suggest,
    words::WordError,
};
use crate::error::{Class, Error as CoreError, Location};

/// One diagnostic: where, what, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct ParseError {
    /// Of a syntax error, the instruction's lines.
    pub span: Span,
    pub message: String,
    pub hint: Option<String>,
}

impl ParseError {
    pub(super) fn new(span: Span, problem: &Problem) -> Self {
        ParseError { span, message: problem.to_string(), hint: problem.hint() }
    }

    /// As the error that leaves core; `source` is the whole text of `file`.
    pub fn to_error(&self, file: &str, source: Arc<str>) -> CoreError {
        let location = Location { file: file.to_owned(), source, span: self.span };
        let error = CoreError::new(Class::Input, &*self.message).at_location(location);
        match &self.hint {
            Some(hint) => error.hint(&**hint),
            None => error,
        }
    }

    /// As [`ParseError::new`], with the column of what is wrong if it stands in `head`, the first physical line.
    pub(super) fn at(span: Span, head: &[u8], problem: &Problem) -> Self {
        let head = String::from_utf8_lossy(head);
        let column =
            problem.token().filter(|token| !token.is_empty()).and_then(|token| head.find(token));
        ParseError::new(
            Span { column: column.map(|column| column as u32).or(span.column), ..span },
            problem,
        )
    }
}

/// Everything found wrong with one file, never empty. The first is the one that BuildKit would name; the others follow
/// in the order of their lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseErrors {
    first: ParseError,
    others: Vec<ParseError>,
}

impl ParseErrors {
    /// `None` where there are none.
    pub(super) fn of(errors: Vec<ParseError>) -> Option<Self> {
        let mut errors = errors.into_iter();
        let first = errors.next()?;
        Some(ParseErrors { first, others: errors.collect() })
    }

    pub fn first(&self) -> &ParseError {
        &self.first
    }

    pub fn iter(&self) -> impl Iterator<Item = &ParseError> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

impl fmt::Display for ParseErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.first.fmt(f)
    }
}

impl std::error::Error for ParseErrors {}

/// Something that does not end the build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseWarning {
    pub kind: WarningKind,
    pub span: Span,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WarningKind {
    /// A blank line within a continued instruction (check `NoEmptyContinuation`); the span is the instruction's last line.
    EmptyContinuation,
    /// Flags on an instruction that takes none, and on which BuildKit does not look at them.
    IgnoredFlags,
    /// `# syntax=` asks for the labs channel; the stable language is what is built in.
    LabsSyntax,
}

/// Why a text is no Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum Problem {
    #[error("the Dockerfile cannot be empty")]
    Empty,
    #[error("the Dockerfile has more than {} bytes", limits::DOCKERFILE_BYTES_MAX)]
    TooBig,
    #[error("file with no instructions")]
    NoInstructions,
    #[error("dockerfile contains no stages to build")]
    NoStages,
    #[error("more than {} instructions", limits::INSTRUCTIONS_MAX)]
    TooManyInstructions,
    #[error("more than {} bytes in one instruction", limits::INSTRUCTION_BYTES_MAX)]
    InstructionTooLong,
    #[error("more than {} arguments", limits::ARGUMENTS_MAX)]
    TooManyArguments,
    #[error("more than {} stages", limits::STAGES_MAX)]
    TooManyStages,
    #[error("dockerfile line greater than max allowed size of {}", limits::LINE_BYTES_MAX)]
    LineTooLong,
    #[error("the instruction is not valid UTF-8")]
    NotUtf8,
    #[error("the instruction holds a NUL byte")]
    Nul,
    #[error("invalid escape token '{value}' does not match ` or \\")]
    EscapeToken { value: String },
    #[error("only one {name} parser directive can be used")]
    DirectiveRepeated { name: &'static str },
    #[error("unknown frontend {image:?} in `# syntax=`")]
    UnknownFrontend { image: String },
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error("unterminated heredoc")]
    UnterminatedHeredoc { name: String },
    #[error(transparent)]
    Word(#[from] WordError),
    #[error("when using JSON array syntax, arrays must be comprised of strings only")]
    NotStrings,
    #[error("{instruction} must have two arguments")]
    TwoArguments { instruction: &'static str },
    #[error("Syntax error - can't find = in {word:?}. Must be of the form: name=value")]
    NoEqualsSign { word: String },
    #[error("unknown instruction: {keyword}")]
    UnknownInstruction { keyword: String },
    #[error("no build stage in current context")]
    BeforeFrom,
    #[error("{instruction} requires at least one argument")]
    AtLeastOne { instruction: &'static str },
    #[error("{instruction} requires exactly one argument")]
    ExactlyOne { instruction: &'static str },
    #[error(
        "{instruction} requires at least two arguments, but only one was provided. Destination could not be determined"
    )]
    NoDestination { instruction: &'static str },
    #[error("{instruction} cannot accept a heredoc as a destination")]
    HeredocDestination { instruction: &'static str },
    #[error("{instruction} names can not be blank")]
    BlankName { instruction: &'static str },
    #[error("FROM requires either one or three arguments")]
    FromArguments,
    #[error(
        "invalid name for build stage: {name:?}, name can't start with a number or contain symbols"
    )]
    StageName { name: String },
    #[error("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")]
    ChainedOnbuild,
    #[error("{keyword} isn't allowed as an ONBUILD trigger")]
    NotATrigger { keyword: String },
    #[error("onbuild trigger should be a single expression")]
    NotOneTrigger,
    #[error("unknown flag: {flag}")]
    UnknownFlag { flag: String, instruction: &'static str, known: Vec<&'static str> },
    #[error("duplicate flag specified: {flag}")]
    DuplicateFlag { flag: String },
    #[error("missing a value on flag: {flag}")]
    MissingValue { flag: String },
    #[error("expecting boolean value for flag {flag}, not: {value}")]
    NotBoolean { flag: String, value: String },
    #[error("HEALTHCHECK NONE takes no arguments")]
    HealthNone,
    #[error("Missing command after HEALTHCHECK CMD")]
    HealthWithoutCommand,
    #[error("Unknown type {kind:?} in HEALTHCHECK (try CMD)")]
    HealthType { kind: String },
    #[error(transparent)]
    Duration(#[from] DurationError),
    #[error("Interval {flag:?} cannot be less than 1ms")]
    TooShort { flag: &'static str },
    #[error("--retries must be a number, not {value:?}")]
    Retries { value: String },
    #[error("--retries cannot be negative ({0})")]
    NegativeRetries(i32),
    #[error("VOLUME specified can not be an empty string")]
    EmptyVolume,
    #[error("{instruction} requires the arguments to be in JSON form")]
    NotJson { instruction: &'static str },
    #[error("invalid network mode {mode:?}")]
    Network { mode: String },
    #[error("security {mode:?} is not valid")]
    Security { mode: String },
    #[error("RUN --device is only in the labs channel of the Dockerfile frontend")]
    Device,
    #[error(transparent)]
    Mount(#[from] MountError),
}

impl Problem {
    /// The text that the caret should stand under.
    pub(super) fn token(&self) -> Option<&str> {
        match self {
            Problem::NoEqualsSign { word } => Some(word),
            Problem::UnknownInstruction { keyword } | Problem::NotATrigger { keyword } => {
                Some(keyword)
            }
            Problem::StageName { name } | Problem::UnterminatedHeredoc { name } => Some(name),
            Problem::UnknownFlag { flag, .. }
            | Problem::DuplicateFlag { flag }
            | Problem::MissingValue { flag }
            | Problem::NotBoolean { flag, .. } => Some(flag),
            Problem::TooShort { flag } => Some(flag),
            Problem::Retries { value } => Some(value),
            Problem::Network { mode } | Problem::Security { mode } => Some(mode),
            Problem::NegativeRetries(_) => Some("--retries"),
            Problem::Device => Some("--device"),
            _ => None,
        }
    }

    /// What to do next, where there is something to say.
    fn hint(&self) -> Option<String> {
        Some(match self {
            Problem::UnknownInstruction { keyword } => return hint_for_keyword(keyword),
            Problem::UnknownFlag { flag, instruction, known } => return hint_for_flag(flag, instruction, known),
            Problem::UnknownFrontend { .. } => {
                "the Dockerfile language is built in and no frontend image is run; remove the line if this is a Dockerfile".into()
            }
            Problem::UnterminatedHeredoc { name } => {
                format!("a here-document ends at a line that is exactly `{name}`; if none is meant, quote the text with `<<`")
            }
            Problem::NotUtf8 | Problem::Nul => "save the file as UTF-8".into(),
            Problem::NotStrings => "put every element in double quotes".into(),
            Problem::NotJson { instruction } => format!("write {instruction} [\"executable\", \"argument\"]"),
            Problem::BeforeFrom => "only ARG may stand before the first FROM".into(),
            Problem::NoStages => "a Dockerfile needs a FROM instruction".into(),
            Problem::Duration(_) => "durations are written as in 30s, 1m30s or 500ms".into(),
            Problem::NoEqualsSign { .. } => "put values with blanks in quotes".into(),
            Problem::Mount(error) => return error.hint(),
            _ => return None,
        })
    }
}

fn hint_for_keyword(keyword: &str) -> Option<String> {
    if let Some(near) = suggest::nearest_keyword(keyword, &super::node::KEYWORDS) {
        return Some(format!("did you mean {near}?"));
    }
    let is_shell = keyword.starts_with(['&', '|', '-', ';', '>']);
    is_shell.then(|| "does the line before lack a continuation at its end?".to_owned())
}

fn hint_for_flag(flag: &str, instruction: &str, known: &[&'static str]) -> Option<String> {
    let name = flag.strip_prefix("--").unwrap_or(flag);
    if let Some(near) = suggest::nearest(name, known) {
        return Some(format!("did you mean --{near}?"));
    }
    let list = known.iter().map(|name| format!("--{name}")).collect::<Vec<_>>().join(", ");
    Some(if list.is_empty() {
        format!("{instruction} takes no flags")
    } else {
        format!("{instruction} takes {list}")
    })
}
