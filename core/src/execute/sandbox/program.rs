//! Finding a step's program as runc does, and saying why it can't be executed.

use std::{
    ffi::{OsStr, OsString},
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, accessat, fstat},
    io::Errno,
};

use super::SandboxError;
use crate::sys::{fs::open_directory_handle, resolve::open_in_root};

/// As shells have it.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;

/// Interpreters of interpreters that are followed, as many as the kernel does.
const INTERPRETERS_MAX: usize = 5;

/// Why nothing was executed, and the exit code for it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ExecFailure {
    pub message: String,
    pub exit_code: i32,
}

impl ExecFailure {
    fn new(name: &OsStr, problem: impl std::fmt::Display, exit_code: i32) -> Self {
        ExecFailure { message: format!("exec: {name:?}: {problem}"), exit_code }
    }
}

/// The path to execute. A name without `/` is looked for in the PATH of `environment`.
pub(super) fn look_up(name: &OsStr, environment: &[OsString]) -> Result<PathBuf, ExecFailure> {
    if name.as_bytes().contains(&b'/') {
        let path = PathBuf::from(name);
        return match check(&path) {
            Ok(()) => Ok(path),
            Err(errno) => Err(unusable(name, &path, errno)),
        };
    }
    let missing = || ExecFailure::new(name, "executable file not found in $PATH", NOT_FOUND);
    let mut denied = None;
    for directory in path_of(environment).split(|byte| *byte == b':') {
        let directory = if directory.is_empty() { b"." } else { directory };
        let path = Path::new(OsStr::from_bytes(directory)).join(name);
        match check(&path) {
            Ok(()) if !name.is_empty() => return Ok(path),
            Err(Errno::ACCESS) => denied = Some(unusable(name, &path, Errno::ACCESS)),
            _ => {}
        }
    }
    Err(denied.unwrap_or_else(missing))
}

/// The last PATH wins, as in a process that reads its environment.
fn path_of(environment: &[OsString]) -> &[u8] {
    let mut variables = environment.iter().rev();
    variables.find_map(|variable| variable.as_bytes().strip_prefix(b"PATH=")).unwrap_or_default()
}

/// Whether a path is a file that this user may execute. Magic links (/proc/self/exe, /proc/self/fd/3) are refused:
/// before the exec they lead to the builder.
fn check(path: &Path) -> Result<(), Errno> {
    let base = if path.is_absolute() { "/" } else { "." };
    let base = open_directory_handle(Path::new(base))?;
    let fd = open_in_root(base, path, OFlags::PATH, Mode::empty())?;
    match FileType::from_raw_mode(fstat(&fd)?.st_mode) {
        FileType::Directory => Err(Errno::ISDIR),
        FileType::RegularFile => accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS),
        _ => Err(Errno::ACCESS),
    }
}

fn unusable(name: &OsStr, path: &Path, errno: Errno) -> ExecFailure {
    let meaning = io::Error::from(errno);
    let meaning = meaning.to_string();
    let meaning = meaning.split(" (os error").next().unwrap_or_default().to_lowercase();
    match errno {
        Errno::NOENT | Errno::NOTDIR => {
            ExecFailure::new(name, format!("stat {}: {meaning}", path.display()), NOT_FOUND)
        }
        _ => ExecFailure::new(name, meaning, NOT_EXECUTABLE),
    }
}

/// What a failed exec means.
pub(super) fn explain(path: &Path, error: &io::Error) -> Result<ExecFailure, SandboxError> {
    let name = path.as_os_str();
    match error.raw_os_error() {
        Some(libc::ENOENT) => {
            // The file is there (it was looked up): what it asks for is not.
            Ok(ExecFailure::new(
                name,
                "its interpreter or loader: no such file or directory",
                NOT_FOUND,
            ))
        }
        Some(libc::ENOEXEC) => match foreign_architecture(path) {
            Some(architecture) => Err(SandboxError::ForeignProgram {
                program: path.display().to_string(),
                architecture,
            }),
            None => Ok(ExecFailure::new(name, "exec format error", NOT_EXECUTABLE)),
        },
        _ => Ok(ExecFailure::new(name, error, NOT_EXECUTABLE)),
    }
}

/// The architecture of a program, or of the interpreter that its first line names, if it is not this machine's.
fn foreign_architecture(path: &Path) -> Option<String> {
    let mut path = path.to_owned();
    for _ in 0..INTERPRETERS_MAX {
        let mut head = Vec::new();
        std::fs::File::open(&path).ok()?.take(256).read_to_end(&mut head).ok()?;
        match head.strip_prefix(b"#!") {
            Some(line) => path = PathBuf::from(OsStr::from_bytes(interpreter(line)?)),
            None => return machine(&head).filter(|name| *name != HOST).map(str::to_owned),
        }
    }
    None
}

fn interpreter(line: &[u8]) -> Option<&[u8]> {
    let line = line.split(|byte| *byte == b'\n').next()?;
    line.split(|byte| matches!(byte, b' ' | b'\t')).find(|word| !word.is_empty())
}

#[cfg(target_arch = "x86_64")]
const HOST: &str = "amd64";
#[cfg(target_arch = "aarch64")]
const HOST: &str = "arm64";

/// The architecture of an ELF file (`e_machine`), by Go's names.
fn machine(head: &[u8]) -> Option<&'static str> {
    if !head.starts_with(b"\x7fELF") || head.len() < 20 {
        return None;
    }
    let little_endian = head[5] == 1;
    let number = [head[18], head[19]];
    let number =
        if little_endian { u16::from_le_bytes(number) } else { u16::from_be_bytes(number) };
    Some(match (number, little_endian) {
        (3, _) => "386",
        (8, true) => "mips64le",
        (8, false) => "mips64",
        (20, _) => "ppc",
        (21, true) => "ppc64le",
        (21, false) => "ppc64",
        (22, _) => "s390x",
        (40, _) => "arm",
        (62, _) => "amd64",
        (183, _) => "arm64",
        (243, _) => "riscv64",
        (258, _) => "loong64",
        _ => "another architecture",
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn script(directory: &Path, name: &str, mode: u32, text: &[u8]) -> PathBuf {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn the_first_executable_on_the_path_counts() {
        let scratch = tempfile::tempdir().unwrap();
        let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
        std::fs::create_dir_all(a.join("tool")).unwrap();
        std::fs::create_dir(&b).unwrap();
        let wanted = script(&b, "tool", 0o755, b"#!/bin/sh\n");
        let path = format!("PATH={}:{}", a.display(), b.display());
        let environment = [OsString::from("PATH=/nowhere"), OsString::from(path)];
        assert_eq!(look_up("tool".as_ref(), &environment), Ok(wanted));
        let failure = look_up("other".as_ref(), &environment).unwrap_err();
        assert_eq!(failure.message, "exec: \"other\": executable file not found in $PATH");
        assert_eq!(failure.exit_code, 127);
        assert_eq!(look_up("".as_ref(), &environment).unwrap_err().exit_code, 127);
        assert_eq!(look_up("tool".as_ref(), &[]).unwrap_err().exit_code, 127);
    }

    #[test]
    fn a_path_that_can_not_be_executed_says_why() {
        let failure = look_up("/no/such".as_ref(), &[]).unwrap_err();
        assert_eq!(failure.message, "exec: \"/no/such\": stat /no/such: no such file or directory");
        assert_eq!(failure.exit_code, 127);
        let failure = look_up("/etc".as_ref(), &[]).unwrap_err();
        assert_eq!(
            (failure.message.as_str(), failure.exit_code),
            ("exec: \"/etc\": is a directory", 126)
        );
        let scratch = tempfile::tempdir().unwrap();
        let plain = script(scratch.path(), "plain", 0o644, b"");
        assert_eq!(look_up(plain.as_os_str(), &[]).unwrap_err().exit_code, 126);
        assert_eq!(look_up("/proc/self/exe".as_ref(), &[]).unwrap_err().exit_code, 126);
    }

    #[test]
    fn foreign_programs_are_recognised_through_their_scripts() {
        let scratch = tempfile::tempdir().unwrap();
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(18, 0);
        elf.extend(183_u16.to_le_bytes());
        let program = script(scratch.path(), "p", 0o755, &elf);
        let text = format!("#! {} -x\n", program.display());
        let by_script = script(scratch.path(), "s", 0o755, text.as_bytes());
        let expected = if HOST == "arm64" { None } else { Some("arm64".to_owned()) };
        assert_eq!(foreign_architecture(&program), expected);
        assert_eq!(foreign_architecture(&by_script), expected);
        let text = script(scratch.path(), "t", 0o755, b"no program\n");
        assert_eq!(foreign_architecture(&text), None);
    }
}
