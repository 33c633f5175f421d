//! Steps that attack what they are executed in, where the stage's files take the place of the container's own and, for
//! comparison, in the machine's own overlay.

use std::{
    fs,
    time::{Duration, Instant},
};

use super::{
    builds::{EPOCH, Job, Outcome, context_of},
    table,
};
use crate::support::{
    Build,
    places::{Place, RootFiles},
    process::wait_until,
};

/// A container with its root after a first build.
struct Target {
    job: Job,
    root: RootFiles,
}

impl Target {
    fn new() -> Target {
        Target::of(Job::start(&table::DEFAULT))
    }

    fn of(job: Job) -> Target {
        job.build_text("FROM {busybox}\nRUN true\n", &[]).success();
        Target { root: job.root_files(), job }
    }

    fn build(&self, dockerfile: &str, options: &[&str]) -> Outcome {
        let outcome = self.job.build_text(dockerfile, options);
        self.assert_whole();
        outcome
    }

    /// The container's root is its own, and nothing but its first process is alive.
    #[track_caller]
    fn assert_whole(&self) {
        let container = self.job.container();
        wait_until(20, "the step's processes end", || container.processes().is_empty());
        self.job.root_files().assert_as(&self.root);
    }

    /// The image is the machine's own.
    #[track_caller]
    fn assert_same(&self, dockerfile: &str, options: &[&str]) -> Outcome {
        let outcome = self.build(dockerfile, options).success();
        assert_equal(&outcome, &on_host(dockerfile, options).success());
        outcome
    }
}

fn on_host(dockerfile: &str, options: &[&str]) -> crate::support::build::Outcome {
    let build = Build::new("").stdin(&context_of(dockerfile)).env("SOURCE_DATE_EPOCH", EPOCH);
    build.args(options).run()
}

#[track_caller]
fn assert_equal(outcome: &Outcome, host: &crate::support::build::Outcome) {
    let differences = outcome.layout().tree().differences(&host.tree(), |_| false);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert_eq!(outcome.digest(), host.digest());
}

/// A stage whose files lie in the state directory while the step of another one does `wild`.
fn beside_another_stage(wild: &str) -> String {
    format!(
        "FROM {{busybox}} AS calm
RUN mkdir /kept && echo calm > /kept/file && chown 7:7 /kept/file && chmod 4755 /kept/file
FROM {{busybox}} AS wild
COPY --from=calm /kept/file /seen
RUN {wild}; echo done > /mark
FROM calm
COPY --from=wild /mark /mark
RUN stat -c '%n %a %u %g' /kept /kept/file /bin/busybox > /stat
"
    )
}

#[track_caller]
fn assert_beside_another_stage(wild: &str) {
    let job = Target::new().job;
    let dockerfile = beside_another_stage(wild);
    let outcome = job.build_text(&dockerfile, &[]).success();
    assert_eq!(outcome.sandbox().as_deref(), Some("swap"));
    assert_equal(&outcome, &on_host(&dockerfile, &[]).success());
    for word in ["changed files of another stage", "changed files in the state directory"] {
        assert!(outcome.log().contains(word), "no {word:?} in {}", outcome.log());
    }
    let options = ["--target", "wild"];
    let outcome = job.build_text(&dockerfile, &options).success();
    assert_equal(&outcome, &on_host(&dockerfile, &options).success());
    // What such a command has done to the container's own files stays; but each is there.
    job.build_text("FROM {busybox}\nRUN echo next > /next\n", &[]).success();
}

#[test]
fn modes_of_everything() {
    assert_beside_another_stage("find / -xdev -type f -exec chmod a-s {} + 2> /dev/null");
}

#[test]
fn owners_of_everything() {
    assert_beside_another_stage("chown -R 65534:65534 / 2> /dev/null");
}

#[test]
fn new_files_everywhere() {
    assert_beside_another_stage("find / -xdev -type d -exec touch {}/planted \\; 2> /dev/null");
}

#[test]
fn removal_of_everything_is_told() {
    let dockerfile = "FROM {busybox}\nRUN rm -rf / 2> /dev/null; exit 0\n";
    on_host(dockerfile, &[]).success();
    let job = Job::start(&table::DEFAULT);
    job.build_text("FROM {busybox}\nRUN true\n", &[]).success();
    let began = Instant::now();
    let outcome = job.build_text(dockerfile, &[]);
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert!(!outcome.log().contains("panicked"), "{}", outcome.log());
    assert!(job.container().processes().is_empty());
    assert!(outcome.log().contains("files of this container itself"), "{}", outcome.log());
}

#[test]
fn forks_without_end() {
    let place = Place { pids: Some(200), ..table::DEFAULT.place };
    let target = Target::of(Job::start(&table::Row { place, ..table::DEFAULT }));
    let dockerfile = "FROM {busybox}\nRUN f() { f | f & }; f; sleep 3; exit 9\n";
    let began = Instant::now();
    let outcome = target.build(dockerfile, &[]);
    outcome.failure(1, &["RUN"]);
    assert!(began.elapsed() < Duration::from_secs(90), "{:?}", began.elapsed());
    target.build("FROM {busybox}\nRUN echo next > /next\n", &[]).success();
}

#[test]
fn daemons_that_ignore_signals() {
    let daemon = "(trap '' TERM HUP INT QUIT; setsid sh -c 'trap \"\" TERM HUP INT; while :; do sleep 1; done' > /dev/null 2>&1 &)";
    let many = [daemon; 8].join("; ");
    Target::new().assert_same(&format!("FROM {{busybox}}\nRUN {many}; echo made > /made\n"), &[]);
}

/// The step is of the builder's own user. When it kills both, the next build restores the root.
#[test]
fn a_step_that_kills_all_it_can() {
    let target = Target::new();
    let outcome = target.job.build_text("FROM {busybox}\nRUN kill -9 -1; sleep 20\n", &[]);
    assert!(!outcome.log().contains("panicked"), "{}", outcome.log());
    target.job.repair();
    target.assert_whole();
    let dockerfile = "FROM {busybox}\nRUN kill -9 $PPID; sleep 20\n";
    let outcome = target.build(dockerfile, &[]);
    assert!(!outcome.log().contains("panicked"), "{}", outcome.log());
    target.assert_same("FROM {busybox}\nRUN echo next > /next\n", &[]);
}

#[test]
fn long_output_takes_no_memory() {
    let line = "head -c 300000000 /dev/zero | tr '\\\\0' x";
    let log = "yes 'a line of the log' | head -c 100000000";
    let dockerfile = format!("FROM {{busybox}}\nRUN {line}\nRUN {log}\n");
    let target = Target::new();
    let outcome = target.build(&dockerfile, &["--progress", "quiet"]).success();
    assert!(outcome.log().len() < 1 << 20);
    let host = on_host(&dockerfile, &["--progress", "quiet"]).success();
    assert!(host.peak_bytes < 150 << 20, "{}", host.peak_bytes);
}

#[test]
fn commands_and_escapes_in_the_output() {
    let words = "printf '::add-mask::x\\n##[group]y\\n\\033[2J\\033]0;title\\007\\r::set-output name=a::b\\n'";
    let target = Target::new();
    let dockerfile = format!("FROM {{busybox}}\nRUN {words}; {words} >&2; exit 3\n");
    let outcome = target.build(&dockerfile, &["--progress", "plain"]);
    outcome.failure(1, &["add-mask"]);
    assert!(!outcome.log().contains('\x1b') && !outcome.log().contains('\x07'));
    let bad = |line: &str| line.starts_with("::") || line.starts_with("##[");
    assert!(!outcome.log().split(['\n', '\r']).any(bad), "{}", outcome.log());
}

/// What processes of others have, the builder, its keeper and the container's first process, is refused. The step lists
/// what it could read.
#[test]
fn other_processes_keep_their_secrets() {
    let target = Target::new();
    let dockerfile = "FROM {busybox}
RUN for p in /proc/[0-9]*; do \
      case $p in /proc/$$) continue;; esac; \
      for f in environ mem maps auxv fd/0; do head -c 1 $p/$f > /dev/null 2>&1 && case $(readlink $p/exe) in /bin/busybox) ;; *) echo $p/$f;; esac; done; \
    done > /read; head -c 1 /proc/1/environ > /dev/null 2>> /first; head -c 1 /proc/1/fd/0 2>> /first; ls /proc/1/root/ 2>> /first; \
    head -c 1 /proc/$PPID/environ 2>> /keeper; head -c 1 /proc/$PPID/mem 2>> /keeper; head -c 1 /proc/$PPID/fd/0 2>> /keeper; true
";
    let outcome = target.build(dockerfile, &[]).success();
    let layout = outcome.layout();
    let text = |name| String::from_utf8(layout.content(name)).unwrap();
    assert_eq!(text("read"), "");
    for name in ["first", "keeper"] {
        assert_eq!(text(name).lines().count(), 3, "{}", text(name));
        assert!(text(name).lines().all(|line| line.contains("denied")), "{}", text(name));
    }
}

#[test]
fn programs_and_databases_replaced_between_steps() {
    let target = Target::new();
    let dockerfile = "FROM {debian}
RUN cp /bin/bash /kept && printf '#!/kept\\necho replaced >> /ran; exec /kept \"$@\"\\n' > /new && chmod 755 /new && mv /new /bin/sh
RUN echo second > /second
RUN rm -f /etc/resolv.conf 2> /dev/null; echo 'x:x:0:0::/:/bin/sh' > /etc/passwd; ln -sf /etc/passwd /etc/group
USER x
RUN id -u > /tmp/id
USER 0
RUN echo 'root:x:77:77::/:/bin/sh' > /etc/passwd && rm -f /etc/nsswitch.conf
USER root
RUN /kept -c 'echo $UID > /tmp/uid'
";
    target.assert_same(dockerfile, &[]);
}

#[test]
fn a_loader_that_is_replaced_fails_the_next_step_only() {
    let target = Target::new();
    let dockerfile = "FROM {debian}
RUN cp /bin/true /none && echo broken > $(readlink -f /lib64/ld-linux-x86-64.so.2)
RUN true
";
    target.build(dockerfile, &[]).failure(1, &["RUN true"]);
    target.assert_same("FROM {debian}\nRUN echo next > /next\n", &[]);
}

#[test]
fn mounts_in_each_other() {
    let target = Target::new();
    for mounts in [
        "--mount=type=tmpfs,target=/a --mount=type=cache,target=/a/b",
        "--mount=type=bind,target=/ ",
        "--mount=type=tmpfs,target=/proc",
        "--mount=type=bind,source=../..,target=/x",
    ] {
        let outcome = target
            .build(&format!("FROM {{busybox}}\nRUN {mounts} ls /a /proc/self || true\n"), &[]);
        assert!(!outcome.log().contains("panicked"), "{}", outcome.log());
    }
}

/// A library that the C library would load to look a name up leaves a mark when it does so in any program. The stage
/// with it waits in its step, while another stage pulls from the registry by a name.
#[test]
fn name_services_of_an_image_are_not_loaded() {
    let target = Target::new();
    let loaded = "__attribute__((constructor)) static void mark(void) { char c[4096]; int n = readlink(\"/proc/self/exe\", c, 4095); int f = open(\"/dev/shm/loaded\", O_CREAT|O_WRONLY|O_APPEND, 0666); if (f >= 0 && n > 0) { write(f, c, n); write(f, \"\\n\", 1); close(f); } }";
    let dockerfile = format!(
        "FROM {{debian}} AS hostile
RUN (apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev) > /dev/null
RUN printf '%s\\n' '#include <fcntl.h>' '#include <unistd.h>' '{loaded}' > /m.c \\
 && gcc -shared -fPIC -o /usr/lib/x86_64-linux-gnu/libnss_evil.so.2 /m.c \\
 && for n in files dns compat; do cp /usr/lib/x86_64-linux-gnu/libnss_evil.so.2 /usr/lib/x86_64-linux-gnu/libnss_$n.so.2; done \\
 && printf 'hosts: evil files dns\\npasswd: evil files\\ngroup: evil files\\n' > /etc/nsswitch.conf
RUN getent passwd nobody-at-all; test -s /dev/shm/loaded && : > /dev/shm/loaded; sleep 6; echo waited > /waited
FROM {busybox} AS pulling
COPY --from=hostile /etc/nsswitch.conf /
FROM localhost:{port}/base/debian AS pulled
COPY --from=localhost:{port}/base/busybox /bin/busybox /pulled
FROM {busybox}
COPY --from=hostile /waited /
COPY --from=pulled /pulled /
COPY --from=pulling /nsswitch.conf /
RUN true
",
        busybox = "{busybox}",
        port = crate::support::Peers::get().registry.rsplit(':').next().unwrap(),
    );
    target.build(&dockerfile, &[]).success();
    let marks = fs::read_to_string(target.job.container().path("/dev/shm/loaded")).unwrap();
    assert!(!marks.contains("bareboat"), "{marks}");
}

/// During a step the builder's root is an empty directory, whatever is at the container's.
#[test]
fn the_builder_has_an_empty_root_during_a_step() {
    use crate::support::{Gate, Peers, process};
    let target = Target::new();
    let gate = Gate::closed();
    let reference = Peers::get().fresh_reference("empty");
    let mut command = target.job.command(&reference, &[]);
    let input = target.job.container().volume("context");
    fs::write(&input, context_of(&format!("FROM {{busybox}}\nRUN {}\n", gate.pass()))).unwrap();
    let mut child = command.stdin(fs::File::open(&input).unwrap()).spawn().unwrap();
    gate.wait_for_visitors(1);
    let is_ours = |pid: &u32| process::program(*pid).as_deref() == Some("bareboat");
    let builder = process::descendants(child.id()).into_iter().find(is_ours).unwrap();
    let names = |path: String| fs::read_dir(path).unwrap().count();
    assert_eq!(names(format!("/proc/{builder}/root/")), 0);
    for task in fs::read_dir(format!("/proc/{builder}/task")).unwrap() {
        assert_eq!(names(task.unwrap().path().join("root/").display().to_string()), 0);
    }
    gate.open();
    assert!(child.wait().unwrap().success());
    target.assert_whole();
}
