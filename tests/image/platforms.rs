//! An index of images for several platforms, pushed and read back.

use serde_json::Value;

use crate::support::{Build, Peers, peers};

const DOCKERFILE: &str = "FROM scratch
ARG TARGETARCH
COPY common $TARGETARCH /
LABEL arch=$TARGETARCH
";

#[test]
fn two_platforms_become_an_index() {
    let reference = Peers::get().fresh_reference("platforms");
    let build = Build::new(DOCKERFILE)
        .file("common", "for both\n")
        .file("amd64/only", "amd64\n")
        .file("arm64/only", "arm64\n")
        .without_output()
        .args(["--platform", "linux/amd64,linux/arm64", "-t", &reference, "--push"]);
    let outcome = build.run().success();
    let index: Value = serde_json::from_str(&peers::run(
        "skopeo",
        ["inspect", "--tls-verify=false", "--raw", &format!("docker://{reference}")],
    ))
    .unwrap();
    assert_eq!(index["mediaType"], "application/vnd.oci.image.index.v1+json");
    let architectures: Vec<&str> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["platform"]["architecture"].as_str().unwrap())
        .collect();
    assert_eq!(architectures, ["amd64", "arm64"]);
    assert_eq!(
        outcome.metadata()["containerimage.digest"].as_str().unwrap(),
        outcome.stdout.trim()
    );
    for architecture in architectures {
        let inspected = peers::run(
            "skopeo",
            [
                "inspect",
                "--tls-verify=false",
                "--override-arch",
                architecture,
                &format!("docker://{reference}"),
            ],
        );
        let inspected: Value = serde_json::from_str(&inspected).unwrap();
        assert_eq!(inspected["Labels"]["arch"], architecture);
        assert_eq!(inspected["Layers"].as_array().unwrap().len(), 1);
    }
}
