//! Repositories for tests, and servers for them.

use std::{
    fs,
    io::Write,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::registry::testing::{Fake, Reply, Request};

/// A folder of bare repositories, each made by a script in a checkout of it.
pub(super) struct Repositories(pub(super) tempfile::TempDir);

/// Commits one and two on main, dev from one, tags v1 (one) and v2 (annotated, two); `one` is no tip.
pub(super) const STORY: &str = r#"
    echo one > README; mkdir -p sub/deep; echo inner > sub/inner; echo x > sub/deep/x
    printf '#!/bin/sh\n' > run.sh; chmod 755 run.sh; ln -s README link; ln -s sub to-sub; ln -s / to-root
    git add .; git commit -qm zero; echo 1 > README; git commit -qam one; git tag v1
    git checkout -qb dev; echo dev > README; git commit -qam dev
    git checkout -q main; echo two > README; git commit -qam two; git tag -a -m v2 v2; git tag dev HEAD~1
"#;

impl Repositories {
    pub(super) fn new() -> Self {
        Repositories(tempfile::tempdir().unwrap())
    }

    pub(super) fn of_story() -> Self {
        let repositories = Repositories::new();
        repositories.add("repo.git", STORY);
        repositories
    }

    pub(super) fn add(&self, name: &str, script: &str) -> PathBuf {
        let bare = self.0.path().join(name);
        let work = tempfile::tempdir().unwrap();
        let script = format!(
            "set -e; git init -q -b main .; {script}\n git clone -q --bare . '{}'",
            bare.display()
        );
        shell(work.path(), &script);
        bare
    }

    pub(super) fn rev(&self, repository: &str, name: &str) -> String {
        shell(&self.0.path().join(repository), &format!("git rev-parse '{name}'"))
    }

    /// Serves them by git's own protocol, for as long as the test's process lives.
    pub(super) fn daemon(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let base = format!("--base-path={}", self.0.path().display());
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let mut daemon = Command::new("git");
                daemon.args(["daemon", "--inetd", "--export-all", &base]).stderr(Stdio::null());
                let (input, output): (OwnedFd, OwnedFd) =
                    (stream.try_clone().unwrap().into(), stream.into());
                daemon.stdin(input).stdout(output).status().unwrap();
            }
        });
        address
    }

    /// Serves them by git's own CGI program at `/`.
    pub(super) async fn serve(&self) -> Fake {
        let root = self.0.path().to_owned();
        Fake::start(move |request, _| http_backend(&root, request)).await
    }
}

pub(super) fn shell(directory: &Path, script: &str) -> String {
    let output = Command::new("sh")
        .args(["-c", script])
        .current_dir(directory)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .envs([
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("HOME", "/dev/null"),
        ])
        .envs([("GIT_AUTHOR_NAME", "A"), ("GIT_AUTHOR_EMAIL", "a@a.test")])
        .envs([("GIT_COMMITTER_NAME", "A"), ("GIT_COMMITTER_EMAIL", "a@a.test")])
        .envs([("GIT_AUTHOR_DATE", "1000000000 +0000"), ("GIT_COMMITTER_DATE", "1000000000 +0000")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

pub(super) fn http_backend(root: &Path, request: &Request) -> Reply {
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let mut child = Command::new("git")
        .arg("http-backend")
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("GIT_PROJECT_ROOT", root)
        .envs([("GIT_HTTP_EXPORT_ALL", "1"), ("GIT_CONFIG_NOSYSTEM", "1"), ("HOME", "/dev/null")])
        .envs([("PATH_INFO", path), ("QUERY_STRING", query), ("REQUEST_METHOD", &request.method)])
        .env("CONTENT_TYPE", request.header("content-type"))
        .env("HTTP_CONTENT_ENCODING", request.header("content-encoding"))
        .env("GIT_PROTOCOL", request.header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(&request.body);
    let output = child.wait_with_output().unwrap().stdout;
    let end = output.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(output[..end].to_vec()).unwrap();
    let mut reply = Reply::new(200).body(&output[end + 4..]);
    for (name, value) in head.lines().filter_map(|line| line.split_once(": ")) {
        match name {
            "Status" => reply.status = value[..3].parse().unwrap(),
            _ => reply = reply.header(name, value),
        }
    }
    reply
}

/// Files as they are: the protocol that knows neither depth nor negotiation.
pub(super) fn dumb(root: &Path, request: &Request) -> Reply {
    let path = request.path.split('?').next().unwrap();
    match fs::read(root.join(path.trim_start_matches('/'))) {
        Ok(bytes) => Reply::new(200).body(bytes),
        Err(_) => Reply::new(404),
    }
}

/// A directory with a program in it. Another process writes it: a descriptor of this one might be inherited by a child
/// of another test, and a file that is open for writing can't be run.
pub(super) fn program(name: &str, script: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let write = format!("cat > {name} <<'END'\n#!/bin/sh\n{script}\nEND\nchmod 755 {name}");
    shell(directory.path(), &write);
    directory
}
