//! Builds that are killed, stopped, or share a state directory.

mod transfers;

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{Build, Gate, build::Running, peers, process, store};

/// A build whose second step waits at the gate, with a stubborn process tree. `marker` is in its processes' arguments.
fn waiting_build(gate: &Gate, marker: &str) -> Build {
    let wait = gate.pass();
    Build::new(format!(
        "FROM {{busybox}}
RUN echo first > /first
RUN trap '' TERM INT HUP; (setsid sh -c 'trap \"\" TERM INT HUP; while sleep 1; do : {marker}; done' &) ; {wait}
RUN cat /first /passed > /last
"
    ))
    .timeout(120)
}

fn started(build: &Build, gate: &Gate, marker: &str) -> Running {
    let running = build.spawn();
    gate.wait_for_visitors(1);
    assert!(!process::with_argument(marker).is_empty(), "the step's processes can be seen");
    running
}

#[track_caller]
fn assert_step_is_gone(marker: &str) {
    process::wait_until(20, "the step's processes end", || {
        process::with_argument(marker).is_empty()
    });
}

fn marker() -> String {
    format!("marker-{}", peers::unique())
}

#[test]
fn a_build_killed_in_a_step_leaves_the_next_one_a_sound_store() {
    let (gate, marker) = (Gate::closed(), marker());
    let build = waiting_build(&gate, &marker);
    let running = started(&build, &gate, &marker);
    running.signal(Signal::KILL);
    assert_eq!(running.wait().code(), None);
    assert_step_is_gone(&marker);
    let mounts = process::mounts_below(build.state_directory());
    assert!(mounts.is_empty(), "still mounted:\n{}", mounts.join("\n"));
    store::assert_verifies(build.state_directory());
    gate.open();
    let outcome = build.run().success();
    assert_eq!(outcome.text_of("last"), "first\nopen\n");
    assert!(
        !outcome.executed().contains(&2),
        "the step before was finished and cached: {:?}",
        outcome.steps()
    );
    store::assert_verifies(build.state_directory());
    store::assert_clean(build.state_directory());
}

#[test]
fn a_build_killed_with_its_whole_group_leaves_nothing_running() {
    let (gate, marker) = (Gate::closed(), marker());
    let build = waiting_build(&gate, &marker);
    let running = started(&build, &gate, &marker);
    peers::run("kill", ["-KILL", "--", &format!("-{}", running.pid())]);
    running.wait();
    assert_step_is_gone(&marker);
    gate.open();
    build.run().success();
    store::assert_clean(build.state_directory());
}

fn assert_signal_ends_the_build(signal: Signal, code: i32) {
    let (gate, marker) = (Gate::closed(), marker());
    let build = waiting_build(&gate, &marker);
    let running = started(&build, &gate, &marker);
    running.signal(signal);
    running.wait().failure(code, &[]);
    assert!(
        process::with_argument(&marker).is_empty(),
        "the process tree is gone when the builder is"
    );
    store::assert_clean(build.state_directory());
    store::assert_verifies(build.state_directory());
    gate.open();
    build.run().success();
}

#[test]
fn sigterm_ends_the_build_with_143() {
    assert_signal_ends_the_build(Signal::TERM, 143);
}

#[test]
fn sigint_ends_the_build_with_130() {
    assert_signal_ends_the_build(Signal::INT, 130);
}

#[test]
fn a_second_signal_does_not_wait() {
    let (gate, marker) = (Gate::closed(), marker());
    let build = waiting_build(&gate, &marker);
    let running = started(&build, &gate, &marker);
    let began = Instant::now();
    running.signal(Signal::INT);
    std::thread::sleep(Duration::from_millis(300));
    running.signal(Signal::INT);
    running.wait().failure(130, &[]);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(process::with_argument(&marker).is_empty());
    store::assert_clean(build.state_directory());
}

/// Killed at moments spread over the whole build, from the pull to the export.
#[test]
fn a_build_killed_anywhere_can_be_repeated() {
    let build = Build::new(
        "FROM {busybox}\nRUN seq 20000 > /numbers\nCOPY data /data\nRUN sha256sum /data > /sum\n",
    )
    .file("data", vec![7; 3 << 20]);
    let began = Instant::now();
    let digest_of = |outcome: &crate::support::Outcome| outcome.text_of("sum");
    let expected = digest_of(&build.run().success());
    let whole = began.elapsed();
    for part in 0..12 {
        let state = build.scratch().join(format!("state-{part}"));
        let again = Build::new("FROM {busybox}\nRUN seq 20000 > /numbers\nCOPY data /data\nRUN sha256sum /data > /sum\n")
            .file("data", vec![7; 3 << 20])
            .state(&state);
        let running = again.spawn();
        std::thread::sleep(whole * part / 12);
        running.signal(Signal::KILL);
        running.wait();
        assert_eq!(digest_of(&again.run().success()), expected, "after a kill at {part}/12");
        process::wait_until(10, "nothing is mounted", || process::mounts_below(&state).is_empty());
        store::assert_verifies(&state);
    }
}

#[test]
fn two_builds_at_once_on_one_state_directory() {
    let gate = Gate::closed();
    let dockerfile = |name: &str| {
        format!(
            "FROM {{busybox}}\nRUN echo shared > /shared\nRUN {} && echo {name} > /name\nCOPY file /\n",
            gate.pass()
        )
    };
    let one = Build::new(dockerfile("one")).file("file", "1");
    let two = Build::new(dockerfile("two")).file("file", "2").state(one.state_directory());
    let twin = Build::new(dockerfile("one")).file("file", "1").state(one.state_directory());
    let running = [one.spawn(), two.spawn(), twin.spawn()];
    gate.wait_for_visitors(2);
    gate.open();
    let [one_outcome, two_outcome, twin_outcome] = running.map(|running| running.wait().success());
    for (outcome, name, file) in
        [(&one_outcome, "one\n", "1"), (&two_outcome, "two\n", "2"), (&twin_outcome, "one\n", "1")]
    {
        assert_eq!(outcome.text_of("name"), name);
        assert_eq!(outcome.text_of("file"), file);
        assert_eq!(outcome.text_of("shared"), "shared\n");
    }
    store::assert_verifies(one.state_directory());
    store::assert_clean(one.state_directory());
    assert_eq!(one.run().success().executed(), [0u64; 0]);
}

#[test]
fn a_damaged_blob_is_not_used() {
    let build = Build::new("FROM {busybox}\nRUN echo made > /made\nRUN cat /made > /again\n");
    let first = build.run().success();
    let mut flipped = 0;
    for descriptor in first.layout().layer_descriptors() {
        flipped += flip(build.state_directory(), descriptor["digest"].as_str().unwrap());
    }
    assert!(flipped > 0, "the store has the layers");
    let outcome = build.run();
    if outcome.code() == Some(0) {
        assert_eq!(outcome.text_of("again"), "made\n");
    }
    assert!(!outcome.stderr.contains("panicked at"), "{}", outcome.stderr);
}

/// Changes the last byte of a blob in the store.
fn flip(state: &std::path::Path, digest: &str) -> usize {
    let hex = digest.rsplit(':').next().unwrap();
    let found = peers::run("find", [state.join("blobs").to_str().unwrap(), "-name", hex]);
    for path in found.lines() {
        let mut bytes = std::fs::read(path).unwrap();
        *bytes.last_mut().unwrap() ^= 0xff;
        std::fs::write(path, bytes).unwrap();
    }
    found.lines().count()
}
