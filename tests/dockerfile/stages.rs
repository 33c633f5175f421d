//! More than one stage.

use std::net::TcpListener;

use crate::support::{Build, http, peers::Peers};

const STAGES: &str = "FROM {busybox} AS one
RUN echo one > /one
FROM {busybox} AS broken
RUN exit 9
FROM {busybox} AS two
COPY --from=one /one /two
RUN echo two >> /two
FROM scratch
COPY --from=two /two /result
COPY --from={busybox} /bin/busybox /bin/busybox
";

#[test]
fn stages_nobody_needs_are_not_built() {
    let outcome = Build::new(STAGES).run().success();
    assert_eq!(outcome.text_of("result"), "one\ntwo\n");
    assert!(!outcome.stderr.contains("exit 9"), "{}", outcome.stderr);
    assert_eq!(outcome.tree().get("bin/busybox").mode, 0o755);
}

#[test]
fn a_target_stage_is_the_result() {
    let outcome = Build::new(STAGES).args(["--target", "one"]).run().success();
    assert_eq!(outcome.text_of("one"), "one\n");
    assert!(!outcome.tree().has("two"));
    Build::new(STAGES).args(["--target", "broken"]).run().failure(1, &["Dockerfile:4", "exit 9"]);
}

/// Stages on stages, and every hundredth copied from the one before.
#[test]
fn thousands_of_stages_are_no_deeper_than_one() {
    let mut text = "FROM scratch AS s0\nCOPY f /\n".to_owned();
    for stage in 1..5000 {
        let before = stage - 1;
        text += &match stage % 100 {
            0 => format!("FROM scratch AS s{stage}\nCOPY --from=s{before} /f /\n"),
            _ => format!("FROM s{before} AS s{stage}\nLABEL n={stage}\n"),
        };
    }
    let outcome = Build::new(text).file("f", "deep").run().success();
    assert_eq!(outcome.text_of("f"), "deep");
}

/// Each stage waits for what the other one serves: built one after the other, neither would end.
#[test]
fn independent_stages_run_side_by_side() {
    let meet = |serve: u16, fetch: u16| {
        format!(
            "RUN mkdir /www && echo from {serve} > /www/hello && httpd -p 127.0.0.1:{serve} -h /www && \\
 for n in $(seq 300); do wget -q -O /got http://127.0.0.1:{fetch}/hello && sleep 3 && exit 0; sleep 0.2; done; exit 1
"
        )
    };
    let (one, two) = (free_port(), free_port());
    let dockerfile = format!(
        "FROM {{busybox}} AS one\n{}FROM {{busybox}} AS two\n{}FROM scratch\nCOPY --from=one /got /one\nCOPY --from=two /got /two\n",
        meet(one, two),
        meet(two, one)
    );
    let outcome = Build::new(dockerfile).args(["--jobs", "2"]).timeout(120).run().success();
    assert_eq!(outcome.text_of("one"), format!("from {two}\n"));
    assert_eq!(outcome.text_of("two"), format!("from {one}\n"));
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn a_directory_and_an_image_serve_as_named_contexts() {
    let build = Build::new("FROM base\nCOPY --from=extra note /note\nRUN cat /note >> /etc/motd\n");
    let extra = build.scratch().join("extra");
    std::fs::create_dir(&extra).unwrap();
    std::fs::write(extra.join("note"), "a note\n").unwrap();
    let base = format!("base=docker-image://{}", Peers::get().base("busybox"));
    let outcome = build
        .args(["--build-context", &base, "--build-context", &format!("extra={}", extra.display())])
        .run()
        .success();
    assert_eq!(outcome.text_of("etc/motd"), "a note\n");
}

#[test]
fn several_tags_are_pushed() {
    let peers = Peers::get();
    let (first, second) = (peers.fresh_reference("tag"), peers.fresh_reference("tag"));
    let outcome = Build::new("FROM {busybox}\nCOPY Dockerfile /\n")
        .args(["-t", &first, "-t", &second, "--push"])
        .without_output()
        .run()
        .success();
    let (digest, _) = http::manifest(&first);
    assert_eq!(http::manifest(&second).0, digest);
    assert_eq!(outcome.metadata()["containerimage.digest"], digest.as_str());
    assert!(outcome.stdout.contains(&digest), "stdout carries the digest: {}", outcome.stdout);
}
