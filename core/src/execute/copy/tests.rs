use super::*;
use crate::{
    context::{ContentsError, ContextTree, Ignore, MemoryTree, Node, SnapshotContents, StageTree},
    digest::Digest,
    execute::testing::{PathContents, file, layer, link, path, row, snapshot, with_small_file},
    tree::{Change, Kind, Metadata, Row, SnapshotLayer},
};

const DIRECTORY: Kind = Kind::DIRECTORY;

/// A source tree: directories 0750, files 0640, all 3:4 and of second 5; a file's bytes are its path's.
fn tree(entries: &[(&str, Kind)]) -> MemoryTree {
    let mut tree = MemoryTree::default();
    for (name, kind) in entries {
        let mode = if kind.is_directory() { 0o750 } else { 0o640 };
        let mtime = Timestamp::from_seconds(5);
        let metadata = Metadata { mode, uid: 3, gid: 4, mtime, capability: None };
        let bytes = Content::Bytes(name.as_bytes().into());
        tree.insert(path(name), Node::new(kind.clone(), metadata), Some(bytes));
    }
    tree
}

fn files(names: &[&str]) -> MemoryTree {
    let mut entries: Vec<(String, Kind)> = Vec::new();
    for name in names {
        for ancestor in path(name).ancestors() {
            entries.push((String::from_utf8(ancestor.to_vec()).unwrap(), DIRECTORY));
        }
        entries.push(((*name).to_owned(), file()));
    }
    let entries: Vec<_> =
        entries.iter().map(|(name, kind)| (name.as_str(), kind.clone())).collect();
    tree(&entries)
}

/// `COPY FLAGS SOURCES… DESTINATION`.
fn request(words: &str) -> (Vec<String>, CopyRequest) {
    let mut request = CopyRequest {
        working_directory: "/w".into(),
        created: Timestamp::from_seconds(9),
        ..CopyRequest::default()
    };
    let mut sources = Vec::new();
    for word in words.split(' ') {
        match word.split_once('=').unwrap_or((word, "")) {
            ("--chown", value) => request.chown = Some(value.into()),
            ("--chmod", value) => request.chmod = Some(value.into()),
            ("--exclude", value) => request.exclude.push(value.into()),
            ("--link", _) => request.link = true,
            ("--parents", _) => request.parents = true,
            _ => sources.push(word.to_owned()),
        }
    }
    request.destination = sources.pop().unwrap();
    (sources, request)
}

fn select_words(tree: &dyn SourceTree, words: &str) -> Result<(Vec<String>, usize), CopyError> {
    let (words, request) = request(words);
    let source =
        |word: &String| Source { tree, path: SourcePath::Pattern(word.clone()), may_unpack: false };
    let sources: Vec<Source<'_>> = words.iter().map(source).collect();
    let selected = select(&sources, &request)?;
    let names = selected.sources.iter().map(|source| source.root.to_string()).collect();
    Ok((names, selected.files().count()))
}

fn run(base: &Snapshot, tree: &dyn SourceTree, words: &str) -> Result<Changeset, CopyError> {
    let (words, request) = request(words);
    let source =
        |word: &String| Source { tree, path: SourcePath::Pattern(word.clone()), may_unpack: false };
    let sources: Vec<Source<'_>> = words.iter().map(source).collect();
    let selected = select(&sources, &request)?;
    copy(&Parent { snapshot: base, contents: &PathContents }, &selected, &request)
}

fn names(changes: &Changeset) -> Vec<String> {
    changes.changes().iter().map(|change| change.path.to_string()).collect()
}

/// `PATH MODE UID:GID MTIME` of each change.
fn shown(changes: &Changeset) -> Vec<String> {
    let show = |change: &Change| {
        let Metadata { mode, uid, gid, mtime, .. } = &change.metadata;
        format!("{} {mode:o} {uid}:{gid} {}", change.path, mtime.seconds)
    };
    changes.changes().iter().map(show).collect()
}

fn content(changes: &Changeset, name: &str) -> String {
    let change = changes.changes().iter().find(|change| change.path == path(name)).unwrap();
    let mut text = String::new();
    let content = change.content.as_ref().unwrap();
    content.open().unwrap().read_to_string(&mut text).unwrap();
    text
}

use std::io::Read;

fn empty() -> Snapshot {
    Snapshot::default()
}

// Destination: rules 4 to 9.

#[test]
fn a_destination_is_joined_to_workdir_and_cleaned() {
    let source = files(&["f"]);
    for (destination, expected) in [
        ("x", &["/w", "/w/x"][..]),
        (".", &["/w", "/w/f"]),
        ("", &["/w", "/w/f"]),
        ("x/", &["/w", "/w/x", "/w/x/f"]),
        ("x/.", &["/w", "/w/x", "/w/x/f"]),
        ("../up", &["/up"]),
        ("/../../x/../esc", &["/esc"]),
        ("/", &["/f"]),
        ("/x/y/z", &["/x", "/x/y", "/x/y/z"]),
    ] {
        let changes = run(&empty(), &source, &format!("f {destination}")).unwrap();
        assert_eq!(names(&changes), expected, "{destination:?}");
    }
}

#[test]
fn links_in_the_destination_are_followed_inside_the_root() {
    let base = snapshot(&[
        ("real", DIRECTORY),
        ("absolute", link("/real")),
        ("up", link("../../real")),
        ("tofile", link("real/target")),
        ("dangling", link("gone/deep")),
        ("real/target", file()),
        ("loop", link("loop")),
    ]);
    let source = files(&["f"]);
    for (destination, expected) in [
        ("/absolute", &["/real", "/real/f"][..]),
        ("/up/x", &["/real", "/real/x"]),
        ("/tofile", &["/real", "/real/target"]),
        ("/dangling/", &["/gone", "/gone/deep", "/gone/deep/f"]),
        ("/dangling/x/", &["/gone", "/gone/deep", "/gone/deep/x", "/gone/deep/x/f"]),
        ("/dangling", &["/gone", "/gone/deep"]),
    ] {
        let changes = run(&base, &source, &format!("f {destination}")).unwrap();
        assert_eq!(names(&changes), expected, "{destination}");
    }
    assert!(matches!(run(&base, &source, "f /loop/x"), Err(CopyError::Resolve(_))));
    assert!(matches!(run(&base, &source, "f /real/target/"), Err(CopyError::Resolve(_))));
    assert!(matches!(run(&base, &source, "f /real/target/x"), Err(CopyError::Resolve(_))));
}

#[test]
fn directories_on_the_way_take_the_flags_and_inherit_a_group() {
    let source = files(&["f"]);
    let on_the_way = |words: &str| shown(&run(&empty(), &source, words).unwrap())[0].clone();
    assert_eq!(on_the_way("f /a/b"), "/a 755 0:0 9");
    assert_eq!(on_the_way("--chown=5:6 --chmod=4711 f /a/b"), "/a 711 5:6 9");
    assert_eq!(on_the_way("--chmod=u=rwx,go= f /a/b"), "/a 755 0:0 9");
    let base = empty().with(layer(vec![row("g", DIRECTORY, 0o2770, 1, 50)]));
    let below = |words: &str| shown(&run(&base, &source, words).unwrap())[1].clone();
    assert_eq!(below("f /g/x/f"), "/g/x 2755 0:50 9");
    assert_eq!(below("--chown=5:6 f /g/x/f"), "/g/x 2755 5:6 9");
}

#[test]
fn a_directorys_contents_go_in() {
    let source = files(&["d/f", "d/s/g"]);
    let made = run(&empty(), &source, "d /x").unwrap();
    assert_eq!(
        shown(&made),
        ["/x 755 0:0 5", "/x/f 640 3:4 5", "/x/s 750 3:4 5", "/x/s/g 640 3:4 5"]
    );
    let base = empty().with(layer(vec![
        row("x", DIRECTORY, 0o700, 7, 7),
        row("x/s", DIRECTORY, 0o700, 7, 7),
        row("x/old", file(), 0o600, 7, 7),
    ]));
    let merged = run(&base, &source, "d/. /x").unwrap();
    assert_eq!(
        shown(&merged),
        ["/x 700 7:7 5", "/x/f 640 3:4 5", "/x/s 750 3:4 5", "/x/s/g 640 3:4 5"]
    );
    let flags = run(&base, &source, "--chown=1 --chmod=604 d /x").unwrap();
    assert_eq!(
        shown(&flags),
        ["/x 700 7:7 5", "/x/f 604 1:1 5", "/x/s 604 1:1 5", "/x/s/g 604 1:1 5"]
    );
}

#[test]
fn the_root_of_a_tree_has_no_time_of_its_own() {
    let made = run(&empty(), &files(&["f"]), ". /x").unwrap();
    assert_eq!(shown(&made), ["/x 755 0:0 9", "/x/f 640 3:4 5"]);
}

#[test]
fn a_file_goes_into_a_directory_under_its_own_name() {
    let source = tree(&[("d", DIRECTORY), ("d/f", file()), ("l", link("d/f"))]);
    let base = snapshot(&[("x", DIRECTORY)]);
    assert_eq!(names(&run(&base, &source, "d/f /x").unwrap()), ["/x", "/x/f"]);
    assert_eq!(names(&run(&base, &source, "l /x").unwrap()), ["/x", "/x/l"]);
    assert_eq!(names(&run(&base, &source, "l* /x/").unwrap()), ["/x", "/x/l"]);
    assert_eq!(names(&run(&base, &source, "d/f /y").unwrap()), ["/y"]);
    assert_eq!(content(&run(&base, &source, "l /x").unwrap(), "x/l"), "d/f");
}

#[test]
fn several_sources_without_a_slash_overwrite_each_other() {
    let source = files(&["d/f", "e/f", "g"]);
    let changes = run(&empty(), &source, "d/f g /x").unwrap();
    assert_eq!(names(&changes), ["/x"]);
    assert_eq!(content(&changes, "x"), "g");
    assert_eq!(content(&run(&empty(), &source, "d/f e/f /x/").unwrap(), "x/f"), "e/f");
    assert_eq!(names(&run(&empty(), &source, "d g /x").unwrap()), ["/x", "/x/f", "/x/g"]);
}

#[test]
fn types_that_do_not_fit_are_errors_at_any_depth() {
    let source = tree(&[("d", DIRECTORY), ("d/s", DIRECTORY), ("e", DIRECTORY), ("e/s", file())]);
    let base = snapshot(&[
        ("file", file()),
        ("x", DIRECTORY),
        ("x/s", file()),
        ("y", DIRECTORY),
        ("y/s", DIRECTORY),
        ("z", DIRECTORY),
        ("z/s", link("/y")),
    ]);
    let fails = |words: &str| run(&base, &source, words).unwrap_err();
    assert!(matches!(fails("d /file"), CopyError::DirectoryOverFile(_)));
    assert!(matches!(fails("d /x"), CopyError::DirectoryOverFile(_)));
    assert!(matches!(fails("d /z"), CopyError::DirectoryOverFile(_)), "a link to a directory");
    assert!(matches!(fails("e /y"), CopyError::FileOverDirectory(_)));
    assert!(matches!(fails("e/s /y/"), CopyError::FileOverDirectory(_)));
    let replaced = run(&base, &source, "e /z").unwrap();
    assert_eq!(replaced.changes()[1].kind, file(), "a link at a joined name is replaced");
    assert!(run(&base, &source, "e /x").is_ok() && run(&base, &source, "d /y").is_ok());
}

#[test]
fn metadata_is_the_sources_but_for_the_flags() {
    let mut source = tree(&[("d", DIRECTORY), ("d/l", link("gone")), ("d/p", Kind::Fifo)]);
    let capability = [[1, 0, 0, 2].as_slice(), &[0; 16]].concat();
    let metadata =
        Metadata { mode: 0o6755, capability: Some(capability.into()), ..Metadata::default() };
    source.insert(path("d/cap"), Node::new(Kind::File { size: 0 }, metadata), None);
    let kept = run(&empty(), &source, "d /x").unwrap();
    assert_eq!(shown(&kept)[1..], ["/x/cap 6755 0:0 0", "/x/l 640 3:4 5", "/x/p 640 3:4 5"]);
    assert_eq!(kept.changes()[1].metadata.capability.as_ref().unwrap().len(), 20);
    assert_eq!(kept.changes()[1].content.as_ref().map(|_| ()), None, "empty files have none");
    let given = run(&empty(), &source, "--chown=1:2 --chmod=go-rwx,u+s d /x").unwrap();
    assert_eq!(shown(&given)[1..], ["/x/cap 6700 1:2 0", "/x/l 640 1:2 5", "/x/p 4600 1:2 5"]);
}

#[test]
fn owners_are_looked_up_before_the_step() {
    let mut base = empty();
    with_small_file(&mut base, "etc/passwd", "app:x:7:8::/:\n");
    let source = tree(&[("etc", DIRECTORY), ("etc/passwd", file())]);
    let changes = run(&base, &source, "--chown=app etc/passwd /etc/passwd").unwrap();
    assert_eq!(shown(&changes)[1], "/etc/passwd 640 7:8 5");
    assert!(matches!(run(&base, &source, "--chown=-1 etc /x"), Err(CopyError::Owner { .. })));
    assert!(matches!(run(&base, &source, "--chmod=9 etc /x"), Err(CopyError::Chmod(_))));
}

// Sources: rules 11 to 14.

#[test]
fn wildcards_match_the_whole_path_in_byte_order() {
    let source = files(&["a.txt", "b.txt", "d/a.txt", "d/s/b.c", "e/s/c.c", "B.txt"]);
    let select = |words: &str| select_words(&source, words).unwrap();
    assert_eq!(select("*.txt /x/").0, ["/B.txt", "/a.txt", "/b.txt"]);
    assert_eq!(select("*/s/*.c /x/").0, ["/d/s/b.c", "/e/s/c.c"]);
    assert_eq!(select("[de] /x/"), (vec!["/d".into(), "/e".into()], 3));
    assert_eq!(select("**/s /x/").0, ["/d/s", "/e/s"], "as a single star");
    assert_eq!(select("d/* /x/").0, ["/d/a.txt", "/d/s"]);
    assert_eq!(select("[^a]/a.txt /x/").0, ["/d/a.txt"]);
    assert_eq!(select("d[^a]a.txt /x/").0, ["/d/a.txt"], "a class matches a slash");
    assert!(matches!(select_words(&source, "a[ /x/"), Err(CopyError::Wildcard(_))));
    assert!(matches!(select_words(&source, "gone/* /x/"), Err(CopyError::NotFound(_))));
    assert!(select("a.txt/* /x/").0.is_empty());
}

#[test]
fn no_match_makes_nothing() {
    let changes = run(&empty(), &files(&["f"]), "nothing* /x/").unwrap();
    assert!(changes.is_empty(), "not even parents");
}

#[test]
fn literal_sources_are_resolved_and_must_exist() {
    let source = tree(&[
        ("d", DIRECTORY),
        ("d/f", file()),
        ("ld", link("/d")),
        ("lf", link("../../ld/f")),
        ("gone", link("nowhere")),
        ("loop", link("loop")),
    ]);
    let select = |words: &str| select_words(&source, words);
    assert_eq!(select("lf /x").unwrap().0, ["/d/f"]);
    assert_eq!(select("ld/f ld ../../d/../d/f /x/").unwrap().0, ["/d/f", "/d", "/d/f"]);
    assert_eq!(
        select("l* /x/").unwrap_err().to_string(),
        select("loop /x").unwrap_err().to_string()
    );
    assert_eq!(select("ld/* /x/").unwrap().0, ["/d/f"]);
    assert!(select("*/f /x/").unwrap().0 == ["/d/f"], "no link is entered");
    for missing in ["nope /x", "d/nope /x", "gone /x", "f nope /x/", "g* /x"] {
        assert!(matches!(select(missing), Err(CopyError::NotFound(_))), "{missing}");
    }
    assert!(matches!(select("loop /x"), Err(CopyError::Resolve(_))));
    assert!(matches!(select("d/f/x /x"), Err(CopyError::Resolve(_))));
}

#[test]
fn a_backslash_is_part_of_a_literal_and_escapes_in_a_wildcard() {
    let source = files(&["a\\*b", "a*b", "axb"]);
    assert_eq!(select_words(&source, "a\\*b /x/").unwrap().0.len(), 1);
    assert_eq!(select_words(&source, "[a]\\*b /x/").unwrap().0, ["/a*b"]);
}

#[test]
fn hard_links_stay_joined_within_one_source() {
    let mut source = files(&["d/one", "d/two", "d/other"]);
    for name in ["d/one", "d/two"] {
        let node = Node { link: Some((1, 7)), ..source.get(&path(name)).unwrap().clone() };
        source.insert(path(name), node, Some(Content::Bytes(b"linked"[..].into())));
    }
    let groups = |words: &str| -> Vec<u32> {
        let changes = run(&empty(), &source, words).unwrap();
        let files = changes.changes().iter().filter(|change| !change.kind.is_directory());
        files.map(|change| change.link_group).collect()
    };
    assert_eq!(groups("d /x"), [1, 0, 1]);
    assert_eq!(groups("d/* /x/"), [0, 0, 0], "three matches");
    assert_eq!(groups("d/one d /x/"), [1, 0, 1], "the later source wins");
    let changes = run(&empty(), &source, "d /x").unwrap();
    assert_eq!([content(&changes, "x/one"), content(&changes, "x/two")], ["linked", "linked"]);
}

#[test]
fn a_name_that_a_later_source_takes_leaves_its_group() {
    let mut source = files(&["d/one", "d/two", "e/two"]);
    for name in ["d/one", "d/two"] {
        let node = Node { link: Some((1, 7)), ..source.get(&path(name)).unwrap().clone() };
        source.insert(path(name), node, Some(Content::Bytes(b"linked"[..].into())));
    }
    let changes = run(&empty(), &source, "d e /x").unwrap();
    assert!(changes.changes().iter().all(|change| change.link_group == 0));
    assert_eq!(content(&changes, "x/two"), "e/two");
}

#[test]
fn exclude_sees_the_path_below_the_copied_root() {
    let source = files(&["d/a.md", "d/f", "d/s/b.md", "d/s/keep.md"]);
    let copied = |words: &str| names(&run(&empty(), &source, words).unwrap());
    assert_eq!(copied("--exclude=*.md d /x"), ["/x", "/x/f", "/x/s", "/x/s/b.md", "/x/s/keep.md"]);
    assert_eq!(copied("--exclude=s d /x"), ["/x", "/x/a.md", "/x/f"]);
    assert_eq!(copied("--exclude=d/s d /x").len(), 6, "not the path in the context");
    assert_eq!(
        copied("--exclude=s --exclude=!s/keep.md d /x"),
        ["/x", "/x/a.md", "/x/f", "/x/s", "/x/s/keep.md"]
    );
    assert_eq!(
        copied("--exclude=**/*.md --exclude=!**/keep.md d /x"),
        ["/x", "/x/f", "/x/s", "/x/s/keep.md"]
    );
    assert_eq!(copied("--exclude=* d /x"), ["/x"]);
    assert_eq!(copied("--exclude=*.md d/a.md /x"), ["/x"], "a file that is itself named");
    assert_eq!(copied("--exclude=*.md d/*.md /x/"), ["/x", "/x/a.md"], "or matched");
    assert!(matches!(run(&empty(), &source, "--exclude=[ d /x"), Err(CopyError::Exclude(_))));
}

#[test]
fn parents_keep_the_path_below_the_pivot() {
    let source = tree(&[
        ("d", DIRECTORY),
        ("d/s", DIRECTORY),
        ("d/s/b", file()),
        ("d/s/c", file()),
        ("l", link("d")),
        ("f", file()),
    ]);
    let copied = |words: &str| names(&run(&empty(), &source, words).unwrap());
    assert_eq!(copied("--parents d/s/b f /x/"), ["/x", "/x/d", "/x/d/s", "/x/d/s/b", "/x/f"]);
    assert_eq!(copied("--parents d/./s/b /x/"), ["/x", "/x/s", "/x/s/b"]);
    assert_eq!(copied("--parents ./d/s/./b /x/"), ["/x", "/x/b"]);
    assert_eq!(copied("--parents d/s /x/"), ["/x", "/x/d", "/x/d/s", "/x/d/s/b", "/x/d/s/c"]);
    assert_eq!(copied("--parents **/b /x/"), ["/x", "/x/d", "/x/d/s", "/x/d/s/b"]);
    assert_eq!(copied("--parents */c /x/"), ["/x"], "a star is one folder");
    assert_eq!(copied("--parents l/./s/b /x/"), ["/x", "/x/s", "/x/s/b"], "the root is resolved");
    assert_eq!(copied("--parents l /x/"), ["/x", "/x/l"], "a link is copied as one");
    assert_eq!(copied("--parents --exclude=d/s/b d /x/"), ["/x", "/x/d", "/x/d/s", "/x/d/s/c"]);
    for missing in ["--parents d/nope /x/", "--parents l/s/b /x/", "--parents d/./nope /x/"] {
        assert!(
            matches!(run(&empty(), &source, missing), Err(CopyError::NotFound(_))),
            "{missing}"
        );
    }
}

#[test]
fn a_leading_directory_takes_the_mode_alone_where_it_exists() {
    let source = files(&["d/s/b"]);
    let made = run(&empty(), &source, "--parents --chmod=705 --chown=1:2 d/s/b /x/").unwrap();
    assert_eq!(shown(&made)[1..3], ["/x/d 705 1:2 5", "/x/d/s 705 1:2 5"]);
    let base = empty().with(layer(vec![
        row("x", DIRECTORY, 0o755, 0, 0),
        row("x/d", DIRECTORY, 0o700, 7, 7),
        row("x/d/s", DIRECTORY, 0o750, 7, 7),
    ]));
    let merged = run(&base, &source, "--parents --chmod=705 --chown=1:2 d/s/b /x/").unwrap();
    assert_eq!(shown(&merged)[1..3], ["/x/d 750 7:7 1", "/x/d/s 750 7:7 1"]);
    let excepted = run(&base, &source, "--exclude=s --exclude=!s/b d /x/d").unwrap();
    assert_eq!(shown(&excepted)[1..3], ["/x/d 700 7:7 5", "/x/d/s 750 7:7 1"]);
}

// Emitting: rules 15 and 16.

#[test]
fn files_are_emitted_without_comparing_and_directories_only_if_changed() {
    let base = empty().with(layer(vec![
        row("x", DIRECTORY, 0o755, 0, 0),
        row("x/s", DIRECTORY, 0o750, 3, 4),
        row("x/f", file(), 0o640, 3, 4),
    ]));
    let source = tree(&[("d", DIRECTORY), ("d/f", file()), ("d/s", DIRECTORY)]);
    assert_eq!(names(&run(&base, &source, "d /x").unwrap()), ["/x", "/x/f"]);
    let only_directories = tree(&[("d", DIRECTORY), ("d/s", DIRECTORY)]);
    let nothing = run(&base, &only_directories, "d /x").unwrap();
    assert!(nothing.is_empty(), "a directory's mtime alone never emits it");
    assert_eq!(names(&run(&base, &only_directories, "--chown=9 d /x").unwrap()), ["/x", "/x/s"]);
}

#[test]
fn an_ancestor_keeps_its_row() {
    let base = empty()
        .with(layer(vec![row("a", DIRECTORY, 0o1777, 5, 6), row("a/b", DIRECTORY, 0o700, 7, 8)]));
    let changes = run(&base, &files(&["f"]), "f /a/b/").unwrap();
    assert_eq!(shown(&changes), ["/a 1777 5:6 1", "/a/b 700 7:8 1", "/a/b/f 640 3:4 5"]);
}

#[test]
fn a_heredoc_is_a_file_of_the_step() {
    let heredoc = MemoryTree::heredoc(b"a*b", b"text", Timestamp::from_seconds(9)).unwrap();
    let source =
        Source { tree: &heredoc, path: SourcePath::Literal(path("a*b")), may_unpack: false };
    let (_, request) = request("--chmod=750 --parents --exclude=* /x/");
    let selected = select(&[source], &request).unwrap();
    let parent = Parent { snapshot: &empty(), contents: &PathContents };
    let changes = copy(&parent, &selected, &request).unwrap();
    assert_eq!(shown(&changes), ["/x 750 0:0 9", "/x/a*b 750 0:0 9"]);
    assert_eq!(changes.changes()[1].digest, Some(Digest::of(b"text")));
}

// Rule 23.

#[test]
fn link_works_on_an_empty_tree() {
    let mut base = snapshot(&[("real", DIRECTORY), ("l", link("real")), ("d", DIRECTORY)]);
    with_small_file(&mut base, "etc/passwd", "app:x:7:8::/:\n");
    let source = files(&["f"]);
    assert_eq!(names(&run(&base, &source, "--link f /l/f").unwrap()), ["/l", "/l/f"]);
    assert_eq!(names(&run(&base, &source, "--link f /d").unwrap()), ["/d"], "it replaces one");
    assert_eq!(names(&run(&base, &source, "--link f /d/").unwrap()), ["/d", "/d/f"]);
    assert_eq!(shown(&run(&base, &source, "--link --chown=5 f /q").unwrap()), ["/q 640 5:5 5"]);
    let named = run(&base, &source, "--link --chown=app f /q");
    assert!(matches!(named, Err(CopyError::NamedOwnerWithLink(_))));
    let with_mode = run(&base, &source, "--link --chmod=600 --chown=app f /l/f").unwrap();
    assert_eq!(shown(&with_mode), ["/real 755 0:0 1", "/real/f 600 7:8 5"], "no link at all");
}

// Stages as sources, and the content key.

/// Counts how often it is asked.
struct Counting(std::sync::atomic::AtomicUsize);

impl SnapshotContents for Counting {
    fn contents(&self, wanted: &[(usize, &Row)]) -> Result<Vec<Content>, ContentsError> {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        PathContents.contents(wanted)
    }
}

#[test]
fn a_stage_is_asked_once_for_all_contents() {
    let mut lower = layer(vec![row("o/a", file(), 0o600, 1, 2), row("o/b", file(), 0o600, 1, 2)]);
    let mut index = lower.index.rows().to_vec();
    index.iter_mut().filter(|row| row.kind == file()).for_each(|row| row.link_group = 4);
    lower = SnapshotLayer { diff_id: lower.diff_id, ..layer(index) };
    let stage = empty().with(lower).with(layer(vec![row("o/c", file(), 0o600, 1, 2)]));
    let contents = Counting(Default::default());
    let source = StageTree { snapshot: &stage, contents: &contents };
    let changes = run(&empty(), &source, "o o/a o/c /x/").unwrap();
    assert_eq!(contents.0.into_inner(), 1);
    assert_eq!(shown(&changes)[1..], ["/x/a 600 1:2 1", "/x/b 600 1:2 1", "/x/c 600 1:2 1"]);
    assert_eq!(content(&changes, "x/b"), "o/a", "the group's first name has the bytes");
}

fn key(source: &dyn SourceTree, words: &str) -> Vec<u8> {
    let (words, request) = request(words);
    let path = SourcePath::Pattern(words[0].clone());
    let mut selected =
        select(&[Source { tree: source, path, may_unpack: false }], &request).unwrap();
    let mut digest = |_: &[SelectedFile<'_>], contents: &[Content]| {
        let read = |content: &Content| {
            let mut bytes = Vec::new();
            content.open()?.read_to_end(&mut bytes)?;
            Ok(Digest::of(&bytes))
        };
        contents.iter().map(read).collect()
    };
    selected.digest_files(&mut digest).unwrap();
    let mut bytes = Vec::new();
    selected.hash_into(&request, &mut |part| bytes.extend_from_slice(part)).unwrap();
    bytes
}

#[test]
fn the_key_holds_what_reaches_the_layer_and_no_time() {
    let changed = |change: &dyn Fn(&mut Node)| {
        let mut source = files(&["d/f", "d/g"]);
        let mut node = source.get(&path("d/f")).unwrap().clone();
        change(&mut node);
        source.insert(path("d/f"), node, Some(Content::Bytes(b"d/f"[..].into())));
        source
    };
    let same = key(&changed(&|_| {}), "d /x");
    assert_eq!(key(&changed(&|node| node.metadata.mtime.seconds += 1), "d /x"), same);
    assert_ne!(key(&changed(&|node| node.metadata.mode = 0o600), "d /x"), same);
    assert_ne!(key(&changed(&|node| node.metadata.uid += 1), "d /x"), same);
    assert_ne!(key(&changed(&|node| node.kind = link("f")), "d /x"), same);
    assert_ne!(key(&changed(&|node| node.digest = Some(Digest::of(b"y"))), "d /x"), same);
    let owner = |node: &mut Node| node.metadata.uid += 1;
    assert_eq!(key(&changed(&owner), "--chown=1 d /x"), key(&changed(&|_| {}), "--chown=1 d /x"));
    assert_ne!(key(&changed(&|_| {}), "d/f /x"), key(&changed(&|_| {}), "d/g /x"));
}

#[test]
fn digests_of_the_key_reach_the_changes() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("f"), "text").unwrap();
    let tree = ContextTree::open(directory.path(), Ignore::none()).unwrap();
    let (_, request) = request("f /x");
    let path = SourcePath::Pattern("f".into());
    let mut selected =
        select(&[Source { tree: &tree, path, may_unpack: false }], &request).unwrap();
    let undigested = selected.hash_into(&request, &mut |_| {});
    assert!(undigested.is_err());
    selected.digest_files(&mut |files, _| Ok(vec![Digest::of(b"text"); files.len()])).unwrap();
    let parent = Parent { snapshot: &empty(), contents: &PathContents };
    let changes = copy(&parent, &selected, &request).unwrap();
    assert_eq!(changes.changes()[0].digest, Some(Digest::of(b"text")));
    assert_eq!(content(&changes, "x"), "text");
}

mod model;

#[test]
fn the_deepest_context_does_not_exhaust_a_small_stack() {
    let directory = tempfile::tempdir().unwrap();
    let deep = directory.path().join("a/".repeat(1000));
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("f"), "text").unwrap();
    let run = move || {
        let ignore = Ignore::parse(b"*\n!**/f").unwrap();
        let tree = ContextTree::open(directory.path(), ignore).unwrap();
        let (names, files) = select_words(&tree, "--exclude=q --exclude=!**/f [a]* /x/").unwrap();
        assert_eq!((names, files), (vec!["/a".to_owned()], 1));
    };
    std::thread::Builder::new().stack_size(1 << 20).spawn(run).unwrap().join().unwrap();
}
