//! Users, groups and capabilities of this thread. For processes with one thread: the C library is not told.

use std::io;

use rustix::{
    fs::{Gid, Uid},
    io::Errno,
    thread::{self, CapabilitySet, CapabilitySets},
};

/// Three of the capability sets, as masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
}

/// The present capability sets.
pub fn capabilities() -> io::Result<Capabilities> {
    let sets = thread::capabilities(None)?;
    Ok(Capabilities {
        effective: sets.effective.bits(),
        permitted: sets.permitted.bits(),
        inheritable: sets.inheritable.bits(),
    })
}

/// Sets the capability sets and empties the ambient one.
pub fn set_capabilities(sets: Capabilities) -> io::Result<()> {
    thread::clear_ambient_capability_set()?;
    thread::set_capabilities(
        None,
        CapabilitySets {
            effective: CapabilitySet::from_bits_retain(sets.effective),
            permitted: CapabilitySet::from_bits_retain(sets.permitted),
            inheritable: CapabilitySet::from_bits_retain(sets.inheritable),
        },
    )?;
    Ok(())
}

/// Removes every capability that the kernel knows and `mask` has not from the bounding set.
pub fn drop_bounding_except(mask: u64) -> io::Result<()> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match thread::capability_is_in_bounding_set(capability) {
            // The first number beyond the kernel's last one.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
            Ok(true) if mask & (1 << number) == 0 => {
                thread::remove_capability_from_bounding_set(capability)?;
            }
            Ok(_) => {}
        }
    }
    Ok(())
}

/// Becomes `uid` with `gid` and exactly the supplementary `groups`. Root's capabilities are lost with its uid.
///
/// In a user namespace that may not set groups those of its maker stay (they show as the overflow group), and groups
/// other than `gid` fail with `EPERM`.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    let is_own = groups.iter().all(|group| *group == gid);
    let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    match thread::set_thread_groups(&groups) {
        Err(Errno::PERM) if is_own && groups_are_denied() => {}
        result => result?,
    }
    thread::set_thread_res_gid(gid, gid, gid)?;
    thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// Whether this user namespace may not set groups (user_namespaces(7), /proc/PID/setgroups).
fn groups_are_denied() -> bool {
    std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny")
}
