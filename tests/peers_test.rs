//! The helpers of the tests, tried on the real peers alone: what judges bareboat must be right itself.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
};

use crate::support::{
    Canary, FakeRegistry, ImageForge, Kind, Layout, Member, Peers, TarForge, Tree, http, oci, peers,
};

#[test]
fn base_images_are_readable_layouts() {
    let peers = Peers::get();
    let busybox = Layout::open(&peers.layout("busybox")).tree();
    assert_eq!(busybox.get("bin/sh").link, "busybox");
    assert_eq!(busybox.get("tmp").mode, 0o1777);
    let debian = Layout::open(&peers.layout("debian")).tree();
    assert_eq!(debian.get("usr/bin/passwd").mode, 0o4755);
    assert_eq!(debian.get("usr/sbin/setcap").kind, Kind::File);
}

#[test]
fn registry_serves_the_bases() {
    let reference = Peers::get().base("busybox");
    let (digest, manifest) = http::manifest(&reference);
    assert_eq!(peers::skopeo_inspect(&reference)["Digest"], digest.as_str());
    http::blob(&reference, manifest["config"]["digest"].as_str().unwrap());
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    let lower = TarForge::of([
        Member::directory("d"),
        Member::file("d/old", "1"),
        Member::file("gone", "1"),
        Member::directory("tree"),
        Member::file("tree/a", "1"),
    ]);
    let upper = TarForge::of([
        Member::file("d/new", "2"),
        Member::whiteout("d/.wh..wh..opq"),
        Member::whiteout(".wh.gone"),
        Member::whiteout(".wh.tree"),
    ]);
    let tree = Tree::of_layers(&[lower, upper]);
    assert_eq!(tree.entries.keys().collect::<Vec<_>>(), ["d", "d/new"]);
    assert_eq!(tree.names("d"), ["new"]);
}

#[test]
fn forged_archives_are_what_gnu_tar_reads() {
    let long = "long/".repeat(40) + "name";
    let tar = TarForge::new()
        .add(Member::file("plain", "content").mode(0o4755).uid(7).gid(8))
        .pax(&[("path", long.as_bytes())])
        .add(Member::file("short", "by pax"))
        .gnu_long_name(format!("gnu-{long}").as_bytes())
        .add(Member::file("short", "by GNU"))
        .add(Member::hard_link("twin", "plain"))
        .add(Member::new(b'3', "null").device(1, 3))
        .add(Member::file("big-id", "").base256(108, 8, 4_000_000_000))
        .finish();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("forged.tar");
    fs::write(&path, &tar).unwrap();
    let listing = peers::run("tar", ["--numeric-owner", "-tvf", path.to_str().unwrap()]);
    for expected in [
        "-rwsr-xr-x 7/8",
        &format!(" {long}"),
        &format!(" gnu-{long}"),
        "twin link to plain",
        "1,3",
        "4000000000/0",
    ] {
        assert!(listing.contains(expected), "no {expected:?} in\n{listing}");
    }
    let tree = Tree::of_layers(&[tar]);
    assert_eq!(tree.get("plain").inode, tree.get("twin").inode);
    assert_eq!(tree.get(&long).content.as_deref(), Some(&b"by pax"[..]));
}

#[test]
fn forged_images_are_what_skopeo_takes() {
    let image =
        ImageForge::busybox().layer(&TarForge::of([Member::file("etc/forged", "yes\n")])).forge();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("layout");
    image.write(&path);
    assert_eq!(Layout::open(&path).content("etc/forged"), b"yes\n");
    let reference = Peers::get().fresh_reference("forged");
    peers::skopeo_push(&path, &reference);
    let output = peers::Storage::new().podman_run(&reference, &[], &["cat", "/etc/forged"]);
    assert_eq!(output, "yes\n");
}

#[test]
fn a_fake_registry_serves_and_remembers() {
    let image = ImageForge::scratch().layer(&TarForge::of([Member::file("a", "1")])).forge();
    let registry = FakeRegistry::of("some/image", image.clone());
    let directory = tempfile::tempdir().unwrap();
    let pulled = http::pull(&registry.reference("some/image"), directory.path());
    assert_eq!(pulled.digest, image.digest);
    assert_eq!(registry.blob_requests(), 2);
    assert!(registry.requests().iter().any(|request| request.ends_with("/manifests/latest")));
}

#[test]
fn a_fake_registry_tells_a_tls_client_that_it_is_plain() {
    let registry = FakeRegistry::of("x", ImageForge::scratch().layer(&TarForge::of([])).forge());
    let mut stream = TcpStream::connect(&registry.address).unwrap();
    stream.write_all(&[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0]).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 400"), "{answer:?}");
}

#[test]
fn skopeo_refuses_a_forged_digest() {
    let tar = TarForge::of([Member::file("a", "1")]);
    let lie = ImageForge::scratch()
        .layer(&tar)
        .last_bytes(|bytes| *bytes.last_mut().unwrap() ^= 1)
        .forge();
    let registry = FakeRegistry::of("lie", lie);
    let directory = tempfile::tempdir().unwrap();
    let target = format!("oci:{}", directory.path().join("x").display());
    let source = format!("docker://{}", registry.reference("lie"));
    let mut skopeo = std::process::Command::new("skopeo");
    let output =
        skopeo.args(["copy", "--src-tls-verify=false", &source, &target]).output().unwrap();
    assert!(!output.status.success());
}

#[test]
fn a_canary_sees_every_touch() {
    let canary = Canary::new();
    canary.assert_untouched();
    fs::write(canary.absolute("folder/new"), "x").unwrap();
    assert!(std::panic::catch_unwind(|| canary.assert_untouched()).is_err());
}

#[test]
fn buildah_is_an_oracle_for_trees() {
    let directory = tempfile::tempdir().unwrap();
    let context = directory.path().join("context");
    fs::create_dir(&context).unwrap();
    let dockerfile = Peers::get().expand(
        "FROM {busybox}\nRUN echo hello > /etc/made && rm /bin/wget && ln /etc/made /etc/twin\n",
    );
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    let destination = directory.path().join("image");
    peers::Storage::new().buildah(&context.join("Dockerfile"), &context, &destination);
    let tree = Layout::open(&destination).tree();
    assert_eq!(tree.get("etc/made").sha256, oci::sha256_hex(b"hello\n"));
    assert_eq!(tree.get("etc/made").inode, tree.get("etc/twin").inode);
    assert!(!tree.has("bin/wget"));
}
