//! The same archives in the hands of GNU tar, gzip and Python.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use super::{
    round_trip::{ALL, everything},
    *,
};

#[track_caller]
fn run(program: &str, arguments: &[&str], input: &[u8]) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C.UTF-8")
        .env("TZ", "UTC")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} must be installed: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    // A program that has read enough may close its end.
    let _ = feeder.join().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{program}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// With one space between columns, whose width GNU tar makes up as it goes.
fn columns(listing: &str) -> String {
    let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n";
    listing.lines().map(line).collect()
}

#[test]
fn gnu_tar_lists_what_we_write() {
    let (blob, _) = write(everything(), options(Compression::default(), 2));
    let arguments = ["--numeric-owner", "--quoting-style=escape", "-tvzf", "-"];
    let listed = columns(&run("tar", &arguments, &blob));
    for expected in [
        "drwxr-xr-x 0/0 0 2023-11-14 22:13 bin/\n",
        "-rwsr-xr-x 3000000/4294967294 70000 1969-12-31 23:59 bin/ping\n",
        "hrw-r--r-- 0/0 0 2023-11-14 22:13 bin/b link to bin/a\n",
        " bin/sh -> ../usr//bin/./sh\n",
        "brw-rw---- 0/0 259,1048575 2023-11-14 22:13 dev/disk\n",
        "crw-rw-rw- 0/0 1,3 2023-11-14 22:13 dev/null\n",
        "prw------- 0/0 0 2023-11-14 22:13 dev/pipe\n",
        "---------- 0/0 0 1970-01-01 00:00 etc/.wh.shadow\n",
        " bin/\\377\\376\\n\n",
        " ünï\n",
    ] {
        assert!(listed.contains(expected), "{expected:?} is not in\n{listed}");
    }
    assert!(listed.contains(&format!("{}/{}\n", "d".repeat(120), "f".repeat(200))));
    assert!(listed.contains(&format!("-> {}\n", "t/".repeat(100))));
    let attributes = run("tar", &["--xattrs", "--xattrs-include=*", "-tvvzf", "-"], &blob);
    assert!(attributes.contains("x: 20 security.capability"), "{attributes}");
}

#[test]
fn gnu_tar_and_gzip_take_every_shape() {
    let (plain, _) = write(everything(), options(Compression::Uncompressed, 1));
    for (compression, suffix) in ALL.into_iter().filter(|(_, suffix)| *suffix == "+gzip") {
        let (blob, _) = write(everything(), options(compression, 2));
        let sum = run("sh", &["-c", "gzip -dc | sha256sum"], &blob);
        assert!(sum.starts_with(&Digest::of(&plain).hex()), "{compression:?} {suffix}");
    }
}

const PYTHON: &str = r#"
import sys, io, tarfile, gzip, zlib, hashlib
blob = sys.stdin.buffer.read()
plain = gzip.decompress(blob) if blob[:2] == b"\x1f\x8b" else blob
print(hashlib.sha256(plain).hexdigest())
for m in tarfile.open(fileobj=io.BytesIO(plain), errors="surrogateescape"):
    kind = {b"0": "f", b"1": "h", b"2": "l", b"3": "c", b"4": "b", b"5": "d", b"6": "p"}[m.type]
    device = (m.devmajor, m.devminor) if kind in "bc" else (0, 0)
    name = m.name.encode("utf-8", "surrogateescape").hex()
    link = m.linkname.encode("utf-8", "surrogateescape").hex()
    offset = m.offset_data if m.size else 0
    print(kind, name, link, oct(m.mode), m.uid, m.gid, int(m.mtime), m.size, *device, offset)
"#;

#[test]
fn python_reads_the_same_members() {
    for (compression, _) in ALL.into_iter().filter(|(_, suffix)| *suffix != "+zstd") {
        let (blob, written) = write(everything(), options(compression, 2));
        let listed = run("python3", &["-c", PYTHON], &blob);
        let mut lines = listed.lines();
        assert_eq!(lines.next(), Some(&written.diff_id.hex()[..]));
        let members = members(&written.index);
        assert_eq!(lines.collect::<Vec<_>>(), members);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The index's rows as `PYTHON` prints the members that they came from.
fn members(index: &LayerIndex) -> Vec<String> {
    let mut first_names: BTreeMap<u32, &EntryPath> = BTreeMap::new();
    let line = |row| member(row, &mut first_names);
    index.rows().iter().map(line).collect()
}

fn member<'a>(row: &'a Row, first_names: &mut BTreeMap<u32, &'a EntryPath>) -> String {
    let mut name = row.path.as_bytes().to_vec();
    let nothing = &b""[..];
    let (mut kind, mut target, mut size, device) = match &row.kind {
        Kind::Directory { .. } => ("d", nothing, 0, (0, 0)),
        Kind::File { size } => ("f", nothing, *size, (0, 0)),
        Kind::Symlink { target } => ("l", &target[..], 0, (0, 0)),
        Kind::CharacterDevice { major, minor } => ("c", nothing, 0, (*major, *minor)),
        Kind::BlockDevice { major, minor } => ("b", nothing, 0, (*major, *minor)),
        Kind::Fifo => ("p", nothing, 0, (0, 0)),
        Kind::Whiteout => {
            let parent = row.path.parent().unwrap();
            name = parent.child(&[b".wh.", row.path.file_name()].concat()).as_bytes().to_vec();
            ("f", nothing, 0, (0, 0))
        }
    };
    let first = first_names.entry(row.link_group).or_insert(&row.path);
    if row.link_group > 0 && **first != row.path {
        (kind, target, size) = ("h", first.as_bytes(), 0);
    }
    let offset = if size > 0 { row.tar_offset } else { 0 };
    let Metadata { mode, uid, gid, mtime, .. } = &row.metadata;
    let (name, target, seconds) = (hex(&name), hex(target), mtime.seconds);
    let (major, minor) = device;
    format!(
        "{kind} {name} {target} 0o{mode:o} {uid} {gid} {seconds} {size} {major} {minor} {offset}"
    )
}

const PYTHON_WRITER: &str = r#"
import sys, io, tarfile
out = io.BytesIO()
form = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}[sys.argv[1]]
tar = tarfile.open(fileobj=out, mode="w", format=form)
def add(name, type=tarfile.REGTYPE, link="", body=b"", **more):
    m = tarfile.TarInfo(name)
    m.type, m.linkname, m.size, m.mtime = type, link, len(body), 5
    for key, value in more.items(): setattr(m, key, value)
    tar.addfile(m, io.BytesIO(body))
add("dir", tarfile.DIRTYPE, mode=0o1777)
add("dir/file", body=b"hello", uid=7, gid=8)
add("dir/hard", tarfile.LNKTYPE, "dir/file", uid=7, gid=8)
add("l", tarfile.SYMTYPE, "dir/file")
add("fifo", tarfile.FIFOTYPE)
if sys.argv[1] != "ustar":
    add("n" * 150, body=b"long")
    add("longlink", tarfile.SYMTYPE, "t" * 150)
    add("big", uid=2500000)
tar.close()
sys.stdout.buffer.write(out.getvalue())
"#;

#[test]
fn archives_of_python_are_read() {
    for form in ["ustar", "gnu", "pax"] {
        let output = Command::new("python3").args(["-c", PYTHON_WRITER, form]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let layer = read(&output.stdout, PLAIN).unwrap();
        let row = |name: &str| layer.index.get(&path(name)).unwrap();
        assert_eq!(row("dir").metadata.mode, 0o1777);
        assert_eq!(row("dir/file").kind, Kind::File { size: 5 });
        assert_eq!(row("dir/hard").link_group, row("dir/file").link_group);
        if form != "ustar" {
            assert_eq!(row(&"n".repeat(150)).kind, Kind::File { size: 4 });
            let target = "t".repeat(150).into_bytes().into();
            assert_eq!(row("longlink").kind, Kind::Symlink { target });
            assert_eq!(row("big").metadata.uid, 2_500_000);
        }
        assert!(layer.warnings.is_empty());
    }
}

#[test]
fn archives_of_gnu_tar_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let long = "long".repeat(50);
    std::fs::create_dir(at("sub")).unwrap();
    std::fs::write(at("sub").join(&long), b"content").unwrap();
    std::fs::hard_link(at("sub").join(&long), at("second")).unwrap();
    std::os::unix::fs::symlink("x".repeat(150), at("link")).unwrap();
    for form in ["gnu", "oldgnu", "posix", "v7", "ustar"] {
        if matches!(form, "v7" | "ustar") {
            let _ = std::fs::remove_file(at("link"));
            let _ = std::fs::remove_file(at("second"));
            let _ = std::fs::rename(at("sub").join(&long), at("sub").join("short"));
        }
        let root = directory.path().to_str().unwrap();
        let format = format!("--format={form}");
        let output = Command::new("tar").args([&format, "-C", root, "-c", "."]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let layer = read(&output.stdout, PLAIN).unwrap();
        let files = layer.index.rows().iter().filter(|row| row.kind == Kind::File { size: 7 });
        let expected = if matches!(form, "v7" | "ustar") { 1 } else { 2 };
        assert_eq!(files.count(), expected, "{form}");
        assert!(layer.index.get(&path("sub")).unwrap().kind.is_directory(), "{form}");
        if expected == 2 {
            let target = "x".repeat(150).into_bytes().into();
            assert_eq!(layer.index.get(&path("link")).unwrap().kind, Kind::Symlink { target });
        }
    }
}
