//! The names of stages, and the letter case of FROM … AS.

use std::collections::HashSet;

use super::{
    super::ast::{Dockerfile, From},
    Rule,
    linter::{Linter, Local},
};

pub(super) static STAGE_NAME_CASING: Rule =
    Rule::new("StageNameCasing", "stage-name-casing", "Stage names should be lowercase");

pub(super) static FROM_AS_CASING: Rule = Rule::new(
    "FromAsCasing",
    "from-as-casing",
    "The 'as' keyword should match the case of the 'from' keyword",
);

pub(super) static DUPLICATE_STAGE_NAME: Rule =
    Rule::new("DuplicateStageName", "duplicate-stage-name", "Stage names should be unique");

pub(super) static RESERVED_STAGE_NAME: Rule = Rule::new(
    "ReservedStageName",
    "reserved-stage-name",
    "Reserved words should not be used as stage names",
);

const RESERVED: [&str; 2] = ["context", "scratch"];

/// What one FROM shows.
pub(super) fn check_from(from: &From, linter: &mut Linter) {
    let local = Local::of(&from.comments);
    if let Some(name) = from.written_name.as_deref().filter(|name| *name != name.to_lowercase()) {
        let detail = format!("Stage name '{name}' should be lowercase");
        linter.add_at(&STAGE_NAME_CASING, from.span, &local, detail);
    }
    if let Some(keyword) = from.as_keyword.as_deref().filter(|keyword| !matches(from, keyword)) {
        let detail = format!("'{keyword}' and '{}' keywords' casing do not match", from.keyword);
        linter.add_at(&FROM_AS_CASING, from.span, &local, detail);
    }
}

/// Whether AS is written as FROM is; a FROM of mixed case is another check's.
fn matches(from: &From, as_keyword: &str) -> bool {
    if from.keyword == from.keyword.to_lowercase() {
        as_keyword == as_keyword.to_lowercase()
    } else if from.keyword == from.keyword.to_uppercase() {
        as_keyword == as_keyword.to_uppercase()
    } else {
        true
    }
}

/// What the names of all stages show. Comments above a FROM do not switch these off, as in BuildKit.
pub(super) fn check_stages(dockerfile: &Dockerfile, linter: &mut Linter) {
    let mut seen = HashSet::new();
    for from in dockerfile.stages.iter().map(|stage| &stage.from) {
        let Some(name) = from.name.as_deref() else { continue };
        if RESERVED.contains(&name) {
            let detail =
                format!("Stage name should not use the same name as reserved stage {name:?}");
            linter.add(&RESERVED_STAGE_NAME, from.span, detail);
        }
        if !seen.insert(name) {
            let detail = format!("Duplicate stage name {name:?}, stage names should be unique");
            linter.add(&DUPLICATE_STAGE_NAME, from.span, detail);
        }
    }
}
