//! Every class of failure has its exit code, names its place and says what to do.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    process::Command,
};

use crate::support::{
    Build, Peers,
    build::{bareboat, binary},
};

fn invoke(arguments: &[&str]) -> (Option<i32>, String) {
    let output = bareboat().args(arguments).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn unknown_flags_and_wrong_values_are_usage() {
    for arguments in [
        &["build", "--no-such-flag", "."][..],
        &["build"],
        &["build", "--progress", "loud", "."],
        &["build", "--platform", "not/a/platform/at/all", "."],
        &["build", "-o", "type=carrier-pigeon,dest=x", "."],
        &["build", "-o", "type=oci", "-o", "type=oci,dest=x,colour=red", "."],
        &["build", "--jobs", "0", "."],
        &["no-such-command"],
    ] {
        let (code, stderr) = invoke(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {stderr}");
        assert!(!stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_flag_near_a_known_one_is_explained() {
    let (code, stderr) = invoke(&["build", "--taget", "x", "."]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("--target"), "{stderr}");
}

#[test]
fn a_missing_context_or_dockerfile_is_input() {
    let (code, stderr) = invoke(&["build", "/no/such/context"]);
    assert_eq!(code, Some(3), "{stderr}");
    assert!(stderr.contains("/no/such/context"), "{stderr}");
    let build = Build::new("");
    fs::remove_file(build.context().join("Dockerfile")).unwrap();
    build.run().failure(3, &["Dockerfile"]);
}

#[test]
fn a_wrong_dockerfile_is_shown_with_line_and_caret() {
    let outcome = Build::new("FROM scratch\nCOPY Dockerfile /\nRUNN true\n")
        .run()
        .failure(3, &["Dockerfile:3", "RUNN true"]);
    assert!(outcome.stderr.contains('^'), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("RUN"), "it names what was meant: {}", outcome.stderr);
}

#[test]
fn an_empty_dockerfile_and_an_unknown_stage_are_input() {
    Build::new("# nothing\n").run().failure(3, &["Dockerfile"]);
    Build::new("FROM scratch AS one\nCOPY Dockerfile /\n")
        .args(["--target", "two"])
        .run()
        .failure(3, &["two"]);
}

#[test]
fn a_missing_source_file_is_input() {
    Build::new("FROM scratch\n\nCOPY nothing-here /\n")
        .run()
        .failure(3, &["Dockerfile:3", "nothing-here"]);
}

#[test]
fn the_dockerfile_is_named_as_the_user_named_it() {
    let build = Build::new("FROM scratch\n");
    let other = build.scratch().join("Other.dockerfile");
    fs::write(&other, "FROM scratch\nCOPY nothing-here /\n").unwrap();
    build.arg("-f").arg(&other).run().failure(3, &["Other.dockerfile:2"]);
}

#[test]
fn a_failing_step_shows_its_line_command_status_and_output() {
    let build =
        Build::new("FROM {busybox}\nRUN true\nRUN echo on stdout; echo on stderr >&2; exit 42\n");
    let outcome =
        build.run().failure(1, &["Dockerfile:3", "exit 42", "42", "on stdout", "on stderr"]);
    let error = &outcome.stderr[outcome
        .stderr
        .rfind("error")
        .unwrap_or_else(|| panic!("no error in {}", outcome.stderr))..];
    assert!(error.contains("42"), "{}", outcome.stderr);
}

#[test]
fn a_step_ended_by_a_signal_names_it() {
    // As PID 1 the step ignores signals that it sends itself; a real fault ends it.
    let outcome = Build::new("FROM scratch\nCOPY --chmod=755 fault /fault\nRUN [\"/fault\"]\n")
        .file("fault", illegal_instruction())
        .run()
        .failure(1, &["Dockerfile:3"]);
    assert!(
        outcome.stderr.contains("SIGILL") && outcome.stderr.contains("signal 4"),
        "{}",
        outcome.stderr
    );
}

/// A static x86_64 program whose one instruction is `ud2`.
fn illegal_instruction() -> Vec<u8> {
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let half = |elf: &mut Vec<u8>, value: u16| elf.extend(value.to_le_bytes());
    let word = |elf: &mut Vec<u8>, value: u32| elf.extend(value.to_le_bytes());
    let long = |elf: &mut Vec<u8>, value: u64| elf.extend(value.to_le_bytes());
    let (address, header, segment) = (0x40_0000u64, 64u16, 56u16);
    [2, 62].iter().for_each(|value| half(&mut elf, *value));
    word(&mut elf, 1);
    [address + 120, header.into(), 0].iter().for_each(|value| long(&mut elf, *value));
    word(&mut elf, 0);
    [header, segment, 1, 64, 0, 0].iter().for_each(|value| half(&mut elf, *value));
    [1, 5].iter().for_each(|value| word(&mut elf, *value));
    [0, address, address, 122, 122, 4096].iter().for_each(|value| long(&mut elf, *value));
    elf.extend([0x0f, 0x0b]);
    elf
}

#[test]
fn a_missing_program_is_a_failing_step() {
    Build::new("FROM {busybox}\nRUN [\"/no/such/program\"]\n")
        .run()
        .failure(1, &["Dockerfile:2", "/no/such/program"]);
    Build::new("FROM scratch\nRUN true\n").run().failure(1, &["Dockerfile:2", "/bin/sh"]);
}

#[test]
fn a_missing_base_is_a_source() {
    let registry = Peers::get().registry;
    Build::new("FROM {registry}/no/such:image\n")
        .run()
        .failure(4, &["Dockerfile:1", &format!("{registry}/no/such:image")]);
    Build::new("FROM 127.0.0.1:1/nothing:listens\n")
        .timeout(120)
        .run()
        .failure(4, &["127.0.0.1:1"]);
    Build::new("FROM {busybox}\nCOPY --from={registry}/no/such:image /a /b\n")
        .run()
        .failure(4, &["Dockerfile:2"]);
}

#[test]
fn a_push_to_nowhere_is_a_push() {
    let build = Build::new("FROM scratch\nCOPY Dockerfile /\n").without_output().timeout(120);
    build.args(["-t", "127.0.0.1:1/nothing:listens", "--push"]).run().failure(5, &["127.0.0.1:1"]);
}

#[test]
fn errors_are_escaped_on_the_way_to_a_terminal() {
    let outcome = Build::new("FROM scratch\nCOPY \"\x1b[31mred\" /\n").run().failure(3, &[]);
    assert!(!outcome.stderr.contains('\x1b'), "{:?}", outcome.stderr);
}

#[test]
fn a_panic_is_never_an_answer() {
    for dockerfile in [
        "FROM",
        "FROM scratch\nENV",
        "\u{feff}FROM scratch\nCOPY <<A <<B /\nA\n",
        "FROM scratch\nRUN --mount=type=\n",
        "FROM ${A:?}\n",
        "ONBUILD",
        "FROM scratch\nCOPY [\"a\" /]\n",
    ] {
        let outcome = Build::new(dockerfile).run();
        assert_eq!(outcome.code(), Some(3), "{dockerfile:?}: {}", outcome.stderr);
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    }
}

/// Without the right to mount a RUN is refused by name, and a build without RUN needs no right at all.
#[test]
fn an_ordinary_user_may_build_without_run() {
    // Where an ordinary user can go, whatever TMPDIR says.
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let context = folder.path().join("context");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("note"), "a note\n").unwrap();
    // The test's own binary may lie where only root can go.
    let program = folder.path().join("bareboat");
    fs::copy(binary(), &program).unwrap();
    for path in [folder.path(), &context] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        chown(path, Some(65534), Some(65534)).unwrap();
    }
    let build = |dockerfile: &str, out: &str| {
        fs::write(context.join("Dockerfile"), Peers::get().expand(dockerfile)).unwrap();
        let out = format!("type=oci,dest={}", folder.path().join(out).display());
        let state = folder.path().join("state");
        let mut command = Command::new(&program);
        command.env_clear().uid(65534).gid(65534).args(["build", "-o", &out, "--state-dir"]);
        command.arg(state).arg(&context).output().unwrap()
    };
    let copied = build("FROM {busybox}\nCOPY --chown=1:2 note /note\nWORKDIR /made\n", "one.tar");
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    // This user has no further ids, and the base's files have several owners.
    let ran = build("FROM {debian}\nRUN true\n", "two.tar");
    let told = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(7), "{told}");
    assert!(told.contains("Dockerfile:2") && told.contains("/etc/subuid"), "{told}");
    assert!(!folder.path().join("two.tar").exists());
}
