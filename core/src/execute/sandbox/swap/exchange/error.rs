//! Why a stage's tree could not be exchanged with the container's root.

use std::io;

use serde::{Deserialize, Serialize};

use crate::{
    error::{Class, Error},
    execute::sandbox::Errno,
};

/// What is wrong. Paths are as the step sees them. The container's root is as it was, unless it is
/// [`NotRestored`](SwapError::NotRestored).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum SwapError {
    #[error("swap: {call} {object}: {errno}")]
    Call { call: String, object: String, errno: Errno },
    #[error("swap: the container's root is read-only")]
    ReadOnlyRoot,
    #[error("swap: {side} is on another mount than the container's root")]
    SideElsewhere { side: String },
    #[error(
        "swap: a read-only volume ({file_system}) is mounted at {path}, where the image has files or the step its working directory"
    )]
    ReadOnlyVolume { path: String, file_system: String },
    #[error("swap: {what} is mounted at {path}, where the image has {found}")]
    MountInTheWay { path: String, what: String, found: String },
    #[error("swap: the volume at {path} holds {name}: another build exchanges files in it")]
    VolumeBusy { path: String, name: String },
    #[error(
        "swap: the image has an entry {path}, which is the name of the builder's own directory"
    )]
    ReservedName { path: String },
    #[error("swap: the image has no directory at {path}, where the container has mounts that stay")]
    LevelInTheWay { path: String },
    #[error(
        "swap: {path} comes from a layer of the container's image, and must be copied out once"
    )]
    Layered { path: String },
    #[error(
        "swap: {bytes} bytes of the container's own image would have to be copied once, more than {bytes_max}"
    )]
    FatImage { bytes: u64, bytes_max: u64 },
    #[error("swap: the step moved or replaced {path}, which holds mounts of the container")]
    LevelMoved { path: String },
    #[error("swap: an exchange that was cut off must be repaired first")]
    Unrepaired,
    #[error("swap: line {line} of the journal can't be read: {problem}")]
    Journal { line: usize, problem: String },
    #[error("{cause}; the container's root could not be restored: {repair}")]
    NotRestored { cause: Box<SwapError>, repair: Box<SwapError> },
}

const OWN_IMAGE: &str =
    "use bareboat's own image as the job's image: it has one small directory to move";

impl SwapError {
    /// The class of the failure, by which the process exits.
    pub fn class(&self) -> Class {
        match self {
            SwapError::ReservedName { .. } => Class::Input,
            SwapError::LevelMoved { .. } => Class::Step,
            SwapError::Layered { .. } | SwapError::Unrepaired => Class::Bug,
            _ => Class::Host,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            SwapError::ReadOnlyRoot => {
                "remove readOnlyRootFilesystem, or run the pod with `hostUsers: false`, the capability SYS_ADMIN and an emptyDir for the state"
            }
            SwapError::SideElsewhere { .. } => {
                "unmount it there: the builder's directory must be on the same mount as /"
            }
            SwapError::ReadOnlyVolume { path, .. } => {
                return Some(format!(
                    "mount the volume writable or elsewhere than {path}, or let the image use another directory"
                ));
            }
            SwapError::MountInTheWay { path, .. } => {
                return Some(format!("mount it elsewhere than {path} in the job's container"));
            }
            SwapError::VolumeBusy { path, name } => {
                return Some(format!(
                    "wait for the other build, or, if it was killed together with its container, move what is in {path}/{name} back and remove that directory"
                ));
            }
            SwapError::ReservedName { .. } => "rename it in the image",
            SwapError::LevelInTheWay { .. } => {
                "let the image have a directory there, or build with the overlay sandbox"
            }
            SwapError::FatImage { .. } => OWN_IMAGE,
            SwapError::LevelMoved { .. } => {
                "let the step change what is inside of the directory instead: it holds the container's /etc/hosts or another mount"
            }
            SwapError::Journal { .. } => {
                "something wrote into the builder's own directory: start the job in a fresh container"
            }
            SwapError::NotRestored { .. } => {
                "start the job in a fresh container; what is missing of this one's root is in host/ of the builder's own directory"
            }
            SwapError::Call { errno, .. } if errno.0 == libc::ENOSPC => {
                "free space on the container's root file system or on the volume"
            }
            SwapError::Call { .. } | SwapError::Layered { .. } | SwapError::Unrepaired => {
                return None;
            }
        };
        Some(hint.to_owned())
    }
}

impl From<SwapError> for Error {
    fn from(error: SwapError) -> Self {
        let (class, hint) = (error.class(), error.hint());
        Error::from_cause(class, error).maybe_hint(hint)
    }
}

/// Names the call and the object of a failed system call.
pub(super) trait Named<T> {
    fn named(self, call: &str, object: impl ToString) -> Result<T, SwapError>;
}

impl<T, E: Into<io::Error>> Named<T> for Result<T, E> {
    fn named(self, call: &str, object: impl ToString) -> Result<T, SwapError> {
        self.map_err(|error| {
            let error = error.into();
            let (call, object) = (call.to_owned(), object.to_string());
            SwapError::Call { call, object, errno: Errno::from(&error) }
        })
    }
}
