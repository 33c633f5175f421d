//! The swap rung, in containers without privilege.

use std::{collections::BTreeMap, os::unix::net::UnixListener, process::Stdio};

use bareboat_core::{
    execute::sandbox::{StepNetwork, StepNote, StepUser, Ulimit, repair},
    sys::private_root::{self, PrivateRootError},
};

use super::{bench::*, container::*, ending::*};

fn mounted(mut spec: StepSpec, target: &str, source: MountSource) -> StepSpec {
    spec.mounts.push(StepMount { target: target.into(), source });
    spec
}

fn swap_root(spec: &mut StepSpec) -> &mut bareboat_core::execute::sandbox::SwapRoot {
    match &mut spec.root {
        bareboat_core::execute::sandbox::StepRoot::Swap(root) => root,
        _ => panic!("an overlay"),
    }
}

pub fn swap_runs_a_step_and_gives_the_root_back() {
    in_container("swap_runs_a_step_and_gives_the_root_back", || {
        let ran = swap(swap_step(
            "ls /; cat /etc/hosts; cat /etc/passwd | head -1; echo new > /out; echo x > /etc/made; rm -r /opt; pwd",
        ));
        assert!(ran.stdout.contains("127.0.0.1 localhost\n"), "{}", ran.stdout);
        assert!(ran.stdout.contains("root:x:0:0") && !ran.stdout.contains("job-made"));
        // A small image is copied out of its layers without a word.
        assert!(!ran.notes().iter().any(|note| matches!(note, StepNote::Delayered { .. })));
        assert_eq!(fs::read(in_tree("out")).unwrap(), b"new\n");
        assert_eq!(fs::read(in_tree("etc/made")).unwrap(), b"x\n");
        assert_eq!(fs::read_to_string(in_tree("etc/hosts")).unwrap(), "the image's own\n");
        assert!(!in_tree("opt").exists());
        for name in ["proc", "sys", "dev"] {
            assert!(in_tree(name).is_dir(), "{name}");
        }
        assert_eq!(fs::read("/opt/job/file").unwrap(), b"the job's own");
        assert_eq!(fs::read("/job-made").unwrap(), b"at run time");
        let before = container_root();
        let ran = swap(swap_step("test -e /out && mkdir -p /opt/deep && chmod 700 /"));
        assert_eq!(container_root(), before);
        let report = ran.report.swap.unwrap();
        assert!(report.entered.iter().any(|entry| entry.path.to_string().ends_with("out")));
        assert!(report.left.iter().any(|entry| entry.path.to_string().ends_with("opt")));
        assert!(report.levels.iter().any(|level| level.path.is_root() && level.changed));
        assert!(!report.notes.iter().any(|note| matches!(note, StepNote::Delayered { .. })));
    });
}

pub fn swap_exits_outputs_and_surroundings() {
    in_container("swap_exits_outputs_and_surroundings", || {
        let before = settled_root();
        let exit = |script: &str| try_swap(swap_step(script)).unwrap().report.exit;
        assert_eq!(exit("exit 7"), StepExit::Code(7));
        assert_eq!(exit("kill -9 $$"), StepExit::Signal(9));
        let mut lost = swap_step("");
        lost.arguments = vec!["foo".into()];
        let lost = try_swap(lost).unwrap();
        assert_eq!(lost.report.exit, StepExit::Code(127));
        assert_eq!(lost.stderr, "exec: \"foo\": executable file not found in $PATH\n");
        let mut spec = swap_step(
            "env; pwd; umask; cat; ulimit -n; ls /proc/self/fd; grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs' /proc/self/status; echo err >&2",
        );
        spec.environment.push("A=b c".into());
        spec.working_directory = "/home/app".into();
        spec.ulimits = vec![Ulimit { name: "nofile".into(), soft: 321, hard: 654 }];
        let ran = swap(spec);
        assert_eq!(ran.stderr, "err\n");
        let set = "00000000a80424fb";
        let capabilities = format!(
            "CapInh:\t0000000000000000\nCapPrm:\t{set}\nCapEff:\t{set}\nCapBnd:\t{set}\nCapAmb:\t0000000000000000\nNoNewPrivs:\t0\n"
        );
        for part in ["A=b c\n", "/home/app\n0022\n321\n0\n1\n2\n3\n", &capabilities] {
            assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
        }
        let mut spec = swap_step(
            "id -u; id -g; id -G; echo x > /dev/stdout; grep CapEff /proc/self/status; test -w /etc || echo no",
        );
        spec.user = StepUser { uid: 1000, gid: 1000, groups: vec![50] };
        assert_eq!(swap(spec).stdout, "1000\n1000\n1000 50\nx\nCapEff:\t0000000000000000\nno\n");
        assert_eq!(container_root(), before);
    });
}

pub fn swap_refuses_what_it_can_not() {
    in_container("swap_refuses_what_it_can_not", || {
        let before = settled_root();
        let mut spec = swap_step("true");
        spec.network = StepNetwork::None;
        let error = try_swap(spec).unwrap_err();
        assert!(
            matches!(&error, SandboxError::NotOnSwap { what } if what.contains("--network=none"))
        );
        let mut spec = swap_step("true");
        spec.insecure = true;
        let error = try_swap(spec).unwrap_err();
        assert!(matches!(&error, SandboxError::NotOnSwap { what } if what.contains("insecure")));
        let empty = || MountSource::Tmpfs { bytes_max: None, mode: 0o755, uid: 0, gid: 0 };
        for target in ["/", "/proc/x", "relative", "/dev/shm", "/etc/hosts", "/bin/busybox"] {
            let error = try_swap(mounted(swap_step("true"), target, empty())).unwrap_err();
            assert!(matches!(error, SandboxError::MountTarget { .. }), "{target}: {error}");
        }
        let mut spec = swap_step("true");
        spec.working_directory = "/proc/self/fd/3".into();
        assert!(try_swap(spec).is_err());
        assert_eq!(container_root(), before);
        assert!(!Path::new(SIDE).join("placed.journal").exists());
    });
}

fn mark(number: u32) -> String {
    format!("{number}{:02}", std::process::id() as u64 * 100 + 8_000_000_000)
}

pub fn swap_ends_what_is_left_running() {
    in_container("swap_ends_what_is_left_running", || {
        let before = settled_root();
        let mark = mark(1);
        let daemon = "(setsid sh -c 'trap \"\" TERM HUP INT QUIT; while :; do sleep MARK; done' &)";
        let script =
            format!("for i in 1 2 3 4 5 6 7 8; do {daemon}; done; sleep 0.2; echo started");
        assert_eq!(swap(swap_step(&script.replace("MARK", &mark))).stdout, "started\n");
        assert_eq!(processes(&mark), Vec::<String>::new());
        // A bomb, bounded by its user's limit.
        let mut bomb = swap_step("f() { f | f & f | f & wait; }; f & sleep 0.5; exit 3");
        bomb.user = StepUser { uid: 1000, gid: 1000, groups: vec![] };
        bomb.ulimits = vec![Ulimit { name: "nproc".into(), soft: 200, hard: 200 }];
        let started = Instant::now();
        assert_eq!(try_swap(bomb).unwrap().report.exit, StepExit::Code(3));
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
        let stays: Vec<_> = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok())
            .collect();
        assert_eq!(stays, [1, std::process::id()]);
        assert_eq!(container_root(), before);
    });
}

pub fn swap_cancel_gives_the_root_back() {
    in_container("swap_cancel_gives_the_root_back", || {
        let before = settled_root();
        let mark = mark(2);
        let spec = swap_step(&STUBBORN.replace("MARK", &mark));
        let result = block_on(run(spec.clone(), |_, _| {}, ready(&mark)));
        assert_eq!(result.err(), Some(SandboxError::Canceled));
        assert_eq!(processes(&mark), Vec::<String>::new());
        assert_eq!(container_root(), before);
        block_on(async {
            tokio::select! {
                result = run(spec, |_, _| {}, std::future::pending()) => panic!("ended: {result:?}"),
                () = ready(&mark) => {}
            }
        });
        assert_eq!(processes(&mark), Vec::<String>::new());
        assert_eq!(container_root(), before);
    });
}

/// A builder of its own, with a step that waits.
fn start_builder(mark: &str, cache: &str) -> std::process::Child {
    Command::new("/proc/self/exe")
        .args(["swap-builder-to-kill", mark, cache])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

pub fn swap_builder_to_kill(mark: &str, cache: &str) -> std::process::ExitCode {
    let script = format!("echo kept > /cache/by-step; {}", STUBBORN.replace("MARK", mark));
    let mut spec = swap_step(&script);
    swap_root(&mut spec).added_hosts = b"192.0.2.9\tadded\n".to_vec();
    let source = MountSource::Bind { root: cache.into(), path: "".into(), writable: true };
    let spec = mounted(spec, "/cache", source);
    let spec = mounted(spec, "/etc/secret", file(b"hunter2", 0o400, 0, 0));
    let result = block_on(run(spec, |_, _| {}, std::future::pending()));
    panic!("the step ended: {result:?}");
}

fn new_cache() -> String {
    let cache = format!("{SIDE}/mounts/c/fs");
    fs::create_dir_all(&cache).unwrap();
    fs::write(format!("{cache}/old"), "old").unwrap();
    cache
}

fn helper_of(builder: u32) -> String {
    let helpers = processes("bareboat-helper");
    helpers.into_iter().find(|pid| is_child_of(pid, builder)).expect("a helper")
}

fn kill(pid: &str) {
    let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn assert_all_back(before: &BTreeMap<PathBuf, String>, cache: &str) {
    assert_eq!(&container_root(), before);
    assert_eq!(fs::read(format!("{cache}/old")).unwrap(), b"old");
    assert_eq!(fs::read(format!("{cache}/by-step")).unwrap(), b"kept\n");
    assert!(!in_tree("cache").exists() && !in_tree("etc/secret").exists());
    assert!(!Path::new(SIDE).join("placed").exists());
    assert!(!Path::new(SIDE).join("placed.journal").exists());
}

pub fn swap_survives_a_killed_builder() {
    in_container("swap_survives_a_killed_builder", || {
        let before = settled_root();
        let (mark, cache) = (mark(3), new_cache());
        let mut builder = start_builder(&mark, &cache);
        eventually("the step did not start", || processes(&mark).len() >= 4);
        assert!(fs::read_to_string("/etc/hosts").unwrap().contains("added"));
        assert!(!Path::new("/job-made").exists());
        builder.kill().unwrap();
        builder.wait().unwrap();
        let killed = Instant::now();
        eventually("processes left", || processes(&mark).is_empty());
        eventually("helpers left", || processes("bareboat-helper").is_empty());
        assert!(killed.elapsed() < Duration::from_secs(5));
        assert_all_back(&before, &cache);
        assert_eq!(block_on(repair(SIDE.into())), Ok(false));
        swap(swap_step("true"));
    });
}

pub fn swap_survives_a_killed_keeper() {
    in_container("swap_survives_a_killed_keeper", || {
        let before = settled_root();
        let (mark, cache) = (mark(4), new_cache());
        let script = format!("echo kept > /cache/by-step; {}", STUBBORN.replace("MARK", &mark));
        let source =
            MountSource::Bind { root: cache.clone().into(), path: "".into(), writable: true };
        let spec = mounted(swap_step(&script), "/cache", source);
        let killer = async {
            ready(&mark).await;
            kill(&helper_of(std::process::id()));
            std::future::pending().await
        };
        let result = block_on(run(spec, |_, _| {}, killer));
        assert!(matches!(result, Err(SandboxError::KeeperDied { .. })), "{result:?}");
        assert_eq!(processes(&mark), Vec::<String>::new());
        assert_all_back(&before, &cache);
        swap(swap_step("true"));
    });
}

pub fn swap_repairs_what_a_killed_pair_left() {
    in_container("swap_repairs_what_a_killed_pair_left", || {
        let before = settled_root();
        let (mark, cache) = (mark(5), new_cache());
        let mut builder = start_builder(&mark, &cache);
        eventually("the step did not start", || processes(&mark).len() >= 4);
        let helper = helper_of(builder.id());
        let stop = rustix::process::Signal::STOP;
        let number = rustix::process::Pid::from_raw(helper.parse().unwrap()).unwrap();
        rustix::process::kill_process(number, stop).unwrap();
        builder.kill().unwrap();
        kill(&helper);
        builder.wait().unwrap();
        assert!(!Path::new("/job-made").exists());
        assert_eq!(block_on(repair(SIDE.into())), Ok(true));
        assert_all_back(&before, &cache);
        assert_eq!(block_on(repair(SIDE.into())), Ok(false));
        processes(&mark).iter().for_each(|pid| kill(pid));
    });
}

pub fn swap_survives_a_keeper_killed_at_any_time() {
    in_container("swap_survives_a_keeper_killed_at_any_time", || {
        let before = settled_root();
        let cache = new_cache();
        let mut tree = tree_without_times();
        let mut died = 0;
        for number in 0..40_u64 {
            let bind =
                MountSource::Bind { root: cache.clone().into(), path: "".into(), writable: true };
            let spec = mounted(swap_step("true"), "/deep/cache", bind);
            let spec = mounted(spec, "/etc/passwd", file(b"hunter2", 0o400, 0, 0));
            let killer = async {
                tokio::time::sleep(Duration::from_micros(5000 + number * 700)).await;
                processes("bareboat-helper").iter().for_each(|pid| kill(pid));
                std::future::pending().await
            };
            let has_died = match block_on(run(spec, |_, _| {}, killer)) {
                Err(SandboxError::KeeperDied { .. }) => true,
                other => other.map(|_| false).unwrap(),
            };
            assert_eq!(container_root(), before, "{number}");
            assert_eq!(fs::read(format!("{cache}/old")).unwrap(), b"old");
            let after = tree_without_times();
            if has_died {
                died += 1;
                // A tree whose step was cut off is thrown away: that its root's time moved does not matter.
                assert_eq!(below(after.clone()), below(tree), "{number}");
            } else {
                assert_eq!(after, tree, "{number}");
            }
            tree = after;
            assert!(!Path::new(SIDE).join("placed").exists());
        }
        assert!(died > 3, "{died}");
    });
}

fn below<K: Ord + Default, V>(mut tree: BTreeMap<K, V>) -> BTreeMap<K, V> {
    tree.remove(&K::default());
    tree
}

pub fn swap_hides_the_builder() {
    in_container("swap_hides_the_builder", hidden);
}

pub fn swap_hides_the_builder_without_setpcap() {
    in_container_with("swap_hides_the_builder_without_setpcap", "no-setpcap", || {
        hidden();
        let ran = swap(swap_step("grep NoNewPrivs /proc/self/status"));
        assert_eq!(ran.stdout, "NoNewPrivs:\t1\n");
        assert!(ran.notes().contains(&StepNote::NoNewPrivileges));
    });
}

fn hidden() {
    let builder = std::process::id();
    let script = format!(
        "for p in {builder} 1 $PPID; do for f in environ mem maps fd/0 root/etc cwd; do
            dd if=/proc/$p/$f of=/dev/null bs=1 count=1 2>/dev/null && echo read $p/$f; done; done; true"
    );
    let ran = swap(swap_step(&script));
    assert_eq!(ran.stdout, "", "{}", ran.stderr);
}

pub fn swap_lets_set_uid_programs_gain() {
    in_container("swap_lets_set_uid_programs_gain", || {
        let program = in_tree("bin/gains");
        fs::copy("/proc/self/exe", &program).unwrap();
        fs::set_permissions(&program, PermissionsExt::from_mode(0o4755)).unwrap();
        let mut spec = swap_step("");
        spec.arguments = ["/bin/gains", "print-user"].map(Into::into).to_vec();
        spec.user = StepUser { uid: 1000, gid: 1000, groups: vec![] };
        assert_eq!(swap(spec).stdout, "1000 0\n");
        assert_eq!(fs::metadata(&program).unwrap().mode() & 0o7777, 0o4755);
    });
}

pub fn swap_mounts_of_every_kind() {
    in_container("swap_mounts_of_every_kind", mounts_of_every_kind);
}

fn mounts_of_every_kind() {
    let before = settled_root();
    let cache = new_cache();
    let work = Path::new(SIDE).join("work/step");
    fs::create_dir_all(work.join("copy/d")).unwrap();
    fs::write(work.join("copy/d/f"), "prepared").unwrap();
    fs::write(work.join("single"), "one file").unwrap();
    fs::write(work.join("script"), "#!/bin/sh\necho from a script\n").unwrap();
    fs::set_permissions(work.join("script"), PermissionsExt::from_mode(0o755)).unwrap();
    let socket = UnixListener::bind(work.join("agent")).unwrap();
    let in_work = |path: &str, writable| MountSource::Bind {
        root: work.clone(),
        path: path.into(),
        writable,
    };
    let tree_before = tree_without_times();
    let script = "cat /c/old /ctx/d/f /etc/passwd; echo; echo new > /c/new; echo changed > /ctx/d/f; touch /ctx/made
        stat -c '%a %u:%g %F' /t /run/s/ret /run/agent; cat /run/s/ret; echo; touch /t/x; ls /t
        /dev/pipes/name; cat /dev/shm/word; echo; rm /run/s/ret; cat /dev/pipes/name | head -1";
    let spec = swap_step(script);
    let spec = mounted(
        spec,
        "/c",
        MountSource::Bind { root: cache.clone().into(), path: "/".into(), writable: true },
    );
    let spec =
        mounted(spec, "/ctx", MountSource::Prepared { path: work.join("copy"), read_only: true });
    let spec = mounted(
        spec,
        "/etc/passwd",
        MountSource::Prepared { path: work.join("single"), read_only: true },
    );
    let tmpfs = MountSource::Tmpfs { bytes_max: Some(1 << 20), mode: 0o1777, uid: 3, gid: 4 };
    let spec = mounted(spec, "/t", tmpfs);
    let spec = mounted(spec, "/run/s/ret", file(b"hunter2", 0o440, 1000, 50));
    let spec = mounted(spec, "/run/agent", in_work("agent", true));
    let spec = mounted(spec, "/once/script", in_work("script", false));
    let spec = mounted(spec, "/dev/pipes/name", in_work("script", false));
    let spec = mounted(spec, "/dev/shm/word", file(b"secret word", 0o400, 0, 0));
    let ran = try_swap(spec).unwrap();
    let expected = "oldpreparedone file\n1777 3:4 directory\n440 1000:50 regular file\n755 0:0 socket\nhunter2\nx\nfrom a script\nsecret word\n#!/bin/sh\n";
    assert_eq!(ran.stdout, expected, "{}", ran.stderr);
    assert_eq!(ran.report.exit, StepExit::Code(0));
    assert_eq!(fs::read(format!("{cache}/new")).unwrap(), b"new\n");
    assert_eq!(fs::read(format!("{cache}/old")).unwrap(), b"old");
    assert_eq!(tree_without_times(), tree_before);
    assert_eq!(container_root(), before);
    assert!(!Path::new("/dev/pipes").exists() && !Path::new("/dev/shm/word").exists());
    assert!(work.join("agent").exists() && work.join("single").exists());
    drop(socket);
    let target = |text: &str| PathBuf::from(text);
    for note in [
        StepNote::ReadOnlyChanged { target: target("/ctx") },
        StepNote::TmpfsSizeNotEnforced { target: target("/t") },
        StepNote::SecretOnDisk { target: target("/run/s/ret") },
        StepNote::MountLost { target: target("/run/s/ret") },
    ] {
        assert!(ran.notes().contains(&note), "{note}: {:?}", ran.notes());
    }
    assert_eq!(ran.notes().len(), 4, "{:?}", ran.notes());
    let stubs: BTreeSet<_> =
        ran.report.stubs.iter().map(|path| path.display().to_string()).collect();
    let expected =
        ["c", "ctx", "once", "once/script", "run", "run/agent", "run/s", "run/s/ret", "t"];
    assert_eq!(stubs, expected.map(String::from).into());
}

/// Names, inodes, modes, owners and modification times of the stage's tree.
fn tree_without_times() -> BTreeMap<PathBuf, (u64, u32, i64, i64)> {
    let mut names = BTreeSet::new();
    collect(&in_tree(""), Path::new(""), &mut names);
    let stat = |name: String| {
        let metadata = fs::symlink_metadata(in_tree(&name)).unwrap();
        let seen = (metadata.ino(), metadata.mode(), metadata.mtime(), metadata.mtime_nsec());
        (PathBuf::from(name), seen)
    };
    names.into_iter().chain([String::new()]).map(stat).collect()
}

pub fn swap_mounts_in_mounts() {
    in_container("swap_mounts_in_mounts", || {
        settled_root();
        let cache = new_cache();
        let elsewhere = "/dev/shm/cache";
        fs::create_dir_all(format!("{elsewhere}/deep")).unwrap();
        fs::write(format!("{elsewhere}/deep/f"), "elsewhere").unwrap();
        let bind =
            |root: &str| MountSource::Bind { root: root.into(), path: "".into(), writable: true };
        let empty = MountSource::Tmpfs { bytes_max: None, mode: 0o755, uid: 0, gid: 0 };
        let spec = swap_step(
            "touch /c/sub/deep/x /c/y; ls /c/sub/deep; cat /away/deep/f; rm -r /away/deep; echo 2 > /away/two",
        );
        let spec = mounted(spec, "/c/sub/deep", empty);
        let spec = mounted(spec, "/c", bind(&cache));
        let spec = mounted(spec, "/away", bind(elsewhere));
        let ran = swap(spec);
        assert_eq!(ran.stdout, "x\nelsewhere");
        assert!(ran.notes().contains(&StepNote::CacheCopied { target: "/away".into() }));
        assert!(Path::new(&cache).join("y").exists() && !Path::new(&cache).join("sub").exists());
        assert_eq!(fs::read(format!("{elsewhere}/two")).unwrap(), b"2\n");
        assert!(!Path::new(elsewhere).join("deep").exists());
        // A cache that the step has made anew is the cache.
        swap(mounted(swap_step("rm -r /c; mkdir /c; echo 3 > /c/three"), "/c", bind(&cache)));
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 1);
        assert!(!in_tree("c").exists());
    });
}

pub fn swap_outlives_a_step_that_removes_everything() {
    in_container("swap_outlives_a_step_that_removes_everything", || {
        settled_root();
        let cache = new_cache();
        let source = MountSource::Bind { root: cache.into(), path: "".into(), writable: true };
        let mut spec =
            mounted(swap_step("rm -rf / 2>/dev/null; echo > /etc/hosts; exit 4"), "/c", source);
        swap_root(&mut spec).added_hosts = b"192.0.2.9\tadded\n".to_vec();
        let result = try_swap(spec);
        // What it could reach of the container's own is lost, and told; what is mounted is as before.
        let report = result.unwrap().report;
        assert_eq!(report.exit, StepExit::Code(4));
        let report = report.swap.unwrap();
        assert!(
            report.is_spoilt() && report.lost.contains(&PathBuf::from("job-made")),
            "{report:?}"
        );
        assert_eq!(fs::read_to_string("/etc/hosts").unwrap(), "127.0.0.1 localhost\n");
        assert_eq!(processes("bareboat-helper"), Vec::<String>::new());
    });
}

pub fn swap_keeps_volumes_apart() {
    in_container_with("swap_keeps_volumes_apart", "volumes", || {
        settled_root();
        fs::write("/builds/checkout", "the job's").unwrap();
        fs::write("/workspace/checkout", "the job's").unwrap();
        fs::create_dir(in_tree("workspace")).unwrap();
        fs::write(in_tree("workspace/copied"), "the stage's").unwrap();
        let cache = new_cache();
        let source =
            MountSource::Bind { root: cache.clone().into(), path: "".into(), writable: true };
        let script = "ls /workspace /builds; echo x > /workspace/new; echo y > /workspace/c/new; echo z > /builds/new";
        let mut spec = mounted(swap_step(script), "/workspace/c", source);
        spec.working_directory = "/workspace".into();
        let ran = swap(spec);
        assert_eq!(ran.stdout, "/builds:\ncheckout\n\n/workspace:\nc\ncopied\n");
        assert_eq!(ran.notes(), [StepNote::VolumeChanged { path: "/builds".into() }]);
        assert_eq!(ran.report.swap.unwrap().rewritten, [PathBuf::from("workspace")]);
        assert_eq!(fs::read(in_tree("workspace/new")).unwrap(), b"x\n");
        assert_eq!(fs::read(format!("{cache}/new")).unwrap(), b"y\n");
        assert!(!in_tree("workspace/c").exists() && !in_tree("builds").exists());
        assert_eq!(fs::read_dir("/workspace").unwrap().count(), 1);
        assert_eq!(fs::read("/builds/new").unwrap(), b"z\n");
    });
}

pub fn swap_adds_hosts_for_the_step_only() {
    in_container("swap_adds_hosts_for_the_step_only", || {
        let before = settled_root();
        let mut spec = swap_step(
            "cat /etc/hosts /etc/resolv.conf; echo more >> /etc/hosts; echo > /etc/resolv.conf",
        );
        swap_root(&mut spec).added_hosts = b"192.0.2.9\tadded\n".to_vec();
        let expected = "127.0.0.1 localhost\n192.0.2.9\tadded\nnameserver 192.0.2.7\n";
        assert_eq!(swap(spec).stdout, expected);
        assert_eq!(container_root(), before);
    });
}

pub fn swap_works_from_a_private_root() {
    in_container("swap_works_from_a_private_root", || {
        let before = settled_root();
        let private = Path::new(SIDE).join("private");
        fs::create_dir(&private).unwrap();
        let held = fs::File::open("/job-made").unwrap();
        fs::write("/hello", "#!/bin/sh\n").unwrap();
        private_root::enter(&private).unwrap();
        assert!(private_root::is_entered() && !Path::new("/job-made").exists());
        let path = bareboat_core::sys::fs::descriptor_path(std::os::fd::AsFd::as_fd(&held));
        assert_eq!(fs::read(path).unwrap(), b"at run time");
        assert!(private_root::mode_at_real_root(Path::new("/hello")).is_ok());
        assert_eq!(swap(swap_step("echo inside")).stdout, "inside\n");
        let mut command = Command::new("/proc/self/exe");
        private_root::command_at_real_root(&mut command, Path::new("/opt/job"));
        let null = private_root::null().unwrap();
        let output = command.arg("print-directory").stdin(null).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "/opt/job true\n");
        private_root::leave().unwrap();
        fs::remove_file("/hello").unwrap();
        let without = |mut root: BTreeMap<PathBuf, String>| {
            // Its time has changed with what this test made in it.
            root.remove(Path::new("/"));
            root
        };
        assert_eq!(without(container_root()), without(before));
    });
}

/// Uploads of the last layers open their blobs while the build leaves its private root.
pub fn swap_private_root_keeps_names_by_descriptor_good() {
    in_container("swap_private_root_keeps_names_by_descriptor_good", || {
        let private = Path::new(SIDE).join("private");
        fs::create_dir(&private).unwrap();
        let held = fs::File::open("/job-made").unwrap();
        private_root::enter(&private).unwrap();
        let path = bareboat_core::sys::fs::descriptor_path(std::os::fd::AsFd::as_fd(&held));
        let is_over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    assert_eq!(fs::read(&path).unwrap(), b"at run time");
                }
            });
            for _ in 0..2000 {
                private_root::leave().unwrap();
                private_root::enter(&private).unwrap();
            }
            is_over.store(true, std::sync::atomic::Ordering::Relaxed);
            reader.join().unwrap();
        });
        private_root::leave().unwrap();
    });
}

pub fn swap_private_root_says_what_it_lacks() {
    in_container_with("swap_private_root_says_what_it_lacks", "no-chroot", || {
        let private = Path::new(SIDE).join("private");
        fs::create_dir(&private).unwrap();
        let error = private_root::enter(Path::new(SIDE)).unwrap_err();
        assert!(matches!(error, PrivateRootError::NotEmpty { .. }), "{error}");
        let error = private_root::enter(&private).unwrap_err();
        assert!(matches!(error, PrivateRootError::NoCapability), "{error}");
        assert!(!private_root::is_entered());
        // A refused attempt leaves the process where it was.
        assert_eq!(std::env::current_dir().unwrap(), Path::new("/"));
        assert_eq!(swap(swap_step("echo $PWD")).stdout, "/\n");
    });
}
