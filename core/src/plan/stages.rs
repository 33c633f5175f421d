//! Planning one target: the globals, then the stages that it needs, parents first.

use std::collections::{BTreeMap, HashMap};

use crate::{
    dockerfile::ast::{Dockerfile, From, Instruction, InstructionKind, Span},
    error::{Class, Error},
    image::{History, ImageConfig, platform::Platform},
    request::BuildRequest,
};

use super::{
    Base, BuildGraph, ImageUse, Plan, PlannedStage,
    dispatch::{StageState, StageWork},
    environment::Environment,
    references::StageNames,
};

/// One planning of one target for one platform.
pub struct Planner<'a> {
    pub dockerfile: &'a Dockerfile,
    pub request: &'a BuildRequest,
    pub platform: &'a Platform,
    pub known: &'a BTreeMap<ImageUse, ImageConfig>,
    /// Global ARGs with the platform's, in order.
    pub globals: Environment,
    pub names: StageNames<'a>,
    /// What each stage of the file starts from.
    pub bases: Vec<Base>,
    stages: BTreeMap<usize, PlannedStage>,
    /// How planned stages ended, with the number of stages that have yet to start from them.
    ended: HashMap<usize, (StageState, usize)>,
    /// Where stages on an image start.
    images: BTreeMap<ImageUse, StageState>,
    needed: BTreeMap<ImageUse, Span>,
}

impl<'a> Planner<'a> {
    pub fn new(
        dockerfile: &'a Dockerfile,
        request: &'a BuildRequest,
        platform: &'a Platform,
        known: &'a BTreeMap<ImageUse, ImageConfig>,
    ) -> Result<Self, Error> {
        let mut planner = Planner {
            dockerfile,
            request,
            platform,
            known,
            globals: Environment::default(),
            names: StageNames::new(dockerfile),
            bases: Vec::new(),
            stages: BTreeMap::new(),
            ended: HashMap::new(),
            images: BTreeMap::new(),
            needed: BTreeMap::new(),
        };
        planner.set_platform_arguments();
        planner.set_global_arguments()?;
        planner.resolve_bases()?;
        Ok(planner)
    }

    fn set_platform_arguments(&mut self) {
        let host = Platform::host();
        for (prefix, platform) in [("BUILD", &host), ("TARGET", self.platform)] {
            for (suffix, value) in [
                ("PLATFORM", platform.to_string()),
                ("OS", platform.os.clone()),
                ("OSVERSION", platform.os_version.clone()),
                ("ARCH", platform.architecture.clone()),
                ("VARIANT", platform.variant.clone()),
            ] {
                self.set_global(&format!("{prefix}{suffix}"), &value);
            }
        }
        // The name of the target as the command line writes it, or of the last stage.
        let last = self.dockerfile.stages.last().and_then(|stage| stage.from.name.as_deref());
        let target = self.request.target.as_deref().or(last).unwrap_or("default");
        self.set_global("TARGETSTAGE", target);
    }

    /// Sets a predefined global, or what the command line says instead.
    fn set_global(&mut self, name: &str, value: &str) {
        let value = self.request.build_args.get(name).map_or(value, String::as_str);
        self.globals.set(name, value);
    }

    fn set_global_arguments(&mut self) -> Result<(), Error> {
        for instruction in &self.dockerfile.global_args {
            let InstructionKind::Arg(pairs) = &instruction.kind else { continue };
            for pair in pairs {
                let given = self.request.build_args.get(&pair.key).cloned();
                let value = match (given, &pair.value) {
                    (Some(given), _) => Some(given),
                    (None, Some(default)) => Some(self.expand_global(default, instruction.span)?),
                    (None, None) => None,
                };
                if let Some(value) = value {
                    self.globals.set(&pair.key, &value);
                }
            }
        }
        Ok(())
    }

    pub fn expand_global(&self, word: &str, span: Span) -> Result<String, Error> {
        let expanded = self.globals.expand(word, self.dockerfile.directives.escape);
        expanded.map_err(|error| self.wrong(span, error))
    }

    /// An error of the Dockerfile at a place.
    pub fn wrong(
        &self,
        span: Span,
        error: impl std::error::Error + Send + Sync + 'static,
    ) -> Error {
        Error::from_cause(Class::Input, error).at(self.dockerfile, span)
    }

    pub fn refuse(&self, span: Span, title: impl Into<String>) -> Error {
        Error::new(Class::Input, title).at(self.dockerfile, span)
    }

    /// The index of the stage to build: `--target`, or the last one.
    pub fn target(&self) -> Result<usize, Error> {
        let Some(name) = &self.request.target else {
            return Ok(self.dockerfile.stages.len().saturating_sub(1));
        };
        self.names.last(&name.to_lowercase()).ok_or_else(|| {
            let names: Vec<&str> =
                self.dockerfile.stages.iter().filter_map(|s| s.from.name.as_deref()).collect();
            let error =
                Error::new(Class::Input, format!("target stage {name:?} could not be found"));
            match names.as_slice() {
                [] => error.hint("the Dockerfile names no stage: add `AS name` to a FROM"),
                names => error.hint(format!("the Dockerfile has {}", names.join(", "))),
            }
        })
    }

    /// Plans the target and all that it needs, in the order of the file: what a stage needs stands before it.
    pub fn stages(&mut self, target: usize) -> Result<(), Error> {
        self.check_references()?;
        let needed = self.reach(target);
        let mut children: HashMap<usize, usize> = HashMap::from([(target, 1)]);
        for index in &needed {
            if let Base::Stage(parent) = &self.bases[*index] {
                *children.entry(*parent).or_default() += 1;
            }
        }
        for index in needed {
            let state = self.stage(index)?;
            if let Some(children) = children.get(&index) {
                self.ended.insert(index, (state, *children));
            }
        }
        Ok(())
    }

    fn stage(&mut self, index: usize) -> Result<StageState, Error> {
        let dockerfile = self.dockerfile;
        let stage = &dockerfile.stages[index];
        let name = stage.from.name.clone().unwrap_or_else(|| match dockerfile.stages.len() {
            1 => String::new(),
            _ => format!("stage-{index}"),
        });
        let base = self.bases[index].clone();
        let triggers = self.triggers(index);
        let instructions = self.instructions(index).to_vec();
        let state = self.start(&base, &stage.from)?;
        let mut work = StageWork::new(self, index, state);
        for trigger in &triggers {
            work.trigger(trigger, stage.from.span)?;
        }
        for instruction in &instructions {
            work.instruction(instruction)?;
        }
        let (state, steps) = work.finish();
        let stage = PlannedStage { index, name, base, base_span: stage.from.span, steps };
        self.stages.insert(index, stage);
        Ok(state)
    }

    /// The state that a stage starts with.
    fn start(&mut self, base: &Base, from: &From) -> Result<StageState, Error> {
        match base {
            Base::Stage(parent) => self.take_ended(*parent),
            Base::Image(image) => {
                self.need(image, from.span);
                Ok(self.image_state(image))
            }
            Base::Scratch | Base::Context(_) => {
                let mut config = ImageConfig::scratch(&self.stage_platform(from)?);
                config.config.working_dir = "/".into();
                Ok(StageState::of_image(&config))
            }
        }
    }

    /// How a stage ended, for a child; the last one takes it.
    fn take_ended(&mut self, parent: usize) -> Result<StageState, Error> {
        let gone = || Error::new(Class::Bug, format!("stage {parent} was not planned in time"));
        let (state, children) = self.ended.get_mut(&parent).ok_or_else(gone)?;
        let child = state.child();
        *children -= 1;
        if *children == 0 {
            self.ended.remove(&parent);
        }
        Ok(child)
    }

    /// Where a stage on an image starts; an image that is not known yet counts as an empty one.
    fn image_state(&mut self, image: &ImageUse) -> StageState {
        if let Some(state) = self.images.get(image) {
            return state.clone();
        }
        let state = match self.known.get(image) {
            Some(config) => StageState::of_image(config),
            None => StageState::of_image(&ImageConfig::scratch(&image.platform)),
        };
        self.images.insert(image.clone(), state.clone());
        state
    }

    /// Notes an image whose configuration has to be known.
    pub fn need(&mut self, image: &ImageUse, span: Span) {
        if !self.known.contains_key(image) {
            self.needed.entry(image.clone()).or_insert(span);
        }
    }

    /// The target's configuration, and the length of its base image's history.
    fn target_config(&mut self, target: usize) -> Result<(ImageConfig, usize), Error> {
        let gone = || Error::new(Class::Bug, "the target was not planned");
        let (state, _) = self.ended.remove(&target).ok_or_else(gone)?;
        let (history, inherited) = self.history(target);
        let mut config = ImageConfig { history, ..ImageConfig::clone(&state.config) };
        config.config.env = state.environment.image_variables();
        config.config.labels.extend(self.request.labels.clone());
        self.set_platform(&mut config, target);
        Ok((config, inherited))
    }

    /// With `--platform` the image is for that one, even where the base, a single image, says otherwise.
    fn set_platform(&self, config: &mut ImageConfig, target: usize) {
        let from = &self.dockerfile.stages[target].from;
        if self.request.platforms.is_empty() || from.platform.is_some() {
            return;
        }
        if let Base::Image(_) = self.bases[target] {
            config.os.clone_from(&self.platform.os);
            config.architecture.clone_from(&self.platform.architecture);
            config.variant.clone_from(&self.platform.variant);
        }
    }

    /// The history of the base image, then of the stages that lead to the target; and the length of the former.
    fn history(&self, target: usize) -> (Vec<History>, usize) {
        let mut lineage = vec![target];
        let mut bottom = &self.bases[target];
        while let Base::Stage(parent) = bottom {
            lineage.push(*parent);
            bottom = &self.bases[*parent];
        }
        let mut history = match bottom {
            Base::Image(image) => {
                self.known.get(image).map(|config| config.history.clone()).unwrap_or_default()
            }
            _ => Vec::new(),
        };
        let inherited = history.len();
        let stages = lineage.iter().rev().filter_map(|index| self.stages.get(index));
        let entries = stages.flat_map(|stage| &stage.steps).filter_map(|step| step.history.clone());
        history.extend(entries);
        (history, inherited)
    }

    /// The request's SOURCE_DATE_EPOCH, else that of a global ARG.
    fn source_date_epoch(&self) -> Result<Option<i64>, Error> {
        let name = "SOURCE_DATE_EPOCH";
        let given = self.globals.get(name).filter(|value| !value.is_empty());
        let (None, Some(value)) = (self.request.source_date_epoch, given) else {
            return Ok(self.request.source_date_epoch);
        };
        value.parse().map(Some).map_err(|_| {
            Error::new(Class::Input, format!("{name}={value} is not a number of seconds"))
        })
    }

    pub fn finish(mut self, target: usize) -> Result<Plan, Error> {
        if !self.needed.is_empty() {
            return Ok(Plan::Needs(self.needed.into_iter().collect()));
        }
        let source_date_epoch = self.source_date_epoch()?;
        let (config, inherited_history) = self.target_config(target)?;
        let stages = self.stages;
        let graph = BuildGraph { stages, target, config, inherited_history, source_date_epoch };
        Ok(Plan::Graph(Box::new(graph)))
    }

    /// Parses a trigger of a base.
    pub fn parse_trigger(&self, trigger: &str, span: Span) -> Result<Instruction, Error> {
        crate::dockerfile::parse_onbuild(trigger)
            .map(|instruction| Instruction { span, ..instruction })
            .map_err(|error| {
                self.refuse(span, format!("failed to parse trigger {trigger:?}: {}", error.message))
            })
    }
}
