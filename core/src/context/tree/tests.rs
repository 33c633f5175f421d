use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

use super::*;
use crate::{
    context::resolve,
    tree::{Kind, LastLink, ResolveError},
};

struct Fixture(tempfile::TempDir);

impl Fixture {
    fn new(files: &[&str]) -> Self {
        let fixture = Fixture(tempfile::tempdir().unwrap());
        files.iter().for_each(|name| fixture.file(name));
        fixture
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), name).unwrap();
    }

    fn tree(&self, ignore: &str) -> ContextTree {
        ContextTree::open(self.0.path(), Ignore::parse(ignore.as_bytes()).unwrap()).unwrap()
    }

    fn listing(&self, ignore: &str) -> Vec<String> {
        let tree = self.tree(ignore);
        let mut names = Vec::new();
        list(&tree, &EntryPath::root(), &mut names);
        for name in &names {
            assert!(tree.lookup(&path(name)).unwrap().is_some(), "{name} is listed but not found");
        }
        names
    }
}

fn list(tree: &ContextTree, directory: &EntryPath, names: &mut Vec<String>) {
    for (path, node) in tree.children(directory).unwrap() {
        names.push(String::from_utf8(path.as_bytes().to_vec()).unwrap());
        if node.kind.is_directory() {
            list(tree, &path, names);
        }
    }
}

fn path(text: &str) -> EntryPath {
    EntryPath::clean(text.as_bytes()).unwrap()
}

#[test]
fn patterns_leave_out_files_and_bring_back_some() {
    let context = Fixture::new(&["a.txt", "d/a.txt", "d/keep/x", "d/z", "e/f/g.go", ".hidden"]);
    let all =
        [".hidden", "a.txt", "d", "d/a.txt", "d/keep", "d/keep/x", "d/z", "e", "e/f", "e/f/g.go"];
    assert_eq!(context.listing(""), all);
    assert_eq!(context.listing("*.txt"), [&all[..1], &all[2..]].concat());
    assert_eq!(context.listing("d"), [".hidden", "a.txt", "e", "e/f", "e/f/g.go"]);
    assert_eq!(context.listing("*\n!d/keep"), ["d", "d/keep", "d/keep/x"]);
    assert_eq!(context.listing("*\n!**/*.go"), ["e", "e/f", "e/f/g.go"]);
    assert_eq!(context.listing("**\n!d/nothing"), [""; 0]);
    assert_eq!(
        context.listing("d/*\n!d/z"),
        [".hidden", "a.txt", "d", "d/z", "e", "e/f", "e/f/g.go"]
    );
}

#[test]
fn an_ignored_name_is_not_found() {
    let context = Fixture::new(&["a/b", "a/c"]);
    let tree = context.tree("a\n!a/c");
    assert!(tree.lookup(&path("a/b")).unwrap().is_none());
    assert!(tree.lookup(&path("a/c")).unwrap().is_some());
    assert!(tree.lookup(&path("a")).unwrap().is_some());
    assert!(context.tree("a").lookup(&path("a")).unwrap().is_none());
    assert!(tree.lookup(&path("a/c/d")).unwrap().is_none(), "below a file is nothing");
    assert!(tree.lookup(&EntryPath::root()).unwrap().unwrap().kind.is_directory());
}

#[test]
fn metadata_is_the_files_but_for_the_owner() {
    let context = Fixture::new(&["f", "d/x"]);
    fs::set_permissions(context.path("f"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(context.path("f"), context.path("d/again")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        context.path("fifo"),
        rustix::fs::FileType::Fifo,
        0o640.into(),
        0,
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(context.path("socket")).unwrap();
    let tree = context.tree("");
    let node = |name: &str| tree.lookup(&path(name)).unwrap();
    let file = node("f").unwrap();
    assert_eq!((file.metadata.mode, file.metadata.uid, file.metadata.gid), (0o4751, 0, 0));
    assert_eq!(file.kind, Kind::File { size: 1 });
    assert!(file.link.is_some() && file.link == node("d/again").unwrap().link);
    assert_eq!(node("d/x").unwrap().link, None);
    assert_eq!(node("fifo").unwrap().kind, Kind::Fifo);
    assert_eq!(node("socket"), None);
    assert!(!context.listing("").contains(&"socket".to_owned()));
    assert_eq!(tree.capability(&path("f"), &file).unwrap(), None);
}

#[test]
fn links_are_followed_inside_the_context_only() {
    let context = Fixture::new(&["d/file"]);
    symlink("/d", context.path("absolute")).unwrap();
    symlink("../../../d/file", context.path("up")).unwrap();
    symlink("loop", context.path("loop")).unwrap();
    symlink("/etc/passwd", context.path("out")).unwrap();
    let tree = context.tree("");
    let follow = |name: &str| resolve(&tree, &path(name), LastLink::Follow);
    assert_eq!(follow("absolute/file").unwrap(), path("d/file"));
    assert_eq!(follow("up").unwrap(), path("d/file"));
    assert!(matches!(follow("loop"), Err(ContextError::Resolve(ResolveError::TooManyLinks(_)))));
    assert!(tree.lookup(&follow("out").unwrap()).unwrap().is_none(), "inside the context");
    assert_eq!(resolve(&tree, &path("up"), LastLink::Keep).unwrap(), path("up"));
    assert!(tree.lookup(&path("absolute/file")).unwrap().is_none(), "a physical path");
    assert!(tree.children(&path("absolute")).is_err());
    let content = tree.contents(&[path("absolute/file")]).unwrap().remove(0);
    assert!(content.open().is_err(), "no link on the way is followed");
}

#[test]
fn a_context_may_itself_be_reached_by_a_link() {
    let context = Fixture::new(&["real/f"]);
    symlink("real", context.path("link")).unwrap();
    let tree = ContextTree::open(&context.path("link"), Ignore::none()).unwrap();
    assert!(tree.lookup(&path("f")).unwrap().is_some());
    assert!(ContextTree::open(&context.path("real/f"), Ignore::none()).is_err());
    assert!(ContextTree::open(&context.path("none"), Ignore::none()).is_err());
}
