//! The first pass: bytes -> nodes. Goes on after an error where it can, so that one run tells of all.

use super::{
    ast::{Directives, Heredoc, Span},
    check, directive,
    error::{ParseError, ParseWarning, Problem, WarningKind},
    heredoc::{self, Mark},
    limits,
    lines::{self, Joiner, Lines, Logical},
    node::Node,
};

/// What the first pass makes of a file.
#[derive(Default)]
pub(super) struct Lexed<'a> {
    pub nodes: Vec<Node<'a>>,
    pub directives: Directives,
    pub errors: Vec<ParseError>,
    pub warnings: Vec<ParseWarning>,
    arguments: usize,
    /// How often here-documents were looked for after an error, each time perhaps up to the end of the file.
    skips: usize,
}

impl Lexed<'_> {
    /// Nothing but an error.
    pub(super) fn refused(error: ParseError) -> Self {
        Lexed { errors: vec![error], ..Lexed::default() }
    }
}

pub(super) fn lex(bytes: &[u8]) -> Lexed<'_> {
    let mut lexed = Lexed::default();
    lexed.detect_directives(bytes);
    let mut joiner = Joiner::new(bytes);
    while lexed.errors.len() < limits::ERRORS_MAX {
        match joiner.next() {
            Ok(Some(logical)) => {
                if let Err(problem) = lexed.take(&mut joiner, logical) {
                    lexed.errors.push(problem);
                    break;
                }
            }
            Ok(None) => break,
            Err(error) => {
                lexed.errors.push(error);
                break;
            }
        }
    }
    lexed.errors.extend(joiner.lines.too_long());
    lexed.directives.escape = joiner.escape;
    if lexed.nodes.is_empty() && lexed.errors.is_empty() {
        let last = joiner.lines.number;
        let span = Span { first_line: last.max(1), last_line: last.max(1), column: None };
        lexed.errors.push(ParseError::new(span, &Problem::NoInstructions));
    }
    lexed
}

impl<'a> Lexed<'a> {
    /// `syntax` and `check`, which are looked for before the file is parsed.
    fn detect_directives(&mut self, bytes: &[u8]) {
        let span = |line| Span { first_line: line, last_line: line, column: None };
        if let Some(found) = directive::detect_check(bytes) {
            if let Err(error) = check::parse(&found.value) {
                self.errors.push(ParseError::new(span(found.line), &error.into()));
            }
            self.directives.check = Some(found.value);
        }
        let Some(found) = directive::detect_syntax(bytes) else { return };
        if !directive::is_dockerfile_frontend(&found.value) {
            let problem = Problem::UnknownFrontend { image: found.value.clone() };
            self.errors.push(ParseError::new(span(found.line), &problem));
        } else if directive::is_labs(&found.value) {
            self.warnings.push(ParseWarning {
                kind: WarningKind::LabsSyntax,
                span: span(found.line),
                message: format!(
                    "{} asks for labs features; only the stable ones are built in",
                    found.value
                ),
            });
        }
        self.directives.syntax = Some(found.value);
    }

    /// Takes one logical line and the here-documents behind it. `Err` ends the pass; other errors are put down.
    fn take(&mut self, joiner: &mut Joiner<'a>, logical: Logical<'a>) -> Result<(), ParseError> {
        let (span, head) = (logical.span, logical.head);
        if self.nodes.len() == limits::INSTRUCTIONS_MAX {
            return Err(ParseError::new(span, &Problem::TooManyInstructions));
        }
        let text = String::from_utf8_lossy(&logical.text).into_owned();
        let taken = self.node(joiner, logical);
        if joiner.lines.too_long().is_some() {
            return Ok(());
        }
        match taken {
            Ok(node) => {
                self.arguments += node.arguments.count();
                if !node.is_known() {
                    self.skip_heredocs(joiner, &text);
                }
                self.nodes.push(node);
            }
            Err(problem) => {
                let span = Span { last_line: joiner.lines.number, ..span };
                self.errors.push(ParseError::at(span, head, &problem));
                if heredocs_may_follow(&text) {
                    self.skip_heredocs(joiner, &text);
                }
            }
        }
        if self.arguments > limits::ARGUMENTS_MAX {
            return Err(ParseError::new(span, &Problem::TooManyArguments));
        }
        Ok(())
    }

    /// After an error: steps over the here-documents of `text`, if they have their ends, lest each of their lines
    /// become an error too.
    fn skip_heredocs(&mut self, joiner: &mut Joiner<'a>, text: &str) {
        let mut lines = joiner.lines.clone();
        let Ok(marks) = heredoc::marks(text) else { return };
        if marks.is_empty() || self.skips == limits::ERRORS_MAX {
            return;
        }
        self.skips += 1;
        if bodies(&mut lines, marks).is_ok() {
            joiner.lines = lines;
        }
    }

    fn node(&mut self, joiner: &mut Joiner<'a>, logical: Logical<'a>) -> Result<Node<'a>, Problem> {
        let text = text_of(&logical)?;
        if logical.empty_continuation {
            self.warnings.push(ParseWarning {
                kind: WarningKind::EmptyContinuation,
                span: Span { first_line: logical.span.last_line, column: None, ..logical.span },
                message: "Empty continuation line".to_owned(),
            });
        }
        let mut node = Node::of_line(text, joiner.escape)?;
        node.heredocs = bodies(&mut joiner.lines, node.marks()?)?;
        Ok(Node {
            span: Span { last_line: joiner.lines.number, ..logical.span },
            head: logical.head,
            comments: logical.comments,
            ..node
        })
    }
}

fn text_of<'l>(logical: &'l Logical<'_>) -> Result<&'l str, Problem> {
    if logical.text.len() > limits::INSTRUCTION_BYTES_MAX {
        return Err(Problem::InstructionTooLong);
    }
    if logical.text.contains(&0) {
        return Err(Problem::Nul);
    }
    str::from_utf8(&logical.text).map_err(|_| Problem::NotUtf8)
}

/// The here-documents of `marks`, read off `lines` one after the other.
fn bodies(lines: &mut Lines<'_>, marks: Vec<Mark>) -> Result<Vec<Heredoc>, Problem> {
    marks.into_iter().map(|mark| body(lines, mark)).collect()
}

fn body(lines: &mut Lines<'_>, mark: Mark) -> Result<Heredoc, Problem> {
    let mut raw = Vec::new();
    for line in lines.by_ref() {
        let mut bare = lines::trim_newline(line);
        while mark.chomp
            && let [b'\t', rest @ ..] = bare
        {
            bare = rest;
        }
        if bare == mark.name.as_bytes() {
            let raw = String::from_utf8(raw).map_err(|_| Problem::NotUtf8)?;
            return Ok(mark.with_body(raw));
        }
        raw.extend_from_slice(line);
    }
    Err(Problem::UnterminatedHeredoc { name: mark.name })
}

/// After an error: whether lines that follow may be here-documents rather than instructions.
fn heredocs_may_follow(text: &str) -> bool {
    let keyword = text.split_whitespace().next().unwrap_or_default().to_ascii_lowercase();
    matches!(keyword.as_str(), "add" | "copy" | "run" | "onbuild")
}
