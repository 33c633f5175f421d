//! What a step leaves in its upper directory.

use super::bench::*;

pub fn nothing_is_left_of_mount_points() {
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

pub fn a_bare_base_gets_its_three_directories() {
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

pub fn from_scratch_runs_too() {
    let tree = base().to_path_buf();
    let bind = MountSource::Bind { root: tree, path: "bin".into(), writable: false };
    let done = step_on(&[], "echo x > /out; mkdir /d; touch /bin/x 2>/dev/null || echo ro")
        .mount("/bin", bind)
        .run();
    assert_eq!(done.stdout, "ro\n", "{}", done.stderr);
    assert_eq!(done.changes(), ["d", "dev", "out", "proc", "sys"].map(String::from).into());
}

pub fn the_upper_directory_is_exactly_the_change() {
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

pub fn many_layers() {
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

pub fn times_and_attributes_of_directories_survive() {
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
