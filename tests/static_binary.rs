//! The binary is one static file that needs nothing around it.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::support::{Peers, build::binary, http, peers, process};

#[test]
fn it_asks_for_no_interpreter_and_no_library() {
    let headers = peers::run("readelf", ["-lW", binary().to_str().unwrap()]);
    assert!(!headers.contains("INTERP"), "{headers}");
    let dynamic = peers::run("readelf", ["-dW", binary().to_str().unwrap()]);
    assert!(!dynamic.contains("(NEEDED)"), "{dynamic}");
}

/// The binary, started in `root` with nothing in its environment.
fn in_root(root: &tempfile::TempDir) -> Command {
    let mut command = Command::new("chroot");
    let path = std::env::var_os("PATH").unwrap();
    command.arg(root.path()).arg("/bareboat").env_clear().env("PATH", path);
    command
}

/// A root with nothing in it but the binary.
fn empty_root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::copy(binary(), root.path().join("bareboat")).unwrap();
    root
}

#[test]
fn it_starts_in_an_empty_root() {
    let root = empty_root();
    let version = peers::run_command(in_root(&root).arg("--version"));
    assert!(version.starts_with("bareboat "), "{version}");
}

#[test]
fn it_builds_in_an_empty_root() {
    let root = empty_root();
    fs::create_dir(root.path().join("context")).unwrap();
    fs::write(root.path().join("context/Dockerfile"), "FROM scratch\nCOPY Dockerfile /made\n")
        .unwrap();
    let arguments = ["build", "--state-dir", "/state", "-o", "type=oci,dest=/out,tar=false"];
    peers::run_command(in_root(&root).args(arguments).arg("/context"));
    assert!(crate::support::Layout::open(&root.path().join("out")).tree().has("made"));
}

/// docker-registry with TLS, under a name that only the root's own etc/hosts knows.
struct TlsRegistry {
    directory: tempfile::TempDir,
    child: Child,
    port: u16,
}

const NAME: &str = "registry.bareboat.test";

impl TlsRegistry {
    fn start() -> TlsRegistry {
        let directory = tempfile::tempdir().unwrap();
        make_certificate(directory.path());
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let path = directory.path().display();
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {path}/data}}}}\n\
             http: {{addr: '127.0.0.1:{port}', tls: {{certificate: {path}/cert.pem, key: {path}/key.pem}}}}\n"
        );
        fs::write(directory.path().join("config.yml"), config).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(directory.path().join("config.yml"));
        let child = command
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        process::wait_until(20, "the registry listens", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        TlsRegistry { directory, child, port }
    }
}

impl Drop for TlsRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn make_certificate(directory: &Path) {
    let path = |name: &str| directory.join(name).display().to_string();
    let subject = format!("/CN={NAME}");
    let names = format!("subjectAltName=DNS:{NAME}");
    peers::run(
        "openssl",
        [
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            &subject,
            "-addext",
            &names,
            // rustls takes no CA for a server's certificate.
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-keyout",
            &path("key.pem"),
            "-out",
            &path("cert.pem"),
        ],
    );
}

#[test]
fn it_resolves_names_and_speaks_tls_in_an_empty_root() {
    let (root, registry) = (empty_root(), TlsRegistry::start());
    let at = |name: &str| root.path().join(name);
    fs::create_dir_all(at("etc")).unwrap();
    fs::create_dir_all(at("context")).unwrap();
    fs::write(at("etc/hosts"), format!("127.0.0.1 {NAME}\n")).unwrap();
    fs::copy(registry.directory.path().join("cert.pem"), at("ca.pem")).unwrap();
    fs::write(at("context/Dockerfile"), "FROM scratch\nCOPY Dockerfile /made\n").unwrap();
    let reference = format!("{NAME}:{}/made:latest", registry.port);
    let arguments = ["build", "--state-dir", "/state", "-t", &reference, "--push", "/context"];
    peers::run_command(in_root(&root).args(arguments).env("SSL_CERT_FILE", "/ca.pem"));
    let address = format!("{NAME}:{}:127.0.0.1", registry.port);
    let url = format!("https://{NAME}:{}/v2/made/manifests/latest", registry.port);
    let ca = registry.directory.path().join("cert.pem").display().to_string();
    let manifest = peers::run(
        "curl",
        [
            "-sSf",
            "--noproxy",
            "*",
            "--cacert",
            &ca,
            "--resolve",
            &address,
            "-H",
            "Accept: application/vnd.oci.image.manifest.v1+json",
            &url,
        ],
    );
    assert!(manifest.contains("\"layers\""), "{manifest}");
}

#[test]
fn an_unknown_certificate_is_refused() {
    let registry = TlsRegistry::start();
    let build =
        crate::support::Build::new("FROM scratch\nCOPY Dockerfile /made\n").without_output();
    let reference = format!("localhost:{}/made:latest", registry.port);
    build.args(["-t", &reference, "--push"]).run().failure(5, &["certificate"]);
}

#[test]
fn the_binary_pushed_by_it_runs_under_podman() {
    let reference = Peers::get().fresh_reference("self");
    let build = crate::support::Build::new(
        "FROM scratch\nCOPY --chmod=0755 bareboat /\nRUN [\"/bareboat\", \"--version\"]\nENTRYPOINT [\"/bareboat\"]\n",
    );
    fs::copy(binary(), build.context().join("bareboat")).unwrap();
    build.args(["-t", &reference, "--push"]).without_output().run().success();
    http::manifest(&reference);
    let version = peers::Storage::new().podman_run(&reference, &[], &["--version"]);
    assert!(version.starts_with("bareboat "), "{version}");
}
