//! PLAN: Dockerfile + request + base configurations -> BuildGraph. Pure: no I/O here (invariant 1).
//!
//! A plan may find that it needs an image's configuration that it was not given (the base of a stage, or an image that
//! a trigger names). It then says which, and is made again once they are known.

mod dispatch;
mod environment;
mod go;
mod graph;
mod instruction;
mod references;
mod scope;
mod stages;

use std::collections::BTreeMap;

use crate::{
    dockerfile::ast::{Dockerfile, Span},
    error::Error,
    image::ImageConfig,
    request::BuildRequest,
};

pub use environment::Environment;
pub use graph::{
    Base, BuildGraph, CopyOp, CopySource, ImageSource, ImageUse, Network, Op, PlannedMount,
    PlannedStage, RunOp, Step, TreeSource, WorkdirOp,
};
pub(crate) use references::{StageNames, named_context};

/// What planning gave.
#[derive(Clone, Debug)]
pub enum Plan {
    Graph(Box<BuildGraph>),
    /// Images whose configuration is needed first, each with the place that names it.
    Needs(Vec<(ImageUse, Span)>),
}

/// Plans the request's target for one platform. `known` are the configurations of images, by their use.
pub fn plan(
    dockerfile: &Dockerfile,
    request: &BuildRequest,
    platform: &crate::image::platform::Platform,
    known: &BTreeMap<ImageUse, ImageConfig>,
) -> Result<Plan, Error> {
    let mut planner = stages::Planner::new(dockerfile, request, platform, known)?;
    let target = planner.target()?;
    planner.stages(target)?;
    planner.finish(target)
}

#[cfg(test)]
mod tests;
