//! The box inside a user namespace, as root in a container makes one; and the choice of the way.

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::fs::FileTypeExt},
};

use bareboat_core::{
    execute::sandbox::{Host, HostRequest, IdMap, Rung, Way, choose, enter_user_namespace, survey},
    layer::LayerSink,
    rootfs::Unpacker,
    sys::namespace::{in_initial_user_namespace, unshare},
    tree::{EntryPath, IndexBuilder, Kind, Metadata, Row},
};
use rustix::thread::UnshareFlags;

use super::{bench::*, ending::*};

/// The argument that makes this program run its cases in a user namespace.
pub const IN_A_NAMESPACE: &str = "in-a-user-namespace";

pub fn enter_a_namespace() {
    let map = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap();
    enter_user_namespace(&IdMap::identity(&map("uid_map"), &map("gid_map"))).unwrap();
    // Cases mount things themselves.
    unshare(UnshareFlags::NEWNS).unwrap();
}

pub fn is_in_a_namespace() -> bool {
    !in_initial_user_namespace()
}

/// All cases but those that need the machine's own root: they trace or kill from outside, or start this program again.
pub fn the_box_works_in_a_user_namespace() {
    if is_in_a_namespace() {
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap()).arg(IN_A_NAMESPACE).output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

pub fn a_machine_is_not_probed_before_it_is_needed() {
    let usual = Some(PathBuf::from("/nowhere/state"));
    let request = HostRequest { usual, ..HostRequest::default() };
    if is_in_a_namespace() {
        return;
    }
    let host: Host = choose(&request).unwrap();
    assert_eq!((host.rung, host.is_probed), (Some(Rung::Overlay), false));
    assert_eq!(host.state_directory, Path::new("/nowhere/state"));
    assert_eq!((host.flavour.as_str(), host.verdicts.len()), ("root", 0));
    assert!(!Path::new("/nowhere").exists());
}

pub fn a_probe_of_everything_leaves_nothing() {
    let directory = world_readable(tempfile::tempdir().unwrap());
    let state = directory.path().join("state");
    let named = Some(state.clone());
    let verdicts = survey(&HostRequest { named, ..HostRequest::default() });
    let of = |way: Way| verdicts.iter().find(|probe| probe.way == way).unwrap();
    for way in [Way::OverlayRoot, Way::OverlayUserNamespace] {
        assert!(of(way).is_available(), "{}", of(way));
    }
    assert!(!of(Way::Swap).is_available(), "this machine's own root must not be swapped");
    assert_eq!(fs::read_dir(&state).unwrap().count(), 0);
}

/// What the kernel refuses in a namespace: device nodes; what it does otherwise: opaque marks and file capabilities.
pub fn layers_are_whole_in_a_user_namespace() {
    let scratch = world_readable(tempfile::tempdir().unwrap());
    let layer = |name: &str, rows: Vec<Row>, link: Option<(Row, EntryPath)>| {
        let path = scratch.path().join(name);
        fs::create_dir(&path).unwrap();
        let mut unpacker = Unpacker::new(OwnedFd::from(File::open(&path).unwrap())).unwrap();
        let mut index = IndexBuilder::default();
        for row in rows {
            unpacker.entry(&row, &mut std::io::empty()).unwrap();
            if (row.kind == Kind::Directory { opaque: true }) {
                unpacker.opaque(&row.path).unwrap();
            }
            index.insert(row);
        }
        if let Some((row, target)) = link {
            unpacker.hard_link(&row, &target).unwrap();
        }
        unpacker.finish(&index.build(), &|_| None).unwrap();
        path
    };
    let row = |path: &str, kind| {
        let metadata = Metadata { mode: 0o755, uid: 7, gid: 8, ..Metadata::default() };
        Row::new(EntryPath::clean(path.as_bytes()).unwrap(), kind, metadata)
    };
    let device = Kind::CharacterDevice { major: 1, minor: 3 };
    let capability = [&[1, 0, 0, 2][..], &[0, 4, 0, 0], &[0; 12]].concat();
    let mut program = row("opt/bin", Kind::File { size: 0 });
    program.metadata.capability = Some(capability.clone().into());
    let lower = layer(
        "lower",
        vec![
            row("opt", Kind::DIRECTORY),
            row("opt/null", device.clone()),
            row("opt/old", Kind::File { size: 0 }),
            program,
            row("opt/later", device.clone()),
            row("opt/later", Kind::File { size: 0 }),
        ],
        Some((row("opt/link", device), EntryPath::clean(b"opt/null").unwrap())),
    );
    let is_device = |name: &str| {
        fs::symlink_metadata(lower.join("opt").join(name))
            .map(|found| found.file_type().is_char_device())
    };
    if is_in_a_namespace() {
        assert!(is_device("null").is_err() && is_device("link").is_err());
    } else {
        assert!(is_device("null").unwrap() && is_device("link").unwrap());
    }
    assert!(!is_device("later").unwrap());
    let names = ["security.capability", "user.overlay.opaque", "trusted.overlay.opaque"];
    let value = |path: &Path, name: &str| {
        let mut buffer = [0; 64];
        let got = rustix::fs::getxattr(path, name, &mut buffer[..]);
        got.ok().map(|length| buffer[..length].to_vec())
    };
    // Version 2 as it went in, though on disk it names the namespace's root.
    assert_eq!(value(&lower.join("opt/bin"), names[0]), Some(capability));
    let upper = layer("upper", vec![row("opt", Kind::Directory { opaque: true })], None);
    let mark = if is_in_a_namespace() { names[1] } else { names[2] };
    assert_eq!(value(&upper.join("opt"), mark).as_deref(), Some(&b"y"[..]));
    let done =
        step_on(&[&upper, &lower, base()], "ls /opt; stat -c %u:%g /opt; rm -r /opt; mkdir /opt")
            .run();
    assert_eq!(done.stdout, "7:8\n", "{}", done.stderr);
    assert_eq!(value(&done.upper().join("opt"), mark).as_deref(), Some(&b"y"[..]));
}

/// Where a new /proc is refused: the step sees the builder's processes, and what it leaves behind ends all the same.
pub fn processes_can_be_shared() {
    let mark = mark(5);
    let script = STUBBORN.replace("; sleep MARK", "; sleep 0.1").replace("MARK", &mark);
    let script = format!(
        "{script}; ls -d /proc/$PPID; cat /proc/$PPID/environ 2> /dev/null || echo denied
         (echo x > /proc/sys/kernel/panic) 2> /dev/null || echo refused; exit 5"
    );
    let done = step(&script).with(|spec| spec.share_processes = true).run();
    assert_eq!(done.report.exit, StepExit::Code(5), "{}", done.stderr);
    assert!(done.stdout.starts_with("/proc/"), "{}", done.stdout);
    assert!(done.stdout.ends_with("\ndenied\nrefused\n"), "{}", done.stdout);
    assert_eq!(processes(&mark), Vec::<String>::new());
    assert_eq!(mounts(done.directory.path()), Vec::<String>::new());
    let started = Instant::now();
    let canceled = step(&STUBBORN.replace("MARK", &mark)).with(|spec| spec.share_processes = true);
    block_on(async {
        let soon = tokio::time::sleep(Duration::from_millis(300));
        let result = run(canceled.spec.clone(), |_, _| {}, soon).await;
        assert_eq!(result.err(), Some(SandboxError::Canceled));
    });
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(processes(&mark), Vec::<String>::new());
}
