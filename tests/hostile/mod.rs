//! HOSTILE.md, family by family; a case's id stands above its test. Archives are tried as a layer of a base (unpacked for a RUN, and read
//! through the index for a COPY) and as an archive that ADD unpacks.

mod archive_headers;
mod archive_names;
mod blobs;
mod context;
mod dockerfile;
mod documents;
mod registries;
mod whiteouts;

use crate::support::{Build, Canary, ImageForge, Member, Outcome, TarForge, forge::Forged, store};

/// More than any hostile input may make the builder hold.
const MEMORY_BYTES_MAX: u64 = 400 << 20;

/// A build on a forged image, which the Dockerfile calls `base`.
fn on_image(image: &Forged, dockerfile: &str) -> Build {
    let build = Build::new(dockerfile).timeout(120);
    let layout = build.scratch().join("base");
    image.write(&layout);
    build.layout_context("base", &layout, &image.digest)
}

fn layer_image(tar: &[u8]) -> Forged {
    ImageForge::busybox().layer(tar).forge()
}

/// A build that adds an archive to /dst of the busybox base.
fn adding(tar: &[u8], rest: &str) -> Build {
    Build::new(format!("FROM {{busybox}}\nADD evil.tar /dst/\n{rest}"))
        .file("evil.tar", tar)
        .timeout(120)
}

#[track_caller]
fn assert_bounded(outcome: &Outcome) {
    assert!(outcome.peak_bytes < MEMORY_BYTES_MAX, "{} bytes of memory", outcome.peak_bytes);
    assert!(!outcome.stderr.contains("panicked at"), "{}", outcome.stderr);
}

/// On a base with this layer, `path` holds `content`: for a RUN, and for a COPY.
#[track_caller]
fn assert_layer_file(tar: &[u8], path: &str, content: &str) {
    let dockerfile = format!(
        "FROM base AS run\nRUN cat \"{path}\" > /seen\nFROM scratch\nCOPY --from=run /seen /run\nCOPY --from=base [\"{path}\", \"/index\"]\n"
    );
    let outcome = on_image(&layer_image(tar), &dockerfile).run().success();
    assert_eq!(outcome.text_of("run"), content, "{path} as a RUN sees it");
    assert_eq!(outcome.text_of("index"), content, "{path} as a COPY sees it");
    assert_bounded(&outcome);
}

/// After an ADD of this archive, `path` holds `content`: in the layer, and for the next RUN.
#[track_caller]
fn assert_added_file(tar: &[u8], path: &str, content: &str) {
    let outcome = adding(tar, &format!("RUN cat \"{path}\" > /seen\n")).run().success();
    assert_eq!(outcome.text_of("seen"), content, "{path} as a RUN sees it");
    assert_eq!(outcome.text_of(path), content, "{path} in the layer");
    assert_bounded(&outcome);
}

/// A base with this layer is refused as a source, whatever it is needed for, and again the next time.
#[track_caller]
fn assert_layer_refused(what: &str, tar: &[u8]) {
    assert_image_refused(what, &layer_image(tar));
}

#[track_caller]
fn assert_image_refused(what: &str, image: &Forged) {
    for dockerfile in ["FROM base\nRUN true\n", "FROM base\nCOPY Dockerfile /\n"] {
        let build = on_image(image, dockerfile);
        for _ in 0..2 {
            let outcome = build.run();
            assert_eq!(outcome.code(), Some(4), "{what}: {dockerfile:?}: {}", outcome.stderr);
            assert_bounded(&outcome);
        }
        store::assert_clean(build.state_directory());
    }
}

/// ADD of this archive is refused, naming the line. A first, good member makes sure that it is taken for an archive.
#[track_caller]
fn assert_archive_refused(what: &str, tar: &[u8]) {
    let build = adding(&with_first_member(tar), "");
    let outcome = build.run();
    assert!(
        matches!(outcome.code(), Some(1 | 3)),
        "{what}: {:?} {}",
        outcome.code(),
        outcome.stderr
    );
    assert!(outcome.stderr.contains("Dockerfile:2"), "{what}: {}", outcome.stderr);
    assert_bounded(&outcome);
    store::assert_clean(build.state_directory());
}

fn with_first_member(tar: &[u8]) -> Vec<u8> {
    TarForge::new().add(Member::file("first", "good")).raw(tar).unfinished()
}

#[track_caller]
fn assert_refused_both_ways(what: &str, tar: &[u8]) {
    assert_layer_refused(what, tar);
    assert_archive_refused(what, tar);
}

/// Refused or not, but the same each time, bounded, and with the canary as it was.
#[track_caller]
fn assert_deterministic(what: &str, tar: &[u8], canary: &Canary) {
    let dockerfile = "FROM base\nRUN find / -xdev ! -path /seen | sort | sha256sum > /seen\nCOPY --from=base / /all\n";
    let layer = || outcome_of(what, on_image(&layer_image(tar), dockerfile));
    assert_eq!(layer(), layer(), "{what} as a layer");
    let archive = || outcome_of(what, adding(&with_first_member(tar), "RUN true\n"));
    assert_eq!(archive(), archive(), "{what} as an archive");
    canary.assert_untouched();
}

/// The exit code, and the layers if there are any. The tree is not read: a base that is passed on may hold what our reader refuses.
#[track_caller]
fn outcome_of(what: &str, build: Build) -> (Option<i32>, Vec<String>) {
    let build = build.env("SOURCE_DATE_EPOCH", "1600000000");
    let outcome = build.run();
    let code = outcome.code();
    assert!(matches!(code, Some(0 | 1 | 3 | 4)), "{what}: {code:?} {}", outcome.stderr);
    assert_bounded(&outcome);
    store::assert_clean(build.state_directory());
    (code, if code == Some(0) { outcome.layout().diff_ids() } else { Vec::new() })
}
