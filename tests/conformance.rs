//! The published numbers are true.

use std::{path::Path, process::Command};

#[test]
fn numbers_in_the_document_are_true() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/conformance.py");
    let status = Command::new("python3").arg(script).arg("--check").status().unwrap();
    assert!(status.success());
}
