//! The comment above an ARG or a named stage, which describes it.

use super::{
    super::ast::{From, Instruction, InstructionKind, Span},
    Rule,
    linter::{Linter, Local},
};

pub(super) static INVALID_DEFINITION_DESCRIPTION: Rule = Rule {
    experimental: true,
    ..Rule::new(
        "InvalidDefinitionDescription",
        "invalid-definition-description",
        "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a description comment, add an empty line or comment between the instruction and the comment.",
    )
};

pub(super) fn check_from(from: &From, linter: &mut Linter) {
    if let Some(name) = &from.name {
        check("FROM", &[name], &from.comments, from.span, linter);
    }
}

pub(super) fn check_arg(instruction: &Instruction, linter: &mut Linter) {
    if let InstructionKind::Arg(pairs) = &instruction.kind {
        let names: Vec<&str> = pairs.iter().map(|pair| pair.key.as_str()).collect();
        check("ARG", &names, &instruction.comments, instruction.span, linter);
    }
}

/// The last comment line has to begin with one of the names.
fn check(keyword: &str, names: &[&str], comments: &[String], span: Span, linter: &mut Linter) {
    let Some(comment) = comments.last() else { return };
    let first = comment.split(' ').next().unwrap_or_default();
    if names.contains(&first) {
        return;
    }
    let example = match names {
        [name] => name,
        _ => "<arg_key>",
    };
    let detail =
        format!("Comment for {keyword} should follow the format: `# {example} <description>`");
    linter.add_at(&INVALID_DEFINITION_DESCRIPTION, span, &Local::of(comments), detail);
}
