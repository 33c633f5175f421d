use super::*;
use crate::digest::Digest;

fn path(text: &str) -> EntryPath {
    EntryPath::clean(text.as_bytes()).unwrap()
}

fn row(text: &str, kind: Kind) -> Row {
    Row::new(path(text), kind, Metadata { mode: 0o700, uid: 7, ..Metadata::default() })
}

fn file(text: &str) -> Row {
    row(text, Kind::File { size: 1 })
}

fn link(text: &str, target: &str) -> Row {
    row(text, Kind::Symlink { target: target.as_bytes().into() })
}

fn snapshot(layers: Vec<Vec<Row>>) -> Snapshot {
    let layers = layers.into_iter().enumerate().map(|(at, rows)| {
        let mut builder = IndexBuilder::default();
        rows.into_iter().for_each(|row| builder.insert(row));
        SnapshotLayer { diff_id: Digest::of(&[at as u8]), index: builder.build().into() }
    });
    Snapshot::new(layers.collect())
}

fn names(snapshot: &Snapshot, directory: &str) -> Vec<String> {
    let mut names = Vec::new();
    snapshot.walk(&path(directory), &mut |entry| names.push(entry.row.path.to_string()));
    names
}

#[test]
fn paths_are_cleaned_and_ordered_by_component() {
    assert_eq!(path("/a/../../b//./c/").as_bytes(), b"b/c");
    assert_eq!(path("..").as_bytes(), b"");
    assert!(path("a/b") < path("a-b"), "what lies below a comes before its siblings");
    assert!(EntryPath::clean(b"a\0b").is_err());
    assert!(EntryPath::clean(&[b'x'; 256]).is_err());
    assert_eq!(path("a/b/c").ancestors().collect::<Vec<_>>(), [&b"a"[..], b"a/b"]);
    assert_eq!(path("a").parent(), Some(EntryPath::root()));
    assert!(!path("ab").is_within(&path("a")));
}

#[test]
fn whiteouts_and_opaque_directories_act_on_lower_layers_only() {
    let opaque = row("o", Kind::Directory { opaque: true });
    let tree = snapshot(vec![
        vec![file("a"), file("o/old"), file("d/x"), file("d/y")],
        vec![row("a", Kind::Whiteout), opaque, file("o/new"), row("d/x", Kind::Whiteout)],
        vec![file("d/x")],
    ]);
    assert_eq!(names(&tree, "/"), ["/d", "/d/x", "/d/y", "/o", "/o/new"]);
    assert!(tree.lookup(&path("a")).is_none());
    assert!(tree.lookup(&path("o/old")).is_none());
    assert_eq!(tree.lookup(&path("d/x")).unwrap().layer, 2);
}

#[test]
fn a_whiteout_beside_an_entry_of_its_layer_hides_what_was_below() {
    for order in [true, false] {
        let mut rows = vec![row("d", Kind::Whiteout), file("d/new")];
        if !order {
            rows.reverse();
        }
        let tree = snapshot(vec![vec![file("d/old")], rows]);
        assert_eq!(names(&tree, "/"), ["/d", "/d/new"]);
    }
}

#[test]
fn a_non_directory_hides_lower_directories() {
    let tree = snapshot(vec![vec![file("d/old")], vec![file("d")], vec![file("d/new")]]);
    assert_eq!(names(&tree, "/"), ["/d", "/d/new"]);
    assert_eq!(tree.lookup(&path("d")).unwrap().metadata().mode, 0o755, "implied");
}

#[test]
fn an_implied_parent_has_the_metadata_of_the_directory_below() {
    let tree =
        snapshot(vec![vec![row("d", Kind::DIRECTORY)], vec![file("d/x")], vec![file("d/y")]]);
    assert_eq!(tree.lookup(&path("d")).unwrap().metadata().uid, 7);
    let children = tree.children(&EntryPath::root());
    assert_eq!(children[0].metadata().uid, 7);
}

#[test]
fn links_are_followed_inside_the_root() {
    let tree = snapshot(vec![vec![
        file("real/file"),
        link("abs", "/real"),
        link("up", "../../../real"),
        link("sub", "real"),
        link("text", "sub/../real/file"),
        link("loop", "loop2"),
        link("loop2", "loop"),
        link("gone", "nowhere/at/all"),
    ]]);
    let resolve = |text: &str| tree.resolve(&path(text), LastLink::Follow);
    assert_eq!(resolve("abs/file").unwrap().path, path("real/file"));
    assert_eq!(resolve("up/file").unwrap().path, path("real/file"));
    assert_eq!(resolve("text").unwrap().path, path("real/file"));
    assert_eq!(resolve("gone/x").unwrap().path, path("nowhere/at/all/x"));
    assert!(resolve("gone").unwrap().entry.is_none());
    assert!(matches!(resolve("loop/x"), Err(ResolveError::TooManyLinks(_))));
    assert!(matches!(resolve("real/file/x"), Err(ResolveError::NotADirectory(_))));
    assert_eq!(tree.resolve(&path("abs"), LastLink::Keep).unwrap().path, path("abs"));
    assert!(resolve("/").unwrap().is_directory());
}

/// A hostile layer may be as deep as a path is long; walking it must stay cheap.
#[test]
fn deep_trees_are_walked_quickly() {
    let deep: String = "d/".repeat(2000);
    let tree = snapshot(vec![vec![file(&format!("{deep}f"))], vec![file("other")]]);
    let started = std::time::Instant::now();
    assert_eq!(names(&tree, "/").len(), 2002);
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

#[test]
fn an_index_survives_encoding() {
    let mut builder = IndexBuilder::default();
    builder.insert(Row {
        metadata: Metadata {
            mode: 0o4755,
            uid: 4_000_000_000,
            gid: 1,
            mtime: Timestamp { seconds: -5, nanoseconds: 7 },
            capability: Some(Box::from(&b"cap\n"[..])),
        },
        link_group: 3,
        digest: Some(Digest::of(b"x")),
        tar_offset: 1 << 40,
        ..file("usr/bin/a")
    });
    builder.insert(link("l\u{1}", "t"));
    builder.insert(row("c", Kind::CharacterDevice { major: 1, minor: 3 }));
    builder.insert(row("b", Kind::BlockDevice { major: 8, minor: 0 }));
    builder.insert(row("gone", Kind::Whiteout));
    builder.insert(file("etc/passwd"));
    builder.keep_bytes(&path("etc/passwd"), b"r"[..].into());
    let index = builder.build();
    let bytes = index.encode().unwrap();
    assert_eq!(LayerIndex::decode(&bytes).unwrap(), index);
    for at in 0..bytes.len() {
        let _ = LayerIndex::decode(&bytes[..at]);
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x11;
        let _ = LayerIndex::decode(&flipped);
    }
}
