//! The keys of the image itself: compression, media types, annotations, and how it is pushed.

use serde_json::{Value, json};

use super::build;
use crate::support::{Build, Layout, Peers, peers};

const PLATFORMS: &str = "linux/amd64,linux/arm64";

pub fn raw(reference: &str) -> Value {
    let name = format!("docker://{reference}");
    let text = peers::run("skopeo", ["inspect", "--tls-verify=false", "--raw", &name]);
    serde_json::from_str(&text).unwrap()
}

#[test]
fn force_compression_compresses_the_base_too() {
    let build = build().without_output();
    let layout = build.scratch().join("layout");
    let output = |more: &str| format!("type=oci,dest={},tar=false{more}", layout.display());
    let run = |more: &str| {
        let mut command = crate::support::build::bareboat();
        let base = build.scratch().join("base");
        let digest = Layout::open(&base).digest;
        let context = format!("base=oci-layout://{}@{digest}", base.display());
        command.args(["build", "--progress", "quiet", "--build-context", &context]);
        command.arg("--state-dir").arg(build.state_directory());
        let command = command.args(["-o", &output(more)]).arg(build.context());
        let out = command.output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Layout::open(&layout)
    };
    let kinds = |layout: &Layout| -> Vec<String> {
        let kind = |layer: &Value| layer["mediaType"].as_str().unwrap().to_owned();
        let kinds = layout.layer_descriptors().iter().map(kind).collect::<Vec<_>>();
        kinds.iter().map(|kind| kind.rsplit(['+', '.']).next().unwrap().to_owned()).collect()
    };
    let plain = run("");
    assert_eq!(kinds(&plain), ["gzip"; 4]);
    let mixed = run(",compression=zstd");
    assert_eq!(kinds(&mixed), ["gzip", "gzip", "zstd", "zstd"]);
    let forced = run(",compression=zstd,force-compression=true");
    assert_eq!(kinds(&forced), ["zstd"; 4]);
    assert_eq!(forced.diff_ids(), plain.diff_ids());
    let again = run(",compression=zstd,force-compression=true");
    assert_eq!(again.digest, forced.digest);
    assert_eq!(kinds(&run(",compression=uncompressed,force-compression=true")), ["tar"; 4]);
}

#[test]
fn dockers_media_types() {
    let reference = Peers::get().fresh_reference("docker-types");
    let output = format!("type=image,push=true,name={reference},oci-mediatypes=false");
    build().without_output().args(["-o", &output]).run().success();
    let manifest = raw(&reference);
    assert_eq!(manifest["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.docker.container.image.v1+json");
    for layer in manifest["layers"].as_array().unwrap() {
        assert_eq!(layer["mediaType"], "application/vnd.docker.image.rootfs.diff.tar.gzip");
    }
    let list = Peers::get().fresh_reference("docker-list");
    let output = format!("type=image,push=true,name={list},oci-mediatypes=false");
    Build::new("FROM scratch\nCOPY a /\n")
        .file("a", "a")
        .without_output()
        .args(["--platform", PLATFORMS, "-o", &output])
        .run()
        .success();
    assert_eq!(
        raw(&list)["mediaType"],
        "application/vnd.docker.distribution.manifest.list.v2+json"
    );
}

#[test]
fn annotations_are_where_they_were_put() {
    let reference = Peers::get().fresh_reference("annotated");
    let build = Build::new("FROM scratch\nCOPY a /\n").file("a", "a").without_output();
    let layout = build.scratch().join("layout");
    let output = format!("type=oci,dest={},tar=false,annotation.Case=Kept", layout.display());
    let _kept = build
        .args(["--platform", PLATFORMS, "-t", &reference, "--push", "-o", &output])
        .args(["--annotation", "every=one", "--annotation", "index:a=index"])
        .args(["--annotation", "manifest[linux/arm64]:every=arm"])
        .args(["--annotation", "manifest-descriptor:a=of-manifest"])
        .args(["--annotation", "index-descriptor:a=of-index"])
        .run()
        .success();
    let index = raw(&reference);
    assert_eq!(index["annotations"], json!({"a": "index"}));
    let expected =
        [json!({"every": "one", "Case": "Kept"}), json!({"every": "arm", "Case": "Kept"})];
    for (entry, expected) in index["manifests"].as_array().unwrap().iter().zip(expected) {
        assert_eq!(entry["annotations"], json!({"a": "of-manifest"}));
        let repository = reference.rsplit_once(':').unwrap().0;
        let manifest = raw(&format!("{repository}@{}", entry["digest"].as_str().unwrap()));
        assert_eq!(manifest["annotations"], expected);
    }
    let written = std::fs::read(layout.join("index.json")).unwrap();
    let written: Value = serde_json::from_slice(&written).unwrap();
    assert_eq!(written["manifests"][0]["annotations"]["a"], "of-index");
    Build::new("FROM scratch\n")
        .args(["--annotation", "index:a=b"])
        .run()
        .failure(2, &["several platforms"]);
}

#[test]
fn a_push_by_digest_makes_no_tag() {
    let reference = Peers::get().fresh_reference("by-digest");
    let repository = reference.rsplit_once(':').unwrap().0.to_owned();
    let output =
        format!("type=image,name={repository},push-by-digest=true,name-canonical=true,push=true");
    let outcome = build().args(["-o", &output]).run().success();
    let pinned = format!("{repository}@{}", outcome.digest());
    assert_eq!(outcome.metadata()["image.name"], pinned.as_str());
    assert_eq!(raw(&pinned), outcome.layout().manifest);
    let tags = format!("docker://{repository}:latest");
    let tagged = std::process::Command::new("skopeo")
        .args(["inspect", "--tls-verify=false", &tags])
        .output()
        .unwrap();
    assert!(!tagged.status.success(), "there is a tag");
    let tagged = format!("type=image,name={reference},push-by-digest=true,push=true");
    build().args(["-o", &tagged]).run().failure(2, &["latest", "digest"]);
}

#[test]
fn an_image_of_several_platforms_is_uploaded_while_later_ones_are_built() {
    let reference = Peers::get().fresh_reference("early");
    let outcome = Build::new("FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /\n")
        .file("amd64", vec![1; 3 << 20])
        .file("arm64", vec![2; 3 << 20])
        .without_output()
        .args(["--progress", "json", "--platform", PLATFORMS, "-t", &reference, "--push"])
        .run()
        .success();
    let at = |words: &str| {
        let at = outcome.stderr.lines().position(|line| line.contains(words));
        at.unwrap_or_else(|| panic!("no {words}:\n{}", outcome.stderr))
    };
    let first = format!("pushing linux/amd64 {reference}");
    assert!(at(&first) < at("pushing linux/arm64"), "{}", outcome.stderr);
    let index = raw(&reference);
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
}
