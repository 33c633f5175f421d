//! What the process finds around it, read once; conversions look here and nowhere else.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io::IsTerminal,
    path::PathBuf,
};

/// Environment variables and facts of the host that a request depends on.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    pub variables: BTreeMap<OsString, OsString>,
    /// The effective user is root.
    pub root: bool,
    pub cpus: usize,
    pub stdin_is_terminal: bool,
    pub stdout_is_terminal: bool,
    pub stderr_is_terminal: bool,
}

impl Environment {
    /// This process's own.
    pub fn of_process() -> Self {
        Environment {
            variables: std::env::vars_os().collect(),
            root: rustix::process::geteuid().is_root(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            stdin_is_terminal: std::io::stdin().is_terminal(),
            stdout_is_terminal: std::io::stdout().is_terminal(),
            stderr_is_terminal: std::io::stderr().is_terminal(),
        }
    }

    /// A variable that is set, to whatever.
    pub fn raw(&self, name: impl AsRef<OsStr>) -> Option<&OsStr> {
        self.variables.get(name.as_ref()).map(OsString::as_os_str)
    }

    /// A variable that is set and not empty.
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.raw(name).filter(|value| !value.is_empty())
    }

    /// A variable that is set and not empty, where it is text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(OsStr::to_str)
    }

    /// The user's home directory.
    pub fn home(&self) -> Option<PathBuf> {
        self.get("HOME").map(PathBuf::from).filter(|home| home.is_absolute())
    }
}
