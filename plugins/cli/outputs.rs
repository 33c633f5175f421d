//! What a build leaves besides its image: the digest on standard output, `--iidfile` and `--metadata-file`.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use bareboat_core::transfer::Transferred;
use serde_json::{Value, json};

use crate::engine::{BuildResult, StepResult};

/// Removes what an earlier build wrote, so that a failed build leaves no old result to be taken for its own.
pub fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let is_file = fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
    if is_file {
        fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

/// Writes the image's ID, which is its configuration's digest, with no line break (as Docker does).
pub fn write_iidfile(path: &Path, result: &BuildResult) -> anyhow::Result<()> {
    write(path, result.config_digest.to_string().as_bytes())
}

/// Writes the metadata (docs/metadata-file.md).
pub fn write_metadata(path: &Path, result: &BuildResult) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(&metadata(result, peak_memory_bytes()))?;
    text.push('\n');
    write(path, text.as_bytes())
}

/// Writes what a push, a copy or a join gave, in the keys of a build's metadata.
pub fn write_transfer_metadata(path: &Path, done: &Transferred) -> anyhow::Result<()> {
    let mut metadata = json!({
        "containerimage.digest": done.digest.to_string(),
        "containerimage.descriptor": done.descriptor(),
        "bareboat": {
            "version": env!("CARGO_PKG_VERSION"),
            "peak_memory_bytes": peak_memory_bytes(),
            "bytes_pushed": done.pushed_bytes,
        },
    });
    if !done.names.is_empty() {
        metadata["image.name"] = done.names.join(",").into();
    }
    write(path, format!("{metadata:#}\n").as_bytes())
}

/// Prints the digest.
pub fn print_digest(result: &BuildResult) -> anyhow::Result<()> {
    print_line(&result.digest.to_string())
}

/// Prints a result line on standard output.
pub fn print_line(line: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("write to standard output")
}

/// The metadata as buildx names it, and a `bareboat` object.
fn metadata(result: &BuildResult, peak_memory_bytes: Option<u64>) -> Value {
    let mut metadata = json!({
        "containerimage.digest": result.digest.to_string(),
        "containerimage.config.digest": result.config_digest.to_string(),
        "containerimage.descriptor": result.descriptor,
        "bareboat": {
            "version": env!("CARGO_PKG_VERSION"),
            "sandbox": result.sandbox,
            "steps": result.steps.iter().map(step).collect::<Vec<_>>(),
            "peak_memory_bytes": peak_memory_bytes,
            "bytes_pulled": result.bytes_pulled,
            "bytes_pushed": result.bytes_pushed,
        },
    });
    if !result.names.is_empty() {
        metadata["image.name"] = result.names.join(",").into();
    }
    metadata
}

fn step(step: &StepResult) -> Value {
    json!({
        "instruction": step.instruction,
        "line": step.line,
        "cached": step.cached,
        "seconds": (step.seconds * 1000.0).round() / 1000.0,
        "layer_digest": step.layer.map(|(digest, _)| digest.to_string()),
        "layer_bytes": step.layer.map(|(_, bytes)| bytes),
    })
}

/// The most memory this process ever had (VmHWM of /proc/self/status).
fn peak_memory_bytes() -> Option<u64> {
    high_water_bytes(&fs::read_to_string("/proc/self/status").ok()?)
}

fn high_water_bytes(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Writes a file whole or not at all; what is no regular file (a pipe, /dev/stdout) is written in place.
fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let in_place = fs::metadata(path).is_ok_and(|found| !found.is_file());
    let written = if in_place { fs::write(path, bytes) } else { write_whole(path, bytes) };
    written.with_context(|| format!("write {}", path.display()))
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A link's target is replaced, not the link.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let temporary = temporary_name(&path);
    fs::write(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, &path))
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    name.into()
}

#[cfg(test)]
mod tests {
    use bareboat_core::digest::Digest;

    use super::*;

    fn result() -> BuildResult {
        let digest = Digest::of(b"manifest");
        BuildResult {
            digest,
            config_digest: Digest::of(b"config"),
            descriptor: json!({"digest": digest.to_string(), "size": 3}),
            names: vec!["a:1".into(), "b:2".into()],
            steps: vec![
                StepResult {
                    instruction: "RUN make".into(),
                    line: 3,
                    cached: false,
                    seconds: 1.23456,
                    layer: Some((Digest::of(b"layer"), 9)),
                },
                StepResult {
                    instruction: "ENV A=b".into(),
                    line: 4,
                    cached: true,
                    seconds: 0.0,
                    layer: None,
                },
            ],
            sandbox: Some("overlay".into()),
            bytes_pulled: 5,
            bytes_pushed: 6,
        }
    }

    #[test]
    fn metadata_has_the_documented_keys() {
        let metadata = metadata(&result(), Some(4096));
        assert_eq!(metadata["containerimage.digest"], Digest::of(b"manifest").to_string());
        assert_eq!(metadata["containerimage.config.digest"], Digest::of(b"config").to_string());
        assert_eq!(metadata["containerimage.descriptor"]["size"], 3);
        assert_eq!(metadata["image.name"], "a:1,b:2");
        let ours = &metadata["bareboat"];
        assert_eq!(ours["sandbox"], "overlay");
        assert_eq!((&ours["bytes_pulled"], &ours["bytes_pushed"]), (&5.into(), &6.into()));
        assert_eq!(ours["peak_memory_bytes"], 4096);
        let expected = json!({
            "instruction": "RUN make", "line": 3, "cached": false, "seconds": 1.235,
            "layer_digest": Digest::of(b"layer").to_string(), "layer_bytes": 9,
        });
        assert_eq!(ours["steps"][0], expected);
        assert_eq!(ours["steps"][1]["layer_digest"], Value::Null);
    }

    #[test]
    fn an_image_without_a_name_has_no_name_key() {
        let result = BuildResult { names: Vec::new(), ..result() };
        assert!(metadata(&result, None).get("image.name").is_none());
    }

    #[test]
    fn files_are_written_whole_and_links_are_followed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("id");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("id", &link).unwrap();
        fs::write(&file, "something longer than a digest".repeat(9)).unwrap();
        write_iidfile(&link, &result()).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), Digest::of(b"config").to_string());
        assert!(link.is_symlink());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        write_metadata(Path::new("/dev/null"), &result()).unwrap();
        let error = write_iidfile(&folder.path().join("gone/x"), &result()).unwrap_err();
        assert!(error.to_string().contains("gone/x"));
    }

    #[test]
    fn stale_files_are_removed_and_devices_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("id");
        fs::write(&file, "old").unwrap();
        remove_stale(&file).unwrap();
        remove_stale(&file).unwrap();
        remove_stale(Path::new("/dev/null")).unwrap();
        assert!(!file.exists() && Path::new("/dev/null").exists());
    }

    #[test]
    fn peak_memory_is_read() {
        assert_eq!(high_water_bytes("VmPeak:\t 9 kB\nVmHWM:\t    12 kB\n"), Some(12288));
        assert_eq!(high_water_bytes("VmHWM: many kB"), None);
        assert!(peak_memory_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
