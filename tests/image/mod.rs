//! A multi-stage image on a Debian base, from apt-get in a RUN to the program's output under another builder's runtime.

mod platforms;

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
    sync::OnceLock,
};

use serde_json::json;

use crate::support::{Build, Kind, Outcome, Peers, http, peers};

const DOCKERFILE: &str = r#"FROM {debian} AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY greet.c .
RUN gcc -O1 -Wall -o greet greet.c && ./greet builder

FROM {debian}
LABEL purpose=test
COPY --from=build --chown=33:33 --chmod=0755 /src/greet /usr/local/bin/greet
RUN setcap cap_net_raw+ep /usr/local/bin/greet \
 && mkdir -m 0700 /var/lib/greet && chown 1000:1000 /var/lib/greet \
 && echo data > /var/lib/greet/data && ln /var/lib/greet/data /srv/data \
 && ln -s ../local/bin/greet /usr/bin/greet \
 && cp /bin/true /usr/local/bin/su-true && chmod 6755 /usr/local/bin/su-true \
 && mknod /srv/null c 1 3 && mkfifo /srv/pipe && rm -r /usr/share/doc
ENV GREETING=Hello
ENTRYPOINT ["/usr/bin/greet"]
CMD ["world"]
"#;

const SOURCE: &str = r#"#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv) {
    const char *greeting = getenv("GREETING");
    printf("%s, %s\n", greeting ? greeting : "Hi", argc > 1 ? argv[1] : "nobody");
    return 0;
}
"#;

struct Image {
    reference: String,
    outcome: Outcome,
}

/// The image, built and pushed once for all tests here.
fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let reference = Peers::get().fresh_reference("greet");
        let push = format!("type=image,push=true,name={reference}");
        let build = Build::new(DOCKERFILE).file("greet.c", SOURCE).args(["-o", &push]).timeout(900);
        let outcome = build.run().success();
        Image { reference, outcome }
    })
}

#[test]
fn the_compiler_ran_in_the_step() {
    assert!(
        image().outcome.stderr.contains("Hi, builder"),
        "the step's output is in the log:\n{}",
        image().outcome.stderr
    );
    assert!(!image().outcome.tree().has("usr/bin/gcc"), "the compiler stayed in its stage");
}

#[test]
fn skopeo_agrees_with_the_metadata() {
    let image = image();
    let seen = peers::skopeo_inspect(&image.reference);
    let metadata = image.outcome.metadata();
    assert_eq!(seen["Digest"], metadata["containerimage.digest"]);
    assert_eq!(seen["Digest"], image.outcome.digest().as_str());
    assert_eq!(metadata["containerimage.descriptor"]["digest"], seen["Digest"]);
    assert_eq!(metadata["image.name"], image.reference.as_str());
    let config = peers::skopeo_config(&image.reference);
    assert_eq!(config["config"]["Entrypoint"], json!(["/usr/bin/greet"]));
    assert_eq!(config["config"]["Cmd"], json!(["world"]));
    assert_eq!(config["config"]["Labels"], json!({"purpose": "test"}));
    assert_eq!(config, image.outcome.layout().config);
}

#[test]
fn what_the_registry_has_is_what_the_layout_has() {
    let scratch = tempfile::tempdir().unwrap();
    let pulled = http::pull(&image().reference, scratch.path());
    let written = image().outcome.layout();
    assert_eq!(pulled.digest, written.digest);
    assert_eq!(pulled.manifest, written.manifest);
    let base = http::manifest(&Peers::get().base("debian")).1;
    assert_eq!(written.manifest["layers"][0], base["layers"][0], "the base's layer is untouched");
}

#[test]
fn podman_runs_it() {
    let storage = peers::Storage::new();
    assert_eq!(
        storage.podman_run(&image().reference, &["--cap-add", "NET_RAW"], &[]),
        "Hello, world\n"
    );
    assert_eq!(
        storage.podman_run(
            &image().reference,
            &["--cap-add", "NET_RAW", "-e", "GREETING=Ahoy"],
            &["sailor"]
        ),
        "Ahoy, sailor\n"
    );
}

#[test]
fn umoci_unpacks_owners_modes_capabilities_and_links() {
    let scratch = tempfile::tempdir().unwrap();
    let bundle = scratch.path().join("bundle");
    let layout = scratch.path().join("layout");
    http::pull(&image().reference, scratch.path());
    let (from, to) =
        (format!("docker://{}", image().reference), format!("oci:{}:latest", layout.display()));
    peers::run("skopeo", ["copy", "-q", "--src-tls-verify=false", &from, &to]);
    peers::run(
        "umoci",
        ["unpack", "--image", &format!("{}:latest", layout.display()), bundle.to_str().unwrap()],
    );
    assert_unpacked(&bundle.join("rootfs"));
}

fn assert_unpacked(root: &Path) {
    let stat = |path: &str| {
        fs::symlink_metadata(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let greet = stat("usr/local/bin/greet");
    assert_eq!((greet.mode() & 0o7777, greet.uid(), greet.gid()), (0o755, 33, 33));
    assert_eq!(capability(&root.join("usr/local/bin/greet")), Some(net_raw()));
    assert_eq!(stat("usr/local/bin/su-true").mode() & 0o7777, 0o6755);
    let folder = stat("var/lib/greet");
    assert_eq!((folder.mode() & 0o7777, folder.uid(), folder.gid()), (0o700, 1000, 1000));
    assert_eq!(stat("var/lib/greet/data").ino(), stat("srv/data").ino());
    assert_eq!(fs::read_link(root.join("usr/bin/greet")).unwrap(), Path::new("../local/bin/greet"));
    assert!(
        stat("srv/null").file_type().is_char_device()
            && stat("srv/null").rdev() == rustix::fs::makedev(1, 3)
    );
    assert!(stat("srv/pipe").file_type().is_fifo());
    assert!(!root.join("usr/share/doc").exists());
    assert_eq!(stat("usr/bin/passwd").mode() & 0o7777, 0o4755, "the base's setuid program");
}

/// `cap_net_raw+ep`, version 2, as linux/capability.h lays it out.
fn net_raw() -> Vec<u8> {
    let words: [u32; 5] = [0x0200_0001, 1 << 13, 0, 0, 0];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn capability(path: &Path) -> Option<Vec<u8>> {
    let mut value = [0; 64];
    let length = rustix::fs::getxattr(path, "security.capability", &mut value[..]).ok()?;
    Some(value[..length].to_vec())
}

#[test]
fn the_layers_hold_what_the_dockerfile_made() {
    let tree = image().outcome.tree();
    let greet = tree.get("usr/local/bin/greet");
    assert_eq!((greet.kind, greet.mode, greet.uid), (Kind::File, 0o755, 33));
    assert_eq!(greet.capability, Some(net_raw()));
    assert_eq!(tree.get("var/lib/greet/data").inode, tree.get("srv/data").inode);
    assert_eq!(tree.get("srv/null").device, (1, 3));
    assert!(!tree.has("usr/share/doc"));
}
