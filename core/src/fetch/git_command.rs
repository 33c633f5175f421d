//! Running git: with no one's configuration, no prompt, no hook, no protocol but those named, and ended together with
//! its helpers when the build is.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::{
    fs::FileType,
    process::{Pid, Signal, kill_process_group},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
};

use super::{
    error::FetchError,
    git::{GitOptions, SshAccess},
};
use crate::{
    registry::{Limits, Proxies, printable},
    secret::Secret,
    sys::private_root,
};

/// For one command; the largest repositories take minutes.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(60 * 60);
/// What is kept of each output; the rest is read and dropped.
const OUTPUT_BYTES_MAX: usize = 1 << 20;
const MESSAGE_CHARS_MAX: usize = 1000;

/// What every command has.
const SETTINGS: [(&str, &str); 17] = [
    // A submodule may name neither a repository of this machine nor a program.
    ("protocol.file.allow", "never"),
    ("protocol.ext.allow", "never"),
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.attributesFile", "/dev/null"),
    ("core.excludesFile", "/dev/null"),
    ("core.logAllRefUpdates", "false"),
    ("credential.helper", ""),
    // The directory was made a moment ago by this process; some file systems show another owner.
    ("safe.directory", "*"),
    ("init.defaultBranch", "master"),
    ("advice.detachedHead", "false"),
    ("submodule.recurse", "false"),
    ("fetch.recurseSubmodules", "false"),
    ("fetch.writeCommitGraph", "false"),
    // Nothing may go on in the background.
    ("gc.auto", "0"),
    ("gc.autoDetach", "false"),
    ("maintenance.auto", "false"),
];

/// git, ready to run for one repository.
pub(super) struct Runner {
    program: PathBuf,
    environment: Vec<(OsString, OsString)>,
    settings: Vec<(String, String)>,
    /// As errors show it.
    repository: String,
}

impl Runner {
    /// # Errors
    /// There is no git on the given PATH.
    pub(super) fn new(options: &GitOptions, repository: &str) -> Result<Self, FetchError> {
        let program = find_program(&options.path, "git")
            .ok_or_else(|| FetchError::GitMissing { repository: repository.to_owned() })?;
        let ssh = options.ssh.as_ref();
        let fixed: [(&str, &OsStr); 13] = [
            ("PATH", &options.path),
            ("LC_ALL", "C".as_ref()),
            ("HOME", "/dev/null".as_ref()),
            ("XDG_CONFIG_HOME", "/dev/null".as_ref()),
            ("GIT_CONFIG_NOSYSTEM", "1".as_ref()),
            ("GIT_CONFIG_SYSTEM", "/dev/null".as_ref()),
            ("GIT_CONFIG_GLOBAL", "/dev/null".as_ref()),
            ("GIT_ATTR_NOSYSTEM", "1".as_ref()),
            ("GIT_TERMINAL_PROMPT", "0".as_ref()),
            ("GIT_LFS_SKIP_SMUDGE", "1".as_ref()),
            ("GIT_SSH_VARIANT", "ssh".as_ref()),
            ("GIT_SSH_COMMAND", &ssh_command(ssh)),
            ("GIT_ALLOW_PROTOCOL", allowed_protocols(ssh).as_ref()),
        ];
        let environment = fixed.map(|(name, value)| (name.into(), value.to_owned())).into();
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let settings = SETTINGS.map(owned).into();
        let mut runner =
            Runner { program, environment, settings, repository: repository.to_owned() };
        runner.set_paths(options);
        Ok(runner)
    }

    fn set_paths(&mut self, options: &GitOptions) {
        let socket = options.ssh.as_ref().and_then(|ssh| ssh.agent_socket.as_ref());
        for (name, path) in
            [("SSH_AUTH_SOCK", socket), ("GIT_SSL_CAINFO", options.ca_file.as_ref())]
        {
            if let Some(path) = path {
                self.environment.push((name.into(), path.into()));
            }
        }
    }

    /// Takes over proxies and timeouts.
    pub(super) fn set_network(&mut self, proxies: &Proxies, limits: &Limits) {
        let direct = match proxies.no_proxy.as_deref().map(str::trim) {
            Some("*") => "*".to_owned(),
            // As our own client, which never asks a proxy for loopback names.
            list => format!("{},localhost,127.0.0.1,::1", list.unwrap_or_default()),
        };
        let exposed = |proxy: &Option<Secret<String>>| proxy.as_ref().map(|p| p.expose().clone());
        for (name, value) in [
            ("http_proxy", exposed(&proxies.http)),
            ("https_proxy", exposed(&proxies.https)),
            ("no_proxy", Some(direct)),
        ] {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                self.environment.push((name.into(), value.into()));
            }
        }
        self.set("http.lowSpeedLimit", &limits.bytes_per_second_min.to_string());
        self.set("http.lowSpeedTime", &limits.stall_timeout.as_secs().max(1).to_string());
    }

    /// Adds a setting for all commands. It is seen by anyone who can list processes.
    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    /// Adds a setting that is not shown. git before 2.31 does not know this way, and goes without.
    pub(super) fn set_secret(&mut self, name: &str, value: &Secret<Vec<u8>>) {
        let environment = [
            ("GIT_CONFIG_COUNT", OsStr::new("1")),
            ("GIT_CONFIG_KEY_0", OsStr::new(name)),
            ("GIT_CONFIG_VALUE_0", OsStr::from_bytes(value.expose())),
        ];
        self.environment.extend(environment.map(|(name, value)| (name.into(), value.to_owned())));
    }

    /// Runs git outside of any repository.
    pub(super) async fn run_outside(
        &self,
        action: &'static str,
        arguments: &[&str],
    ) -> Result<String, FetchError> {
        let mut command = self.command(Path::new("/"), arguments);
        // A file that is no repository: none is looked for.
        command.env("GIT_DIR", "/dev/null");
        self.finish(command, action).await
    }

    /// Runs git in a directory, whose parents are not looked at. Returns what it printed.
    pub(super) async fn run(
        &self,
        directory: &Path,
        action: &'static str,
        arguments: &[&str],
    ) -> Result<String, FetchError> {
        let mut command = self.command(directory, arguments);
        if let Some(parent) = directory.parent() {
            command.env("GIT_CEILING_DIRECTORIES", parent);
        }
        self.finish(command, action).await
    }

    fn command(&self, directory: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        private_root::command_at_real_root(command.as_std_mut(), directory);
        command.env_clear();
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        for (name, value) in &self.settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own: it ends with its helpers, and a terminal's interrupt goes to us alone.
        command.process_group(0).kill_on_drop(true);
        command
    }

    async fn finish(
        &self,
        mut command: Command,
        action: &'static str,
    ) -> Result<String, FetchError> {
        let repository = || self.repository.clone();
        let start = |source| FetchError::GitStart { repository: repository(), source };
        // Not while an image is at `/`: its programs and libraries would be used.
        let _between_swaps = private_root::programs().await;
        command.stdin(private_root::null().map_err(start)?);
        let mut group = Group(command.spawn().map_err(start)?);
        let (stdout, stderr) = (group.0.stdout.take(), group.0.stderr.take());
        let whole = async { tokio::try_join!(keep(stdout), keep(stderr), group.0.wait()) };
        let limit = COMMAND_TIME_MAX;
        let ended = tokio::time::timeout(limit, whole).await;
        let ended =
            ended.map_err(|_| FetchError::TimedOut { url: repository(), what: action, limit });
        let (stdout, stderr, status) = ended?.map_err(start)?;
        if !status.success() {
            return Err(FetchError::Git {
                repository: repository(),
                action,
                message: message(&stderr),
            });
        }
        Ok(String::from_utf8_lossy(&stdout).into_owned())
    }
}

/// A running program and what it started.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // There is an id as long as it has not been waited for, so this is no one else's group.
        let leader = self.0.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
        if let Some(leader) = leader {
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// Reads to the end; keeps the last [`OUTPUT_BYTES_MAX`] bytes or somewhat more.
async fn keep(stream: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let Some(mut stream) = stream else { return Ok(kept) };
    while stream.read_buf(&mut kept).await? > 0 {
        if kept.len() > 2 * OUTPUT_BYTES_MAX {
            kept.drain(..OUTPUT_BYTES_MAX);
        }
    }
    Ok(kept)
}

/// The end of what git said, which is where the reason stands.
fn message(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let text = text.trim();
    let surplus = text.chars().count().saturating_sub(MESSAGE_CHARS_MAX);
    let end: String = text.chars().skip(surplus).collect();
    match printable(&end, MESSAGE_CHARS_MAX) {
        empty if empty.is_empty() => "git gave no reason".to_owned(),
        message => message,
    }
}

/// A program by name on a PATH. Entries that are not absolute are left out: they would mean another directory each time.
fn find_program(path: &OsStr, name: &str) -> Option<PathBuf> {
    std::env::split_paths(path).filter(|directory| directory.is_absolute()).find_map(|directory| {
        let program = directory.join(name);
        let mode = private_root::mode_at_real_root(&program).ok()?;
        let is_file = FileType::from_raw_mode(mode) == FileType::RegularFile;
        (is_file && mode & 0o111 != 0).then_some(program)
    })
}

/// ssh only where the build was given keys.
fn allowed_protocols(ssh: Option<&SshAccess>) -> &'static str {
    if ssh.is_some() { "http:https:git:ssh" } else { "http:https:git" }
}

/// The command line for ssh, which a shell reads: without anyone's configuration, and without questions.
fn ssh_command(ssh: Option<&SshAccess>) -> OsString {
    let mut command = OsString::from(
        "ssh -F /dev/null -o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=15 -o ServerAliveCountMax=4",
    );
    let Some(ssh) = ssh else { return command };
    let mut option = |name: &str, path: &Path| {
        command.push(name);
        command.push(quoted(path));
    };
    for file in &ssh.identity_files {
        option(" -o IdentitiesOnly=yes -i ", file);
    }
    match &ssh.known_hosts {
        Some(file) => option(" -o StrictHostKeyChecking=yes -o UserKnownHostsFile=", file),
        // Nothing to compare with: a key is taken as it comes, as BuildKit does.
        None => {
            option(" -o StrictHostKeyChecking=no -o UserKnownHostsFile=", Path::new("/dev/null"))
        }
    }
    command
}

/// `path` as one word of a POSIX shell.
fn quoted(path: &Path) -> OsString {
    let mut bytes = vec![b'\''];
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'\'' => bytes.extend_from_slice(b"'\\''"),
            byte => bytes.push(*byte),
        }
    }
    bytes.push(b'\'');
    OsStr::from_bytes(&bytes).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_words_of_the_shell() {
        assert_eq!(quoted(Path::new("/a b/$(x)'y")), OsString::from("'/a b/$(x)'\\''y'"));
        let ssh = SshAccess { known_hosts: Some("/k h".into()), ..SshAccess::default() };
        let command = ssh_command(Some(&ssh)).into_string().unwrap();
        assert!(command.ends_with("-o StrictHostKeyChecking=yes -o UserKnownHostsFile='/k h'"));
    }

    #[test]
    fn programs_are_looked_for_in_absolute_directories() {
        assert_eq!(find_program(OsStr::new(".::bin:/nonexistent"), "sh"), None);
        assert_eq!(find_program(OsStr::new("/nonexistent:/bin"), "sh"), Some("/bin/sh".into()));
        assert_eq!(find_program(OsStr::new("/"), "etc"), None);
    }

    #[test]
    fn messages_are_the_end_and_can_not_drive_the_terminal() {
        let text = format!("{}\x1b[2J fatal: here", "x".repeat(5000));
        let message = message(text.as_bytes());
        assert!(message.ends_with("fatal: here") && !message.contains('\x1b'));
        assert_eq!(super::message(b" \n"), "git gave no reason");
    }
}
