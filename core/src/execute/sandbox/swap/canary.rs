//! Whether a step went through the side directory, as `find / -xdev` and `chown -R` do: told by a set-uid file that nothing
//! but such a command touches, and by the directory of what is aside.

use std::os::fd::{AsFd, OwnedFd};

use rustix::{
    fs::{AtFlags, Mode, OFlags, Stat, fchmod, openat, statat, unlinkat},
    io::Errno,
};

/// Not hidden, so that a pattern of a shell finds it as well.
const NAME: &str = "canary";

pub(super) struct Canary {
    side: OwnedFd,
    before: [Option<Trace>; 2],
}

/// What any change of an entry moves.
type Trace = (u64, u32, u32, u32, i64, i64);

impl Canary {
    /// To be called when all is aside. Without room for an empty file there is none to look after.
    pub fn set_out(side: OwnedFd) -> Canary {
        let _ = set_uid_file(&side);
        let before = traces(&side);
        Canary { side, before }
    }

    /// Takes it back; whether anything has happened to it. To be called before anything moves again.
    pub fn take_in(self) -> bool {
        let after = traces(&self.side);
        let _ = unlinkat(&self.side, NAME, AtFlags::empty());
        after != self.before
    }
}

fn set_uid_file(side: impl AsFd) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(side, NAME, flags, Mode::RUSR)?;
    fchmod(file, Mode::SUID | Mode::SGID | Mode::RWXU)
}

fn traces(side: impl AsFd) -> [Option<Trace>; 2] {
    let trace = |stat: Stat| {
        (
            stat.st_ino,
            stat.st_mode,
            stat.st_uid,
            stat.st_gid,
            stat.st_ctime,
            stat.st_ctime_nsec as i64,
        )
    };
    [NAME, super::exchange::HOST]
        .map(|name| statat(&side, name, AtFlags::SYMLINK_NOFOLLOW).ok().map(trace))
}
