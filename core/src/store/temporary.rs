//! Temporary names below a directory that may be named relative to a descriptor, which libraries make absolute.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use ring::rand::{SecureRandom, SystemRandom};

const ATTEMPTS_MAX: usize = 1000;

/// A fresh directory of mode 0700.
pub(super) fn directory(parent: &Path, prefix: &str) -> io::Result<PathBuf> {
    fresh(parent, prefix, |path| DirBuilder::new().mode(0o700).create(path)).map(|(path, ())| path)
}

/// A file without a name.
pub(super) fn spool(parent: &Path) -> io::Result<File> {
    let (path, file) = fresh(parent, "spool-", create)?;
    fs::remove_file(path)?;
    Ok(file)
}

/// A file that is deleted unless it is given its place.
#[derive(Debug)]
pub(super) struct TemporaryFile {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl TemporaryFile {
    pub fn new(parent: &Path, prefix: &str) -> io::Result<Self> {
        let (path, file) = fresh(parent, prefix, create)?;
        Ok(TemporaryFile { path, file, kept: false })
    }

    /// Renames it to `target`, over what is there.
    pub fn persist(mut self, target: &Path) -> io::Result<()> {
        fs::rename(&self.path, target)?;
        self.kept = true;
        Ok(())
    }
}

impl Write for TemporaryFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn create(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create_new(true).mode(0o600).open(path)
}

fn fresh<T>(
    parent: &Path,
    prefix: &str,
    make: impl Fn(&Path) -> io::Result<T>,
) -> io::Result<(PathBuf, T)> {
    for _ in 0..ATTEMPTS_MAX {
        let mut bytes = [0; 8];
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|error| io::Error::other(error.to_string()))?;
        let path = parent.join(format!("{prefix}{:016x}", u64::from_ne_bytes(bytes)));
        match make(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|made| (path, made)),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_place_is_deleted_and_one_with_a_place_is_there() {
        let parent = tempfile::tempdir().unwrap();
        drop(TemporaryFile::new(parent.path(), "x-").unwrap());
        drop(spool(parent.path()).unwrap());
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
        let mut file = TemporaryFile::new(parent.path(), "x-").unwrap();
        file.write_all(b"bytes").unwrap();
        file.persist(&parent.path().join("place")).unwrap();
        assert_eq!(fs::read(parent.path().join("place")).unwrap(), b"bytes");
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }
}
