//! The places, and which rung of the ladder each is expected to give: what changes when a rung is added.

use crate::support::places::{Image, Place, Seccomp, Volume};

/// How a build's steps can run in a place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rung {
    /// An overlay mounted by a real root.
    Overlay,
    /// An overlay in a user namespace, a new one or the container's own.
    OverlayInUserNamespace,
    /// The stage's files in the place of the container's own.
    Swap,
    /// A RUN ends with exit code 7; a build without RUN works.
    Nothing,
}

/// The rungs that there are. A place whose rung is not among them is expected to give nothing.
const LADDER: [Rung; 3] = [Rung::Overlay, Rung::OverlayInUserNamespace, Rung::Swap];

impl Rung {
    /// What is expected where a place allows this one.
    pub fn expected(self) -> Rung {
        if LADDER.contains(&self) { self } else { Rung::Nothing }
    }

    /// Its name in the metadata file.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Rung::Overlay | Rung::OverlayInUserNamespace => Some("overlay"),
            Rung::Swap => Some("swap"),
            Rung::Nothing => None,
        }
    }
}

/// A place with the best rung that it allows.
pub struct Row {
    pub place: Place,
    pub allows: Rung,
    /// Where the state is to lie, if bareboat is told.
    pub state: Option<&'static str>,
}

const fn row(place: Place, allows: Rung) -> Row {
    Row { place, allows, state: None }
}

const fn row_with_state(place: Place, allows: Rung, state: &'static str) -> Row {
    Row { place, allows, state: Some(state) }
}

const BUILDS: Volume = Volume::empty("/builds");
const BUILDS_STATE: &str = "/builds/.bareboat";

const SERVICE_ACCOUNT: Volume = Volume {
    path: "/var/run/secrets/kubernetes.io/serviceaccount",
    files: &[("token", "a service account's token"), ("namespace", "default"), ("ca.crt", "")],
    writable: false,
};

/// A Kubernetes pod without a seccomp profile.
const POD: Place = Place { image: Image::Shell, seccomp: Seccomp::Unconfined, ..Place::DEFAULT };

/// A pod with `hostUsers: false`.
const OWN_USERS: Place =
    Place { user_namespace: true, seccomp: Seccomp::Default, volumes: &[BUILDS], ..POD };

const WITH_SYS_ADMIN: [&str; 15] = [
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
    "SYS_ADMIN",
];

/// Our image on Docker.
pub const DEFAULT: Row = row(Place::DEFAULT, Rung::Swap);

/// Our image on containerd with its default seccomp profile.
pub const CONTAINERD: Row = row(Place { image: Image::Shell, ..Place::DEFAULT }, Rung::Swap);

/// A Debian job image.
pub const DEBIAN: Row = row(Place { image: Image::Debian, ..Place::DEFAULT }, Rung::Swap);

/// A Debian job image with everything that CI systems mount: files on /etc (podman binds hosts, hostname and resolv.conf
/// in every container), an emptyDir at a path that images have too, volumes, a secret.
pub const DEBIAN_MOUNTS: Row = row(
    Place {
        image: Image::Debian,
        volumes: &[BUILDS, Volume::empty("/tmp"), Volume::empty("/workspace"), SERVICE_ACCOUNT],
        ..Place::DEFAULT
    },
    Rung::Swap,
);

/// Our image with the same mounts.
pub const MOUNTS: Row = row(
    Place {
        volumes: &[BUILDS, Volume::empty("/tmp"), Volume::empty("/workspace"), SERVICE_ACCOUNT],
        ..Place::DEFAULT
    },
    Rung::Swap,
);

/// Where the machine forbids user namespaces.
pub const NO_USER_NAMESPACES: Row = row(
    Place { seccomp: Seccomp::NoUserNamespaces, volumes: &[BUILDS, SERVICE_ACCOUNT], ..POD },
    Rung::Swap,
);

/// `readOnlyRootFilesystem: true`, with a volume for the state.
pub const READ_ONLY: Row = row_with_state(
    Place { read_only: true, volumes: &[BUILDS], ..Place::DEFAULT },
    Rung::Nothing,
    BUILDS_STATE,
);

/// A pod without a seccomp profile, and an emptyDir.
pub const POD_VOLUME: Row = row_with_state(
    Place { volumes: &[BUILDS, SERVICE_ACCOUNT], ..POD },
    Rung::OverlayInUserNamespace,
    BUILDS_STATE,
);

/// A pod without a seccomp profile, and nothing but its own root.
pub const POD_BARE: Row = row(Place { volumes: &[SERVICE_ACCOUNT], ..POD }, Rung::Swap);

/// `hostUsers: false` under the default seccomp profile.
pub const OWN_USERS_CONFINED: Row = row(OWN_USERS, Rung::Swap);

/// `hostUsers: false` without a seccomp profile.
pub const OWN_USERS_UNCONFINED: Row = row_with_state(
    Place { seccomp: Seccomp::Unconfined, ..OWN_USERS },
    Rung::OverlayInUserNamespace,
    BUILDS_STATE,
);

/// The same where user namespaces are forbidden in the pod.
pub const OWN_USERS_NOT_NESTED: Row = row(
    Place { seccomp: Seccomp::Unconfined, no_nested_user_namespaces: true, ..OWN_USERS },
    Rung::Swap,
);

/// `hostUsers: false` and SYS_ADMIN under the default seccomp profile, which then forbids pivot_root only.
pub const OWN_USERS_ADMIN_CONFINED: Row = row_with_state(
    Place { capabilities: &WITH_SYS_ADMIN, ..OWN_USERS },
    Rung::OverlayInUserNamespace,
    BUILDS_STATE,
);

/// `hostUsers: false` and SYS_ADMIN without a seccomp profile.
pub const OWN_USERS_ADMIN: Row = row_with_state(
    Place { capabilities: &WITH_SYS_ADMIN, seccomp: Seccomp::Unconfined, ..OWN_USERS },
    Rung::OverlayInUserNamespace,
    BUILDS_STATE,
);

/// Pod Security "restricted".
pub const RESTRICTED: Row = row(
    Place {
        image: Image::Shell,
        capabilities: &[],
        uid: 10001,
        no_new_privileges: true,
        ..Place::DEFAULT
    },
    Rung::Nothing,
);

/// `--privileged` with a volume, as GitLab's privileged docker executor.
pub const PRIVILEGED: Row = row_with_state(
    Place { privileged: true, volumes: &[BUILDS], ..Place::DEFAULT },
    Rung::Overlay,
    BUILDS_STATE,
);

/// `--privileged` with nothing but the container's own root, on which no overlay can be mounted.
pub const PRIVILEGED_BARE: Row = row(Place { privileged: true, ..Place::DEFAULT }, Rung::Swap);

/// An ordinary user of the machine with a line in /etc/subuid and /etc/subgid.
pub const USER_WITH_IDS: Rung = Rung::OverlayInUserNamespace;

/// The same without: his one id is not enough for a base whose files have several owners.
pub const USER_WITHOUT_IDS: Rung = Rung::Nothing;
