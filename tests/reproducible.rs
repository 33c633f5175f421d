//! Same inputs, same bytes.

use std::fs;

use crate::support::Build;

const DOCKERFILE: &str = "FROM {busybox} AS one
RUN mkdir -p /a/b && for n in $(seq 300); do echo $n > /a/b/$n; done && ln /a/b/1 /a/one && rm /bin/wget
FROM {busybox}
WORKDIR /w
COPY --from=one /a /w/a
COPY data .
RUN cat data data > twice && chown 5:6 twice && head -c 3000000 /dev/zero > zeros
";

const EPOCH: &str = "1500000000";

fn cold(arguments: &[&str]) -> Build {
    // Not compressible, and more than one of the compressor's blocks.
    let data: Vec<u8> =
        (0..2_500_000u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    Build::new(DOCKERFILE).file("data", data).args(arguments)
}

#[test]
fn two_cold_builds_have_one_digest() {
    let first = cold(&[]).env("SOURCE_DATE_EPOCH", EPOCH).run().success();
    let second = cold(&[]).env("SOURCE_DATE_EPOCH", EPOCH).run().success();
    assert_eq!(first.digest(), second.digest());
    let by_argument = cold(&["--build-arg", &format!("SOURCE_DATE_EPOCH={EPOCH}")]).run().success();
    assert_eq!(by_argument.layout().diff_ids(), first.layout().diff_ids());
}

#[test]
fn the_number_of_jobs_changes_nothing() {
    let one = cold(&["--jobs", "1"]).env("SOURCE_DATE_EPOCH", EPOCH).run().success();
    let four = cold(&["--jobs", "4"]).env("SOURCE_DATE_EPOCH", EPOCH).run().success();
    assert_eq!(one.digest(), four.digest());
    let base = one.layout().manifest["layers"][0].clone();
    assert_eq!(four.layout().manifest["layers"][0], base);
}

#[test]
fn a_warm_build_repeats_a_cold_ones_digest() {
    let build = cold(&[]).env("SOURCE_DATE_EPOCH", EPOCH);
    assert_eq!(build.run().success().digest(), build.run().success().digest());
}

#[test]
fn the_epoch_caps_times_of_new_entries_only() {
    let outcome = cold(&[]).env("SOURCE_DATE_EPOCH", EPOCH).run().success();
    let epoch: u64 = EPOCH.parse().unwrap();
    assert_eq!(outcome.layout().config["created"], "2017-07-14T02:40:00Z");
    let layers = outcome.layout().layers();
    for layer in &layers[1..] {
        for entry in tar::Archive::new(&layer[..]).entries().unwrap() {
            let entry = entry.unwrap();
            assert!(entry.header().mtime().unwrap() <= epoch, "{:?}", entry.path());
        }
    }
    assert!(outcome.tree().get("bin/busybox").mtime > epoch, "the base is as it was");
}

#[test]
fn the_order_of_a_directory_changes_nothing() {
    let names: Vec<String> = (0..200).map(|n| format!("file-{:03}", n * 7 % 200)).collect();
    let build = |names: &mut dyn Iterator<Item = &String>| {
        let build = Build::new("FROM scratch\nCOPY files /files\n").env("SOURCE_DATE_EPOCH", EPOCH);
        fs::create_dir(build.context().join("files")).unwrap();
        names.for_each(|name| fs::write(build.context().join("files").join(name), name).unwrap());
        build.run().success().digest()
    };
    assert_eq!(build(&mut names.iter()), build(&mut names.iter().rev()));
}
