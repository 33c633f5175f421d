//! Variables that nothing defines.

use super::{
    super::ast::Span,
    Rule,
    linter::{Linter, Local},
    scope::Scope,
};

pub(super) static UNDEFINED_VAR: Rule =
    Rule::new("UndefinedVar", "undefined-var", "Variables should be defined before their use");

/// Reports the names that a word uses and `scope` lacks. An ARG without a value defines its name; behind an unknown base
/// any name may be defined.
pub(super) fn check(
    unmatched: &[String],
    scope: &Scope,
    span: Span,
    local: &Local,
    linter: &mut Linter,
) {
    if unmatched.is_empty() || scope.is_open() {
        return;
    }
    for name in unmatched {
        if scope.declares(name) || super::scope::is_switch(name) {
            continue;
        }
        let suggestion = linter.suggestion("$", name, || scope.names());
        let detail = format!("Usage of undefined variable '${name}'{suggestion}");
        linter.add_at(&UNDEFINED_VAR, span, local, detail);
    }
}
