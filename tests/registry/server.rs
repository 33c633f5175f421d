//! Debian's docker-registry on a free loopback port, in a directory of its own.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How a registry is started.
#[derive(Default)]
pub struct Options<'a> {
    /// A user and a password that it asks for.
    pub login: Option<(&'a str, &'a str)>,
    /// Certificate and key.
    pub tls: Option<(&'a Path, &'a Path)>,
}

pub struct Server {
    child: Child,
    pub address: String,
    directory: tempfile::TempDir,
}

impl Server {
    /// Fails loudly where the program is not installed.
    pub fn start(options: &Options<'_>) -> Self {
        for _ in 0..5 {
            if let Some(server) = Server::try_start(options) {
                return server;
            }
        }
        panic!("docker-registry does not start");
    }

    fn try_start(options: &Options<'_>) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let config = directory.path().join("config.yml");
        fs::write(&config, config_text(directory.path(), &address, options)).unwrap();
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("docker-registry must be installed: apt-get install docker-registry");
        let mut server = Server { child, address, directory };
        server.wait().then_some(server)
    }

    fn wait(&mut self) -> bool {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            if TcpStream::connect(&self.address).is_ok() {
                return true;
            }
            if self.child.try_wait().unwrap().is_some() {
                // Somebody else took the port.
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("docker-registry does not listen: {}", self.log());
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// Where it keeps what was pushed.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The requests so far, as `METHOD path status`.
    pub fn requests(&self) -> Vec<String> {
        let access = self.log();
        let lines = access.lines().filter(|line| line.contains("HTTP/1.1\""));
        lines
            .map(|line| {
                let mut parts = line.splitn(3, '"').skip(1);
                let request = parts.next().unwrap().trim_end_matches(" HTTP/1.1");
                let status = parts.next().unwrap().split_whitespace().next().unwrap();
                format!("{request} {status}")
            })
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config_text(directory: &Path, address: &str, options: &Options<'_>) -> String {
    let data = directory.join("data");
    let mut text = format!(
        "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: false\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: {address}\n",
        data.display()
    );
    if let Some((certificate, key)) = options.tls {
        text += &format!(
            "  tls:\n    certificate: {}\n    key: {}\n",
            certificate.display(),
            key.display()
        );
    }
    if let Some((user, password)) = options.login {
        let file = directory.join("htpasswd");
        fs::write(&file, htpasswd(user, password)).unwrap();
        text += &format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display());
    }
    text
}

fn htpasswd(user: &str, password: &str) -> Vec<u8> {
    let output = Command::new("htpasswd")
        .args(["-Bbn", user, password])
        .output()
        .expect("htpasswd must be installed: apt-get install apache2-utils");
    assert!(output.status.success());
    output.stdout
}

/// A certificate authority and a certificate for 127.0.0.1 by it.
pub struct Certificates {
    pub directory: tempfile::TempDir,
}

impl Certificates {
    pub fn make() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let make = |arguments: &str| {
            let output = Command::new("openssl")
                .args(arguments.split(' '))
                .current_dir(directory.path())
                .output()
                .expect("openssl must be installed: apt-get install openssl");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        make(&format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=test-ca"));
        make(&format!("req {key} -keyout server.key -out server.csr -subj /CN=127.0.0.1"));
        let extension = "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n";
        fs::write(directory.path().join("ext"), extension).unwrap();
        make(
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 2 -extfile ext",
        );
        Certificates { directory }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}
