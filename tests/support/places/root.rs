//! The files of a container's own root, to prove that a build left it as it was.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// One entry, as far as a job could notice: a regular file's content is told by its size and times, and by its inode.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    inode: u64,
    mode: u32,
    owner: (u32, u32),
    size: u64,
    modified: (i64, i64),
    links: u64,
    target: Option<PathBuf>,
}

/// Every entry below a root and the root itself, mounts left out.
#[derive(Clone, PartialEq)]
pub struct RootFiles {
    entries: BTreeMap<PathBuf, Entry>,
}

impl RootFiles {
    /// Reads the tree at `root`. `except` are absolute paths in it: these and what is below them are left out, and so are the
    /// times and link counts of the directories that they are made in.
    pub(super) fn of(root: &Path, except: &[&str]) -> RootFiles {
        let mut files = RootFiles { entries: BTreeMap::new() };
        let device = fs::metadata(root).unwrap().dev();
        let except: Vec<PathBuf> =
            except.iter().map(|path| PathBuf::from(path.trim_start_matches('/'))).collect();
        let mut waiting = vec![PathBuf::new()];
        while let Some(path) = waiting.pop() {
            let here = root.join(&path);
            let metadata = fs::symlink_metadata(&here)
                .unwrap_or_else(|error| panic!("{}: {error}", here.display()));
            if metadata.dev() != device && metadata.is_dir() || except.contains(&path) {
                continue;
            }
            let mut entry = entry(&here, &metadata);
            if except.iter().any(|except| except.parent() == Some(&path) && path != Path::new("")) {
                entry.modified = (0, 0);
                entry.links = 0;
            }
            files.entries.insert(path.clone(), entry);
            if metadata.is_dir() {
                waiting.extend(children(&here).into_iter().map(|name| path.join(name)));
            }
        }
        files
    }

    /// What differs from an earlier look: a line an entry, the first few.
    pub fn differences(&self, before: &RootFiles) -> Vec<String> {
        let mut paths: Vec<&PathBuf> = self.entries.keys().chain(before.entries.keys()).collect();
        paths.sort();
        paths.dedup();
        let changed = |path: &&&PathBuf| self.entries.get(**path) != before.entries.get(**path);
        let line = |path: &&PathBuf| {
            let (old, new) = (before.entries.get(*path), self.entries.get(*path));
            format!("/{}: {old:?} -> {new:?}", path.display())
        };
        paths.iter().filter(changed).take(20).map(line).collect()
    }

    /// The same without the identity of files: for a root whose files were moved into other inodes once.
    pub fn without_inodes(mut self) -> RootFiles {
        for entry in self.entries.values_mut() {
            entry.inode = 0;
            // overlayfs tells 1 for a directory that is in a layer, whatever it holds.
            if entry.mode & 0o170000 == 0o040000 {
                entry.links = 0;
            }
        }
        self
    }

    /// # Panics
    /// If anything differs, naming it.
    #[track_caller]
    pub fn assert_as(&self, before: &RootFiles) {
        let differences = self.differences(before);
        assert!(
            differences.is_empty(),
            "the container's root changed:\n{}",
            differences.join("\n")
        );
    }
}

fn children(directory: &Path) -> Vec<std::ffi::OsString> {
    let entries =
        fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    entries.map(|entry| entry.unwrap().file_name()).collect()
}

fn entry(path: &Path, metadata: &fs::Metadata) -> Entry {
    let target = metadata.is_symlink().then(|| fs::read_link(path).unwrap());
    Entry {
        inode: metadata.ino(),
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        links: metadata.nlink(),
        target,
    }
}
