//! A container as Docker makes it, without its seccomp filter: an overlay root, the runtime's mounts, the 14 default
//! capabilities, a PID namespace. Cases run inside of it as the builder.

use std::{
    collections::BTreeMap,
    io::Write,
    os::unix::fs::FileTypeExt,
    process::{ExitCode, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use bareboat_core::{
    execute::sandbox::{StepNote, SwapRoot},
    sys::{
        credentials::{Capabilities, drop_bounding_except, set_capabilities},
        namespace::{change_root, make_mounts_private, unshare},
        process::{Ended, Fork, fork_single_threaded, wait},
    },
};
use rustix::{
    mount::{MountFlags, mount, mount_bind, mount_bind_recursive},
    thread::UnshareFlags,
};

use super::{bench::*, namespace::is_in_a_namespace};

/// Docker's default capabilities.
const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;
const SETPCAP: u64 = 1 << 8;
const SYS_CHROOT: u64 = 1 << 18;

/// The side directory in the container.
pub const SIDE: &str = "/.bareboat";
pub const TREE: &str = "work/1/tree";

static INSIDE: AtomicBool = AtomicBool::new(false);

/// Runs a case in a container of its own: from outside this starts one, inside it runs `body`.
pub fn in_container(name: &str, body: impl FnOnce()) {
    in_container_with(name, "default", body);
}

pub fn in_container_with(name: &str, kind: &str, body: impl FnOnce()) {
    if INSIDE.load(Ordering::Relaxed) {
        return body();
    }
    if is_in_a_namespace() {
        // A container's own file systems take the machine's root.
        return;
    }
    let directory = world_readable(tempfile::tempdir().unwrap());
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["in-container", name, kind])
        .arg(directory.path())
        .arg(base())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stdout.ends_with("done\n"), "{stdout}{stderr}");
}

/// The process that was started for it.
pub fn enter(arguments: &[String], cases: &[(&str, fn())]) -> ExitCode {
    let [name, kind, directory, base] = arguments else { panic!("{arguments:?}") };
    let case = cases.iter().find(|(known, _)| known == name).unwrap().1;
    unshare(UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWIPC).unwrap();
    make_mounts_private().unwrap();
    match fork_single_threaded().unwrap() {
        Fork::Parent(init) => code(wait(init).unwrap().ended),
        Fork::Child => {
            build(kind, Path::new(directory), Path::new(base));
            let mask = match kind.as_str() {
                "no-setpcap" => DEFAULT_CAPABILITIES & !SETPCAP,
                "no-chroot" => DEFAULT_CAPABILITIES & !SYS_CHROOT,
                _ => DEFAULT_CAPABILITIES,
            };
            drop_bounding_except(mask).unwrap();
            let sets = Capabilities { effective: mask, permitted: mask, inheritable: 0 };
            set_capabilities(sets).unwrap();
            be_init(case)
        }
    }
}

fn code(ended: Ended) -> ExitCode {
    match ended {
        Ended::Code(0) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// The job's first process, which outlives the builder.
fn be_init(case: fn()) -> ExitCode {
    match fork_single_threaded().unwrap() {
        Fork::Parent(builder) => {
            // As a job's shell is, which has the job's secrets in its environment.
            let dumpable = rustix::process::DumpableBehavior::Dumpable;
            rustix::process::set_dumpable_behavior(dumpable).unwrap();
            code(wait(builder).unwrap().ended)
        }
        Fork::Child => {
            INSIDE.store(true, Ordering::Relaxed);
            let result = std::panic::catch_unwind(case);
            println!("{}", if result.is_ok() { "done" } else { "failed" });
            std::io::stdout().flush().unwrap();
            if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
    }
}

/// Mounts everything and changes the root.
fn build(kind: &str, directory: &Path, base: &Path) {
    let below = |name: &str| {
        let path = directory.join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let (lower, upper, work, merged) = (below("l"), below("u"), below("w"), below("m"));
    // What Docker's own layer has, and a job's image.
    for name in ["etc", "dev", "proc", "sys", "opt/job", "tmp"] {
        fs::create_dir_all(lower.join(name)).unwrap();
    }
    for name in ["etc/hosts", "etc/resolv.conf", "etc/hostname"] {
        fs::write(lower.join(name), "").unwrap();
    }
    fs::write(lower.join("etc/passwd"), "job:x:0:0::/:/bin/sh\n").unwrap();
    fs::write(lower.join("opt/job/file"), "the job's own").unwrap();
    let options = format!(
        "lowerdir={},upperdir={},workdir={},redirect_dir=off,index=off",
        lower.display(),
        upper.display(),
        work.display()
    );
    new_mount("overlay", &merged, &options);
    mount_runtime(directory, &merged);
    if kind == "volumes" {
        for name in ["builds", "workspace"] {
            fs::create_dir(merged.join(name)).unwrap();
            new_mount("tmpfs", &merged.join(name), "mode=755");
        }
    }
    let side = merged.join(SIDE.trim_start_matches('/'));
    let tree = side.join(TREE);
    fs::create_dir_all(tree.parent().unwrap()).unwrap();
    fs::set_permissions(&side, PermissionsExt::from_mode(0o700)).unwrap();
    assert!(Command::new("cp").arg("-a").arg(base).arg(&tree).status().unwrap().success());
    // A base that brings none of them.
    for name in ["proc", "sys", "dev"] {
        fs::remove_dir(tree.join(name)).unwrap();
    }
    fs::write(tree.join("etc/hosts"), "the image's own\n").unwrap();
    fs::write(merged.join("job-made"), "at run time").unwrap();
    let root = rustix::fs::open(
        &merged,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY,
        rustix::fs::Mode::empty(),
    );
    change_root(root.unwrap()).unwrap();
}

fn new_mount(kind: &str, target: &Path, options: &str) {
    let options = std::ffi::CString::new(options).unwrap();
    mount(kind, target, kind, MountFlags::empty(), options.as_c_str()).unwrap();
}

fn mount_runtime(directory: &Path, merged: &Path) {
    new_mount("proc", &merged.join("proc"), "");
    mount_bind_recursive("/sys", merged.join("sys")).unwrap();
    let dev = merged.join("dev");
    new_mount("tmpfs", &dev, "mode=755");
    for name in ["null", "zero", "urandom"] {
        fs::write(dev.join(name), "").unwrap();
        mount_bind(Path::new("/dev").join(name), dev.join(name)).unwrap();
    }
    for (name, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
        symlink(format!("/proc/self/fd{target}"), dev.join(name)).unwrap();
    }
    fs::create_dir(dev.join("shm")).unwrap();
    new_mount("tmpfs", &dev.join("shm"), "mode=1777");
    for (name, text) in [
        ("hosts", "127.0.0.1 localhost\n"),
        ("resolv.conf", "nameserver 192.0.2.7\n"),
        ("hostname", "box\n"),
    ] {
        let file = directory.join(name);
        fs::write(&file, text).unwrap();
        mount_bind(&file, merged.join("etc").join(name)).unwrap();
    }
}

/// A step on the stage's tree.
pub fn swap_step(script: &str) -> StepSpec {
    let mut spec = StepSpec::new(SwapRoot {
        owned: Vec::new(),
        side: SIDE.into(),
        tree: TREE.into(),
        added_hosts: Vec::new(),
        delayer_bytes_max: 1 << 30,
    });
    spec.arguments = ["/bin/sh", "-c", script].map(Into::into).to_vec();
    spec.environment = vec!["PATH=/bin".into()];
    spec
}

pub fn in_tree(path: &str) -> PathBuf {
    Path::new(SIDE).join(TREE).join(path)
}

#[derive(Debug)]
pub struct Ran {
    pub report: StepReport,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn notes(&self) -> &[StepNote] {
        &self.report.swap.as_ref().unwrap().notes
    }
}

pub fn try_swap(spec: StepSpec) -> Result<Ran, SandboxError> {
    let mut outputs = (Vec::new(), Vec::new());
    let take = |stream, bytes: &[u8]| match stream {
        bareboat_core::event::OutputStream::Stdout => outputs.0.extend_from_slice(bytes),
        bareboat_core::event::OutputStream::Stderr => outputs.1.extend_from_slice(bytes),
    };
    let report = block_on(run(spec, take, std::future::pending()))?;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ok(Ran { report, stdout: text(outputs.0), stderr: text(outputs.1) })
}

/// Runs a step that must succeed, and finds the container's root as it was.
pub fn swap(spec: StepSpec) -> Ran {
    let ran = try_swap(spec).unwrap();
    assert_eq!(ran.report.exit, StepExit::Code(0), "{}{}", ran.stdout, ran.stderr);
    ran
}

/// Everything in the container's root but the kernel's and the side directory, as a change would show.
pub fn container_root() -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    look(Path::new("/"), &mut found);
    found
}

fn look(path: &Path, found: &mut BTreeMap<PathBuf, String>) {
    let metadata = fs::symlink_metadata(path).unwrap();
    let kind = metadata.file_type();
    // Written in place, so that only their bytes come back.
    let in_place = ["/etc/hosts", "/etc/resolv.conf"].iter().any(|file| path == Path::new(file));
    let content = if kind.is_file() { fs::read(path).unwrap() } else { Vec::new() };
    let text = format!(
        "{} {:o} {}:{} {} {}.{:09} {} {:?}",
        metadata.ino(),
        metadata.mode(),
        metadata.uid(),
        metadata.gid(),
        if kind.is_dir() { 0 } else { metadata.size() },
        if in_place { 0 } else { metadata.mtime() },
        if in_place { 0 } else { metadata.mtime_nsec() },
        kind.is_socket(),
        String::from_utf8_lossy(&content)
    );
    found.insert(path.to_owned(), text);
    if kind.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            let kept = ["/proc", "/sys", "/dev", SIDE];
            if !kept.iter().any(|kept| path == Path::new(kept)) {
                look(&path, found);
            }
        }
    }
}

/// The container's root after its own image was copied out, which the first step does.
pub fn settled_root() -> BTreeMap<PathBuf, String> {
    swap(swap_step("true"));
    container_root()
}
