//! What is mounted where, from /proc/PID/mountinfo (proc(5)): names are bytes.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
};

use rustix::fs::{Mode, OFlags, openat};

use crate::tree::EntryPath;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub id: u64,
    pub parent: u64,
    /// Where it is, from the root of the process that read the table.
    pub path: EntryPath,
    pub file_system: String,
    /// Device or other source, shown to people.
    pub source: String,
    /// The mount or its whole file system is read-only.
    pub read_only: bool,
}

/// A line that is no line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("mountinfo: line {line} can't be read: {}", .text.escape_ascii())]
pub struct MountInfoError {
    pub line: usize,
    pub text: Vec<u8>,
}

/// All mounts of a namespace. Paths given to its methods are relative to `root` (see [`MountTable::below`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountTable {
    mounts: Vec<Mount>,
    root: EntryPath,
}

impl MountTable {
    /// Reads the text of mountinfo.
    pub fn parse(bytes: &[u8]) -> Result<Self, MountInfoError> {
        let lines = bytes.split(|byte| *byte == b'\n').enumerate();
        let lines = lines.filter(|(_, line)| !line.is_empty());
        let mount = |(at, line): (usize, &[u8])| {
            parse_line(line).ok_or_else(|| MountInfoError { line: at + 1, text: line.to_vec() })
        };
        Ok(MountTable {
            mounts: lines.map(mount).collect::<Result<_, _>>()?,
            root: EntryPath::root(),
        })
    }

    /// Reads the table of this thread through `root`'s own /proc, which is a mount that no step can move.
    pub fn read(root: impl AsFd) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file: OwnedFd = openat(root, "proc/thread-self/mountinfo", flags, Mode::empty())?;
        let mut bytes = Vec::new();
        File::from(file).read_to_end(&mut bytes)?;
        MountTable::parse(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// The same table, with paths told from `root` on.
    pub fn below(mut self, root: &EntryPath) -> Self {
        self.root = self.root.join(root);
        self
    }

    /// The mount that a path leads into: of several at one place the topmost.
    pub fn covering(&self, path: &EntryPath) -> Option<&Mount> {
        let whole = self.root.join(path);
        let mut at = self.topmost(self.base()?, &EntryPath::root());
        let mut ancestor = EntryPath::root();
        for name in whole.components() {
            ancestor = ancestor.child(name);
            at = self.topmost(at, &ancestor);
        }
        Some(at)
    }

    /// The mount whose mount point is exactly this path, if there is one: the topmost.
    pub fn at(&self, path: &EntryPath) -> Option<&Mount> {
        let whole = self.root.join(path);
        self.covering(path).filter(|mount| mount.path == whole)
    }

    /// The mounts in reach strictly below a path, with their paths from the table's root on.
    pub fn within<'t>(&'t self, path: &EntryPath) -> impl Iterator<Item = (EntryPath, &'t Mount)> {
        let whole = self.root.join(path);
        self.mounts.iter().filter_map(move |mount| {
            if mount.path == whole || !mount.path.is_within(&whole) {
                return None;
            }
            let relative = mount.path.strip_prefix(&self.root)?;
            let on_top = self.covering(&relative)?.id == mount.id;
            on_top.then_some((relative, mount))
        })
    }

    /// Whether something is mounted strictly below a path.
    pub fn any_within(&self, path: &EntryPath) -> bool {
        self.within(path).next().is_some()
    }

    /// Where a mount is now, from the table's root on.
    pub fn path_of(&self, id: u64) -> Option<EntryPath> {
        self.mounts.iter().find(|mount| mount.id == id)?.path.strip_prefix(&self.root)
    }

    /// The mount that everything else hangs on: its parent is not in the table.
    fn base(&self) -> Option<&Mount> {
        let is_base = |mount: &&Mount| {
            mount.path.is_root()
                && !self.mounts.iter().any(|other| other.id == mount.parent && other.id != mount.id)
        };
        self.mounts.iter().find(is_base).or(self.mounts.first())
    }

    /// What lies uppermost at `path` of what hangs on `mount`. (A mount hangs on the one before it in a stack.)
    fn topmost<'t>(&'t self, mut mount: &'t Mount, path: &EntryPath) -> &'t Mount {
        let hangs_on = |parent: &Mount| {
            let child = |child: &&Mount| {
                child.parent == parent.id && child.id != parent.id && child.path == *path
            };
            self.mounts.iter().rev().find(child)
        };
        // Bounded, should the table hold a circle.
        for _ in 0..self.mounts.len() {
            match hangs_on(mount) {
                Some(child) => mount = child,
                None => break,
            }
        }
        mount
    }
}

/// `id parent major:minor root path options optional… - type source super-options`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = 6 + fields.get(6..)?.iter().position(|field| *field == b"-")?;
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse().ok();
    let text =
        |at: usize| Some(String::from_utf8_lossy(&unescape(fields.get(at).copied()?)).into_owned());
    let is_read_only = |options: &[u8]| options.split(|byte| *byte == b',').any(|o| o == b"ro");
    let super_options = fields.get(dash + 3).copied().unwrap_or_default();
    Some(Mount {
        id: number(fields[0])?,
        parent: number(fields[1])?,
        path: EntryPath::clean(&unescape(fields[4])).ok()?,
        file_system: text(dash + 1)?,
        source: text(dash + 2).unwrap_or_default(),
        read_only: is_read_only(fields[5]) || is_read_only(super_options),
    })
}

/// `\040` and the like: a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        match after {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', more @ ..] if *first == b'\\' => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = more;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
100 50 0:30 / / rw,relatime master:1 - overlay overlay rw,lowerdir=/l
101 100 0:31 / /proc rw - proc proc rw
102 100 254:0 /h /etc/hosts rw,relatime - ext4 /dev/vda rw
103 100 254:0 /w /work\\040here ro,relatime shared:3 master:4 - ext4 /dev/v\\134a rw
104 103 0:40 / /work\\040here rw - tmpfs tmpfs rw
105 100 0:41 / /a/b rw - tmpfs tmpfs rw
106 100 0:42 / /a rw - tmpfs tmpfs ro,size=4k
107 106 0:43 / /a/c rw - tmpfs tmpfs rw
";

    fn path(text: &str) -> EntryPath {
        EntryPath::clean(text.as_bytes()).unwrap()
    }

    #[test]
    fn the_topmost_mount_is_found() {
        let table = MountTable::parse(TABLE).unwrap();
        assert_eq!(table.at(&path("work here")).unwrap().id, 104);
        assert_eq!(
            table.at(&path("a")).map(|mount| (mount.id, mount.read_only)),
            Some((106, true))
        );
        assert_eq!(table.covering(&path("etc/passwd")).unwrap().id, 100);
        assert_eq!(table.covering(&path("a/c/d")).unwrap().id, 107);
        assert!(table.at(&path("etc")).is_none());
    }

    #[test]
    fn a_covered_mount_is_not_in_reach() {
        let table = MountTable::parse(TABLE).unwrap();
        assert!(table.at(&path("a/b")).is_none());
        let below: Vec<_> = table.within(&path("a")).map(|(path, _)| path).collect();
        assert_eq!(below, [path("a/c")]);
        assert!(table.any_within(&path("etc")) && !table.any_within(&path("proc")));
    }

    #[test]
    fn escapes_options_and_sources_are_read() {
        let table = MountTable::parse(TABLE).unwrap();
        let mount = table.mounts.iter().find(|mount| mount.id == 103).unwrap();
        assert_eq!((mount.source.as_str(), mount.read_only), ("/dev/v\\a", true));
        assert_eq!(unescape(b"a\\011b\\012\\134\\9"), b"a\tb\n\\\\9");
    }

    #[test]
    fn paths_can_be_told_from_another_root() {
        let table = MountTable::parse(TABLE).unwrap().below(&path("a"));
        assert_eq!(table.at(&path("c")).unwrap().id, 107);
        assert_eq!(table.covering(&path("")).unwrap().id, 106);
        assert_eq!(table.path_of(107), Some(path("c")));
        assert_eq!(table.path_of(101), None);
    }

    #[test]
    fn a_line_that_is_none_is_named() {
        for text in [&b"1 2"[..], b"x 2 0:1 / / rw - a b c", b"1 2 0:1 / / rw a b c"] {
            let error = MountTable::parse(&[TABLE, text].concat()).unwrap_err();
            assert_eq!((error.line, error.text.as_slice()), (9, text));
        }
        assert!(MountTable::default().covering(&path("x")).is_none());
    }

    #[test]
    fn this_threads_own_table_is_read() {
        let table = MountTable::read(File::open("/").unwrap()).unwrap();
        assert_eq!(table.at(&path("proc")).unwrap().file_system, "proc");
    }
}
