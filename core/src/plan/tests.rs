//! What names mean, what stages inherit, and files with thousands of stages.

use std::{collections::BTreeMap, fmt::Write, time::Instant};

use crate::{
    dockerfile,
    error::Error,
    image::{History, ImageConfig, platform::Platform},
    request::{BuildRequest, NamedContext},
};

use super::*;

/// Far above what is seen (a debug build on a busy machine takes half a second).
const SECONDS_MAX: u64 = 20;

fn planned(text: &str, request: &BuildRequest) -> Result<Plan, Error> {
    let parsed = dockerfile::parse("Dockerfile", text.as_bytes()).unwrap();
    let mut base = ImageConfig::scratch(&Platform::host());
    base.config.env = vec!["PATH=/bin".into(), "BASE=1".into()];
    base.config.on_build = vec!["LABEL triggered=yes".into()];
    base.history = vec![History { created_by: "base".into(), ..History::default() }];
    let image =
        ImageUse { source: ImageSource::Registry("base".into()), platform: Platform::host() };
    let known = BTreeMap::from([(image, base)]);
    plan(&parsed.dockerfile, request, &Platform::host(), &known)
}

fn graph(text: &str, request: &BuildRequest) -> BuildGraph {
    match planned(text, request).unwrap() {
        Plan::Graph(graph) => *graph,
        Plan::Needs(needs) => panic!("{needs:?}"),
    }
}

fn of(text: &str) -> BuildGraph {
    graph(text, &BuildRequest::default())
}

fn refusal(text: &str) -> String {
    planned(text, &BuildRequest::default()).unwrap_err().title().to_owned()
}

fn target(name: &str) -> BuildRequest {
    BuildRequest { target: Some(name.into()), ..BuildRequest::default() }
}

#[test]
fn a_chain_of_as_many_stages_as_a_file_may_have() {
    let mut text = "FROM base AS s0\n".to_owned();
    for stage in 1..10_000 {
        let before = stage - 1;
        let stage_text =
            format!("FROM s{before} AS s{stage}\nARG A={stage}\nENV E{stage}=$A\nRUN x\n");
        text += &stage_text;
    }
    let started = Instant::now();
    let graph = of(&text);
    assert_eq!(graph.stages.len(), 10_000);
    assert_eq!(graph.config.config.env.len(), 2 + 9_999);
    assert_eq!(graph.config.history.len(), 2 + 3 * 9_999);
    let Op::Run(run) = &graph.stages[&2].steps[2].op else { panic!() };
    assert_eq!(
        run.environment.pairs(),
        [("PATH", "/bin"), ("BASE", "1"), ("E1", "1"), ("A", "2"), ("E2", "2")]
    );
    assert!(started.elapsed().as_secs() < SECONDS_MAX, "{:?}", started.elapsed());
}

#[test]
fn thousands_of_stages_on_one_and_copies_of_them_all() {
    let mut text = "FROM base AS root\n".to_owned();
    for n in 0..2000 {
        let _ = writeln!(text, "LABEL l{n}=1");
    }
    let mut last = "FROM scratch\n".to_owned();
    for n in 0..2000 {
        let _ = write!(text, "FROM root AS s{n}\nRUN x\n");
        let _ = writeln!(last, "COPY --from=s{n} / /{n}");
    }
    let started = Instant::now();
    assert_eq!(of(&(text + &last)).stages.len(), 2002);
    assert!(started.elapsed().as_secs() < SECONDS_MAX, "{:?}", started.elapsed());
}

#[test]
fn the_target_stage_is_told() {
    let label = |text: &str, request: &BuildRequest| {
        let text = format!("{text}\nARG TARGETSTAGE\nLABEL s=$TARGETSTAGE\n");
        graph(&text, request).config.config.labels["s"].clone()
    };
    let unnamed = BuildRequest::default();
    assert_eq!(label("FROM scratch", &unnamed), "default");
    assert_eq!(label("FROM scratch AS Last", &unnamed), "last");
    assert_eq!(label("FROM scratch AS a\nFROM scratch", &unnamed), "default");
    assert_eq!(label("FROM scratch AS a", &target("A")), "A");
}

#[test]
fn only_what_the_target_needs_is_planned() {
    let text = "FROM scratch AS a\nFROM base AS b\nFROM scratch AS c\nCOPY --from=0 / /\n\
                RUN --mount=from=b x\nFROM scratch AS d\nFROM scratch\n";
    let stages = |name: &str| graph(text, &target(name)).stages.into_keys().collect::<Vec<_>>();
    assert_eq!(stages("c"), [0, 1, 2]);
    assert_eq!(stages("d"), [3]);
    assert_eq!(of(text).stages.into_keys().collect::<Vec<_>>(), [4]);
}

#[test]
fn stages_inherit_all_but_triggers() {
    let text = "FROM base AS a\nUSER u\nARG X=1\nONBUILD COPY --from=c / /\nCMD x\n\
                FROM scratch AS c\nFROM a\nENTRYPOINT [\"e\"]\nLABEL x=$X$BASE\n";
    let graph = of(text);
    assert_eq!(graph.stages.keys().copied().collect::<Vec<_>>(), [0, 1, 2]);
    let config = &graph.config.config;
    assert_eq!((config.user.as_str(), config.labels["x"].as_str()), ("u", "11"));
    assert_eq!(config.labels["triggered"], "yes");
    // The parent's CMD is not this stage's own.
    assert_eq!((config.cmd.as_ref(), config.on_build.len()), (None, 0));
    let histories: Vec<_> = graph.config.history.iter().map(|h| h.created_by.as_str()).collect();
    assert_eq!(graph.config.rootfs.kind, "layers");
    assert_eq!(histories[..2], ["base", "LABEL triggered=yes"]);
    assert_eq!(graph.inherited_history, 1);
    assert_eq!(of("FROM base\nONBUILD RUN x\n").config.config.on_build, ["RUN x"]);
}

#[test]
fn every_stage_is_looked_at_before_any_is_planned() {
    for (text, said) in [
        ("FROM $X AS a\nFROM scratch\n", "should not be blank"),
        ("FROM A_B AS a\nFROM scratch\n", "A_B"),
        ("FROM scratch AS X\nFROM X\n", "names of stages are lower-case: FROM x"),
        ("FROM --platform=x/y/z/w scratch\nFROM scratch\n", "failed to parse platform"),
        ("FROM scratch\nCOPY --from=9 / /\nFROM scratch\n", "invalid stage index 9"),
        ("FROM scratch\nCOPY --from=$X / /\nFROM scratch\n", "doesn't support variables"),
        ("FROM scratch AS a\nCOPY --from=a / /\nFROM scratch\n", "circular dependency"),
        (
            "FROM scratch AS a\nRUN --mount=from=b x\nFROM scratch AS b\nFROM a\n",
            "needs to be defined before",
        ),
    ] {
        let mut said_of = refusal(text);
        if let Err(error) = planned(text, &BuildRequest::default()) {
            said_of += &format!("{error:?}");
        }
        assert!(said_of.contains(said), "{text}: {said_of}");
    }
}

#[test]
fn named_contexts_stand_for_images_and_stages() {
    let mut request = BuildRequest::default();
    request.build_contexts.insert("alpine".into(), NamedContext::Directory("/x".into()));
    request.build_contexts.insert("s".into(), NamedContext::Image("base".into()));
    let text = "FROM alpine:latest AS s\nFROM s\nCOPY --from=alpine / /\n";
    let graph = graph(text, &request);
    let image = ImageSource::Registry("base".into());
    assert!(matches!(&graph.stages[&1].base, Base::Image(used) if used.source == image));
    let Op::Copy(copy) = &graph.stages[&1].steps[1].op else { panic!() };
    assert_eq!(copy.from, TreeSource::Context(Some("alpine".into())));
}

/// BuildKit: a named context of a stage's name stands for the stage, also where it is the target or is meant by number.
#[test]
fn a_named_context_replaces_its_stage_whoever_reads_it() {
    let mut request = BuildRequest::default();
    request.build_contexts.insert("a".into(), NamedContext::Directory("/x".into()));
    let text = "FROM scratch AS a\nRUN false\nFROM scratch\nCOPY --from=0 / /\n";
    let planned = graph(text, &request);
    assert_eq!(planned.stages[&0].base, Base::Context("a".into()));
    assert!(planned.stages[&0].steps.is_empty());
    request.target = Some("a".into());
    let planned = graph(text, &request);
    assert!(planned.stages[&planned.target].steps.is_empty());
}
