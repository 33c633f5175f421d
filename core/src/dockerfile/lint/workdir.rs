//! The first WORKDIR of a stage and its parents.

use super::{
    super::ast::Span,
    Rule,
    linter::{Linter, Local},
};

pub(super) static WORKDIR_RELATIVE_PATH: Rule = Rule::new(
    "WorkdirRelativePath",
    "workdir-relative-path",
    "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes",
);

/// `path` is expanded. Only the first WORKDIR is looked at: once it is absolute, the ones behind it are fine.
pub(super) fn check(path: &str, span: Span, local: &Local, linter: &mut Linter) {
    if !path.starts_with('/') {
        let detail = format!(
            "Relative workdir {path:?} can have unexpected results if the base image changes"
        );
        linter.add_at(&WORKDIR_RELATIVE_PATH, span, local, detail);
    }
}
