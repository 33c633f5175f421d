//! `bareboat plan`: what a build would run, in two forms on standard output (docs/plan.md).

mod human;
mod json;
mod words;

use bareboat_core::{
    event::{Event, Warning},
    preview::{BaseConfigs, Preview},
    request::BuildRequest,
};

use crate::{
    engine::{self, Services},
    outputs,
    render::Style,
};

/// How a plan is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Human,
    Json,
}

/// Plans and prints.
///
/// # Errors
/// What makes the Dockerfile unbuildable (class input), and images that can't be resolved (class source).
pub async fn plan(
    request: &BuildRequest,
    bases: &BaseConfigs,
    format: Format,
    style: Style,
    services: Services,
) -> anyhow::Result<()> {
    let reporter = services.reporter.clone();
    let preview = engine::preview(request, bases, services).await?;
    for name in &preview.unused {
        reporter.report(Event::Warning(unused(name)));
    }
    outputs::print_line(rendered(&preview, format, style)?.trim_end())
}

fn rendered(preview: &Preview, format: Format, style: Style) -> serde_json::Result<String> {
    match format {
        Format::Human => human::render(preview, style),
        Format::Json => serde_json::to_string_pretty(&json::document(preview)),
    }
}

fn unused(name: &str) -> Warning {
    Warning {
        message: format!("--base-config {name}: the build does not read that image"),
        location: None,
        hint: None,
    }
}
