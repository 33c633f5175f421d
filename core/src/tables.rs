//! Tables of facts (`core/tables/*.jsonl`): inputs with what BuildKit, moby/patternmatcher or Go make of them.
//!
//! A row is a JSON array; lines that begin with `#` say what its columns are and where the facts are from.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;

use crate::{
    context::{Glob, Patterns},
    dockerfile::{ast::Escape, expose, words::Expander},
    fetch::{GitMtime, git_reference},
};

/// The rows of a table's text; all of them must have the columns of `T`.
pub(crate) fn rows<T: DeserializeOwned>(text: &str) -> Vec<T> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let rows: Vec<T> = lines
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
        .collect();
    assert!(!rows.is_empty());
    rows
}

#[test]
fn words() {
    let lookup = |name: &str| {
        let value = match name {
            "PWD" => "/home",
            "SHELL" => "bash",
            "KOREAN" => "한국어",
            "NULL" => "",
            _ => return None,
        };
        Some(value.to_owned())
    };
    for (word, value) in rows::<(String, Option<String>)>(include_str!("../tables/words.jsonl")) {
        let expanded = Expander::new(Escape::Backslash, &lookup).expand(&word);
        assert_eq!(expanded.ok().map(|expanded| expanded.value), value, "{word}");
    }
}

#[test]
fn word_splits() {
    type Row = (BTreeMap<String, String>, String, Option<Vec<String>>);
    for (variables, word, words) in rows::<Row>(include_str!("../tables/word-splits.jsonl")) {
        let lookup = |name: &str| variables.get(name).cloned();
        let split = Expander::new(Escape::Backslash, &lookup).expand_words(&word);
        assert_eq!(split.ok(), words, "{word}");
    }
}

#[test]
fn operators() {
    type Names = Option<Vec<String>>;
    type Row = (BTreeMap<String, String>, String, Option<String>, Names, Names);
    for row in rows::<Row>(include_str!("../tables/operators.jsonl")) {
        let (variables, word, value, matched, unmatched) = row;
        let lookup = |name: &str| variables.get(name).cloned();
        let expanded = Expander::new(Escape::Backslash, &lookup).expand(&word);
        let Some(value) = value else {
            assert!(expanded.is_err(), "{word}");
            continue;
        };
        let expanded = expanded.unwrap_or_else(|error| panic!("{word}: {error}"));
        assert_eq!(expanded.value, value, "{word}");
        if let (Some(matched), Some(unmatched)) = (matched, unmatched) {
            assert_eq!((expanded.matched, expanded.unmatched), (matched, unmatched), "{word}");
        }
    }
}

/// As a walk would: each directory above the path hands its result down.
fn walked(patterns: &Patterns, path: &str) -> bool {
    let ends = path.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0);
    let mut above = None;
    for end in ends {
        above = Some(patterns.matches(&path.as_bytes()[..end], above.as_ref()).1);
    }
    patterns.matches(path.as_bytes(), above.as_ref()).0
}

#[test]
fn patterns() {
    type Row = (Vec<String>, String, Option<bool>);
    for (lines, path, matches) in rows::<Row>(include_str!("../tables/patterns.jsonl")) {
        let parsed = Patterns::parse(lines.iter().map(|line| line.as_bytes()));
        assert_eq!(
            parsed.ok().map(|patterns| walked(&patterns, &path)),
            matches,
            "{lines:?} {path}"
        );
    }
}

#[test]
fn globs() {
    type Row = (String, String, Option<bool>);
    for (pattern, name, matches) in rows::<Row>(include_str!("../tables/globs.jsonl")) {
        let glob = Glob::parse(pattern.as_bytes());
        assert_eq!(
            glob.ok().map(|glob| glob.matches(name.as_bytes())),
            matches,
            "{pattern} {name}"
        );
    }
}

#[test]
fn exposed_ports() {
    type Row = (String, Option<Vec<String>>);
    for (argument, ports) in rows::<Row>(include_str!("../tables/expose.jsonl")) {
        let exposed = expose::parse(&argument).ok().map(|exposed| exposed.entries().collect());
        assert_eq!(exposed, ports, "{argument}");
    }
}

#[derive(Debug, Default, PartialEq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct GitParts {
    remote: String,
    #[serde(rename = "ref")]
    reference: String,
    subdir: String,
    checksum: String,
    mtime: String,
    short_name: String,
    local: bool,
    fetch_by_commit: bool,
}

#[test]
fn git_references() {
    type Row = (String, Option<GitParts>, bool);
    for (text, parts, refused) in rows::<Row>(include_str!("../tables/git-references.jsonl")) {
        let parsed = git_reference::parse(&text);
        assert_eq!(parsed.is_err(), refused, "{text}");
        let Some(parts) = parts else {
            assert!(!matches!(parsed, Ok(Some(_))), "{text}");
            continue;
        };
        let found = parsed.unwrap().unwrap_or_else(|| panic!("{text} is no Git reference"));
        assert_eq!(found.reference.as_deref().unwrap_or_default(), parts.reference, "{text}");
        let subdirectory = found.subdirectory.to_string();
        assert_eq!(subdirectory.trim_matches('/'), parts.subdir.trim_matches('/'), "{text}");
        let checksum = found.checksum.as_ref().map_or("", |checksum| checksum.as_str());
        assert_eq!(checksum, parts.checksum, "{text}");
        assert_eq!(found.mtime == GitMtime::Commit, parts.mtime == "commit", "{text}");
        assert_eq!(found.like_local_path, parts.local, "{text}");
        assert_eq!(found.fetch_by_commit, parts.fetch_by_commit, "{text}");
        assert!(found.remote.url.contains(&parts.short_name), "{text}: {}", found.remote.url);
    }
}
