//! The old form `ENV name the rest`, and LABEL's.

use super::{
    super::ast::{Instruction, Pair},
    Rule,
    linter::{Linter, Local},
};

pub(super) static LEGACY_KEY_VALUE_FORMAT: Rule = Rule::new(
    "LegacyKeyValueFormat",
    "legacy-key-value-format",
    "Legacy key/value format with whitespace separator should not be used",
);

pub(super) fn check(instruction: &Instruction, pair: &Pair, local: &Local, linter: &mut Linter) {
    if !pair.delimited {
        let keyword = &instruction.keyword;
        let detail = format!(
            "\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format"
        );
        linter.add_at(&LEGACY_KEY_VALUE_FORMAT, instruction.span, local, detail);
    }
}
