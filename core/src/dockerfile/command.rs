//! Texts that BuildKit makes of an instruction: what a RUN hands to its shell, and what the log calls a step.

use super::{
    ast::{Command, Heredoc, Run},
    heredoc,
    words::Expander,
};

/// Where a here-document with a `#!` line is mounted, read-only, mode 0755.
pub const SCRIPT_FOLDER: &str = "/dev/pipes";

/// What a RUN executes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunText {
    /// Shell form: the text for the shell (SHELL's words come before it). Exec form: the words as they are. It is also
    /// what the history shows behind `RUN `.
    pub command: Command,
    pub script: Option<Script>,
    /// For the log, of a RUN that is nothing but a here-document: the body's first line.
    pub summary: Option<String>,
}

/// A file that has to stand at [`Script::path`] while the command runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    pub name: String,
    pub content: String,
}

impl Script {
    pub fn path(&self) -> String {
        format!("{SCRIPT_FOLDER}/{}", self.name)
    }
}

/// What `run` executes. A command that is nothing but a here-document is replaced by its body, or, if that starts with
/// `#!`, by the path of a script; any other text with here-documents is put together again for the shell to read.
pub fn run_text(run: &Run) -> RunText {
    let plain = |command| RunText { command, script: None, summary: None };
    let (Command::Shell(text), Some(first)) = (&run.command, run.heredocs.first()) else {
        return plain(run.command.clone());
    };
    if !matches!(heredoc::mark(text), Ok(Some(_))) {
        return plain(Command::Shell(with_bodies(text, &run.heredocs)));
    }
    let summary = Some(summary(&first.raw));
    if !first.content.starts_with("#!") {
        return RunText { command: Command::Shell(first.content.clone()), script: None, summary };
    }
    let script = Script { name: first.name.clone(), content: first.content.clone() };
    RunText { command: Command::Shell(script.path()), script: Some(script), summary }
}

fn with_bodies(line: &str, heredocs: &[Heredoc]) -> String {
    let mut text = line.to_owned();
    for heredoc in heredocs {
        text.extend(["\n", &heredoc.raw, &heredoc.name]);
    }
    text
}

fn summary(body: &str) -> String {
    let body = body.trim();
    match body.split_once('\n') {
        Some((first, _)) => format!("{}...", first.strip_suffix('\r').unwrap_or(first)),
        None => body.to_owned(),
    }
}

/// What the log calls a step: `original` with its keyword in capitals and its variables expanded, or as it is where
/// they can't be. For a RUN give an expander with raw quotes that keeps unset variables, and [`RunText::summary`].
pub fn step_name(original: &str, summary: Option<&str>, expander: &Expander<'_>) -> String {
    let text = match summary {
        Some(summary) => format!("{original} ({summary})"),
        None => original.to_owned(),
    };
    let text = expander.expand(&text).map_or(text, |expanded| expanded.value);
    match text.split_once(' ') {
        Some((keyword, rest)) => format!("{} {rest}", keyword.to_uppercase()),
        None => text.to_uppercase(),
    }
}
