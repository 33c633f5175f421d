//! Family M where it meets the main job: manifests and configs; and C90: links in a context.

use serde_json::json;

use super::*;

fn image() -> ImageForge {
    ImageForge::busybox().layer(&TarForge::of([Member::file("f", "content\n")]))
}

/// M44
#[test]
fn a_manifest_that_is_also_an_index_is_refused() {
    let entry = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": format!("sha256:{}", "0".repeat(64)), "size": 2});
    assert_image_refused(
        "layers and manifests",
        &image().manifest("manifests", json!([entry])).forge(),
    );
    assert_image_refused(
        "a media type that contradicts",
        &image().manifest("mediaType", "application/vnd.oci.image.index.v1+json").forge(),
    );
}

/// M45
#[test]
fn schema_1_is_refused_with_a_reason() {
    let image = image()
        .manifest("schemaVersion", 1)
        .manifest("mediaType", "application/vnd.docker.distribution.manifest.v1+json")
        .forge();
    assert_image_refused("schema 1", &image);
}

/// M46
#[test]
fn odd_json_is_refused() {
    let with = |change: &dyn Fn(String) -> Vec<u8>| {
        let image = image().forge();
        let text = String::from_utf8(image.manifest.clone()).unwrap();
        Forged::new(change(text), image.blobs)
    };
    assert_image_refused(
        "a manifest with a byte order mark",
        &with(&|text| format!("\u{feff}{text}").into_bytes()),
    );
    assert_image_refused("100,000 brackets", &with(&|_| vec![b'['; 100_000]));
    assert_image_refused("no JSON", &with(&|_| b"<html>login</html>".to_vec()));
    assert_image_refused("nothing", &with(&|_| Vec::new()));
    assert_image_refused("text after the end", &with(&|text| format!("{text}{{}}").into_bytes()));
}

/// M46: a document that is larger than any manifest
#[test]
fn an_enormous_manifest_is_refused() {
    let padding = "x".repeat(40 << 20);
    assert_image_refused(
        "a manifest of 40 MiB",
        &image().manifest("annotations", json!({"padding": padding})).forge(),
    );
}

/// M50
#[test]
fn control_characters_of_a_config_are_escaped() {
    let image = image()
        .config("User", "\u{1b}[31mroot")
        .config("WorkingDir", "/\u{1b}]0;title\u{7}")
        .config("Shell", json!(["\u{1b}[2J"]))
        .forge();
    let outcome = on_image(&image, "FROM base\nRUN true\n").run();
    assert_ne!(outcome.code(), Some(0));
    assert!(!outcome.stderr.contains('\u{1b}'), "{:?}", outcome.stderr);
    assert_bounded(&outcome);
}

/// T13: long link targets in GNU form
#[test]
fn gnu_long_links_are_read() {
    let target = "deep/".repeat(30) + "target";
    let tar =
        TarForge::new().gnu_long_link(target.as_bytes()).add(Member::symlink("l", "cut")).finish();
    let outcome =
        on_image(&layer_image(&tar), "FROM base\nRUN readlink /l > /seen\n").run().success();
    assert_eq!(outcome.text_of("seen").trim(), target);
}

/// C90
#[test]
fn links_in_a_context_do_not_leave_it() {
    let canary = Canary::new();
    let secret = canary.absolute("file");
    let build = |dockerfile: &str| {
        Build::new(dockerfile).symlink(&secret, "link").symlink(canary.path(), "folder")
    };
    let outcome = build("FROM scratch\nCOPY . /all/\n").run().success();
    assert_eq!(
        outcome.tree().get("all/link").link,
        secret,
        "links in a directory are copied as links"
    );
    for source in ["link", "folder/file", "folder/"] {
        let outcome = build(&format!("FROM scratch\nCOPY {source} /stolen\n")).run();
        assert!(
            matches!(outcome.code(), Some(1 | 3)),
            "{source}: {:?} {}",
            outcome.code(),
            outcome.stderr
        );
    }
}
