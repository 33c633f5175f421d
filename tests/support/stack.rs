//! The namespace in which real AWS names, Docker Hub and GHCR lead to stand-ins (tests/ecr/stack), and what runs in there.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::LazyLock,
};

use serde_json::{Value, json};

use super::build::bareboat;

/// The account whose registry keeps to the specification.
pub const CLEAN: &str = "123456789012.dkr.ecr.us-east-1.amazonaws.com";
/// The account whose registry behaves, and fails, as ECR does.
pub const SHAPED: &str = "111122223333.dkr.ecr.us-east-1.amazonaws.com";
/// What moto gives as the password of the user AWS.
pub const PASSWORD: &str = "123456789012-auth-token";

/// A running stack. It ends with this value, and with the process at the latest.
pub struct Stack {
    child: Child,
    /// Of the process whose namespaces it is.
    pid: u64,
    directory: PathBuf,
}

/// A line of the stack's log.
#[derive(Clone, Debug)]
pub struct Request(pub Value);

impl Stack {
    /// # Panics
    /// If it does not come up, or if it was not tests/run that started the tests.
    pub fn start() -> Stack {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ecr/stack/stack.py");
        let mut child = Command::new("python3")
            .args(["-B", script, "start"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Ok(up) = serde_json::from_str::<Value>(&line) else {
            panic!("the stack does not start: {:?} (start the tests with tests/run)", child.wait());
        };
        let directory = up["directory"].as_str().unwrap().into();
        Stack { child, pid: up["pid"].as_u64().unwrap(), directory }
    }

    /// One for all tests that are content with a scope of their own.
    pub fn shared() -> &'static Stack {
        static SHARED: LazyLock<Stack> = LazyLock::new(Stack::start);
        &SHARED
    }

    /// `ca.pem`, `client.pem`, `client.key` and the logs lie here.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Goes before a command line that is to run in there.
    pub fn prefix(&self) -> Vec<String> {
        let pid = self.pid.to_string();
        ["nsenter", "--target", &pid, "--net", "--mount", "--"].map(str::to_owned).into()
    }

    /// A program in there, without what would lead past the stack.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.wrap(Command::new(program))
    }

    /// The product in there, with no flag and no variable of ours.
    pub fn bareboat(&self) -> Command {
        self.wrap(bareboat())
    }

    /// `command` as it is, but in there.
    pub fn wrap(&self, command: Command) -> Command {
        let prefix = self.prefix();
        let mut inside = Command::new(&prefix[0]);
        inside.args(&prefix[1..]).arg(command.get_program()).args(command.get_args());
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy().to_ascii_uppercase();
            if text.starts_with("AWS_") || text.starts_with("SSL_CERT") || text.ends_with("_PROXY")
            {
                inside.env_remove(&name);
            }
        }
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside
    }

    /// How `service` treats `scope` from now on (tests/ecr/stack/web.py has the rules, each service its switches).
    #[track_caller]
    pub fn set(&self, service: &str, scope: &str, switches: Value, rules: Value) {
        let given = json!({"switches": switches, "rules": rules}).to_string();
        let (status, answer) = self.control("PUT", &format!("/{service}/{scope}"), &given);
        assert_eq!(status, 200, "{answer}");
    }

    /// As if these repositories had been created.
    pub fn create(&self, repositories: &[&str]) {
        let given = json!({"repositories": repositories}).to_string();
        self.control("POST", "/created", &given);
    }

    /// The requests that `service` has had for `scope`; all for an empty one.
    pub fn requests(&self, service: &str, scope: &str) -> Vec<Request> {
        let path = format!("/log?service={service}&scope={scope}");
        let (_, answer) = self.control("GET", &path, "");
        let Value::Array(lines) = serde_json::from_str(&answer).unwrap() else {
            panic!("no list: {answer}");
        };
        lines.into_iter().map(Request).collect()
    }

    /// How many registry tokens the control plane has given.
    pub fn token_calls(&self) -> u64 {
        let (_, answer) = self.control("GET", "/counts", "");
        serde_json::from_str::<Value>(&answer).unwrap()["token_calls"].as_u64().unwrap()
    }

    fn control(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(self.directory.join("control.sock")).unwrap();
        let head = format!("{method} {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all((head + body).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // The end of its input ends it, and it removes its folder.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

impl Request {
    fn text(&self, name: &str) -> &str {
        self.0[name].as_str().unwrap_or_default()
    }

    pub fn method(&self) -> &str {
        self.text("method")
    }

    pub fn path(&self) -> &str {
        self.text("path")
    }

    /// 0 where the connection was closed instead.
    pub fn status(&self) -> u64 {
        self.0["status"].as_u64().unwrap()
    }

    /// The scheme of the credential that came along.
    pub fn authorization(&self) -> Option<&str> {
        self.0["authorization"].as_str()
    }

    /// Names in lower case.
    pub fn headers(&self) -> Vec<&str> {
        self.0["headers"].as_array().unwrap().iter().filter_map(Value::as_str).collect()
    }

    /// `METHOD kind status` with what the request is for: `HEAD blob 404`, `POST upload 202`, `PUT manifest 201`.
    pub fn short(&self) -> String {
        let path = self.path();
        let kind = match path {
            _ if path.contains("/blobs/uploads/") => "upload",
            _ if path.contains("/blobs/") => "blob",
            _ if path.contains("/manifests/") => "manifest",
            _ => path,
        };
        format!("{} {kind} {}", self.method(), self.status())
    }
}
