//! ssh for steps: a socket that answers the agent protocol (draft-ietf-sshm-ssh-agent), in front of a running agent or of
//! keys from files. A step may list keys and have data signed; nothing else passes.

mod agent;
mod key;
mod relay;
mod wire;

use std::{io, path::PathBuf};

pub use relay::{Forwarding, SocketAccess, forward};

use crate::{
    error::{Class, Error},
    request::{BuildRequest, SshSource},
};

#[derive(Debug, thiserror::Error)]
pub enum SshError {
    #[error("ssh key {} can't be read", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("ssh key {} has a passphrase", .0.display())]
    Encrypted(PathBuf),
    #[error("ssh key {}: {reason}", path.display())]
    Key { path: PathBuf, reason: &'static str },
    #[error("ssh agent's socket {} for a step", .0.display())]
    Socket(PathBuf, #[source] io::Error),
}

impl SshError {
    /// The error that leaves core, with its class and hint.
    pub fn into_error(self) -> Error {
        let class = match &self {
            SshError::Socket(..) => Class::Host,
            _ => Class::Usage,
        };
        let hint = match &self {
            SshError::Encrypted(_) => "load it into an agent (ssh-add) and give --ssh default",
            SshError::Key { .. } => "ssh-keygen -p -f FILE writes a key in OpenSSH's form",
            _ => return Error::from_cause(class, self),
        };
        Error::from_cause(class, self).hint(hint)
    }
}

/// Reads the keys that a build was given, so that a fault is known before any step.
///
/// # Errors
/// A key can't be read or used.
pub fn check(request: &BuildRequest) -> Result<(), Error> {
    for source in request.ssh.values() {
        if let SshSource::Keys(files) = source {
            key::load(files).map_err(SshError::into_error)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
