//! Both passes together, and what they leave: stages.

use std::sync::Arc;

use super::{
    ast::{Dockerfile, Instruction, InstructionKind, Span, Stage},
    error::{ParseError, ParseErrors, ParseWarning, Problem, WarningKind},
    instruction::{self, Meaning},
    lexer::{self, Lexed},
    limits,
    node::Node,
};

/// What [`parse`] makes of a Dockerfile.
#[derive(Clone, Debug)]
pub struct Parsed {
    pub dockerfile: Dockerfile,
    pub warnings: Vec<ParseWarning>,
}

/// Parses a Dockerfile of at most 16 MiB; `name` is what errors will call it.
///
/// # Errors
/// Everything wrong with the text, the error that BuildKit would name first.
pub fn parse(name: &str, bytes: &[u8]) -> Result<Parsed, ParseErrors> {
    let mut lexed = checked(bytes);
    // After an error a FROM may be missing that the file has.
    let mut assembly = Assembly { in_stage: !lexed.errors.is_empty(), ..Assembly::default() };
    let nodes = std::mem::take(&mut lexed.nodes);
    nodes.into_iter().for_each(|node| assembly.take(node));
    let Lexed { directives, mut errors, mut warnings, .. } = lexed;
    errors.append(&mut assembly.errors);
    if errors.is_empty() && assembly.stages.is_empty() {
        let last = bytes.split(|b| *b == b'\n').count() as u32;
        errors.push(ParseError::new(
            Span { first_line: last, last_line: last, column: None },
            &Problem::NoStages,
        ));
    }
    if let Some(errors) = in_order(errors) {
        return Err(errors);
    }
    warnings.append(&mut assembly.warnings);
    warnings.sort_by_key(|warning| warning.span.first_line);
    let source: Arc<str> = String::from_utf8_lossy(bytes).into();
    let dockerfile = Dockerfile {
        name: name.to_owned(),
        source,
        directives,
        global_args: assembly.global_args,
        stages: assembly.stages,
    };
    Ok(Parsed { dockerfile, warnings })
}

/// Parses a trigger of an image's ONBUILD list (or of a parent stage): a Dockerfile of one instruction, whose escape is
/// `\` whatever the Dockerfile's directive says. The span counts from the trigger's own first line.
pub fn parse_onbuild(trigger: &str) -> Result<Instruction, ParseError> {
    let mut lexed = checked(trigger.as_bytes());
    if let Some(errors) = in_order(std::mem::take(&mut lexed.errors)) {
        return Err(errors.first().clone());
    }
    let mut nodes = lexed.nodes.into_iter();
    let (Some(node), None) = (nodes.next(), nodes.next()) else {
        return Err(ParseError::new(Span::default(), &Problem::NotOneTrigger));
    };
    let span = node.span;
    match instruction::read(node) {
        Ok(Meaning::Instruction(instruction)) => Ok(*instruction),
        Ok(Meaning::From(_)) => {
            Err(ParseError::new(span, &Problem::NotATrigger { keyword: "FROM".to_owned() }))
        }
        Err(problem) => Err(ParseError::new(span, &problem)),
    }
}

/// The first pass, if the size allows it.
fn checked(bytes: &[u8]) -> Lexed<'_> {
    let problem = match bytes.len() {
        0 => Problem::Empty,
        length if length > limits::DOCKERFILE_BYTES_MAX => Problem::TooBig,
        _ => return lexer::lex(bytes),
    };
    let span = Span { first_line: 1, last_line: 1, column: None };
    Lexed::refused(ParseError::new(span, &problem))
}

/// The first pass's first error stays in front, because BuildKit makes its passes one after the other; the others go by
/// their lines.
fn in_order(mut errors: Vec<ParseError>) -> Option<ParseErrors> {
    if let Some((_, others)) = errors.split_first_mut() {
        others.sort_by_key(|error| error.span.first_line);
    }
    errors.truncate(limits::ERRORS_MAX);
    ParseErrors::of(errors)
}

/// Instructions falling into stages.
#[derive(Default)]
struct Assembly {
    global_args: Vec<Instruction>,
    stages: Vec<Stage>,
    errors: Vec<ParseError>,
    warnings: Vec<ParseWarning>,
    /// A FROM was seen, even one that is wrong.
    in_stage: bool,
    /// An instruction before the first FROM was told of.
    told_before_from: bool,
}

impl Assembly {
    fn take(&mut self, node: Node<'_>) {
        if self.errors.len() >= limits::ERRORS_MAX {
            return;
        }
        let (span, head) = (node.span, node.head);
        let is_from = node.keyword.eq_ignore_ascii_case("from");
        self.warn_of_flags(&node);
        match instruction::read(node) {
            Ok(Meaning::From(from)) if self.stages.len() < limits::STAGES_MAX => {
                self.stages.push(Stage { from: *from, instructions: Vec::new() });
            }
            Ok(Meaning::From(_)) => {
                self.errors.push(ParseError::at(span, head, &Problem::TooManyStages))
            }
            Ok(Meaning::Instruction(instruction)) => self.place(*instruction),
            Err(problem) => self.errors.push(ParseError::at(span, head, &problem)),
        }
        self.in_stage |= is_from;
    }

    fn place(&mut self, instruction: Instruction) {
        match (self.stages.last_mut(), &instruction.kind) {
            (Some(stage), _) => stage.instructions.push(instruction),
            (None, InstructionKind::Arg(_)) => self.global_args.push(instruction),
            (None, _) if self.in_stage || self.told_before_from => {}
            (None, _) => {
                self.errors.push(ParseError::new(instruction.span, &Problem::BeforeFrom));
                self.told_before_from = true;
            }
        }
    }

    fn warn_of_flags(&mut self, node: &Node<'_>) {
        if !node.flags.is_empty() && instruction::ignores_flags(node) {
            self.warnings.push(ParseWarning {
                kind: WarningKind::IgnoredFlags,
                span: node.span,
                message: format!(
                    "{} takes no flags: {} has no effect",
                    node.keyword.to_uppercase(),
                    node.flags[0]
                ),
            });
        }
    }
}
