//! A plan for people: stages in the order in which they are planned, each step with its line, then the configuration.

use std::fmt::Write;

use bareboat_core::{
    plan::{BuildGraph, CopyOp, Op, PlannedStage, RunOp, Step},
    preview::Preview,
};
use serde_json::Value;

use super::words;
use crate::render::{Style, message};

/// Where the details of a step begin.
const INDENT: &str = "              ";

pub fn render(preview: &Preview, style: Style) -> serde_json::Result<String> {
    let graph = &preview.graph;
    let target = words::stage_name(graph, graph.target);
    let mut text = format!(
        "{} for {}, target {}\n",
        style.bold(&message(&preview.dockerfile)),
        message(&preview.platform.to_string()),
        message(&target)
    );
    for each in graph.stages.values() {
        stage(&mut text, graph, each, style);
    }
    let config = serde_json::to_string_pretty(&configuration(graph)?)?;
    let config: Vec<String> = config.lines().map(message).collect();
    text += &format!("\n{}\n{}\n", style.bold("configuration"), config.join("\n"));
    Ok(text)
}

/// Without what the steps above tell.
fn configuration(graph: &BuildGraph) -> serde_json::Result<Value> {
    let mut config = serde_json::to_value(&graph.config)?;
    if let Some(object) = config.as_object_mut() {
        object.remove("rootfs");
        object.remove("history");
    }
    Ok(config)
}

fn stage(text: &mut String, graph: &BuildGraph, stage: &PlannedStage, style: Style) {
    let name = message(&words::stage_name(graph, stage.index));
    let base = message(&words::base(graph, &stage.base));
    line(text, "", "");
    line(
        text,
        &format!("{:>5}  ", stage.base_span.first_line),
        &format!("{} from {base}", style.bold(&name)),
    );
    for each in &stage.steps {
        step(text, graph, each, style);
    }
}

fn step(text: &mut String, graph: &BuildGraph, step: &Step, style: Style) {
    let kind = if step.op.makes_layer() { "layer " } else { "config" };
    let head = format!("{:>5}  {} ", step.span.first_line, style.dim(kind));
    line(text, &head, &message(words::instruction(step)));
    let details = match &step.op {
        Op::Run(op) => run(graph, op),
        Op::Copy(op) => copy(graph, op),
        Op::Workdir(_) | Op::Metadata => Vec::new(),
    };
    for detail in details {
        line(text, INDENT, &style.dim(&message(&detail)));
    }
}

fn line(text: &mut String, head: &str, rest: &str) {
    // Writing into a String cannot fail.
    let _ = writeln!(text, "{head}{rest}");
}

/// What the title does not say already.
fn run(graph: &BuildGraph, op: &RunOp) -> Vec<String> {
    let mut details: Vec<String> = op
        .mounts
        .iter()
        .map(|planned| {
            let mut words = vec![format!("mount {}", planned.mount.kind.as_str())];
            let options = words::mount_options(&planned.mount).into_iter();
            words.extend(options.map(|(name, value)| format!("{name}={value}")));
            words.extend(
                planned.from.iter().map(|from| format!("from {}", words::tree(graph, from))),
            );
            words.join(" ")
        })
        .collect();
    details.extend((!op.user.is_empty()).then(|| format!("as {}", op.user)));
    let directory = op.working_directory.as_str();
    details.extend((!matches!(directory, "" | "/")).then(|| format!("in {directory}")));
    let network = words::network(op.network);
    details.extend((network != "default").then(|| format!("network {network}")));
    details
}

fn copy(graph: &BuildGraph, op: &CopyOp) -> Vec<String> {
    let sources: Vec<String> = op.sources.iter().map(words::copy_source).collect();
    let from = op.reads_tree().then(|| format!(" from {}", words::tree(graph, &op.from)));
    let from = from.unwrap_or_default();
    let mut details = vec![format!("{}{from} to {}", sources.join(" "), op.destination)];
    details.extend(op.chown.iter().map(|owner| format!("owner {owner}")));
    details.extend(op.chmod.iter().map(|mode| format!("mode {mode}")));
    details
}
