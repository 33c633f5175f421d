//! Paths inside a root, resolved by directory handle: links, `..` and races never lead out of it.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    fs::{self, FileType, Mode, OFlags, ResolveFlags},
    io::{Errno, Result},
};

use super::fs::reopen;

/// Links that one resolution may follow, as the kernel's own limit.
const LINKS_MAX: usize = 40;

/// statfs(2)'s number of procfs.
const PROC_MAGIC: i64 = 0x9fa0;

/// How often a resolution that raced with a rename is tried again before the walk takes over.
const RACE_RETRIES: usize = 16;

static OPENAT2_MISSING: AtomicBool = AtomicBool::new(false);

/// What a path that leads out of the root means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escape {
    /// `/` is the root and `..` stops there, as in a chroot (`RESOLVE_IN_ROOT`).
    Contain,
    /// It is an error, `EXDEV` (`RESOLVE_BENEATH`).
    Refuse,
}

/// Whether a symbolic link in the last place is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastLink {
    Follow,
    Keep,
}

/// Opens `path` (absolute or relative, any number of components) inside `root` as if `root` were `/`. `mode` is for
/// `O_CREAT`. Without openat2 (old kernels, seccomp) the components are walked one by one.
pub fn open_in_root(root: impl AsFd, path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    open(root.as_fd(), path, flags, mode, Escape::Contain)
}

/// As [`open_in_root`], but a path that would leave `root` fails with `EXDEV`.
pub fn open_beneath(root: impl AsFd, path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    open(root.as_fd(), path, flags, mode, Escape::Refuse)
}

fn open(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    escape: Escape,
) -> Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC;
    if !OPENAT2_MISSING.load(Ordering::Relaxed)
        && let Some(result) = open_by_kernel(root, path, flags, mode, escape)
    {
        return result;
    }
    open_by_walk(root, path, flags, mode, escape)
}

/// `None` where the kernel can't or won't, and the walk must.
fn open_by_kernel(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    escape: Escape,
) -> Option<Result<OwnedFd>> {
    let scope = match escape {
        Escape::Contain => ResolveFlags::IN_ROOT,
        Escape::Refuse => ResolveFlags::BENEATH,
    };
    // An empty path means the root itself, as it does for the walk.
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    for _ in 0..RACE_RETRIES {
        match fs::openat2(root, path, flags, mode, scope | ResolveFlags::NO_MAGICLINKS) {
            Err(Errno::AGAIN) => continue,
            Err(Errno::NOSYS) => {
                OPENAT2_MISSING.store(true, Ordering::Relaxed);
                return None;
            }
            Err(Errno::PERM) => return None,
            result => return Some(result),
        }
    }
    None
}

fn open_by_walk(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    escape: Escape,
) -> Result<OwnedFd> {
    let last = if flags.contains(OFlags::NOFOLLOW) { LastLink::Keep } else { LastLink::Follow };
    let resolved = walk(root, path, last, escape)?;
    match resolved.missing.as_slice() {
        [] => open_found(resolved, flags),
        [name] if flags.contains(OFlags::CREATE) => {
            fs::openat(&resolved.found, name, flags | OFlags::NOFOLLOW, mode)
        }
        _ => Err(Errno::NOENT),
    }
}

fn open_found(resolved: Resolved, flags: OFlags) -> Result<OwnedFd> {
    if flags.contains(OFlags::CREATE | OFlags::EXCL) {
        return Err(Errno::EXIST);
    }
    let kind = resolved.kind()?;
    if flags.contains(OFlags::DIRECTORY) && kind != FileType::Directory {
        return Err(Errno::NOTDIR);
    }
    if flags.contains(OFlags::PATH) {
        return Ok(resolved.found);
    }
    if kind == FileType::Symlink {
        return Err(Errno::LOOP);
    }
    reopen(&resolved.found, flags)
}

/// How far a path could be resolved.
#[derive(Debug)]
pub struct Resolved {
    /// The deepest thing that exists (`O_PATH`): the target if `missing` is empty, else a directory.
    pub found: OwnedFd,
    /// Where `found` really is, relative to the root and free of links; empty for the root itself.
    pub real: PathBuf,
    /// Names below `found` that don't exist, outermost first; `.` and `..` are worked in.
    pub missing: Vec<OsString>,
}

impl Resolved {
    pub fn kind(&self) -> Result<FileType> {
        Ok(FileType::from_raw_mode(fs::fstat(&self.found)?.st_mode))
    }
}

/// Resolves `path` inside `root` component by component and tells how far it exists. A link whose target is missing is
/// followed into what is missing. Fails with `ELOOP` after 40 links and `ENOTDIR` below a file.
pub fn walk_in_root(root: impl AsFd, path: &Path, last: LastLink) -> Result<Resolved> {
    walk(root.as_fd(), path, last, Escape::Contain)
}

fn walk(root: BorrowedFd<'_>, path: &Path, last: LastLink, escape: Escape) -> Result<Resolved> {
    let mut walker = Walker::new(root, escape)?;
    walker.queue(path.as_os_str())?;
    while let Some(name) = walker.ahead.pop_front() {
        match name.as_bytes() {
            b"" | b"." => walker.require_directory()?,
            b".." => walker.up()?,
            _ => walker.down(name, last)?,
        }
    }
    Ok(Resolved {
        found: walker.current,
        real: walker.names.iter().collect(),
        missing: walker.missing,
    })
}

struct Walker<'a> {
    root: BorrowedFd<'a>,
    escape: Escape,
    ahead: VecDeque<OsString>,
    current: OwnedFd,
    names: Vec<OsString>,
    missing: Vec<OsString>,
    links: usize,
}

impl<'a> Walker<'a> {
    fn new(root: BorrowedFd<'a>, escape: Escape) -> Result<Self> {
        let current = open_path(root, c".".to_bytes())?;
        let (ahead, names, missing) = (VecDeque::new(), Vec::new(), Vec::new());
        Ok(Walker { root, escape, ahead, current, names, missing, links: 0 })
    }

    /// Puts the components of `path` before what is still ahead. An absolute path starts at the root again.
    fn queue(&mut self, path: &OsStr) -> Result<()> {
        let bytes = path.as_bytes();
        if bytes.contains(&0) {
            return Err(Errno::INVAL);
        }
        if bytes.starts_with(b"/") {
            if self.escape == Escape::Refuse {
                return Err(Errno::XDEV);
            }
            self.current = open_path(self.root, b".")?;
            self.names.clear();
            self.missing.clear();
        }
        let absolute = usize::from(bytes.starts_with(b"/"));
        let components = bytes[absolute..].split(|byte| *byte == b'/');
        for component in components.rev() {
            self.ahead.push_front(OsString::from_vec(component.to_vec()));
        }
        Ok(())
    }

    fn up(&mut self) -> Result<()> {
        if self.missing.pop().is_some() {
            return Ok(());
        }
        self.require_directory()?;
        if self.names.pop().is_none() {
            return if self.escape == Escape::Refuse { Err(Errno::XDEV) } else { Ok(()) };
        }
        // Down again from the root: `..` of the kernel could have been moved meanwhile.
        let mut current = open_path(self.root, b".")?;
        for name in &self.names {
            current = open_path(current.as_fd(), name.as_bytes())?;
        }
        self.current = current;
        Ok(())
    }

    fn down(&mut self, name: OsString, last: LastLink) -> Result<()> {
        if !self.missing.is_empty() {
            self.missing.push(name);
            return Ok(());
        }
        let next = match open_path(self.current.as_fd(), name.as_bytes()) {
            Err(Errno::NOENT) => {
                self.missing.push(name);
                return Ok(());
            }
            next => next?,
        };
        let is_link = FileType::from_raw_mode(fs::fstat(&next)?.st_mode) == FileType::Symlink;
        if is_link && (last == LastLink::Follow || !self.ahead.is_empty()) {
            return self.follow(&next);
        }
        self.current = next;
        self.names.push(name);
        Ok(())
    }

    fn follow(&mut self, link: &OwnedFd) -> Result<()> {
        self.links += 1;
        if self.links > LINKS_MAX {
            return Err(Errno::LOOP);
        }
        let target = fs::readlinkat(link, c"", Vec::new())?;
        if is_magic(link, target.to_bytes())? {
            return Err(Errno::LOOP);
        }
        self.queue(OsStr::from_bytes(target.to_bytes()))
    }

    /// `file/` and `file/.` are errors.
    fn require_directory(&self) -> Result<()> {
        let kind = FileType::from_raw_mode(fs::fstat(&self.current)?.st_mode);
        if kind == FileType::Directory || !self.missing.is_empty() {
            return Ok(());
        }
        Err(Errno::NOTDIR)
    }
}

/// Whether a link of /proc leads to an open file, whatever its text says: `exe`, `cwd`, `fd/3`. The others there are
/// relative. openat2 refuses them with the same error.
fn is_magic(link: &OwnedFd, target: &[u8]) -> Result<bool> {
    #[allow(clippy::unnecessary_cast)] // The field's type differs between architectures.
    let in_proc = fs::fstatfs(link)?.f_type as i64 == PROC_MAGIC;
    Ok(in_proc && (target.starts_with(b"/") || target.contains(&b':')))
}

fn open_path(directory: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(directory, OsStr::from_bytes(name), flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::sys::fs::open_directory_handle;

    fn tree() -> (tempfile::TempDir, OwnedFd) {
        let outer = tempfile::tempdir().unwrap();
        std::fs::write(outer.path().join("canary"), "outside").unwrap();
        let root = outer.path().join("root");
        std::fs::create_dir_all(root.join("etc/sub")).unwrap();
        std::fs::write(root.join("etc/hosts"), "inside").unwrap();
        std::fs::write(root.join("canary"), "in root").unwrap();
        symlink("/", root.join("slash")).unwrap();
        symlink("../../../../canary", root.join("etc/escape")).unwrap();
        symlink("/etc", root.join("absolute")).unwrap();
        symlink("loop-b", root.join("loop-a")).unwrap();
        symlink("loop-a", root.join("loop-b")).unwrap();
        symlink("/new/place", root.join("dangling")).unwrap();
        let fd = open_directory_handle(&root).unwrap();
        (outer, fd)
    }

    fn read_both(root: &OwnedFd, path: &str) -> Vec<std::result::Result<String, Errno>> {
        let (path, mode) = (Path::new(path), Mode::empty());
        let kernel = open_in_root(root, path, OFlags::RDONLY, mode);
        let walked = open_by_walk(root.as_fd(), path, OFlags::RDONLY, mode, Escape::Contain);
        let read = |fd| std::io::read_to_string(std::fs::File::from(fd)).unwrap();
        vec![kernel.map(read), walked.map(read)]
    }

    #[test]
    fn links_stay_inside_the_root_both_ways() {
        let (_outer, root) = tree();
        for (path, content) in [
            ("etc/hosts", "inside"),
            ("/absolute/hosts", "inside"),
            ("slash/slash/etc/hosts", "inside"),
            ("etc/escape", "in root"),
            ("../../canary", "in root"),
            ("etc/sub/../hosts", "inside"),
        ] {
            for result in read_both(&root, path) {
                assert_eq!(result.as_deref(), Ok(content), "{path}");
            }
        }
    }

    #[test]
    fn both_ways_refuse_alike() {
        let (_outer, root) = tree();
        for (path, error) in [
            ("loop-a", Errno::LOOP),
            ("etc/hosts/x", Errno::NOTDIR),
            ("etc/hosts/", Errno::NOTDIR),
            ("nothing/here", Errno::NOENT),
        ] {
            for result in read_both(&root, path) {
                assert_eq!(result, Err(error), "{path}");
            }
        }
    }

    #[test]
    fn beneath_refuses_what_leads_out() {
        let (_outer, root) = tree();
        for path in ["slash/etc/hosts", "../canary", "/etc/hosts", "etc/escape"] {
            let (path, flags) = (Path::new(path), OFlags::RDONLY);
            assert_eq!(
                open_beneath(&root, path, flags, Mode::empty()).unwrap_err(),
                Errno::XDEV,
                "{path:?}"
            );
            let walked = open_by_walk(root.as_fd(), path, flags, Mode::empty(), Escape::Refuse);
            assert_eq!(walked.unwrap_err(), Errno::XDEV, "{path:?}");
        }
    }

    #[test]
    fn links_to_open_files_are_refused_both_ways() {
        let root = open_directory_handle(Path::new("/")).unwrap();
        for path in ["/proc/self/exe", "/proc/self/cwd/.", "/proc/self/root/etc", "/proc/self/fd/0"]
        {
            for result in read_both(&root, path) {
                assert_eq!(result, Err(Errno::LOOP), "{path}");
            }
        }
        for result in read_both(&root, "/proc/mounts") {
            assert!(result.is_ok_and(|text| !text.is_empty()));
        }
    }

    #[test]
    fn a_walk_tells_what_is_missing() {
        let (_outer, root) = tree();
        let walked =
            walk_in_root(&root, Path::new("/dangling/a/../b/./c"), LastLink::Follow).unwrap();
        assert_eq!(walked.real, Path::new(""));
        assert_eq!(walked.missing, ["new", "place", "b", "c"]);
        let walked = walk_in_root(&root, Path::new("absolute/sub"), LastLink::Follow).unwrap();
        assert_eq!(walked.real, Path::new("etc/sub"));
        assert!(walked.missing.is_empty());
        let kept = walk_in_root(&root, Path::new("absolute"), LastLink::Keep).unwrap();
        assert_eq!(kept.kind().unwrap(), FileType::Symlink);
    }

    #[test]
    fn a_walk_creates_like_the_kernel() {
        let (outer, root) = tree();
        let flags = OFlags::WRONLY | OFlags::CREATE;
        let made = open_by_walk(
            root.as_fd(),
            Path::new("absolute/new"),
            flags,
            Mode::RUSR,
            Escape::Contain,
        );
        made.unwrap();
        assert!(outer.path().join("root/etc/new").exists());
    }
}
