//! Every case of tests/golden: what BuildKit takes is taken, what its parser refuses is refused at its line.

use std::{fs, path::PathBuf};

use serde_json::Value;

use super::parse;

/// Texts of errors that the parser makes, beside those that say so themselves.
const PARSE_ERRORS: &[&str] = &[
    "dockerfile parse error on line",
    "failed to parse check options",
    "file with no instructions",
    "dockerfile contains no stages to build",
    "the Dockerfile cannot be empty",
    "dockerfile line greater than",
    "invalid escape token",
    "only one escape parser directive",
    "no build stage in current context",
    "unterminated heredoc",
    "when using JSON array syntax",
    "Syntax error - can't find =",
    "ENV must have two arguments",
    "LABEL must have two arguments",
    "device feature is only supported",
];

struct Case {
    id: String,
    dockerfile: Vec<u8>,
    expect: String,
    /// The line to name, where one is asserted.
    line: Option<u64>,
    text: String,
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn cases() -> Vec<Case> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let mut cases = Vec::new();
    for group in
        fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir())
    {
        for folder in fs::read_dir(group).unwrap().map(|entry| entry.unwrap().path()) {
            if !folder.join("case.json").exists() {
                continue;
            }
            let (case, golden) = (json(folder.join("case.json")), json(folder.join("golden.json")));
            let named = case["dockerfile"].as_str().unwrap_or("Dockerfile");
            let dockerfile = fs::read(folder.join(named))
                .or_else(|_| fs::read(folder.join("dockerfile")))
                .unwrap();
            cases.push(Case {
                id: folder.display().to_string(),
                dockerfile,
                expect: case["expect"].as_str().unwrap().to_owned(),
                line: case["error_line"].as_u64(),
                text: golden["error"]["text"].as_str().unwrap_or_default().to_owned(),
            });
        }
    }
    cases
}

#[test]
fn the_parser_takes_what_buildkit_takes() {
    let cases = cases();
    assert!(cases.len() > 700, "{}", cases.len());
    let (mut refused, mut wrong) = (0, Vec::new());
    for case in cases {
        let is_parse_error = PARSE_ERRORS.iter().any(|start| case.text.starts_with(start));
        match parse("Dockerfile", &case.dockerfile) {
            Ok(_) if case.expect != "error" || !is_parse_error => {}
            Err(errors) if case.expect == "error" && is_parse_error => {
                refused += 1;
                let line = u64::from(errors.first().span.first_line);
                if case.line.is_some_and(|expected| expected != line) {
                    wrong.push(format!("{}: line {line} ({errors}), not {:?}", case.id, case.line));
                }
            }
            Ok(_) => wrong.push(format!("{}: taken, not refused: {}", case.id, case.text)),
            Err(errors) => wrong.push(format!("{}: refused: {errors}", case.id)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(refused > 70, "{refused}");
}
