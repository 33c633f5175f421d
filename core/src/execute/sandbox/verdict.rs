//! What a refused call says about a host, and what to do about it.

use std::{fmt, path::PathBuf};

use super::{SandboxError, facts::Facts, id_map::OneId};

/// What executes RUN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// Own namespaces and an overlay of the layers.
    Overlay,
    /// The stage's files in the place of the container's own, for the time of a RUN.
    Swap,
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rung::Overlay => "overlay",
            Rung::Swap => "swap",
        })
    }
}

/// A way to a rung, from most to least wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the CAP_SYS_ADMIN that this process has.
    OverlayRoot,
    /// By that of a user namespace of its own.
    OverlayUserNamespace,
    Swap,
}

impl Way {
    pub fn rung(self) -> Rung {
        match self {
            Way::OverlayRoot | Way::OverlayUserNamespace => Rung::Overlay,
            Way::Swap => Rung::Swap,
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::OverlayRoot => "overlay, as root",
            Way::OverlayUserNamespace => "overlay, in a user namespace",
            Way::Swap => "swap",
        })
    }
}

/// What a probe found. Its `Display` is a line of the table that `bareboat doctor` and a build without a rung print.
#[derive(Clone, Debug)]
pub struct Probe {
    pub way: Way,
    /// Where the state was to lie.
    pub state_directory: PathBuf,
    /// Why a user namespace has one id only, where it has.
    pub one_id: Option<OneId>,
    /// No /proc of its own: steps see the builder's processes.
    pub shares_processes: bool,
    pub verdict: Verdict,
}

#[derive(Clone, Debug)]
pub enum Verdict {
    Available,
    Unavailable(Unavailable),
}

/// Why a rung can't be used.
#[derive(Clone, Debug)]
pub struct Unavailable {
    /// The call that failed, with its object and errno.
    pub error: SandboxError,
    /// What this says about the machine.
    pub meaning: Option<&'static str>,
    /// What to do.
    pub remedy: Option<String>,
}

impl Probe {
    pub fn is_available(&self) -> bool {
        matches!(self.verdict, Verdict::Available)
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.way)?;
        match &self.verdict {
            Verdict::Available => {
                write!(f, "available, with the state in {}", self.state_directory.display())?;
                if self.shares_processes {
                    f.write_str(", sharing the container's /proc")?;
                }
                match self.one_id {
                    Some(_) => f.write_str(", for images with a single owner"),
                    None => Ok(()),
                }
            }
            Verdict::Unavailable(Unavailable { error, meaning, remedy }) => {
                let text = error.to_string();
                write!(f, "{}", text.strip_prefix("sandbox: ").unwrap_or(&text))?;
                if let Some(meaning) = meaning {
                    write!(f, ": {meaning}")?;
                }
                match remedy {
                    Some(remedy) => write!(f, "; {remedy}"),
                    None => Ok(()),
                }
            }
        }
    }
}

impl Unavailable {
    pub(super) fn new(error: SandboxError, facts: &Facts) -> Self {
        let meaning = match &error {
            SandboxError::Call { call, object, errno } => meaning(call, object, errno.0, facts),
            SandboxError::StateOnOverlay { .. } => {
                Some("an overlay can't have its upper directory on an overlay")
            }
            SandboxError::IdMap { .. } => Some("the user's ids can't be mapped"),
            _ => None,
        };
        let special = match &error {
            SandboxError::Call { call, object, errno } => {
                special_remedy(call, object, errno.0, facts).map(str::to_owned)
            }
            _ => None,
        };
        let remedy = special.or_else(|| error.hint());
        Unavailable { error, meaning, remedy }
    }
}

/// The object of the call that makes a user namespace.
pub(super) const USER_NAMESPACE: &str = "user namespace";

fn is_call(call: &str, name: &str) -> bool {
    call.split(' ').next() == Some(name)
}

/// What a refused call says about the machine.
fn meaning(call: &str, object: &str, errno: i32, facts: &Facts) -> Option<&'static str> {
    if is_call(call, "unshare") {
        return unshare_meaning(object, errno, facts);
    }
    Some(match errno {
        libc::ENOSYS => "this kernel, or what emulates it, lacks the call",
        libc::EACCES if is_call(call, "mount") => "AppArmor or SELinux forbids mounting",
        libc::EPERM if call == "mount proc" => {
            "parts of this container's /proc are masked, so that a new one would show more"
        }
        // Other file systems were mounted before.
        libc::EPERM if call == "mount overlay" => {
            "an overlay in a user namespace takes Linux 5.11 or later"
        }
        libc::EPERM if is_call(call, "mount") => {
            "no CAP_SYS_ADMIN, or a seccomp profile forbids mounting"
        }
        libc::EINVAL if call == "mount overlay" => {
            "the file system of the state can't hold an overlay, or a layer lies on two overlays already"
        }
        libc::ENODEV if call == "mount overlay" => "this kernel has no overlayfs",
        libc::EACCES if is_call(call, "seccomp") => "a seccomp filter needs CAP_SYS_ADMIN",
        libc::EPERM if call == "write" && object.ends_with("_map") => {
            "the ids can't be mapped: CAP_SETUID, CAP_SETGID or CAP_SETFCAP is missing"
        }
        libc::EROFS if call == "mkdir" => "the file system is read-only",
        libc::EXDEV | libc::EINVAL if call == "rename" => {
            "what is made at the container's root can't be renamed there"
        }
        _ => return None,
    })
}

fn unshare_meaning(object: &str, errno: i32, facts: &Facts) -> Option<&'static str> {
    let user_namespace = object == USER_NAMESPACE;
    Some(match errno {
        libc::EPERM if !user_namespace && facts.apparmor_restricts => {
            "AppArmor takes the capabilities from ordinary users' namespaces (kernel.apparmor_restrict_unprivileged_userns, as on Ubuntu since 23.10)"
        }
        libc::EPERM if facts.seccomp => {
            "a seccomp profile (Docker's and containerd's default one) forbids new namespaces"
        }
        libc::EPERM if user_namespace => {
            "the kernel or a security module forbids user namespaces here"
        }
        libc::EPERM => "no CAP_SYS_ADMIN",
        libc::ENOSPC if user_namespace && facts.user_namespaces_max == Some(0) => {
            "user.max_user_namespaces is 0, as on the nodes of EKS Auto Mode, Bottlerocket and Fargate"
        }
        libc::ENOSPC => "the limit of namespaces is reached (user.max_*_namespaces)",
        libc::EUSERS => "namespaces are nested too deeply (32 at most)",
        libc::EINVAL => "this kernel lacks one of the namespaces",
        libc::ENOSYS => "this kernel, or what emulates it, lacks the call",
        _ => return None,
    })
}

/// What to do where the surroundings say more than the call.
fn special_remedy(call: &str, object: &str, errno: i32, facts: &Facts) -> Option<&'static str> {
    let user_namespace = is_call(call, "unshare") && object == USER_NAMESPACE;
    Some(match errno {
        libc::EPERM if is_call(call, "unshare") && !user_namespace && facts.apparmor_restricts => {
            "run bareboat by sudo, or allow it on the machine: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
        }
        libc::EPERM if is_call(call, "unshare") && facts.container && facts.seccomp => {
            "in Kubernetes `securityContext: {seccompProfile: {type: Unconfined}}`, or `hostUsers: false` with the capability SYS_ADMIN; in Docker `--security-opt seccomp=unconfined`"
        }
        libc::EPERM if user_namespace => {
            "run bareboat by sudo, or allow user namespaces on the machine: sysctl -w kernel.unprivileged_userns_clone=1"
        }
        _ => return None,
    })
}

/// What to do about a refused call.
pub(super) fn remedy(call: &str, errno: i32) -> Option<&'static str> {
    Some(match errno {
        libc::ENOSPC if is_call(call, "unshare") => {
            "raise user.max_user_namespaces and user.max_mnt_namespaces (sysctl) on the machine"
        }
        libc::EUSERS if is_call(call, "unshare") => "start bareboat in fewer nested containers",
        libc::EINVAL if is_call(call, "unshare") => {
            "use a kernel with user, mount, PID, IPC and UTS namespaces (CONFIG_USER_NS and its like)"
        }
        libc::ENOSYS => "use Linux 5.11 or later, without an emulation such as gVisor's",
        libc::EACCES if is_call(call, "mount") => {
            "run the job with the AppArmor profile `unconfined` (`appArmorProfile: {type: Unconfined}` in Kubernetes), or privileged"
        }
        libc::EPERM if call == "mount overlay" => {
            "use Linux 5.11 or later, or run as the machine's root (sudo)"
        }
        libc::EPERM if is_call(call, "unshare") || is_call(call, "mount") => {
            "run as the machine's root (sudo), or the container privileged or with CAP_SYS_ADMIN"
        }
        libc::EINVAL if call == "mount overlay" => {
            "put the state on ext4, xfs or tmpfs: mount a volume (an emptyDir in Kubernetes) and name it with --state-dir"
        }
        libc::ENODEV if call == "mount overlay" => "load the kernel module: modprobe overlay",
        libc::EPERM if call == "write" => {
            "give the container Docker's default capabilities (drop none), or run it privileged"
        }
        libc::ENOSPC => "free space on the file system of the state",
        libc::EROFS | libc::EACCES if call == "mkdir" => {
            "mount a writable volume (an emptyDir in Kubernetes) and name it with --state-dir"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execute::sandbox::error::Errno;

    fn unavailable(call: &str, object: &str, errno: i32, facts: &Facts) -> Unavailable {
        let (call, object) = (call.to_owned(), object.to_owned());
        Unavailable::new(SandboxError::Call { call, object, errno: Errno(errno) }, facts)
    }

    #[test]
    fn refusals_have_a_meaning_and_a_remedy() {
        let facts = Facts::default();
        for (call, object, errno) in [
            ("unshare", USER_NAMESPACE, libc::EPERM),
            ("unshare", USER_NAMESPACE, libc::ENOSPC),
            ("unshare", USER_NAMESPACE, libc::EUSERS),
            ("unshare", USER_NAMESPACE, libc::EINVAL),
            ("unshare", USER_NAMESPACE, libc::ENOSYS),
            ("unshare", "namespaces", libc::EPERM),
            ("write", "uid_map", libc::EPERM),
            ("mount overlay", "x", libc::EACCES),
            ("mount overlay", "x", libc::EINVAL),
            ("mount overlay", "x", libc::ENODEV),
            ("mount overlay", "x", libc::EPERM),
            ("mount tmpfs", "x", libc::EACCES),
            ("mount proc", "x", libc::EPERM),
            ("mkdir", "x", libc::EROFS),
        ] {
            let unavailable = unavailable(call, object, errno, &facts);
            assert!(unavailable.meaning.is_some(), "{call} {errno}");
            assert!(unavailable.remedy.is_some(), "{call} {errno}");
        }
    }

    #[test]
    fn the_surroundings_say_more_than_the_call() {
        let told = |call: &str, object: &str, errno, facts: &Facts| {
            let told = unavailable(call, object, errno, facts);
            format!("{} | {}", told.meaning.unwrap(), told.remedy.unwrap())
        };
        let docker = Facts { container: true, seccomp: true, ..Facts::default() };
        let text = told("unshare", USER_NAMESPACE, libc::EPERM, &docker);
        assert!(text.contains("seccomp profile") && text.contains("type: Unconfined"), "{text}");
        let none = Facts { user_namespaces_max: Some(0), ..Facts::default() };
        let text = told("unshare", USER_NAMESPACE, libc::ENOSPC, &none);
        assert!(text.contains("Bottlerocket") && text.contains("max_user_namespaces"), "{text}");
        let ubuntu = Facts { apparmor_restricts: true, ..Facts::default() };
        let text = told("unshare", "namespaces", libc::EPERM, &ubuntu);
        assert!(text.contains("AppArmor") && text.contains("sudo"), "{text}");
        let text = told("mount overlay", "/w", libc::EACCES, &docker);
        assert!(text.contains("AppArmor or SELinux") && text.contains("appArmorProfile"), "{text}");
    }

    #[test]
    fn a_line_names_way_call_meaning_and_remedy() {
        let verdict = Verdict::Unavailable(unavailable(
            "mount overlay",
            "/w",
            libc::EACCES,
            &Facts::default(),
        ));
        let mut probe = Probe {
            way: Way::OverlayUserNamespace,
            state_directory: "/w".into(),
            one_id: None,
            shares_processes: true,
            verdict,
        };
        let line = probe.to_string();
        assert!(
            line.starts_with("overlay, in a user namespace: mount overlay /w: Permission denied (os error 13): AppArmor or SELinux"),
            "{line}"
        );
        probe.verdict = Verdict::Available;
        let line = probe.to_string();
        assert!(line.ends_with("with the state in /w, sharing the container's /proc"), "{line}");
    }
}
