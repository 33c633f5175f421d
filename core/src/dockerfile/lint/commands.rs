//! CMD, ENTRYPOINT and HEALTHCHECK: their form, and that each counts once.

use super::{
    super::ast::{Command, Instruction, Span},
    Rule,
    linter::{Linter, Local},
};

pub(super) static JSON_ARGS_RECOMMENDED: Rule = Rule::new(
    "JSONArgsRecommended",
    "json-args-recommended",
    "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals",
);

pub(super) static MULTIPLE_INSTRUCTIONS_DISALLOWED: Rule = Rule::new(
    "MultipleInstructionsDisallowed",
    "multiple-instructions-disallowed",
    "Multiple instructions of the same type should not be used in the same stage",
);

/// Where a stage has its last CMD, ENTRYPOINT and HEALTHCHECK so far.
#[derive(Default)]
pub(super) struct Last {
    pub cmd: Option<Span>,
    pub entrypoint: Option<Span>,
    pub healthcheck: Option<Span>,
}

/// Reports the earlier one of two, because it is the one without effect.
pub(super) fn check_once(
    instruction: &Instruction,
    last: &mut Option<Span>,
    local: &Local,
    linter: &mut Linter,
) {
    if let Some(earlier) = last.replace(instruction.span) {
        let detail = format!(
            "Multiple {} instructions should not be used in the same stage because only the last one will be used",
            instruction.keyword
        );
        linter.add_at(&MULTIPLE_INSTRUCTIONS_DISALLOWED, earlier, local, detail);
    }
}

/// Reports the shell form, unless a SHELL says that it is meant.
pub(super) fn check_form(
    instruction: &Instruction,
    command: &Command,
    has_shell: bool,
    local: &Local,
    linter: &mut Linter,
) {
    if matches!(command, Command::Shell(_)) && !has_shell {
        let detail = format!(
            "JSON arguments recommended for {} to prevent unintended behavior related to OS signals",
            instruction.keyword
        );
        linter.add_at(&JSON_ARGS_RECOMMENDED, instruction.span, local, detail);
    }
}
