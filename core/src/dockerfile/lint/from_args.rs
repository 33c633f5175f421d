//! Variables in FROM: global ARGs and the predefined ones.

use crate::registry::reference;

use super::{
    super::ast::{Dockerfile, Span},
    Rule,
    linter::{Linter, Local},
    scope::Globals,
};

pub(super) static UNDEFINED_ARG_IN_FROM: Rule =
    Rule::new("UndefinedArgInFrom", "undefined-arg-in-from", "FROM command must use declared ARGs");

pub(super) static INVALID_DEFAULT_ARG_IN_FROM: Rule = Rule::new(
    "InvalidDefaultArgInFrom",
    "invalid-default-arg-in-from",
    "Default value for global ARG results in an empty or invalid base image name",
);

/// Reports names in a word of FROM that no ARG before the first FROM declares. A declared one without a value is fine.
pub(super) fn check_undefined(
    unmatched: &[String],
    globals: &Globals,
    span: Span,
    local: &Local,
    linter: &mut Linter,
) {
    for name in unmatched.iter().filter(|name| !globals.declared.contains(*name)) {
        let suggestion = linter.suggestion("", name, || globals.names());
        let detail = format!("FROM argument '{name}' is not declared{suggestion}");
        linter.add_at(&UNDEFINED_ARG_IN_FROM, span, local, detail);
    }
}

/// Reports bases that are no image names if no build argument is given. `defaults` are the globals of that case.
pub(super) fn check_defaults(dockerfile: &Dockerfile, defaults: &Globals, linter: &mut Linter) {
    for from in dockerfile.stages.iter().map(|stage| &stage.from) {
        let Ok(name) = defaults.expand(&from.image, dockerfile.directives.escape) else { return };
        if reference::parse(&name.value).is_err() {
            let detail = format!(
                "Default value for ARG {} results in empty or invalid base image name",
                from.image
            );
            linter.add(&INVALID_DEFAULT_ARG_IN_FROM, from.span, detail);
        }
    }
}
