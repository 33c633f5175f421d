//! The registry as curl sees it: a second opinion on what was pushed.

use std::process::Command;

use serde_json::Value;

use super::{oci, peers};

fn split(reference: &str) -> (&str, &str, &str) {
    let (host, rest) = reference.split_once('/').expect("a reference has a host");
    let (name, tag) = rest.rsplit_once(':').expect("a reference has a tag");
    (host, name, tag)
}

fn curl(url: &str, options: &[&str]) -> Vec<u8> {
    let mut command = Command::new("curl");
    command.args(["-sS", "--fail", "--noproxy", "*"]).args(options).arg(url);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The raw manifest of `HOST/NAME:TAG`, and its digest.
pub fn manifest(reference: &str) -> (String, Value) {
    let (host, name, tag) = split(reference);
    let accept = format!("Accept: {}", oci::MANIFEST);
    let bytes = curl(&format!("http://{host}/v2/{name}/manifests/{tag}"), &["-H", &accept]);
    (oci::digest(&bytes), serde_json::from_slice(&bytes).unwrap())
}

/// [`manifest`], if the registry has one under that name.
pub fn find_manifest(reference: &str) -> Option<(String, Value)> {
    let (host, name, tag) = split(reference);
    let url = format!("http://{host}/v2/{name}/manifests/{tag}");
    let accept = format!("Accept: {}", oci::MANIFEST);
    let mut command = Command::new("curl");
    command.args(["-sS", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code}"]);
    let output = command.args(["-H", &accept, &url]).output().unwrap();
    match String::from_utf8(output.stdout).unwrap().as_str() {
        "200" => Some(manifest(reference)),
        "404" => None,
        status => panic!("{url}: {status}"),
    }
}

/// A blob of the repository of `HOST/NAME:TAG`.
///
/// # Panics
/// If the registry does not have it or its bytes are not its digest's.
pub fn blob(reference: &str, digest: &str) -> Vec<u8> {
    let (host, name, _) = split(reference);
    let bytes = curl(&format!("http://{host}/v2/{name}/blobs/{digest}"), &["-L"]);
    assert_eq!(oci::digest(&bytes), digest);
    bytes
}

/// Pulls the image with skopeo into an OCI layout below `directory`.
pub fn pull(reference: &str, directory: &std::path::Path) -> super::Layout {
    let path = directory.join(format!("pulled-{}", peers::unique()));
    let (from, to) = (format!("docker://{reference}"), format!("oci:{}", path.display()));
    peers::run("skopeo", ["copy", "-q", "--src-tls-verify=false", &from, &to]);
    super::Layout::open(&path)
}
