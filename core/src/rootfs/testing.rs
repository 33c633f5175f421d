//! Trees on disk for tests: scratch directories, overlays, and what is in them.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::FileTypeExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
    process::Command,
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::{
    layer::LayerSink,
    tree::{EntryPath, IndexBuilder, Kind, LayerIndex, Metadata, Row, Timestamp},
};

use super::{Unpacker, directories::rows_with_hidden};

pub fn path(text: &str) -> EntryPath {
    EntryPath::clean(text.as_bytes()).unwrap()
}

pub fn open(directory: &Path) -> OwnedFd {
    fs::File::open(directory).unwrap().into()
}

/// A new empty directory.
pub fn make(parent: &Path, name: &str) -> PathBuf {
    let directory = parent.join(name);
    fs::create_dir(&directory).unwrap();
    directory
}

/// A row of which only what matters is said: `f name content`, `d name`, `l name target`, `w name`, `p name`.
pub fn row(text: &str) -> (Row, Vec<u8>) {
    let mut words = text.splitn(3, ' ');
    let (tag, name) = (words.next().unwrap(), path(words.next().unwrap()));
    let rest = words.next().unwrap_or_default().as_bytes();
    let (kind, mode) = match tag {
        "f" => (Kind::File { size: rest.len() as u64 }, 0o644),
        "d" => (Kind::DIRECTORY, 0o755),
        "l" => (Kind::Symlink { target: rest.into() }, 0o777),
        "w" => (Kind::Whiteout, 0),
        "p" => (Kind::Fifo, 0o600),
        other => panic!("{other}"),
    };
    let mtime = Timestamp::from_seconds(if tag == "w" { 0 } else { 1_000_000_000 });
    (Row::new(name, kind, Metadata { mode, mtime, ..Metadata::default() }), rest.to_vec())
}

/// Unpacks rows into a directory, and gives their index.
pub fn unpack(directory: &Path, rows: &[(Row, Vec<u8>)]) -> LayerIndex {
    let mut unpacker = Unpacker::new(open(directory)).unwrap();
    let mut builder = IndexBuilder::default();
    for (row, body) in rows {
        unpacker.entry(row, &mut &body[..]).unwrap();
        builder.insert(row.clone());
    }
    let index = builder.build();
    unpacker.finish(&index, &|_| None).unwrap();
    index
}

/// What a layer does to its directory.
#[derive(Clone, Debug)]
pub enum Step {
    Entry(Row, Vec<u8>),
    Link(EntryPath, EntryPath),
    Opaque(EntryPath),
}

/// Does the same to a directory and to an index, as the reader of layers does.
pub fn replay(directory: &Path, steps: &[Step]) -> LayerIndex {
    replay_by(Unpacker::new(open(directory)).unwrap(), steps)
}

/// The same for a plain tree, which is empty for the first layer.
pub fn replay_plain(tree: &Path, staging: &Path, steps: &[Step]) -> LayerIndex {
    let index = replay_by(Unpacker::plain(open(staging)).unwrap(), steps);
    super::lay_over(open(staging).as_fd(), &index, open(tree).as_fd()).unwrap();
    index
}

fn replay_by(mut unpacker: Unpacker, steps: &[Step]) -> LayerIndex {
    let mut builder = IndexBuilder::default();
    for (group, step) in (1..).zip(steps) {
        match step {
            Step::Entry(row, body) => {
                unpacker.entry(row, &mut &body[..]).unwrap();
                builder.insert(row.clone());
            }
            Step::Opaque(directory) => {
                unpacker.opaque(directory).unwrap();
                builder.set_opaque(directory);
            }
            Step::Link(path, target) => {
                let Some(old) = builder.get(target).cloned() else { continue };
                if old.kind.is_directory() || old.kind == Kind::Whiteout {
                    continue;
                }
                let link_group = if old.link_group > 0 { old.link_group } else { group };
                let row = Row { path: path.clone(), link_group, ..old.clone() };
                unpacker.hard_link(&row, target).unwrap();
                builder.insert(Row { link_group, ..old });
                builder.insert(row);
            }
        }
    }
    let index = builder.build();
    unpacker.finish(&index, &|_| None).unwrap();
    index
}

/// Unpacks a layer whose steps are said as for [`row`], or are `h name target` or `o directory`.
pub fn layer(directory: &Path, texts: &[&str]) -> LayerIndex {
    replay(directory, &steps(texts))
}

pub fn steps(texts: &[&str]) -> Vec<Step> {
    let step = |text: &&str| match text.split(' ').collect::<Vec<_>>()[..] {
        ["h", name, target] => Step::Link(path(name), path(target)),
        ["o", name] => Step::Opaque(path(name)),
        _ => {
            let (row, body) = row(text);
            Step::Entry(row, body)
        }
    };
    texts.iter().map(step).collect()
}

/// What a name is: kind, metadata, and the first name of its inode among several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub kind: Kind,
    pub metadata: Metadata,
    pub first_name: EntryPath,
}

pub type Tree = BTreeMap<EntryPath, Seen>;

/// All that is below a directory, in overlay's form where it is a layer.
pub fn walk(root: &Path) -> Tree {
    let mut tree = Tree::new();
    walk_below(root, &mut tree);
    let mut first: HashMap<EntryPath, EntryPath> = HashMap::new();
    for (name, seen) in &mut tree {
        if seen.kind == Kind::Whiteout {
            // The kernel makes links of one inode where it can.
            seen.first_name = name.clone();
            continue;
        }
        seen.first_name = first.entry(seen.first_name.clone()).or_insert(name.clone()).clone();
    }
    tree
}

fn walk_below(root: &Path, tree: &mut Tree) {
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap().path();
            let name = entry.strip_prefix(root).unwrap().as_os_str().as_bytes();
            // An overlay lists, but does not have, a whiteout in a directory that only one layer has.
            let Ok(stat) = fs::symlink_metadata(&entry) else { continue };
            tree.insert(EntryPath::clean(name).unwrap(), seen(&entry, &stat));
            if stat.is_dir() {
                directories.push(entry);
            }
        }
    }
}

fn seen(path: &Path, stat: &fs::Metadata) -> Seen {
    let (major, minor) = (rustix::fs::major(stat.rdev()), rustix::fs::minor(stat.rdev()));
    let file_type = stat.file_type();
    let kind = if file_type.is_dir() {
        let opaque = attribute(path, "trusted.overlay.opaque").as_deref() == Some(b"y");
        Kind::Directory { opaque }
    } else if file_type.is_symlink() {
        Kind::Symlink { target: fs::read_link(path).unwrap().as_os_str().as_bytes().into() }
    } else if file_type.is_char_device() {
        if stat.rdev() == 0 { Kind::Whiteout } else { Kind::CharacterDevice { major, minor } }
    } else if file_type.is_block_device() {
        Kind::BlockDevice { major, minor }
    } else if file_type.is_fifo() {
        Kind::Fifo
    } else {
        Kind::File { size: stat.len() }
    };
    let metadata = Metadata {
        mode: stat.mode() & 0o7777,
        uid: stat.uid(),
        gid: stat.gid(),
        mtime: Timestamp { seconds: stat.mtime(), nanoseconds: stat.mtime_nsec() as u32 },
        capability: attribute(path, "security.capability"),
    };
    // For now the inode; `walk` makes it a name.
    let first_name = EntryPath::clean(stat.ino().to_string().as_bytes()).unwrap();
    let metadata = if kind == Kind::Whiteout { Metadata::default() } else { metadata };
    Seen { kind, metadata, first_name }
}

pub fn attribute(path: &Path, key: &str) -> Option<Box<[u8]>> {
    let mut buffer = [0; 256];
    let length = rustix::fs::lgetxattr(path, key, &mut buffer[..]).ok()?;
    Some(buffer[..length].into())
}

/// What an index says should be on disk.
pub fn expected(index: &LayerIndex) -> Tree {
    let mut first: HashMap<u32, EntryPath> = HashMap::new();
    let rows = rows_with_hidden(index);
    let rows = rows.filter(|(row, hidden)| !(*hidden && row.kind == Kind::Whiteout));
    let rows = rows.map(|(row, _)| row).filter(|row| !row.path.is_root());
    rows.map(|row| {
        let mut metadata = row.metadata.clone();
        if matches!(row.kind, Kind::Symlink { .. }) {
            metadata.mode = 0o777;
        }
        let mut first_name = row.path.clone();
        if row.link_group > 0 {
            first_name = first.entry(row.link_group).or_insert(first_name).clone();
        }
        (row.path.clone(), Seen { kind: row.kind.clone(), metadata, first_name })
    })
    .collect()
}

/// An overlay shows the marks of a lower directory nowhere.
pub fn without_marks(mut tree: Tree) -> Tree {
    for seen in tree.values_mut().filter(|seen| seen.kind.is_directory()) {
        seen.kind = Kind::DIRECTORY;
    }
    tree
}

/// A mounted overlay, for as long as it lives.
pub struct Overlay {
    pub merged: PathBuf,
    pub upper: PathBuf,
}

impl Overlay {
    /// Over `lowers`, lowest first, with an upper directory of its own below `scratch`.
    pub fn mount(scratch: &Path, name: &str, lowers: &[PathBuf]) -> Self {
        let own = make(scratch, name);
        let (merged, upper, work) = (make(&own, "merged"), make(&own, "upper"), make(&own, "work"));
        let lower: Vec<&str> = lowers.iter().rev().map(|lower| lower.to_str().unwrap()).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=off,metacopy=off,index=off,xino=off",
            lower.join(":"),
            upper.display(),
            work.display()
        );
        let options = std::ffi::CString::new(options).unwrap();
        mount("overlay", &merged, "overlay", MountFlags::empty(), Some(&*options)).unwrap();
        Overlay { merged, upper }
    }

    /// Runs a shell in the merged directory.
    pub fn run(&self, script: &str) {
        shell(&self.merged, script);
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        unmount(&self.merged, UnmountFlags::DETACH).unwrap();
    }
}

pub fn shell(directory: &Path, script: &str) {
    let mut command = Command::new("/bin/bash");
    let output = command.args(["-e", "-c", script]).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}
