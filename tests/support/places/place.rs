//! A place: what a CI system gives to the container that it starts a job in.

use super::{Container, Done, Image, done, podman};

/// Docker's 14 default capabilities, which containerd gives too.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Which system calls a container may make.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Seccomp {
    /// Docker's and containerd's default profile.
    Default,
    Unconfined,
    /// Unconfined, but a new user namespace is answered with ENOSPC, as where `user.max_user_namespaces` is 0. (That
    /// limit is the whole machine's unless the container has a user namespace of its own.)
    NoUserNamespaces,
}

/// A directory of the machine in the container: a volume, an emptyDir, a secret.
#[derive(Clone, Copy, Debug)]
pub struct Volume {
    pub path: &'static str,
    /// Name and content of each file.
    pub files: &'static [(&'static str, &'static str)],
    pub writable: bool,
}

impl Volume {
    pub const fn empty(path: &'static str) -> Volume {
        Volume { path, files: &[], writable: true }
    }
}

/// How a container is started. Its network is the machine's, so that the registry on loopback can be reached; its root is
/// an overlay; /proc and /sys have the usual masks.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub image: Image,
    pub privileged: bool,
    pub capabilities: &'static [&'static str],
    pub seccomp: Seccomp,
    /// The user of its processes; 0 is root.
    pub uid: u32,
    pub no_new_privileges: bool,
    pub read_only: bool,
    /// A user namespace of its own, as of a pod with `hostUsers: false`.
    pub user_namespace: bool,
    /// In that namespace `user.max_user_namespaces` is 0.
    pub no_nested_user_namespaces: bool,
    /// How many processes there may be.
    pub pids: Option<u32>,
    pub volumes: &'static [Volume],
}

/// The first id of a pod with a user namespace of its own, on the machine.
const POD_IDS: &str = "0:500000:65536";

impl Place {
    /// An ordinary container without privilege: GitLab's docker executor, GitHub's container jobs, Fargate, Autopilot.
    pub const DEFAULT: Place = Place {
        image: Image::ShellOnDocker,
        privileged: false,
        capabilities: &DEFAULT_CAPABILITIES,
        seccomp: Seccomp::Default,
        uid: 0,
        no_new_privileges: false,
        read_only: false,
        user_namespace: false,
        no_nested_user_namespaces: false,
        pids: None,
        volumes: &[],
    };

    /// Starts a container that does nothing until it is told.
    pub fn start(&self) -> Container {
        Container::start(self)
    }

    /// Starts a container that runs the image's ENTRYPOINT with these arguments, and is gone when that ends.
    pub fn run_once(&self, env: &[(&str, &str)], arguments: &[&str], stdin: &[u8]) -> Done {
        let mut command = podman::command();
        command.args(["run", "--rm", "--interactive"]).args(self.options());
        command.args(env.iter().map(|(name, value)| format!("--env={name}={value}")));
        command.arg(self.image.name()).args(arguments);
        done(command, stdin)
    }

    /// The options of `podman run`. The limits are explicit because a machine may not allow podman's defaults.
    pub(super) fn options(&self) -> Vec<String> {
        let mut options: Vec<String> = ["--network", "host", "--ulimit", "nofile=1024:1024"]
            .map(str::to_owned)
            .into_iter()
            .chain(["--ulimit".to_owned(), "nproc=4096:4096".to_owned()])
            .collect();
        if self.privileged {
            options.push("--privileged".to_owned());
        } else {
            options.extend(self.capability_options());
            options.push(self.seccomp.option());
        }
        if self.uid != 0 {
            options.push(format!("--user={}", self.uid));
        }
        options.extend(self.pids.map(|pids| format!("--pids-limit={pids}")));
        if self.user_namespace {
            options.extend([format!("--uidmap={POD_IDS}"), format!("--gidmap={POD_IDS}")]);
        }
        if self.read_only {
            // Without podman's own idea of a read-only container, which mounts /tmp, /run and /var/tmp writable.
            options.extend(["--read-only", "--read-only-tmpfs=false"].map(str::to_owned));
        }
        if self.no_new_privileges {
            options.push("--security-opt=no-new-privileges".to_owned());
        }
        options
    }

    fn capability_options(&self) -> impl Iterator<Item = String> {
        let added = self.capabilities.iter().map(|name| format!("--cap-add={name}"));
        std::iter::once("--cap-drop=ALL".to_owned()).chain(added)
    }
}

impl Seccomp {
    fn option(self) -> String {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/places/seccomp");
        let profile = match self {
            Seccomp::Default => format!("{folder}/docker-default.json"),
            Seccomp::Unconfined => "unconfined".to_owned(),
            Seccomp::NoUserNamespaces => format!("{folder}/no-user-namespaces.json"),
        };
        format!("--security-opt=seccomp={profile}")
    }
}
