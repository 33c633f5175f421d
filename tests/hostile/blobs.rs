//! Family B: blobs that are not what the documents say, in a layout and from a registry.

use base64::Engine as _;
use serde_json::json;

use super::*;
use crate::support::{FakeRegistry, fake_registry::Answer, oci, process};

fn tar() -> Vec<u8> {
    TarForge::of([Member::file("f", "content\n"), Member::file("noise", noise(200_000))])
}

/// Bytes that do not compress, the same each time.
fn noise(count: u64) -> Vec<u8> {
    (0..count).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn image() -> ImageForge {
    ImageForge::busybox().layer(&tar())
}

/// Refused from a layout and from a registry, and the lie is not kept in the store.
#[track_caller]
fn assert_refused_everywhere(what: &str, forge: ImageForge) {
    let image = forge.forge();
    assert_image_refused(what, &image);
    let registry = FakeRegistry::of("lie", image);
    for rest in ["RUN true", "COPY Dockerfile /"] {
        let build =
            Build::new(format!("FROM {}\n{rest}\n", registry.reference("lie"))).timeout(120);
        for _ in 0..2 {
            let outcome = build.run().failure(4, &["Dockerfile:1"]);
            assert_bounded(&outcome);
        }
        store::assert_clean(build.state_directory());
        assert_no_lies(build.state_directory());
    }
}

/// Refused where the manifest is read, which is before anything asks what it is for: once from a layout and once from a registry.
#[track_caller]
fn assert_unreadable(what: &str, forge: ImageForge) {
    let image = forge.forge();
    let outcome = on_image(&image, "FROM base\nCOPY Dockerfile /\n").run();
    assert_eq!(outcome.code(), Some(4), "{what}: {}", outcome.stderr);
    assert!(outcome.stderr.contains("digest"), "{what}: {}", outcome.stderr);
    assert_bounded(&outcome);
    let registry = FakeRegistry::of("lie", image);
    let build = Build::new(format!("FROM {}\nRUN true\n", registry.reference("lie")));
    let outcome = build.run().failure(4, &["Dockerfile:1", "digest"]);
    assert_bounded(&outcome);
    assert_eq!(registry.blob_requests(), 0, "{what}");
    assert_no_lies(build.state_directory());
}

/// Whatever blobs are in the store are what their names say.
fn assert_no_lies(state: &std::path::Path) {
    if process_has_blobs(state) {
        store::assert_verifies(state);
    }
}

fn process_has_blobs(state: &std::path::Path) -> bool {
    let found = crate::support::peers::run(
        "find",
        [state.to_str().unwrap(), "-path", "*/blobs/*", "-type", "f"],
    );
    found.lines().count() > 0
}

#[track_caller]
fn assert_accepted(what: &str, blob: Vec<u8>, media_type: &str) {
    let image = ImageForge::busybox().blob(blob, &tar(), media_type).forge();
    let outcome = on_image(&image, "FROM base AS run\nRUN cat /f > /seen\nFROM scratch\nCOPY --from=run /seen /\nCOPY --from=base /f /index\n").run();
    assert_eq!(outcome.code(), Some(0), "{what}: {}", outcome.stderr);
    assert_eq!(
        (outcome.text_of("seen"), outcome.text_of("index")),
        ("content\n".into(), "content\n".into()),
        "{what}"
    );
}

/// B36
#[test]
fn gzip_of_several_members_and_with_names_is_read() {
    let tar = tar();
    let members = [oci::gzip(&tar[..700]), oci::gzip(&[]), oci::gzip(&tar[700..])].concat();
    assert_accepted("three members", members, oci::LAYER_GZIP);
    let mut encoder = flate2::GzBuilder::new()
        .filename("layer.tar")
        .comment("a comment")
        .extra(vec![1; 300])
        .write(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, &tar).unwrap();
    assert_accepted("name, comment and extra field", encoder.finish().unwrap(), oci::LAYER_GZIP);
    assert_accepted("zstd", oci::zstd(&tar), oci::LAYER_ZSTD);
    let frames = [oci::zstd(&tar[..700]), oci::zstd(&tar[700..])].concat();
    assert_accepted("two zstd frames", frames, oci::LAYER_ZSTD);
    assert_accepted("uncompressed", tar, oci::LAYER);
}

/// B36
#[test]
fn damaged_compression_is_refused() {
    let tar = tar();
    let whole = oci::gzip(&tar);
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut blob = whole.clone();
        change(&mut blob);
        ImageForge::busybox().blob(blob, &tar, oci::LAYER_GZIP)
    };
    assert_refused_everywhere("trailing garbage", with(&|blob| blob.extend(b"garbage")));
    assert_refused_everywhere("a wrong CRC", with(&|blob| flip(blob, 8)));
    assert_refused_everywhere("a wrong ISIZE", with(&|blob| flip(blob, 1)));
    assert_refused_everywhere("no trailer", with(&|blob| blob.truncate(blob.len() - 8)));
    assert_refused_everywhere("cut in the middle", with(&|blob| blob.truncate(blob.len() / 2)));
    let mut frame = oci::zstd(&tar);
    frame.truncate(frame.len() / 2);
    assert_refused_everywhere(
        "a cut zstd frame",
        ImageForge::busybox().blob(frame, &tar, oci::LAYER_ZSTD),
    );
}

fn flip(bytes: &mut [u8], from_end: usize) {
    let at = bytes.len() - from_end;
    bytes[at] ^= 0xff;
}

/// B36: much from little
#[test]
fn a_bomb_does_not_fill_memory() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let zeros = vec![0; 1 << 20];
    for _ in 0..600 {
        std::io::Write::write_all(&mut encoder, &zeros).unwrap();
    }
    let forge = ImageForge::busybox().blob(encoder.finish().unwrap(), &[], oci::LAYER_GZIP);
    assert_image_refused("600 MiB of zeros with another diff ID", &forge.forge());
}

/// B37
#[test]
fn a_media_type_that_the_bytes_contradict_is_refused() {
    let tar = tar();
    let forge =
        |blob: Vec<u8>, media_type: &str| ImageForge::busybox().blob(blob, &tar, media_type);
    assert_refused_everywhere("zstd called gzip", forge(oci::zstd(&tar), oci::LAYER_GZIP));
    assert_refused_everywhere("plain called gzip", forge(tar.clone(), oci::LAYER_GZIP));
    assert_refused_everywhere("gzip called zstd", forge(oci::gzip(&tar), oci::LAYER_ZSTD));
    assert_refused_everywhere("gzip called plain", forge(oci::gzip(&tar), oci::LAYER));
    assert_refused_everywhere(
        "an unknown media type",
        forge(oci::gzip(&tar), "application/x-layer"),
    );
}

/// B38
#[test]
fn bytes_that_are_not_the_digests_are_refused() {
    assert_refused_everywhere("another last byte", image().last_bytes(|bytes| flip(bytes, 1)));
    assert_refused_everywhere("another first byte", image().last_bytes(|bytes| bytes[0] ^= 0xff));
    let other = oci::gzip(&TarForge::of([Member::file("f", "evil\n")]));
    assert_refused_everywhere("another layer", image().last_bytes(|bytes| *bytes = other));
    assert_refused_everywhere("another diff ID", image().last_diff_id(&oci::digest(b"other")));
    assert_refused_everywhere(
        "another config",
        image().config_descriptor("digest", oci::digest(b"other")),
    );
}

/// B38
#[test]
fn sizes_that_are_wrong_are_refused() {
    let size = image().forge().blobs.values().map(Vec::len).max().unwrap();
    for (what, value) in [
        ("one more", json!(size + 1)),
        ("one less", json!(1)),
        ("negative", json!(-1)),
        ("zero", json!(0)),
        ("a fraction", json!(1.5)),
        ("text", json!("12")),
    ] {
        assert_refused_everywhere(
            &format!("a size that is {what}"),
            image().last_descriptor("size", value),
        );
    }
    assert_refused_everywhere("an enormous size", image().last_descriptor("size", json!(u64::MAX)));
    assert_refused_everywhere(
        "a body that is longer",
        image().last_bytes(|bytes| bytes.extend(b"more")),
    );
    assert_refused_everywhere(
        "a body that is shorter",
        image().last_bytes(|bytes| bytes.truncate(100)),
    );
    assert_refused_everywhere(
        "a config of another size",
        image().config_descriptor("size", json!(3)),
    );
}

/// B38: a registry that says it is whole and closes early
#[test]
fn a_cut_download_is_not_kept() {
    let image = image().forge();
    let reference = move |path: &str, _| {
        path.contains("/blobs/").then(|| Answer {
            cut: Some(50),
            ..Answer::new(200, "application/octet-stream", vec![0x1f; 5000])
        })
    };
    let registry = FakeRegistry::with_faults([("cut".to_owned(), image)], Box::new(reference));
    let build = Build::new(format!("FROM {}\nRUN true\n", registry.reference("cut"))).timeout(120);
    build.run().failure(4, &["Dockerfile:1"]);
    store::assert_clean(build.state_directory());
    assert_no_lies(build.state_directory());
}

/// B40
#[test]
fn digests_are_parsed_strictly() {
    let hex = oci::sha256_hex(&oci::gzip(&tar()));
    let cases = [
        format!("sha512:{hex}{hex}"),
        format!("sha256:{}", hex.to_uppercase()),
        format!("sha256:{}", &hex[..60]),
        format!("sha256:{hex}00"),
        "sha256:../../../../etc/passwd".to_owned(),
        format!("sha256:{}/x", &hex[..62]),
        format!("md5:{}", &hex[..32]),
        hex.clone(),
        String::new(),
        format!("SHA256:{hex}"),
        format!(" sha256:{hex}"),
    ];
    for digest in &cases {
        let layer = image().last_descriptor("digest", digest.clone());
        assert_unreadable(&format!("the digest {digest:?}"), layer);
        let config = image().config_descriptor("digest", digest.clone());
        assert_unreadable(&format!("the config digest {digest:?}"), config);
    }
    // A path is the one that matters if it is read after all: for each use of the image, and again.
    for digest in cases.into_iter().filter(|digest| digest.contains('/')) {
        let layer = image().last_descriptor("digest", digest.clone());
        assert_refused_everywhere(&format!("the digest {digest:?}"), layer);
    }
    assert_refused_everywhere("a short diff ID", image().last_diff_id("sha256:00"));
}

/// B41
#[test]
fn data_in_a_descriptor_is_verified() {
    let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Env": ["EVIL=1"]}, "rootfs": {"type": "layers", "diff_ids": []}});
    assert_data(
        "another config as data",
        image().config_descriptor("data", encode(config.to_string().as_bytes())),
    );
    assert_data(
        "another layer as data",
        image().last_descriptor("data", encode(&oci::gzip(b"evil"))),
    );
    assert_data("data that is no base64", image().last_descriptor("data", "%%%"));
    let empty = image()
        .config_descriptor("mediaType", "application/vnd.oci.empty.v1+json")
        .config_descriptor("data", "e30=");
    assert_data("an empty config with another digest", empty);
}

/// `data` may be verified or never looked at; it must not win over the digest.
#[track_caller]
fn assert_data(what: &str, forge: ImageForge) {
    let image = forge.forge();
    let outcome = on_image(&image, "FROM base\nRUN cat /f > /seen\n").run();
    assert!(
        matches!(outcome.code(), Some(0 | 4)),
        "{what}: {:?} {}",
        outcome.code(),
        outcome.stderr
    );
    assert_bounded(&outcome);
    if outcome.code() == Some(0) {
        assert_eq!(outcome.text_of("seen"), "content\n", "{what}");
        assert!(!outcome.layout().config.to_string().contains("EVIL"), "{what}");
    }
}

/// B42
#[test]
fn of_two_downloads_at_once_the_good_one_is_kept() {
    let image = image().forge();
    let layer = image
        .blobs
        .values()
        .find(|bytes| bytes.starts_with(&[0x1f, 0x8b]) && bytes.len() > 100_000)
        .unwrap();
    let digest = oci::digest(layer);
    let mut bad = layer.clone();
    flip(&mut bad, 20);
    let path = format!("/v2/flaky/blobs/{digest}");
    let fault = move |asked: &str, seen: usize| {
        (asked == path && seen == 0)
            .then(|| Answer::new(200, "application/octet-stream", bad.clone()))
    };
    let registry = FakeRegistry::with_faults([("flaky".to_owned(), image)], Box::new(fault));
    let dockerfile = format!("FROM {}\nRUN cat /f > /seen\n", registry.reference("flaky"));
    let one = Build::new(&dockerfile);
    let two = Build::new(&dockerfile).state(one.state_directory());
    let outcomes = [one.spawn(), two.spawn()].map(|running| running.wait());
    assert!(
        outcomes.iter().all(|outcome| matches!(outcome.code(), Some(0 | 4))),
        "{}",
        outcomes[0].stderr
    );
    assert_eq!(one.run().success().text_of("seen"), "content\n");
    assert!(store::has_blob(one.state_directory(), &digest));
    store::assert_verifies(one.state_directory());
    process::wait_until(5, "nothing is mounted", || {
        process::mounts_below(one.state_directory()).is_empty()
    });
}
