//! Builds beside each other in one container. While a step of one has the container's root, a name that another one looks
//! up leads into the step's image, and what it writes there becomes part of a layer. So a build that is at the
//! container's own root, which is before and after it has a private one, keeps all others from swapping.

use std::{
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use rustix::{
    fs::{AtFlags, FlockOperation, Mode, OFlags, flock, fstat, open, openat, statat},
    io::Errno,
};

use super::{SWAP_STATE, swap::exchange::LOCK};

/// How often a build that waits for another one's step looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

static KEPT: Mutex<Option<OwnedFd>> = Mutex::new(None);

/// Waits until no step is at the container's root and keeps it so until [`leave_root`]. Does nothing where no build has
/// ever swapped, and where it is kept already.
pub fn keep_root() {
    while !try_keep() {
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// As [`keep_root`]. May be dropped while it waits.
pub async fn keep_root_async() {
    while !try_keep() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Lets steps have the root.
pub fn leave_root() {
    if let Some(file) = kept().take() {
        // Helpers have copies of the descriptor.
        if let Err(error) = flock(&file, FlockOperation::Unlock) {
            tracing::debug!(%error, "the lock of the container's root");
        }
    }
}

fn kept() -> MutexGuard<'static, Option<OwnedFd>> {
    KEPT.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Whether nothing is to be waited for.
fn try_keep() -> bool {
    let mut kept = kept();
    if kept.is_some() {
        return true;
    }
    match lock_below(Path::new(SWAP_STATE)) {
        Ok(file) => {
            *kept = Some(file);
            true
        }
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    }
}

/// The lock of a side directory, shared with others like this one.
fn lock_below(side: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let side = open(side, flags | OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    let (mode, new) = (Mode::RUSR | Mode::WUSR, OFlags::RDWR | OFlags::CREATE);
    let file = openat(&side, LOCK, flags | new | OFlags::NONBLOCK, mode)?;
    flock(&file, FlockOperation::NonBlockingLockShared)?;
    // A step could have removed the one that was opened.
    let named = statat(&side, LOCK, AtFlags::SYMLINK_NOFOLLOW)?;
    match named.st_ino == fstat(&file)?.st_ino {
        true => Ok(file),
        false => Err(Errno::AGAIN.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visitors_share_the_lock_and_a_swap_keeps_them_out() {
        let side = tempfile::tempdir().unwrap();
        let lock = || lock_below(side.path());
        let nowhere = lock_below(&side.path().join("missing"));
        assert_eq!(nowhere.unwrap_err().kind(), io::ErrorKind::NotFound);
        let (one, two) = (lock().unwrap(), lock().unwrap());
        let swap = std::fs::File::open(side.path().join(LOCK)).unwrap();
        let exclusively = || flock(&swap, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(exclusively(), Err(Errno::WOULDBLOCK));
        drop(one);
        assert_eq!(exclusively(), Err(Errno::WOULDBLOCK));
        drop(two);
        exclusively().unwrap();
        assert_eq!(lock().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
