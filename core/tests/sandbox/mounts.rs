//! `RUN --mount`.

use bareboat_core::execute::sandbox::Discard;

use super::bench::*;

pub fn hostile_links_stay_inside() {
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

pub fn mounts_of_every_kind() {
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

pub fn mounts_in_mounts() {
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

pub fn mounts_that_are_refused() {
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

pub fn a_bind_source_stays_in_its_root() {
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
