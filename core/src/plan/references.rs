//! What names mean: the bases of all stages, what steps copy from, and which stages a target needs.

use std::collections::{BTreeSet, HashMap};

use crate::{
    dockerfile::{
        ast::{Dockerfile, From, Instruction, InstructionKind, Span},
        mount, parse_onbuild, words,
    },
    error::Error,
    image::platform::Platform,
    request::{BuildRequest, NamedContext},
};

use super::{Base, ImageSource, ImageUse, TreeSource, stages::Planner};

/// The stages of each name, in order.
pub struct StageNames<'a>(HashMap<&'a str, Vec<usize>>);

impl<'a> StageNames<'a> {
    pub fn new(dockerfile: &'a Dockerfile) -> Self {
        let mut names: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, stage) in dockerfile.stages.iter().enumerate() {
            if let Some(name) = &stage.from.name {
                names.entry(name).or_default().push(index);
            }
        }
        StageNames(names)
    }

    /// The last stage of exactly this name.
    pub fn last(&self, name: &str) -> Option<usize> {
        self.0.get(name)?.last().copied()
    }

    /// The last stage of exactly this name among the first `before` ones.
    pub fn last_before(&self, name: &str, before: usize) -> Option<usize> {
        let stages = self.0.get(name)?;
        let count = stages.partition_point(|stage| *stage < before);
        Some(stages[count.checked_sub(1)?])
    }
}

/// What a `--build-context` makes of a name: `name`, `name:latest` or, in short form, what they mean on Docker Hub.
pub fn named_context(
    request: &BuildRequest,
    name: &str,
    platform: &Platform,
) -> Option<TreeSource> {
    let contexts = &request.build_contexts;
    let short = name.strip_suffix(":latest").unwrap_or(name);
    let keys = [
        format!("{name}::{platform}"),
        name.to_owned(),
        short.to_owned(),
        format!("{short}:latest"),
    ];
    let (key, context) = keys.iter().find_map(|key| contexts.get_key_value(key))?;
    let source = match context {
        NamedContext::Directory(_) | NamedContext::Git(_) | NamedContext::Url(_) => {
            return Some(TreeSource::Context(Some(key.clone())));
        }
        NamedContext::Image(reference) if reference == "scratch" => return Some(TreeSource::Empty),
        NamedContext::Image(reference) => ImageSource::Registry(reference.clone()),
        NamedContext::Layout { path, tag, digest } => {
            ImageSource::Layout { path: path.clone(), tag: tag.clone(), digest: digest.clone() }
        }
    };
    Some(TreeSource::Image(ImageUse { source, platform: platform.clone() }))
}

/// A name that a step gives.
#[derive(Clone, Copy)]
pub enum Named<'n> {
    /// `--from` of COPY, which takes numbers too.
    Copy(&'n str),
    /// `from=` of a mount.
    Mount(&'n str),
}

fn base_of(source: TreeSource) -> Base {
    match source {
        TreeSource::Image(image) => Base::Image(image),
        TreeSource::Context(Some(name)) => Base::Context(name),
        _ => Base::Scratch,
    }
}

impl Planner<'_> {
    /// What every FROM starts from, as BuildKit looks at all of them first.
    pub fn resolve_bases(&mut self) -> Result<(), Error> {
        for (index, stage) in self.dockerfile.stages.iter().enumerate() {
            let base = self.base(index, &stage.from)?;
            self.bases.push(base);
        }
        Ok(())
    }

    /// What FROM names: scratch, a named context, an earlier stage, else an image.
    fn base(&self, index: usize, from: &From) -> Result<Base, Error> {
        let name = self.expand_global(&from.image, from.span)?;
        if name.is_empty() {
            let title = format!("base name ({}) should not be blank", from.image);
            return Err(self.refuse(from.span, title).hint("give the ARG a default before FROM"));
        }
        if let Some(base) = self.replacement(from) {
            return Ok(base);
        }
        let platform = self.stage_platform(from)?;
        if name == "scratch" {
            return Ok(Base::Scratch);
        }
        if let Some(found) = named_context(self.request, &name, &platform) {
            return Ok(base_of(found));
        }
        match self.names.last_before(&name, index) {
            Some(stage) => Ok(Base::Stage(stage)),
            None => {
                let image = self.image(&name, platform, from.span);
                let lower = name.to_lowercase();
                // As BuildKit has it; kaniko takes any letter case.
                image.map(Base::Image).map_err(|error| {
                    match self.names.last_before(&lower, index) {
                        Some(_) => {
                            error.hint(format!("names of stages are lower-case: FROM {lower}"))
                        }
                        None => error,
                    }
                })
            }
        }
    }

    /// A named context that stands for a stage of that name, whoever reads it: as the target, or by its number.
    fn replacement(&self, from: &From) -> Option<Base> {
        let name = from.name.as_deref()?;
        named_context(self.request, name, self.platform).map(base_of)
    }

    /// A stage's instructions; none where a named context stands for it.
    pub fn instructions(&self, index: usize) -> &'_ [Instruction] {
        let stage = &self.dockerfile.stages[index];
        if self.replacement(&stage.from).is_some() { &[] } else { &stage.instructions }
    }

    /// The platform of a FROM.
    pub fn stage_platform(&self, from: &From) -> Result<Platform, Error> {
        let Some(written) = &from.platform else { return Ok(self.platform.clone()) };
        let platform = self.expand_global(written, from.span)?;
        if platform.is_empty() {
            let title = format!("empty platform value from expression {written}");
            return Err(self.refuse(from.span, title));
        }
        platform.parse().map_err(|error: crate::image::platform::PlatformError| {
            self.wrong(from.span, error).context(format!("failed to parse platform {written}"))
        })
    }

    /// An image of a registry.
    fn image(&self, name: &str, platform: Platform, span: Span) -> Result<ImageUse, Error> {
        let reference = crate::registry::reference::parse(name);
        reference.map_err(|error| self.wrong(span, error))?;
        Ok(ImageUse { source: ImageSource::Registry(name.to_owned()), platform })
    }

    /// Looks at what the steps of all stages name, needed or not.
    pub fn check_references(&self) -> Result<(), Error> {
        for index in 0..self.dockerfile.stages.len() {
            for instruction in self.instructions(index) {
                self.sources(instruction, index)?;
            }
        }
        Ok(())
    }

    /// What a step of stage `current` names.
    fn sources(&self, instruction: &Instruction, current: usize) -> Result<Vec<TreeSource>, Error> {
        let span = instruction.span;
        match &instruction.kind {
            InstructionKind::Copy(copy) => {
                let names = copy.from.iter().map(|name| Named::Copy(name));
                names.map(|name| self.find(name, current, span)).collect()
            }
            InstructionKind::Run(run) => {
                let as_it_is = |value: &str| Ok(value.to_owned());
                // What else is wrong with a mount is told when its variables have their values.
                let mounts =
                    run.mounts.iter().filter_map(|text| mount::parse(text, &as_it_is).ok());
                let names = mounts.filter_map(|mount| mount.from);
                names.map(|name| self.find(Named::Mount(&name), current, span)).collect()
            }
            _ => Ok(Vec::new()),
        }
    }

    /// What a name means in stage `current`: a named context, nothing, a stage, else an image.
    fn find(&self, named: Named<'_>, current: usize, span: Span) -> Result<TreeSource, Error> {
        let (name, number) = match named {
            Named::Copy(name) => (name, name.parse::<usize>().ok()),
            Named::Mount(name) => (name, None),
        };
        if matches!(named, Named::Copy(_))
            && !words::is_constant(name, self.dockerfile.directives.escape)
        {
            let title = format!("--from doesn't support variables, in {name:?}");
            let hint = "give the image a name with FROM … AS NAME, and copy from that";
            return Err(self.refuse(span, title).hint(hint));
        }
        if let Some(found) = named_context(self.request, name, self.platform) {
            return Ok(found);
        }
        if name == "scratch" {
            return Ok(TreeSource::Empty);
        }
        let lower = name.to_lowercase();
        let found = self.names.last_before(&lower, current).or_else(|| self.names.last(&lower));
        match found.or(number) {
            Some(stage) if stage >= self.dockerfile.stages.len() => {
                Err(self.refuse(span, format!("invalid stage index {stage}")))
            }
            Some(stage) if stage == current => {
                let title = format!("circular dependency detected on stage: {name}");
                Err(self.refuse(span, title))
            }
            Some(stage) => Ok(TreeSource::Stage(stage)),
            None => Ok(TreeSource::Image(self.image(name, self.platform.clone(), span)?)),
        }
    }

    /// What `--from` or `from=` names, for a step of stage `current` that is planned now.
    pub fn tree_source(
        &mut self,
        named: Named<'_>,
        current: usize,
        span: Span,
    ) -> Result<TreeSource, Error> {
        let found = self.find(named, current, span)?;
        match &found {
            TreeSource::Stage(stage) if *stage > current => {
                let (Named::Copy(name) | Named::Mount(name)) = named;
                let title = format!(
                    "cannot copy from stage {name:?}, it needs to be defined before current stage"
                );
                return Err(self.refuse(span, title));
            }
            TreeSource::Image(image) => self.need(image, span),
            _ => {}
        }
        Ok(found)
    }

    /// The stages that a target needs, itself among them. Each needs earlier ones only: what names a later one is refused
    /// when it is planned.
    pub fn reach(&self, target: usize) -> BTreeSet<usize> {
        let mut reached = BTreeSet::new();
        let mut open = vec![target];
        while let Some(index) = open.pop() {
            if !reached.insert(index) {
                continue;
            }
            if let Base::Stage(parent) = &self.bases[index] {
                open.push(*parent);
            }
            let triggers = self.triggers(index);
            let triggers: Vec<_> =
                triggers.iter().filter_map(|text| parse_onbuild(text).ok()).collect();
            let own = self.instructions(index);
            let sources = own.iter().chain(&triggers).flat_map(|each| self.sources(each, index));
            open.extend(sources.flatten().filter_map(|source| match source {
                TreeSource::Stage(stage) if stage < index => Some(stage),
                _ => None,
            }));
        }
        reached
    }

    /// The triggers of a stage's base: an image's, or those that the stage which it is has of its own.
    pub fn triggers(&self, index: usize) -> Vec<String> {
        if self.replacement(&self.dockerfile.stages[index].from).is_some() {
            return Vec::new();
        }
        match &self.bases[index] {
            Base::Image(image) => self
                .known
                .get(image)
                .map(|config| config.config.on_build.clone())
                .unwrap_or_default(),
            Base::Stage(parent) => {
                let instructions = self.dockerfile.stages[*parent].instructions.iter();
                let text = |instruction: &Instruction| match &instruction.kind {
                    InstructionKind::Onbuild(text) => Some(text.clone()),
                    _ => None,
                };
                instructions.filter_map(text).collect()
            }
            Base::Scratch | Base::Context(_) => Vec::new(),
        }
    }
}
