use std::{
    io::{self, Read},
    os::fd::AsFd,
    sync::Arc,
};

use proptest::prelude::*;

use super::{
    lower::{LowerDirectory, LowerEntry},
    testing::{BASE, Both, Stage, names, step, tree_of, without_names},
    *,
};
use crate::{
    digest::Digest,
    rootfs::{
        apply_changeset, changeset_index,
        testing::{Tree, attribute, expected, make, open, path, row, shell, walk},
    },
    tree::{EntryPath, IndexBuilder, Kind, Metadata, Row, Snapshot, SnapshotLayer, Timestamp},
};

fn check(script: &str, wanted: &[&str]) {
    let got = step(&mut Stage::new(&BASE), "run", script);
    assert_eq!(got, wanted, "{script}");
    Both::new(&BASE, None).step(script);
}

#[test]
fn steps_have_the_entries_that_buildkit_gives_them() {
    check("true", &[]);
    check("touch srv/x; rm srv/x; mkdir y; rmdir y", &[]);
    check("rm opt/app/config", &["opt", "opt/app", "opt/app/.wh.config"]);
    check("rm -r opt", &[".wh.opt"]);
    check("rm opt/hard-a", &["opt", "opt/.wh.hard-a"]);
    check("echo more >> opt/hard-a", &["opt", "opt/hard-a"]);
    check("ln etc/release etc/second", &["etc", "etc/second"]);
    check("ln opt/hard-a srv/third", &["srv", "srv/third"]);
    check(
        "cd srv; echo x > a; ln a b; mkdir d; ln a d/c",
        &["srv", "srv/a", "srv/b", "srv/d", "srv/d/c"],
    );
    check("cp etc/release x; cat x > etc/release; rm x", &["etc", "etc/release"]);
    check("touch -d '2010-01-02 03:04:05' etc/release", &["etc", "etc/release"]);
    check("mkdir -p a/b/c; echo x > a/b/c/f", &["a", "a/b", "a/b/c", "a/b/c/f"]);
    check("mkdir e1; mkdir -m 700 e2", &["e1", "e2"]);
    check("touch srv/.whatever srv/.w", &["srv", "srv/.w", "srv/.whatever"]);
    check("chmod 600 etc/release; chown 5:6 opt", &["etc", "etc/release", "opt"]);
}

#[test]
fn a_type_that_changed_needs_no_whiteouts_below() {
    check("rm -r opt/app; echo f > opt/app", &["opt", "opt/app"]);
    check("rm -r opt/app; ln -s /data/real opt/app", &["opt", "opt/app"]);
    check(
        "rm etc/release; mkdir etc/release; touch etc/release/in",
        &["etc", "etc/release", "etc/release/in"],
    );
    check("rm reldir; mkdir reldir; echo x > reldir/x", &["reldir", "reldir/x"]);
    check("ln -sfn /tmp reldir", &["reldir"]);
    check("rm w/fifo; mknod w/fifo c 1 3", &["w", "w/fifo"]);
}

#[test]
fn an_opaque_directory_becomes_a_whiteout_for_each_name() {
    check(
        "rm -r opt/app; mkdir opt/app; echo n > opt/app/new",
        &[
            "opt",
            "opt/app",
            "opt/app/.wh.config",
            "opt/app/.wh.latest",
            "opt/app/.wh.run.sh",
            "opt/app/.wh.sub",
            "opt/app/new",
        ],
    );
    check(
        "rm -r opt/app; mkdir -p opt/app/sub/deep; touch opt/app/sub/n",
        &[
            "opt",
            "opt/app",
            "opt/app/.wh.config",
            "opt/app/.wh.latest",
            "opt/app/.wh.run.sh",
            "opt/app/sub",
            "opt/app/sub/deep",
            "opt/app/sub/deep/.wh.file",
            "opt/app/sub/n",
        ],
    );
    check(
        "mv opt/app opt/moved",
        &[
            "opt",
            "opt/.wh.app",
            "opt/moved",
            "opt/moved/config",
            "opt/moved/latest",
            "opt/moved/run.sh",
            "opt/moved/sub",
            "opt/moved/sub/deep",
            "opt/moved/sub/deep/file",
        ],
    );
    check("rm w/hidden/new; rmdir w/hidden", &["w", "w/.wh.hidden"]);
    check("rm -r w/hidden; mkdir w/hidden", &["w", "w/hidden", "w/hidden/.wh.new"]);
    check("cp -a opt/app keep; rm -r opt/app; mv keep opt/app", &[]);
    check(
        "cp -a opt/app keep; rm -r opt/app; mv keep opt/app; rm opt/app/sub/deep/file",
        &["opt", "opt/app", "opt/app/sub", "opt/app/sub/deep", "opt/app/sub/deep/.wh.file"],
    );
}

#[test]
fn what_was_copied_up_but_is_the_same_is_left_out() {
    check("chmod 600 etc/release; chmod 644 etc/release", &[]);
    check("chown 5 opt/app; chown 0 opt/app; touch opt; touch opt/x; rm opt/x", &[]);
    check(
        "touch -r etc/release t; echo y > opt/other; touch -r t opt/other; rm t",
        &["opt", "opt/other"],
    );
    check("printf same > opt/other; touch -r opt/hard-a opt/other", &[]);
    check("printf SAME > opt/other; touch -r opt/hard-a opt/other", &["opt", "opt/other"]);
    check("touch -r etc/release t; ln opt/hard-a l; rm l t", &[]);
    check("chown -h 3 reldir; chown -h 0 reldir", &[]);
    check("chmod u+s etc/empty; chmod 644 etc/empty", &[]);
}

#[test]
fn devices_capabilities_and_odd_names_go_into_layers() {
    check(
        "cd srv; mkfifo p; mknod n c 1 3; mknod b b 7 1; touch s; chmod 4755 s; mkdir -m 1777 t; touch 'a b' \"$(printf 'new\\nline')\"; chown 3000000:4000000 s",
        &["srv", "srv/a b", "srv/b", "srv/n", "srv/new\\nline", "srv/p", "srv/s", "srv/t"],
    );
    check("setcap cap_net_raw+ep opt/app/run.sh", &["opt", "opt/app", "opt/app/run.sh"]);
    check("setcap cap_net_raw+ep opt/app/run.sh; setcap -r opt/app/run.sh", &[]);
}

#[test]
fn a_capability_is_compared_with_the_one_below() {
    let mut stage = Stage::new(&BASE);
    step(&mut stage, "one", "setcap cap_net_raw+ep opt/app/run.sh");
    assert_eq!(
        step(&mut stage, "two", "setcap -r opt/app/run.sh; setcap cap_net_raw+ep opt/app/run.sh"),
        [""; 0]
    );
    let wanted = ["opt", "opt/app", "opt/app/run.sh"];
    assert_eq!(step(&mut stage, "three", "setcap cap_chown+ep opt/app/run.sh"), wanted);
    assert_eq!(step(&mut stage, "four", "setcap -r opt/app/run.sh"), wanted);
}

#[test]
fn sockets_and_foreign_attributes_are_in_no_layer() {
    let socket = |at: &str| {
        format!("python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"{at}\")'")
    };
    let mut stage = Stage::new(&BASE);
    let overlay = stage
        .run("sockets", &format!("{}; rm opt/other; {}", socket("srv/s"), socket("opt/other")));
    let changeset = stage.diff(&overlay.upper, &DiffOptions::default()).unwrap();
    assert_eq!(names(&changeset), ["opt", "opt/.wh.other"]);
    let upper = overlay.upper.clone();
    drop(overlay);
    settle(open(&upper).as_fd(), &stage.snapshot, &changeset, None).unwrap();
    assert_eq!(walk(&upper), expected(&changeset_index(&changeset, None)));
    let set = "import os; os.setxattr(\"srv/x\", \"user.a\", b\"1\"); os.setxattr(\"srv\", \"user.a\", b\"1\")";
    let wanted = ["srv", "srv/x"];
    assert_eq!(step(&mut stage, "xattrs", &format!("touch srv/x; python3 -c '{set}'")), wanted);
    let upper = stage.lowers.last().unwrap();
    assert!(attribute(&upper.join("srv/x"), "user.a").is_none());
    assert!(attribute(&upper.join("srv"), "user.a").is_none());
}

#[test]
fn names_of_whiteouts_hide_their_namesakes() {
    let mut stage = Stage::new(&BASE);
    let overlay = stage.run("wh", "touch opt/.wh.other opt/app/.wh..wh..opq; ln opt/.wh.other opt/alone; mkdir .wh.srv; touch .wh.srv/in");
    let changeset = stage.diff(&overlay.upper, &DiffOptions::default()).unwrap();
    assert!(changeset.changes().iter().all(|change| change.link_group == 0));
    assert_eq!(
        names(&changeset),
        [
            ".wh.srv",
            ".wh.srv/in",
            "opt",
            "opt/.wh.other",
            "opt/alone",
            "opt/app",
            "opt/app/.wh..wh..opq"
        ]
    );
    let (index, upper) = (changeset_index(&changeset, None), overlay.upper.clone());
    drop(overlay);
    settle(open(&upper).as_fd(), &stage.snapshot, &changeset, None).unwrap();
    assert_eq!(walk(&upper), expected(&index));
    stage.push(upper, index);
    let next = stage.run("next", "test ! -e opt/other; test ! -e srv; test -z \"$(ls opt/app)\"");
    assert_eq!(tree_of(&stage.snapshot), without_names(walk(&next.merged)));
}

#[test]
fn names_that_no_reader_takes_are_refused() {
    let stage = Stage::new(&BASE);
    for (at, name) in [".wh.", ".wh..", ".wh..."].into_iter().enumerate() {
        let overlay = stage.run(&at.to_string(), &format!("touch 'srv/{name}'"));
        let error = stage.diff(&overlay.upper, &DiffOptions::default()).unwrap_err();
        assert!(matches!(error, DiffError::WhiteoutName { .. }), "{error}");
    }
    let deep = "for i in $(seq 25); do n=$(printf 'n%.0s' $(seq 200)); mkdir $n; cd $n; done";
    let overlay = stage.run("deep", deep);
    let error = stage.diff(&overlay.upper, &DiffOptions::default()).unwrap_err();
    assert!(matches!(error, DiffError::Path { .. }), "{error}");
}

#[test]
fn what_the_sandbox_made_is_left_out() {
    let stage = Stage::new(&BASE);
    let ignore = ["etc/hosts", "new", "new/deep", "new/deep/er", "srv/t", "made", "made/x", "full"]
        .map(path);
    let options = DiffOptions { ignore: &ignore, ..DiffOptions::default() };
    let overlay = stage.run("stubs", "touch etc/hosts; mkdir -p new/deep/er srv/t");
    assert!(stage.diff(&overlay.upper, &options).unwrap().is_empty());
    overlay.run("touch srv/y; mkdir -p made/x; touch made/own; echo x > full");
    let changeset = stage.diff(&overlay.upper, &options).unwrap();
    assert_eq!(names(&changeset), ["full", "made", "made/own", "srv", "srv/y"]);
}

#[test]
fn mtimes_are_capped_and_compared_as_capped() {
    let mut stage = Stage::new(&BASE);
    let options = DiffOptions { mtime_seconds_max: Some(1_000_000_000), ..DiffOptions::default() };
    let overlay = stage.run("cap", "touch etc/release; echo x > srv/new; chmod 600 srv/new");
    let changeset = stage.diff(&overlay.upper, &options).unwrap();
    assert_eq!(names(&changeset), ["srv", "srv/new"], "touched beyond the cap is as it was");
    let times = |tree: &Tree| {
        tree.values().all(|seen| seen.metadata.mtime == Timestamp::from_seconds(1_000_000_000))
    };
    let upper = overlay.upper.clone();
    drop(overlay);
    settle(open(&upper).as_fd(), &stage.snapshot, &changeset, Some(1_000_000_000)).unwrap();
    assert!(times(&walk(&upper)));
    stage.push(upper, changeset_index(&changeset, Some(1_000_000_000)));
    let next = stage.run("next", "true");
    assert_eq!(tree_of(&stage.snapshot), without_names(walk(&next.merged)));
}

#[test]
fn a_bare_base_gets_its_mount_points() {
    let mut stage = Stage::new(&[&["f bin/sh x"]]);
    assert_eq!(
        step(&mut stage, "run", "mkdir dev proc sys; echo x > out"),
        ["dev", "out", "proc", "sys"]
    );
}

#[test]
fn marked_files_are_whiteouts_where_their_directory_says_so() {
    let stage = Stage::new(&BASE);
    let upper = make(stage.scratch.path(), "upper");
    shell(
        &upper,
        "mkdir opt etc; touch opt/other etc/release etc/new; python3 -c '
import os
os.setxattr(\"opt\", \"trusted.overlay.opaque\", b\"x\")
for n in (\"opt/other\", \"etc/release\"): os.setxattr(n, \"trusted.overlay.whiteout\", b\"y\")
os.setxattr(\"etc\", \"user.overlay.opaque\", b\"y\")'",
    );
    let changeset = stage.diff(&upper, &DiffOptions::default()).unwrap();
    assert_eq!(
        names(&changeset),
        ["etc", "etc/.wh.empty", "etc/new", "etc/release", "opt", "opt/.wh.other"]
    );
}

#[test]
fn a_capability_of_a_namespace_is_refused_by_name() {
    let stage = Stage::new(&BASE);
    let upper = make(stage.scratch.path(), "upper");
    shell(&upper, "touch x; setcap -n 1000 cap_net_raw+ep x");
    let error = stage.diff(&upper, &DiffOptions::default()).unwrap_err();
    assert!(matches!(error, DiffError::CapabilityNamespace { root_id: 1000, .. }), "{error}");
}

/// Contents come from nowhere: a test that needs one fails.
struct NoContent;

impl LowerContent for NoContent {
    fn open(&self, _: usize, _: &Row) -> io::Result<Box<dyn Read>> {
        Err(io::Error::other("read"))
    }
}

#[test]
fn a_known_digest_stands_for_the_content_below() {
    let scratch = tempfile::tempdir().unwrap();
    let (row, _) = row("f x same");
    let diff = |digest: Option<Digest>, name: &str| {
        let mut builder = IndexBuilder::default();
        builder.insert(Row { digest, ..row.clone() });
        let layer = SnapshotLayer { diff_id: Digest::of(b""), index: Arc::new(builder.build()) };
        let upper = make(scratch.path(), name);
        shell(&upper, "umask 022; printf same > x; touch -d @1000000000 x");
        let snapshot = Snapshot::new(vec![layer]);
        overlay_diff(open(&upper).as_fd(), &snapshot, &NoContent, &DiffOptions::default())
    };
    assert!(diff(Some(Digest::of(b"same")), "a").unwrap().is_empty());
    assert_eq!(diff(Some(Digest::of(b"else")), "b").unwrap().changes().len(), 1);
    assert!(matches!(diff(None, "c"), Err(DiffError::Lower { .. })));
}

#[test]
fn twenty_thousand_files_and_all_of_them_deleted() {
    let mut stage = Stage::new(&BASE);
    let script = "mkdir many; cd many;
        for d in $(seq 20); do mkdir $d; (cd $d; echo x | tee $(seq 1000) >/dev/null); done;
        cd ..; mkdir -p $(printf 'd/%.0s' $(seq 150))";
    assert_eq!(step(&mut stage, "many", script).len(), 20_171);
    assert_eq!(step(&mut stage, "none", "find . -xdev -mindepth 1 -delete").len(), 7);
}

#[test]
fn depth_costs_neither_stack_nor_handles() {
    let mut stage = Stage::new(&[&["d srv"]]);
    let deep = |name: &str| format!("mkdir -p $(printf '{name}/%.0s' $(seq 600))");
    let run = |stage: &mut Stage, name: &str, script: &str| {
        let overlay = stage.run(name, script);
        let changeset = stage.diff(&overlay.upper, &DiffOptions::default()).unwrap();
        let upper = overlay.upper.clone();
        drop(overlay);
        settle(open(&upper).as_fd(), &stage.snapshot, &changeset, None).unwrap();
        let applied = make(stage.scratch.path(), &format!("{name}-applied"));
        apply_changeset(open(&applied), &changeset, None).unwrap();
        assert_eq!(walk(&applied), walk(&upper));
        stage.push(upper, changeset_index(&changeset, None));
        changeset.changes().len()
    };
    assert_eq!(run(&mut stage, "make", &deep("d")), 600);
    assert_eq!(run(&mut stage, "none", "touch d; chmod 700 d; chmod 755 d"), 0);
    assert_eq!(run(&mut stage, "again", &format!("rm -r d; {}; chmod 700 d", deep("d"))), 1);
    assert_eq!(run(&mut stage, "other", &format!("rm -r d; {}", deep("e"))), 601);
}

pub fn any_command() -> impl Strategy<Value = String> {
    let name = || {
        prop::sample::select(vec![
            "opt",
            "opt/app",
            "opt/app/config",
            "opt/app/sub",
            "opt/app/sub/deep",
            "opt/hard-a",
            "opt/hard-b",
            "w",
            "w/hidden",
            "w/gone",
            "new",
            "new/a",
            "etc",
            "reldir",
        ])
    };
    let pair = [
        "mv {} {}",
        "mv -T {} {}",
        "ln {} {}",
        "cp -a {} {}",
        "cp -aT {} {}",
        "ln -sfnr {} {}",
        "touch -r {} {}",
    ];
    let one = [
        "rm -rf {}",
        "mkdir -p {}",
        "mkdir {}",
        // Opening a FIFO would wait for its other end.
        "test -p {} || echo x > {}",
        "test -p {} || echo y >> {}",
        "touch -d @5 {}",
        "chmod 700 {}",
        "chmod 755 {}",
        "chown 1:2 {}",
        "rmdir {}",
        "mkfifo {}",
        "mknod {} c 1 3",
        "rm -rf {}/*",
        "touch -d @1000000000 {}",
    ];
    prop_oneof![
        (prop::sample::select(pair.to_vec()), name(), name())
            .prop_map(|(form, a, b)| form.replacen("{}", a, 1).replacen("{}", b, 1)),
        (prop::sample::select(one.to_vec()), name()).prop_map(|(form, a)| form.replace("{}", a)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(120) })]

    #[test]
    fn a_layer_turns_its_parent_into_what_the_step_left(
        steps in prop::collection::vec(prop::collection::vec(any_command(), 1..8), 1..4)
    ) {
        let mut stage = Stage::new(&BASE);
        for (at, commands) in steps.iter().enumerate() {
            let script = format!("set +e\n{}\ntrue", commands.join("\n"));
            step(&mut stage, &at.to_string(), &script);
        }
    }

    #[test]
    fn going_down_sees_what_a_lookup_sees(
        layers in prop::collection::vec(prop::collection::vec(any_row(), 1..7), 1..5)
    ) {
        let layers = layers.into_iter().map(|rows| {
            let mut builder = IndexBuilder::default();
            for (row, opaque) in rows {
                if opaque { builder.set_opaque(&row.path) } else { builder.insert(row) }
            }
            SnapshotLayer { diff_id: Digest::of(b""), index: Arc::new(builder.build()) }
        });
        let snapshot = Snapshot::new(layers.collect());
        assert_same_below(&snapshot, &LowerDirectory::root(&snapshot), &EntryPath::root());
    }
}

fn any_row() -> impl Strategy<Value = (Row, bool)> {
    let name = prop::collection::vec(prop::sample::select(vec!["a", "b"]), 0..4);
    let kind = prop::sample::select(vec![Kind::DIRECTORY, Kind::Fifo, Kind::Whiteout]);
    (name, kind, 0..4u32, any::<bool>()).prop_map(|(name, kind, uid, opaque)| {
        let row = Row::new(path(&name.join("/")), kind, Metadata { uid, ..Metadata::default() });
        (row, opaque)
    })
}

fn assert_same_below(snapshot: &Snapshot, lower: &LowerDirectory<'_>, directory: &EntryPath) {
    let children = snapshot.children(directory);
    let wanted: Vec<&EntryPath> = children.iter().map(|entry| &entry.row.path).collect();
    assert_eq!(lower.children().collect::<Vec<_>>(), wanted);
    for name in [b"a", b"b"] {
        let path = directory.child(name);
        let (got, wanted) = (lower.child(&path), snapshot.lookup(&path));
        let short =
            |entry: &LowerEntry<'_>| (entry.layer, entry.row.clone(), entry.metadata.clone());
        let wanted = wanted.map(|entry| (entry.layer, entry.row.clone(), entry.metadata().clone()));
        assert_eq!(got.as_ref().map(short), wanted, "{path}");
        if let Some(below) = got.and_then(|entry| entry.directory) {
            assert_same_below(snapshot, &below, &path);
        }
    }
}
