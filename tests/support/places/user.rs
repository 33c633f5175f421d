//! An ordinary user of the machine, who exists for a test's own commands only.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
};

use super::{Done, done};
use crate::support::{build::binary, peers};

const UID: u32 = 4711;

/// His commands run in a mount namespace in which /etc/passwd, /etc/group, /etc/subuid and /etc/subgid know him.
pub struct OrdinaryUser {
    folder: tempfile::TempDir,
}

impl OrdinaryUser {
    /// With 65,536 subordinate ids, or with none.
    pub fn new(subordinate_ids: bool) -> OrdinaryUser {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all(folder.path().join("etc")).unwrap();
        fs::create_dir_all(folder.path().join("home")).unwrap();
        chown(folder.path().join("home"), Some(UID), Some(UID)).unwrap();
        let user = OrdinaryUser { folder };
        user.database("passwd", &format!("user:x:{UID}:{UID}::/mnt/home:/bin/sh\n"));
        user.database("group", &format!("user:x:{UID}:\n"));
        let range = if subordinate_ids { "user:600000:65536\n" } else { "" };
        fs::write(user.folder.path().join("etc/subuid"), range).unwrap();
        fs::write(user.folder.path().join("etc/subgid"), range).unwrap();
        peers::run("strip", [Path::new("-o"), &user.folder.path().join("bareboat"), binary()]);
        user
    }

    /// The machine's own database and one line more.
    fn database(&self, name: &str, line: &str) {
        let machine = fs::read_to_string(Path::new("/etc").join(name)).unwrap();
        fs::write(self.folder.path().join("etc").join(name), machine + line).unwrap();
    }

    /// His home, which he knows as /mnt/home.
    pub fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    pub fn run_with_input(&self, arguments: &[&str], stdin: &[u8]) -> Done {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", BECOME, "sh"]);
        command.arg(self.folder.path()).arg(UID.to_string()).args(arguments);
        done(command, stdin)
    }
}

/// Makes the user known and becomes him: FOLDER UID COMMAND… The folder comes to /mnt, because the tests' temporary folder
/// is closed to others.
const BECOME: &str = r#"
folder=$1 uid=$2
shift 2
for name in passwd group subuid subgid; do
    [ -e /etc/$name ] || : >/etc/$name
    mount --bind "$folder/etc/$name" /etc/$name
done
mount --bind "$folder" /mnt
cd /mnt/home
exec setpriv --reuid "$uid" --regid "$uid" --clear-groups --inh-caps=-all \
    env -i HOME=/mnt/home USER=user PATH="/mnt:/usr/local/bin:/usr/bin:/bin" "$@"
"#;
