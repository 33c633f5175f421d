//! What must hold of a state directory whatever happened to the builds that used it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{oci, process};

fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() { walk(&path, found) } else { found.push(path) }
    }
}

/// Every blob is what its name says.
///
/// # Panics
/// If one is not, or if there is none at all.
#[track_caller]
pub fn assert_verifies(state: &Path) {
    let mut files = Vec::new();
    walk(&state.join("blobs"), &mut files);
    let named: Vec<_> = files.iter().filter(|path| is_digest(path)).collect();
    assert!(!named.is_empty(), "no blobs in {}", state.display());
    for path in named {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert_eq!(oci::sha256_hex(&fs::read(path).unwrap()), name, "{}", path.display());
    }
}

fn is_digest(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_string_lossy();
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether the store holds a blob under this digest.
pub fn has_blob(state: &Path, digest: &str) -> bool {
    let mut files = Vec::new();
    walk(&state.join("blobs"), &mut files);
    let hex = digest.rsplit(':').next().unwrap();
    files.iter().any(|path| path.file_name().unwrap() == hex)
}

/// Nothing is mounted in the state directory, in any process's eyes, and nothing half-written lies in it.
#[track_caller]
pub fn assert_clean(state: &Path) {
    let mounts = process::mounts_below(state);
    assert!(mounts.is_empty(), "still mounted:\n{}", mounts.join("\n"));
    let left: Vec<_> = fs::read_dir(state.join("work"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    assert!(left.is_empty(), "left in work: {left:?}");
}
