//! Which stages a target needs, with the triggers that run in them.

use std::collections::{BTreeMap, HashMap};

use crate::{error::Error, image::ImageConfig, plan::ImageUse};

use super::{
    super::{
        ast::{Instruction, InstructionKind},
        parse::parse_onbuild,
    },
    stages::{Origin, Stages},
};

/// The needed stages.
pub(super) struct Reach {
    /// The triggers of each needed stage's base, placed at its FROM.
    triggers: HashMap<usize, Vec<Instruction>>,
}

impl Reach {
    pub(super) fn needs(&self, stage: usize) -> bool {
        self.triggers.contains_key(&stage)
    }

    /// What runs behind a stage's FROM. BuildKit looks at triggers only in stages that the target needs.
    pub(super) fn triggers(&self, stage: usize) -> &[Instruction] {
        self.triggers.get(&stage).map_or(&[], Vec::as_slice)
    }
}

/// Walks from `goal` to all that it needs.
pub(super) fn reach(
    stages: &Stages<'_>,
    goal: usize,
    images: &BTreeMap<ImageUse, ImageConfig>,
) -> Result<Reach, Error> {
    let mut reach = Reach { triggers: HashMap::new() };
    let mut open = vec![goal];
    while let Some(index) = open.pop() {
        if reach.needs(index) {
            continue;
        }
        let triggers = triggers(stages, index, images)?;
        let own = &stages.dockerfile.stages[index].instructions;
        let sources = own.iter().chain(&triggers).flat_map(|each| stages.sources(each, index));
        open.extend(sources.filter_map(|(_, origin)| stage_of(&origin)));
        open.extend(stage_of(stages.origin(index)));
        reach.triggers.insert(index, triggers);
    }
    Ok(reach)
}

fn stage_of(origin: &Origin) -> Option<usize> {
    match origin {
        Origin::Stage(stage) => Some(*stage),
        Origin::Plain | Origin::Image(_) | Origin::NamedImage(_) => None,
    }
}

/// The triggers of a stage's base: an image's, or those of the stage that it is.
fn triggers(
    stages: &Stages<'_>,
    index: usize,
    images: &BTreeMap<ImageUse, ImageConfig>,
) -> Result<Vec<Instruction>, Error> {
    let texts: Vec<&str> = match stages.origin(index) {
        Origin::Plain => Vec::new(),
        Origin::Image(image) | Origin::NamedImage(image) => {
            let config = images.get(image).map(|config| &config.config);
            config.into_iter().flat_map(|config| &config.on_build).map(String::as_str).collect()
        }
        Origin::Stage(parent) => {
            let instructions = &stages.dockerfile.stages[*parent].instructions;
            instructions.iter().filter_map(trigger_text).collect()
        }
    };
    let span = stages.dockerfile.stages[index].from.span;
    let parse = |text: &str| match parse_onbuild(text) {
        Ok(instruction) => Ok(Instruction { span, comments: Vec::new(), ..instruction }),
        Err(error) => {
            let title = format!("failed to parse trigger {text:?}: {}", error.message);
            Err(stages.refuse(span, title))
        }
    };
    texts.into_iter().map(parse).collect()
}

fn trigger_text(instruction: &Instruction) -> Option<&str> {
    match &instruction.kind {
        InstructionKind::Onbuild(text) => Some(text),
        _ => None,
    }
}
