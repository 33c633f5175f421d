//! Every lint case of tests/golden: the rules and lines that BuildKit reports.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;

use crate::{
    image::{ImageConfig, platform::Platform},
    plan::{ImageSource, ImageUse},
    request::BuildRequest,
};

use super::{Known, Report, check_source, images};
use crate::dockerfile::parse;

type Images = BTreeMap<ImageUse, ImageConfig>;

/// The base of the cases, as far as checks ask for it.
fn base(architecture: &str) -> ImageConfig {
    let mut config =
        ImageConfig { os: "linux".into(), architecture: architecture.into(), ..Default::default() };
    config.config.env = vec!["PATH=/usr/bin:/bin".into(), "GREETING=hello".into()];
    config.config.working_dir = "/srv".into();
    config
}

/// `localhost:5006/multi` has every platform, the others are for amd64.
fn known_images(dockerfile: &[u8], request: &BuildRequest) -> Images {
    let Ok(parsed) = parse("Dockerfile", dockerfile) else { return Images::new() };
    let uses = images(&parsed.dockerfile, request, None);
    let config = |image: ImageUse| {
        let ImageSource::Registry(name) = &image.source else { return None };
        let architecture = match name.as_str() {
            "localhost:5006/multi" => image.platform.architecture.clone(),
            "localhost:5006/base" => "amd64".to_owned(),
            _ => return None,
        };
        Some((image, base(&architecture)))
    };
    uses.into_iter().filter_map(|(image, _)| config(image)).collect()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn request(case: &Value) -> BuildRequest {
    let mut request = BuildRequest::default();
    for (name, value) in case["build_args"].as_object().into_iter().flatten() {
        request.build_args.insert(name.clone(), value.as_str().unwrap().to_owned());
    }
    request
}

/// The check of one case, with its images or without.
fn report(folder: &Path, case: &Value, with_images: bool) -> Report {
    let dockerfile = fs::read(folder.join("Dockerfile")).unwrap();
    let request = request(case);
    let images = match with_images {
        true => known_images(&dockerfile, &request),
        false => Images::new(),
    };
    let ignore = fs::read(folder.join(".dockerignore")).ok();
    let ignore = ignore.map(|bytes| crate::context::Ignore::parse(&bytes).unwrap());
    let ignored = |path: &str| ignore.as_ref().is_some_and(|ignore| ignore.leaves_out(path));
    let known =
        Known { images: &images, platform: None, ignored: Some(&ignored), all_stages: true };
    check_source("Dockerfile", &dockerfile, &request, &known).1
}

/// (rule, line, text), sorted.
fn found(report: &Report) -> Vec<(String, u64, String)> {
    let mut found: Vec<_> = report
        .findings
        .iter()
        .map(|f| (f.rule.name.to_owned(), u64::from(f.span.first_line), f.detail.clone()))
        .collect();
    found.sort();
    found
}

fn expected(golden: &Value) -> Vec<(String, u64, String)> {
    let mut expected: Vec<_> = golden["warnings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|warning| {
            let text = |key: &str| warning[key].as_str().unwrap().to_owned();
            (text("rule"), warning["line"].as_u64().unwrap(), text("text"))
        })
        .collect();
    expected.sort();
    expected
}

fn cases() -> Vec<(std::path::PathBuf, Value, Value)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/lint");
    let mut folders: Vec<_> = fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    folders.retain(|folder| folder.join("case.json").exists());
    folders.sort();
    folders
        .into_iter()
        .map(|folder| {
            let case = read_json(&folder.join("case.json"));
            let golden = read_json(&folder.join("golden.json"));
            (folder, case, golden)
        })
        .collect()
}

/// Rules, lines and wording.
#[test]
fn findings_are_buildkits() {
    // What the cases' base is for, whatever this machine is.
    if Platform::host().architecture != "amd64" {
        return;
    }
    let (cases, mut wrong) = (cases(), Vec::new());
    assert!(cases.len() >= 39, "{}", cases.len());
    for (folder, case, golden) in &cases {
        let report = report(folder, case, true);
        let (found, expected) = (found(&report), expected(golden));
        if found != expected {
            wrong.push(format!("{}:\n  {found:?}\n  not {expected:?}", folder.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Without a network nothing is invented, and only what an image decides is missing.
#[test]
fn unknown_images_only_silence() {
    for (folder, case, golden) in cases() {
        let found = found(&report(&folder, &case, false));
        let mut expected = expected(&golden);
        expected.retain(|each| found.contains(each) || !is_decided_by_images(&each.0));
        assert_eq!(found, expected, "{}", folder.display());
    }
}

fn is_decided_by_images(rule: &str) -> bool {
    matches!(rule, "UndefinedVar" | "InvalidBaseImagePlatform")
}
