//! The state of a stage while its instructions are planned.

use crate::{
    dockerfile::{
        ast::{ArgPair, Escape, Instruction, InstructionKind, Span},
        command,
        words::Expander,
    },
    error::Error,
    image::{History, ImageConfig},
};

use super::{
    Op, Step,
    scope::{BuildArgs, Environment},
    stages::Planner,
};

const COMMENT: &str = "buildkit.dockerfile.v0";

/// What one instruction leaves to the next, and a stage to its children.
#[derive(Clone, Debug)]
pub struct StageState {
    pub config: ImageConfig,
    /// ENV and ARG in order of appearance.
    pub environment: Environment,
    pub build_args: BuildArgs,
    /// Whether this stage has a CMD of its own, which ENTRYPOINT leaves alone.
    pub command_set: bool,
}

impl StageState {
    /// The state after FROM of an image. Its creation time is not inherited.
    pub fn of_image(mut config: ImageConfig) -> Self {
        config.rootfs.diff_ids.clear();
        StageState {
            config,
            environment: Environment::default(),
            build_args: Vec::new(),
            command_set: false,
        }
    }

    /// Puts the image's ENV on top, as BuildKit does at each FROM (so ENV wins over an inherited ARG).
    pub fn replay_environment(&mut self) {
        for pair in &self.config.config.env {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            self.environment.set(name, value);
        }
    }
}

/// One stage being planned.
pub struct StageWork<'p, 'a> {
    pub planner: &'p mut Planner<'a>,
    pub index: usize,
    pub state: StageState,
    steps: Vec<Step>,
}

impl<'p, 'a> StageWork<'p, 'a> {
    pub fn new(planner: &'p mut Planner<'a>, index: usize, state: StageState) -> Self {
        StageWork { planner, index, state, steps: Vec::new() }
    }

    pub fn finish(self) -> (StageState, Vec<Step>) {
        (self.state, self.steps)
    }

    /// Runs a trigger of the base, as if it stood behind FROM.
    pub fn trigger(&mut self, trigger: &str, span: Span) -> Result<(), Error> {
        let instruction = self.planner.parse_trigger(trigger, span)?;
        self.instruction(&instruction)
    }

    pub fn escape(&self) -> Escape {
        self.planner.dockerfile.directives.escape
    }

    /// Expands a word in the environment from before the instruction.
    pub fn expand(&self, word: &str, span: Span) -> Result<String, Error> {
        let expanded = self.state.environment.expand(word, self.escape());
        expanded.map_err(|error| self.planner.wrong(span, error))
    }

    pub fn expand_all(&self, words: &[String], span: Span) -> Result<Vec<String>, Error> {
        words.iter().map(|word| self.expand(word, span)).collect()
    }

    /// Adds a step with its history entry.
    pub fn commit(&mut self, instruction: &Instruction, op: Op, created_by: String) {
        let entry = History {
            created_by,
            comment: COMMENT.to_owned(),
            empty_layer: !op.makes_layer(),
            ..History::default()
        };
        self.state.config.history.push(entry);
        let history = Some(self.state.config.history.len() - 1);
        self.push(instruction, op, history);
    }

    /// Adds a step that leaves no history (ONBUILD).
    pub fn commit_silently(&mut self, instruction: &Instruction) {
        self.push(instruction, Op::Metadata, None);
    }

    fn push(&mut self, instruction: &Instruction, op: Op, history: Option<usize>) {
        let title = self.title(instruction);
        self.steps.push(Step { span: instruction.span, title, op, history });
    }

    /// What the log calls the step: BuildKit's name of it, on one line.
    fn title(&self, instruction: &Instruction) -> String {
        let lookup = |name: &str| self.state.environment.get(name).map(str::to_owned);
        let expander = Expander::new(self.escape(), &lookup);
        let name = match &instruction.kind {
            InstructionKind::Run(run) => {
                let summary = command::run_text(run).summary;
                let expander = expander.raw_quotes().keep_unset();
                command::step_name(&instruction.original, summary.as_deref(), &expander)
            }
            _ => command::step_name(&instruction.original, None, &expander),
        };
        one_line(&name)
    }

    pub fn declare(&mut self, arg: ArgPair) {
        if let Some(value) = &arg.value
            && !is_switch(&arg.key)
        {
            self.state.environment.set(&arg.key, value);
        }
        self.state.build_args.push(arg);
    }
}

/// ARGs that steer an SBOM scan and never reach the environment.
fn is_switch(name: &str) -> bool {
    matches!(name, "BUILDKIT_SBOM_SCAN_CONTEXT" | "BUILDKIT_SBOM_SCAN_STAGE")
}

/// An instruction's text for people: blanks folded, cut at 200 characters.
fn one_line(text: &str) -> String {
    let folded = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match folded.char_indices().nth(200) {
        Some((cut, _)) => format!("{}…", &folded[..cut]),
        None => folded,
    }
}
