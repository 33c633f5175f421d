use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    io::{self, Read, Seek, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
};

use proptest::prelude::*;
use rustix::mount::{UnmountFlags, unmount};

use super::{
    testing::{BASE, Both, names},
    tests::any_command,
    *,
};
use crate::{
    digest::Digest,
    rootfs::testing::{Overlay, attribute, make, open, path, shell},
    tree::{EntryPath, Timestamp},
};

/// Copies and moves without what a plain tree can't repeat: links by the link counts of the layers below, also within a
/// directory, which overlayfs has copied where a plain tree renames it; and a directory into itself, which stops where the
/// order of the file system has it.
const COPY: &str = r#"cp() {
    from=$(readlink -f "${@: -2:1}") && to=$(readlink -f "${@: -1}") || return 1
    case "$to/" in
        "$from/"*) return 1 ;;
    esac
    command cp -rP --preserve=mode,ownership,timestamps,xattr "${@:2}"
}
mv() {
    from=$(readlink -f "${@: -2:1}") && to=$(readlink -m "${@: -1}") || return 1
    [ ! -d "$from" ] || [ -z "$(find "$from" -name 'hard-*' -type f)" ] || return 1
    case "$from:$to" in
        *hard-*:*hard-*) return 1 ;;
    esac
    command mv "$@"
}"#;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(50) })]

    #[test]
    fn a_plain_tree_and_an_overlay_give_the_same_layers(
        steps in prop::collection::vec(prop::collection::vec(any_command(), 1..8), 1..4)
    ) {
        let mut both = Both::new(&BASE, None);
        for commands in steps {
            let commands = commands.join("\n").replace("cp -aT", "cp -a -T");
            both.step(&format!("{COPY}\nset +e\n{commands}\ntrue"));
        }
    }
}

#[test]
fn names_of_all_kinds_give_the_same_layers() {
    let mut both = Both::new(&BASE, None);
    assert_eq!(
        both.step("mv opt opt2; touch srv/x"),
        [
            ".wh.opt",
            "opt2",
            "opt2/app",
            "opt2/app/config",
            "opt2/app/latest",
            "opt2/app/run.sh",
            "opt2/app/sub",
            "opt2/app/sub/deep",
            "opt2/app/sub/deep/file",
            "opt2/hard-a",
            "opt2/hard-b",
            "opt2/other",
            "srv",
            "srv/x"
        ]
    );
    both.step("ln opt2/other srv/x2; ln -f opt2/hard-a opt2/hard-b; chmod 4755 opt2/other");
    assert_eq!(
        both.step("ln -f opt2/hard-a opt2/hard-b; ln opt2/other w/fifo 2>&1 || true"),
        [""; 0]
    );
    both.step("mv opt2 opt; mv opt opt2; touch -d @1000000000.5 etc/release; touch srv");
    both.step("touch opt2/.wh.other opt2/app/.wh..wh..opq; mkdir .wh.srv; touch .wh.srv/in");
    both.step("mkdir -p $'\\xff\\xfe/a b'; touch $'\\xff\\xfe/new\\nline' \"$(printf 'n%.0s' $(seq 255))\"");
    both.step("setcap cap_net_raw+ep etc/release; chmod 3777 etc; chmod 700 .");
    both.step("setcap -r etc/release; setcap cap_net_raw+ep etc/release; mkdir -p $(printf 'd/%.0s' $(seq 300))");
    both.step("rm -rf d; mknod n c 1 3; mknod b b 7 1; chown 3000000:4000000 b; rm etc/release");
    both.step("rm -rf ./*");
    let listed = fs::read_dir(&both.tree).unwrap().count();
    assert_eq!(listed, 1, "the directory called .wh.srv, which * does not match");
}

#[test]
fn sockets_attributes_and_the_sandboxs_own_are_dropped() {
    let ignore = ["etc/hosts", "new", "new/deep", "srv/t", "made", "full"].map(path);
    let options = DiffOptions { ignore: &ignore, ..DiffOptions::default() };
    let mut both = Both::new(&BASE, None);
    let script = "python3 -c 'import os, socket
for n in (\"srv/s\", \"opt/other\"):
    if os.path.exists(n): os.remove(n)
    socket.socket(socket.AF_UNIX).bind(n)
for n in (\"etc\", \"etc/release\", \".\"): os.setxattr(n, \"user.a\", b\"1\")
os.mknod(\"srv/nothing\", 0o20600, 0)'
touch etc/hosts; mkdir -p new/deep srv/t made; touch made/own; echo x > full";
    let changes = both.plain_step(script, options);
    assert_eq!(names(&changes.changeset), ["full", "made", "made/own", "opt", "opt/.wh.other"]);
    let index = crate::rootfs::changeset_index(&changes.changeset, None);
    both.settle_plain(changes, None);
    both.stage.push(PathBuf::from("/"), index);
    both.check_tree(script);
    for name in ["etc", "etc/release", "."] {
        assert!(attribute(&both.tree.join(name), "user.a").is_none(), "{name}");
    }
}

/// Unmounts at its end.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

/// A file system in a file; `None` where the machine has no program to make it.
fn loop_mount(scratch: &Path, program: &str, arguments: &[&str]) -> Option<Mounted> {
    let (image, at) = (scratch.join(program), make(scratch, &format!("{program}-at")));
    fs::File::create(&image).unwrap().set_len(320 << 20).unwrap();
    let made = Command::new(program).args(arguments).arg(&image).output();
    made.ok()?.status.success().then_some(())?;
    let mount = Command::new("mount").args(["-o", "loop"]).args([&image, &at]).output().unwrap();
    assert!(mount.status.success(), "{}", String::from_utf8_lossy(&mount.stderr));
    Some(Mounted(at))
}

/// Changes of a file of 8 KiB whose size and mtime stay what they were, and whether its layer has it.
const CHANGES: &[(&str, bool)] = &[
    ("true", false),
    ("printf y | dd of=d/data conv=notrunc status=none; BACK", true),
    ("truncate -s 1 d/data; truncate -s 8192 d/data; BACK", true),
    ("fallocate -p -o 4096 -l 4096 d/data; BACK", true),
    (
        "PYTHON r, w = os.pipe(); os.write(w, b'y'); os.splice(r, f.fileno(), 1, offset_dst=7)'; BACK",
        true,
    ),
    ("PYTHON os.setxattr(f.fileno(), 'user.a', b'1')'", false),
    (
        "PYTHON os.setxattr(f.fileno(), 'user.a', b'1'); os.removexattr(f.fileno(), 'user.a')'",
        false,
    ),
    ("setcap cap_net_raw+ep d/data", true),
    ("chmod 600 d/data", true),
    ("chmod 600 d/data; chmod 644 d/data", false),
    ("chown 3 d/data; chown 0 d/data", false),
    ("chown -R 0:0 .", false),
    ("ln d/data d/other; rm d/other", false),
    ("tr x y < d/data > n; touch -r d/data n; mv n d/data", true),
    ("cp -p d/data n; mv n d/data", false),
    ("mv d/data n; mv n d/data", false),
    ("PYTHON m = mmap.mmap(f.fileno(), 8192); m[9:10] = b\"y\"'; BACK", true),
    (
        "PYTHON m = mmap.mmap(f.fileno(), 8192); q = m[:8192]; m[9:10] = b\"y\"; m.flush()'; BACK",
        true,
    ),
    ("PYTHON m = mmap.mmap(f.fileno(), 8192); q = m[:8192]; m[9:10] = b\"y\"'; BACK", true),
    (
        "PYTHON m = mmap.mmap(f.fileno(), 8192, flags=mmap.MAP_SHARED | 0x8000); m[9:10] = b\"y\"'; BACK",
        true,
    ),
    ("mv d e; mkdir d; mv e/data d; rmdir e; touch -r . d", false),
];

fn every_change_is_seen(place: &Path) {
    let content = format!("f d/data {}", "x".repeat(8192));
    for (at, (change, emitted)) in CHANGES.iter().enumerate() {
        let python = "python3 -c 'import os, mmap; f = open(\"d/data\", \"r+b\", 0);";
        let script = change.replace("PYTHON", python).replace("b'", "b\"").replace("'y'", "\"y\"");
        let script = if script.contains("python3") { requoted(&script) } else { script };
        let script = script.replace("BACK", "touch -d @1000000000 d/data");
        let mut both = Both::new(&[&["d d", &content]], Some(&make(place, &at.to_string())));
        let changes = both.plain_step(&script, DiffOptions::default());
        let wanted: &[&str] = if *emitted { &["d", "d/data"] } else { &[] };
        assert_eq!(names(&changes.changeset), wanted, "{script} on {}", place.display());
        both.settle_plain(changes, None);
        if !emitted {
            both.check_tree(&script);
        }
    }
}

/// A program in one pair of single quotes, whatever quotes it had inside.
fn requoted(script: &str) -> String {
    let (head, rest) = script.split_once("-c '").unwrap();
    let (program, tail) = rest.rsplit_once('\'').unwrap();
    format!("{head}-c '{}'{tail}", program.replace('\'', "\""))
}

#[test]
fn every_change_is_seen_on_every_file_system() {
    let scratch = tempfile::tempdir().unwrap();
    every_change_is_seen(&make(scratch.path(), "plain"));
    let overlay = Overlay::mount(scratch.path(), "overlay", &[make(scratch.path(), "lower")]);
    every_change_is_seen(&overlay.merged);
    drop(overlay);
    if let Some(mounted) = loop_mount(scratch.path(), "mkfs.xfs", &["-q"]) {
        every_change_is_seen(&mounted.0);
    }
}

/// Rewrites a file with its size and mtime kept, right after its baseline was taken.
fn rewrites_are_seen(place: &Path, rounds: u8) {
    let mut both = Both::new(&[&["f data 0"]], Some(place));
    let mut file = fs::OpenOptions::new().write(true).open(both.tree.join("data")).unwrap();
    for round in 0..rounds {
        file.rewind().unwrap();
        file.write_all(&[b'A' + round % 2]).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
        both.take();
        let baseline = both.baseline.as_ref().unwrap();
        let began = wait_for_clock(baseline.newest_change());
        file.rewind().unwrap();
        file.write_all(b"z").unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
        let changes = diff(&both, began, &HashMap::new(), &both.stage.content());
        assert_eq!(names(&changes.changeset), ["data"], "{round} on {}", place.display());
    }
}

fn diff(
    both: &Both,
    began: Timestamp,
    renamed: &HashMap<EntryPath, Renamed>,
    digests: &dyn LowerDigests,
) -> PlainChanges {
    let root = open(&both.tree);
    let step = AfterStep {
        root: root.as_fd(),
        parent: &both.stage.snapshot,
        baseline: both.baseline.as_ref().unwrap(),
        renamed,
        began,
        options: DiffOptions::default(),
        threads: 2,
    };
    plain_diff(&step, digests, tempfile::tempfile().unwrap()).unwrap()
}

#[test]
fn what_is_rewritten_right_after_the_baseline_is_seen() {
    let scratch = tempfile::tempdir().unwrap();
    rewrites_are_seen(&make(scratch.path(), "plain"), 200);
    let overlay = Overlay::mount(scratch.path(), "overlay", &[make(scratch.path(), "lower")]);
    rewrites_are_seen(&overlay.merged, 50);
    drop(overlay);
    // Inodes too small for fractions of seconds.
    if let Some(mounted) = loop_mount(scratch.path(), "mkfs.ext4", &["-q", "-I", "128"]) {
        rewrites_are_seen(&mounted.0, 3);
    }
}

#[test]
fn what_a_swap_renamed_is_as_good_as_untouched() {
    let both = Both::new(&BASE, None);
    let aside = make(both.stage.scratch.path(), "aside");
    let etc = make(&aside, "etc");
    let stamps = |root: &Path| -> BTreeMap<EntryPath, Stamp> {
        let names = ["opt", "srv", "w", "reldir", "etc/release", "etc/empty"].map(path);
        let at = |path: &EntryPath| {
            let directory = root.join(if path.components().count() > 1 { "etc" } else { "." });
            Stamp::at(open(&directory).as_fd(), path.file_name()).unwrap()
        };
        names.iter().map(|path| (path.clone(), at(path))).collect()
    };
    let from = both.tree.display();
    shell(
        &aside,
        &format!("mv {from}/opt {from}/srv {from}/w {from}/reldir .; mv {from}/etc/* etc"),
    );
    let before = stamps(&aside);
    let newest = before.values().map(Stamp::changed_at).max().unwrap();
    let began = wait_for_clock(newest.max(both.baseline.as_ref().unwrap().newest_change()));
    shell(&aside, "printf Golden > etc/release; touch -d @1000000000 etc/release; echo n > srv/n");
    let after = stamps(&aside);
    shell(&aside, &format!("mv opt srv w reldir {from}; mv etc/* {from}/etc"));
    assert!(fs::read_dir(etc).unwrap().next().is_none());
    let renamed: HashMap<EntryPath, Renamed> = before
        .into_iter()
        .map(|(path, before)| (path.clone(), Renamed { before, after: after[&path] }))
        .collect();
    let asked = std::cell::RefCell::new(Vec::new());
    let content = both.stage.content();
    let digests = |layer: usize, wanted: &BTreeSet<EntryPath>| {
        asked.borrow_mut().extend(wanted.iter().cloned());
        LowerDigests::digests(&content, layer, wanted)
    };
    let changes = diff(&both, began, &renamed, &digests);
    assert_eq!(names(&changes.changeset), ["etc", "etc/release", "srv", "srv/n"]);
    assert_eq!(*asked.borrow(), [path("etc/release")]);
    asked.borrow_mut().clear();
    let changes = diff(&both, began, &HashMap::new(), &digests);
    assert_eq!(names(&changes.changeset), ["etc", "etc/release", "srv", "srv/n"]);
    assert_eq!(*asked.borrow(), [path("etc/release")], "links and directories have no content");
}

#[test]
fn what_was_changed_in_the_future_is_compared_by_content() {
    let both = Both::new(&BASE, None);
    let asked = std::cell::Cell::new(0);
    let content = both.stage.content();
    let digests = |layer: usize, wanted: &BTreeSet<EntryPath>| {
        asked.set(asked.get() + wanted.len());
        LowerDigests::digests(&content, layer, wanted)
    };
    let changes = diff(&both, Timestamp::default(), &HashMap::new(), &digests);
    assert!(changes.changeset.is_empty());
    assert_eq!(asked.get(), 8, "all files that are not empty");
    let failing = |_: usize, _: &BTreeSet<EntryPath>| -> io::Result<BTreeMap<EntryPath, Digest>> {
        Ok(BTreeMap::new())
    };
    let root = open(&both.tree);
    let step = AfterStep {
        root: root.as_fd(),
        parent: &both.stage.snapshot,
        baseline: both.baseline.as_ref().unwrap(),
        renamed: &HashMap::new(),
        began: Timestamp::default(),
        options: DiffOptions::default(),
        threads: 1,
    };
    let missing = plain_diff(&step, &failing, tempfile::tempfile().unwrap());
    assert!(matches!(missing, Err(DiffError::Lower { .. })), "{missing:?}");
}

#[test]
fn a_tree_that_was_reached_is_spoilt_and_the_canary_dead() {
    let scratch = tempfile::tempdir().unwrap();
    for (at, (script, kills)) in [
        ("true", false),
        ("find . -xdev -type f -perm /6000 -exec chmod a-s {} +", true),
        ("chown -R 0:0 .", true),
        ("rm -rf ./*", true),
        ("echo x > tree/opt/new", false),
        ("rm tree/opt/other", false),
        ("chmod 700 tree", false),
        ("mv tree tree2; mv tree2 tree", false),
    ]
    .into_iter()
    .enumerate()
    {
        let place = make(scratch.path(), &at.to_string());
        let mut both = Both::new(&BASE, Some(&place));
        shell(&both.tree, "chmod 4755 opt/app/run.sh");
        both.take();
        let canary = Canary::place(open(&place).as_fd(), b"canary").unwrap();
        let root = open(&both.tree);
        shell(&place, script);
        let found = verify(root.as_fd(), both.baseline.as_ref().unwrap(), 2).unwrap();
        assert_eq!(found.is_empty(), at == 0 || at == 7, "{script}: {found:?}");
        assert_eq!(canary.is_alive(), !kills, "{script}");
        if at == 4 {
            let new = Difference { path: path("opt/new"), kind: DifferenceKind::New };
            assert!(found.iter().any(|found| found.path == path("opt")) || found.contains(&new));
        }
    }
}

#[test]
fn a_damaged_baseline_is_an_error() {
    let both = Both::new(&BASE, None);
    let mut file = tempfile::tempfile().unwrap();
    Baseline::take(open(&both.tree).as_fd(), file.try_clone().unwrap(), 2).unwrap();
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    assert!(bytes.len() < 80 * (names_below(&both.tree) + 8), "{} bytes", bytes.len());
    let reread = |bytes: &[u8]| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let baseline = Baseline::open(file)?;
        verify(open(&both.tree).as_fd(), &baseline, 1)
    };
    assert_eq!(reread(&bytes).unwrap(), []);
    for at in 0..bytes.len() {
        assert!(reread(&bytes[..at]).is_err(), "cut at {at}");
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x81;
        let _ = reread(&flipped);
    }
}

fn names_below(tree: &Path) -> usize {
    crate::rootfs::testing::walk(tree).len()
}

#[test]
fn twenty_thousand_names_by_many_threads() {
    let mut both = Both::new(&BASE, None);
    let script = "mkdir many; cd many;
        for d in $(seq 40); do mkdir -p $d/in; (cd $d/in; echo x | tee $(seq 500) >/dev/null); done";
    assert_eq!(both.step(script).len(), 1 + 80 + 20_000);
    assert_eq!(
        both.step("echo y > many/7/in/77; rm -r many/8"),
        ["many", "many/.wh.8", "many/7", "many/7/in", "many/7/in/77"]
    );
}
