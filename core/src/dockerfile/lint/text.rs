//! What the text alone shows, instruction by instruction: BuildKit looks for it while it parses.

use super::{
    super::{ast::InstructionKind, error::WarningKind, parse::Parsed},
    Rule, definitions,
    linter::{Linter, Local},
    names,
};

pub(super) static NO_EMPTY_CONTINUATION: Rule = Rule::new(
    "NoEmptyContinuation",
    "no-empty-continuation",
    "Empty continuation lines will become errors in a future release",
);

pub(super) static MAINTAINER_DEPRECATED: Rule = Rule::new(
    "MaintainerDeprecated",
    "maintainer-deprecated",
    "The MAINTAINER instruction is deprecated, use a label instead to define an image author",
);

pub(super) fn check(parsed: &Parsed, linter: &mut Linter) {
    for warning in &parsed.warnings {
        if warning.kind == WarningKind::EmptyContinuation {
            linter.add(&NO_EMPTY_CONTINUATION, warning.span, "Empty continuation line");
        }
    }
    for instruction in &parsed.dockerfile.global_args {
        definitions::check_arg(instruction, linter);
    }
    for stage in &parsed.dockerfile.stages {
        names::check_from(&stage.from, linter);
        definitions::check_from(&stage.from, linter);
        for instruction in &stage.instructions {
            if let InstructionKind::Maintainer(_) = instruction.kind {
                let local = Local::of(&instruction.comments);
                let detail = "Maintainer instruction is deprecated in favor of using label";
                linter.add_at(&MAINTAINER_DEPRECATED, instruction.span, &local, detail);
            }
            definitions::check_arg(instruction, linter);
        }
    }
}
