//! HOSTILE.md, family D: Dockerfiles that want to hurt.

use std::time::Instant;

use super::assert_bounded;
use crate::support::Build;

const SECONDS_MAX: u64 = 60;

#[track_caller]
fn refused(text: impl AsRef<str>, words: &[&str]) {
    let started = Instant::now();
    let outcome = Build::new(text).run().failure(3, words);
    assert_bounded(&outcome);
    assert!(started.elapsed().as_secs() < SECONDS_MAX, "{:?}", started.elapsed());
}

/// D82
#[test]
fn enormous_files_lines_and_counts_end_in_an_error() {
    refused(format!("FROM scratch\n#{}\n", "x".repeat(17 << 20)), &["Dockerfile"]);
    refused(format!("FROM scratch\nLABEL a={}\n", "x".repeat(70_000)), &["Dockerfile:2"]);
    refused("FROM scratch\n".repeat(100_000), &["Dockerfile"]);
    refused(format!("FROM scratch\nLABEL a=b{}", "\\\n c".repeat(1_000_000)), &["Dockerfile"]);
}

/// D82
#[test]
fn encodings_and_line_ends_are_known_or_refused() {
    Build::new("\u{feff}FROM scratch\r\nLABEL a=b\r\nLABEL c=d").run().success();
    refused("FROM scratch\nLABEL a=b\0c\n", &["Dockerfile:2"]);
    let build = Build::new("FROM scratch\n");
    let wide: Vec<u8> = "FROM scratch\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    build.file("Dockerfile", wide).run().failure(3, &["Dockerfile"]);
}

/// D84
#[test]
fn expansion_bombs_are_bounded() {
    let doubling = "ARG A=$A$A$A$A$A$A$A$A\n".repeat(60);
    refused(format!("FROM scratch\nARG A=0123456789\n{doubling}"), &["Dockerfile"]);
    let nested = format!("{}x{}", "${A:-".repeat(10_000), "}".repeat(10_000));
    refused(format!("FROM scratch\nLABEL a={nested}\n"), &["Dockerfile:2"]);
    let stars = "*a".repeat(2_000);
    let value = "a".repeat(30_000);
    let outcome =
        Build::new(format!("FROM scratch\nARG A={value}\nLABEL a=${{A##{stars}b}}\n")).run();
    assert!(matches!(outcome.code(), Some(0 | 3)), "{}", outcome.stderr);
    assert_bounded(&outcome);
}

/// D85
#[test]
fn frontends_are_the_known_one_or_refused() {
    Build::new("# syntax=docker/dockerfile:1\nFROM scratch\nLABEL a=b\n").run().success();
    refused("# syntax=evil.test/frontend:1\nFROM scratch\n", &["Dockerfile:1"]);
    refused("# escape=\\\n# escape=`\nFROM scratch\n", &["Dockerfile:2"]);
}

/// D86
#[test]
fn a_line_break_in_an_argument_makes_no_instruction() {
    let injected = "A=scratch\nRUN touch /injected\nLABEL injected=yes";
    let outcome = Build::new("ARG A\nFROM scratch\nARG A\nLABEL a=$A\nUSER $A\n")
        .build_arg(injected)
        .run()
        .success();
    let config = &outcome.layout().config["config"];
    assert_eq!(config["Labels"]["injected"], serde_json::Value::Null);
    assert_eq!(config["Labels"]["a"], &injected[2..]);
    Build::new("ARG A\nFROM $A\n").build_arg(injected).run().failure(3, &["Dockerfile:2"]);
}

/// D88
#[test]
fn almost_json_is_the_shells() {
    let outcome =
        Build::new("FROM {busybox}\nCMD ['echo', \"x\"]\nENTRYPOINT [“echo”]\n").run().success();
    let config = &outcome.layout().config["config"];
    assert_eq!(config["Cmd"][0], "/bin/sh");
    assert_eq!(config["Entrypoint"][2], "[“echo”]");
}
