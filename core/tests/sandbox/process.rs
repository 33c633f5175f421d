//! The step's process: exit, output, environment, identity.

use super::{bench::*, namespace::is_in_a_namespace};

pub fn exit_codes_and_signals() {
    assert_eq!(step("exit 0").run().report.exit, StepExit::Code(0));
    assert_eq!(step("exit 7").run().report.exit, StepExit::Code(7));
    assert_eq!(step("sh -c 'kill -9 $$'; exit $?").run().report.exit, StepExit::Code(137));
    // As process 1 a step has no default action for signals from inside, but faults end it.
    assert_eq!(step("ulimit -t 1; while :; do :; done").run().report.exit, StepExit::Signal(9));
    let report = step("exit 0").run().report;
    assert!(report.max_rss_bytes > 100_000 && report.wall_seconds > 0.0);
    assert!(report.wall_seconds < 30.0 && report.cpu_seconds < 30.0);
}

pub fn output_of_both_streams_in_full() {
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; echo end >&2";
    let done = step(script).run();
    assert_eq!(done.stdout.lines().count(), 20000);
    assert!(done.stdout.ends_with("line 19999\n"));
    assert_eq!(done.stderr, "end\n");
}

pub fn the_environment_is_what_was_given() {
    let odd = step("xargs -0 -n1 echo < /proc/1/environ").with(|spec| {
        spec.environment = ["PATH=/bin", "A=1 2", "Ä=ü", "A=3"].map(Into::into).to_vec()
    });
    assert_eq!(odd.says(), "PATH=/bin\nA=1 2\nÄ=ü\nA=3\n");
}

pub fn the_process_is_as_docker_makes_it() {
    let says = step(
        "echo $$; umask; cat | wc -c; test -t 0 || echo no tty; pwd; ls /proc/self/fd | wc -l
         cut -d' ' -f6 /proc/1/stat",
    )
    .with(|spec| spec.working_directory = "/opt".into())
    .says();
    assert_eq!(says, "1\n0022\n0\nno tty\n/opt\n4\n1\n");
    let signals = command(&["grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"]).says();
    assert!(signals.lines().all(|line| line.ends_with("\t0000000000000000")), "{signals}");
}

pub fn capabilities_and_seccomp() {
    let says = step("grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status").says();
    for line in [
        "CapInh:\t0000000000000000",
        "CapPrm:\t00000000a80425fb",
        "CapEff:\t00000000a80425fb",
        "CapBnd:\t00000000a80425fb",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t0",
        "Seccomp:\t2",
    ] {
        assert!(says.contains(line), "{says}");
    }
    let refused = step(
        "mount -t tmpfs t /tmp || echo a; unshare -m true || echo b; chroot / true && echo c; mknod /tmp/n c 1 3 && echo d; true",
    );
    let device = if is_in_a_namespace() { "" } else { "d\n" };
    assert_eq!(refused.says(), format!("a\nb\nc\n{device}"));
}

pub fn a_user_has_no_capabilities_and_owns_its_streams() {
    let says = step("id -u; id -g; id -G; grep -E '^Cap(Prm|Eff|Bnd)' /proc/self/status; echo out > /dev/stdout; echo err > /dev/stderr; touch /x || echo no")
        .with(|spec| {
            spec.user.uid = 1000;
            spec.user.gid = 1001;
            spec.user.groups = vec![1001, 50];
        })
        .says();
    let expected = "1000\n1001\n1001 50\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\nout\nno\n";
    assert_eq!(says, expected);
}
