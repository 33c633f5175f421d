//! One running container, in which commands run one after another.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use super::{Done, Place, RootFiles, Volume, done, podman};
use crate::support::{
    peers::{self, unique},
    process,
};

/// Dropping it removes it.
pub struct Container {
    name: String,
    id: String,
    pid: u32,
    /// What its volumes hold.
    volumes: Arc<tempfile::TempDir>,
}

impl Container {
    pub(super) fn start(place: &Place) -> Container {
        let folder = tempfile::tempdir().unwrap();
        make_volumes(place, folder.path());
        Container::with_volumes(place, Arc::new(folder))
    }

    /// A further container of the same place, with the very volumes of this one.
    pub fn start_another(&self, place: &Place) -> Container {
        Container::with_volumes(place, self.volumes.clone())
    }

    fn with_volumes(place: &Place, volumes: Arc<tempfile::TempDir>) -> Container {
        let name = format!("place-{}", unique());
        let mut arguments = vec!["run".to_owned(), "--detach".to_owned(), "--name".to_owned()];
        arguments.push(name.clone());
        arguments.extend(place.options());
        arguments.extend(volume_options(place, volumes.path()));
        arguments
            .extend(["--entrypoint=[]", place.image.name(), "sleep", "3600"].map(str::to_owned));
        let id = podman::run(&arguments).trim().to_owned();
        let pid = podman::run(["inspect", "--format", "{{.State.Pid}}", &name]);
        let container = Container { name, id, pid: pid.trim().parse().unwrap(), volumes };
        if place.no_nested_user_namespaces {
            container.forbid_user_namespaces();
        }
        container
    }

    /// The limit belongs to the user namespace of who writes it.
    fn forbid_user_namespaces(&self) {
        let pid = self.pid.to_string();
        let write = "echo 0 > /proc/sys/user/max_user_namespaces";
        let enter = ["--target", &pid, "--user", "sh", "-c", write];
        peers::run("nsenter", enter);
    }

    /// The name under which runc knows it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Runs a command as a job of the container: with its user, capabilities and filters.
    pub fn run(&self, arguments: &[&str]) -> Done {
        done(self.command(&[], arguments), &[])
    }

    /// A command in the container that is not started yet.
    pub fn command(&self, env: &[(&str, &str)], arguments: &[&str]) -> Command {
        let mut command = Command::new("runc");
        command.arg("exec");
        for (name, value) in env {
            command.arg("--env").arg(format!("{name}={value}"));
        }
        command.arg(&self.id).args(arguments);
        command
    }

    /// As [`Self::command`], in a working directory that is always there.
    pub fn command_at_root(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("runc");
        command.args(["exec", "--cwd", "/", &self.id]).args(arguments);
        command
    }

    /// The machine's ids of the living processes in it, but for the first one.
    pub fn processes(&self) -> Vec<u32> {
        process::with_namespace_of(self.pid)
    }

    /// An absolute path of the container, with its mounts, as the machine reaches it.
    pub fn path(&self, path: &str) -> PathBuf {
        Path::new("/proc")
            .join(self.pid.to_string())
            .join("root")
            .join(path.trim_start_matches('/'))
    }

    /// The machine's directory behind a volume.
    pub fn volume(&self, path: &str) -> PathBuf {
        self.volumes.path().join(volume_name(path))
    }

    /// Everything of the container's own root, but for what lies at or below `except`.
    pub fn root_files(&self, except: &[&str]) -> RootFiles {
        RootFiles::of(&self.path("/"), except)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        podman::try_run(["rm", "--force", "--time", "0", "--volumes", &self.name]);
    }
}

fn make_volumes(place: &Place, folder: &Path) {
    // Where the container's root is another user, it comes past the test's own folder.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    for volume in place.volumes {
        let directory = folder.join(volume_name(volume.path));
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
        for (name, content) in volume.files {
            fs::write(directory.join(name), content).unwrap();
        }
    }
}

fn volume_options(place: &Place, folder: &Path) -> Vec<String> {
    let option = |volume: &Volume| {
        let directory = folder.join(volume_name(volume.path));
        let access = if volume.writable { "rw" } else { "ro" };
        format!("--volume={}:{}:{access}", directory.display(), volume.path)
    };
    place.volumes.iter().map(option).collect()
}

fn volume_name(path: &str) -> String {
    path.trim_matches('/').replace('/', "-")
}
