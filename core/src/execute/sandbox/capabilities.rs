//! The capabilities of a step: Docker's default 14, whatever the rung.

use crate::sys::credentials::{Capabilities, drop_bounding_except, set_capabilities};

/// Docker's default capabilities with their numbers (capabilities(7)).
pub(super) const DEFAULT: [(&str, u32); 14] = [
    ("CAP_CHOWN", 0),
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_FOWNER", 3),
    ("CAP_FSETID", 4),
    ("CAP_KILL", 5),
    ("CAP_SETGID", 6),
    ("CAP_SETUID", 7),
    ("CAP_SETPCAP", 8),
    ("CAP_NET_BIND_SERVICE", 10),
    ("CAP_NET_RAW", 13),
    ("CAP_SYS_CHROOT", 18),
    ("CAP_MKNOD", 27),
    ("CAP_AUDIT_WRITE", 29),
    ("CAP_SETFCAP", 31),
];

/// The default set as a mask.
pub(super) fn default_mask() -> u64 {
    DEFAULT.iter().fold(0, |mask, (_, number)| mask | 1 << number)
}

/// Takes everything but the default set from the bounding set; to be called while CAP_SETPCAP is still there.
pub(super) fn reduce_bounding() -> std::io::Result<()> {
    drop_bounding_except(default_mask())
}

/// Reduces what a process of root has now; inheritable and ambient sets become empty. A user other than root has lost
/// everything by setuid already, as in Docker.
pub(super) fn reduce_current(uid: u32) -> std::io::Result<()> {
    let mask = if uid == 0 { default_mask() } else { 0 };
    set_capabilities(Capabilities { effective: mask, permitted: mask, inheritable: 0 })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_mask_is_dockers() {
        assert_eq!(super::default_mask(), 0xa804_25fb);
    }
}
