//! The JSON form of a plan (docs/plan.md).

use bareboat_core::{
    plan::{
        Base, BuildGraph, CopyOp, ImageUse, Op, PlannedMount, PlannedStage, RunOp, Step, TreeSource,
    },
    preview::Preview,
};
use serde_json::{Map, Value, json};

use super::words;

pub fn document(preview: &Preview) -> Value {
    let graph = &preview.graph;
    json!({
        "v": 1,
        "dockerfile": preview.dockerfile,
        "platform": preview.platform.to_string(),
        "target": graph.target,
        "stages": graph.stages.values().map(|each| stage(graph, each)).collect::<Vec<_>>(),
        "config": graph.config,
    })
}

fn stage(graph: &BuildGraph, stage: &PlannedStage) -> Value {
    json!({
        "index": stage.index,
        "name": words::stage_name(graph, stage.index),
        "line": stage.base_span.first_line,
        "base": base(&stage.base),
        "steps": stage.steps.iter().map(step).collect::<Vec<_>>(),
    })
}

fn base(base: &Base) -> Value {
    match base {
        Base::Scratch => json!({"type": "scratch"}),
        Base::Image(image) => self::image(image),
        Base::Stage(index) => json!({"type": "stage", "index": index}),
        Base::Context(name) => json!({"type": "context", "name": name}),
    }
}

fn image(image: &ImageUse) -> Value {
    json!({
        "type": "image",
        "reference": image.to_string(),
        "platform": image.platform.to_string(),
    })
}

fn tree(source: &TreeSource) -> Value {
    match source {
        TreeSource::Context(name) => json!({"type": "context", "name": name}),
        TreeSource::Stage(index) => json!({"type": "stage", "index": index}),
        TreeSource::Image(image) => self::image(image),
        TreeSource::Empty => json!({"type": "scratch"}),
    }
}

fn step(step: &Step) -> Value {
    let mut object = Map::new();
    object.insert("line".into(), step.span.first_line.into());
    object.insert("instruction".into(), words::instruction(step).into());
    object.insert("layer".into(), step.op.makes_layer().into());
    object.insert("reads".into(), step.op.sources().into_iter().map(tree).collect());
    let history = step.history.as_ref().map(|entry| entry.created_by.as_str());
    object.insert("history".into(), history.into());
    let detail = match &step.op {
        Op::Metadata => None,
        Op::Run(op) => Some(("run", run(op))),
        Op::Copy(op) if op.add => Some(("add", copy(op))),
        Op::Copy(op) => Some(("copy", copy(op))),
        Op::Workdir(op) => Some(("workdir", json!({"path": op.path, "user": op.user}))),
    };
    object.extend(detail.map(|(name, value)| (name.to_owned(), value)));
    Value::Object(object)
}

fn run(op: &RunOp) -> Value {
    let environment = op.environment.pairs().into_iter();
    let environment: Vec<String> =
        environment.map(|(name, value)| format!("{name}={value}")).collect();
    let script = op.script.as_ref().map(|(name, text)| json!({"name": name, "text": text}));
    json!({
        "argv": op.argv,
        "environment": environment,
        "working_directory": op.working_directory,
        "user": op.user,
        "network": words::network(op.network),
        "script": script,
        "mounts": op.mounts.iter().map(mount).collect::<Vec<_>>(),
    })
}

fn mount(planned: &PlannedMount) -> Value {
    let options = words::mount_options(&planned.mount).into_iter();
    let mut object: Map<String, Value> =
        options.map(|(name, value)| (name.to_owned(), value.into())).collect();
    object.insert("type".into(), planned.mount.kind.as_str().into());
    object.extend(planned.from.iter().map(|from| ("from".to_owned(), tree(from))));
    Value::Object(object)
}

fn copy(op: &CopyOp) -> Value {
    json!({
        "sources": op.sources.iter().map(words::copy_source).collect::<Vec<_>>(),
        "destination": op.destination,
        "working_directory": op.working_directory,
        "chown": op.chown,
        "chmod": op.chmod,
        "link": op.link,
        "parents": op.parents,
        "exclude": op.exclude,
        "unpack": op.unpack,
    })
}
