//! Files outside every image, context and state directory that a hostile input would like to touch.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

const CONTENT: &str = "nothing of a build writes here\n";

/// A folder with a file, watched: nothing may appear in it, and the file may not change.
pub struct Canary {
    directory: tempfile::TempDir,
    before: Vec<String>,
}

impl Canary {
    pub fn new() -> Canary {
        let directory = tempfile::Builder::new().prefix("canary-").tempdir().unwrap();
        fs::write(directory.path().join("file"), CONTENT).unwrap();
        fs::set_permissions(directory.path().join("file"), fs::Permissions::from_mode(0o640))
            .unwrap();
        fs::create_dir(directory.path().join("folder")).unwrap();
        let before = state(directory.path());
        Canary { directory, before }
    }

    /// The folder's absolute path.
    pub fn path(&self) -> &str {
        self.directory.path().to_str().unwrap()
    }

    /// Absolute path of a name in the folder.
    pub fn absolute(&self, name: &str) -> String {
        format!("{}/{name}", self.path())
    }

    /// The same by way of enough `..` to leave any directory.
    pub fn climbing(&self, name: &str) -> String {
        format!("{}{}", "../".repeat(24), self.absolute(name).trim_start_matches('/'))
    }

    /// # Panics
    /// If anything in the folder is new, gone or different.
    #[track_caller]
    pub fn assert_untouched(&self) {
        assert_eq!(state(self.directory.path()), self.before, "the canary was touched");
        assert_eq!(fs::read_to_string(self.directory.path().join("file")).unwrap(), CONTENT);
    }
}

/// A line for each entry with what a write, chown, chmod or link would change.
fn state(directory: &Path) -> Vec<String> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.push(directory.to_owned());
    paths.push(directory.join("folder/new"));
    paths.sort();
    paths.iter().map(|path| describe(path)).collect()
}

fn describe(path: &Path) -> String {
    match fs::symlink_metadata(path) {
        Ok(data) => format!(
            "{} {:o} {}:{} {} links {} mtime {}.{} ctime {}.{}",
            path.display(),
            data.mode(),
            data.uid(),
            data.gid(),
            data.size(),
            data.nlink(),
            data.mtime(),
            data.mtime_nsec(),
            data.ctime(),
            data.ctime_nsec()
        ),
        Err(error) => format!("{} {}", path.display(), error.kind()),
    }
}
