//! The state of a stage while its instructions are planned.

use std::sync::Arc;

use crate::{
    dockerfile::{
        ast::{ArgPair, Escape, Instruction, InstructionKind, Span},
        command,
        words::Expander,
    },
    error::Error,
    fetch,
    image::{ContainerConfig, History, ImageConfig},
};

use super::{Op, Step, environment::Environment, scope::BuildArgs, stages::Planner};

/// What BuildKit puts where an image says no PATH.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const COMMENT: &str = "buildkit.dockerfile.v0";

/// What one instruction leaves to the next, and a stage to its children, who share what they do not change.
#[derive(Clone, Debug)]
pub struct StageState {
    /// Without history, and without ENV, which the environment has.
    pub config: Arc<ImageConfig>,
    /// ENV and ARG in order of appearance.
    pub environment: Environment,
    pub build_args: BuildArgs,
    /// Whether this stage has a CMD of its own, which ENTRYPOINT leaves alone.
    pub command_set: bool,
}

impl StageState {
    /// The state after FROM of an image. Its creation time is not inherited.
    pub fn of_image(config: &ImageConfig) -> Self {
        let mut own = ImageConfig { history: Vec::new(), ..config.clone() };
        own.rootfs.diff_ids.clear();
        let mut state = StageState {
            config: Arc::new(own),
            environment: Environment::default(),
            build_args: BuildArgs::default(),
            command_set: false,
        };
        let container = state.container();
        let mut variables = std::mem::take(&mut container.env);
        container.on_build.clear();
        if config.config.environment("PATH").is_none() {
            variables.push(DEFAULT_PATH.to_owned());
        }
        state.environment = Environment::of_image(&variables);
        state
    }

    /// The state after FROM of a stage that ended with this one.
    pub fn child(&self) -> Self {
        let mut child = StageState {
            environment: self.environment.child(),
            command_set: false,
            ..self.clone()
        };
        if !child.config.config.on_build.is_empty() {
            child.container().on_build.clear();
        }
        child
    }

    /// The container's configuration, to change it.
    pub fn container(&mut self) -> &mut ContainerConfig {
        &mut Arc::make_mut(&mut self.config).config
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
        self.push(instruction, op, Some(entry));
    }

    /// Adds a step that leaves no history (ONBUILD).
    pub fn commit_silently(&mut self, instruction: &Instruction) {
        self.push(instruction, Op::Metadata, None);
    }

    fn push(&mut self, instruction: &Instruction, op: Op, history: Option<History>) {
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
        let name = one_line(&name);
        match instruction.kind {
            InstructionKind::Add(_) => {
                name.split(' ').map(fetch::without_password).collect::<Vec<_>>().join(" ")
            }
            _ => name,
        }
    }

    pub fn declare(&mut self, arg: ArgPair) {
        if let Some(value) = &arg.value
            && !is_switch(&arg.key)
        {
            self.state.environment.set(&arg.key, value);
        }
        let declared = Arc::make_mut(&mut self.state.build_args);
        match declared.iter_mut().find(|other| other.key == arg.key) {
            Some(other) => *other = arg,
            None => declared.push(arg),
        }
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
