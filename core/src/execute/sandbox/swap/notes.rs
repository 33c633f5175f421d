//! What a step at the container's own root can't be given, or what it cost: for the log.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::execute::sandbox::wire;

/// One thing to be said. Targets are as the Dockerfile names them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepNote {
    /// A secret that could not be kept in memory.
    SecretOnDisk {
        #[serde(with = "wire::bytes")]
        target: PathBuf,
    },
    /// A read-only mount that the step has changed. The changes are lost.
    ReadOnlyChanged {
        #[serde(with = "wire::bytes")]
        target: PathBuf,
    },
    /// A tmpfs whose size is not limited.
    TmpfsSizeNotEnforced {
        #[serde(with = "wire::bytes")]
        target: PathBuf,
    },
    /// A cache was copied, because it is on another mount than the container's root.
    CacheCopied {
        #[serde(with = "wire::bytes")]
        target: PathBuf,
    },
    /// A mount that the step has moved away or removed.
    MountLost {
        #[serde(with = "wire::bytes")]
        target: PathBuf,
    },
    /// The container has no CAP_SETPCAP: set-uid programs don't gain in this step.
    NoNewPrivileges,
    /// A volume that stayed, and was changed.
    VolumeChanged {
        #[serde(with = "wire::bytes")]
        path: PathBuf,
    },
    /// The step went through the side directory.
    ReachedAside,
    /// The container's own image was copied out, once.
    Delayered { bytes: u64, milliseconds: u64 },
}

impl fmt::Display for StepNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StepNote::SecretOnDisk { target } => write!(
                f,
                "secret on disk for the step: {} is a file in the container's root for its time",
                target.display()
            ),
            StepNote::ReadOnlyChanged { target } => write!(
                f,
                "the step changed the read-only mount at {}, which nothing here can prevent: its changes are lost",
                target.display()
            ),
            StepNote::TmpfsSizeNotEnforced { target } => {
                write!(f, "the size of the tmpfs at {} is not enforced", target.display())
            }
            StepNote::CacheCopied { target } => write!(
                f,
                "the cache at {} is on another mount than / and was copied there and back",
                target.display()
            ),
            StepNote::MountLost { target } => {
                write!(f, "the step removed or moved the mount at {}", target.display())
            }
            StepNote::NoNewPrivileges => f.write_str(
                "this container has no CAP_SETPCAP: the step runs with no_new_privs, so that set-uid programs do not gain",
            ),
            StepNote::VolumeChanged { path } => write!(
                f,
                "the step changed the volume at {}, which is not part of the image",
                path.display()
            ),
            StepNote::ReachedAside => f.write_str(
                "the step changed files in the state directory, perhaps also this container's own, which are there for its time: commands that walk the whole root, such as find / -xdev, should leave out /.bareboat",
            ),
            StepNote::Delayered { bytes, milliseconds } => write!(
                f,
                "copied {} MB of this container's own image out of its layers in {}.{} s, once; bareboat's own image as the job's image avoids it",
                bytes / 1_000_000,
                milliseconds / 1000,
                milliseconds % 1000 / 100
            ),
        }
    }
}
