//! Docker's credential helpers: `docker-credential-<name> get`, the host on stdin, JSON on stdout.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::fs::FileType;

use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
};

use super::keychain::CredentialKind;
use crate::{registry::error::printable, secret::Secret, sys::private_root};

/// Far above any answer of a helper.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

/// Which programs may be run for credentials, and with what around them.
#[derive(Clone, Debug)]
pub struct Helpers {
    /// Where to look for `docker-credential-*`, in order: the caller's PATH.
    pub path: Vec<PathBuf>,
    /// The whole environment of the helper.
    pub environment: Vec<(OsString, OsString)>,
    pub timeout: Duration,
}

impl Helpers {
    pub fn new(path: Vec<PathBuf>, environment: Vec<(OsString, OsString)>) -> Self {
        Helpers { path, environment, timeout: Duration::from_secs(30) }
    }

    /// Asks the helper `name` for `server`. `None`: it knows no credential.
    pub(super) async fn get(
        &self,
        name: &str,
        server: &str,
    ) -> Result<Option<CredentialKind>, String> {
        // Not while an image is at `/`: its programs could be found.
        let _between_swaps = private_root::programs().await;
        let program = self.find(name)?;
        let (success, output) = self.run(&program, server).await?;
        if !success {
            let text = printable(&String::from_utf8_lossy(&output), 200);
            if text.contains("credentials not found") {
                return Ok(None);
            }
            return Err(format!("{} failed: {text}", program.display()));
        }
        read(&output).map_err(|reason| format!("{}: {reason}", program.display()))
    }

    fn find(&self, name: &str) -> Result<PathBuf, String> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.contains("..") || !name.bytes().all(good) {
            return Err(format!(
                "{:?} is not the name of a credential helper",
                printable(name, 80)
            ));
        }
        let program = format!("docker-credential-{name}");
        let absolute = self.path.iter().filter(|directory| directory.is_absolute());
        let mut candidates = absolute.map(|directory| directory.join(&program));
        candidates
            .find(|candidate| is_file(candidate))
            .ok_or_else(|| format!("the program {program} is not installed"))
    }

    async fn run(&self, program: &PathBuf, server: &str) -> Result<(bool, Vec<u8>), String> {
        let failed = |error: std::io::Error| format!("{}: {error}", program.display());
        let mut command = Command::new(program);
        private_root::command_at_real_root(command.as_std_mut(), Path::new("/"));
        let mut child = command
            .arg("get")
            .env_clear()
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Helpers write secrets there when they debug.
            .stderr(private_root::null().map_err(failed)?)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let talk = tokio::time::timeout(self.timeout, talk(&mut child, server)).await;
        let result = match talk {
            Ok(Ok(result)) => return Ok(result),
            Ok(Err(error)) => failed(error),
            Err(_) => {
                format!("{} took longer than {} seconds", program.display(), self.timeout.as_secs())
            }
        };
        end(&mut child).await;
        Err(result)
    }
}

fn is_file(path: &Path) -> bool {
    let mode = private_root::mode_at_real_root(path);
    mode.is_ok_and(|mode| FileType::from_raw_mode(mode) == FileType::RegularFile)
}

async fn talk(child: &mut Child, server: &str) -> std::io::Result<(bool, Vec<u8>)> {
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read its input may still answer.
        let _ = stdin.write_all(format!("{server}\n").as_bytes()).await;
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(OUTPUT_BYTES_MAX + 1).read_to_end(&mut output).await?;
    }
    if output.len() as u64 > OUTPUT_BYTES_MAX {
        return Err(std::io::Error::other("its answer is larger than 1 MiB"));
    }
    Ok((child.wait().await?.success(), output))
}

/// Kills the helper with what it started.
async fn end(child: &mut Child) {
    let group = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
    if let Some(group) = group {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.wait().await;
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

fn read(output: &[u8]) -> Result<Option<CredentialKind>, String> {
    let answer: HelperAnswer = serde_json::from_slice(output)
        .map_err(|_| "its answer is not the JSON object that helpers print".to_owned())?;
    if answer.secret.is_empty() {
        return Ok(None);
    }
    let secret = Secret::new(answer.secret);
    Ok(Some(match answer.username.as_str() {
        "<token>" => CredentialKind::IdentityToken(secret),
        _ => CredentialKind::Password { username: answer.username, password: secret },
    }))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, time::Instant};

    use super::*;

    fn helpers(script: &str) -> (tempfile::TempDir, Helpers) {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("docker-credential-test");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let environment = vec![("PATH".into(), "/usr/bin:/bin".into())];
        let mut helpers = Helpers::new(vec![directory.path().to_owned()], environment);
        helpers.timeout = Duration::from_secs(5);
        (directory, helpers)
    }

    async fn get(script: &str) -> Result<Option<CredentialKind>, String> {
        let (_directory, helpers) = helpers(script);
        helpers.get("test", "reg.example").await
    }

    #[tokio::test]
    async fn answers() {
        let password = get(r#"read host; echo "{\"Username\":\"u\",\"Secret\":\"$host-$1\"}""#);
        let expected = CredentialKind::Password {
            username: "u".into(),
            password: Secret::new("reg.example-get".into()),
        };
        assert_eq!(password.await.unwrap(), Some(expected));
        let token = get(r#"echo '{"Username":"<token>","Secret":"t"}'"#).await.unwrap();
        assert_eq!(token, Some(CredentialKind::IdentityToken(Secret::new("t".into()))));
        let none = get("echo 'credentials not found in native keychain'; exit 1").await;
        assert_eq!(none.unwrap(), None);
    }

    #[tokio::test]
    async fn failures_are_shown_without_stderr() {
        let error = get("echo hunter2 >&2; echo 'no such session'; exit 1").await.unwrap_err();
        assert!(error.contains("no such session") && !error.contains("hunter2"), "{error}");
        let error = get("echo '{\"Secret\": hunter2'").await.unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
        assert!(get("head -c 10485760 /dev/zero").await.unwrap_err().contains("1 MiB"));
    }

    #[tokio::test]
    async fn a_hanging_helper_is_killed_with_its_children() {
        let (_directory, mut helpers) = helpers("sleep 300 & sleep 300");
        helpers.timeout = Duration::from_millis(300);
        let start = Instant::now();
        assert!(helpers.get("test", "r").await.unwrap_err().contains("longer"));
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[tokio::test]
    async fn names_and_environment() {
        let (_directory, helpers) = helpers("exit 0");
        for name in ["../test", "a/b", "..", "", "test;id", "missing"] {
            assert!(helpers.get(name, "r").await.is_err(), "{name}");
        }
        let script = r#"echo "{\"Username\":\"u\",\"Secret\":\"x${HOME:-none}\"}""#;
        let Some(CredentialKind::Password { password, .. }) = get(script).await.unwrap() else {
            panic!("no password");
        };
        assert_eq!(password.expose(), "xnone");
    }
}
