//! RUN --mount=type=ssh and Git over ssh, with a real agent and the real client programs. Expectations: the Dockerfile
//! reference (RUN --mount=type=ssh), and BuildKit's executor for the socket's place, mode and owner.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::support::{
    Build, FileServer,
    peers::{run, run_command},
    process,
};

/// A running ssh-agent with one key. Dropping it ends it.
struct Agent {
    folder: tempfile::TempDir,
    process: Child,
}

impl Agent {
    fn new() -> Agent {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent");
        let mut command = Command::new("ssh-agent");
        command.arg("-D").arg("-a").arg(&socket).stdin(Stdio::null()).stdout(Stdio::null());
        let process = command.spawn().unwrap();
        process::wait_until(10, "ssh-agent listens", || socket.exists());
        let agent = Agent { folder, process };
        let key = key(agent.folder.path(), "of-agent");
        run_command(
            Command::new("ssh-add").arg("-q").arg(key).env("SSH_AUTH_SOCK", agent.socket()),
        );
        agent
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("agent")
    }

    fn keys(&self) -> String {
        run_command(Command::new("ssh-add").arg("-l").env("SSH_AUTH_SOCK", self.socket()))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn key(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    let text = path.to_str().unwrap();
    run("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", name, "-f", text]);
    path
}

/// A context whose folder `programs` has ssh-add and ssh-keygen with their libraries.
fn with_programs(dockerfile: &str) -> Build {
    let text = format!("FROM {{busybox}}\nCOPY programs/ /\n{dockerfile}");
    let mut build = Build::new(text);
    for program in ["/usr/bin/ssh-add", "/usr/bin/ssh-keygen"] {
        let libraries = run("ldd", [program]);
        let paths = libraries.split_whitespace().filter(|word| word.starts_with('/'));
        for path in paths.chain([program]) {
            build = build.file(&format!("programs{path}"), fs::read(path).unwrap());
            let copy = build.context().join(format!("programs{path}"));
            fs::set_permissions(copy, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
    build
}

#[test]
fn an_agent_is_forwarded_to_the_step_alone() {
    let agent = Agent::new();
    let outcome = with_programs(
        "RUN --mount=type=ssh ssh-add -l > /listed && echo $SSH_AUTH_SOCK > /name && \
         stat -c '%a %u %g' $SSH_AUTH_SOCK > /stat\n\
         RUN --mount=type=ssh ! ssh-add -D && ! ssh-add -x\n\
         RUN test ! -e /run/buildkit && test -z \"$SSH_AUTH_SOCK\"\n",
    )
    .env("SSH_AUTH_SOCK", agent.socket())
    .args(["--ssh", "default"])
    .run()
    .success();
    assert_eq!(outcome.text_of("listed"), agent.keys());
    assert_eq!(outcome.text_of("name"), "/run/buildkit/ssh_agent.0\n");
    assert_eq!(outcome.text_of("stat"), "600 0 0\n");
    assert!(!outcome.tree().has("run/buildkit"), "no trace of the socket is left in the image");
    assert!(agent.keys().contains("of-agent"), "the step could not change the agent");
}

#[test]
fn mode_owner_target_and_id_hold() {
    let agent = Agent::new();
    let outcome = with_programs(
        "USER 1000:1001\nWORKDIR /w\n\
         RUN --mount=type=ssh,id=one,uid=1000,gid=1001,mode=0640,target=/run/my.sock \
         --mount=type=ssh,id=one,mode=0666 \
         ssh-add -l >/dev/null && stat -c '%a %u %g' /run/my.sock /run/buildkit/ssh_agent.1 > /tmp/stat && \
         echo $SSH_AUTH_SOCK >> /tmp/stat && SSH_AUTH_SOCK=/run/buildkit/ssh_agent.1 ssh-add -l\n\
         RUN --mount=type=ssh,id=one ! ssh-add -l\n",
    )
    .args(["--ssh", &format!("one={}", agent.socket().display())])
    .run()
    .success();
    assert_eq!(outcome.text_of("tmp/stat"), "640 1000 1001\n666 0 0\n/run/my.sock\n");
}

#[test]
fn key_files_are_an_agent() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (key(folder.path(), "first"), key(folder.path(), "second"));
    let public = fs::read_to_string(first.with_extension("pub")).unwrap();
    let build = with_programs(
        "COPY first.pub text /\n\
         RUN --mount=type=ssh,id=deploy,required=true ssh-add -L > /listed && \
         ssh-keygen -Y sign -f /first.pub -n file /text && ssh-keygen -Y check-novalidate -n file -s /text.sig < /text\n",
    )
    .file("first.pub", &public)
    .file("text", "text\n")
    .args(["--ssh", &format!("deploy={},{}", first.display(), second.display())]);
    let outcome = build.run().success();
    let listed = outcome.text_of("listed");
    assert_eq!(listed.lines().count(), 2);
    assert!(listed.contains(public.trim_end()), "{listed}");
    // Which keys were forwarded is part of no cache key.
    let again = build.args(["--ssh", &format!("default={}", second.display())]).run().success();
    assert_eq!(again.executed(), [0; 0]);
}

#[test]
fn without_an_agent_the_mount_is_empty_or_refused() {
    let text = "FROM {busybox}\nRUN --mount=type=ssh test ! -e \"$SSH_AUTH_SOCK\" && echo $SSH_AUTH_SOCK > /name\n";
    let outcome = Build::new(text).run().success();
    assert_eq!(outcome.text_of("name"), "/run/buildkit/ssh_agent.0\n");
    let required = Build::new("FROM {busybox}\nRUN --mount=type=ssh,id=k,required=true true\n");
    required.run().failure(1, &["no SSH key \"k\"", "Dockerfile:2", "--ssh k"]);
    Build::new("FROM {busybox}\nRUN --mount=type=ssh,source=x true\n")
        .run()
        .failure(3, &["ssh does not support source"]);
}

#[test]
fn keys_that_cannot_be_used_are_refused_before_any_step() {
    let folder = tempfile::tempdir().unwrap();
    let locked = folder.path().join("locked");
    let path = locked.to_str().unwrap();
    run("ssh-keygen", ["-q", "-t", "ed25519", "-N", "secret", "-f", path]);
    let of = |value: String| Build::new("FROM scratch\nRUN x\n").args(["--ssh", &value]).run();
    of(format!("default={path}")).failure(2, &["passphrase", "ssh-add"]);
    of(format!("default={path}.pub")).failure(2, &["no private key"]);
    of("default=/nonexistent".into()).failure(2, &["/nonexistent"]);
}

#[test]
fn a_killed_build_leaves_no_socket_and_an_unhurt_agent() {
    let agent = Agent::new();
    let build = with_programs("RUN --mount=type=ssh ssh-add -l && echo ready && sleep 600\n")
        .env("SSH_AUTH_SOCK", agent.socket())
        .args(["--ssh", "default"]);
    let running = build.spawn();
    let needle = build.state_directory().join("work");
    let sockets = || fs::read_to_string("/proc/net/unix").unwrap();
    let ours = |text: String| text.lines().any(|line| line.contains("ssh_agent.0"));
    process::wait_until(60, "the step sleeps", || {
        process::descendants(running.pid()).iter().any(|pid| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == b"sleep\x00600\x00")
        })
    });
    assert!(ours(sockets()));
    running.signal(rustix::process::Signal::TERM);
    running.wait().failure(143, &[]);
    assert_eq!(fs::read_dir(needle).unwrap().count(), 0);
    assert!(agent.keys().contains("of-agent"));
}

#[test]
fn git_over_ssh_uses_the_agent() {
    let server = FileServer::new();
    let bare = server.repository(
        "r.git",
        "printf 'FROM scratch\\nCOPY file /file\\n' > Dockerfile; echo one > file; git add .; git commit -qm one",
    );
    // In ssh's place: a program that notes the agent, and is the other end.
    let programs = tempfile::tempdir().unwrap();
    let note = programs.path().join("note");
    let script = format!(
        "#!/bin/sh\necho \"$SSH_AUTH_SOCK\" > '{}'\nexec git-upload-pack '{}'\n",
        note.display(),
        bare.display()
    );
    fs::write(programs.path().join("ssh"), script).unwrap();
    fs::set_permissions(programs.path().join("ssh"), fs::Permissions::from_mode(0o755)).unwrap();
    let agent = Agent::new();
    let path = format!("{}:{}", programs.path().display(), std::env::var("PATH").unwrap());
    let build = |source: &str| Build::new("").source(source).env("PATH", &path);
    for source in ["git@host.test:r.git", "ssh://git@host.test/r.git"] {
        let outcome = build(source)
            .env("SSH_AUTH_SOCK", agent.socket())
            .args(["--ssh", "default"])
            .run()
            .success();
        assert_eq!(outcome.text_of("file"), "one\n");
        assert_eq!(fs::read_to_string(&note).unwrap().trim(), agent.socket().to_str().unwrap());
        fs::remove_file(&note).unwrap();
        build(source).run().failure(2, &["ssh", "--ssh default"]);
        assert!(!note.exists());
    }
}
