//! Takes findings, unless their rule is switched off.

use crate::error::Error;

use super::{
    super::{
        ast::Span,
        check::{self, CheckOptions},
        suggest,
    },
    Finding, Report, Rule,
};

/// Findings told of one file; a hostile one could have a million.
const FINDINGS_MAX: usize = 10_000;
/// Names compared in search of suggestions, for one file.
const COMPARISONS_MAX: usize = 1 << 17;

/// The findings so far.
pub(super) struct Linter {
    options: CheckOptions,
    findings: Vec<Finding>,
    comparisons_left: usize,
}

/// What the comments above one instruction ask for.
#[derive(Default)]
pub(super) struct Local(Option<CheckOptions>);

impl Local {
    pub(super) fn of(comments: &[String]) -> Self {
        Local(check::of_comments(comments))
    }

    fn has(&self, rule: &Rule) -> bool {
        let choice = |options: &CheckOptions| match rule.experimental {
            true => options.experimental.has(rule.name),
            false => options.skip.has(rule.name),
        };
        self.0.as_ref().is_some_and(choice)
    }
}

impl Linter {
    pub(super) fn new(options: CheckOptions) -> Self {
        Linter { options, findings: Vec::new(), comparisons_left: COMPARISONS_MAX }
    }

    /// A finding that only the file's own options can switch off.
    pub(super) fn add(&mut self, rule: &'static Rule, span: Span, detail: impl Into<String>) {
        self.add_at(rule, span, &Local::default(), detail);
    }

    /// A finding at an instruction with options of its own. An experimental rule is switched on by them, another one off.
    pub(super) fn add_at(
        &mut self,
        rule: &'static Rule,
        span: Span,
        local: &Local,
        detail: impl Into<String>,
    ) {
        let runs = match rule.experimental {
            true => self.options.experimental.has(rule.name) || local.has(rule),
            false => !self.options.skip.has(rule.name) && !local.has(rule),
        };
        if runs && self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding { rule, span, detail: detail.into() });
        }
    }

    /// The known name that is nearest to `given`, as a suggestion behind a message; nothing if none is near.
    pub(super) fn suggestion<'o>(
        &mut self,
        sign: &str,
        given: &str,
        options: impl FnOnce() -> Vec<&'o str>,
    ) -> String {
        if self.comparisons_left == 0 {
            return String::new();
        }
        let options = options();
        self.comparisons_left = self.comparisons_left.saturating_sub(options.len());
        let near = suggest::nearest(given, &options);
        near.map(|near| format!(" (did you mean {sign}{near}?)")).unwrap_or_default()
    }

    pub(super) fn report(self, error: Option<Error>) -> Report {
        Report { findings: self.findings, error, findings_are_errors: self.options.error }
    }
}
