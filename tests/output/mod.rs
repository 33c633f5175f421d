//! Where an image goes besides a layout: archives that Docker and podman load, files, and the keys of the image itself.

mod image;
mod transfer;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{
    Build, Canary, ImageForge, Layout, Member, TarForge, build::bareboat, oci, peers,
};

/// A base with all that layers can hold: links, a device, a capability-less setuid file, a whiteout, an opaque directory.
fn base(at: &Path) -> String {
    let lower = TarForge::new()
        .add(Member::directory("etc/").mtime(1_100_000_000))
        .add(Member::file("etc/hosts", "lower").mode(0o600))
        .add(Member::hard_link("etc/hosts2", "etc/hosts").mode(0o600))
        .add(Member::directory("gone/"))
        .add(Member::file("gone/below", "x"))
        .add(Member::directory("opaque/").mode(0o1777))
        .add(Member::file("opaque/old", "x"))
        .add(Member::file("suid", "program").mode(0o4755).uid(7).gid(8))
        .add(Member::new(b'3', "null").mode(0o666).device(1, 3))
        .add(Member::new(b'6', "pipe"))
        .add(Member::symlink("absolute", "/etc/hosts"))
        .finish();
    let upper = TarForge::new()
        .add(Member::whiteout(".wh.gone"))
        .add(Member::directory("opaque/").mode(0o700).uid(1000))
        .add(Member::whiteout("opaque/.wh..wh..opq"))
        .add(Member::file("opaque/new", "y"))
        .add(Member::file("empty", ""))
        .finish();
    let forged = ImageForge::scratch().layer(&lower).layer(&upper).forge();
    forged.write(at);
    forged.digest
}

const DOCKERFILE: &str = "FROM base
COPY --chown=33:34 --chmod=0640 file /etc/
COPY file /etc/hosts
";

/// A build on that base.
fn build() -> Build {
    let build = Build::new(DOCKERFILE).file("file", "from the context\n");
    let layout = build.scratch().join("base");
    let digest = base(&layout);
    build.layout_context("base", &layout, &digest)
}

/// What each name below `root` is. `owners`: with those.
fn listing(root: &Path, owners: bool) -> BTreeMap<PathBuf, String> {
    let (mut found, mut pending) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let stat = fs::symlink_metadata(&path).unwrap();
            let content = match stat.file_type() {
                kind if kind.is_file() => fs::read(&path).unwrap(),
                kind if kind.is_symlink() => {
                    fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
                }
                _ => Vec::new(),
            };
            let mut text = format!(
                "{:o} {} {} {}",
                stat.mode(),
                stat.mtime(),
                if stat.is_dir() { 0 } else { stat.nlink() },
                oci::digest(&content)
            );
            if owners {
                text += &format!(" {}:{} {}", stat.uid(), stat.gid(), stat.rdev());
            }
            if stat.is_dir() {
                pending.push(path.clone());
            }
            found.insert(path.strip_prefix(root).unwrap().to_owned(), text);
        }
    }
    found
}

/// The root file system as umoci unpacks it.
fn unpacked_by_umoci(layout: &Path, scratch: &Path) -> PathBuf {
    let tagged = scratch.join("for-umoci");
    let (from, to) = (format!("oci:{}", layout.display()), format!("oci:{}:x", tagged.display()));
    peers::run("skopeo", ["copy", "-q", &from, &to]);
    let bundle = scratch.join("bundle");
    let image = format!("{}:x", tagged.display());
    peers::run("umoci", ["unpack", "--image", &image, bundle.to_str().unwrap()]);
    bundle.join("rootfs")
}

#[test]
fn files_are_those_that_umoci_unpacks() {
    let build = build();
    let scratch = build.scratch().to_owned();
    let (directory, tar) = (scratch.join("files"), scratch.join("files.tar"));
    let build = build
        .args(["-o", directory.to_str().unwrap()])
        .args(["-o", &format!("type=tar,dest={}", tar.display())]);
    let outcome = build.run().success();
    let expected = listing(&unpacked_by_umoci(&outcome.layout, &scratch), true);
    assert!(expected.contains_key(Path::new("opaque/new")) && expected.len() >= 10);
    assert!(!expected.contains_key(Path::new("opaque/old")));
    assert_eq!(listing(&directory, true), expected);
    let untarred = scratch.join("untarred");
    fs::create_dir(&untarred).unwrap();
    let (tar, into) = (tar.to_str().unwrap(), untarred.to_str().unwrap());
    peers::run("tar", ["--numeric-owner", "-xpf", tar, "-C", into]);
    assert_eq!(listing(&untarred, true), expected);
}

#[test]
fn a_hard_link_is_broken_where_a_later_layer_replaces_one_of_its_names() {
    let build = build();
    let files = build.scratch().join("files");
    let _kept = build.args(["-o", files.to_str().unwrap()]).run().success();
    assert_eq!(fs::read_to_string(files.join("etc/hosts")).unwrap(), "from the context\n");
    assert_eq!(fs::read_to_string(files.join("etc/hosts2")).unwrap(), "lower");
}

#[test]
fn files_merge_into_a_directory_and_follow_none_of_its_links() {
    let canary = Canary::new();
    let build = build();
    let files = build.scratch().join("files");
    fs::create_dir(&files).unwrap();
    std::os::unix::fs::symlink(canary.path(), files.join("etc")).unwrap();
    std::os::unix::fs::symlink(canary.absolute("x"), files.join("empty")).unwrap();
    fs::write(files.join("mine"), "stays").unwrap();
    let local = format!("type=local,dest={}", files.display());
    let _kept = build.args(["-o", &local]).run().success();
    canary.assert_untouched();
    assert_eq!(fs::read_to_string(files.join("mine")).unwrap(), "stays");
    assert_eq!(fs::read_to_string(files.join("etc/hosts2")).unwrap(), "lower");
    assert!(files.join("pipe").symlink_metadata().unwrap().file_type().is_fifo());
}

#[test]
fn a_layer_that_links_out_of_the_root_stays_in_it() {
    let canary = Canary::new();
    let tar = TarForge::new()
        .add(Member::symlink("out", canary.path()))
        .add(Member::file("out/file", "x"))
        .finish();
    let other = TarForge::new().add(Member::file("out/other", "x")).finish();
    let build = Build::new("FROM base");
    let layout = build.scratch().join("base");
    let forged = ImageForge::scratch().layer(&tar).layer(&other).forge();
    forged.write(&layout);
    let files = build.scratch().join("files");
    let local = format!("type=local,dest={}", files.display());
    let _kept =
        build.layout_context("base", &layout, &forged.digest).args(["-o", &local]).run().success();
    canary.assert_untouched();
}

#[test]
fn a_user_gets_files_of_their_own_and_is_told_what_is_missing() {
    let build = build();
    let files = build.scratch().join("files");
    // The build is root's, whose base is in the store then; the user's export reads the layers alone.
    let folder = build.scratch();
    for path in [folder.to_owned(), folder.join("home")] {
        std::os::unix::fs::chown(path, Some(1234), Some(1234)).unwrap();
    }
    let context = format!(
        "base=oci-layout://{}@{}",
        folder.join("base").display(),
        Layout::open(&folder.join("base")).digest
    );
    let mut command = Command::new("setpriv");
    command.args(["--reuid=1234", "--regid=1234", "--clear-groups", "--inh-caps=-all"]);
    command.arg(bareboat().get_program());
    command.args(["build", "--progress", "plain", "--build-context", &context]);
    command.arg("--state-dir").arg(folder.join("own-state"));
    command.args(["-o", files.to_str().unwrap()]).arg(build.context());
    command.env("HOME", folder.join("home"));
    let output = command.output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert!(log.contains("1 device nodes"), "{log}");
    let stat = fs::metadata(files.join("suid")).unwrap();
    assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (1234, 1234, 0o4755));
    assert!(!files.join("null").exists());
}

#[test]
fn each_platform_has_a_folder() {
    let build = Build::new("FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /arch\n")
        .file("amd64", "amd64")
        .file("arm64", "arm64")
        .without_output();
    let (files, tar) = (build.scratch().join("files"), build.scratch().join("files.tar"));
    let build = build.args(["--platform", "linux/amd64,linux/arm64"]);
    let _kept = build
        .args(["-o", files.to_str().unwrap()])
        .args(["-o", &format!("type=tar,dest={}", tar.display())])
        .run()
        .success();
    for arch in ["amd64", "arm64"] {
        let path = files.join(format!("linux_{arch}/arch"));
        assert_eq!(fs::read_to_string(path).unwrap(), arch);
    }
    let names = peers::run("tar", ["-tf", tar.to_str().unwrap()]);
    let expected = ["linux_amd64/", "linux_amd64/arch", "linux_arm64/", "linux_arm64/arch"];
    assert_eq!(names.lines().collect::<Vec<_>>(), expected);

    let base = || {
        Build::new("FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /$TARGETARCH/\n")
            .file("amd64", "amd64")
            .file("arm64", "arm64")
            .without_output()
            .args(["--platform", "linux/amd64,linux/arm64"])
    };
    let one = base();
    let together = one.scratch().join("files");
    let output = format!("type=local,dest={},platform-split=false", together.display());
    let _one = one.args(["-o", &output]).run().success();
    assert_eq!(fs::read_dir(&together).unwrap().count(), 2);
    base()
        .dockerfile("FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /same\n")
        .args(["-o", &output])
        .run()
        .failure(2, &["/same", "linux/arm64", "platform-split"]);
    base().args(["-o", "type=docker,dest=x.tar"]).run().failure(2, &["type=docker"]);
}

#[test]
fn the_epoch_is_the_time_of_all_files() {
    let build = build();
    let files = build.scratch().join("files");
    let _kept = build
        .args(["-o", files.to_str().unwrap()])
        .env("SOURCE_DATE_EPOCH", "12345")
        .run()
        .success();
    for (path, text) in listing(&files, false) {
        assert_eq!(text.split(' ').nth(1), Some("12345"), "{}", path.display());
    }
}

#[test]
fn a_tar_on_standard_output_is_alone_there() {
    let build = build().without_output();
    let mut command = bareboat();
    let layout = build.scratch().join("base");
    let digest = Layout::open(&layout).digest;
    let context = format!("base=oci-layout://{}@{digest}", layout.display());
    command.args(["build", "--progress", "quiet", "--build-context", &context]);
    command.arg("--state-dir").arg(build.state_directory());
    let output = command.args(["-o", "-"]).arg(build.context()).output().unwrap();
    assert!(output.status.success());
    let mut archive = tar::Archive::new(&output.stdout[..]);
    assert!(archive.entries().unwrap().count() >= 10);
}

#[test]
fn docker_archives_are_read_by_skopeo_and_podman() {
    let build = build();
    let (archive, oci_archive) = (build.scratch().join("a.tar"), build.scratch().join("oci.tar"));
    let scratch = build.scratch().to_owned();
    let outcome = build
        .without_output()
        .args(["-t", "test/app:1", "-t", "registry.test/other:2"])
        .args(["-o", &format!("type=docker,dest={}", archive.display())])
        .args(["-o", &format!("type=oci,dest={}", oci_archive.display())])
        .run()
        .success();
    let digest = outcome.stdout.trim();
    let metadata = peers::run("tar", ["-xOf", archive.to_str().unwrap(), "manifest.json"]);
    let metadata: serde_json::Value = serde_json::from_str(&metadata).unwrap();
    let config = metadata[0]["Config"].as_str().unwrap().replace("blobs/sha256/", "sha256:");
    let into = scratch.join("copied");
    for name in ["test/app:1", "registry.test/other:2"] {
        let from = format!("docker-archive:{}:{name}", archive.display());
        let to = format!("oci:{}:x", into.display());
        peers::run("skopeo", ["copy", "-q", &from, &to]);
        // skopeo reads Docker's part of it, and writes a manifest of its own for the same config.
        let copied = Layout::open(&into);
        assert_eq!(copied.manifest["config"]["digest"], config.as_str());
        fs::remove_dir_all(&into).unwrap();
    }
    for path in [&archive, &oci_archive] {
        let from = format!("oci-archive:{}:1", path.display());
        let text = peers::run("skopeo", ["inspect", &from]);
        assert!(text.contains(digest), "{text}");
    }
    let storage = peers::Storage::new();
    let loaded = storage.podman_load(&archive);
    assert!(loaded.contains("test/app:1") && loaded.contains("registry.test/other:2"), "{loaded}");
}
