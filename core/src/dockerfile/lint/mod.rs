//! LINT: the build checks of Dockerfile 1.26, each under its BuildKit name. Pure: no I/O here (invariant 1).
//!
//! A check needs a parsed Dockerfile and what is known of the images it builds on. An image that is not known (no
//! network) silences what depends on it: a variable may be one of the base's then.
//!
//! The order of findings is BuildKit's: what the text alone shows, then stages, then instructions stage by stage, up to
//! the first error.

mod casing;
mod commands;
mod copy;
mod definitions;
mod dispatch;
mod expose;
mod from_args;
mod linter;
mod names;
mod pairs;
mod platforms;
mod reach;
mod rules;
mod scope;
mod secrets;
mod stages;
mod text;
mod variables;
mod workdir;

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::{
    error::{Class, Error},
    image::{ImageConfig, platform::Platform},
    plan::ImageUse,
    request::BuildRequest,
};

use super::{
    ast::{Dockerfile, Span},
    check::{self, CheckOptions},
    parse::{Parsed, parse},
};

use linter::Linter;
pub use rules::{RULES, Rule};

/// One thing to report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub rule: &'static Rule,
    /// The whole instruction.
    pub span: Span,
    /// What is wrong, in BuildKit's words.
    pub detail: String,
}

/// What the caller knows of the surroundings of a Dockerfile.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// Configurations of images by their use, as the planner names them; others count as unknown.
    pub images: &'a BTreeMap<ImageUse, ImageConfig>,
    /// The platform that was asked for; `None` where none was, which is the host's.
    pub platform: Option<&'a Platform>,
    /// Whether the ignore file leaves out a source of COPY or ADD, given as a cleaned path. `None` without an ignore file.
    pub ignored: Option<&'a dyn Fn(&str) -> bool>,
    /// Whether the instructions of all stages are checked, or of those that the target needs.
    pub all_stages: bool,
}

/// What the checks gave.
#[derive(Debug)]
pub struct Report {
    /// In BuildKit's order.
    pub findings: Vec<Finding>,
    /// What makes the Dockerfile unbuildable. Checks ended there.
    pub error: Option<Error>,
    /// Whether `error=true` was asked for.
    pub findings_are_errors: bool,
}

impl Report {
    /// The names of the rules with findings, sorted.
    pub fn rule_names(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.findings.iter().map(|finding| finding.rule.name).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The error that ends a build because of its findings, if `error=true` was asked for: class `Gate`, at the first one.
    pub fn gate(&self, dockerfile: &Dockerfile) -> Option<Error> {
        let first = self.findings.first().filter(|_| self.findings_are_errors)?;
        let title = format!("lint violation found for rules: {}", self.rule_names().join(", "));
        let hint = "the findings are shown as warnings; `# check=skip=NAME` silences a check, and error=true makes them errors";
        Some(Error::new(Class::Gate, title).hint(hint).at(dockerfile, first.span))
    }
}

/// Checks a parsed Dockerfile.
pub fn check(parsed: &Parsed, request: &BuildRequest, known: &Known<'_>) -> Report {
    let dockerfile = &parsed.dockerfile;
    let options = match options(dockerfile.directives.check.as_deref(), request) {
        Ok(options) => options,
        Err(error) => return Report::refused(error),
    };
    let mut linter = Linter::new(options);
    text::check(parsed, &mut linter);
    names::check_stages(dockerfile, &mut linter);
    casing::check(dockerfile, &mut linter);
    let error = stages::check(dockerfile, request, known, &mut linter).err();
    linter.report(error)
}

/// Checks a Dockerfile's bytes. Of one that can't be parsed, what stands before the first error is checked as text.
pub fn check_source(
    name: &str,
    bytes: &[u8],
    request: &BuildRequest,
    known: &Known<'_>,
) -> (Option<Dockerfile>, Report) {
    match parse(name, bytes) {
        Ok(parsed) => {
            let report = check(&parsed, request, known);
            (Some(parsed.dockerfile), report)
        }
        Err(errors) => {
            let first = errors.first();
            let before = lines_before(bytes, first.span.first_line);
            let mut report = check_text(name, before, request);
            report.error = Some(first.to_error(name, String::from_utf8_lossy(bytes).into()));
            (None, report)
        }
    }
}

/// The images that the stages build on or copy from, as far as the Dockerfile alone tells: [`Known::images`] should hold
/// their configurations.
pub fn images(
    dockerfile: &Dockerfile,
    request: &BuildRequest,
    platform: Option<&Platform>,
) -> Vec<(ImageUse, Span)> {
    stages::images(dockerfile, request, platform)
}

fn check_text(name: &str, bytes: &[u8], request: &BuildRequest) -> Report {
    let Ok(parsed) = parse(name, bytes) else { return Report::empty() };
    match options(parsed.dockerfile.directives.check.as_deref(), request) {
        Ok(options) => {
            let mut linter = Linter::new(options);
            text::check(&parsed, &mut linter);
            linter.report(None)
        }
        Err(error) => Report::refused(error),
    }
}

/// The build argument BUILDKIT_DOCKERFILE_CHECK replaces the directive.
fn options(directive: Option<&str>, request: &BuildRequest) -> Result<CheckOptions, Error> {
    let given = request.build_args.get("BUILDKIT_DOCKERFILE_CHECK").map(String::as_str);
    check::parse(given.or(directive).unwrap_or_default()).map_err(|error| {
        let hint = "options are skip=NAMES, experimental=NAMES and error=true, separated by `;`";
        Error::from_cause(Class::Input, error).hint(hint)
    })
}

fn lines_before(bytes: &[u8], line: u32) -> &[u8] {
    let wanted = (line as usize).saturating_sub(1);
    let mut newlines = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    match wanted.checked_sub(1).and_then(|last| newlines.nth(last)) {
        Some((at, _)) => &bytes[..=at],
        None => &[],
    }
}

impl Report {
    fn empty() -> Self {
        Report { findings: Vec::new(), error: None, findings_are_errors: false }
    }

    fn refused(error: Error) -> Self {
        Report { error: Some(error), ..Report::empty() }
    }
}
