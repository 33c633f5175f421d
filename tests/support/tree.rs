//! Layers applied in order, as a reader that knows whiteouts but follows no links: the image's file tree.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
};

use super::oci;

/// Files up to this size keep their content, so that tests can read it.
const CONTENT_BYTES_MAX: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    Character,
    Block,
    Fifo,
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub kind: Kind,
    /// The 12 permission bits.
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Zero for anything but a regular file.
    pub size: u64,
    /// Empty for anything but a regular file.
    pub sha256: String,
    pub content: Option<Vec<u8>>,
    /// A symbolic link's target.
    pub link: String,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// The value of `security.capability`.
    pub capability: Option<Vec<u8>>,
    /// Names of other attributes.
    pub xattrs: BTreeSet<String>,
    /// Seconds.
    pub mtime: u64,
    /// Names with the same number are hard links of each other.
    pub inode: u64,
}

#[derive(Default)]
pub struct Tree {
    /// By path without a leading slash; bytes that are not UTF-8 are written as `\xNN`.
    pub entries: BTreeMap<String, Entry>,
    inodes: u64,
}

impl Tree {
    pub fn of_layers(layers: &[Vec<u8>]) -> Tree {
        let mut tree = Tree::default();
        layers.iter().for_each(|layer| tree.apply(layer));
        tree
    }

    /// # Panics
    /// If there is nothing at `path`.
    #[track_caller]
    pub fn get(&self, path: &str) -> &Entry {
        let path = path.trim_matches('/');
        self.entries.get(path).unwrap_or_else(|| panic!("no {path} in the image"))
    }

    pub fn has(&self, path: &str) -> bool {
        self.entries.contains_key(path.trim_matches('/'))
    }

    /// The names directly in a directory.
    pub fn names(&self, directory: &str) -> Vec<&str> {
        let prefix = format!("{}/", directory.trim_matches('/'));
        let prefix = prefix.trim_start_matches('/');
        let below = self.entries.keys().filter_map(|path| path.strip_prefix(prefix));
        below.filter(|name| !name.contains('/')).collect()
    }

    fn apply(&mut self, layer: &[u8]) {
        self.apply_whiteouts(layer);
        let mut archive = tar::Archive::new(layer);
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = clean(&entry.path_bytes());
            if !file_name(&path).starts_with(".wh.") && !path.is_empty() {
                self.put(path, &mut entry);
            }
        }
    }

    /// Whiteouts act on the layers below, wherever they stand in their own.
    fn apply_whiteouts(&mut self, layer: &[u8]) {
        let mut archive = tar::Archive::new(layer);
        for entry in archive.entries().unwrap() {
            let path = clean(&entry.unwrap().path_bytes());
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
            match name.strip_prefix(".wh.") {
                Some(".wh..opq") => self.remove_below(parent),
                Some(hidden) => self.remove(&join(parent, hidden)),
                None => {}
            }
        }
    }

    fn put(&mut self, path: String, entry: &mut tar::Entry<'_, &[u8]>) {
        self.make_parents(&path);
        let new = if entry.header().entry_type() == tar::EntryType::Link {
            let target = clean(&entry.link_name_bytes().expect("a hard link has a target"));
            let target = self.entries.get(&target);
            target.unwrap_or_else(|| panic!("{path} is a hard link to nothing")).clone()
        } else {
            self.inodes += 1;
            read(entry, self.inodes)
        };
        let merges = new.kind == Kind::Directory
            && self.entries.get(&path).is_some_and(|old| old.kind == Kind::Directory);
        if !merges {
            self.remove(&path);
        }
        self.entries.insert(path, new);
    }

    fn make_parents(&mut self, path: &str) {
        let ends: Vec<usize> = path.match_indices('/').map(|(at, _)| at).collect();
        for end in ends {
            let parent = &path[..end];
            if self.entries.get(parent).is_none_or(|entry| entry.kind != Kind::Directory) {
                self.remove(parent);
                self.inodes += 1;
                self.entries.insert(parent.to_owned(), directory(self.inodes));
            }
        }
    }

    fn remove(&mut self, path: &str) {
        self.entries.remove(path);
        self.remove_below(path);
    }

    fn remove_below(&mut self, path: &str) {
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        let below = self.entries.range(prefix.clone()..).map(|(name, _)| name);
        let below: Vec<String> =
            below.take_while(|name| name.starts_with(&prefix)).cloned().collect();
        for name in below {
            self.entries.remove(&name);
        }
    }

    /// A line for each path with everything that two builders must agree on; hard links name their group's first path.
    pub fn describe(&self) -> BTreeMap<String, String> {
        let mut first: BTreeMap<u64, &str> = BTreeMap::new();
        for (path, entry) in &self.entries {
            first.entry(entry.inode).or_insert(path);
        }
        self.entries
            .iter()
            .map(|(path, entry)| (path.clone(), entry.describe(path, first[&entry.inode])))
            .collect()
    }

    /// What differs from `other`, a line each: `<` stands here only, `>` there only.
    pub fn differences(&self, other: &Tree, ignored: impl Fn(&str) -> bool) -> Vec<String> {
        let (ours, theirs) = (self.describe(), other.describe());
        let mut lines = Vec::new();
        for path in ours.keys().chain(theirs.keys().filter(|path| !ours.contains_key(*path))) {
            if !ignored(path) && ours.get(path) != theirs.get(path) {
                lines.extend(ours.get(path).map(|line| format!("< {path}: {line}")));
                lines.extend(theirs.get(path).map(|line| format!("> {path}: {line}")));
            }
        }
        lines
    }
}

impl Entry {
    fn describe(&self, path: &str, first: &str) -> String {
        let mut line = format!("{:?} {:04o} {}:{}", self.kind, self.mode, self.uid, self.gid);
        match self.kind {
            Kind::File => line += &format!(" {} {}", self.size, self.sha256),
            Kind::Symlink => line = format!("Symlink {}:{} -> {}", self.uid, self.gid, self.link),
            Kind::Character | Kind::Block => line += &format!(" {:?}", self.device),
            Kind::Directory | Kind::Fifo => {}
        }
        if let Some(capability) = &self.capability {
            line += &format!(" capability {}", oci::hex(capability));
        }
        if first != path {
            line += &format!(" = {first}");
        }
        line
    }
}

fn directory(inode: u64) -> Entry {
    Entry {
        kind: Kind::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        size: 0,
        sha256: String::new(),
        content: None,
        link: String::new(),
        device: (0, 0),
        capability: None,
        xattrs: BTreeSet::new(),
        mtime: 0,
        inode,
    }
}

fn read(entry: &mut tar::Entry<'_, &[u8]>, inode: u64) -> Entry {
    let header = entry.header().clone();
    let mut new = directory(inode);
    new.kind = kind(header.entry_type());
    new.mode = header.mode().unwrap() & 0o7777;
    (new.uid, new.gid) = (header.uid().unwrap(), header.gid().unwrap());
    new.mtime = header.mtime().unwrap();
    if let Some(link) = entry.link_name_bytes().filter(|_| new.kind == Kind::Symlink) {
        new.link = printable(&link);
    }
    if matches!(new.kind, Kind::Character | Kind::Block) {
        new.device = (
            header.device_major().unwrap().unwrap_or(0),
            header.device_minor().unwrap().unwrap_or(0),
        );
    }
    read_extensions(entry, &mut new);
    if new.kind == Kind::File {
        read_content(entry, &mut new);
    }
    new
}

fn read_extensions(entry: &mut tar::Entry<'_, &[u8]>, new: &mut Entry) {
    let Ok(Some(extensions)) = entry.pax_extensions() else { return };
    for extension in extensions {
        let extension = extension.unwrap();
        let value = extension.value_bytes();
        let number =
            || std::str::from_utf8(value).unwrap().split('.').next().unwrap().parse().unwrap();
        match extension.key().unwrap() {
            "uid" => new.uid = number(),
            "gid" => new.gid = number(),
            "mtime" => new.mtime = number(),
            "SCHILY.xattr.security.capability" => new.capability = Some(value.to_vec()),
            key => new.xattrs.extend(key.strip_prefix("SCHILY.xattr.").map(str::to_owned)),
        }
    }
}

fn read_content(entry: &mut tar::Entry<'_, &[u8]>, new: &mut Entry) {
    let mut content = Vec::new();
    entry.read_to_end(&mut content).unwrap();
    new.size = content.len() as u64;
    new.sha256 = oci::sha256_hex(&content);
    new.content = (new.size <= CONTENT_BYTES_MAX).then_some(content);
}

fn kind(entry_type: tar::EntryType) -> Kind {
    match entry_type {
        tar::EntryType::Regular => Kind::File,
        tar::EntryType::Directory => Kind::Directory,
        tar::EntryType::Symlink => Kind::Symlink,
        tar::EntryType::Char => Kind::Character,
        tar::EntryType::Block => Kind::Block,
        tar::EntryType::Fifo => Kind::Fifo,
        other => panic!("an entry of type {other:?} in a layer"),
    }
}

fn clean(path: &[u8]) -> String {
    let path = printable(path);
    let parts: Vec<&str> =
        path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    assert!(!parts.contains(&".."), "{path} in a layer");
    parts.join("/")
}

fn printable(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text += chunk.valid();
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
