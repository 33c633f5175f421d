//! Stages: which are needed, what they start from, which stage, context or image a name means.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    dockerfile::ast::{Dockerfile, From, Instruction, InstructionKind, Span},
    error::{Class, Error},
    image::{ImageConfig, platform::Platform},
    request::{BuildRequest, NamedContext},
};

use super::{
    Base, BuildGraph, ImageSource, ImageUse, Plan, PlannedStage, TreeSource, dispatch::StageState,
    scope::Environment,
};

/// What BuildKit puts where an image says no PATH.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One planning of one target for one platform.
pub struct Planner<'a> {
    pub dockerfile: &'a Dockerfile,
    pub request: &'a BuildRequest,
    platform: &'a Platform,
    known: &'a BTreeMap<ImageUse, ImageConfig>,
    /// Global ARGs with the platform's, in order.
    pub globals: Environment,
    stages: BTreeMap<usize, Planned>,
    open: BTreeSet<usize>,
    needed: BTreeMap<ImageUse, Span>,
}

/// A planned stage and the state that its children inherit.
struct Planned {
    stage: PlannedStage,
    state: StageState,
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
            stages: BTreeMap::new(),
            open: BTreeSet::new(),
            needed: BTreeMap::new(),
        };
        planner.set_platform_arguments();
        planner.set_global_arguments()?;
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

    fn expand_global(&self, word: &str, span: Span) -> Result<String, Error> {
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
        self.stage_by_name(name, self.dockerfile.stages.len()).ok_or_else(|| {
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

    /// The last stage of that name, letter case apart, among the first `before` ones.
    fn stage_by_name(&self, name: &str, before: usize) -> Option<usize> {
        let name = name.to_lowercase();
        self.dockerfile.stages[..before]
            .iter()
            .rposition(|stage| stage.from.name.as_deref() == Some(&name))
    }

    /// Plans one stage and all that it needs.
    pub fn stage(&mut self, index: usize) -> Result<(), Error> {
        if self.stages.contains_key(&index) {
            return Ok(());
        }
        let dockerfile = self.dockerfile;
        let stage = &dockerfile.stages[index];
        let name = stage.from.name.clone().unwrap_or_else(|| match dockerfile.stages.len() {
            1 => String::new(),
            _ => format!("stage-{index}"),
        });
        if !self.open.insert(index) {
            let title = format!("circular dependency detected on stage: {name}");
            return Err(self.refuse(stage.from.span, title));
        }
        let base = self.base(index, &stage.from)?;
        let (state, triggers, inherited_history) = self.start(&base, &stage.from)?;
        let mut work = super::dispatch::StageWork::new(self, index, state);
        for trigger in &triggers {
            work.trigger(trigger, stage.from.span)?;
        }
        for instruction in &stage.instructions {
            work.instruction(instruction)?;
        }
        let (mut state, steps) = work.finish();
        if self.target().is_ok_and(|target| target == index) {
            state.config.config.labels.extend(self.request.labels.clone());
            self.set_platform(&mut state.config, &base, &stage.from);
        }
        let config = state.config.clone();
        let base_span = stage.from.span;
        let stage = PlannedStage { index, name, base, base_span, steps, config, inherited_history };
        self.stages.insert(index, Planned { stage, state });
        self.open.remove(&index);
        Ok(())
    }

    /// With `--platform` the image is for that one, even where the base, a single image, says otherwise.
    fn set_platform(&self, config: &mut ImageConfig, base: &Base, from: &From) {
        if self.request.platforms.is_empty() || from.platform.is_some() {
            return;
        }
        if let Base::Image(_) = base {
            config.os.clone_from(&self.platform.os);
            config.architecture.clone_from(&self.platform.architecture);
            config.variant.clone_from(&self.platform.variant);
        }
    }

    /// What FROM names: scratch, a named context, an earlier stage, else an image.
    fn base(&mut self, index: usize, from: &From) -> Result<Base, Error> {
        let name = self.expand_global(&from.image, from.span)?;
        if name.is_empty() {
            let title = format!("base name ({}) should not be blank", from.image);
            return Err(self.refuse(from.span, title).hint("give the ARG a default before FROM"));
        }
        let platform = self.stage_platform(from)?;
        if name == "scratch" {
            return Ok(Base::Scratch);
        }
        if let Some(found) = self.named_context(&name, &platform) {
            return Ok(match found {
                TreeSource::Image(image) => {
                    self.need(&image, from.span);
                    Base::Image(image)
                }
                TreeSource::Context(Some(name)) => Base::Context(name),
                _ => Base::Scratch,
            });
        }
        let earlier = &self.dockerfile.stages[..index];
        if let Some(stage) = earlier.iter().rposition(|s| s.from.name.as_deref() == Some(&name)) {
            self.stage(stage)?;
            return Ok(Base::Stage(stage));
        }
        let image = self.image(&name, platform, from.span)?;
        Ok(Base::Image(image))
    }

    fn stage_platform(&self, from: &From) -> Result<Platform, Error> {
        let Some(written) = &from.platform else { return Ok(self.platform.clone()) };
        let platform = self.expand_global(written, from.span)?;
        if platform.is_empty() {
            let title = format!("empty platform value from expression {written}");
            return Err(self.refuse(from.span, title));
        }
        platform
            .parse()
            .map_err(|error: crate::image::platform::PlatformError| self.wrong(from.span, error))
    }

    /// An image of a registry, noted as needed.
    fn image(&mut self, name: &str, platform: Platform, span: Span) -> Result<ImageUse, Error> {
        let reference = crate::registry::reference::parse(name);
        reference.map_err(|error| self.wrong(span, error))?;
        let image = ImageUse { source: ImageSource::Registry(name.to_owned()), platform };
        self.need(&image, span);
        Ok(image)
    }

    fn need(&mut self, image: &ImageUse, span: Span) {
        if !self.known.contains_key(image) {
            self.needed.entry(image.clone()).or_insert(span);
        }
    }

    /// A named context that stands for this name: `name`, `name:latest` or, in short form, what they mean on Docker Hub.
    fn named_context(&self, name: &str, platform: &Platform) -> Option<TreeSource> {
        let contexts = &self.request.build_contexts;
        let short = name.strip_suffix(":latest").unwrap_or(name);
        let found = [
            format!("{name}::{platform}"),
            name.to_owned(),
            short.to_owned(),
            format!("{short}:latest"),
        ]
        .into_iter()
        .find_map(|key| contexts.get_key_value(&key));
        let (key, context) = found?;
        Some(match context {
            NamedContext::Directory(_) | NamedContext::Git(_) | NamedContext::Url(_) => {
                TreeSource::Context(Some(key.clone()))
            }
            NamedContext::Image(reference) if reference == "scratch" => TreeSource::Empty,
            NamedContext::Image(reference) => TreeSource::Image(ImageUse {
                source: ImageSource::Registry(reference.clone()),
                platform: platform.clone(),
            }),
            NamedContext::Layout { path, tag, digest } => TreeSource::Image(ImageUse {
                source: ImageSource::Layout {
                    path: path.clone(),
                    tag: tag.clone(),
                    digest: digest.clone(),
                },
                platform: platform.clone(),
            }),
        })
    }

    /// What `--from` or `from=` names, for a step of stage `current`. Only `--from` takes stage numbers.
    pub fn tree_source(
        &mut self,
        name: &str,
        current: usize,
        numbers: bool,
        span: Span,
    ) -> Result<TreeSource, Error> {
        let platform = self.platform.clone();
        if let Some(found) = self.named_context(name, &platform) {
            if let TreeSource::Image(image) = &found {
                self.need(image, span);
            }
            return Ok(found);
        }
        if name == "scratch" {
            return Ok(TreeSource::Empty);
        }
        let all = self.dockerfile.stages.len();
        let number = numbers.then(|| name.parse::<usize>().ok()).flatten();
        let found = self.stage_by_name(name, current).or_else(|| self.stage_by_name(name, all));
        let stage = match (found, number) {
            (Some(stage), _) => stage,
            (None, Some(stage)) if stage < all => stage,
            (None, Some(stage)) => {
                return Err(self.refuse(span, format!("invalid stage index {stage}")));
            }
            (None, None) => return Ok(TreeSource::Image(self.image(name, platform, span)?)),
        };
        if stage > current {
            let title = format!(
                "cannot copy from stage {name:?}, it needs to be defined before current stage"
            );
            return Err(self.refuse(span, title));
        }
        if self.open.contains(&stage) {
            let title = format!("circular dependency detected on stage: {name}");
            return Err(self.refuse(span, title));
        }
        self.stage(stage)?;
        Ok(TreeSource::Stage(stage))
    }

    /// The state that a stage starts with, the triggers to run, and the length of the base's history.
    fn start(
        &mut self,
        base: &Base,
        from: &From,
    ) -> Result<(StageState, Vec<String>, usize), Error> {
        let mut state = match base {
            Base::Stage(parent) => {
                let mut state = self.stages[parent].state.clone();
                state.command_set = false;
                state
            }
            Base::Image(image) => {
                let placeholder = || ImageConfig::scratch(&image.platform);
                StageState::of_image(self.known.get(image).cloned().unwrap_or_else(placeholder))
            }
            Base::Scratch | Base::Context(_) => {
                let mut config = ImageConfig::scratch(&self.stage_platform(from)?);
                config.config.working_dir = "/".into();
                StageState::of_image(config)
            }
        };
        let inherited_history = match base {
            Base::Stage(parent) => self.stages[parent].stage.inherited_history,
            _ => state.config.history.len(),
        };
        let triggers = std::mem::take(&mut state.config.config.on_build);
        if state.config.config.environment("PATH").is_none() {
            state.config.config.env.push(DEFAULT_PATH.to_owned());
        }
        state.replay_environment();
        Ok((state, triggers, inherited_history))
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

    pub fn finish(self, target: usize) -> Result<Plan, Error> {
        if !self.needed.is_empty() {
            return Ok(Plan::Needs(self.needed.into_iter().collect()));
        }
        let source_date_epoch = self.source_date_epoch()?;
        let stages = self.stages.into_iter().map(|(index, planned)| (index, planned.stage));
        Ok(Plan::Graph(BuildGraph { stages: stages.collect(), target, source_date_epoch }))
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
