//! The letter case of keywords: the file's majority decides.

use super::{
    super::ast::{Dockerfile, Span, Stage},
    Rule,
    linter::Linter,
};

pub(super) static CONSISTENT_INSTRUCTION_CASING: Rule = Rule::new(
    "ConsistentInstructionCasing",
    "consistent-instruction-casing",
    "All commands within the Dockerfile should use the same casing (either upper or lower)",
);

/// Looks at the stages' keywords; ARGs before the first FROM do not count. Comments above an instruction do not switch
/// this off, as in BuildKit.
pub(super) fn check(dockerfile: &Dockerfile, linter: &mut Linter) {
    let (mut lower, mut upper) = (0, 0);
    for (keyword, _) in dockerfile.stages.iter().flat_map(keywords) {
        if keyword == keyword.to_lowercase() {
            lower += 1;
        } else if keyword == keyword.to_uppercase() {
            upper += 1;
        }
    }
    let (is_right, wanted): (fn(&str) -> bool, _) = match lower > upper {
        true => (|keyword| keyword == keyword.to_lowercase(), "lowercase"),
        false => (|keyword| keyword == keyword.to_uppercase(), "uppercase"),
    };
    for (keyword, span) in dockerfile.stages.iter().flat_map(keywords) {
        if !is_right(keyword) {
            let detail = format!(
                "Command '{keyword}' should match the case of the command majority ({wanted})"
            );
            linter.add(&CONSISTENT_INSTRUCTION_CASING, span, detail);
        }
    }
}

fn keywords(stage: &Stage) -> impl Iterator<Item = (&str, Span)> {
    let from = (stage.from.keyword.as_str(), stage.from.span);
    let others = stage.instructions.iter().map(|each| (each.keyword.as_str(), each.span));
    std::iter::once(from).chain(others)
}
