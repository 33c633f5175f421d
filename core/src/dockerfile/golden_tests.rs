//! Every case of tests/golden: what BuildKit takes is taken, what its parser refuses is refused at its line.

use std::{fs, path::PathBuf};

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    ast::{ArgPair, Command, Escape, Instruction, InstructionKind, Pair, Stage},
    command::run_text,
    parse,
    words::Expander,
};

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
    build_args: BTreeMap<String, String>,
    /// What the history says of each step.
    created_by: BTreeSet<String>,
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn created_by(entry: &Value) -> String {
    entry["created_by"].as_str().unwrap_or_default().to_owned()
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
                build_args: serde_json::from_value(case["build_args"].clone()).unwrap_or_default(),
                created_by: golden["history"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(created_by)
                    .collect(),
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

/// The variables of a stage's steps, as far as one stage on the base image or on nothing needs them.
struct Environment {
    escape: Escape,
    values: BTreeMap<String, String>,
    build_args: BTreeMap<String, String>,
}

impl Environment {
    fn expand(&self, word: &str) -> String {
        let lookup = |name: &str| self.values.get(name).cloned();
        Expander::new(self.escape, &lookup).expand(word).unwrap().value
    }

    fn pairs(&self, pairs: &[Pair]) -> Vec<(String, String)> {
        pairs.iter().map(|pair| (self.expand(&pair.key), self.expand(&pair.value))).collect()
    }

    fn declare(&mut self, arg: &ArgPair) {
        let key = self.expand(&arg.key);
        let default = arg.value.as_ref().map(|value| self.expand(value));
        if let Some(value) = self.build_args.get(&key).cloned().or(default) {
            self.values.insert(key, value);
        }
    }

    /// What the history says of `instruction`, where this test knows it.
    fn step(&mut self, instruction: &Instruction) -> Option<String> {
        let show = |name: &str, pairs: &[(String, String)]| {
            let pairs = pairs.iter().map(|(key, value)| format!(" {key}={value}"));
            Some(format!("{name}{}", pairs.collect::<String>()))
        };
        match &instruction.kind {
            InstructionKind::Arg(args) => args.iter().for_each(|arg| self.declare(arg)),
            InstructionKind::Label(pairs) => return show("LABEL", &self.pairs(pairs)),
            InstructionKind::Env(pairs) => {
                let pairs = self.pairs(pairs);
                self.values.extend(pairs.clone());
                return show("ENV", &pairs);
            }
            InstructionKind::Run(run) => {
                if let Command::Shell(text) = run_text(run).command {
                    return Some(format!(" {text} # buildkit"));
                }
            }
            InstructionKind::Stopsignal(signal) => {
                return Some(format!("STOPSIGNAL {}", self.expand(signal)));
            }
            InstructionKind::User(user) => return Some(format!("USER {}", self.expand(user))),
            _ => {}
        }
        None
    }
}

/// One stage, and no arguments that the builder itself defines.
fn is_plain(stages: &[Stage]) -> bool {
    let [stage] = stages else { return false };
    let predefined = |arg: &ArgPair| arg.key.starts_with("TARGET") || arg.key.starts_with("BUILD");
    let platform = |instruction: &Instruction| match &instruction.kind {
        InstructionKind::Arg(args) => args.iter().any(predefined),
        _ => false,
    };
    ["scratch", "localhost:5006/base"].contains(&stage.from.image.as_str())
        && !stage.instructions.iter().any(platform)
}

#[test]
fn steps_read_as_in_buildkits_history() {
    let mut seen = 0;
    let mut missing = Vec::new();
    for case in
        cases().into_iter().filter(|case| case.expect == "ok" && !case.created_by.is_empty())
    {
        let file = parse("Dockerfile", &case.dockerfile).unwrap().dockerfile;
        if !is_plain(&file.stages) || !file.global_args.is_empty() {
            continue;
        }
        let image = match file.stages[0].from.image.as_str() {
            "scratch" => {
                vec![("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")]
            }
            _ => vec![("PATH", "/usr/local/bin:/usr/bin:/bin"), ("GREETING", "ahoy")],
        };
        let values =
            image.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let mut environment =
            Environment { escape: file.directives.escape, values, build_args: case.build_args };
        for instruction in &file.stages[0].instructions {
            let Some(step) = environment.step(instruction) else { continue };
            seen += 1;
            if !case.created_by.iter().any(|text| text.ends_with(&step)) {
                missing.push(format!("{}: {step:?} is not among {:?}", case.id, case.created_by));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert!(seen > 300, "{seen}");
}
