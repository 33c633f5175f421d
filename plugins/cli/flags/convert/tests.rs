use std::ffi::OsString;

use bareboat_core::request::{Compression, ContextSource, Output};

use super::*;
use crate::flags::{parse, table::FLAGS};

fn environment() -> Environment {
    let variables = [("HOME", "/h"), ("FROM_ENV", "v"), ("TERM", "xterm")];
    Environment {
        variables: variables.map(|(name, value)| (name.into(), value.into())).into(),
        cpus: 3,
        ..Environment::default()
    }
}

fn converted(arguments: &[&str]) -> Result<Invocation, Error> {
    let line = ["bareboat"].iter().chain(arguments).map(OsString::from);
    convert(parse(line).unwrap(), &environment())
}

fn build_of(arguments: &[&str]) -> Build {
    match converted(arguments).unwrap().task {
        Task::Build(build) => *build,
        other => panic!("{other:?}"),
    }
}

const ROLE: &str = "arn:aws:iam::123456789012:role/x";

/// A value that each flag takes.
fn sample(name: &str) -> &'static str {
    match name {
        "platform" => "linux/amd64",
        "secret" => "id=HOME",
        "network" => "none",
        "allow" => "network.host",
        "add-host" => "a:1.2.3.4",
        "ulimit" => "nofile=1",
        "shm-size" => "1m",
        "sandbox" => "overlay",
        "output" => "type=oci,dest=x",
        "jobs" => "2",
        "progress" => "plain",
        "build-context" => "a=/",
        "ssh" => "a=/dev/null",
        "no-cache-filter" | "file" | "target" | "tag" | "metadata-file" | "iidfile" | "ca-file"
        | "state-dir" => "x",
        "create-repository" => "mutability=immutable",
        "aws-role-arn" => ROLE,
        "aws-registry-role" => "h=arn:aws:iam::123456789012:role/x",
        "ecr-registry" => "h=us-east-1",
        "insecure-registry" | "skip-tls-verify-registry" => "h:1",
        "registry-client-cert" => "h=c,k",
        _ => "a=b",
    }
}

#[test]
fn every_flag_of_check_is_looked_at() {
    for flag in FLAGS.iter().filter(|flag| flag.commands.contains(&Command::Check)) {
        let option = match (flag.name, flag.value.is_empty()) {
            ("format", _) => "--format=sarif".to_owned(),
            (name, true) => format!("--{name}"),
            (name, false) => format!("--{name}={}", sample(name)),
        };
        let invocation =
            converted(&["check", &option, "/"]).unwrap_or_else(|error| panic!("{option}: {error}"));
        let Task::Check(check) = invocation.task else { panic!("{option}") };
        assert_eq!(check.format == Format::Sarif, flag.name == "format");
        assert_eq!(invocation.progress, Progress::Plain);
    }
}

#[test]
fn build_with_check_only_checks() {
    let task = |arguments: &[&str]| converted(arguments).unwrap().task;
    let checked = task(&["build", "--check", "-t", "x", "--build-arg", "A=b", "--push", "/"]);
    let Task::Check(check) = checked else { panic!("{checked:?}") };
    assert_eq!(check.format, Format::Human);
    assert_eq!(check.request.build_args["A"], "b");
    assert!(matches!(task(&["build", "--check=false", "/"]), Task::Build(_)));
}

#[test]
fn every_flag_of_the_table_is_looked_at() {
    for flag in FLAGS.iter().filter(|flag| flag.commands.contains(&Command::Build)) {
        let option = match !flag.value.is_empty() {
            true => format!("--{}={}", flag.name, sample(flag.name)),
            false => format!("--{}", flag.name),
        };
        let named = if flag.name == "push" { "--tag=t" } else { "--pull" };
        converted(&["build", &option, named, "/"])
            .unwrap_or_else(|error| panic!("{option}: {error}"));
    }
}

#[test]
fn a_builds_command_line_can_be_planned() {
    for flag in FLAGS.iter().filter(|flag| flag.commands.contains(&Command::Plan)) {
        let option = match (flag.name, flag.value.is_empty()) {
            ("format", _) => "--format=json".to_owned(),
            (name, true) => format!("--{name}"),
            (name, false) => format!("--{name}={}", sample(name)),
        };
        let named = if flag.name == "push" { "--tag=t" } else { "--pull" };
        let invocation = converted(&["plan", &option, named, "/"])
            .unwrap_or_else(|error| panic!("{option}: {error}"));
        let Task::Plan(plan) = invocation.task else { panic!("{option}") };
        assert_eq!(plan.format == crate::plan::Format::Json, flag.name == "format");
        assert_eq!(plan.base_configs.len(), usize::from(flag.name == "base-config"));
    }
    for flag in FLAGS.iter().filter(|flag| flag.commands.contains(&Command::Build)) {
        let other_task = matches!(flag.name, "check" | "preflight-only");
        assert!(other_task || flag.commands.contains(&Command::Plan), "{}", flag.name);
    }
    for bad in ["--format=sarif", "--base-config=x", "--base-config==f", "--base-config=x="] {
        assert_eq!(converted(&["plan", bad, "/"]).unwrap_err().class(), Class::Usage, "{bad}");
    }
}

#[test]
fn every_flag_of_the_transfers_is_looked_at() {
    for (command, words) in [
        (Command::Push, &["push", "layout", "r.test/a"][..]),
        (Command::Copy, &["copy", "r.test/a", "oci:x"]),
        (Command::Join, &["join", "r.test/a", "r.test/b"]),
    ] {
        for flag in FLAGS.iter().filter(|flag| flag.commands.contains(&command)) {
            let option = match flag.value.is_empty() {
                true => format!("--{}", flag.name),
                false => format!("--{}={}", flag.name, sample(flag.name)),
            };
            let line = [words, &[option.as_str()]].concat();
            let invocation = converted(&line).unwrap_or_else(|e| panic!("{option}: {e}"));
            assert!(matches!(invocation.task, Task::Transfer(_)), "{option}");
        }
    }
    let Task::Transfer(transfer) =
        converted(&["join", "r.test/a:v1", "r.test/b", "--annotation", "a=b"]).unwrap().task
    else {
        panic!("no transfer")
    };
    let TransferRequest::Join(join) = transfer.what else { panic!("no join") };
    assert_eq!(join.annotations.0[0].level, Level::Index);
    assert_eq!(join.destination.tag(), Some("v1"));
}

#[test]
fn a_plain_build_has_the_defaults() {
    let build = build_of(&["build", "/"]);
    let request = build.request;
    assert_eq!(request.context, Some(ContextSource::Directory("/".into())));
    assert_eq!(request.dockerfile, None);
    assert_eq!(request.state_directory, PathBuf::from("/h/.local/share/bareboat"));
    assert_eq!(request.jobs, 3);
    assert_eq!(request.compression, Compression::default());
    assert_eq!(request.no_cache, NoCache::Use);
    assert!(request.outputs.is_empty() && request.platforms.is_empty() && !request.pull);
    let first = &build.registry.credentials.files[0];
    assert_eq!(
        (first.path.as_path(), first.named_by),
        (std::path::Path::new("/h/.docker/config.json"), None)
    );
    assert!(!build.stdout_taken);
}

#[test]
fn everything_lands_in_its_field() {
    let line = "build -f D -t a -t b --target s --build-arg FROM_ENV --build-arg K=V --label l=1 --annotation n=2 \
                --no-cache-filter s,t --platform linux/arm64 --pull --push -o type=oci,dest=- --network none \
                --add-host h=::1 --ulimit core=1 --ulimit core=2 --shm-size 1k --secret id=FROM_ENV \
                --sandbox overlay --insecure-registry r:5 --state-dir /s --jobs 9 --ca-file c \
                --registry-mirror m.test/p/ --registry-mirror R:5=http://m:6 --registry-certificate R=c.pem \
                --registry-client-cert r=c,k --skip-tls-verify-registry R:7 /";
    let build = build_of(&line.split_whitespace().collect::<Vec<_>>());
    let request = build.request;
    assert_eq!(request.dockerfile, Some("D".into()));
    assert_eq!(request.tags, ["a", "b"]);
    assert_eq!(request.target.as_deref(), Some("s"));
    assert_eq!(request.build_args["FROM_ENV"], "v");
    assert_eq!(request.labels["l"], "1");
    assert_eq!(request.image.annotations.0[0].key, "n");
    assert_eq!(request.no_cache, NoCache::Stages(vec!["s".into(), "t".into()]));
    assert_eq!(request.platforms[0].to_string(), "linux/arm64");
    assert!(request.pull);
    let push = Output::Registry { names: vec![], by_digest: false, canonical: false };
    assert_eq!(request.outputs, [Output::OciTar("-".into()), push]);
    assert_eq!(request.network.as_deref(), Some("none"));
    assert_eq!(request.add_hosts, [("h".to_owned(), "::1".to_owned())]);
    assert_eq!(request.ulimits, [("core".to_owned(), 2, 2)]);
    assert_eq!(request.shm_bytes, Some(1024));
    assert!(request.secrets.contains_key("FROM_ENV"));
    assert_eq!(request.sandbox, SandboxChoice::Overlay);
    assert_eq!((request.state_directory, request.jobs), ("/s".into(), 9));
    assert_eq!(build.registry.insecure, ["r:5"]);
    assert_eq!(build.registry.ca_files, [PathBuf::from("c")]);
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(build.registry.mirrors, [pair("docker.io", "m.test/p"), pair("r:5", "http://m:6")]);
    assert_eq!(build.registry.certificates, [("r".to_owned(), PathBuf::from("c.pem"))]);
    let client = ("r".to_owned(), PathBuf::from("c"), PathBuf::from("k"));
    assert_eq!(build.registry.client_certificates, [client]);
    assert_eq!(build.registry.unverified, ["r:7"]);
    assert!(build.stdout_taken);
}

#[test]
fn faults_have_the_exit_code_of_their_class() {
    for (arguments, code) in [
        (&["build", "--no-cache", "--no-cache-filter", "a", "/"][..], 2),
        (&["build", "--push", "/"], 2),
        (&["build", "--jobs", "0", "/"], 2),
        (&["build", "--registry-mirror", "a=b/../c", "/"], 2),
        (&["build", "--registry-mirror", "a=", "/"], 2),
        (&["build", "--registry-mirror", "a=b/C", "/"], 2),
        (&["build", "--registry-certificate", "a", "/"], 2),
        (&["build", "--registry-client-cert", "a=b", "/"], 2),
        (&["build", "--skip-tls-verify-registry", "https://a", "/"], 2),
        (&["build", "--progress", "tty", "/"], 2),
        (&["build", "/nonexistent"], 3),
    ] {
        assert_eq!(converted(arguments).unwrap_err().class().exit_code(), code, "{arguments:?}");
    }
}

#[test]
fn empty_values_count_as_not_given() {
    let request = build_of(&["build", "--target", "", "-f", "", "--platform", "", "/"]).request;
    assert_eq!((request.target, request.dockerfile), (None, None));
    assert!(request.platforms.is_empty());
}

#[test]
fn cache_commands_have_a_state_directory() {
    let task = converted(&["cache", "prune", "--state-dir", "/s"]).unwrap().task;
    assert!(
        matches!(task, Task::CachePrune { state_directory } if state_directory.as_os_str() == "/s")
    );
}

#[test]
fn the_progress_is_chosen_once() {
    let chosen = |terminal: bool, variables: &[(&str, &str)]| {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        let environment =
            Environment { stderr_is_terminal: terminal, variables, ..Environment::default() };
        progress(None, &environment).unwrap()
    };
    assert_eq!(chosen(true, &[("TERM", "xterm")]), Progress::Tty);
    assert_eq!(chosen(false, &[("TERM", "xterm")]), Progress::Plain);
    assert_eq!(chosen(true, &[("TERM", "dumb")]), Progress::Plain);
    assert_eq!(chosen(true, &[]), Progress::Plain);
    assert_eq!(chosen(true, &[("TERM", "xterm"), ("CI", "true")]), Progress::Plain);
    assert_eq!(chosen(true, &[("TERM", "xterm"), ("CI", "false")]), Progress::Tty);
}
