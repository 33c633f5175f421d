//! The images that jobs run in, made by bareboat from the repository's own Dockerfile.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use super::podman;
use crate::support::{Peers, build::bareboat, build::binary, peers};

/// What a job's container is started from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Image {
    /// Our image with the program alone.
    Executor,
    /// Our image with a shell, as containerd starts it: mount points are made in the container's own layer.
    Shell,
    /// The same as Docker starts it, which puts a layer with /dev, /etc, /proc and /sys below the container's.
    ShellOnDocker,
    /// A Debian job image with bareboat added.
    Debian,
}

impl Image {
    /// Its name in podman's storage; made by the first who asks.
    pub fn name(self) -> &'static str {
        static MADE: [OnceLock<()>; 4] = [const { OnceLock::new() }; 4];
        let name = ["executor", "shell", "shell-on-docker", "debian"][self as usize];
        MADE[self as usize].get_or_init(|| podman::import(&self.make(name), name));
        name
    }

    /// The OCI layout that it was imported from.
    pub fn layout(self) -> PathBuf {
        kitchen().join(self.name())
    }

    fn make(self, name: &str) -> PathBuf {
        let out = kitchen().join(name);
        match self {
            Image::Executor => ours("executor", &out),
            Image::Shell => ours("shell", &out),
            Image::ShellOnDocker => {
                docker_layer(&kitchen().join("docker-layer"));
                add(&Image::Shell.layout(), &kitchen().join("docker-layer"), &out);
            }
            Image::Debian => {
                add(&Peers::get().layout("debian"), &program_folder(), &out);
            }
        }
        out
    }
}

/// The folder that images are made in, with the context of our Dockerfile.
fn kitchen() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("bareboat-kitchen-{}", peers::unique()));
        fs::create_dir_all(folder.join("bin/bareboat")).unwrap();
        fs::create_dir_all(folder.join("bin/busybox")).unwrap();
        let program = folder.join("bin/bareboat/bareboat");
        peers::run("strip", [Path::new("-o"), &program, binary()]);
        directory(&folder.join("bin/bareboat/home"), 0o1777);
        let certificates = "/etc/ssl/certs/ca-certificates.crt";
        fs::copy(certificates, folder.join("bin/bareboat/ca-certificates.crt")).unwrap();
        let busybox = peers::run("sh", ["-c", "command -v busybox"]);
        fs::copy(busybox.trim(), folder.join("bin/busybox/busybox")).unwrap();
        folder
    })
}

fn directory(path: &Path, mode: u32) {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn ours(target: &str, out: &Path) {
    let bin = format!("bin={}", kitchen().join("bin").display());
    build(&["--target", target, "--build-context", &bin], env!("CARGO_MANIFEST_DIR").as_ref(), out);
}

/// What `docker run` puts at the mount points that every container has.
fn docker_layer(folder: &Path) {
    for name in ["dev/pts", "dev/shm", "etc", "proc", "sys"] {
        directory(&folder.join(name), 0o755);
    }
    for name in [".dockerenv", "dev/console", "etc/hostname", "etc/hosts", "etc/resolv.conf"] {
        fs::write(folder.join(name), "").unwrap();
    }
    symlink("/proc/mounts", folder.join("etc/mtab")).unwrap();
}

fn program_folder() -> PathBuf {
    let folder = kitchen().join("program");
    directory(&folder, 0o755);
    peers::run("cp", [Path::new("-a"), &kitchen().join("bin/bareboat"), &folder]);
    folder
}

/// The image of a layout and a layer with the files of a folder.
fn add(base: &Path, files: &Path, out: &Path) {
    let context = format!("base=oci-layout://{}", base.display());
    let dockerfile = out.with_extension("Dockerfile");
    fs::write(&dockerfile, "FROM base\nCOPY . /\n").unwrap();
    build(&["-f", dockerfile.to_str().unwrap(), "--build-context", &context], files, out);
}

/// Uncompressed: podman unpacks it at once.
fn build(arguments: &[&str], context: &Path, out: &Path) {
    let output = format!("type=oci,dest={},tar=false,compression=uncompressed", out.display());
    let mut command = bareboat();
    command.arg("build").arg("--state-dir").arg(kitchen().join("state")).args(arguments);
    peers::run_command(command.args(["-o", &output]).arg(context));
}
