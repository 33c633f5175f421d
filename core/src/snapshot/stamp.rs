//! What tells whether a name is still what it was, without opening it.

use std::{io, os::fd::BorrowedFd};

use rustix::fs::{AtFlags, FileType, Stat, statat};

use crate::tree::Timestamp;

/// A name's inode, size, type, mode, owner, mtime and ctime.
///
/// Every change of a file's content, owner, mode, links or extended attributes moves its ctime, which nothing can set; the
/// rest is there for what a rename does. A device number can't change without another inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub(super) inode: u64,
    /// Bytes; 0 for directories, whose size means nothing.
    pub(super) size: u64,
    /// With the type.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    pub(super) ctime: Timestamp,
}

impl Stamp {
    pub(super) const BYTES: usize = 50;

    /// Of a name, links not followed.
    pub fn at(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<Self> {
        Ok(Stamp::of(&statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?))
    }

    pub fn of(stat: &Stat) -> Self {
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        // Nanoseconds are below 1,000,000,000, so nothing is lost.
        let time = |seconds, nanoseconds| Timestamp { seconds, nanoseconds };
        Stamp {
            inode: stat.st_ino,
            size: if is_directory { 0 } else { stat.st_size as u64 },
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: time(stat.st_mtime, stat.st_mtime_nsec as u32),
            ctime: time(stat.st_ctime, stat.st_ctime_nsec as u32),
        }
    }

    /// When anything of it was last changed.
    pub fn changed_at(&self) -> Timestamp {
        self.ctime
    }

    pub(super) fn is_directory(&self) -> bool {
        FileType::from_raw_mode(self.mode) == FileType::Directory
    }

    /// Equal but for the ctime, which a rename moves.
    pub(super) fn same_but_ctime(&self, other: &Stamp) -> bool {
        *self == Stamp { ctime: self.ctime, ..*other }
    }

    /// As a baseline holds it. The type and the mode are 16 bits to the kernel.
    pub(super) fn to_bytes(self) -> [u8; Stamp::BYTES] {
        let mut bytes = [0; Stamp::BYTES];
        let mut rest = &mut bytes[..];
        let mut put = |field: &[u8]| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(field.len());
            head.copy_from_slice(field);
            rest = tail;
        };
        put(&self.inode.to_le_bytes());
        put(&self.size.to_le_bytes());
        put(&(self.mode as u16).to_le_bytes());
        put(&self.uid.to_le_bytes());
        put(&self.gid.to_le_bytes());
        for time in [self.mtime, self.ctime] {
            put(&time.seconds.to_le_bytes());
            put(&time.nanoseconds.to_le_bytes());
        }
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; Stamp::BYTES]) -> Self {
        let long = |at: usize| u64::from_le_bytes(array(&bytes[at..]));
        let word = |at: usize| u32::from_le_bytes(array(&bytes[at..]));
        let time = |at: usize| Timestamp { seconds: long(at) as i64, nanoseconds: word(at + 8) };
        Stamp {
            inode: long(0),
            size: long(8),
            mode: u16::from_le_bytes(array(&bytes[16..])).into(),
            uid: word(18),
            gid: word(22),
            mtime: time(26),
            ctime: time(38),
        }
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[..N]);
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_hold_all_of_it() {
        let time = |seconds, nanoseconds| Timestamp { seconds, nanoseconds };
        let stamp = Stamp {
            inode: u64::MAX - 1,
            size: 1 << 40,
            mode: 0o104755,
            uid: u32::MAX - 1,
            gid: 7,
            mtime: time(-1, 999_999_999),
            ctime: time(1 << 40, 3),
        };
        assert_eq!(Stamp::from_bytes(&stamp.to_bytes()), stamp);
        assert!(stamp.same_but_ctime(&Stamp { ctime: time(0, 0), ..stamp }));
        assert!(!stamp.same_but_ctime(&Stamp { mtime: time(0, 0), ..stamp }));
    }
}
