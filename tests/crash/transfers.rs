//! `push` and `copy` that are killed: what can be seen is whole, and the next run succeeds.

use std::{
    fs,
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    registry::server::{Options, Server},
    support::{ImageForge, build::bareboat, http, oci},
};

const KILLS: u32 = 24;
const LAYER_BYTES: usize = 2 << 20;

/// Two images, in layouts and in a registry.
struct Scene {
    server: Server,
    scratch: tempfile::TempDir,
    old: Image,
    new: Image,
}

struct Image {
    layout: PathBuf,
    digest: String,
}

impl Scene {
    fn new() -> Scene {
        let scratch = tempfile::tempdir().unwrap();
        let image = |seed: u64| {
            let layers = (0..3).map(|layer| noise(seed + layer));
            let forge = layers.fold(ImageForge::scratch(), |forge, layer| {
                forge.blob(layer.clone(), &layer, oci::LAYER)
            });
            let (image, layout) = (forge.forge(), scratch.path().join(seed.to_string()));
            image.write(&layout);
            Image { layout, digest: image.digest }
        };
        let (old, new) = (image(1), image(100));
        let server = Server::start(&Options::default());
        Scene { server, old, new, scratch }
    }

    fn name(&self, repository: &str) -> String {
        format!("{}/{repository}:v1", self.server.address)
    }

    fn push(&self, image: &Image, name: &str) {
        assert_eq!(done(&["push", image.layout.to_str().unwrap(), name]), image.digest);
    }
}

fn noise(seed: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed + 1);
    let mut bytes = Vec::with_capacity(LAYER_BYTES);
    while bytes.len() < LAYER_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

#[track_caller]
fn done(arguments: &[&str]) -> String {
    let output = bareboat().args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn killed(arguments: &[&str], after: Duration) {
    let mut command = bareboat();
    let mut child =
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A moment in the `at`-th part of what takes `whole`, another one each time.
fn moment(whole: Duration, at: u32) -> Duration {
    let random = RandomState::new().hash_one(at) % 1000;
    (whole * at + whole * random as u32 / 1000) / KILLS
}

fn took(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

/// The digest under `name`; all that its manifest needs is in the repository.
fn whole_in_registry(name: &str) -> Option<String> {
    let (digest, manifest) = http::find_manifest(name)?;
    for blob in needed(&manifest) {
        http::blob(name, &blob);
    }
    Some(digest)
}

fn needed(manifest: &Value) -> Vec<String> {
    let layers = manifest["layers"].as_array().unwrap();
    let named = std::iter::once(&manifest["config"]).chain(layers);
    named.map(|descriptor| descriptor["digest"].as_str().unwrap().to_owned()).collect()
}

/// The digests that a layout lists. Whatever has a blob's name is that blob, and what is listed has all that it needs.
fn listed_in(layout: &Path) -> Vec<String> {
    for entry in fs::read_dir(layout.join("blobs/sha256")).into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if !name.starts_with('.') {
            assert_eq!(oci::sha256_hex(&fs::read(entry.path()).unwrap()), name);
        }
    }
    let Ok(index) = fs::read(layout.join("index.json")) else { return Vec::new() };
    let index: Value = serde_json::from_slice(&index).unwrap();
    let blob = |digest: &str| layout.join("blobs/sha256").join(digest.rsplit(':').next().unwrap());
    let listed = index["manifests"].as_array().unwrap();
    let digests = listed.iter().map(|entry| entry["digest"].as_str().unwrap().to_owned());
    let check = |digest: &String| {
        let manifest = serde_json::from_slice(&fs::read(blob(digest)).unwrap()).unwrap();
        assert!(needed(&manifest).iter().all(|digest| blob(digest).is_file()), "{digest}");
    };
    digests.inspect(check).collect()
}

fn unfinished_below(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(unfinished_below(&entry.path()));
        } else if entry.file_name().as_encoded_bytes().starts_with(b".") {
            found.push(entry.path());
        }
    }
    found
}

#[test]
fn a_push_killed_anywhere_leaves_no_broken_tag() {
    let scene = Scene::new();
    let whole = took(|| scene.push(&scene.new, &scene.name("first")));
    for at in 0..KILLS {
        let (name, replaces) = (scene.name(&format!("app{at}")), at % 2 == 1);
        if replaces {
            scene.push(&scene.old, &name);
        }
        let after = moment(whole, at);
        killed(&["push", scene.new.layout.to_str().unwrap(), &name], after);
        let found = whole_in_registry(&name);
        let before = replaces.then(|| scene.old.digest.clone());
        assert!(
            found == before || found.as_ref() == Some(&scene.new.digest),
            "killed after {after:?}: {found:?}"
        );
        scene.push(&scene.new, &name);
        assert_eq!(whole_in_registry(&name), Some(scene.new.digest.clone()), "after {after:?}");
    }
}

#[test]
fn a_copy_killed_anywhere_leaves_a_sound_layout() {
    let scene = Scene::new();
    let (old, new) = (scene.name("old"), scene.name("new"));
    scene.push(&scene.old, &old);
    scene.push(&scene.new, &new);
    let place = |name: &str| format!("oci:{}", scene.scratch.path().join(name).display());
    let whole = took(|| drop(done(&["copy", &new, &place("first")])));
    for at in 0..KILLS {
        let (name, layout) = (at.to_string(), scene.scratch.path().join(at.to_string() + "-copy"));
        let place = place(&format!("{name}-copy"));
        let mut expected = Vec::new();
        if at % 2 == 1 {
            done(&["copy", &old, &format!("{place}:old")]);
            expected.push(scene.old.digest.clone());
        }
        let after = moment(whole, at);
        killed(&["copy", &new, &format!("{place}:new")], after);
        let found = listed_in(&layout);
        let finished = [&expected[..], std::slice::from_ref(&scene.new.digest)].concat();
        assert!(found == expected || found == finished, "killed after {after:?}: {found:?}");
        done(&["copy", &new, &format!("{place}:new")]);
        assert_eq!(listed_in(&layout), finished, "after {after:?}");
        let left = unfinished_below(&layout);
        assert!(left.is_empty(), "after {after:?}: {left:?}");
        fs::remove_dir_all(&layout).unwrap();
    }
}

/// What another writer has not finished yet is left alone, and what nobody writes to any more is not.
#[test]
fn writers_of_one_layout_do_not_disturb_each_other() {
    let scene = Scene::new();
    let (old, new) = (scene.name("old"), scene.name("new"));
    scene.push(&scene.old, &old);
    scene.push(&scene.new, &new);
    let layout = scene.scratch.path().join("shared");
    fs::create_dir(&layout).unwrap();
    fs::write(layout.join(".bareboat-left"), "half").unwrap();
    let copy = |from: &str, tag: &str| {
        let mut command = bareboat();
        let child = command.args(["copy", from, &format!("oci:{}:{tag}", layout.display())]);
        child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let copies = [copy(&old, "one"), copy(&new, "two"), copy(&new, "three"), copy(&old, "four")];
    for mut child in copies {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(listed_in(&layout).len(), 4);
    let left = unfinished_below(&layout);
    assert!(left.is_empty(), "{left:?}");
}
