//! What the golden cases do not have: triggers, scopes, unknown bases, errors, switches, hostile files.

use std::{fmt::Write as _, time::Instant};

use super::*;

/// The findings in their order, as `Rule:line`, and the error.
fn lint_with(
    text: &str,
    request: &BuildRequest,
    known: &Known<'_>,
) -> (Vec<String>, Option<Error>) {
    let report = check_source("Dockerfile", text.as_bytes(), request, known).1;
    let name = |f: &Finding| format!("{}:{}", f.rule.name, f.span.first_line);
    (report.findings.iter().map(name).collect(), report.error)
}

fn known(images: &BTreeMap<ImageUse, ImageConfig>) -> Known<'_> {
    Known { images, platform: None, ignored: None, all_stages: true }
}

fn lint(text: &str) -> Vec<String> {
    let (found, error) = lint_with(text, &BuildRequest::default(), &known(&BTreeMap::new()));
    assert!(error.is_none(), "{text}: {error:?}");
    found
}

/// An image `base` with these variables and triggers.
fn base(environment: &[&str], triggers: &[&str]) -> BTreeMap<ImageUse, ImageConfig> {
    let platform = Platform::host();
    let mut config = ImageConfig {
        os: platform.os.clone(),
        architecture: platform.architecture.clone(),
        ..ImageConfig::default()
    };
    config.config.env = environment.iter().map(|pair| pair.to_string()).collect();
    config.config.on_build = triggers.iter().map(|text| text.to_string()).collect();
    let source = crate::plan::ImageSource::Registry("base".to_owned());
    BTreeMap::from([(ImageUse { source, platform }, config)])
}

fn lint_on(text: &str, images: &BTreeMap<ImageUse, ImageConfig>) -> Vec<String> {
    let (found, error) = lint_with(text, &BuildRequest::default(), &known(images));
    assert!(error.is_none(), "{text}: {error:?}");
    found
}

const NOTHING: [&str; 0] = [];

#[test]
fn variables_are_known_from_where_they_are_set() {
    for (text, expected) in [
        ("FROM scratch\nARG foo\nCOPY a$foo .", &[][..]),
        ("FROM scratch\nCOPY $foo .\nARG foo=bar", &["UndefinedVar:2"]),
        ("FROM scratch AS a\nARG foo=x\nFROM a\nCOPY $foo .", &[]),
        ("FROM scratch AS a\nENV foo=x\nFROM scratch\nCOPY $foo .", &["UndefinedVar:4"]),
        ("ARG foo=x\nFROM scratch\nCOPY $foo .", &["UndefinedVar:3"]),
        ("ARG foo=x\nFROM scratch\nARG foo\nCOPY $foo .", &[]),
        ("FROM scratch\nARG a=1 b=$a", &[]),
        ("FROM scratch\nENV a=1 b=$a", &["UndefinedVar:2"]),
        (
            "FROM scratch\nARG a=$b\nARG BUILDKIT_SBOM_SCAN_STAGE=1\nUSER $BUILDKIT_SBOM_SCAN_STAGE",
            &["UndefinedVar:2"],
        ),
        (
            "FROM scratch\nWORKDIR /$a\nUSER $b\nVOLUME /$c\nSTOPSIGNAL ${d:-TERM}\nLABEL $e=1",
            &[
                "UndefinedVar:2",
                "UndefinedVar:3",
                "UndefinedVar:4",
                "UndefinedVar:5",
                "UndefinedVar:6",
            ],
        ),
        (
            "FROM scratch\nRUN --mount=type=cache,target=/$a,id=$b true",
            &["UndefinedVar:2", "UndefinedVar:2"],
        ),
        (
            "FROM scratch\nCOPY --chown=$a --chmod=$b x y\nADD --checksum=$c http://x/ /",
            &["UndefinedVar:2", "UndefinedVar:2", "UndefinedVar:3"],
        ),
        ("FROM scratch\nCOPY <<A <<'B' /\n$a\nA\n$b\nB\n", &["UndefinedVar:2"]),
        (
            "FROM scratch\nRUN echo $a\nCMD [\"$b\"]\nEXPOSE ${c:-80}\nSHELL [\"$d\"]\nONBUILD USER $e",
            &[],
        ),
    ] {
        let text = text.replace("--checksum=$c http", "--checksum=sha256:0$c http");
        let (found, _) = lint_with(&text, &BuildRequest::default(), &known(&BTreeMap::new()));
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn a_given_argument_hides_its_default() {
    let mut request = BuildRequest::default();
    let text = "FROM scratch\nARG a=$b\n";
    assert_eq!(lint(text), ["UndefinedVar:2"]);
    request.build_args.insert("a".into(), "x".into());
    assert_eq!(lint_with(text, &request, &known(&BTreeMap::new())).0, NOTHING);
}

#[test]
fn suggestions_are_of_the_scope() {
    let detail = |text: &str| {
        let images = BTreeMap::new();
        let report =
            check_source("D", text.as_bytes(), &BuildRequest::default(), &known(&images)).1;
        report.findings[0].detail.clone()
    };
    assert_eq!(
        detail("FROM scratch\nARG DIR_ASSETS=a\nCOPY $DIR_ASSET ."),
        "Usage of undefined variable '$DIR_ASSET' (did you mean $DIR_ASSETS?)"
    );
    assert_eq!(
        detail("FROM --platform=linux/$TARGETARCHX scratch"),
        "FROM argument 'TARGETARCHX' is not declared (did you mean TARGETARCH?)"
    );
}

#[test]
fn an_unknown_base_may_have_any_variable() {
    assert_eq!(lint("FROM base\nCOPY $x ."), NOTHING);
    assert_eq!(lint("FROM base AS a\nFROM a\nCOPY $x .\nUSER ${y:?needed}\nEXPOSE $z"), NOTHING);
    assert_eq!(lint_on("FROM base\nCOPY $x$y .", &base(&["x=1"], &[])), ["UndefinedVar:2"]);
    let (_, error) = lint_with(
        "FROM base\nUSER ${y:?needed}",
        &BuildRequest::default(),
        &known(&base(&[], &[])),
    );
    assert!(error.unwrap().title().contains("needed"));
}

#[test]
fn triggers_are_checked_at_the_from_that_runs_them() {
    let triggers = base(&[], &["ENV a b", "CMD x", "MAINTAINER x"]);
    assert_eq!(
        lint_on("FROM scratch\nFROM base\nCMD y", &triggers),
        [
            "LegacyKeyValueFormat:2",
            "JSONArgsRecommended:2",
            "MultipleInstructionsDisallowed:2",
            "JSONArgsRecommended:3"
        ]
    );
    assert_eq!(lint("FROM scratch AS a\nONBUILD USER $x\nFROM a"), ["UndefinedVar:3"]);
    // Only in stages that the target needs.
    assert_eq!(lint_on("FROM base\nFROM scratch", &triggers), NOTHING);
}

#[test]
fn without_all_stages_those_of_the_target_are_checked() {
    let images = BTreeMap::new();
    let text = "FROM scratch AS A\nENV a b\nFROM scratch AS b\nENV a b\nFROM scratch\nCOPY --from=b x y\nENV a b";
    let mut request = BuildRequest::default();
    let known = Known { all_stages: false, ..known(&images) };
    let found = |request: &BuildRequest| lint_with(text, request, &known).0;
    assert_eq!(
        found(&request),
        ["StageNameCasing:1", "LegacyKeyValueFormat:4", "LegacyKeyValueFormat:7"]
    );
    request.target = Some("a".into());
    assert_eq!(found(&request), ["StageNameCasing:1", "LegacyKeyValueFormat:2"]);
}

#[test]
fn instructions_of_mounts_and_numbers_are_needed_too() {
    let images = BTreeMap::new();
    let known = Known { all_stages: false, ..known(&images) };
    let text = "FROM scratch AS a\nENV a b\nFROM scratch\nENV a b\nFROM scratch\nRUN --mount=from=a true\nCOPY --from=1 x y\n";
    let (found, error) = lint_with(text, &BuildRequest::default(), &known);
    assert_eq!(found, ["LegacyKeyValueFormat:2", "LegacyKeyValueFormat:4"]);
    assert!(error.is_none(), "{error:?}");
}

#[test]
fn shells_and_working_directories_are_inherited() {
    assert_eq!(lint("FROM scratch AS a\nSHELL [\"sh\"]\nFROM a\nCMD x"), NOTHING);
    assert_eq!(lint("FROM scratch AS a\nWORKDIR /x\nFROM a\nWORKDIR y"), NOTHING);
    assert_eq!(lint("FROM scratch AS a\nCMD [\"x\"]\nFROM a\nCMD [\"y\"]"), NOTHING);
    assert_eq!(lint("FROM scratch\nARG d=/x\nWORKDIR $d"), NOTHING);
}

#[test]
fn platforms_of_images() {
    let images = base(&[], &[]);
    let mut other = images.clone();
    other.values_mut().for_each(|config| config.architecture = "s390x".into());
    let rule = ["InvalidBaseImagePlatform:1"];
    assert_eq!(lint_on("FROM base", &images), NOTHING);
    assert_eq!(lint_on("FROM base", &other), rule);
    assert_eq!(
        lint_on("FROM scratch\nCOPY --from=base x y", &other),
        ["InvalidBaseImagePlatform:2"]
    );
    let mut request = BuildRequest::default();
    request
        .build_contexts
        .insert("base".into(), crate::request::NamedContext::Image("base".into()));
    assert_eq!(lint_with("FROM base", &request, &known(&other)).0, NOTHING);
}

#[test]
fn constant_platforms_and_descriptions() {
    assert_eq!(lint("FROM --platform=linux/arm64 scratch AS x-arm64"), NOTHING);
    assert_eq!(lint("FROM --platform=linux/arm64 scratch AS linux"), NOTHING);
    assert_eq!(lint("FROM --platform=arm64 scratch"), ["FromPlatformFlagConstDisallowed:1"]);
    assert_eq!(lint("FROM --platform=$BUILDPLATFORM scratch"), NOTHING);
    assert_eq!(
        lint(
            "# check=experimental=all\n# other words\nARG a b\n# b words\nARG a b\n\n#\nARG c\nFROM scratch"
        ),
        ["InvalidDefinitionDescription:3"]
    );
    // BuildKit keeps comments above blank lines.
    assert_eq!(
        lint("# check=experimental=all\n# words\n\nARG a\nFROM scratch"),
        ["InvalidDefinitionDescription:4"]
    );
}

#[test]
fn comments_switch_off_what_belongs_to_their_instruction() {
    let skip = "# check=skip=all\n";
    assert_eq!(
        lint(&format!("FROM scratch\n{skip}MAINTAINER x\n{skip}CMD x\n{skip}WORKDIR x\n")),
        NOTHING
    );
    assert_eq!(lint(&format!("FROM scratch\n\n{skip}FROM scratch as A\n")), NOTHING);
    // The file's letter case and the stages' names are the file's.
    assert_eq!(
        lint(&format!(
            "FROM scratch\n{skip}user x\nFROM scratch AS a\n# words\n{skip}FROM scratch AS a\n"
        )),
        ["DuplicateStageName:7", "ConsistentInstructionCasing:3"]
    );
}

#[test]
fn errors_are_told_with_what_was_found_before() {
    let images = BTreeMap::new();
    let told = |text: &str| {
        let (found, error) = lint_with(text, &BuildRequest::default(), &known(&images));
        let error = error.unwrap_or_else(|| panic!("{text}: no error"));
        (found, error.location().map(|l| l.span.first_line), error.title().to_owned())
    };
    let (found, line, title) = told("\nFROM scratch AS Bad\nMAINTAINER me\nBADCMD\nENV a b\n");
    assert_eq!(found, ["StageNameCasing:2", "MaintainerDeprecated:3"]);
    assert_eq!((line, title.as_str()), (Some(4), "unknown instruction: BADCMD"));
    let (found, line, _) = told("FROM --platform=$BULIDPLATFORM scratch\nENV a b");
    assert_eq!((found, line), (vec!["UndefinedArgInFrom:1".to_owned()], Some(1)));
    let (found, line, _) = told("FROM scratch\nENV a b\nUSER ${x\nENV c d");
    assert_eq!((found, line), (vec!["LegacyKeyValueFormat:2".to_owned()], Some(3)));
    let (found, line, _) = told("FROM scratch\nENV a b\nSTOPSIGNAL NONSENSE\n");
    assert_eq!((found, line), (vec!["LegacyKeyValueFormat:2".to_owned()], Some(3)));
    assert_eq!(told("# check=nonsense\nFROM scratch as A").0, NOTHING);
    for text in
        ["", "FROM", "FROM scratch\nCOPY --from=7 a b", "FROM ${x:?}", "FROM scratch\nEXPOSE x"]
    {
        told(text);
    }
    let mut request = BuildRequest { target: Some("x".into()), ..BuildRequest::default() };
    assert!(lint_with("FROM scratch", &request, &known(&images)).1.is_some());
    request.target = None;
    request.build_args.insert("BUILDKIT_DOCKERFILE_CHECK".into(), "x=y".into());
    assert!(lint_with("FROM scratch", &request, &known(&images)).1.is_some());
}

#[test]
fn findings_become_an_error_where_asked_for() {
    let images = BTreeMap::new();
    let gate = |text: &str| {
        let (dockerfile, report) =
            check_source("D", text.as_bytes(), &BuildRequest::default(), &known(&images));
        report.gate(&dockerfile.unwrap())
    };
    assert!(gate("FROM scratch AS A").is_none());
    assert!(gate("# check=error=true\nFROM scratch").is_none());
    let error = gate("# check=error=true\nFROM scratch AS A\nENV a b\nENV c d").unwrap();
    assert_eq!(error.class(), Class::Gate);
    assert_eq!(
        error.title(),
        "lint violation found for rules: LegacyKeyValueFormat, StageNameCasing"
    );
    assert_eq!(error.location().unwrap().span.first_line, 2);
}

#[test]
fn images_are_named_for_the_caller_to_resolve() {
    let text = "ARG v=1\nFROM a:$v AS one\nFROM one\nCOPY --from=b x y\nRUN --mount=from=c true\nCOPY --from=a:1 x y\nFROM scratch\n";
    let parsed = parse("D", text.as_bytes()).unwrap();
    let found = images(&parsed.dockerfile, &BuildRequest::default(), None);
    let found: Vec<_> = found.iter().map(|(i, s)| format!("{i}:{}", s.first_line)).collect();
    assert_eq!(found, ["a:1:2", "b:4", "c:5"]);
}

/// Runs `text` and says that it took no more than a few seconds in this unoptimised build.
fn quickly(text: &str) {
    let start = Instant::now();
    let images = BTreeMap::new();
    let _ = check_source(
        "D",
        text.as_bytes(),
        &BuildRequest::default(),
        &Known { all_stages: true, ..known(&images) },
    );
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

#[test]
fn hostile_files_cost_what_they_are_long() {
    let mut undefined = String::from("FROM scratch\n");
    let mut chain = String::from("FROM scratch AS s0\n");
    let mut star = String::from("FROM scratch AS base\n");
    for n in 0..5_000 {
        let _ = writeln!(undefined, "ENV v{n}=1 w{n}=$u{n}");
        let _ = writeln!(star, "ENV v{n}=1");
    }
    for n in 1..3_000 {
        let _ = writeln!(chain, "FROM s{} AS s{n}\nENV v{n}=$v{}", n - 1, n - 1);
        let _ = writeln!(star, "FROM base\nARG x=$v7");
    }
    quickly(&undefined);
    quickly(&star);
    quickly(&chain);
}

#[test]
fn growing_words_are_an_error() {
    let text = format!("FROM scratch\nARG A=xxxxxxxx\n{}", "ARG A=$A$A\n".repeat(30));
    let (_, error) = lint_with(&text, &BuildRequest::default(), &known(&BTreeMap::new()));
    assert!(error.is_some());
    let text = format!(
        "FROM scratch\nARG A={}\n{}{}",
        "x".repeat(1024),
        "ARG A=$A$A\n".repeat(9),
        "USER $A\n".repeat(1000)
    );
    let (_, error) = lint_with(&text, &BuildRequest::default(), &known(&BTreeMap::new()));
    assert!(error.unwrap().title().contains("expand to more than"));
}
