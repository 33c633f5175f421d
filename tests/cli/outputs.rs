//! Where a result goes: layouts, tars, registries, files with digests; and the same for contexts.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use crate::support::{Build, Layout, build::bareboat, oci, peers};

fn small() -> Build {
    Build::new("FROM scratch\nCOPY note /note\n").file("note", "a note\n")
}

fn untar(tar: &Path, directory: &Path) -> Layout {
    fs::create_dir_all(directory).unwrap();
    peers::run("tar", ["-C", directory.to_str().unwrap(), "-xf", tar.to_str().unwrap()]);
    Layout::open(directory)
}

#[test]
fn a_layout_directory_and_a_tar_hold_the_same_image() {
    let build = small();
    let tar = build.scratch().join("image.tar");
    let value = format!("type=oci,dest={}", tar.display());
    let build = build.args(["-o", &value]);
    let outcome = build.run().success();
    let from_tar = untar(&tar, &build.scratch().join("untarred"));
    assert_eq!(from_tar.digest, outcome.digest());
    assert_eq!(from_tar.content("note"), b"a note\n");
    peers::run("skopeo", ["inspect", &format!("oci-archive:{}", tar.display())]);
}

#[test]
fn a_tar_goes_to_standard_output() {
    let build = small();
    let tar = build.scratch().join("stdout.tar");
    let mut command = bareboat();
    command
        .args(["build", "--state-dir"])
        .arg(build.state_directory())
        .args(["-o", "type=oci,dest=-"])
        .arg(build.context());
    let status =
        command.stdout(fs::File::create(&tar).unwrap()).stderr(Stdio::null()).status().unwrap();
    assert!(status.success());
    assert_eq!(untar(&tar, &build.scratch().join("untarred")).content("note"), b"a note\n");
}

#[test]
fn compression_is_as_asked() {
    for (kind, media_type) in
        [("gzip", oci::LAYER_GZIP), ("zstd", oci::LAYER_ZSTD), ("uncompressed", oci::LAYER)]
    {
        let build = small().without_output();
        let path = build.scratch().join("image");
        let value = format!("type=oci,dest={},tar=false,compression={kind}", path.display());
        let _outcome = build.args(["-o", &value]).run().success();
        let layout = Layout::open(&path);
        assert_eq!(layout.manifest["layers"][0]["mediaType"], media_type);
        assert_eq!(layout.content("note"), b"a note\n");
    }
}

#[test]
fn digest_files_agree() {
    let build = small();
    let path = build.scratch().join("id");
    let build = build.arg("--iidfile").arg(&path);
    let outcome = build.run().success();
    let metadata = outcome.metadata();
    let layout = outcome.layout();
    assert_eq!(metadata["containerimage.digest"], layout.digest.as_str());
    assert_eq!(metadata["containerimage.descriptor"]["size"], layout.descriptor["size"]);
    assert_eq!(metadata["containerimage.descriptor"]["mediaType"], layout.descriptor["mediaType"]);
    let id = fs::read_to_string(path).unwrap();
    let config = layout.manifest["config"]["digest"].as_str().unwrap();
    assert!(id == layout.digest || id == config, "{id}");
    assert!(
        outcome.stdout.contains(&layout.digest),
        "stdout carries the digest: {:?}",
        outcome.stdout
    );
}

#[test]
fn the_metadata_tells_of_each_step() {
    let outcome = Build::new("FROM {busybox}\nRUN echo x > /x\nCOPY note /\n")
        .file("note", "n")
        .run()
        .success();
    let metadata = outcome.metadata();
    let steps = metadata["bareboat"]["steps"].as_array().unwrap();
    let run = steps
        .iter()
        .find(|step| step["line"] == 2)
        .unwrap_or_else(|| panic!("no line 2 in {metadata:#}"));
    assert_eq!(run["cached"], false);
    assert!(run["seconds"].as_f64().unwrap() >= 0.0);
    let layers = outcome.layout().layer_descriptors();
    assert!(run.to_string().contains(layers[1]["digest"].as_str().unwrap()), "{run}");
}

#[test]
fn without_an_output_the_result_stays_in_the_store_with_one_warning() {
    let outcome = small().without_output().args(["-t", "example.test/kept:1"]).run().success();
    assert!(
        outcome.stderr.contains("--push") && outcome.stderr.contains("-o"),
        "{}",
        outcome.stderr
    );
    assert!(outcome.stdout.contains("sha256:"), "{}", outcome.stdout);
}

#[test]
fn a_context_may_be_a_tar_file_or_standard_input() {
    let build = small();
    let tar = build.scratch().join("context.tar");
    peers::run(
        "tar",
        ["-C", build.context().to_str().unwrap(), "-czf", tar.to_str().unwrap(), "."],
    );
    let digest = |command: &mut Command, name: &str| {
        let out = build.scratch().join(name);
        let value = format!("type=oci,dest={},tar=false", out.display());
        let output = command.args(["-o", &value]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Layout::open(&out).diff_ids()
    };
    let command = || {
        let mut command = bareboat();
        command.args(["build", "--state-dir"]).arg(build.state_directory());
        command
    };
    let from_file = digest(command().arg(&tar).stdin(Stdio::null()), "from-file");
    let from_stdin = digest(command().arg("-").stdin(fs::File::open(&tar).unwrap()), "from-stdin");
    assert_eq!(from_file, from_stdin);
}

#[test]
fn json_progress_is_one_object_a_line() {
    let outcome =
        Build::new("FROM {busybox}\nRUN echo said\n").args(["--progress", "json"]).run().success();
    let mut said = false;
    for line in outcome.stderr.lines() {
        let event: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(event["v"], 1, "{line}");
        assert!(event["type"].is_string(), "{line}");
        said |= line.contains("said");
    }
    assert!(said, "{}", outcome.stderr);
}

#[test]
fn quiet_progress_says_nothing_but_the_result() {
    let outcome =
        Build::new("FROM {busybox}\nRUN echo said\n").args(["--progress", "quiet"]).run().success();
    assert!(!outcome.stderr.contains("said"), "{}", outcome.stderr);
    assert!(outcome.stdout.contains("sha256:"), "{}", outcome.stdout);
}

#[test]
fn labels_and_annotations_of_the_command_line_are_written() {
    let outcome = small().args(["--label", "a=b c", "--annotation", "org.test=1"]).run().success();
    let layout = outcome.layout();
    assert_eq!(layout.config["config"]["Labels"]["a"], "b c");
    assert_eq!(layout.manifest["annotations"]["org.test"], "1");
}
