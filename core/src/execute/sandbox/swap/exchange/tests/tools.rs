//! A container's root with a side directory and a stage, and what is in a tree.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    mount::{MountFlags, mount, mount_bind, mount_remount},
    thread::UnshareFlags,
};

use super::super::*;
use crate::{
    rootfs::testing::shell,
    sys::namespace::{detach, make_mounts_private, unshare},
};

pub const STAGE: &str = "work/build-1/step-1/tree";

/// Runs a test in a mount namespace of its own, which goes with its thread.
pub fn isolated<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let run = || {
        unshare(UnshareFlags::NEWNS | UnshareFlags::FS).unwrap();
        make_mounts_private().unwrap();
        test()
    };
    match std::thread::spawn(run).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

pub fn path(text: &str) -> EntryPath {
    EntryPath::clean(text.as_bytes()).unwrap()
}

pub struct World {
    scratch: tempfile::TempDir,
    pub root: PathBuf,
    pub options: Options,
}

impl World {
    /// An empty root with a side directory and an empty stage.
    pub fn new() -> Self {
        World::in_directory(|scratch| {
            let root = scratch.join("root");
            fs::create_dir(&root).unwrap();
            root
        })
    }

    /// A root that `make` makes in a scratch directory.
    pub fn in_directory(make: impl FnOnce(&Path) -> PathBuf) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let root = make(scratch.path());
        fs::create_dir_all(root.join(".bareboat").join(STAGE)).unwrap();
        World { scratch, root, options: Options::new(path("")) }
    }

    /// A root of overlayfs over one layer that `make_layer` fills, as Docker mounts it.
    pub fn layered(make_layer: &str) -> Self {
        World::in_directory(|scratch| {
            for name in ["layer", "upper", "work", "root"] {
                fs::create_dir(scratch.join(name)).unwrap();
            }
            shell(&scratch.join("layer"), make_layer);
            let at = |name: &str| scratch.join(name).display().to_string();
            let options = format!(
                "lowerdir={},upperdir={},workdir={},redirect_dir=off,metacopy=off,index=off,xino=off",
                at("layer"),
                at("upper"),
                at("work")
            );
            let options = std::ffi::CString::new(options).unwrap();
            let root = scratch.join("root");
            mount("overlay", &root, "overlay", MountFlags::empty(), Some(&*options)).unwrap();
            root
        })
    }

    /// A root as containerd makes it, a stage with much in it, and files mounted in /etc.
    pub fn ordinary() -> Self {
        let world = World::new();
        world.at_root(
            "mkdir -p bin etc/ssl/certs home/u var/lib proc dev tmp; chmod 1777 tmp; echo sh > bin/sh; echo c > etc/ssl/certs/ca
             echo root > etc/passwd; ln -s bin/sh sh; ln bin/sh bin/ash; echo own > etc/hosts; > etc/resolv.conf; > etc/hostname
             mkfifo var/fifo; chown 3:4 etc",
        );
        let root = &world.root;
        set(root, "etc", "user.who", b"container");
        set(root, "etc", "system.posix_acl_access", &acl(5));
        set(root, "etc", "system.posix_acl_default", &acl(7));
        set(root, ".", "user.root", b"yes");
        set(root, ".", "trusted.root", b"yes");
        world.at_root("touch -d '2001-02-03 04:05:06.123456789' etc .");
        world.at_stage(
            "mkdir -p usr/bin etc/apt var/log proc new; ln -s usr/bin bin; echo x > usr/bin/tool; chmod 4755 usr/bin/tool
             echo stage > etc/passwd; echo theirs > etc/hosts; echo a > etc/apt/list
             ln etc/passwd etc/passwd-; chown 7:8 new; chmod 0700 etc",
        );
        let stage = &world.stage();
        set(stage, "usr/bin/tool", "security.capability", CAP_NET_RAW);
        set(stage, "etc", "user.who", b"stage");
        set(stage, "etc", "system.posix_acl_access", &acl(4));
        set(stage, ".", "user.top", b"t");
        world.at_stage("touch -d '2010-01-01 00:00:00.987654321' etc . new usr");
        for name in ["hosts", "resolv.conf", "hostname"] {
            world.mount_file(&format!("etc/{name}"), "runtime");
        }
        world
    }

    pub fn stage(&self) -> PathBuf {
        self.side().join(STAGE)
    }

    pub fn side(&self) -> PathBuf {
        self.root.join(".bareboat")
    }

    pub fn at_root(&self, script: &str) {
        shell(&self.root, script);
    }

    pub fn at_stage(&self, script: &str) {
        shell(&self.stage(), script);
    }

    /// A new directory beside the root.
    pub fn aside(&self, name: &str) -> PathBuf {
        let directory = self.scratch.path().join(name);
        fs::create_dir(&directory).unwrap();
        directory
    }

    /// Mounts a file with this content over one that exists.
    pub fn mount_file(&self, target: &str, content: &str) {
        let source = self.scratch.path().join(target.replace('/', "-"));
        fs::write(&source, content).unwrap();
        mount_bind(&source, self.root.join(target)).unwrap();
    }

    /// Mounts a volume over a directory that exists.
    pub fn mount_volume(&self, target: &str) {
        mount("tmpfs", self.root.join(target), "tmpfs", MountFlags::empty(), None).unwrap();
    }

    /// The same on this file system.
    pub fn bind_volume(&self, target: &str) {
        let source = self.aside(&target.replace('/', "-"));
        mount_bind(&source, self.root.join(target)).unwrap();
    }

    pub fn make_read_only(&self, target: &str) {
        let flags = MountFlags::BIND | MountFlags::RDONLY;
        mount_remount(self.root.join(target), flags, c"").unwrap();
    }

    pub fn exchange(&self) -> Exchange {
        self.try_exchange(Ops::unlimited()).unwrap()
    }

    pub fn try_exchange(&self, ops: Ops) -> Result<Exchange, SwapError> {
        let open = |path: &Path| OwnedFd::from(fs::File::open(path).unwrap());
        let (root, side) = (open(&self.root), open(&self.side()));
        let prefix = EntryPath::clean(self.root.as_os_str().as_bytes()).unwrap();
        let mounts = Box::new(move || {
            let table = MountTable::read(fs::File::open("/")?)?;
            Ok(table.below(&prefix))
        });
        let place = Place { root, side, side_name: b".bareboat".to_vec(), mounts };
        // Another test, about to start a shell, may hold the lock for a moment.
        Exchange::lock_with(place, ops, || {})
    }

    pub fn plan<'e>(&self, exchange: &'e Exchange) -> Result<Plan<'e>, SwapError> {
        exchange.plan(&path(STAGE), &self.options)
    }

    /// Swaps in, runs a script at the root, swaps out.
    pub fn run(&self, script: &str) -> SwappedOut {
        let exchange = self.exchange();
        let swapped = self.plan(&exchange).unwrap().swap_in().unwrap();
        shell(&self.root, script);
        swapped.swap_out().unwrap()
    }

    /// What the container's root holds, without the side directory.
    pub fn root_facts(&self) -> Facts {
        facts(&self.root, Some(&self.side()))
    }

    pub fn stage_facts(&self) -> Facts {
        facts(&self.stage(), None)
    }

    /// Nothing but what stays between exchanges.
    pub fn assert_side_is_tidy(&self) {
        let mut names: Vec<_> =
            fs::read_dir(self.side()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.retain(|name| {
            !["probe", "swap.journal", "swap.lock", "work"].iter().any(|known| name == known)
        });
        assert!(names.is_empty(), "{names:?}");
    }
}

/// `struct vfs_cap_data`, version 2, effective.
pub const CAP_NET_RAW: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// An ACL that gives user 99 these permissions.
pub fn acl(permissions: u8) -> Vec<u8> {
    let entry = |tag: u8, permissions: u8, id: u32| {
        [&[tag, 0, permissions, 0][..], &id.to_le_bytes()[..]].concat()
    };
    let none = u32::MAX;
    let entries = [
        entry(1, 7, none),
        entry(2, permissions, 99),
        entry(4, 0, none),
        entry(16, permissions, none),
        entry(32, 0, none),
    ];
    [&[2, 0, 0, 0][..], &entries.concat()].concat()
}

/// Sets an extended attribute, of a link itself.
pub fn set(directory: &Path, name: &str, key: &str, value: &[u8]) {
    let directory = fs::File::open(directory).unwrap();
    crate::sys::xattr::set_at(directory, name.as_ref(), key, value).unwrap();
}

/// An extended attribute as text.
pub fn attribute(path: &Path, key: &str) -> Option<String> {
    let value = crate::rootfs::testing::attribute(path, key)?;
    Some(String::from_utf8_lossy(&value).into_owned())
}

impl Drop for World {
    /// Mounts of this namespace would keep the scratch directory from going.
    fn drop(&mut self) {
        let prefix = EntryPath::clean(self.scratch.path().as_os_str().as_bytes()).unwrap();
        let last = || {
            let table = MountTable::read(fs::File::open("/").unwrap()).unwrap();
            table.within(&prefix).map(|(path, _)| path.to_string()).last()
        };
        while let Some(path) = last() {
            if detach(Path::new(&path)).is_err() {
                break;
            }
        }
    }
}

/// All that must be equal before and after, change times aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    pub inode: u64,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    pub links: u64,
    pub device: u64,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    pub content: Vec<u8>,
}

pub type Facts = BTreeMap<PathBuf, Fact>;

pub fn facts(root: &Path, without: Option<&Path>) -> Facts {
    let mut facts = Facts::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        if stat.is_dir() {
            let entries = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
            pending.extend(entries.filter(|entry| Some(entry.as_path()) != without));
        }
        let relative = path.strip_prefix(root).unwrap().to_owned();
        facts.insert(relative, fact(&path, &stat));
    }
    facts
}

fn fact(path: &Path, stat: &fs::Metadata) -> Fact {
    let kind = stat.file_type();
    let content = match () {
        _ if kind.is_file() => fs::read(path).unwrap(),
        _ if kind.is_symlink() => fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec(),
        _ => Vec::new(),
    };
    let is_node = kind.is_char_device() || kind.is_block_device();
    Fact {
        inode: stat.ino(),
        mode: stat.mode(),
        owner: (stat.uid(), stat.gid()),
        mtime: (stat.mtime(), stat.mtime_nsec()),
        links: if stat.is_dir() { 0 } else { stat.nlink() },
        device: if is_node { stat.rdev() } else { 0 },
        xattrs: xattrs(path),
        content,
    }
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let parent = fs::File::open(path.parent().unwrap()).unwrap();
    let name = path.file_name().unwrap();
    let keys = crate::sys::xattr::list_at(&parent, name).unwrap();
    let pair = |key: Vec<u8>| {
        let key = String::from_utf8(key).unwrap();
        let value = crate::sys::xattr::get_at(&parent, name, &key).unwrap().unwrap_or_default();
        (key, value)
    };
    keys.into_iter().map(pair).collect()
}

/// The same without what a copy can't keep: inode numbers, and names linked from outside.
pub fn without_inodes(mut facts: Facts) -> Facts {
    let mut first = BTreeMap::new();
    for (number, fact) in facts.values_mut().enumerate() {
        // Equal numbers stay equal.
        fact.inode = *first.entry(fact.inode).or_insert(number as u64);
        // An overlay counts names that are not there any more.
        fact.links = 0;
    }
    facts
}

/// Says by name what differs.
#[track_caller]
pub fn assert_same(what: &str, before: &Facts, after: &Facts) {
    let mut differing: Vec<String> = Vec::new();
    for path in before.keys().chain(after.keys()) {
        if before.get(path) != after.get(path) {
            let line = format!("{path:?}\n  {:?}\n  {:?}", before.get(path), after.get(path));
            differing.push(line);
        }
    }
    differing.dedup();
    assert!(differing.is_empty(), "{what}:\n{}", differing.join("\n"));
}
