//! `push`, `copy` and `join`: the same bytes somewhere else.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use serde_json::{Value, json};

use super::image::raw;
use crate::support::{Build, Layout, Peers, build::bareboat, http, oci, peers};

fn run(arguments: &[&str]) -> Output {
    let scratch = tempfile::tempdir().unwrap();
    let mut command = bareboat();
    // No state directory, no home: none is needed.
    command.env_remove("HOME").env("XDG_DATA_HOME", scratch.path()).args(arguments);
    command.output().unwrap()
}

/// The digest that it printed.
#[track_caller]
fn done(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    printed.strip_suffix('\n').unwrap().to_owned()
}

#[track_caller]
fn fails(code: i32, words: &[&str], arguments: &[&str]) {
    let output = run(arguments);
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {log}");
    assert!(output.stdout.is_empty());
    for word in words {
        assert!(log.contains(word), "{arguments:?}: {word:?} is missing in\n{log}");
    }
}

fn fresh(name: &str) -> (String, String) {
    let reference = Peers::get().fresh_reference(name);
    let repository = reference.rsplit_once(':').unwrap().0.to_owned();
    (repository, reference)
}

/// A build with a layer of some size, as a layout and as a tar.
struct Built {
    _build: Build,
    layout: PathBuf,
    tar: PathBuf,
    digest: String,
}

fn image(bytes: usize, platforms: Option<&str>) -> Built {
    let build = Build::new("FROM scratch\nARG TARGETARCH\nCOPY file /$TARGETARCH\nLABEL a=b\n")
        .file("file", noise(bytes))
        .without_output();
    let (layout, tar) = (build.scratch().join("layout"), build.scratch().join("layout.tar"));
    let mut build = build
        .args(["-o", &format!("type=oci,dest={},tar=false", layout.display())])
        .args(["-o", &format!("type=docker,dest={}", tar.display())]);
    if let Some(platforms) = platforms {
        build = build.args(["--platform", platforms]);
    }
    let digest = build.run().success().stdout.trim().to_owned();
    Built { _build: build, layout, tar, digest }
}

fn index() -> (Build, PathBuf, String) {
    let build = Build::new("FROM scratch\nARG TARGETARCH\nCOPY file /$TARGETARCH\n")
        .file("file", "x")
        .without_output();
    let layout = build.scratch().join("index");
    let output = format!("type=oci,dest={},tar=false", layout.display());
    let build =
        build.args(["-o", &output, "--platform", "linux/amd64,linux/arm64", "-t", "app:v1"]);
    let digest = build.run().success().stdout.trim().to_owned();
    (build, layout, digest)
}

/// Bytes that do not compress.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

fn pulled(reference: &str) -> Layout {
    let scratch = tempfile::tempdir().unwrap();
    http::pull(reference, scratch.path())
}

#[test]
fn a_layout_is_pushed_as_it_is() {
    let built = image(100_000, None);
    let (repository, reference) = fresh("pushed");
    for layout in [&built.layout, &built.tar] {
        let (more, name) = fresh("pushed-too");
        let digest = done(&["push", layout.to_str().unwrap(), &reference, &name]);
        assert_eq!(digest, built.digest);
        let pinned = format!("{more}@{digest}");
        for name in [&name, &reference, &pinned, &format!("{repository}@{digest}")] {
            assert_eq!(peers::skopeo_inspect(name)["Digest"], digest.as_str());
        }
        assert_eq!(pulled(&name).manifest, Layout::open(&built.layout).manifest);
    }
    // Nothing is left to do.
    let text = built.layout.to_str().unwrap();
    let metadata = built.layout.with_extension("json");
    let digest = done(&["push", text, &reference, "--metadata-file", metadata.to_str().unwrap()]);
    let metadata: Value = serde_json::from_slice(&fs::read(metadata).unwrap()).unwrap();
    assert_eq!(metadata["containerimage.digest"], digest.as_str());
    assert_eq!(metadata["containerimage.descriptor"]["digest"], digest.as_str());
    assert_eq!(metadata["image.name"], reference.as_str());
    assert_eq!(metadata["bareboat"]["bytes_pushed"], 0);
}

#[test]
fn an_index_is_pushed_whole_or_by_platform() {
    let (_build, layout, digest) = index();
    let (_, reference) = fresh("whole");
    let text = layout.to_str().unwrap();
    assert_eq!(done(&["push", text, &reference]), digest);
    let whole = raw(&reference);
    for (at, platform) in ["linux/amd64", "linux/arm64"].into_iter().enumerate() {
        let (_, reference) = fresh("part");
        let named = format!("{text}:v1");
        let part = done(&["push", &named, &reference, "--platform", platform]);
        assert_eq!(whole["manifests"][at]["digest"], part.as_str());
        assert_eq!(pulled(&reference).digest, part);
    }
    fails(
        4,
        &["linux/s390x", "linux/amd64"],
        &["push", text, &reference, "--platform=linux/s390x"],
    );
    let image = image(10, Some("linux/amd64"));
    let single = image.layout.to_str().unwrap();
    fails(4, &["linux/amd64"], &["push", single, &reference, "--platform=linux/arm64"]);
    fails(2, &["--all"], &["push", text, &reference, "--platform=linux/arm64", "--all"]);
}

#[test]
fn copies_are_the_same_bytes() {
    let (build, layout, digest) = index();
    let (_, first) = fresh("first");
    let (_, second) = fresh("second");
    let source = format!("oci:{}", layout.display());
    assert_eq!(done(&["copy", &source, &first]), digest);
    let metadata = build.scratch().join("copy.json");
    let told = ["--metadata-file", metadata.to_str().unwrap()];
    assert_eq!(done(&[&["copy", &first, &second], &told[..]].concat()), digest);
    let metadata: Value = serde_json::from_slice(&fs::read(metadata).unwrap()).unwrap();
    assert_eq!(metadata["bareboat"]["bytes_pushed"], 0, "a registry takes its own blobs by mount");
    let back = build.scratch().join("back");
    let named = format!("oci-layout://{}:v2", back.display());
    assert_eq!(done(&["copy", &second, &named, "--all"]), digest);
    let part = format!("oci:{}:arm", back.display());
    done(&["copy", &second, &part, "--platform", "linux/arm64"]);
    let (_, third) = fresh("third");
    assert_eq!(done(&["push", &format!("{}:v2", back.display()), &third]), digest);
    assert_eq!(raw(&third), raw(&first));
    let text = peers::run("skopeo", ["inspect", "--raw", &part]);
    assert_eq!(raw(&first)["manifests"][1]["digest"], oci::digest(text.as_bytes()).as_str());
    // The same name again replaces the entry; another stays.
    assert_eq!(done(&["copy", &second, &named]), digest);
    let index: Value = serde_json::from_slice(&fs::read(back.join("index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
    fails(
        4,
        &["v2 (sha256:", "arm (sha256:"],
        &["copy", &format!("oci:{}", back.display()), &third],
    );
    let occupied = build.scratch().join("occupied");
    fs::create_dir(&occupied).unwrap();
    fs::write(occupied.join("mine"), "").unwrap();
    fails(7, &["occupied"], &["copy", &first, &format!("oci:{}", occupied.display())]);
}

#[test]
fn images_pushed_by_platform_are_joined() {
    let (_build, layout, _) = index();
    let text = layout.to_str().unwrap();
    let (repository, reference) = fresh("joined");
    let (_, elsewhere) = fresh("elsewhere");
    let temporary = format!("{repository}:amd64");
    let amd64 = done(&["push", text, &temporary, "--platform", "linux/amd64"]);
    let arm64 = done(&["push", text, &elsewhere, "--platform", "linux/arm64"]);
    let metadata = layout.with_extension("json");
    let digest = done(&[
        "join",
        &reference,
        &amd64,
        &elsewhere,
        &temporary,
        "--annotation",
        "a=index",
        "--annotation",
        "manifest-descriptor[linux/arm64]:b=arm",
        "--metadata-file",
        metadata.to_str().unwrap(),
    ]);
    let index = raw(&reference);
    assert_eq!(index["mediaType"], "application/vnd.oci.image.index.v1+json");
    assert_eq!(index["annotations"], json!({"a": "index"}));
    let entries = index["manifests"].as_array().unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!((&entries[0]["digest"], &entries[1]["digest"]), (&json!(amd64), &json!(arm64)));
    assert_eq!(entries[1]["platform"], json!({"os": "linux", "architecture": "arm64"}));
    assert_eq!(entries[1]["annotations"], json!({"b": "arm"}));
    assert_eq!(peers::skopeo_inspect(&reference)["Digest"], digest.as_str());
    for (arch, digest) in [("amd64", &amd64), ("arm64", &arm64)] {
        let name = format!("docker://{reference}");
        let config = peers::run(
            "skopeo",
            ["inspect", "--config", "--tls-verify=false", "--override-arch", arch, &name],
        );
        assert!(config.contains(arch), "{digest}: {config}");
    }
    let metadata: Value = serde_json::from_slice(&fs::read(metadata).unwrap()).unwrap();
    assert_eq!(metadata["containerimage.digest"], digest.as_str());
    // An index's entries are taken one by one.
    let (_, again) = fresh("again");
    done(&["join", &again, &reference, &elsewhere]);
    assert_eq!(raw(&again)["manifests"], index["manifests"]);
    fails(2, &["manifest"], &["join", &again, &amd64, "--annotation", "manifest:a=b"]);
    fails(4, &["404"], &["join", &again, &oci::digest(b"nothing")]);
}

#[test]
fn what_cannot_be_read_or_written_has_its_exit_code() {
    let built = image(1000, None);
    let (repository, reference) = fresh("faults");
    let text = built.layout.to_str().unwrap();
    fails(2, &["layout"], &["push", &format!("docker://{reference}"), &reference]);
    fails(2, &["UPPER", "lower-case"], &["push", text, "docker.io/UPPER/x"]);
    fails(2, &["oci-archive"], &["copy", &reference, "oci-archive:x.tar"]);
    fails(2, &["digest"], &["join", &format!("{repository}@{}", built.digest), &reference]);
    fails(4, &["nowhere"], &["push", "nowhere", &reference]);
    fails(4, &["404"], &["copy", &reference, "oci:never-written"]);
    assert!(!Path::new("never-written").exists());
    fails(4, &["v9"], &["push", &format!("{text}:v9"), &reference]);
    let other = format!("{repository}@{}", oci::digest(b"x"));
    fails(5, &[&built.digest], &["push", text, &other]);
    fails(5, &["127.0.0.1:1"], &["push", text, "127.0.0.1:1/x:1"]);
}

#[test]
fn a_damaged_blob_is_pushed_nowhere() {
    let built = image(50_000, None);
    let (_, reference) = fresh("damaged");
    let layer = Layout::open(&built.layout).layer_descriptors()[0]["digest"].clone();
    let hex = layer.as_str().unwrap().trim_start_matches("sha256:").to_owned();
    let path = built.layout.join("blobs/sha256").join(&hex);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    fails(5, &[&hex], &["push", built.layout.to_str().unwrap(), &reference]);
    let source = format!("oci:{}", built.layout.display());
    let target = built.layout.with_extension("copy");
    fails(4, &[&hex], &["copy", &source, &format!("oci:{}", target.display())]);
    assert!(!target.join("index.json").exists());
    fails(4, &["404"], &["copy", &reference, &format!("oci:{}", target.display())]);
}

#[test]
fn a_copy_that_was_killed_is_taken_up_again() {
    let built = image(40 << 20, None);
    let (_, reference) = fresh("killed");
    let target = built.layout.with_extension("copy");
    let to = format!("oci:{}:x", target.display());
    let from = format!("oci:{}", built.layout.display());
    for (arguments, milliseconds) in [
        (["push", built.layout.to_str().unwrap(), &reference], [30, 90, 150]),
        (["copy", &from, &to], [10, 30, 60]),
    ] {
        for milliseconds in milliseconds {
            let mut command: Command = bareboat();
            let mut child = command.args(arguments).arg("--progress=quiet").spawn().unwrap();
            std::thread::sleep(Duration::from_millis(milliseconds));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(done(&arguments), built.digest);
    }
    assert_eq!(Layout::open(&target).digest, built.digest);
    assert_eq!(pulled(&reference).digest, built.digest);
}

#[test]
fn memory_does_not_depend_on_the_size_of_blobs() {
    let built = image(96 << 20, None);
    let ((_, first), (_, second)) = (fresh("large"), fresh("large-too"));
    let metadata = built.layout.with_extension("json");
    let target = format!("oci:{}", built.layout.with_extension("copy").display());
    for (command, from, to) in [
        ("push", built.layout.to_str().unwrap(), first.as_str()),
        ("copy", &first, &second),
        ("copy", &second, &target),
    ] {
        done(&[command, from, to, "--metadata-file", metadata.to_str().unwrap()]);
        let metadata: Value = serde_json::from_slice(&fs::read(&metadata).unwrap()).unwrap();
        let peak = metadata["bareboat"]["peak_memory_bytes"].as_u64().unwrap();
        assert!(peak < 80 << 20, "{command}: {peak} bytes");
    }
}
