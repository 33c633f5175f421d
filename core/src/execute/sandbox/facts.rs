//! What is known of this process's surroundings before anything is tried. It explains what fails; it never decides alone.

use std::{fs, path::PathBuf};

use rustix::{fs::statfs, process::geteuid};

use super::overlay::OVERLAYFS_MAGIC;
use crate::sys::{
    credentials::capabilities,
    namespace::{in_initial_pid_namespace, in_initial_user_namespace},
};

/// CAP_SYS_ADMIN's number (capabilities(7)).
const SYS_ADMIN: u32 = 21;

/// What swap needs, with numbers.
const SWAP_CAPABILITIES: [(&str, u32); 6] = [
    ("CAP_CHOWN", 0),
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_FOWNER", 3),
    ("CAP_SETGID", 6),
    ("CAP_SETUID", 7),
    ("CAP_SYS_CHROOT", 18),
];

/// What root needs to write the maps of a namespace.
const MAP_CAPABILITIES: [u32; 3] = [6, 7, 31];

/// Below it the kubelet keeps what an emptyDir is mounted from.
const EMPTY_DIRECTORY: &str = "/volumes/kubernetes.io~empty-dir/";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub uid: u32,
    /// The effective capabilities, as a mask.
    pub capabilities: u64,
    /// In the machine's own user namespace.
    pub initial_user_namespace: bool,
    /// Not in the machine's own PID namespace.
    pub container: bool,
    /// /proc/self/uid_map and gid_map.
    pub uid_map: String,
    pub gid_map: String,
    /// `/` is overlayfs.
    pub root_on_overlay: bool,
    /// A seccomp filter is on this process.
    pub seccomp: bool,
    pub no_new_privileges: bool,
    /// user.max_user_namespaces.
    pub user_namespaces_max: Option<u64>,
    /// AppArmor takes capabilities from ordinary users' namespaces (kernel.apparmor_restrict_unprivileged_userns).
    pub apparmor_restricts: bool,
    /// Mount points of Kubernetes' emptyDir volumes.
    pub empty_directories: Vec<PathBuf>,
}

impl Facts {
    /// This process's. What can't be read counts as absent.
    pub fn read() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let number = |path: &str| text(path).trim().parse::<u64>().ok();
        let status = text("/proc/self/status");
        let field = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or("0")
        };
        let (seccomp, no_new_privileges) = (field("Seccomp:") == "2", field("NoNewPrivs:") == "1");
        Facts {
            uid: geteuid().as_raw(),
            capabilities: capabilities().map_or(0, |sets| sets.effective),
            initial_user_namespace: in_initial_user_namespace(),
            container: !in_initial_pid_namespace(),
            uid_map: text("/proc/self/uid_map"),
            gid_map: text("/proc/self/gid_map"),
            root_on_overlay: is_overlay("/"),
            seccomp,
            no_new_privileges,
            user_namespaces_max: number("/proc/sys/user/max_user_namespaces"),
            apparmor_restricts: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
                .is_some_and(|value| value != 0),
            empty_directories: empty_directories(&text("/proc/self/mountinfo")),
        }
    }

    pub fn may_mount(&self) -> bool {
        self.has(SYS_ADMIN)
    }

    pub(super) fn may_write_maps(&self) -> bool {
        self.uid == 0 && MAP_CAPABILITIES.iter().all(|number| self.has(*number))
    }

    /// Those that swap needs and this process has not.
    pub(super) fn missing_for_swap(&self) -> Vec<&'static str> {
        let missing = SWAP_CAPABILITIES.iter().filter(|(_, number)| !self.has(*number));
        missing.map(|(name, _)| *name).collect()
    }

    fn has(&self, number: u32) -> bool {
        self.capabilities & (1 << number) != 0
    }

    /// A machine's root, with nothing to be seen that could hold it back: it is probed when the first RUN needs it.
    pub(super) fn is_plain_machine(&self) -> bool {
        self.uid == 0
            && self.may_mount()
            && self.initial_user_namespace
            && !self.root_on_overlay
            && !self.container
            && !self.seccomp
    }
}

#[allow(clippy::unnecessary_cast)] // The field's type differs between architectures.
fn is_overlay(path: &str) -> bool {
    statfs(path).is_ok_and(|stat| stat.f_type as i64 == OVERLAYFS_MAGIC)
}

/// The mount points in a mountinfo (proc(5)) whose source is an emptyDir on the node's disk.
fn empty_directories(mountinfo: &str) -> Vec<PathBuf> {
    let point = |line: &str| {
        let mut fields = line.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        root.contains(EMPTY_DIRECTORY).then(|| PathBuf::from(unescape(point)))
    };
    let mut points: Vec<PathBuf> =
        mountinfo.lines().filter_map(point).filter(|p| p.is_dir()).collect();
    points.sort();
    points.dedup();
    points
}

/// mountinfo writes blanks, tabs, newlines and backslashes as three octal digits.
fn unescape(field: &str) -> String {
    let mut text = field.to_owned();
    for (code, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        text = text.replace(code, character);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_dir_is_found_by_its_source() {
        let scratch = tempfile::tempdir().unwrap();
        let place = scratch.path().join("a b");
        std::fs::create_dir(&place).unwrap();
        let shown = place.display().to_string().replace(' ', "\\040");
        let text = format!(
            "1 2 0:5 / / rw - overlay overlay rw\n\
             3 1 8:1 /var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/work {shown} rw - ext4 /dev/sda rw\n\
             4 1 8:1 /var/lib/kubelet/pods/u/volumes/kubernetes.io~secret/s /run/s ro - tmpfs tmpfs rw\n\
             odd\n"
        );
        assert_eq!(empty_directories(&text), [place]);
    }

    #[test]
    fn capabilities_are_told_by_name() {
        let facts =
            Facts { capabilities: super::super::capabilities::default_mask(), ..Facts::default() };
        assert!(facts.missing_for_swap().is_empty() && !facts.may_mount());
        assert!(facts.may_write_maps());
        let facts = Facts { capabilities: facts.capabilities & !(1 << 18 | 1), ..facts };
        assert_eq!(facts.missing_for_swap(), ["CAP_CHOWN", "CAP_SYS_CHROOT"]);
        assert!(!Facts { uid: 1000, ..facts }.may_write_maps());
    }

    #[test]
    fn a_machine_with_anything_in_the_way_is_probed_at_once() {
        let machine =
            Facts { capabilities: u64::MAX, initial_user_namespace: true, ..Facts::default() };
        assert!(machine.is_plain_machine());
        for facts in [
            Facts { uid: 5, ..machine.clone() },
            Facts { container: true, ..machine.clone() },
            Facts { root_on_overlay: true, ..machine.clone() },
            Facts { seccomp: true, ..machine.clone() },
            Facts { initial_user_namespace: false, ..machine.clone() },
            Facts { capabilities: 0, ..machine.clone() },
        ] {
            assert!(!facts.is_plain_machine(), "{facts:?}");
        }
    }
}
