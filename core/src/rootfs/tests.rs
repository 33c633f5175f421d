use std::{collections::BTreeMap, fs, io, os::fd::AsFd, path::Path, sync::Arc};

use proptest::prelude::*;

use super::{
    testing::{
        Overlay, Step, expected, make, open, path, replay, replay_plain, row, shell, steps, unpack,
        walk, without_marks,
    },
    *,
};
use crate::{
    digest::Digest,
    layer::LayerSink,
    snapshot::testing::tree_of,
    tree::{
        Change, Changeset, Content, EntryPath, IndexBuilder, Kind, LayerIndex, Metadata, Row,
        Snapshot, SnapshotLayer, Timestamp,
    },
};

const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn read(directory: &Path, name: &str) -> String {
    fs::read_to_string(directory.join(name)).unwrap()
}

fn metadata(mode: u32, uid: u32, seconds: i64) -> Metadata {
    let mtime = Timestamp { seconds, nanoseconds: 123_456_789 };
    Metadata { mode, uid, gid: uid + 1, mtime, capability: None }
}

fn any_path() -> impl Strategy<Value = EntryPath> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "a-b"]), 1..4)
        .prop_map(|parts| path(&parts.join("/")))
}

fn any_kind() -> impl Strategy<Value = (Kind, Vec<u8>)> {
    prop_oneof![
        3 => Just((Kind::DIRECTORY, vec![])),
        3 => prop::collection::vec(any::<u8>(), 0..9)
            .prop_map(|body| (Kind::File { size: body.len() as u64 }, body)),
        1 => Just((Kind::Symlink { target: b"/a/b".as_slice().into() }, vec![])),
        1 => Just((Kind::Symlink { target: b"../..".as_slice().into() }, vec![])),
        1 => Just((Kind::Fifo, vec![])),
        1 => Just((Kind::CharacterDevice { major: 1, minor: 300 }, vec![])),
        1 => Just((Kind::BlockDevice { major: 8, minor: 1 }, vec![])),
        4 => Just((Kind::Whiteout, vec![])),
    ]
}

fn any_metadata() -> impl Strategy<Value = Metadata> {
    (0..0o10000u32, 0..3u32, -2..9i64)
        .prop_map(|(mode, uid, at)| metadata(mode, uid, at * 999_999_999))
}

fn any_step() -> impl Strategy<Value = Step> {
    let entry = (any_path(), any_kind(), any_metadata()).prop_map(|(path, (kind, body), mut m)| {
        if kind == Kind::Whiteout {
            m = Metadata::default();
        }
        Step::Entry(Row::new(path, kind, m), body)
    });
    prop_oneof![
        8 => entry,
        3 => (any_path(), any_path()).prop_map(|(path, target)| Step::Link(path, target)),
        1 => prop_oneof![any_path(), Just(EntryPath::root())].prop_map(Step::Opaque),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn a_tree_equals_the_index_of_the_same_entries(steps in prop::collection::vec(any_step(), 1..14)) {
        let scratch = tempfile::tempdir().unwrap();
        let index = replay(scratch.path(), &steps);
        prop_assert_eq!(walk(scratch.path()), expected(&index));
    }

    #[test]
    fn merged_layers_show_what_their_overlay_shows(
        layers in prop::collection::vec(prop::collection::vec(any_step(), 1..8), 2..4)
    ) {
        let scratch = tempfile::tempdir().unwrap();
        let mut lowers = Vec::new();
        for (at, steps) in layers.iter().enumerate() {
            let directory = make(scratch.path(), &at.to_string());
            let root = |step: &Step| matches!(step, Step::Opaque(path) if path.is_root());
            let steps: Vec<Step> = steps.iter().filter(|step| !root(step)).cloned().collect();
            replay(&directory, &steps);
            lowers.push(directory);
        }
        let into = make(scratch.path(), "into");
        let open_lowers: Vec<_> = lowers.iter().map(|lower| open(lower)).collect();
        merge(&open_lowers, open(&into)).unwrap();
        let overlay = Overlay::mount(scratch.path(), "overlay", &lowers);
        prop_assert_eq!(walk(&into), without_marks(walk(&overlay.merged)));
    }
}

/// A plain tree has what the snapshot of its layers has, each name with an inode of its own.
fn assert_plain(tree: &Path, layers: &[LayerIndex]) {
    let layers = layers.iter().map(|index| {
        let diff_id = Digest::of(b"x");
        SnapshotLayer { diff_id, index: Arc::new(index.clone()) }
    });
    let snapshot = Snapshot::new(layers.collect());
    let found = walk(tree);
    for (name, seen) in &found {
        assert_eq!(*name, seen.first_name, "a hard link");
    }
    let found: BTreeMap<_, _> =
        found.into_iter().map(|(name, seen)| (name, (seen.kind, seen.metadata))).collect();
    assert_eq!(found, tree_of(&snapshot));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn a_plain_tree_equals_the_snapshot_of_its_layers(
        layers in prop::collection::vec(prop::collection::vec(any_step(), 1..10), 1..5)
    ) {
        let scratch = tempfile::tempdir().unwrap();
        let tree = make(scratch.path(), "tree");
        let mut indexes = Vec::new();
        for (at, steps) in layers.iter().enumerate() {
            let staging = make(scratch.path(), &at.to_string());
            indexes.push(replay_plain(&tree, &staging, steps));
            assert_plain(&tree, &indexes);
        }
        let copy = make(scratch.path(), "copy");
        copy_tree(open(&tree).as_fd(), open(&copy), 2).unwrap();
        assert_plain(&copy, &indexes);
    }
}

#[test]
fn a_link_that_changes_its_inode_changes_all_of_its_names() {
    let scratch = tempfile::tempdir().unwrap();
    for (plain, name) in [(false, "overlay"), (true, "plain")] {
        let directory = make(scratch.path(), name);
        let new = if plain { Unpacker::plain } else { Unpacker::new };
        let mut unpacker = new(open(&directory)).unwrap();
        let mut builder = IndexBuilder::default();
        let first = row("f a body");
        unpacker.entry(&first.0, &mut &first.1[..]).unwrap();
        let mut changed = metadata(0o4711, 3, 77);
        changed.capability = Some(CAPABILITY.into());
        let linked =
            |path| Row { path, metadata: changed.clone(), link_group: 1, ..first.0.clone() };
        unpacker.hard_link(&linked(path("d/b")), &path("a")).unwrap();
        builder.insert(linked(path("a")));
        builder.insert(linked(path("d/b")));
        unpacker.finish(&builder.build(), &|_| None).unwrap();
        let tree = walk(&directory);
        for name in ["a", "d/b"] {
            assert_eq!(tree[&path(name)].metadata, changed, "{name}");
            assert_eq!(read(&directory, name), "body");
        }
        assert_eq!(tree[&path("d/b")].first_name, path(if plain { "d/b" } else { "a" }));
    }
}

#[test]
fn a_changeset_is_laid_over_a_plain_tree() {
    let scratch = tempfile::tempdir().unwrap();
    let (tree, staging) = (make(scratch.path(), "tree"), make(scratch.path(), "staging"));
    let base = replay_plain(
        &tree,
        &make(scratch.path(), "base"),
        &steps(&["f hidden x", "f b/gone x", "f a/old/x x", "l c /etc", "f keep x"]),
    );
    let linked = |text| Change { link_group: 4, ..change(text) };
    let changeset = Changeset::new(vec![
        change("d a"),
        linked("f a/one same"),
        linked("f b/two same"),
        change("f a/old now-a-file"),
        change("d b"),
        change("d c"),
        change("f .wh.hidden x"),
        change("f b/.wh..wh..opq x"),
    ]);
    apply_changeset_plain(open(&staging), open(&tree).as_fd(), &changeset, Some(1500)).unwrap();
    assert_plain(&tree, &[base, changeset_index(&changeset, Some(1500))]);
    assert_eq!(read(&tree, "b/two"), "same");
    assert_eq!(read(&tree, "a/old"), "now-a-file");
}

#[test]
fn a_copied_tree_is_independent_and_the_same() {
    let scratch = tempfile::tempdir().unwrap();
    let (tree, copy) = (make(scratch.path(), "tree"), make(scratch.path(), "copy"));
    shell(
        &tree,
        "mkdir -p d/e; echo x > d/f; ln d/f d/e/g; ln -s /nowhere d/l; mkfifo d/p; mknod d/n c 1 3;
         truncate -s 1G d/holes; printf end >> d/holes; chown -h 5:6 d/f d/l d/e; chmod 4711 d/f;
         echo y > cap; setcap cap_net_raw+ep cap; chmod 2770 d; touch -h -d @5.000000007 d/l d/f d;
         for i in $(seq 300); do mkdir many$i; echo $i > many$i/f; done",
    );
    copy_tree(open(&tree).as_fd(), open(&copy), 4).unwrap();
    assert_eq!(walk(&copy), walk(&tree));
    assert_eq!(read(&copy, "d/e/g"), "x\n");
    shell(
        &copy,
        "test $(stat -c %b d/holes) -lt 100; tail -c 3 d/holes | grep end; echo z > d/f;
         for i in $(seq 300); do test $(cat many$i/f) = $i; done",
    );
    assert_eq!(read(&tree, "d/f"), "x\n");
}

#[test]
fn files_keep_owner_mode_capability_and_time() {
    let scratch = tempfile::tempdir().unwrap();
    let mut file = row("f usr/bin/ping body");
    file.0.metadata = metadata(0o6711, 3_000_000, -7);
    file.0.metadata.capability = Some(CAPABILITY.into());
    let mut directory = row("d usr/bin");
    directory.0.metadata = metadata(0o3775, 50, 1 << 33);
    let mut link = row("l usr/bin/link /etc/passwd");
    link.0.metadata = Metadata { mode: 0o777, ..metadata(0, 8, 5) };
    let index = unpack(scratch.path(), &[directory, file, link]);
    assert_eq!(walk(scratch.path()), expected(&index));
    assert_eq!(read(scratch.path(), "usr/bin/ping"), "body");
}

#[test]
fn what_the_surroundings_hand_down_does_not_reach_the_tree() {
    let scratch = tempfile::tempdir().unwrap();
    shell(scratch.path(), "mkdir layer && chown 0:50 layer && chmod 2700 layer");
    let layer = scratch.path().join("layer");
    let index = unpack(&layer, &[row("d a"), row("f a/b x"), row("p a/p"), row("l a/l x")]);
    assert_eq!(walk(&layer), expected(&index));
}

#[test]
fn an_implied_parent_takes_what_is_below_unless_that_is_hidden() {
    let scratch = tempfile::tempdir().unwrap();
    let mut unpacker = Unpacker::new(open(scratch.path())).unwrap();
    let mut builder = IndexBuilder::default();
    for (row, body) in [row("f d/x 1"), row("f o/d/x 1"), row("w gone/deep/x")] {
        unpacker.entry(&row, &mut &body[..]).unwrap();
        builder.insert(row);
    }
    unpacker.opaque(&path("o")).unwrap();
    builder.set_opaque(&path("o"));
    let below = |path: &EntryPath| (path.as_bytes() != b"gone").then(|| metadata(0o2750, 7, 99));
    unpacker.finish(&builder.build(), &below).unwrap();
    let tree = walk(scratch.path());
    assert_eq!(tree[&path("d")].metadata, metadata(0o2750, 7, 99));
    assert_eq!(
        tree[&path("o")].metadata,
        metadata(0o2750, 7, 99),
        "its children are hidden, it is not"
    );
    assert_eq!(tree[&path("o/d")].metadata, Metadata::directory(Timestamp::default()));
    assert_eq!(tree[&path("gone")].metadata, Metadata::directory(Timestamp::default()));
    assert_eq!(tree[&path("gone/deep/x")].kind, Kind::Whiteout);
}

#[test]
fn a_layer_stays_in_its_directory() {
    let scratch = tempfile::tempdir().unwrap();
    let (layer, outside) = (make(scratch.path(), "layer"), make(scratch.path(), "outside"));
    fs::write(outside.join("canary"), "alive").unwrap();
    let to = outside.display();
    let rows = [
        row(&format!("l a {to}")),
        row("f a/canary dead"),
        row(&format!("l b {to}/canary")),
        row("f b dead"),
        row(&format!("l c {to}")),
        row("w c/canary"),
        row(&format!("l e {to}")),
        row("d e"),
        row(&format!("l g {to}/canary")),
    ];
    let index = unpack(&layer, &rows);
    assert_eq!(walk(&layer), expected(&index));
    assert_eq!(read(&outside, "canary"), "alive");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    let mut unpacker = Unpacker::new(open(&make(scratch.path(), "second"))).unwrap();
    unpacker.entry(&row("l a ../outside").0, &mut io::empty()).unwrap();
    assert!(unpacker.hard_link(&row("f x").0, &path("a/canary")).is_err());
}

#[test]
fn odd_values_are_refused_not_taken_for_something_else() {
    let scratch = tempfile::tempdir().unwrap();
    let mut unpacker = Unpacker::new(open(scratch.path())).unwrap();
    let bad = |change: &dyn Fn(&mut Row)| {
        let mut row = row("f x").0;
        change(&mut row);
        row
    };
    for row in [
        bad(&|row| row.metadata.uid = u32::MAX),
        bad(&|row| row.metadata.gid = u32::MAX),
        bad(&|row| row.metadata.mtime.nanoseconds = 0x3fff_fffe),
        bad(&|row| row.kind = Kind::BlockDevice { major: 4096, minor: 0 }),
        bad(&|row| row.kind = Kind::CharacterDevice { major: 0, minor: 1 << 20 }),
        bad(&|row| row.kind = Kind::File { size: 1 }),
        bad(&|row| row.metadata.capability = Some(b"junk".as_slice().into())),
    ] {
        let error = unpacker.entry(&row, &mut io::empty()).unwrap_err();
        assert!(error.to_string().starts_with("/x: "), "{error}");
    }
}

#[test]
fn depth_and_links_cost_nothing_when_a_tree_is_removed() {
    let scratch = tempfile::tempdir().unwrap();
    fs::write(scratch.path().join("canary"), "alive").unwrap();
    shell(
        scratch.path(),
        "mkdir t; cd t; ln -s ../canary link; ln -s .. up; mkfifo p; touch $(seq 3000);
         python3 -c 'import os
for _ in range(10000): os.mkdir(\"d\"); os.chdir(\"d\")'",
    );
    let parent = open(scratch.path());
    remove_tree(parent.as_fd(), b"t").unwrap();
    remove_tree(parent.as_fd(), b"t").unwrap();
    shell(scratch.path(), "ln -s canary link; mkdir -p a/b work; touch a/b/c");
    remove_tree(parent.as_fd(), b"link").unwrap();
    discard(parent.as_fd(), b"a", open(&scratch.path().join("work")).as_fd()).unwrap();
    discard(parent.as_fd(), b"a", open(&scratch.path().join("work")).as_fd()).unwrap();
    assert_eq!(read(scratch.path(), "canary"), "alive");
    assert_eq!(walk(scratch.path()).len(), 2, "the canary and work");
}

#[test]
fn a_mount_point_below_a_tree_is_not_emptied() {
    let scratch = tempfile::tempdir().unwrap();
    let lower = make(scratch.path(), "lower");
    let tree = make(scratch.path(), "tree");
    fs::write(lower.join("precious"), "alive").unwrap();
    let overlay = Overlay::mount(&tree, "below", &[lower]);
    fs::write(overlay.merged.join("new"), "alive").unwrap();
    assert!(remove_tree(open(scratch.path()).as_fd(), b"tree").is_err());
    assert!(overlay.merged.join("precious").exists());
    let bound = make(&tree, "bound");
    let flags = rustix::mount::MountFlags::BIND;
    rustix::mount::mount(scratch.path().join("lower"), &bound, "", flags, None).unwrap();
    let removed = remove_tree(open(scratch.path()).as_fd(), b"tree");
    let alive = bound.join("precious").exists();
    rustix::mount::unmount(&bound, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(removed.is_err() && alive);
}

fn change(text: &str) -> Change {
    let (row, body) = row(text);
    let content = matches!(row.kind, Kind::File { size: 1.. }).then(|| Content::Bytes(body.into()));
    Change { content, ..Change::new(row.path, row.kind, metadata(row.metadata.mode, 1, 2000)) }
}

#[test]
fn a_changeset_is_written_as_its_layer_is_read() {
    let scratch = tempfile::tempdir().unwrap();
    let linked = |text| Change { link_group: 4, ..change(text) };
    let changeset = Changeset::new(vec![
        change("d a"),
        linked("f a/one same"),
        linked("f b/two same"),
        change("d b"),
        Change::whiteout(path("c")),
        change("f .wh.hidden x"),
        change("f b/.wh..wh..opq x"),
        change("f empty"),
        change("l link a/one"),
    ]);
    apply_changeset(open(scratch.path()), &changeset, Some(1500)).unwrap();
    let tree = walk(scratch.path());
    assert_eq!(tree, expected(&changeset_index(&changeset, Some(1500))));
    assert_eq!(tree[&path("hidden")].kind, Kind::Whiteout);
    assert_eq!(tree[&path("b")].kind, Kind::Directory { opaque: true });
    assert_eq!(tree[&path("a/one")].metadata.mtime, Timestamp::from_seconds(1500));
    assert_eq!(tree[&path("b/two")].first_name, path("a/one"));
    assert_eq!(read(scratch.path(), "b/two"), "same");
}

#[test]
fn a_content_that_is_another_by_now_is_an_error() {
    let scratch = tempfile::tempdir().unwrap();
    let (known, size) = (Some(Digest::of(b"before")), |size| Kind::File { size });
    for (at, change) in [
        Change { digest: known, ..change("f a behind") },
        Change { kind: size(5), ..change("f a before") },
        Change { kind: size(7), ..change("f a before") },
    ]
    .into_iter()
    .enumerate()
    {
        let directory = make(scratch.path(), &at.to_string());
        let error = apply_changeset(open(&directory), &Changeset::new(vec![change]), None);
        assert!(error.unwrap_err().to_string().starts_with("/a: "));
    }
    let changeset = Changeset::new(vec![Change { digest: known, ..change("f a before") }]);
    apply_changeset(open(&make(scratch.path(), "right")), &changeset, None).unwrap();
}

#[test]
fn names_mean_what_readers_take_them_for() {
    let name = |text| layer_name(&path(text));
    assert_eq!(name("a/.wh.b"), LayerName::Whiteout(path("a/b")));
    assert_eq!(name("a/.wh..wh..opq"), LayerName::Opaque(path("a")));
    assert_eq!(name(".wh..wh..opq"), LayerName::Opaque(EntryPath::root()));
    assert_eq!(name("a/.whatever"), LayerName::Plain);
    assert_eq!(name(".wh.a/b"), LayerName::Plain);
    for bad in ["a/.wh.", ".wh..", ".wh..."] {
        assert_eq!(name(bad), LayerName::Invalid, "{bad}");
    }
}

#[test]
fn layers_below_an_opaque_root_are_not_to_be_mounted() {
    let layer = |opaque: bool| {
        let mut builder = IndexBuilder::default();
        builder.insert(row("f a x").0);
        if opaque {
            builder.set_opaque(&EntryPath::root());
        }
        SnapshotLayer { diff_id: Digest::of(b"x"), index: Arc::new(builder.build()) }
    };
    let snapshot = |marks: &[bool]| Snapshot::new(marks.iter().map(|mark| layer(*mark)).collect());
    assert_eq!(lowest_visible_layer(&snapshot(&[false, true, true, false])), 2);
    assert_eq!(lowest_visible_layer(&snapshot(&[false, false])), 0);
    assert_eq!(lowest_visible_layer(&snapshot(&[])), 0);
}
