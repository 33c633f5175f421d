//! Keys of every step, before anything is pulled or executed (rules.md, cache keys).
//!
//! A step whose context content would have to be read although no record has its prefix gets no key yet; neither do the
//! steps behind it. Their keys are completed while the build goes on.

use std::collections::BTreeMap;

use crate::{
    cache::{self, CacheKey, KeyBuilder, Record},
    dockerfile::mount::Mount,
    error::Error,
    plan::{
        Base, CopyOp, CopySource, ImageUse, Network, Op, PlannedStage, RunOp, Step, TreeSource,
    },
    request::NoCache,
};

use super::{
    Parts,
    copy::{content_for_key, context_key},
    remote::git_key,
    stage::compression_name,
};

/// What is known of a step's result before it is executed.
#[derive(Clone, Debug, Default)]
pub struct StepKey {
    /// Parent and instruction; records are filed below it. `None` where the parent's key is not known.
    pub prefix: Option<CacheKey>,
    pub key: Option<CacheKey>,
    pub record: Option<Record>,
    /// `--no-cache`: no record counts, also one that is found only later.
    pub uncached: bool,
}

/// The keys of a stage; one for each step (`None` for metadata).
#[derive(Clone, Debug, Default)]
pub struct StageKeys {
    pub base: Option<CacheKey>,
    pub steps: Vec<Option<StepKey>>,
}

impl StageKeys {
    /// The key of the stage's result.
    pub fn last(&self) -> Option<CacheKey> {
        match self.steps.iter().rev().flatten().next() {
            Some(step) => step.key,
            None => self.base,
        }
    }
}

/// The keys of all stages, parents first.
pub fn plan_keys(parts: &Parts) -> BTreeMap<usize, StageKeys> {
    let mut keys: BTreeMap<usize, StageKeys> = BTreeMap::new();
    for (index, stage) in &parts.graph.stages {
        let planned = stage_keys(parts, stage, &keys);
        keys.insert(*index, planned);
    }
    keys
}

fn stage_keys(
    parts: &Parts,
    stage: &PlannedStage,
    known: &BTreeMap<usize, StageKeys>,
) -> StageKeys {
    let stage_key = |index: usize| known.get(&index).and_then(StageKeys::last);
    let base = base_key(parts, &stage.base, &stage_key);
    let mut parent = base;
    let uncached = is_uncached(parts, stage);
    let mut steps = Vec::new();
    for step in &stage.steps {
        if !step.op.makes_layer() {
            steps.push(None);
            continue;
        }
        // What is wrong with a source is told when the step is executed.
        let key = parent_key(parts, step, parent, &stage_key).unwrap_or_default();
        let key = key.without_records_if(uncached);
        parent = key.key;
        steps.push(Some(key));
    }
    StageKeys { base, steps }
}

/// Whether `--no-cache` or `--no-cache-filter` is about this stage.
pub fn is_uncached(parts: &Parts, stage: &PlannedStage) -> bool {
    match &parts.request.no_cache {
        NoCache::Use => false,
        NoCache::All => true,
        NoCache::Stages(names) => names.iter().any(|name| name.eq_ignore_ascii_case(&stage.name)),
    }
}

impl StepKey {
    pub fn without_records_if(mut self, uncached: bool) -> Self {
        self.uncached = uncached;
        if uncached {
            self.record = None;
        }
        self
    }
}

fn base_key(
    parts: &Parts,
    base: &Base,
    stage_key: &dyn Fn(usize) -> Option<CacheKey>,
) -> Option<CacheKey> {
    match base {
        Base::Scratch => Some(KeyBuilder::new("scratch").finish()),
        Base::Image(image) => Some(image_key(parts, image)),
        Base::Stage(index) => stage_key(*index),
        Base::Context(name) => {
            let context = parts.contexts.get(Some(name)).ok()?;
            context_key(&context, "/").ok()
        }
    }
}

fn image_key(parts: &Parts, image: &ImageUse) -> CacheKey {
    let digest = parts.images[image].digest;
    KeyBuilder::new("image").bytes("manifest", digest.as_bytes()).finish()
}

/// The key of a step on a parent of that key, and its record.
pub fn parent_key(
    parts: &Parts,
    step: &Step,
    parent: Option<CacheKey>,
    stage_key: &dyn Fn(usize) -> Option<CacheKey>,
) -> Result<StepKey, Error> {
    let Some(parent) = parent else { return Ok(StepKey::default()) };
    let common = |kind: &str| {
        let request = &parts.request;
        KeyBuilder::new(kind)
            .key("parent", &parent)
            .text("compression", &compression_name(request.compression))
            .optional("epoch", request.source_date_epoch.map(|e| e.to_string()).as_deref())
    };
    let mut found = match &step.op {
        Op::Metadata => return Ok(StepKey { key: Some(parent), ..StepKey::default() }),
        Op::Workdir(workdir) => {
            let key = common("workdir").text("path", &workdir.path).text("user", &workdir.user);
            let key = key.finish();
            StepKey { prefix: Some(key), key: Some(key), ..StepKey::default() }
        }
        Op::Run(run) => run_key(parts, run, common("run"), stage_key)?,
        Op::Copy(copy) => copy_key(parts, copy, common("copy"), stage_key)?,
    };
    if let (Some(prefix), Some(key)) = (&found.prefix, &found.key) {
        found.record = cache::lookup(&parts.store, prefix, key);
    }
    Ok(found)
}

fn run_key(
    parts: &Parts,
    run: &RunOp,
    key: KeyBuilder,
    stage_key: &dyn Fn(usize) -> Option<CacheKey>,
) -> Result<StepKey, Error> {
    let pairs = run.environment.pairs().into_iter();
    let environment: Vec<String> = pairs.map(|(name, value)| format!("{name}={value}")).collect();
    let request = &parts.request;
    let hosts = request.add_hosts.iter().map(|(name, _)| name.as_str());
    let limits: Vec<String> =
        request.ulimits.iter().map(|(n, soft, hard)| format!("{n}={soft}:{hard}")).collect();
    let (script_name, script) = run.script.clone().unwrap_or_default();
    let network = match run.network {
        Network::Default => 0,
        Network::None => 1,
        Network::Host => 2,
    };
    let mut key = key
        .list("argv", run.argv.iter().map(String::as_str))
        .list("environment", environment.iter().map(String::as_str))
        .text("directory", &run.working_directory)
        .text("user", &run.user)
        .text("script name", &script_name)
        .text("script", &script)
        .number("network", network)
        .flag("insecure", run.insecure)
        .optional("host name", run.host_name.as_deref())
        .list("hosts", hosts)
        .list("limits", limits.iter().map(String::as_str))
        .number("shm", request.shm_bytes.unwrap_or(0))
        .number("mounts", run.mounts.len() as u64);
    for mount in &run.mounts {
        key = mount_key(key, &mount.mount);
        if let Some(source) = &mount.from {
            let path = mount.mount.source.as_deref().unwrap_or("/");
            let Some(source) = source_key(parts, source, path, stage_key)? else {
                return Ok(StepKey::default());
            };
            key = key.key("source", &source);
        }
    }
    let key = key.finish();
    Ok(StepKey { prefix: Some(key), key: Some(key), ..StepKey::default() })
}

/// Options of a mount that the step can see; a secret's value and a cache's content are none of them.
fn mount_key(key: KeyBuilder, mount: &Mount) -> KeyBuilder {
    let number = |value: Option<u32>| value.map(|value| value.to_string());
    key.text("type", mount.kind.as_str())
        .optional("source", mount.source.as_deref())
        .optional("target", mount.target.as_deref())
        .optional("id", mount.id.as_deref())
        .optional("env", mount.env.as_deref())
        .optional("sharing", mount.sharing.map(|sharing| sharing.as_str()))
        .flag("read-only", mount.read_only)
        .flag("required", mount.required)
        .number("size", mount.size_bytes)
        .optional("mode", number(mount.mode).as_deref())
        .optional("uid", number(mount.uid).as_deref())
        .optional("gid", number(mount.gid).as_deref())
}

/// The key of a tree that is read: a stage, an image, or what lies at a path of a context.
fn source_key(
    parts: &Parts,
    source: &TreeSource,
    path: &str,
    stage_key: &dyn Fn(usize) -> Option<CacheKey>,
) -> Result<Option<CacheKey>, Error> {
    Ok(match source {
        TreeSource::Empty => Some(KeyBuilder::new("scratch").finish()),
        TreeSource::Stage(index) => stage_key(*index),
        TreeSource::Image(image) => Some(image_key(parts, image)),
        TreeSource::Context(name) => {
            let context = parts.contexts.get(name.as_deref())?;
            Some(context_key(&context, path)?)
        }
    })
}

fn copy_key(
    parts: &Parts,
    copy: &CopyOp,
    key: KeyBuilder,
    stage_key: &dyn Fn(usize) -> Option<CacheKey>,
) -> Result<StepKey, Error> {
    let mut key = key
        .flag("add", copy.add)
        .text("destination", &copy.destination)
        .text("directory", &copy.working_directory)
        .optional("chown", copy.chown.as_deref())
        .optional("chmod", copy.chmod.as_deref())
        .flag("link", copy.link)
        .flag("parents", copy.parents)
        .list("exclude", copy.exclude.iter().map(String::as_str))
        .optional("unpack", copy.unpack.map(|unpack| if unpack { "yes" } else { "no" }))
        .number("sources", copy.sources.len() as u64);
    for source in &copy.sources {
        key = match source {
            CopySource::Path(path) => key.text("path", path),
            CopySource::File { name, content } => key.text("file", name).text("content", content),
            CopySource::Url { url, checksum } => {
                let checksum = checksum.map(|checksum| checksum.to_string());
                key.text("url", url).optional("checksum", checksum.as_deref())
            }
            CopySource::Git(reference) => git_key(reference, key),
        };
    }
    let reads_context = matches!(copy.from, TreeSource::Context(_))
        && copy.sources.iter().any(|source| matches!(source, CopySource::Path(_)));
    let TreeSource::Context(name) = &copy.from else {
        let Some(source) = source_key(parts, &copy.from, "/", stage_key)? else {
            return Ok(StepKey::default());
        };
        let key = key.key("source", &source).finish();
        return Ok(StepKey { prefix: Some(key), key: Some(key), ..StepKey::default() });
    };
    let prefix = key.clone().finish();
    if is_remote(copy) {
        // What a URL or a repository gives is known when it was looked at.
        return Ok(StepKey { prefix: Some(prefix), ..StepKey::default() });
    }
    if !reads_context {
        return Ok(StepKey { prefix: Some(prefix), key: Some(prefix), ..StepKey::default() });
    }
    let mut found = StepKey { prefix: Some(prefix), ..StepKey::default() };
    if cache::prefix_known(&parts.store, &prefix) {
        let context = parts.contexts.get(name.as_deref())?;
        found.key = Some(content_key(prefix, &content_for_key(&context, copy)?));
    }
    Ok(found)
}

/// Whether an ADD takes anything from the network.
pub fn is_remote(copy: &CopyOp) -> bool {
    let remote =
        |source: &CopySource| matches!(source, CopySource::Url { .. } | CopySource::Git(_));
    copy.sources.iter().any(remote)
}

/// The key of a COPY from a context: the prefix and the hash of what it takes.
pub fn content_key(prefix: CacheKey, content: &crate::digest::Digest) -> CacheKey {
    KeyBuilder::new("content").key("prefix", &prefix).bytes("content", content.as_bytes()).finish()
}
