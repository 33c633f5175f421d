//! What can go wrong with a step's box. The same type travels from the helper to the builder.

use std::{fmt, io, path::Path};

use serde::{Deserialize, Serialize};

use super::swap::SwapError;
use crate::{
    error::{Class, Error},
    sys::private_root::PrivateRootError,
};

/// An error number that is shown with its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errno(pub i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl From<&io::Error> for Errno {
    fn from(error: &io::Error) -> Self {
        Errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

/// Why a step could not be run. (A step that ran and failed is a [`StepExit`](super::StepExit).)
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum SandboxError {
    /// A call of the set-up failed; nothing was executed.
    #[error("sandbox: {call} {object}: {errno}")]
    Call { call: String, object: String, errno: Errno },
    #[error(
        "sandbox: the state directory {directory} is on overlayfs, which can't hold an overlay's upper directory"
    )]
    StateOnOverlay { directory: String },
    #[error("invalid mount target \"{target}\": {problem}")]
    MountTarget { target: String, problem: String },
    #[error("mount source \"{source_path}\" for {target}: {errno}")]
    MountSource { source_path: String, target: String, errno: Errno },
    #[error("{program} is a program for {architecture}, which this machine cannot execute")]
    ForeignProgram { program: String, architecture: String },
    #[error("unknown ulimit \"{name}\"")]
    Ulimit { name: String },
    #[error("{what} holds a NUL byte")]
    NulByte { what: String },
    #[error("the command is empty")]
    NoCommand,
    #[error("sandbox: Docker's seccomp profile: {problem}")]
    Seccomp { problem: String },
    /// `helper_main` is not the first line of this program's main, so that a helper would run the program again.
    #[error("sandbox: this program does not call helper_main first")]
    HelperMissing,
    #[error("sandbox: the helper ended before it reported ({how})")]
    HelperDied { how: String },
    #[error("sandbox: the helper's message can't be read: {problem}")]
    Protocol { problem: String },
    #[error(
        "the step left processes that can't be killed: {processes} are alive {seconds} seconds after its end"
    )]
    Unkillable { processes: usize, seconds: u64 },
    /// newuidmap or newgidmap refused.
    #[error("sandbox: {program}: {problem}")]
    IdMap { program: String, problem: String },
    #[error("the root of this machine can't be swapped: this is no container")]
    NoContainer,
    #[error("user {uid} is not root")]
    NotRoot { uid: u32 },
    #[error("root has not the capabilities {missing}")]
    Capabilities { missing: String },
    /// What a step at the container's own root can't have.
    #[error(
        "{what} is not possible in this container: a step runs in the container's own surroundings (swap)"
    )]
    NotOnSwap { what: String },
    /// The step's result is lost; the root is as it was.
    #[error(
        "sandbox: the step's keeper was killed ({how}); the container's root has been restored"
    )]
    KeeperDied { how: String },
    /// The stage and the container's root could not change places.
    #[error(transparent)]
    Swap(#[from] SwapError),
    #[error("canceled")]
    Canceled,
}

impl SandboxError {
    /// The class of the failure, by which the process exits.
    pub fn class(&self) -> Class {
        match self {
            SandboxError::MountTarget { .. }
            | SandboxError::MountSource { .. }
            | SandboxError::NulByte { .. }
            | SandboxError::NoCommand => Class::Input,
            SandboxError::Ulimit { .. } => Class::Usage,
            SandboxError::Swap(error) => error.class(),
            SandboxError::HelperMissing
            | SandboxError::Protocol { .. }
            | SandboxError::Seccomp { .. } => Class::Bug,
            SandboxError::Canceled | SandboxError::Unkillable { .. } => Class::Step,
            _ => Class::Host,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            SandboxError::Call { call, errno, .. } => {
                super::verdict::remedy(call, errno.0).map(|remedy| remedy.to_owned())
            }
            SandboxError::StateOnOverlay { directory } => Some(format!(
                "mount a volume (in Kubernetes an emptyDir) at {directory}, or name one that is there with --state-dir"
            )),
            SandboxError::IdMap { .. } => Some(
                "look at the user's lines in /etc/subuid and /etc/subgid: the ranges must lie within this container's own ids"
                    .to_owned(),
            ),
            SandboxError::NotRoot { .. } => Some("run the container as root (`runAsUser: 0`)".to_owned()),
            SandboxError::Capabilities { .. } => {
                Some("leave the container Docker's default capabilities (drop none)".to_owned())
            }
            SandboxError::ForeignProgram { architecture, .. } => Some(format!(
                "register an emulator for {architecture} with binfmt_misc (flag F), or build each platform on its own machine and put them together with `bareboat join`"
            )),
            SandboxError::Swap(error) => error.hint(),
            SandboxError::NotOnSwap { .. } => Some(
                "build where the overlay sandbox is possible: a privileged container, a pod with an unconfined seccomp profile, or a machine"
                    .to_owned(),
            ),
            SandboxError::KeeperDied { .. } => Some(
                "if the container's memory limit killed it, raise the limit; else the step itself has killed processes that are not its own"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

impl From<SandboxError> for Error {
    fn from(error: SandboxError) -> Self {
        let (class, hint) = (error.class(), error.hint());
        let error = Error::from_cause(class, error);
        error.maybe_hint(hint)
    }
}

impl From<PrivateRootError> for Error {
    fn from(error: PrivateRootError) -> Self {
        let hint = match error {
            PrivateRootError::NoCapability => {
                "give the container CAP_SYS_CHROOT, which is in Docker's and Kubernetes' default set"
            }
            _ => "start the job in a fresh container",
        };
        Error::from_cause(Class::Host, error).hint(hint)
    }
}

/// Names the call and the object of a failed system call.
pub(super) trait Named<T> {
    fn named(self, call: &str, object: impl AsRef<Path>) -> Result<T, SandboxError>;
}

impl<T, E: Into<io::Error>> Named<T> for Result<T, E> {
    fn named(self, call: &str, object: impl AsRef<Path>) -> Result<T, SandboxError> {
        self.map_err(|error| SandboxError::Call {
            call: call.to_owned(),
            object: object.as_ref().display().to_string(),
            errno: Errno::from(&error.into()),
        })
    }
}
