//! What can't be executed, limits, and the probe.

use bareboat_core::{
    execute::sandbox::{Probe, Ulimit, probe},
    sys::seccomp::{Instruction, install_filter},
};

use super::{bench::*, namespace::is_in_a_namespace};

pub fn programs_that_can_not_be_executed() {
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

pub fn magic_links_lead_nowhere() {
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

pub fn limits() {
    let limit = |name: &str, soft, hard| Ulimit { name: name.into(), soft, hard };
    let says = step("ulimit -n; ulimit -Hn; ulimit -c")
        .with(|spec| spec.ulimits = vec![limit("nofile", 321, 654), limit("core", -1, -1)]);
    assert_eq!(says.says(), "321\n654\nunlimited\n");
    let error = step("true").with(|spec| spec.ulimits = vec![limit("nope", 1, 1)]).try_run().err();
    assert_eq!(error, Some(SandboxError::Ulimit { name: "nope".into() }));
}

pub fn many_steps_at_once() {
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

pub fn the_state_on_an_overlay_is_refused() {
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

pub fn the_probe_says_yes_here() {
    let directory = tempfile::tempdir().unwrap();
    let found: Probe = block_on(probe(directory.path()));
    assert!(found.is_available(), "{:?}", found.verdict);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    let missing = block_on(probe(&directory.path().join("missing")));
    assert!(!missing.is_available());
}

/// What an old kernel lacks, and what Docker's own filter refuses even to a container with CAP_SYS_ADMIN.
pub fn refuse_newer_calls() {
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

pub fn an_older_kernel_behind_dockers_filter_will_do() {
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
            "swap_runs_a_step",
            "swap_survives_a_killed",
            "swap_works_from",
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    // Without the other rung's in a user namespace.
    let cases = if is_in_a_namespace() { 12 } else { 18 };
    assert_eq!(said.matches(" ... ok\n").count(), cases, "{said}");
}
