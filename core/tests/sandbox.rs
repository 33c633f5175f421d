//! Steps that really run, as root, on a root of Debian's static busybox. It has its own `main` because a helper is this
//! program once more.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{Mutex, OnceLock},
    time::{Duration, Instant},
};

use bareboat_core::{
    event::OutputStream,
    execute::sandbox::{
        Discard, MountSource, Probe, SandboxError, StepExit, StepMount, StepNetwork, StepReport,
        StepSpec, Ulimit, helper_main, probe, run,
    },
    sys::seccomp::{Instruction, install_filter},
};
use tempfile::TempDir;

fn main() -> ExitCode {
    helper_main();
    // As a builder with secrets does.
    bareboat_core::sys::process::set_nondumpable().unwrap();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, directory, mark] = arguments.as_slice()
        && mode == "builder-to-kill"
    {
        return builder_to_kill(Path::new(directory), mark);
    }
    if arguments.first().is_some_and(|mode| mode == "behind-a-filter") {
        refuse_newer_calls();
        return run_cases(&arguments[1..]);
    }
    if arguments.iter().any(|argument| argument == "--list") {
        CASES.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    run_cases(&arguments)
}

fn run_cases(arguments: &[String]) -> ExitCode {
    let filters: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let chosen = CASES.iter().filter(|(name, _)| {
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    });
    let mut failed = 0;
    for (name, case) in chosen {
        let result = std::panic::catch_unwind(case);
        println!("test {name} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
        failed += u32::from(result.is_err());
    }
    println!("{failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        const CASES: &[(&str, fn())] = &[$((stringify!($name), $name)),*];
    };
}

cases![
    exit_codes_and_signals,
    output_of_both_streams_in_full,
    the_environment_is_what_was_given,
    the_process_is_as_docker_makes_it,
    capabilities_and_seccomp,
    a_user_has_no_capabilities_and_owns_its_streams,
    proc_is_masked_and_sys_read_only,
    devices,
    host_name_and_network_files,
    no_network_has_only_loopback,
    nothing_is_left_of_mount_points,
    a_bare_base_gets_its_three_directories,
    from_scratch_runs_too,
    the_upper_directory_is_exactly_the_change,
    many_layers,
    times_and_attributes_of_directories_survive,
    hostile_links_stay_inside,
    mounts_of_every_kind,
    mounts_in_mounts,
    mounts_that_are_refused,
    a_bind_source_stays_in_its_root,
    leftover_processes_die,
    a_daemon_that_holds_the_output_does_not_hang,
    cancel_kills_at_once,
    a_dropped_future_kills_too,
    a_killed_builder_leaves_nothing,
    a_killed_helper_takes_the_step_along,
    programs_that_can_not_be_executed,
    magic_links_lead_nowhere,
    limits,
    many_steps_at_once,
    the_state_on_an_overlay_is_refused,
    the_probe_says_yes_here,
    an_older_kernel_behind_dockers_filter_will_do,
];

// ------------------------------------------------------------------------------------------------ the bench

/// A busybox root, made once.
fn base() -> &'static Path {
    static BASE: OnceLock<TempDir> = OnceLock::new();
    BASE.get_or_init(|| {
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
        let busybox = busybox.into_iter().find(|path| path.exists());
        let busybox = busybox.expect("this test needs Debian's package busybox-static");
        let directory = world_readable(tempfile::tempdir().unwrap());
        let root = directory.path();
        for name in ["bin", "etc", "tmp", "root", "dev", "proc", "sys", "opt", "home/app"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::copy(busybox, root.join("bin/busybox")).unwrap();
        let list = Command::new(busybox).arg("--list").output().unwrap().stdout;
        for applet in String::from_utf8(list).unwrap().lines().filter(|name| *name != "busybox") {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
        )
        .unwrap();
        fs::set_permissions(root.join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
        directory
    })
    .path()
}

fn world_readable(directory: TempDir) -> TempDir {
    fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    directory
}

/// The directories of one step.
struct Step {
    directory: TempDir,
    spec: StepSpec,
}

fn step_on(lowers: &[&Path], script: &str) -> Step {
    let directory = world_readable(tempfile::tempdir().unwrap());
    let below = |name: &str| {
        let path = directory.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let mut spec = StepSpec::new(below("upper"), below("work"), below("scratch"));
    spec.lowers = lowers.iter().map(|path| path.to_path_buf()).collect();
    spec.arguments = ["/bin/sh", "-c", script].map(Into::into).to_vec();
    spec.environment = vec!["PATH=/bin".into()];
    spec.resolv_conf = b"nameserver 192.0.2.1\n".to_vec();
    spec.hosts = b"127.0.0.1 localhost buildkitsandbox\n".to_vec();
    Step { directory, spec }
}

fn step(script: &str) -> Step {
    step_on(&[base()], script)
}

struct Done {
    report: StepReport,
    stdout: String,
    stderr: String,
    directory: TempDir,
}

impl Done {
    fn upper(&self) -> PathBuf {
        self.directory.path().join("upper")
    }

    /// Everything in the upper directory, by path.
    fn changes(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        collect(&self.upper(), Path::new(""), &mut found);
        found
    }
}

fn collect(root: &Path, below: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        found.insert(path.display().to_string());
        if entry.file_type().unwrap().is_dir() {
            collect(root, &path, found);
        }
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

impl Step {
    fn try_run(self) -> Result<Done, SandboxError> {
        let outputs = Mutex::new((Vec::new(), Vec::new()));
        let take = |stream, bytes: &[u8]| {
            let mut outputs = outputs.lock().unwrap();
            match stream {
                OutputStream::Stdout => outputs.0.extend_from_slice(bytes),
                OutputStream::Stderr => outputs.1.extend_from_slice(bytes),
            }
        };
        let report = block_on(run(self.spec, take, std::future::pending()))?;
        let (stdout, stderr) = outputs.into_inner().unwrap();
        let (stdout, stderr) =
            (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
        Ok(Done { report, stdout, stderr, directory: self.directory })
    }

    fn run(self) -> Done {
        self.try_run().unwrap()
    }

    /// Runs a script that must succeed, and returns what it said.
    fn says(self) -> String {
        let done = self.run();
        assert_eq!(done.report.exit, StepExit::Code(0), "{}{}", done.stdout, done.stderr);
        done.stdout
    }

    fn with(mut self, change: impl FnOnce(&mut StepSpec)) -> Self {
        change(&mut self.spec);
        self
    }

    fn mount(self, target: &str, source: MountSource) -> Self {
        self.with(|spec| spec.mounts.push(StepMount { target: target.into(), source }))
    }
}

fn file(content: &[u8], mode: u32, uid: u32, gid: u32) -> MountSource {
    MountSource::File { content: content.to_vec(), mode, uid, gid }
}

// ------------------------------------------------------------------------------------------------ the process

fn exit_codes_and_signals() {
    assert_eq!(step("exit 0").run().report.exit, StepExit::Code(0));
    assert_eq!(step("exit 7").run().report.exit, StepExit::Code(7));
    assert_eq!(step("sh -c 'kill -9 $$'; exit $?").run().report.exit, StepExit::Code(137));
    // As process 1 a step has no default action for signals from inside, but faults end it.
    assert_eq!(step("ulimit -t 1; while :; do :; done").run().report.exit, StepExit::Signal(9));
    let report = step("exit 0").run().report;
    assert!(report.max_rss_bytes > 100_000 && report.wall_seconds > 0.0);
    assert!(report.wall_seconds < 30.0 && report.cpu_seconds < 30.0);
}

fn output_of_both_streams_in_full() {
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; echo end >&2";
    let done = step(script).run();
    assert_eq!(done.stdout.lines().count(), 20000);
    assert!(done.stdout.ends_with("line 19999\n"));
    assert_eq!(done.stderr, "end\n");
}

fn the_environment_is_what_was_given() {
    let odd = step("xargs -0 -n1 echo < /proc/1/environ").with(|spec| {
        spec.environment = ["PATH=/bin", "A=1 2", "Ä=ü", "A=3"].map(Into::into).to_vec()
    });
    assert_eq!(odd.says(), "PATH=/bin\nA=1 2\nÄ=ü\nA=3\n");
}

fn the_process_is_as_docker_makes_it() {
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

fn capabilities_and_seccomp() {
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
        "mount -t tmpfs t /tmp || echo a; unshare -m true || echo b; chroot / true && echo c; mknod /tmp/n c 1 3 && echo d",
    );
    assert_eq!(refused.says(), "a\nb\nc\nd\n");
}

fn a_user_has_no_capabilities_and_owns_its_streams() {
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

// ------------------------------------------------------------------------------------------------ the surroundings

fn proc_is_masked_and_sys_read_only() {
    let says = step(
        "head -c 1 /proc/kcore | wc -c; head -c 1 /proc/keys | wc -c; (echo x > /proc/sysrq-trigger) 2>/dev/null || echo refused
         (echo 1 > /proc/sys/kernel/panic) 2>/dev/null || echo refused; mkdir /sys/x 2>/dev/null || echo ro
         ls /sys/firmware | wc -l; ls /proc/scsi 2>/dev/null | wc -l; ls -d /proc/[0-9]* | wc -l",
    )
    .says();
    let lines: Vec<_> = says.lines().collect();
    assert_eq!(lines[..7], ["0", "0", "refused", "refused", "ro", "0", "0"]);
    // The shell, ls and wc: nobody else's processes.
    assert!(lines[7].parse::<u32>().unwrap() <= 3);
}

fn devices() {
    let says = step(
        "echo x > /dev/null; head -c 5 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c; head -c 3 /dev/random | wc -c
         ls -d /dev/full /dev/tty /dev/stdin /dev/fd /dev/shm /dev/pts /dev/ptmx; df -k /dev/shm | tail -1 | awk '{print $2}'
         stat -c %a /dev/shm /dev/null; echo x > /dev/made; cat /dev/fd/0 < /dev/null",
    )
    .with(|spec| spec.shm_bytes = 32 * 1024 * 1024)
    .run();
    let expected = "5\n3\n3\n/dev/fd\n/dev/full\n/dev/ptmx\n/dev/pts\n/dev/shm\n/dev/stdin\n/dev/tty\n32768\n1777\n666\n";
    assert_eq!(says.stdout, expected, "{}", says.stderr);
    assert!(says.changes().is_empty(), "{:?}", says.changes());
    let default = step("df -k /dev/shm | tail -1 | awk '{print $2}'").says();
    assert_eq!(default, "65536\n");
}

fn host_name_and_network_files() {
    let done = step(
        "hostname; cat /etc/resolv.conf; grep -c buildkitsandbox /etc/hosts; (echo x >> /etc/hosts) 2>/dev/null || echo ro
         rm /etc/resolv.conf 2>/dev/null || echo busy; stat -c %a /etc/hosts",
    )
    .run();
    assert_eq!(done.stdout, "buildkitsandbox\nnameserver 192.0.2.1\n1\nro\nbusy\n644\n");
    assert!(done.changes().is_empty(), "{:?}", done.changes());
    assert_eq!(step("hostname").with(|spec| spec.host_name = "other".into()).says(), "other\n");
    let own = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_ne!(own.trim(), "buildkitsandbox");
}

fn no_network_has_only_loopback() {
    let alone = step("grep : /proc/net/dev | awk '{print $1}'; ls /sys/class/net; ping -c 1 -W 2 127.0.0.1 > /dev/null && echo up")
        .with(|spec| spec.network = StepNetwork::None);
    assert_eq!(alone.says(), "lo:\nlo\nup\n");
    let inside = step("readlink /proc/self/ns/net").says();
    assert_eq!(Path::new(inside.trim()), fs::read_link("/proc/self/ns/net").unwrap());
}

// ------------------------------------------------------------------------------------------------ what is left

fn nothing_is_left_of_mount_points() {
    let before = fs::metadata(base().join("etc")).unwrap();
    let done = step("ls /etc; stat -c %Y /etc; touch /srv/y")
        .mount("/new/deep/er", MountSource::Tmpfs { bytes_max: None, mode: 0o755, uid: 0, gid: 0 })
        .mount("/opt", MountSource::Tmpfs { bytes_max: None, mode: 0o755, uid: 0, gid: 0 })
        .mount("/srv/t", MountSource::Tmpfs { bytes_max: None, mode: 0o755, uid: 0, gid: 0 })
        .mount("/etc/sec/ret", file(b"s", 0o400, 0, 0))
        .run();
    assert_eq!(done.report.exit, StepExit::Code(0), "{}", done.stderr);
    assert_eq!(done.stdout, format!("hosts\npasswd\nresolv.conf\nsec\n{}\n", before.mtime()));
    assert_eq!(done.changes(), BTreeSet::from(["srv".into(), "srv/y".into()]));
    let stubs: BTreeSet<_> = done.report.stubs.iter().map(|path| path.to_str().unwrap()).collect();
    let expected = [
        "etc/hosts",
        "etc/resolv.conf",
        "etc/sec",
        "etc/sec/ret",
        "new",
        "new/deep",
        "new/deep/er",
        "srv",
        "srv/t",
    ];
    assert_eq!(stubs, BTreeSet::from(expected));
}

fn a_bare_base_gets_its_three_directories() {
    let bare = world_readable(tempfile::tempdir().unwrap());
    fs::create_dir(bare.path().join("bin")).unwrap();
    fs::copy(base().join("bin/busybox"), bare.path().join("bin/sh")).unwrap();
    let done = step_on(&[bare.path()], "echo x > /out").run();
    assert_eq!(done.report.exit, StepExit::Code(0), "{}", done.stderr);
    assert_eq!(done.changes(), ["dev", "out", "proc", "sys"].map(String::from).into());
    for name in ["dev", "proc", "sys"] {
        let metadata = fs::metadata(done.upper().join(name)).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o755, 0), "{name}");
    }
}

fn from_scratch_runs_too() {
    let tree = base().to_path_buf();
    let bind = MountSource::Bind { root: tree, path: "bin".into(), writable: false };
    let done = step_on(&[], "echo x > /out; mkdir /d; touch /bin/x 2>/dev/null || echo ro")
        .mount("/bin", bind)
        .run();
    assert_eq!(done.stdout, "ro\n", "{}", done.stderr);
    assert_eq!(done.changes(), ["d", "dev", "out", "proc", "sys"].map(String::from).into());
}

fn the_upper_directory_is_exactly_the_change() {
    let done = step("echo x > /etc/other; rm /etc/passwd; mkdir -p /a/b; rm -r /home; mkdir /home; ln -s a /l; mv /opt /opt2 2>/dev/null; chmod 700 /root").run();
    let changes = done.changes();
    for path in ["etc", "etc/other", "etc/passwd", "a", "a/b", "home", "l", "opt", "opt2", "root"] {
        assert!(changes.contains(path), "{path}: {changes:?}");
    }
    assert_eq!(changes.len(), 10, "{changes:?}");
    let whiteout = fs::symlink_metadata(done.upper().join("etc/passwd")).unwrap();
    assert_eq!((whiteout.mode() & libc::S_IFMT, whiteout.rdev()), (libc::S_IFCHR, 0));
    let root = fs::metadata(done.upper()).unwrap();
    assert_eq!(root.mode() & 0o7777, 0o755);
}

fn many_layers() {
    let layers: Vec<TempDir> = (0..127)
        .map(|number| {
            let layer = world_readable(tempfile::tempdir().unwrap());
            fs::write(layer.path().join("top"), number.to_string()).unwrap();
            fs::write(layer.path().join(format!("only-{number}")), "").unwrap();
            layer
        })
        .collect();
    let mut lowers: Vec<&Path> = layers.iter().rev().map(TempDir::path).collect();
    lowers.push(base());
    let says = step_on(&lowers, "cat /top; echo; ls / | grep -c only-").says();
    assert_eq!(says, "126\n127\n");
}

fn times_and_attributes_of_directories_survive() {
    let layer = world_readable(tempfile::tempdir().unwrap());
    fs::create_dir(layer.path().join("etc")).unwrap();
    fs::set_permissions(layer.path(), PermissionsExt::from_mode(0o751)).unwrap();
    for path in ["etc", "."] {
        let status = Command::new("touch")
            .arg("-d")
            .arg("2001-02-03T04:05:06.123456789Z")
            .arg(layer.path().join(path))
            .status();
        assert!(status.unwrap().success());
    }
    let done =
        step_on(&[layer.path(), base()], "stat -c '%a %Y' / /etc; touch /etc/x && rm /etc/x").run();
    assert_eq!(done.stdout, "751 981173106\n755 981173106\n", "{}", done.stderr);
    // The step itself touched /etc, so it stays as the step left it.
    assert_eq!(done.changes(), BTreeSet::from(["etc".into()]));
    assert!(fs::metadata(done.upper().join("etc")).unwrap().mtime() > 981_173_106);
    let root = fs::metadata(done.upper()).unwrap();
    assert_eq!((root.mtime(), root.mtime_nsec()), (981_173_106, 123_456_789));
}

// ------------------------------------------------------------------------------------------------ mounts

fn hostile_links_stay_inside() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("canary"), "canary").unwrap();
    let layer = world_readable(tempfile::tempdir().unwrap());
    symlink(outside.path(), layer.path().join("out")).unwrap();
    symlink("../../../../..", layer.path().join("up")).unwrap();
    symlink("/moved", layer.path().join("etc")).unwrap();
    fs::create_dir(layer.path().join("moved")).unwrap();
    symlink("/run/systemd/resolv.conf", layer.path().join("moved/resolv.conf")).unwrap();
    let empty = || MountSource::Tmpfs { bytes_max: None, mode: 0o755, uid: 0, gid: 0 };
    let done = step_on(
        &[layer.path(), base()],
        "cat /etc/resolv.conf; test -d /up/inside && echo in root",
    )
    .mount("/up/inside", empty())
    .mount("/out/canary", file(b"x", 0o400, 0, 0))
    .run();
    assert_eq!(done.stdout, "nameserver 192.0.2.1\nin root\n", "{}", done.stderr);
    assert_eq!(fs::read(outside.path().join("canary")).unwrap(), b"canary");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    assert!(done.changes().is_empty(), "{:?}", done.changes());
    let link = world_readable(tempfile::tempdir().unwrap());
    symlink("/tmp", link.path().join("proc")).unwrap();
    let error = step_on(&[link.path(), base()], "true").try_run().err().unwrap();
    assert!(matches!(error, SandboxError::MountTarget { .. }), "{error}");
}

fn mounts_of_every_kind() {
    let context = world_readable(tempfile::tempdir().unwrap());
    fs::create_dir(context.path().join("d")).unwrap();
    fs::write(context.path().join("d/f"), "context").unwrap();
    let top = world_readable(tempfile::tempdir().unwrap());
    fs::write(top.path().join("top"), "top").unwrap();
    let discard = tempfile::tempdir().unwrap();
    let (upper, work) = (discard.path().join("u"), discard.path().join("w"));
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&work).unwrap();
    let root = context.path().to_path_buf();
    let bind = |path: &str, writable| MountSource::Bind {
        root: root.clone(),
        path: path.into(),
        writable,
    };
    let script = "cat /ro/d/f /one /two/top /etc/passwd; echo; (echo x > /ro/new) 2>/dev/null || echo ro; echo y > /rw/kept
        (echo x > /two/new) 2>/dev/null || echo ro; echo gone > /lost/d/f; cat /lost/d/f; df -k /t | tail -1 | awk '{print $2}'
        stat -c '%a %u:%g' /etc/sec/ret /t; wc -c < /etc/sec/ret; (echo x > /etc/sec/ret) 2>/dev/null || echo ro; ls /bin/sh";
    let done = step(script)
        .mount("/ro", bind("", false))
        .mount("/rw", bind("", true))
        .mount("/one", bind("d/f", false))
        .mount("/etc/passwd", bind("/d/f", false))
        .mount(
            "/two",
            MountSource::Tree {
                lowers: vec![top.path().into(), base().into()],
                path: "/".into(),
                discard: None,
            },
        )
        .mount(
            "/lost",
            MountSource::Tree {
                lowers: vec![root.clone()],
                path: ".".into(),
                discard: Some(Discard { upper, work }),
            },
        )
        .mount("/t", MountSource::Tmpfs { bytes_max: Some(1 << 20), mode: 0o1777, uid: 0, gid: 0 })
        .mount("/etc/sec/ret", file(&[0, 255, 10], 0o440, 1000, 50))
        .run();
    let expected =
        "contextcontexttopcontext\nro\nro\ngone\n1024\n440 1000:50\n1777 0:0\n3\nro\n/bin/sh\n";
    assert_eq!(done.stdout, expected, "{}", done.stderr);
    assert_eq!(fs::read(context.path().join("kept")).unwrap(), b"y\n");
    assert_eq!(fs::read(context.path().join("d/f")).unwrap(), b"context");
    assert!(done.changes().is_empty(), "{:?}", done.changes());
}

fn mounts_in_mounts() {
    let cache = world_readable(tempfile::tempdir().unwrap());
    fs::create_dir_all(cache.path().join("mounted/below")).unwrap();
    let root = cache.path().to_path_buf();
    let bind = |writable| MountSource::Bind { root: root.clone(), path: "".into(), writable };
    let empty = || MountSource::Tmpfs { bytes_max: None, mode: 0o755, uid: 0, gid: 0 };
    // Named the other way round: the outer one is mounted first all the same.
    let says = step("touch /c/sub/deep/x /c/y; ls /c/sub/deep /dev/mine")
        .mount("/c/sub/deep", empty())
        .mount("/dev/mine", empty())
        .mount("/c", bind(true))
        .says();
    assert_eq!(says, "/c/sub/deep:\nx\n\n/dev/mine:\n");
    let mut left = BTreeSet::new();
    collect(cache.path(), Path::new(""), &mut left);
    assert_eq!(left, ["mounted", "mounted/below", "y"].map(String::from).into());
    // A read-only mount takes no new mount point, and what is mounted below its source is read-only too.
    let error = step("true").mount("/c", bind(false)).mount("/c/new", empty()).try_run().err();
    assert!(matches!(error, Some(SandboxError::MountTarget { .. })), "{error:?}");
    let inner = cache.path().join("mounted/below");
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", &inner, "tmpfs", flags, None).unwrap();
    let done =
        step("touch /c/mounted/below/x 2>/dev/null || echo ro").mount("/c", bind(false)).run();
    rustix::mount::unmount(&inner, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(done.stdout, "ro\n");
}

fn mounts_that_are_refused() {
    let empty = || MountSource::Tmpfs { bytes_max: None, mode: 0o755, uid: 0, gid: 0 };
    let layer = world_readable(tempfile::tempdir().unwrap());
    symlink("/", layer.path().join("slash")).unwrap();
    for target in [
        "/",
        "//",
        "/.",
        "/slash",
        "/slash/slash",
        "/proc",
        "/proc/x",
        "relative",
        "/etc/passwd",
        "/etc/passwd/x",
    ] {
        let error = step_on(&[layer.path(), base()], "true").mount(target, empty()).try_run().err();
        assert!(matches!(error, Some(SandboxError::MountTarget { .. })), "{target}: {error:?}");
    }
    let missing = MountSource::Bind { root: base().into(), path: "nope".into(), writable: false };
    let error = step("true").mount("/x", missing).try_run().err().unwrap();
    assert!(matches!(error, SandboxError::MountSource { .. }), "{error}");
    let error = step("true").mount("/etc", file(b"", 0o400, 0, 0)).try_run().err().unwrap();
    assert!(matches!(error, SandboxError::MountTarget { .. }), "{error}");
}

fn a_bind_source_stays_in_its_root() {
    let context = world_readable(tempfile::tempdir().unwrap());
    symlink("/", context.path().join("slash")).unwrap();
    symlink("/etc/shadow", context.path().join("shadow")).unwrap();
    fs::write(context.path().join("only"), "").unwrap();
    let root = context.path().to_path_buf();
    let bind = MountSource::Bind { root: root.clone(), path: "slash".into(), writable: false };
    assert_eq!(step("ls /m").mount("/m", bind).says(), "only\nshadow\nslash\n");
    let bind = MountSource::Bind { root, path: "shadow".into(), writable: false };
    let error = step("true").mount("/m", bind).try_run().err().unwrap();
    assert!(matches!(error, SandboxError::MountSource { .. }), "{error}");
}

// ------------------------------------------------------------------------------------------------ the end

/// Processes whose command line holds `mark`.
fn processes(mark: &str) -> Vec<String> {
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
fn mounts(directory: &Path) -> Vec<String> {
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

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

const STUBBORN: &str = "trap '' TERM HUP INT; setsid sleep MARK & (setsid sh -c 'trap \"\" TERM; sleep MARK' &) ; sleep MARK";

fn mark(number: u32) -> String {
    // A time to sleep that nobody else sleeps.
    format!("{}{number:02}", std::process::id() as u64 * 100 + 7_000_000_000)
}

fn leftover_processes_die() {
    let mark = mark(1);
    let script = STUBBORN.replace("; sleep MARK", "; sleep 0.1; exit 5").replace("MARK", &mark);
    let done = step(&script).run();
    assert_eq!(done.report.exit, StepExit::Code(5));
    assert_eq!(processes(&mark), Vec::<String>::new());
    assert_eq!(mounts(done.directory.path()), Vec::<String>::new());
}

fn a_daemon_that_holds_the_output_does_not_hang() {
    let started = Instant::now();
    let done =
        step("(while :; do echo y; done) & (sleep 100; echo late) & sleep 0.2; echo done").run();
    assert_eq!(done.report.exit, StepExit::Code(0));
    assert!(done.stdout.contains("done\n") && done.stdout.contains("y\n"));
    assert!(started.elapsed() < Duration::from_secs(20));
}

/// Waits until the stubborn processes with this mark run.
async fn ready(mark: &str) {
    while processes(mark).len() < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn cancel_kills_at_once() {
    let mark = mark(2);
    let step = step(&STUBBORN.replace("MARK", &mark));
    let result = block_on(run(step.spec, |_, _| {}, ready(&mark)));
    assert_eq!(result.err(), Some(SandboxError::Canceled));
    assert_eq!(processes(&mark), Vec::<String>::new());
    assert_eq!(mounts(step.directory.path()), Vec::<String>::new());
}

fn a_dropped_future_kills_too() {
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

fn builder_to_kill(directory: &Path, mark: &str) -> ExitCode {
    let below = |name: &str| {
        let path = directory.join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let mut spec = StepSpec::new(below("upper"), below("work"), below("scratch"));
    spec.lowers = vec![directory.join("base")];
    spec.arguments = vec!["/bin/sh".into(), "-c".into(), STUBBORN.replace("MARK", mark).into()];
    spec.environment = vec!["PATH=/bin".into()];
    let result = block_on(run(spec, |_, _| {}, std::future::pending()));
    panic!("the step ended: {result:?}");
}

fn a_killed_builder_leaves_nothing() {
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

fn a_killed_helper_takes_the_step_along() {
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

fn is_child_of(pid: &str, parent: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    after_name.split_whitespace().nth(1) == Some(&parent.to_string())
}

// ------------------------------------------------------------------------------------------------ refusals

fn command(arguments: &[&str]) -> Step {
    let arguments = arguments.iter().map(Into::into).collect();
    step("").with(|spec| spec.arguments = arguments)
}

fn programs_that_can_not_be_executed() {
    let done = command(&["/no/such", "x"]).run();
    assert_eq!(done.report.exit, StepExit::Code(127));
    assert_eq!(done.stderr, "exec: \"/no/such\": stat /no/such: no such file or directory\n");
    let done = command(&["foo"]).run();
    assert_eq!(done.report.exit, StepExit::Code(127));
    assert_eq!(done.stderr, "exec: \"foo\": executable file not found in $PATH\n");
    assert_eq!(command(&["/etc/passwd"]).run().report.exit, StepExit::Code(126));
    assert_eq!(command(&["echo", "a b", "*"]).says(), "a b *\n");
    assert_eq!(command(&[]).try_run().err(), Some(SandboxError::NoCommand));
    let layer = world_readable(tempfile::tempdir().unwrap());
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(64, 0);
    elf[18] = if cfg!(target_arch = "x86_64") { 183 } else { 62 };
    let write = |name: &str, bytes: &[u8]| {
        let path = layer.path().join(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    };
    write("foreign", &elf);
    write("script", b"#!/foreign\n");
    write("nothing", b"\x01\x02");
    write("lost", b"#!/not/there\n");
    let on = |program: &str| {
        let arguments = vec![program.into()];
        step_on(&[layer.path(), base()], "").with(|spec| spec.arguments = arguments)
    };
    for program in ["/foreign", "/script"] {
        let error = on(program).try_run().err().unwrap();
        assert!(matches!(error, SandboxError::ForeignProgram { .. }), "{error}");
        assert!(error.hint().unwrap().contains("binfmt"));
    }
    assert_eq!(on("/nothing").run().report.exit, StepExit::Code(126));
    assert_eq!(on("/lost").run().report.exit, StepExit::Code(127));
}

fn magic_links_lead_nowhere() {
    for number in 3..20 {
        let done = command(&[&format!("/proc/self/fd/{number}/bin/sh"), "-c", "echo ran"]).run();
        assert_ne!(done.report.exit, StepExit::Code(0), "{number}");
        assert_eq!(done.stdout, "", "{number}");
        let directory = format!("/proc/self/fd/{number}");
        let inside = step("pwd").with(|spec| spec.working_directory = directory.into());
        assert!(inside.try_run().is_err(), "{number}");
    }
    assert_eq!(command(&["/proc/self/exe", "--list"]).run().report.exit, StepExit::Code(126));
}

fn limits() {
    let limit = |name: &str, soft, hard| Ulimit { name: name.into(), soft, hard };
    let says = step("ulimit -n; ulimit -Hn; ulimit -c")
        .with(|spec| spec.ulimits = vec![limit("nofile", 321, 654), limit("core", -1, -1)]);
    assert_eq!(says.says(), "321\n654\nunlimited\n");
    let error = step("true").with(|spec| spec.ulimits = vec![limit("nope", 1, 1)]).try_run().err();
    assert_eq!(error, Some(SandboxError::Ulimit { name: "nope".into() }));
}

fn many_steps_at_once() {
    let steps: Vec<Step> = (0..8)
        .map(|number| step(&format!("echo {number} > /out; sleep 0.2; exit {number}")))
        .collect();
    let specs: Vec<StepSpec> = steps.iter().map(|step| step.spec.clone()).collect();
    let exits = block_on(async {
        let mut set = tokio::task::JoinSet::new();
        for (number, spec) in specs.into_iter().enumerate() {
            set.spawn(async move {
                (number, run(spec, |_, _| {}, std::future::pending()).await.unwrap().exit)
            });
        }
        set.join_all().await
    });
    for (number, exit) in exits {
        assert_eq!(exit, StepExit::Code(number as i32));
        let out = fs::read_to_string(steps[number].directory.path().join("upper/out")).unwrap();
        assert_eq!(out, format!("{number}\n"));
    }
}

fn the_state_on_an_overlay_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let below = |name: &str| {
        let path = directory.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let (lower, upper, work, merged) = (below("l"), below("u"), below("w"), below("m"));
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    rustix::mount::mount(
        "overlay",
        &merged,
        "overlay",
        rustix::mount::MountFlags::empty(),
        std::ffi::CString::new(options).unwrap().as_c_str(),
    )
    .unwrap();
    let inner = merged.join("state");
    fs::create_dir(&inner).unwrap();
    let found = block_on(probe(&inner));
    rustix::mount::unmount(&merged, rustix::mount::UnmountFlags::DETACH).unwrap();
    let bareboat_core::execute::sandbox::Verdict::Unavailable(reason) = found.verdict else {
        panic!("available");
    };
    assert!(matches!(reason.error, SandboxError::StateOnOverlay { .. }), "{}", reason.error);
    assert!(reason.remedy.unwrap().contains("--state-dir"));
}

fn the_probe_says_yes_here() {
    let directory = tempfile::tempdir().unwrap();
    let found: Probe = block_on(probe(directory.path()));
    assert!(found.is_available(), "{:?}", found.verdict);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    let missing = block_on(probe(&directory.path().join("missing")));
    assert!(!missing.is_available());
}

/// What an old kernel lacks, and what Docker's own filter refuses even to a container with CAP_SYS_ADMIN.
fn refuse_newer_calls() {
    let refused = [
        (libc::SYS_openat2, libc::ENOSYS),
        (libc::SYS_pidfd_open, libc::ENOSYS),
        (libc::SYS_close_range, libc::ENOSYS),
        (libc::SYS_mount_setattr, libc::ENOSYS),
        (libc::SYS_pivot_root, libc::EPERM),
    ];
    let instruction = |code, yes, no, value| Instruction { code, yes, no, value };
    let mut program = vec![instruction(0x20, 0, 0, 0)];
    for (number, errno) in refused {
        program.push(instruction(0x15, 0, 1, number as u32));
        program.push(instruction(0x06, 0, 0, 0x0005_0000 | errno as u32));
    }
    program.push(instruction(0x06, 0, 0, 0x7fff_0000));
    install_filter(&program).unwrap();
}

fn an_older_kernel_behind_dockers_filter_will_do() {
    let output = Command::new(std::env::current_exe().unwrap())
        .arg("behind-a-filter")
        .args([
            "the_process_is",
            "capabilities_and",
            "nothing_is_left",
            "hostile_links",
            "mounts_of_every",
            "mounts_that_are",
            "leftover",
            "cancel",
            "magic_links",
            "programs_that",
            "the_probe",
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.matches(" ... ok\n").count(), 12, "{said}");
}
