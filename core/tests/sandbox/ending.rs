//! Nothing of a step outlives it, its helper or its builder.

use std::process::ExitCode;

use super::bench::*;

/// Processes whose command line holds `mark`.
pub fn processes(mark: &str) -> Vec<String> {
    let numbers = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    numbers
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .filter(|number| *number != std::process::id().to_string())
        .filter(|number| {
            let line = fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(mark)
        })
        .collect()
}

/// Processes that still see a mount at or below a directory.
pub fn mounts(directory: &Path) -> Vec<String> {
    let text = directory.display().to_string();
    let numbers = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    numbers
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .filter(|number| {
            fs::read_to_string(format!("/proc/{number}/mountinfo"))
                .unwrap_or_default()
                .contains(&text)
        })
        .collect()
}

pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub const STUBBORN: &str = "trap '' TERM HUP INT; setsid sleep MARK & (setsid sh -c 'trap \"\" TERM; sleep MARK' &) ; sleep MARK";

pub fn mark(number: u32) -> String {
    // A time to sleep that nobody else sleeps.
    format!("{}{number:02}", std::process::id() as u64 * 100 + 7_000_000_000)
}

pub fn leftover_processes_die() {
    let mark = mark(1);
    let script = STUBBORN.replace("; sleep MARK", "; sleep 0.1; exit 5").replace("MARK", &mark);
    let done = step(&script).run();
    assert_eq!(done.report.exit, StepExit::Code(5));
    assert_eq!(processes(&mark), Vec::<String>::new());
    assert_eq!(mounts(done.directory.path()), Vec::<String>::new());
}

pub fn a_daemon_that_holds_the_output_does_not_hang() {
    let started = Instant::now();
    let done =
        step("(while :; do echo y; done) & (sleep 100; echo late) & sleep 0.2; echo done").run();
    assert_eq!(done.report.exit, StepExit::Code(0));
    assert!(done.stdout.contains("done\n") && done.stdout.contains("y\n"));
    assert!(started.elapsed() < Duration::from_secs(20));
}

/// Waits until the stubborn processes with this mark run.
pub async fn ready(mark: &str) {
    while processes(mark).len() < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn cancel_kills_at_once() {
    let mark = mark(2);
    let step = step(&STUBBORN.replace("MARK", &mark));
    let result = block_on(run(step.spec, |_, _| {}, ready(&mark)));
    assert_eq!(result.err(), Some(SandboxError::Canceled));
    assert_eq!(processes(&mark), Vec::<String>::new());
    assert_eq!(mounts(step.directory.path()), Vec::<String>::new());
}

pub fn a_dropped_future_kills_too() {
    let mark = mark(3);
    let step = step(&STUBBORN.replace("MARK", &mark));
    block_on(async {
        tokio::select! {
            result = run(step.spec, |_, _| {}, std::future::pending()) => panic!("ended: {result:?}"),
            () = ready(&mark) => {}
        }
    });
    assert_eq!(processes(&mark), Vec::<String>::new());
    assert_eq!(mounts(step.directory.path()), Vec::<String>::new());
}

pub fn builder_to_kill(directory: &Path, mark: &str) -> ExitCode {
    let below = |name: &str| {
        let path = directory.join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let mut spec = StepSpec::new(OverlayRoot {
        lowers: vec![directory.join("base")],
        upper: below("upper"),
        work: below("work"),
        scratch: below("scratch"),
    });
    spec.arguments = vec!["/bin/sh".into(), "-c".into(), STUBBORN.replace("MARK", mark).into()];
    spec.environment = vec!["PATH=/bin".into()];
    let result = block_on(run(spec, |_, _| {}, std::future::pending()));
    panic!("the step ended: {result:?}");
}

pub fn a_killed_builder_leaves_nothing() {
    let mark = mark(4);
    let directory = world_readable(tempfile::tempdir().unwrap());
    symlink(base(), directory.path().join("base")).unwrap();
    let mut builder = Command::new(std::env::current_exe().unwrap())
        .arg("builder-to-kill")
        .arg(directory.path())
        .arg(&mark)
        .spawn()
        .unwrap();
    // The builder itself has the mark in its arguments.
    eventually("the step did not start", || processes(&mark).len() >= 4);
    builder.kill().unwrap();
    builder.wait().unwrap();
    let killed = Instant::now();
    eventually("processes left", || processes(&mark).is_empty());
    assert!(killed.elapsed() < Duration::from_secs(2));
    eventually("mounts left", || mounts(directory.path()).is_empty());
    let path = directory.path().to_path_buf();
    drop(directory);
    assert!(!path.exists());
}

pub fn a_killed_helper_takes_the_step_along() {
    let mark = mark(5);
    let step = step(&STUBBORN.replace("MARK", &mark));
    let own = std::process::id();
    let kill = async {
        ready(&mark).await;
        let helpers = processes("bareboat-helper");
        let helper = helpers.iter().find(|pid| is_child_of(pid, own)).expect("a helper");
        assert!(Command::new("kill").args(["-9", helper]).status().unwrap().success());
        std::future::pending().await
    };
    let result = block_on(run(step.spec, |_, _| {}, kill));
    assert!(matches!(result, Err(SandboxError::HelperDied { .. })), "{result:?}");
    eventually("processes left", || processes(&mark).is_empty());
    eventually("mounts left", || mounts(step.directory.path()).is_empty());
}

pub fn is_child_of(pid: &str, parent: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    after_name.split_whitespace().nth(1) == Some(&parent.to_string())
}
