//! ARCHITECTURE.md's absences that a reader of the sources can check.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The root of the repository.
fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The Rust sources below a folder of the repository without their tests: path and text.
fn sources(folder: &str) -> Vec<(String, String)> {
    let root = repository();
    let mut pending = vec![root.join(folder)];
    let mut found = Vec::new();
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|kind| kind == "rs") && !is_test(&path) {
            let text = fs::read_to_string(&path).unwrap();
            let product = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default().to_owned();
            found.push((path.strip_prefix(&root).unwrap().display().to_string(), product));
        }
    }
    assert!(!found.is_empty(), "no sources in {folder}");
    found
}

fn is_test(path: &Path) -> bool {
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    parts.iter().any(|part| {
        matches!(*part, "tests" | "testing" | "testing.rs" | "tests.rs")
            || part.ends_with("_tests.rs")
    })
}

/// Lines, comments aside, that hold one of the words, but for the given files.
fn lines_with(folder: &str, words: &[&str], but: &[&str]) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, text) in sources(folder) {
        if but.iter().any(|allowed| path.starts_with(allowed)) {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if words.iter().any(|word| code.contains(word)) {
                lines.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    lines
}

#[track_caller]
fn assert_absent(folder: &str, words: &[&str], but: &[&str]) {
    let found = lines_with(folder, words, but);
    assert!(found.is_empty(), "{words:?} in {folder}:\n{}", found.join("\n"));
}

#[test]
fn parsing_and_planning_do_no_io() {
    let io = [
        "std::fs",
        "File::",
        "TcpStream",
        "UdpSocket",
        "ToSocketAddrs",
        "tokio",
        "rustix",
        "reqwest",
        "std::process",
        "async fn",
    ];
    assert_absent("core/src/dockerfile", &io, &[]);
    assert_absent("core/src/plan", &io, &[]);
}

#[test]
fn core_prints_nothing_and_reads_no_environment() {
    assert_absent("core/src", &["println!", "eprintln!", "dbg!"], &[]);
    // The helper looks at its own argv[0].
    let allowed = ["core/src/execute/sandbox"];
    assert_absent(
        "core/src",
        &["env::var", "env::args", "env::vars", "env::current_dir"],
        &allowed,
    );
}

#[test]
fn core_knows_no_ci_vendor() {
    let names = ["GITHUB_", "GITLAB", "CI_JOB", "tekton", "ACTIONS_"];
    assert_absent("core/src", &names, &[]);
}

#[test]
fn unsafe_code_is_in_sys_alone() {
    assert_absent("core/src", &["unsafe "], &["core/src/sys"]);
    assert_absent("plugins", &["unsafe "], &[]);
}

/// Invariant 4: `registry/auth` for registries, `fetch` for what a Dockerfile's own URLs are given.
#[test]
fn authorization_is_made_in_one_place() {
    let allowed = ["core/src/registry/auth", "core/src/fetch"];
    assert_absent("core/src", &["AUTHORIZATION", "\"Authorization\""], &allowed);
    // AWS's own APIs and metadata services are no registries.
    let allowed = ["plugins/ecr/src/oidc.rs", "plugins/ecr/src/metadata.rs"];
    assert_absent("plugins", &["AUTHORIZATION,", "\"Authorization\""], &allowed);
}

/// Paths are opened at the start alone: later they may name something of an image.
#[test]
fn ecr_opens_paths_in_one_place_and_reads_no_environment() {
    assert_absent("plugins/ecr", &["env::var", "env::vars", "Env::real", "Fs::real"], &[]);
    let io = ["std::fs", "fs::read", "File::open", "tokio::fs", "process::Command"];
    assert_absent("plugins/ecr", &io, &["plugins/ecr/src/files.rs"]);
}

#[test]
fn there_is_one_tls_provider_and_one_http_stack() {
    let lock = fs::read_to_string(repository().join("Cargo.lock")).unwrap();
    for name in ["aws-lc-sys", "aws-lc-rs", "openssl-sys", "native-tls"] {
        assert!(!lock.contains(&format!("name = \"{name}\"")), "{name}");
    }
    let versions =
        lock.split("[[package]]").filter(|package| package.contains("name = \"hyper\"\n"));
    assert_eq!(versions.count(), 1);
}

/// libc's resolver loads what an image's nsswitch.conf names into us: `registry::Names` is the only one.
#[test]
fn no_name_is_looked_up_by_libc() {
    assert_absent("core/src", &["lookup_host", "ToSocketAddrs", "getaddrinfo"], &[]);
}

#[test]
fn core_does_not_depend_on_the_shells_crates() {
    let manifest = fs::read_to_string(repository().join("core/Cargo.toml")).unwrap();
    for name in ["clap", "anyhow", "indicatif", "aws-"] {
        assert!(!manifest.lines().any(|line| line.starts_with(name)), "{name}");
    }
}
