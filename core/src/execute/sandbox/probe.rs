//! Whether a rung can be used here: found out by doing all of it in a child, short of executing a program.

use std::{fmt, fs::DirBuilder, os::unix::fs::DirBuilderExt, path::Path};

use super::{SandboxError, error::Named, run::ask, spec::StepSpec, wire::Request};

/// A way to execute RUN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// Own namespaces and an overlay of the layers, as the machine's root (CAP_SYS_ADMIN).
    Overlay,
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rung::Overlay => "overlay",
        })
    }
}

/// What a probe found.
#[derive(Clone, Debug)]
pub struct Probe {
    pub rung: Rung,
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

/// Probes the `overlay` rung with its step directories in `work_directory`, which exists (the state's `work`): the
/// namespaces, an overlay of two layers there, /proc, /sys, /dev, the change of root, the seccomp filter and the
/// reduced capabilities.
pub async fn probe(work_directory: &Path) -> Probe {
    let verdict = match try_overlay(work_directory).await {
        Ok(()) => Verdict::Available,
        Err(error) => Verdict::Unavailable(Unavailable::new(error)),
    };
    Probe { rung: Rung::Overlay, verdict }
}

impl Unavailable {
    fn new(error: SandboxError) -> Self {
        let meaning = match &error {
            SandboxError::Call { call, errno, .. } => meaning(call, errno.0),
            SandboxError::StateOnOverlay { .. } => {
                Some("an overlay can't have its upper directory on an overlay")
            }
            _ => None,
        };
        let remedy = error.hint();
        Unavailable { error, meaning, remedy }
    }
}

async fn try_overlay(work_directory: &Path) -> Result<(), SandboxError> {
    let directory = tempfile::Builder::new()
        .prefix("probe-")
        .tempdir_in(work_directory)
        .named("mkdir", work_directory)?;
    let below = |name: &str| {
        let path = directory.path().join(name);
        DirBuilder::new().mode(0o755).create(&path).named("mkdir", &path).map(|()| path)
    };
    let mut spec = StepSpec::new(below("upper")?, below("work")?, below("scratch")?);
    spec.lowers = vec![below("lower-a")?, below("lower-b")?];
    spec.arguments = vec!["true".into()];
    let result = ask(Request::Probe(spec), |_, _| {}, std::future::pending()).await;
    // The overlay leaves a directory of mode 0 in `work`, which tempfile can't look into without privilege.
    let _ = crate::sys::remove::remove_tree(directory.path());
    result.map(|_| ())
}

fn is_call(call: &str, name: &str) -> bool {
    call.split(' ').next() == Some(name)
}

/// What a refused call says about the machine.
fn meaning(call: &str, errno: i32) -> Option<&'static str> {
    Some(match errno {
        libc::EPERM if is_call(call, "unshare") => {
            "no CAP_SYS_ADMIN, or a seccomp profile forbids new namespaces"
        }
        libc::ENOSPC if is_call(call, "unshare") => {
            "the limit of namespaces is reached (user.max_*_namespaces)"
        }
        libc::EUSERS if is_call(call, "unshare") => "namespaces are nested too deeply",
        libc::EINVAL if is_call(call, "unshare") => "this kernel lacks one of the namespaces",
        libc::ENOSYS => "this kernel, or what emulates it, lacks the call",
        libc::EACCES if is_call(call, "mount") => "AppArmor or SELinux forbids mounting",
        libc::EPERM if call == "mount proc" => {
            "parts of this container's /proc are masked, so that a new one would show more"
        }
        libc::EPERM if is_call(call, "mount") => {
            "no CAP_SYS_ADMIN, or a seccomp profile forbids mounting"
        }
        libc::EINVAL if call == "mount overlay" => {
            "the file system of the state can't hold an overlay, or a layer lies on two overlays already"
        }
        libc::ENODEV if call == "mount overlay" => "this kernel has no overlayfs",
        libc::EACCES if is_call(call, "seccomp") => "a seccomp filter needs CAP_SYS_ADMIN",
        _ => return None,
    })
}

/// What to do about a refused call.
pub(super) fn remedy(call: &str, errno: i32) -> Option<&'static str> {
    Some(match errno {
        libc::ENOSPC if is_call(call, "unshare") => {
            "raise user.max_user_namespaces and user.max_mnt_namespaces (sysctl) on the machine"
        }
        libc::EACCES if is_call(call, "mount") => {
            "run the job with the AppArmor profile `unconfined` (appArmorProfile in Kubernetes), or privileged"
        }
        libc::EPERM if is_call(call, "unshare") || is_call(call, "mount") => {
            "run as the machine's root (sudo), or the container privileged or with CAP_SYS_ADMIN"
        }
        libc::EINVAL if call == "mount overlay" => {
            "put the state on ext4, xfs or tmpfs: mount a volume (an emptyDir in Kubernetes) and name it with --state-dir"
        }
        libc::ENODEV if call == "mount overlay" => "load the kernel module: modprobe overlay",
        libc::ENOSPC => "free space on the file system of the state",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execute::sandbox::error::Errno;

    #[test]
    fn refusals_have_a_meaning_and_a_remedy() {
        for (call, errno) in [
            ("unshare", libc::EPERM),
            ("unshare", libc::ENOSPC),
            ("mount overlay", libc::EACCES),
            ("mount overlay", libc::EINVAL),
            ("mount proc", libc::EPERM),
        ] {
            let object = "x".to_owned();
            let error = SandboxError::Call { call: call.to_owned(), object, errno: Errno(errno) };
            let unavailable = Unavailable::new(error);
            assert!(unavailable.meaning.is_some(), "{call} {errno}");
            assert!(unavailable.remedy.is_some(), "{call} {errno}");
        }
    }
}
