//! The places, and which rung of the ladder each is expected to give: what changes when a rung is added.

use crate::support::places::{Image, Place, Seccomp, Volume};

/// How a build's steps are to run in a place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rung {
    Overlay,
    Swap,
    /// A RUN ends with exit code 7; a build without RUN works.
    Nothing,
}

impl Rung {
    /// Its name in the metadata file.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Rung::Overlay => Some("overlay"),
            Rung::Swap => Some("swap"),
            Rung::Nothing => None,
        }
    }
}

/// A place with its expectation.
pub struct Row {
    pub place: Place,
    pub rung: Rung,
    /// Where the state is to lie, if bareboat is told.
    pub state: Option<&'static str>,
}

const fn row(place: Place, rung: Rung) -> Row {
    Row { place, rung, state: None }
}

const fn row_with_state(place: Place, rung: Rung, state: &'static str) -> Row {
    Row { place, rung, state: Some(state) }
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
pub const DEFAULT: Row = row(Place::DEFAULT, Rung::Nothing);

/// Our image on containerd with its default seccomp profile.
pub const CONTAINERD: Row = row(Place { image: Image::Shell, ..Place::DEFAULT }, Rung::Nothing);

/// A Debian job image.
pub const DEBIAN: Row = row(Place { image: Image::Debian, ..Place::DEFAULT }, Rung::Nothing);

/// A Debian job image with everything that CI systems mount: files on /etc (podman binds hosts, hostname and resolv.conf
/// in every container), an emptyDir at a path that images have too, volumes, a secret.
pub const DEBIAN_MOUNTS: Row = row(
    Place {
        image: Image::Debian,
        volumes: &[BUILDS, Volume::empty("/tmp"), Volume::empty("/workspace"), SERVICE_ACCOUNT],
        ..Place::DEFAULT
    },
    Rung::Nothing,
);

/// Our image with the same mounts.
pub const MOUNTS: Row = row(
    Place {
        volumes: &[BUILDS, Volume::empty("/tmp"), Volume::empty("/workspace"), SERVICE_ACCOUNT],
        ..Place::DEFAULT
    },
    Rung::Nothing,
);

/// Where the machine forbids user namespaces.
pub const NO_USER_NAMESPACES: Row = row(
    Place { seccomp: Seccomp::NoUserNamespaces, volumes: &[BUILDS, SERVICE_ACCOUNT], ..POD },
    Rung::Nothing,
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
    Rung::Nothing,
    BUILDS_STATE,
);

/// A pod without a seccomp profile, and nothing but its own root.
pub const POD_BARE: Row = row(Place { volumes: &[SERVICE_ACCOUNT], ..POD }, Rung::Nothing);

/// `hostUsers: false` under the default seccomp profile.
pub const OWN_USERS_CONFINED: Row = row(OWN_USERS, Rung::Nothing);

/// `hostUsers: false` without a seccomp profile.
pub const OWN_USERS_UNCONFINED: Row = row_with_state(
    Place { seccomp: Seccomp::Unconfined, ..OWN_USERS },
    Rung::Nothing,
    BUILDS_STATE,
);

/// `hostUsers: false` and SYS_ADMIN under the default seccomp profile, which then forbids pivot_root only.
pub const OWN_USERS_ADMIN_CONFINED: Row = row_with_state(
    Place { capabilities: &WITH_SYS_ADMIN, ..OWN_USERS },
    Rung::Nothing,
    BUILDS_STATE,
);

/// `hostUsers: false` and SYS_ADMIN without a seccomp profile.
pub const OWN_USERS_ADMIN: Row = row_with_state(
    Place { capabilities: &WITH_SYS_ADMIN, seccomp: Seccomp::Unconfined, ..OWN_USERS },
    Rung::Nothing,
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

/// An ordinary user of the machine with a line in /etc/subuid and /etc/subgid.
pub const USER_WITH_IDS: Rung = Rung::Nothing;

/// The same without: his one id is not enough for a base whose files have several owners.
pub const USER_WITHOUT_IDS: Rung = Rung::Nothing;
