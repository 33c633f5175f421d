//! The capabilities of a step: Docker's default 14, whatever the rung.

use crate::sys::credentials::{Capabilities, capabilities, drop_bounding_except, set_capabilities};

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

/// The one that a step at the builder's own root lacks: so no process of it may trace the builder or the job's shell,
/// whose permitted capabilities are not a subset of its own.
pub(super) const WITHHELD: u32 = 8;

/// What a step at the builder's own root has at most.
pub(super) fn withheld_mask() -> u64 {
    default_mask() & !(1 << WITHHELD)
}

/// Whether this process may take anything from its bounding set.
pub(super) fn may_reduce_bounding() -> std::io::Result<bool> {
    Ok(capabilities()?.effective & 1 << WITHHELD != 0)
}

/// As [`reduce_bounding`], with one capability less.
pub(super) fn reduce_bounding_below_own() -> std::io::Result<()> {
    drop_bounding_except(withheld_mask())
}

/// Takes from what this process has now, of whatever user, all that a step at the builder's own root must not have.
pub(super) fn reduce_current_below_own() -> std::io::Result<()> {
    let mask = capabilities()?.permitted & withheld_mask();
    set_capabilities(Capabilities { effective: mask, permitted: mask, inheritable: 0 })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_mask_is_dockers() {
        assert_eq!(super::default_mask(), 0xa804_25fb);
    }
}
