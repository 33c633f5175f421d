//! FROM: what each stage starts from, and the checks that need it.

use std::collections::BTreeMap;

use crate::{
    error::{Class, Error},
    image::{ImageConfig, platform::Platform},
    plan::{self, ImageSource, ImageUse, Plan, StageNames, TreeSource},
    registry::reference,
    request::BuildRequest,
};

use super::{
    super::{
        ast::{Dockerfile, From, Instruction, InstructionKind, Span},
        mount,
    },
    Known, dispatch, from_args,
    linter::{Linter, Local},
    platforms, reach,
    scope::Globals,
};

/// What a stage starts from, or a step copies from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// `scratch`, or a directory.
    Plain,
    Stage(usize),
    Image(ImageUse),
    /// An image that a named context stands for.
    NamedImage(ImageUse),
}

/// A FROM with its words expanded.
struct Base {
    name: String,
    platform: Option<Platform>,
    origin: Origin,
}

/// The stages, once every FROM is understood.
pub(super) struct Stages<'a> {
    pub dockerfile: &'a Dockerfile,
    pub request: &'a BuildRequest,
    pub globals: Globals,
    target: Platform,
    bases: Vec<Base>,
    names: StageNames<'a>,
}

/// Checks FROMs, then the instructions of the stages.
pub(super) fn check(
    dockerfile: &Dockerfile,
    request: &BuildRequest,
    known: &Known<'_>,
    linter: &mut Linter,
) -> Result<(), Error> {
    let target = known.platform.cloned().unwrap_or_else(Platform::host);
    if let Ok(defaults) = Globals::new(dockerfile, request, &target, false) {
        from_args::check_defaults(dockerfile, &defaults, linter);
    }
    let stages = Stages::new(dockerfile, request, target, linter)?;
    let reach = reach::reach(&stages, stages.goal()?, known.images)?;
    let wanted = |stage: usize| known.all_stages || reach.needs(stage);
    stages.check_images(known, &wanted, linter)?;
    dispatch::check(&stages, known, &reach, &wanted, linter)?;
    match known.all_stages {
        true => stages.check_plan(known),
        false => Ok(()),
    }
}

/// The images that stages start from or copy from.
pub(super) fn images(
    dockerfile: &Dockerfile,
    request: &BuildRequest,
    platform: Option<&Platform>,
) -> Vec<(ImageUse, Span)> {
    let target = platform.cloned().unwrap_or_else(Platform::host);
    let mut linter = Linter::new(Default::default());
    let Ok(stages) = Stages::new(dockerfile, request, target, &mut linter) else {
        return Vec::new();
    };
    let mut images = BTreeMap::new();
    for (index, base) in stages.bases.iter().enumerate() {
        let stage = &dockerfile.stages[index];
        let base = (base.origin.clone(), stage.from.span);
        let others = stage.instructions.iter().flat_map(|instruction| {
            let found = stages.sources(instruction, index).into_iter();
            found.map(|(_, origin)| (origin, instruction.span))
        });
        for (origin, span) in std::iter::once(base).chain(others) {
            if let Origin::Image(image) | Origin::NamedImage(image) = origin
                && is_reference(&image)
            {
                images.entry(image).or_insert(span);
            }
        }
    }
    images.into_iter().collect()
}

impl<'a> Stages<'a> {
    /// Expands every FROM and checks what it uses.
    fn new(
        dockerfile: &'a Dockerfile,
        request: &'a BuildRequest,
        target: Platform,
        linter: &mut Linter,
    ) -> Result<Self, Error> {
        let globals = Globals::new(dockerfile, request, &target, true)?;
        let (bases, names) = (Vec::new(), StageNames::new(dockerfile));
        let mut stages = Stages { dockerfile, request, globals, target, bases, names };
        for (index, stage) in dockerfile.stages.iter().enumerate() {
            let base = stages.base(index, &stage.from, linter)?;
            stages.bases.push(base);
        }
        Ok(stages)
    }

    fn base(&self, index: usize, from: &From, linter: &mut Linter) -> Result<Base, Error> {
        let local = Local::of(&from.comments);
        let expanded = self.globals.expand(&from.image, self.dockerfile.directives.escape);
        let expanded = expanded.map_err(|error| self.wrong(from.span, error))?;
        from_args::check_undefined(&expanded.unmatched, &self.globals, from.span, &local, linter);
        let name = expanded.value;
        if name.is_empty() {
            let title = format!("base name ({}) should not be blank", from.image);
            return Err(self.refuse(from.span, title).hint("give the ARG a default before FROM"));
        }
        let platform = match &from.platform {
            Some(written) => Some(self.platform(from, written, &local, linter)?),
            None => None,
        };
        let wanted = platform.as_ref().unwrap_or(&self.target);
        let origin = match self.names.last_before(&name, index) {
            _ if name == "scratch" => Origin::Plain,
            stage => self.named_context(&name, wanted).unwrap_or_else(|| match stage {
                Some(stage) => Origin::Stage(stage),
                None => Origin::Image(registry(&name, wanted)),
            }),
        };
        Ok(Base { name, platform, origin })
    }

    fn platform(
        &self,
        from: &From,
        written: &str,
        local: &Local,
        linter: &mut Linter,
    ) -> Result<Platform, Error> {
        let expanded = self.globals.expand(written, self.dockerfile.directives.escape);
        let expanded = expanded.map_err(|error| self.wrong(from.span, error))?;
        from_args::check_undefined(&expanded.unmatched, &self.globals, from.span, local, linter);
        platforms::check_flag(from, written, &expanded, &self.globals, local, linter);
        if expanded.value.is_empty() {
            let title = format!("empty platform value from expression {written}");
            return Err(self.refuse(from.span, title));
        }
        expanded.value.parse().map_err(|error: crate::image::platform::PlatformError| {
            self.wrong(from.span, error).context(format!("failed to parse platform {written}"))
        })
    }

    pub(super) fn origin(&self, stage: usize) -> &Origin {
        &self.bases[stage].origin
    }

    /// The stage to build.
    fn goal(&self) -> Result<usize, Error> {
        let Some(target) = &self.request.target else { return Ok(self.bases.len() - 1) };
        self.names.last(&target.to_lowercase()).ok_or_else(|| {
            Error::new(Class::Input, format!("target stage {target:?} could not be found"))
        })
    }

    /// What an instruction of stage `current` names with `--from` or `from=`.
    pub(super) fn sources(
        &self,
        instruction: &Instruction,
        current: usize,
    ) -> Vec<(String, Origin)> {
        let named = |name: String, numbers| {
            let origin = self.source(&name, current, numbers);
            (name, origin)
        };
        match &instruction.kind {
            InstructionKind::Copy(copy) => {
                copy.from.iter().map(|name| named(name.clone(), true)).collect()
            }
            InstructionKind::Run(run) => {
                let as_it_is = |value: &str| Ok(value.to_owned());
                let mounts =
                    run.mounts.iter().filter_map(|text| mount::parse(text, &as_it_is).ok());
                mounts.filter_map(|mount| Some(named(mount.from?, false))).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The last stage of that name before `current`, or else after it; only `--from` of COPY takes numbers.
    fn source(&self, name: &str, current: usize, numbers: bool) -> Origin {
        if let Some(context) = self.named_context(name, &self.target) {
            return context;
        }
        if name == "scratch" {
            return Origin::Plain;
        }
        let lower = name.to_lowercase();
        let named = self.names.last_before(&lower, current).or_else(|| self.names.last(&lower));
        let number = || name.parse::<usize>().ok().filter(|_| numbers);
        match named.or_else(number) {
            Some(stage) if stage < self.bases.len() => Origin::Stage(stage),
            Some(_) => Origin::Plain,
            None => Origin::Image(registry(name, &self.target)),
        }
    }

    /// What a `--build-context` makes of a name.
    fn named_context(&self, name: &str, platform: &Platform) -> Option<Origin> {
        Some(match plan::named_context(self.request, name, platform)? {
            TreeSource::Image(image) => Origin::NamedImage(image),
            _ => Origin::Plain,
        })
    }

    /// Checks images that are known, and the names of all.
    fn check_images(
        &self,
        known: &Known<'_>,
        wanted: &dyn Fn(usize) -> bool,
        linter: &mut Linter,
    ) -> Result<(), Error> {
        for (index, stage) in self.dockerfile.stages.iter().enumerate() {
            let base = &self.bases[index];
            let expected = base.platform.as_ref().unwrap_or(&self.target);
            let images = wanted(index).then_some(known.images);
            self.check_image(&base.name, &base.origin, expected, stage.from.span, images, linter)?;
            for instruction in &stage.instructions {
                for (name, origin) in self.sources(instruction, index) {
                    let (expected, span) = (&self.target, instruction.span);
                    self.check_image(&name, &origin, expected, span, images, linter)?;
                }
            }
        }
        Ok(())
    }

    fn check_image(
        &self,
        name: &str,
        origin: &Origin,
        expected: &Platform,
        span: Span,
        images: Option<&BTreeMap<ImageUse, ImageConfig>>,
        linter: &mut Linter,
    ) -> Result<(), Error> {
        let Origin::Image(image) = origin else { return Ok(()) };
        reference::parse(name).map_err(|error| self.wrong(span, error))?;
        if let Some(config) = images.and_then(|images| images.get(image)) {
            platforms::check_image(name, config, expected, span, linter);
        }
        Ok(())
    }

    /// What the planner refuses, where enough is known to plan.
    fn check_plan(&self, known: &Known<'_>) -> Result<(), Error> {
        match plan::plan(self.dockerfile, self.request, &self.target, known.images) {
            Ok(Plan::Graph(_) | Plan::Needs(_)) => Ok(()),
            // An unknown base may have the variable that is missing.
            Err(_) if self.has_unknown(known.images) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn has_unknown(&self, images: &BTreeMap<ImageUse, ImageConfig>) -> bool {
        self.bases.iter().any(|base| match &base.origin {
            Origin::Image(image) | Origin::NamedImage(image) => !images.contains_key(image),
            Origin::Plain | Origin::Stage(_) => false,
        })
    }

    pub(super) fn wrong(
        &self,
        span: Span,
        error: impl std::error::Error + Send + Sync + 'static,
    ) -> Error {
        wrong(self.dockerfile, span, error)
    }

    pub(super) fn refuse(&self, span: Span, title: String) -> Error {
        Error::new(Class::Input, title).at(self.dockerfile, span)
    }
}

/// Whether a registry can be asked at all.
fn is_reference(image: &ImageUse) -> bool {
    match &image.source {
        ImageSource::Registry(name) => reference::parse(name).is_ok(),
        _ => true,
    }
}

fn registry(name: &str, platform: &Platform) -> ImageUse {
    ImageUse { source: ImageSource::Registry(name.to_owned()), platform: platform.clone() }
}

/// An error of the Dockerfile at a place.
pub(super) fn wrong(
    dockerfile: &Dockerfile,
    span: Span,
    error: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    Error::from_cause(Class::Input, error).at(dockerfile, span)
}
