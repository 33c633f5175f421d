//! Families M and R, and A73, where no build is involved: what `push`, `copy` and `join` make of lying documents and registries.

use std::{
    path::Path,
    process::Output,
    time::{Duration, Instant},
};

use base64::Engine as _;
use serde_json::{Value, json};

use super::*;
use crate::support::{
    FakeRegistry, build::bareboat, fake_registry::Answer, fake_registry::Script, oci,
};

const HTML: &str = "<html>log in</html>";

fn image() -> ImageForge {
    ImageForge::scratch().layer(&TarForge::of([Member::file("f", "content\n")]))
}

fn run(arguments: &[&str]) -> Output {
    bareboat().args(arguments).output().unwrap()
}

#[track_caller]
fn assert_fails(what: &str, code: i32, words: &[&str], arguments: &[&str]) {
    let output = run(arguments);
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{what}: {arguments:?}: {log}");
    for word in words {
        assert!(log.contains(word), "{what}: {word:?} is missing in\n{log}");
    }
    assert!(output.stdout.is_empty() && !log.contains("panicked at"), "{what}: {log}");
    assert!(!log.contains('\u{1b}'), "{what}: {log:?}");
}

/// A registry where `app:latest` is this document.
fn serving(content_type: &str, document: &[u8], image: Forged) -> FakeRegistry {
    let answer = Answer::new(200, content_type, document);
    let fault = move |path: &str, _| path.ends_with("/manifests/latest").then(|| answer.clone());
    FakeRegistry::with_faults([("app".to_owned(), image)], Box::new(fault))
}

/// Neither copied nor joined: no layout lists it, and nothing is written to a registry.
#[track_caller]
fn assert_refused(what: &str, words: &[&str], registry: &FakeRegistry) {
    let scratch = tempfile::tempdir().unwrap();
    let layout = scratch.path().join("layout");
    let (source, place) = (registry.reference("app"), format!("oci:{}", layout.display()));
    assert_fails(what, 4, words, &["copy", &source, &place]);
    assert!(!layout.join("index.json").exists(), "{what}");
    let other = registry.reference("other");
    assert_fails(what, 4, words, &["copy", &source, &other]);
    assert_fails(what, 4, words, &["join", &other, &source]);
    let wrote = |line: &String| line.starts_with("PUT") || line.starts_with("POST");
    assert!(!registry.requests().iter().any(wrote), "{what}: {:?}", registry.requests());
}

/// M44, M45, M46
#[test]
fn documents_that_mean_two_things_are_not_passed_on() {
    let text = || String::from_utf8(image().forge().manifest).unwrap();
    let doubled = text().replacen('{', r#"{"layers":[],"#, 1);
    let twin = text().replacen('{', r#"{"Layers":[],"#, 1);
    let brackets = format!(r#"{{"schemaVersion":2,"x":{}}}"#, "[".repeat(100_000));
    let number = |number: &str| text().replacen('{', &format!(r#"{{"x":{number},"#), 1);
    let both = image().manifest("manifests", json!([])).forge().manifest;
    let old = r#"{"schemaVersion":1,"name":"app","fsLayers":[],"history":[]}"#;
    let signed = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let escape = text().replacen("image.layer.v1.tar+gzip\"", "\u{1b}[2J", 1);
    for (what, content_type, document, words) in [
        ("layers and manifests", oci::MANIFEST, both, "both layers and manifests"),
        ("another type outside", oci::INDEX, text().into(), "calls it"),
        ("schema 1", signed, old.into(), "schema 1"),
        ("schema 1 as OCI", oci::MANIFEST, old.into(), "schema 1"),
        ("a key twice", oci::MANIFEST, doubled.into(), "not clean JSON"),
        ("a key in another case", oci::MANIFEST, twin.into(), "Layers"),
        ("a byte order mark", oci::MANIFEST, format!("\u{feff}{}", text()).into(), "not clean"),
        ("brackets", oci::MANIFEST, brackets.into(), "not clean JSON"),
        ("a big integer", oci::MANIFEST, number("18446744073709551616").into(), "not clean JSON"),
        ("NaN", oci::MANIFEST, number("NaN").into(), "not clean JSON"),
        ("a login page", "text/html", HTML.into(), "not clean JSON"),
        ("nothing", oci::MANIFEST, Vec::new(), "not clean JSON"),
        ("a raw escape", oci::MANIFEST, escape.into(), "not clean JSON"),
    ] {
        assert_refused(what, &[words], &serving(content_type, &document, image().forge()));
    }
}

fn index(entries: Value) -> Vec<u8> {
    json!({"schemaVersion": 2, "mediaType": oci::INDEX, "manifests": entries}).to_string().into()
}

fn entry(image: &Forged, platform: Value) -> Value {
    let size = image.manifest.len();
    json!({"mediaType": oci::MANIFEST, "digest": image.digest, "size": size, "platform": platform})
}

/// M44: an index that says something else of its entries than they are
#[test]
fn an_index_that_lies_of_its_entries_is_not_passed_on() {
    let image = image().forge();
    let with = |key: &str, value: Value| {
        let mut entry = entry(&image, json!({"os": "linux", "architecture": "amd64"}));
        entry[key] = value;
        serving(oci::INDEX, &index(json!([entry])), image.clone())
    };
    let scratch = tempfile::tempdir().unwrap();
    let layout = scratch.path().join("layout");
    for (what, registry) in [
        ("another type", with("mediaType", json!(oci::INDEX))),
        ("no manifest at all", with("mediaType", json!("application/x-anything"))),
        ("a digest that is not there", with("digest", json!(oci::digest(b"other")))),
        ("a path as digest", with("digest", json!("sha256:../../../../etc/passwd"))),
        ("a size below zero", with("size", json!(-1))),
        ("data of other bytes", with("data", json!("e30="))),
    ] {
        let place = format!("oci:{}", layout.display());
        assert_fails(what, 4, &[], &["copy", &registry.reference("app"), &place]);
        assert!(!layout.join("index.json").exists(), "{what}");
    }
}

/// M48
#[test]
fn a_platform_is_chosen_alike_each_time() {
    let (first, second) = (image().forge(), image().config("User", "2").forge());
    let platform = |name: &str, variant: &str| json!({"os": "linux", "architecture": name, "variant": variant});
    let both = index(json!([
        entry(&second, platform("arm64", "v8")),
        entry(&first, platform("amd64", "")),
        entry(&second, platform("amd64", "")),
        entry(&second, platform("arm/v7", "v7")),
    ]));
    let images = [("app".to_owned(), first.clone())];
    let found = second.clone();
    let script: Script = Box::new(move |_, path, _| {
        let bytes = match path.rsplit_once("/manifests/") {
            Some((_, "latest")) => return Some(Answer::new(200, oci::INDEX, both.clone())),
            Some((_, name)) if name == found.digest => &found.manifest,
            _ => found.blobs.get(path.rsplit('/').next()?)?,
        };
        Some(Answer::new(200, oci::MANIFEST, bytes.clone()))
    });
    let registry = FakeRegistry::scripted(images, script);
    let scratch = tempfile::tempdir().unwrap();
    let copy = |place: &str, platform: &str| {
        let place = format!("oci:{}", scratch.path().join(place).display());
        run(&["copy", &registry.reference("app"), &place, "--platform", platform])
    };
    for place in ["one", "two", "three"] {
        let output = copy(place, "linux/amd64");
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), first.digest, "{log}");
    }
    for missing in ["linux/s390x", "linux/arm/v7", "windows/amd64"] {
        let output = copy("none", missing);
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{missing}: {log}");
        assert!(log.contains("linux/arm64") && log.contains("linux/amd64"), "{missing}: {log}");
    }
}

/// R53, R57, B38: the blob is not what is served, each time it is asked for
#[test]
fn blobs_that_never_come_are_not_copied() {
    let image = image().forge();
    let chunked = |body: &str| Answer {
        cut: Some(body.len()),
        ..Answer::new(200, "application/octet-stream", body).header("Transfer-Encoding", "chunked")
    };
    let moved = |target: &str| Answer::new(307, "text/plain", "").header("Location", target);
    let bytes = |text: &str| Answer::new(200, "application/octet-stream", text);
    for (what, answer, words) in [
        ("a login page", Answer::new(200, "text/html", HTML), "HTML page"),
        ("no content", Answer::new(204, "text/plain", ""), "204"),
        ("too short", bytes("x"), "expected"),
        ("too long", bytes(&"x".repeat(100_000)), "expected"),
        ("no blob", Answer::new(404, "text/plain", "no"), "404"),
        ("redirects without end", moved("?again"), "redirects"),
        ("the metadata service", moved("http://169.254.169.254/latest"), "redirects to"),
        ("a redirect to nothing", moved("http://"), "redirects to"),
        ("an endless body", chunked(&format!("80000\r\n{}", "x".repeat(0x80000))), "expected"),
    ] {
        let fault = move |path: &str, _| path.contains("/blobs/").then(|| answer.clone());
        let registry =
            FakeRegistry::with_faults([("app".to_owned(), image.clone())], Box::new(fault));
        assert_not_copied(what, words, &registry);
    }
}

#[track_caller]
fn assert_not_copied(what: &str, words: &str, registry: &FakeRegistry) {
    let scratch = tempfile::tempdir().unwrap();
    let layout = scratch.path().join("layout");
    let place = format!("oci:{}", layout.display());
    assert_fails(what, 4, &[words], &["copy", &registry.reference("app"), &place]);
    assert!(!layout.join("index.json").exists(), "{what}");
    assert_only_blobs(what, &layout);
}

/// Nothing half there, and nothing under another's name.
fn assert_only_blobs(what: &str, layout: &Path) {
    for entry in std::fs::read_dir(layout.join("blobs/sha256")).unwrap().map(Result::unwrap) {
        let hex = oci::sha256_hex(&std::fs::read(entry.path()).unwrap());
        assert_eq!(entry.file_name().into_string().unwrap(), hex, "{what}");
    }
}

/// R53, R54: what fails once is asked for again
#[test]
fn what_fails_once_is_asked_for_again() {
    let image = image().forge();
    let cut = |cut: usize, answer: Answer| Answer { cut: Some(cut), ..answer };
    let chunked = Answer::new(200, "text/plain", "").header("Transfer-Encoding", "chunked");
    for (what, answer) in [
        ("429 without a time", Answer::new(429, "text/plain", "slow down")),
        ("429 with one", Answer::new(429, "text/plain", "").header("Retry-After", "1")),
        ("503", Answer::new(503, "text/plain", "")),
        ("a cut manifest", cut(10, Answer::new(200, oci::MANIFEST, image.manifest.clone()))),
        ("a cut in a chunk", cut(10, chunked)),
    ] {
        let (manifest, blobs) = (what.contains("manifest"), image.blobs.clone());
        let fault = move |path: &str, seen: usize| {
            let hit =
                seen == 0 && (path.contains("/blobs/") != manifest) && !path.ends_with("/v2/");
            let mut answer = answer.clone();
            if what.contains("chunk") {
                let blob = blobs.get(path.rsplit('/').next()?)?;
                answer.body = [b"20\r\n", &blob[..20]].concat();
            }
            hit.then_some(answer)
        };
        let registry =
            FakeRegistry::with_faults([("app".to_owned(), image.clone())], Box::new(fault));
        let scratch = tempfile::tempdir().unwrap();
        let place = format!("oci:{}", scratch.path().join("layout").display());
        let output = run(&["copy", &registry.reference("app"), &place]);
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), image.digest, "{what}: {log}");
        assert_only_blobs(what, &scratch.path().join("layout"));
    }
}

/// R54
#[test]
fn a_copy_does_not_wait_for_a_year() {
    let year = Answer::new(429, "text/plain", "").header("Retry-After", "31536000");
    let fault = move |path: &str, _| path.contains("/blobs/").then(|| year.clone());
    let registry =
        FakeRegistry::with_faults([("app".to_owned(), image().forge())], Box::new(fault));
    let began = Instant::now();
    assert_not_copied("a year", "31536000", &registry);
    assert!(began.elapsed() < Duration::from_secs(20));
}

/// R52: the tag moves between any two requests
#[test]
fn a_tag_that_flips_is_copied_as_one_of_its_images() {
    let (one, two) = (image().forge(), image().config("User", "2").forge());
    let (first, second) = (one.clone(), two.clone());
    let script: Script = Box::new(move |_, path, seen| {
        let (_, name) = path.rsplit_once('/')?;
        let image = if name == "latest" && seen % 2 == 0 || name == first.digest {
            &first
        } else {
            &second
        };
        let bytes = match path.contains("/manifests/") {
            true => {
                return Some(
                    Answer::new(200, oci::MANIFEST, image.manifest.clone())
                        .header("Docker-Content-Digest", &image.digest),
                );
            }
            false => first.blobs.get(name).or(second.blobs.get(name))?,
        };
        Some(Answer::new(200, "application/octet-stream", bytes.clone()))
    });
    let registry = FakeRegistry::scripted([], script);
    for number in 0..4 {
        let scratch = tempfile::tempdir().unwrap();
        let layout = scratch.path().join("layout");
        let output =
            run(&["copy", &registry.reference("app"), &format!("oci:{}", layout.display())]);
        let log = String::from_utf8_lossy(&output.stderr);
        let digest = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(digest == one.digest || digest == two.digest, "{number}: {log}");
        assert_only_blobs("a flipping tag", &layout);
        let config = &crate::support::Layout::open(&layout).manifest["config"]["digest"];
        let image = if digest == one.digest { &one } else { &two };
        assert!(image.blobs.contains_key(config.as_str().unwrap()));
    }
}

/// A73, B41: nothing that a descriptor says of other places is followed, and data counts only with its digest.
#[test]
fn other_places_of_a_blob_are_not_asked() {
    let elsewhere = FakeRegistry::scripted([], Box::new(|_, _, _| None));
    let urls = json!([format!("http://{}/layer", elsewhere.address)]);
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let scratch = tempfile::tempdir().unwrap();
    for (at, (forge, copied)) in [
        (image().last_descriptor("urls", urls.clone()), true),
        (image().last_descriptor("urls", urls).last_descriptor("mediaType", foreign), false),
    ]
    .into_iter()
    .enumerate()
    {
        let image = forge.forge();
        let registry = FakeRegistry::of("app", image.clone());
        let layout = scratch.path().join(at.to_string());
        let output =
            run(&["copy", &registry.reference("app"), &format!("oci:{}", layout.display())]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let blobs = std::fs::read_dir(layout.join("blobs/sha256")).unwrap().count();
        assert_eq!(blobs, 2 + usize::from(copied), "a foreign layer stays where it is");
    }
    assert!(elsewhere.requests().is_empty(), "{:?}", elsewhere.requests());
    let data = base64::engine::general_purpose::STANDARD.encode("other");
    let registry = FakeRegistry::of("app", image().last_descriptor("data", data).forge());
    assert_refused("data of other bytes", &["data"], &registry);
}

/// An answer to each request of a push that goes well, and another to one of them.
fn taking(
    method: &'static str,
    part: &'static str,
    answer: Answer,
    image: &Forged,
) -> FakeRegistry {
    let taken = image.clone();
    let script: Script = Box::new(move |asked, path, seen| {
        if asked == method && path.contains(part) {
            return Some(answer.clone());
        }
        let created = || Answer::new(201, "text/plain", "");
        match (asked, path.contains("/manifests/")) {
            ("POST", _) => Some(
                Answer::new(202, "text/plain", "").header("Location", format!("/upload/{seen}")),
            ),
            ("PUT", _) => Some(created()),
            ("GET", true) => Some(Answer::new(200, oci::MANIFEST, taken.manifest.clone())),
            _ => None,
        }
    });
    FakeRegistry::scripted([], script)
}

/// R53, R54, R57, R58, R62, A66: answers to a push
#[test]
fn a_push_believes_no_answer() {
    let image = image().forge();
    let scratch = tempfile::tempdir().unwrap();
    image.write(scratch.path());
    let layout = scratch.path().to_str().unwrap();
    let plain = |status: u16| Answer::new(status, "text/plain", "");
    let other = oci::digest(b"other");
    let good = taking("NONE", "none", plain(500), &image);
    assert!(run(&["push", layout, &good.reference("app")]).status.success());
    let started = |location: &str| plain(202).header("Location", location);
    let page = Answer::new(200, "text/html", HTML);
    for (what, method, part, answer, words) in [
        ("a login page for a session", "POST", "/blobs/", page.clone(), "200"),
        ("a session nowhere", "POST", "/blobs/", plain(202), "Location"),
        (
            "a session inside",
            "POST",
            "/blobs/",
            started("http://169.254.169.254/x"),
            "redirects to",
        ),
        (
            "a session of another scheme",
            "POST",
            "/blobs/",
            started("file:///etc/passwd"),
            "redirects to",
        ),
        (
            "a session of somebody",
            "POST",
            "/blobs/",
            started("http://u:secret@127.0.0.1/x"),
            "redirects to",
        ),
        (
            "redirects without end",
            "POST",
            "/blobs/",
            plain(307).header("Location", "?x"),
            "redirects",
        ),
        ("a year", "POST", "/blobs/", plain(429).header("Retry-After", "31536000"), "31536000"),
        (
            "another manifest",
            "PUT",
            "/manifests/",
            plain(201).header("Docker-Content-Digest", &other),
            &other,
        ),
        (
            "another manifest later",
            "GET",
            "/manifests/",
            Answer::new(200, oci::MANIFEST, self::image().config("User", "x").forge().manifest),
            "after the push",
        ),
        ("a login page later", "GET", "/manifests/", page.clone(), "cannot push"),
        ("no manifest", "PUT", "/manifests/", Answer::new(413, "text/plain", "too large"), "413"),
    ] {
        let registry = taking(method, part, answer, &image);
        assert_fails(what, 5, &[words], &["push", layout, &registry.reference("app")]);
        let put = |line: &String| line.starts_with("PUT") && line.contains("/manifests/");
        let reached = registry.requests().iter().any(put);
        assert_eq!(reached, part == "/manifests/", "{what}: {:?}", registry.requests());
    }
}

/// R58: tried again from the beginning, then given up; no tag is put
#[test]
fn a_blob_that_becomes_another_is_no_success() {
    let image = image().forge();
    let scratch = tempfile::tempdir().unwrap();
    image.write(scratch.path());
    let other = oci::digest(b"other");
    let lie = Answer::new(201, "text/plain", "").header("Docker-Content-Digest", &other);
    let registry = taking("PUT", "/upload/", lie, &image);
    let name = registry.reference("app");
    assert_fails("another blob", 5, &[&other], &["push", scratch.path().to_str().unwrap(), &name]);
    let requests = registry.requests();
    assert!(requests.iter().filter(|line| line.starts_with("POST")).count() > 2, "{requests:?}");
    assert!(!requests.iter().any(|line| line.starts_with("PUT") && line.contains("/manifests/")));
}
