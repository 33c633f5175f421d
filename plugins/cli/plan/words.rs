//! Words that both forms of a plan use.

use bareboat_core::{
    dockerfile::mount::Mount,
    fetch,
    plan::{Base, BuildGraph, CopySource, Network, Op, Step, TreeSource},
};

pub fn stage_name(graph: &BuildGraph, index: usize) -> String {
    match graph.stages.get(&index).map(|stage| stage.name.as_str()) {
        Some("") | None => format!("stage-{index}"),
        Some(name) => name.to_owned(),
    }
}

pub fn base(graph: &BuildGraph, base: &Base) -> String {
    match base {
        Base::Scratch => "scratch".to_owned(),
        Base::Image(image) => format!("image {image} ({})", image.platform),
        Base::Stage(index) => format!("stage {}", stage_name(graph, *index)),
        Base::Context(name) => format!("context {name}"),
    }
}

pub fn tree(graph: &BuildGraph, source: &TreeSource) -> String {
    match source {
        TreeSource::Context(None) => "the build context".to_owned(),
        TreeSource::Context(Some(name)) => format!("context {name}"),
        TreeSource::Stage(index) => format!("stage {}", stage_name(graph, *index)),
        TreeSource::Image(image) => format!("image {image} ({})", image.platform),
        TreeSource::Empty => "scratch".to_owned(),
    }
}

/// The instruction as it is carried out: what changes the configuration as the history tells it, with its values.
pub fn instruction(step: &Step) -> &str {
    match (&step.op, &step.history) {
        (Op::Metadata | Op::Workdir(_), Some(entry)) => &entry.created_by,
        _ => &step.title,
    }
}

/// A source of COPY or ADD, without passwords.
pub fn copy_source(source: &CopySource) -> String {
    match source {
        CopySource::Path(path) => path.clone(),
        CopySource::File { name, content } => {
            format!("<<{name} ({} bytes)", content.len())
        }
        CopySource::Url { url, .. } => fetch::without_password(url),
        CopySource::Git(git) => match &git.reference {
            Some(reference) => format!("{}#{reference}", git.remote),
            None => git.remote.to_string(),
        },
    }
}

pub fn network(network: Network) -> &'static str {
    match network {
        Network::Default => "default",
        Network::None => "none",
        Network::Host => "host",
    }
}

/// The options of a mount as they are given, `from` aside.
pub fn mount_options(mount: &Mount) -> Vec<(&'static str, String)> {
    let octal = |mode: Option<u32>| mode.map(|mode| format!("{mode:04o}"));
    let number = |id: Option<u32>| id.map(|id| id.to_string());
    let flag = |set: bool| set.then(|| "true".to_owned());
    let options = [
        ("source", mount.source.clone()),
        ("target", mount.target.clone()),
        ("id", mount.id.clone()),
        ("env", mount.env.clone()),
        ("sharing", mount.sharing.map(|sharing| sharing.as_str().to_owned())),
        ("readonly", flag(mount.read_only)),
        ("required", flag(mount.required)),
        ("size", (mount.size_bytes > 0).then(|| mount.size_bytes.to_string())),
        ("mode", octal(mount.mode)),
        ("uid", number(mount.uid)),
        ("gid", number(mount.gid)),
    ];
    options.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}
