//! A file system merged into a directory of the user's, which may hold anything already.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, fchmod, fstat, linkat, makedev, mkdirat, mknodat, openat,
        renameat, symlinkat, unlinkat,
    },
    io::Errno,
};

use crate::tree::{EntryPath, Kind, Metadata, Row, Timestamp};

use super::{
    handle::{DirectoryStack, at_path, list, open_below, open_directory},
    metadata::{Fresh, reopen, set_directory},
    remove_tree,
};

const BUFFER_BYTES: usize = 256 << 10;
/// What the owner needs of a directory while files are put into it.
const WORKABLE: u32 = 0o700;

/// How a directory is filled.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExportOptions {
    /// Owners, devices and file capabilities are as the image has them, which takes root. Else all is the caller's.
    pub owners: bool,
    /// Names that the image has not are deleted.
    pub delete: bool,
    /// What every time becomes.
    pub mtime_seconds: Option<i64>,
}

/// What only root can make, and was left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    pub devices: u64,
    pub capabilities: u64,
}

/// Writes files below a directory, by handle: links that stand there are replaced, never followed. Each file is written
/// beside its place and renamed. Directories merge; whatever else is in the way goes.
pub struct Exporter {
    root: OwnedFd,
    /// At the directory that the last entry is in.
    stack: DirectoryStack,
    options: ExportOptions,
    fresh: Fresh,
    /// With what they get once nothing is put into them any more.
    directories: Vec<(EntryPath, Metadata)>,
    /// All names of the image, where others are deleted.
    names: BTreeSet<EntryPath>,
    left_out: LeftOut,
    buffer: Box<[u8]>,
    next: u64,
}

impl Exporter {
    pub fn new(directory: OwnedFd, options: ExportOptions) -> io::Result<Self> {
        Ok(Exporter {
            stack: DirectoryStack::new(reopen(&directory)?),
            root: directory,
            options,
            fresh: if options.owners { Fresh::foreign() } else { Fresh::own() },
            directories: Vec::new(),
            names: BTreeSet::new(),
            left_out: LeftOut::default(),
            buffer: vec![0; BUFFER_BYTES].into(),
            next: 0,
        })
    }

    /// Puts a name that is no hard link in place. Parents come before what is in them.
    pub fn entry(&mut self, row: &Row, body: &mut dyn Read) -> io::Result<()> {
        if self.options.delete {
            self.names.insert(row.path.clone());
        }
        self.make(row, body).map_err(|error| at_path(&row.path, error))
    }

    fn make(&mut self, row: &Row, body: &mut dyn Read) -> io::Result<()> {
        let metadata = self.adapted(&row.metadata);
        match &row.kind {
            Kind::Directory { .. } => self.make_directory(&row.path, metadata),
            Kind::File { size } => self.make_file(&row.path, *size, &metadata, body),
            Kind::Symlink { target } => self.place(&row.path, |this, at, name| {
                symlinkat(&**target, at, name)?;
                this.fresh.settle_at(at, name, &metadata, false)
            }),
            Kind::Fifo => self.make_node(&row.path, FileType::Fifo, (0, 0), &metadata),
            Kind::CharacterDevice { major, minor } => {
                self.make_device(row, FileType::CharacterDevice, (*major, *minor), &metadata)
            }
            Kind::BlockDevice { major, minor } => {
                self.make_device(row, FileType::BlockDevice, (*major, *minor), &metadata)
            }
            Kind::Whiteout => Ok(()),
        }
    }

    /// Makes `row.path` another name of `target`, which is in place.
    pub fn hard_link(&mut self, row: &Row, target: &EntryPath) -> io::Result<()> {
        let is_device = matches!(row.kind, Kind::CharacterDevice { .. } | Kind::BlockDevice { .. });
        if is_device && !self.options.owners {
            self.left_out.devices += 1;
            return Ok(());
        }
        if self.options.delete {
            self.names.insert(row.path.clone());
        }
        let link = |this: &mut Self| {
            let from = open_below(&this.root, &target.parent().unwrap_or_default())?;
            this.place(&row.path, |_, at, name| {
                Ok(linkat(&from, target.file_name(), at, name, AtFlags::empty())?)
            })
        };
        link(self).map_err(|error| at_path(&row.path, error))
    }

    /// Deletes what shall not stay, and gives directories their owner, mode and mtime.
    pub fn finish(mut self) -> io::Result<LeftOut> {
        if self.options.delete {
            self.delete_others(&EntryPath::root())?;
        }
        // From the deepest up: what a mode forbids is not needed any more then.
        for (path, metadata) in std::mem::take(&mut self.directories).into_iter().rev() {
            self.finish_directory(&path, metadata).map_err(|error| at_path(&path, error))?;
        }
        Ok(self.left_out)
    }

    fn finish_directory(&mut self, path: &EntryPath, mut metadata: Metadata) -> io::Result<()> {
        self.stack.go_to(path)?;
        if self.options.delete {
            self.delete_others(path)?;
        }
        if !self.options.owners {
            let stat = fstat(self.stack.top())?;
            (metadata.uid, metadata.gid) = (stat.st_uid, stat.st_gid);
        }
        set_directory(self.stack.top(), &metadata)
    }

    fn delete_others(&mut self, directory: &EntryPath) -> io::Result<()> {
        self.stack.go_to(directory)?;
        for item in list(reopen(self.stack.top())?.as_fd())? {
            if !self.names.contains(&directory.child(&item.name)) {
                remove_tree(self.stack.top(), &item.name)?;
            }
        }
        Ok(())
    }

    fn adapted(&mut self, metadata: &Metadata) -> Metadata {
        let mut metadata = metadata.clone();
        if let Some(seconds) = self.options.mtime_seconds {
            metadata.mtime = Timestamp::from_seconds(seconds);
        }
        if !self.options.owners {
            (metadata.uid, metadata.gid) = self.fresh.owner();
            self.left_out.capabilities += u64::from(metadata.capability.take().is_some());
        }
        metadata
    }

    fn make_directory(&mut self, path: &EntryPath, metadata: Metadata) -> io::Result<()> {
        for name in self.stack.ascend_towards(path)? {
            let directory = match open_directory(self.stack.top(), name) {
                Err(Errno::NOENT) => self.make_and_open(name)?,
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    unlinkat(self.stack.top(), name, AtFlags::empty())?;
                    self.make_and_open(name)?
                }
                other => other?,
            };
            self.stack.push(name, directory)?;
        }
        let mode = fstat(self.stack.top())?.st_mode & 0o7777;
        if mode & WORKABLE != WORKABLE {
            fchmod(self.stack.top(), Mode::from_raw_mode(mode | WORKABLE))?;
        }
        self.directories.push((path.clone(), metadata));
        Ok(())
    }

    fn make_and_open(&self, name: &[u8]) -> rustix::io::Result<OwnedFd> {
        mkdirat(self.stack.top(), name, Mode::from_raw_mode(WORKABLE))?;
        open_directory(self.stack.top(), name)
    }

    fn make_file(
        &mut self,
        path: &EntryPath,
        size: u64,
        metadata: &Metadata,
        body: &mut dyn Read,
    ) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(metadata.mode & 0o777);
        self.place(path, |this, at, name| {
            let mut file = File::from(openat(at, name, flags, mode)?);
            copy_exactly(body, &mut file, size, &mut this.buffer)?;
            this.fresh.settle(file.as_fd(), metadata)
        })
    }

    fn make_device(
        &mut self,
        row: &Row,
        file_type: FileType,
        device: (u32, u32),
        metadata: &Metadata,
    ) -> io::Result<()> {
        if !self.options.owners {
            self.left_out.devices += 1;
            return Ok(());
        }
        self.make_node(&row.path, file_type, device, metadata)
    }

    fn make_node(
        &mut self,
        path: &EntryPath,
        file_type: FileType,
        (major, minor): (u32, u32),
        metadata: &Metadata,
    ) -> io::Result<()> {
        let mode = Mode::from_raw_mode(metadata.mode & 0o777);
        self.place(path, |this, at, name| {
            mknodat(at, name, file_type, mode, makedev(major, minor))?;
            this.fresh.settle_at(at, name, metadata, true)
        })
    }

    /// Lets `make` make a free name in the directory of `path`, and renames it to its own.
    fn place(
        &mut self,
        path: &EntryPath,
        make: impl FnOnce(&mut Self, BorrowedFd<'_>, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.stack.go_to(&path.parent().unwrap_or_default())?;
        let at = reopen(self.stack.top())?;
        let beside = format!(".bareboat-{}-{}", std::process::id(), self.next).into_bytes();
        self.next += 1;
        let made = make(self, at.as_fd(), &beside)
            .and_then(|()| replace(at.as_fd(), &beside, path.file_name()));
        // Where both are one file already, the rename does nothing.
        let _ = unlinkat(&at, &*beside, AtFlags::empty());
        made
    }
}

fn replace(at: BorrowedFd<'_>, from: &[u8], to: &[u8]) -> io::Result<()> {
    match renameat(at, from, at, to) {
        Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {
            remove_tree(at, to)?;
            Ok(renameat(at, from, at, to)?)
        }
        other => Ok(other?),
    }
}

fn copy_exactly(
    body: &mut dyn Read,
    file: &mut File,
    size: u64,
    buffer: &mut [u8],
) -> io::Result<()> {
    let mut left = size;
    while left > 0 {
        let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        body.read_exact(&mut buffer[..want])?;
        file.write_all(&buffer[..want])?;
        left -= want as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt, symlink},
        path::Path,
    };

    use super::*;

    fn row(path: &str, kind: Kind, mode: u32) -> Row {
        let metadata = Metadata { mode, mtime: Timestamp::from_seconds(5), ..Metadata::default() };
        Row::new(EntryPath::clean(path.as_bytes()).unwrap(), kind, metadata)
    }

    fn file(path: &str, text: &str) -> (Row, Vec<u8>) {
        (row(path, Kind::File { size: text.len() as u64 }, 0o640), text.into())
    }

    fn export(
        into: &Path,
        options: ExportOptions,
        rows: Vec<(Row, Vec<u8>)>,
    ) -> io::Result<LeftOut> {
        let directory = OwnedFd::from(fs::File::open(into).unwrap());
        let mut exporter = Exporter::new(directory, options)?;
        for (row, bytes) in &rows {
            exporter.entry(row, &mut &bytes[..])?;
        }
        exporter.finish()
    }

    #[test]
    fn links_in_the_way_are_replaced_and_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("canary"), "alive").unwrap();
        let into = tempfile::tempdir().unwrap();
        symlink(outside.path(), into.path().join("etc")).unwrap();
        symlink(outside.path().join("canary"), into.path().join("file")).unwrap();
        fs::create_dir_all(into.path().join("was-directory/below")).unwrap();
        fs::write(into.path().join("mine"), "stays").unwrap();
        let rows = vec![
            (row("etc", Kind::DIRECTORY, 0o755), vec![]),
            file("etc/canary", "image's"),
            file("file", "image's"),
            file("was-directory", "a file now"),
        ];
        export(into.path(), ExportOptions::default(), rows).unwrap();
        assert_eq!(fs::read_to_string(outside.path().join("canary")).unwrap(), "alive");
        let text = |name: &str| fs::read_to_string(into.path().join(name)).unwrap();
        assert_eq!((text("etc/canary").as_str(), text("file").as_str()), ("image's", "image's"));
        assert_eq!(text("was-directory"), "a file now");
        assert_eq!(text("mine"), "stays");
        assert_eq!(fs::read_dir(into.path()).unwrap().count(), 4, "nothing is left beside");
    }

    #[test]
    fn modes_and_times_are_the_images_also_of_closed_directories() {
        let into = tempfile::tempdir().unwrap();
        let rows = vec![
            (row("closed", Kind::DIRECTORY, 0o500), vec![]),
            file("closed/file", "x"),
            (row("open", Kind::DIRECTORY, 0o1777), vec![]),
        ];
        export(into.path(), ExportOptions::default(), rows.clone()).unwrap();
        // Again, into what is closed now.
        export(into.path(), ExportOptions::default(), rows).unwrap();
        let stat = |name: &str| fs::metadata(into.path().join(name)).unwrap();
        assert_eq!((stat("closed").mode() & 0o7777, stat("closed").mtime()), (0o500, 5));
        assert_eq!((stat("closed/file").mode() & 0o7777, stat("closed/file").mtime()), (0o640, 5));
        assert_eq!(stat("open").mode() & 0o7777, 0o1777);
        fs::set_permissions(into.path().join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    }

    #[test]
    fn delete_leaves_only_what_the_image_has() {
        let into = tempfile::tempdir().unwrap();
        fs::create_dir_all(into.path().join("kept/old")).unwrap();
        fs::write(into.path().join("gone"), "").unwrap();
        let options =
            ExportOptions { delete: true, mtime_seconds: Some(9), ..ExportOptions::default() };
        let rows = vec![(row("kept", Kind::DIRECTORY, 0o755), vec![]), file("kept/new", "x")];
        export(into.path(), options, rows).unwrap();
        let names: Vec<_> = fs::read_dir(into.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(names, ["kept"]);
        assert_eq!(fs::read_dir(into.path().join("kept")).unwrap().count(), 1);
        assert_eq!(fs::metadata(into.path().join("kept/new")).unwrap().mtime(), 9);
    }

    #[test]
    fn what_only_root_can_make_is_counted() {
        let into = tempfile::tempdir().unwrap();
        let mut capable = file("capable", "x");
        capable.0.metadata.capability = Some([1, 0, 0, 2].into());
        let device = Kind::CharacterDevice { major: 1, minor: 3 };
        let rows = vec![capable, (row("null", device, 0o666), vec![])];
        let left_out = export(into.path(), ExportOptions::default(), rows).unwrap();
        assert_eq!(left_out, LeftOut { devices: 1, capabilities: 1 });
        assert!(!into.path().join("null").exists());
    }

    #[test]
    fn a_body_that_ends_early_leaves_nothing() {
        let into = tempfile::tempdir().unwrap();
        let (row, _) = file("file", "longer");
        let error = export(into.path(), ExportOptions::default(), vec![(row, b"short".to_vec())]);
        assert!(error.unwrap_err().to_string().contains("/file"));
        assert_eq!(fs::read_dir(into.path()).unwrap().count(), 0);
    }
}
