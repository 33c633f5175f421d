use std::io::{Read, Write};

use tar::EntryType;

use super::*;
use crate::{
    context::{MemoryTree, Node},
    execute::{
        copy::{Source, SourcePath, select},
        testing::{
            NoContents, PathContents, TarMember, file, layer, link, path, row, snapshot, tar_of,
        },
    },
    tree::{Change, Content, Kind, Metadata, Timestamp},
};

const FILE: EntryType = EntryType::Regular;
const DIRECTORY: EntryType = EntryType::Directory;
const LINK: EntryType = EntryType::Symlink;
const HARD: EntryType = EntryType::Link;

/// Members 0640 (directories 0750), 3:4, of second 5.
fn archive(members: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let member = |at: usize| {
        let (name, kind, text) = members[at];
        let mode = if kind == DIRECTORY { 0o750 } else { 0o640 };
        TarMember(name, kind, mode, (3, 4), 5, text)
    };
    tar_of(&(0..members.len()).map(member).collect::<Vec<_>>())
}

/// A context with one file, `t`, and a directory `d` that holds it again.
fn context(bytes: &[u8]) -> MemoryTree {
    let mut tree = MemoryTree::default();
    let mtime = Timestamp::from_seconds(2);
    let metadata = Metadata { mode: 0o600, mtime, ..Metadata::default() };
    let node = Node::new(Kind::File { size: bytes.len() as u64 }, metadata.clone());
    tree.insert(path("t"), node.clone(), Some(Content::Bytes(bytes.into())));
    tree.insert(path("d"), Node::new(Kind::DIRECTORY, metadata.clone()), None);
    tree.insert(path("d/t"), node, Some(Content::Bytes(bytes.into())));
    tree.insert(path("l"), Node::new(link("t"), metadata), None);
    tree
}

struct Add<'a> {
    base: Snapshot,
    request: CopyRequest,
    source: &'a str,
    may_unpack: bool,
    digest: Option<Digest>,
}

impl<'a> Add<'a> {
    fn to(base: &Snapshot, destination: &str) -> Self {
        let request = CopyRequest {
            destination: destination.into(),
            working_directory: "/w".into(),
            created: Timestamp::from_seconds(9),
            ..CopyRequest::default()
        };
        Add { base: base.clone(), request, source: "t", may_unpack: true, digest: None }
    }

    fn run(&self, bytes: &[u8]) -> Result<Changeset, AddError> {
        let tree = context(bytes);
        let source = Source {
            tree: &tree,
            path: SourcePath::Pattern(self.source.into()),
            may_unpack: self.may_unpack,
        };
        let mut selected = select(&[source], &self.request)?;
        if let Some(digest) = self.digest {
            selected.digest_files(&mut |files, _| Ok(vec![digest; files.len()]))?;
        }
        let mut spool = Spool::new(tempfile::tempfile().unwrap());
        let mut unpacking = Unpacking { spool: &mut spool, limits: ReadLimits::default() };
        let parent = Parent { snapshot: &self.base, contents: &PathContents };
        add(&parent, &selected, &self.request, &mut unpacking)
    }
}

fn empty() -> Snapshot {
    Snapshot::default()
}

fn names(changes: &Changeset) -> Vec<String> {
    changes.changes().iter().map(|change| change.path.to_string()).collect()
}

fn shown(changes: &Changeset) -> Vec<String> {
    let show = |change: &Change| {
        let Metadata { mode, uid, gid, mtime, .. } = &change.metadata;
        let kind = match &change.kind {
            Kind::Directory { .. } => "d".to_owned(),
            Kind::Symlink { target } => format!("l({})", target.escape_ascii()),
            Kind::Whiteout => "gone".to_owned(),
            _ => "f".to_owned(),
        };
        format!("{} {kind} {mode:o} {uid}:{gid} {}", change.path, mtime.seconds)
    };
    changes.changes().iter().map(show).collect()
}

fn content(changes: &Changeset, name: &str) -> String {
    let change = changes.changes().iter().find(|change| change.path == path(name)).unwrap();
    let mut text = String::new();
    change.content.as_ref().unwrap().open().unwrap().read_to_string(&mut text).unwrap();
    text
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

// Rule 17.

#[test]
fn archives_are_known_by_content() {
    let bytes = archive(&[("a/b", FILE, "text")]);
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 0);
    xz.write_all(&bytes).unwrap();
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(&bytes).unwrap();
    for packed in [
        bytes.clone(),
        gzip(&bytes),
        xz.finish().unwrap(),
        bzip2.finish().unwrap(),
        zstd::encode_all(&bytes[..], 1).unwrap(),
    ] {
        let changes = Add::to(&empty(), "/x").run(&packed).unwrap();
        assert_eq!(shown(&changes), ["/x d 755 0:0 9", "/x/a d 755 0:0 9", "/x/a/b f 640 3:4 5"]);
        assert_eq!(content(&changes, "x/a/b"), "text");
    }
}

#[test]
fn what_is_no_archive_is_copied() {
    let bytes = archive(&[("a", FILE, "text")]);
    for plain in [&b""[..], b"text", &gzip(b"text"), &[0; 1024], &gzip(&bytes)[..12], b"PK\x03\x04"]
    {
        assert_eq!(names(&Add::to(&empty(), "/x/").run(plain).unwrap()), ["/x", "/x/t"]);
    }
    let kept = Add { may_unpack: false, ..Add::to(&empty(), "/x/") };
    assert_eq!(names(&kept.run(&bytes).unwrap()), ["/x", "/x/t"]);
    let directory = Add { source: "d", ..Add::to(&empty(), "/x/") };
    assert_eq!(names(&directory.run(&bytes).unwrap()), ["/x", "/x/t"], "one inside a directory");
    for source in ["l", "t*"] {
        let followed = Add { source, ..Add::to(&empty(), "/x/") };
        assert_eq!(names(&followed.run(&bytes).unwrap()), ["/x", "/x/a"]);
    }
}

#[test]
fn later_damage_is_an_error() {
    let bytes = archive(&[("a", FILE, "text"), ("b", FILE, "more")]);
    let mut damaged = bytes.clone();
    damaged[1024 + 148] ^= 1;
    assert!(matches!(Add::to(&empty(), "/x").run(&damaged), Err(AddError::Archive { .. })));
    for cut in [1100, 1536 + 100] {
        assert!(Add::to(&empty(), "/x").run(&bytes[..cut]).is_err(), "{cut}");
    }
    let random: Vec<u8> =
        (0u32..40_000).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let text: String = random.iter().map(|byte| char::from(b'a' + byte % 26)).collect();
    let packed = gzip(&tar_of(&[TarMember("a", FILE, 0o600, (0, 0), 0, &text)]));
    assert!(Add::to(&empty(), "/x").run(&packed[..packed.len() - 100]).is_err());
}

#[test]
fn only_the_owner_flag_counts() {
    let mut add = Add::to(&empty(), "/x/y").with_flags();
    add.request.exclude = vec!["a".into()];
    let changes = add.run(&archive(&[("a", FILE, "1"), ("l", LINK, "a")])).unwrap();
    assert_eq!(
        shown(&changes),
        ["/x d 755 5:6 9", "/x/y d 755 5:6 9", "/x/y/a f 640 5:6 5", "/x/y/l l(a) 640 5:6 5"]
    );
}

impl Add<'_> {
    fn with_flags(mut self) -> Self {
        self.request.chown = Some("5:6".into());
        self.request.chmod = Some("700".into());
        self
    }
}

#[test]
fn the_destination_is_a_directory_and_its_links_are_followed() {
    let base = snapshot(&[("real", Kind::DIRECTORY), ("l", link("/real")), ("f", file())]);
    let bytes = archive(&[("a", FILE, "1")]);
    assert_eq!(names(&Add::to(&base, "/l").run(&bytes).unwrap()), ["/real", "/real/a"]);
    assert_eq!(names(&Add::to(&base, "q").run(&bytes).unwrap()), ["/w", "/w/q", "/w/q/a"]);
    assert!(Add::to(&base, "/f").run(&bytes).is_err());
}

// Rule 18.

#[test]
fn names_stay_below_the_destination() {
    let base = snapshot(&[("etc", Kind::DIRECTORY), ("etc/passwd", file())]);
    let members = [("../up", FILE, "1"), ("/abs", FILE, "2"), ("a/../../../dots", FILE, "3")];
    let changes = Add::to(&base, "/x/y").run(&archive(&members)).unwrap();
    assert_eq!(names(&changes), ["/x", "/x/y", "/x/y/abs", "/x/y/dots", "/x/y/up"]);
    let escape = [
        ("l", LINK, "/"),
        ("l/etc/passwd", FILE, "1"),
        ("m", LINK, "../../.."),
        ("m/n", FILE, "2"),
    ];
    let changes = Add::to(&base, "/x").run(&archive(&escape)).unwrap();
    assert_eq!(names(&changes), ["/x", "/x/etc", "/x/etc/passwd", "/x/l", "/x/m", "/x/n"]);
}

#[test]
fn links_are_taken_as_the_kernel_takes_them() {
    let members = [
        ("real/sub", DIRECTORY, ""),
        ("real/file", FILE, "1"),
        ("sub", LINK, "real/sub"),
        ("beside", LINK, "sub/../file2"),
        ("through", LINK, "sub/.."),
        ("through/made", FILE, "2"),
    ];
    let changes = Add::to(&empty(), "/x").run(&archive(&members)).unwrap();
    assert!(names(&changes).contains(&"/x/real/made".to_owned()), "not /x/made, as text would say");
}

#[test]
fn missing_parents_are_roots() {
    let base = empty().with(layer(vec![row("g", Kind::DIRECTORY, 0o2770, 1, 50)]));
    let add = Add::to(&base, "/g").with_flags();
    let changes = add.run(&archive(&[("a/b/c", FILE, "1")])).unwrap();
    assert_eq!(shown(&changes)[1..3], ["/g/a d 2755 0:0 9", "/g/a/b d 2755 0:0 9"]);
}

#[test]
fn parents_that_are_none_are_errors() {
    for members in [
        &[("l", LINK, "gone"), ("l/a", FILE, "1")][..],
        &[("f", FILE, "1"), ("f/a", FILE, "1")],
        &[("l", LINK, "l"), ("l/a", FILE, "1")],
        &[("l", LINK, "gone/deep"), ("l/a", FILE, "1")],
        &[("f", FILE, "1"), ("l", LINK, "f/.."), ("l/a", FILE, "1")],
    ] {
        assert!(Add::to(&empty(), "/x").run(&archive(members)).is_err(), "{members:?}");
    }
    let mut chain: Vec<(String, EntryType, String)> =
        (0..42).map(|at| (format!("l{at}"), LINK, format!("l{}", at + 1))).collect();
    chain.push(("l42".into(), DIRECTORY, String::new()));
    let with = |first: &str| {
        let mut members: Vec<(&str, EntryType, &str)> = chain
            .iter()
            .map(|(name, kind, target)| (name.as_str(), *kind, target.as_str()))
            .collect();
        members.push((first, FILE, "1"));
        Add::to(&empty(), "/x").run(&archive(&members))
    };
    assert!(with("l2/a").is_ok() && with("l1/a").is_err(), "40 links, 41 links");
}

// Rule 19.

#[test]
fn a_member_replaces_what_is_there() {
    let base = snapshot(&[
        ("x", Kind::DIRECTORY),
        ("x/d", Kind::DIRECTORY),
        ("x/d/old", file()),
        ("x/f", file()),
        ("x/merge", Kind::DIRECTORY),
        ("x/merge/stays", file()),
        ("x/tod", link("d")),
    ]);
    let members = [
        ("d", FILE, "1"),
        ("f", DIRECTORY, ""),
        ("f/in", FILE, "2"),
        ("merge", DIRECTORY, ""),
        ("tod", DIRECTORY, ""),
    ];
    let changes = Add::to(&base, "/x").run(&archive(&members)).unwrap();
    assert_eq!(
        shown(&changes),
        [
            "/x d 755 0:0 1",
            "/x/d f 640 3:4 5",
            "/x/f d 750 3:4 5",
            "/x/f/in f 640 3:4 5",
            "/x/merge d 750 3:4 5",
            "/x/tod d 750 3:4 5"
        ]
    );
}

#[test]
fn what_vanished_from_a_directory_made_anew_gets_whiteouts() {
    let base = snapshot(&[
        ("x", Kind::DIRECTORY),
        ("x/d", Kind::DIRECTORY),
        ("x/d/a", file()),
        ("x/d/s", Kind::DIRECTORY),
        ("x/d/s/b", file()),
        ("x/d/t", Kind::DIRECTORY),
        ("x/d/t/c", file()),
    ]);
    let members =
        [("d", FILE, "1"), ("d", DIRECTORY, ""), ("d/s", DIRECTORY, ""), ("d/n", FILE, "2")];
    let changes = Add::to(&base, "/x").run(&archive(&members)).unwrap();
    assert_eq!(
        shown(&changes),
        [
            "/x d 755 0:0 1",
            "/x/d d 750 3:4 5",
            "/x/d/a gone 0 0:0 0",
            "/x/d/n f 640 3:4 5",
            "/x/d/s d 750 3:4 5",
            "/x/d/s/b gone 0 0:0 0",
            "/x/d/t gone 0 0:0 0"
        ]
    );
    let gone = [("d/a", DIRECTORY, ""), ("d/a", FILE, ""), ("d", FILE, "")];
    let changes = Add::to(&base, "/x").run(&archive(&gone)).unwrap();
    assert_eq!(names(&changes), ["/x", "/x/d"], "what a file replaced needs none");
}

#[test]
fn the_later_of_equal_names_counts() {
    let members =
        [("a", FILE, "first"), ("b/c", FILE, ""), ("a", FILE, "second"), ("b", LINK, "a")];
    let changes = Add::to(&empty(), "/x").run(&archive(&members)).unwrap();
    assert_eq!(names(&changes), ["/x", "/x/a", "/x/b"]);
    assert_eq!(content(&changes, "x/a"), "second");
}

#[test]
fn the_archives_root_is_skipped_or_sets_the_destination() {
    let skipped = Add::to(&empty(), "/x").run(&archive(&[("./", DIRECTORY, ""), ("a", FILE, "")]));
    assert_eq!(shown(&skipped.unwrap())[0], "/x d 755 0:0 9");
    for root in ["/", "..", "a/../.."] {
        let set = Add::to(&empty(), "/x").run(&archive(&[(root, DIRECTORY, "")])).unwrap();
        assert_eq!(shown(&set), ["/x d 750 3:4 5"], "{root}");
        assert!(Add::to(&empty(), "/x").run(&archive(&[(root, LINK, "a")])).is_err());
    }
    let image_root = Add::to(&empty(), "/").run(&archive(&[("/", DIRECTORY, ""), ("a", FILE, "")]));
    assert_eq!(names(&image_root.unwrap()), ["/a"]);
}

// Rule 20.

#[test]
fn a_hard_link_sets_its_inode() {
    let bytes = tar_of(&[
        TarMember("plain", FILE, 0o640, (1, 1), 5, "text"),
        TarMember("hard", HARD, 0o600, (7, 8), 6, "plain"),
    ]);
    let changes = Add::to(&empty(), "/x").run(&bytes).unwrap();
    assert_eq!(shown(&changes)[1..], ["/x/hard f 600 7:8 6", "/x/plain f 600 7:8 6"]);
    let groups: Vec<u32> = changes.changes().iter().map(|change| change.link_group).collect();
    assert_eq!(groups, [0, 1, 1]);
    assert_eq!([content(&changes, "x/hard"), content(&changes, "x/plain")], ["text", "text"]);
}

#[test]
fn an_inherited_target_is_copied_up() {
    let base = empty().with(layer(vec![row("x/old", file(), 0o640, 3, 4)]));
    let same_time = tar_of(&[TarMember("new", HARD, 0o640, (3, 4), 1, "/old")]);
    let changes = Add::to(&base, "/x").run(&same_time).unwrap();
    assert_eq!(names(&changes), ["/x", "/x/new"], "unchanged: a file of its own");
    assert_eq!(changes.changes()[1].link_group, 0);
    assert_eq!(content(&changes, "x/new"), "x/old", "a content read");
    let changed = archive(&[("new", HARD, "../x/../old")]);
    let changes = Add::to(&base, "/x").run(&changed).unwrap();
    assert_eq!(shown(&changes)[1..], ["/x/new f 640 3:4 5", "/x/old f 640 3:4 5"]);
    assert!(changes.changes()[1..].iter().all(|change| change.link_group == 1));
}

#[test]
fn a_hard_link_keeps_a_last_link_and_needs_its_target() {
    let members = [("f", FILE, "1"), ("l", LINK, "f"), ("hard", HARD, "l"), ("d", DIRECTORY, "")];
    let changes = Add::to(&empty(), "/x").run(&archive(&members)).unwrap();
    let hard = changes.changes().iter().find(|change| change.path == path("x/hard")).unwrap();
    assert_eq!(hard.kind, link("f"));
    for target in ["nope", "d", "l/x", "hard", "/", "nope/x"] {
        let mut members = members[..2].to_vec();
        members.push(("d", DIRECTORY, ""));
        members.push(("hard", HARD, target));
        assert!(Add::to(&empty(), "/x").run(&archive(&members)).is_err(), "{target}");
    }
    let base = snapshot(&[("x", Kind::DIRECTORY), ("x/self", file())]);
    let itself = archive(&[("self", HARD, "self")]);
    assert!(Add::to(&base, "/x").run(&itself).is_err(), "it was removed first");
}

#[test]
fn a_hard_link_drops_a_capability_that_it_does_not_bring() {
    let mut old = row("x/old", file(), 0o755, 0, 0);
    old.metadata.capability = Some([[1, 0, 0, 2].as_slice(), &[0; 16]].concat().into());
    let base = empty().with(layer(vec![old]));
    let bytes = tar_of(&[TarMember("new", HARD, 0o755, (0, 0), 1, "old")]);
    let changes = Add::to(&base, "/x").run(&bytes).unwrap();
    assert_eq!(names(&changes), ["/x", "/x/new", "/x/old"], "that changed the inode");
    assert!(changes.changes().iter().all(|change| change.metadata.capability.is_none()));
}

// Rule 24, and the rest.

#[test]
fn an_archive_that_changed_since_it_was_digested_is_an_error() {
    let bytes = archive(&[("a", FILE, "1")]);
    let good = Add { digest: Some(Digest::of(&bytes)), ..Add::to(&empty(), "/x") };
    assert!(good.run(&bytes).is_ok());
    let bad = Add { digest: Some(Digest::of(b"other")), ..Add::to(&empty(), "/x") };
    assert!(matches!(bad.run(&bytes), Err(AddError::Changed(_))));
}

#[test]
fn types_that_no_archive_may_hold_are_refused() {
    let bytes = archive(&[("a", FILE, ""), ("b", EntryType::Continuous, "")]);
    assert!(matches!(Add::to(&empty(), "/x").run(&bytes), Err(AddError::Archive { .. })));
    let special = archive(&[("p", EntryType::Fifo, ""), ("c", EntryType::Char, "")]);
    let changes = Add::to(&empty(), "/x").run(&special).unwrap();
    assert_eq!(changes.changes()[1].kind, Kind::CharacterDevice { major: 0, minor: 0 });
}

#[test]
fn link_unpacks_on_an_empty_tree() {
    let base = snapshot(&[("x", link("real")), ("real", Kind::DIRECTORY)]);
    let mut add = Add::to(&base, "/x");
    add.request.link = true;
    assert_eq!(names(&add.run(&archive(&[("a", FILE, "1")])).unwrap()), ["/x", "/x/a"]);
}

#[test]
fn a_remote_file_is_one_file() {
    let remote = crate::context::RemoteFile {
        name: b"script.sh".to_vec(),
        size: 4,
        content: Content::Bytes(b"text"[..].into()),
        mtime: Timestamp::from_seconds(3),
        digest: None,
    };
    let tree = MemoryTree::remote(remote).unwrap();
    let source =
        Source { tree: &tree, path: SourcePath::Url(path("script.sh")), may_unpack: false };
    let base = empty();
    let request = Add::to(&base, "/x/").request;
    let selected = select(&[source], &request).unwrap();
    let mut spool = Spool::new(tempfile::tempfile().unwrap());
    let mut unpacking = Unpacking { spool: &mut spool, limits: ReadLimits::default() };
    let parent = Parent { snapshot: &base, contents: &NoContents };
    let changes = add(&parent, &selected, &request, &mut unpacking).unwrap();
    assert_eq!(shown(&changes), ["/x d 755 0:0 9", "/x/script.sh f 600 0:0 3"]);
}
