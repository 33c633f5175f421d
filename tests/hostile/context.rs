//! HOSTILE.md, family C: contexts, ignore files and what COPY and ADD are told.

use std::{fs, os::unix::fs::symlink, time::Instant};

use super::assert_bounded;
use crate::support::{Build, Canary};

/// C90
#[test]
fn links_out_of_a_context_stay_inside() {
    let canary = Canary::new();
    let build = Build::new("FROM scratch\nCOPY . /all\n").file("inside", "inside\n");
    symlink(canary.path(), build.context().join("out")).unwrap();
    symlink("inside", build.context().join("in")).unwrap();
    let tree = build.run().success().tree();
    assert_eq!(tree.get("all/out").link, canary.path());
    let named = build.dockerfile("FROM scratch\nCOPY in /in\nCOPY out /out\n");
    named.run().failure(3, &["Dockerfile:3"]);
    canary.assert_untouched();
}

/// C90
#[test]
fn a_context_may_be_a_link() {
    let build = Build::new("FROM scratch\nCOPY f /f\n").file("f", "x\n").without_output();
    let link = build.scratch().join("link");
    symlink(build.context(), &link).unwrap();
    let out = format!("type=oci,dest={}", build.scratch().join("out.tar").display());
    let status = crate::support::build::bareboat()
        .args(["build", "-o", &out, "--state-dir"])
        .arg(build.state_directory())
        .arg(&link)
        .status()
        .unwrap();
    assert!(status.success());
}

/// C92
#[test]
fn ignore_files_are_matched_in_bounded_time() {
    let patterns = format!("{}\n", "**/".repeat(200) + "*a*a*a*a*b").repeat(50);
    let build = Build::new("FROM scratch\nCOPY . /\n")
        .file(".dockerignore", patterns)
        .file(&format!("{}/f", "a".repeat(200)), "x\n")
        .file("deep/er/and/deeper/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "x\n");
    let started = Instant::now();
    assert_bounded(&build.run().success());
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
    build.file(".dockerignore", "[a\n").run().failure(3, &["ignore"]);
}

/// C93
#[test]
fn owners_are_strict() {
    for owner in ["-1", "1:-1", "4294967295", "99999999999999999999"] {
        let text = format!("FROM scratch\nCOPY --chown={owner} f /f\n");
        Build::new(text).file("f", "x\n").run().failure(3, &["Dockerfile:2"]);
    }
    // What only looks like a number is a name, and nobody has it.
    let tree = Build::new("FROM {busybox}\nCOPY --chown=1e3 f /f\n")
        .file("f", "x\n")
        .run()
        .success()
        .tree();
    assert_eq!((tree.get("f").uid, tree.get("f").gid), (0, 0));
}

/// C93
#[test]
fn a_passwd_that_leads_out_or_is_no_file_is_not_followed() {
    let canary = Canary::new();
    let text = "FROM scratch AS base
COPY etc /etc
FROM base
COPY --chown=somebody f /f
";
    let build = Build::new(text).file("f", "x\n");
    fs::create_dir(build.context().join("etc")).unwrap();
    symlink(canary.path(), build.context().join("etc/passwd")).unwrap();
    let tree = build.run().success().tree();
    assert_eq!(tree.get("f").uid, 0);
    fs::remove_file(build.context().join("etc/passwd")).unwrap();
    fs::create_dir(build.context().join("etc/passwd")).unwrap();
    build.run().failure(3, &["Dockerfile:4"]);
    canary.assert_untouched();
}

/// C94
#[test]
fn modes_are_twelve_bits_and_no_more() {
    let tree = Build::new("FROM scratch\nCOPY --chmod=7777 f /d/f\n")
        .file("f", "x\n")
        .run()
        .success()
        .tree();
    assert_eq!(tree.get("d/f").mode, 0o7777);
    for mode in ["17777", "8", "-1", "u+q"] {
        let text = format!("FROM scratch\nCOPY --chmod={mode} f /f\n");
        Build::new(text).file("f", "x\n").run().failure(3, &["Dockerfile:2"]);
    }
}

/// C96
#[test]
fn only_http_is_fetched() {
    for url in ["file:///etc/passwd", "gopher://localhost/x", "ftp://localhost/x"] {
        Build::new(format!("FROM scratch\nADD {url} /x\n")).run().failure(3, &["Dockerfile:2"]);
    }
}

/// C97
#[test]
fn git_references_carry_no_options() {
    for source in ["https://127.0.0.1:1/r.git#--upload-pack=touch", "https://127.0.0.1:1/r.git#-x"]
    {
        let outcome = Build::new(format!("FROM scratch\nADD {source} /x\n")).run();
        assert_eq!(outcome.code(), Some(3), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("Dockerfile:2"), "{}", outcome.stderr);
    }
}

/// C98
#[test]
fn parents_and_excludes_do_not_climb() {
    let canary = Canary::new();
    let build = Build::new(
        "FROM scratch\nCOPY --parents ../../../d/f /p/\nCOPY --exclude=../d d /e/\nCOPY --link d /e\n",
    )
    .file("d/f", "x\n");
    let outcome = build.run();
    assert!(matches!(outcome.code(), Some(0 | 3)), "{}", outcome.stderr);
    assert_bounded(&outcome);
    canary.assert_untouched();
}
