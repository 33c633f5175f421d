//! Whether a step went through the side directory, as `find / -xdev` and `chown -R` do: told by a set-uid file that nothing
//! but such a command touches, and by the directory of what is aside.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, unlinkat};

use super::exchange::HOST;
use crate::snapshot::{self, Stamp};

/// Not hidden, so that a pattern of a shell finds it as well.
const NAME: &str = "canary";

pub(super) struct Canary {
    side: OwnedFd,
    file: Option<snapshot::Canary>,
    host: Option<Stamp>,
}

impl Canary {
    /// To be called when all is aside. Without room for an empty file there is none to look after.
    pub fn set_out(side: OwnedFd) -> Canary {
        // A build that was killed may have left its own.
        let _ = unlinkat(&side, NAME, AtFlags::empty());
        let file = snapshot::Canary::place(side.as_fd(), NAME.as_bytes()).ok();
        let host = host_of(&side);
        Canary { side, file, host }
    }

    /// Takes it back; whether anything has happened to it. To be called before anything moves again.
    pub fn take_in(self) -> bool {
        let is_alive = self.file.is_none_or(|file| file.is_alive());
        let is_untouched = host_of(&self.side) == self.host;
        let _ = unlinkat(&self.side, NAME, AtFlags::empty());
        !(is_alive && is_untouched)
    }
}

fn host_of(side: impl AsFd) -> Option<Stamp> {
    Stamp::at(side.as_fd(), HOST.as_bytes()).ok()
}
