//! Where a build context may come from. Expectations: BuildKit's frontend (its build contexts, named contexts and their
//! ignore files) and buildx's client for standard input.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt, process::Command};

use rustix::process::Signal;

use crate::support::{Build, FileServer, Kind, peers::run_command, process};

const REPOSITORY: &str = r#"
    printf 'FROM scratch\nCOPY . /all/\n' > Dockerfile; printf 'sub\n*.md\n' > .dockerignore; echo 1 > README.md
    mkdir sub; printf 'FROM scratch\nCOPY here /here\n' > sub/Dockerfile; echo one > sub/here; chmod 755 sub/here
    printf 'FROM scratch\nCOPY sub/here /other\n' > sub/Other; ln -s here sub/link
    git add .; git commit -qm one; git tag v1; echo two > sub/here; git commit -qam two
"#;

fn git() -> FileServer {
    let server = FileServer::new();
    server.repository("r.git", REPOSITORY);
    server
}

fn at(source: impl AsRef<std::ffi::OsStr>) -> Build {
    Build::new("FROM nothing-of-the-machine\n").source(source)
}

#[test]
fn a_repository_is_the_context_and_no_ignore_file_counts() {
    let outcome = at(git().url("r.git")).run().success();
    let tree = outcome.tree();
    let mut names = tree.names("all");
    names.sort_unstable();
    assert_eq!(names, [".dockerignore", "Dockerfile", "README.md", "sub"]);
    let file = tree.get("all/sub/here");
    assert_eq!((file.mode, file.uid, file.gid), (0o755, 0, 0));
    assert_eq!(tree.get("all/sub/link").kind, Kind::Symlink);
    assert!(outcome.stderr.contains("load git source"), "{}", outcome.stderr);
}

#[test]
fn a_ref_and_a_folder_are_chosen() {
    let server = git();
    let of = |fragment: &str| {
        at(server.url(fragment)).run().success().text_of("here").trim_end().to_owned()
    };
    assert_eq!(of("r.git#v1:sub"), "one");
    assert_eq!(of("r.git#main:sub"), "two");
    assert_eq!(of("r.git#:sub"), "two");
    assert_eq!(of("r.git?tag=v1&subdir=sub"), "one");
}

#[test]
fn the_dockerfile_of_a_remote_context_is_in_it() {
    let server = git();
    let url = server.url("r.git");
    let outcome = at(&url).args(["-f", "sub/Other"]).run().success();
    assert_eq!(outcome.text_of("other"), "two\n");
    // A file of the machine by that name is not meant.
    let outside = at(&url);
    let path = outside.context().join("Dockerfile");
    outside.arg("-f").arg(path).run().failure(3, &["the context has no file"]);
}

#[test]
fn the_git_directory_is_kept_where_asked_for() {
    let server = git();
    let outcome = at(server.url("r.git")).run().success();
    assert!(!outcome.tree().has("all/.git"));
    let keep = at(server.url("r.git")).build_arg("BUILDKIT_CONTEXT_KEEP_GIT_DIR=1");
    assert!(keep.run().success().tree().has("all/.git/HEAD"));
    assert!(at(server.url("r.git?keep-git-dir=1")).run().success().tree().has("all/.git/HEAD"));
}

#[test]
fn what_a_repository_lacks_is_told() {
    let server = git();
    at(server.url("r.git#v9")).run().failure(4, &["does not contain ref v9"]);
    at(server.url("r.git#v1:nope")).run().failure(4, &["invalid subdir"]);
    at(server.url("none.git")).run().failure(4, &["404"]);
    at(server.url("r.git?nope=1")).run().failure(2, &["unexpected query"]);
    at("s3://bucket/key").run().failure(2, &["not supported"]);
}

#[test]
fn an_unchanged_remote_context_is_cached() {
    let server = git();
    let build = at(server.url("r.git#main:sub"));
    assert_eq!(build.run().success().executed(), [2]);
    assert_eq!(build.run().success().executed(), [0; 0]);
    let tar = FileServer::new();
    tar.file("c.tar", archive("--owner=7", ""));
    let build = at(tar.url("c.tar"));
    let first = build.run().success();
    let second = build.run().success();
    assert_eq!(second.executed(), [0; 0]);
    assert_eq!(first.digest(), second.digest());
}

/// A tar of a small context, by the real program.
fn archive(option: &str, compress: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let context = folder.path().join("context");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY . /all/\n").unwrap();
    fs::write(context.join(".dockerignore"), "*\n").unwrap();
    fs::write(context.join("file"), "content\n").unwrap();
    fs::set_permissions(context.join("file"), fs::Permissions::from_mode(0o640)).unwrap();
    let path = folder.path().join("c.tar");
    let mut command = Command::new("tar");
    command.arg("-C").arg(&context).arg(option).args(compress.split_whitespace());
    run_command(command.arg("-cf").arg(&path).arg("."));
    fs::read(path).unwrap()
}

const FORMATS: [(&str, &str); 5] =
    [("plain", ""), ("gzip", "-z"), ("bzip2", "-j"), ("xz", "-J"), ("zstd", "--zstd")];

#[track_caller]
fn assert_is_the_archive(outcome: &crate::support::Outcome) {
    let tree = outcome.tree();
    let mut names = tree.names("all");
    names.sort_unstable();
    assert_eq!(names, [".dockerignore", "Dockerfile", "file"]);
    let file = tree.get("all/file");
    assert_eq!((file.mode, file.uid, file.gid), (0o640, 0, 0));
}

#[test]
fn a_tar_by_url_in_every_compression() {
    let server = FileServer::new();
    for (name, compress) in FORMATS {
        server.file(name, archive("--owner=7", compress));
        let outcome = at(format!("{}?token=secret", server.url(name))).run().success();
        assert_is_the_archive(&outcome);
        assert!(!outcome.stderr.contains("token"), "{}", outcome.stderr);
    }
}

#[test]
fn a_tar_on_standard_input_in_every_compression() {
    for (_, compress) in FORMATS {
        assert_is_the_archive(&at("-").stdin(&archive("--owner=7", compress)).run().success());
    }
}

#[test]
fn a_file_by_url_is_the_dockerfile() {
    let server = FileServer::new();
    server.file("my.dockerfile", "FROM scratch\nCOPY . /all/\n");
    let outcome = at(server.url("my.dockerfile")).run().success();
    let tree = outcome.tree();
    assert_eq!(tree.names("all"), ["context"]);
    assert_eq!(tree.get("all/context").mode, 0o600);
    server.file("bad", "FROM scratch\nCOPPY a /\n");
    at(server.url("bad")).run().failure(3, &["/bad:2"]);
    at(server.url("bad")).args(["-f", "Other"]).run().failure(2, &["two Dockerfiles"]);
    at(server.url("gone")).run().failure(4, &["404"]);
}

#[test]
fn a_dockerfile_on_standard_input_has_an_empty_context() {
    let text = b"FROM scratch\nCOPY <<EOF /file\ntext\nEOF\nCOPY . /all/\n";
    let outcome = at("-").stdin(text).run().success();
    assert_eq!(outcome.text_of("file"), "text\n");
    assert_eq!(outcome.tree().names("all"), [""; 0]);
    at("-").stdin(b"FROM scratch\nCOPY Dockerfile /\n").run().failure(3, &["not found"]);
    at("-").stdin(b"FROM scratch\n").args(["-f", "D"]).run().failure(2, &["two Dockerfiles"]);
    at("-").stdin(b"").run().failure(3, &[]);
}

#[test]
fn an_archive_that_is_cut_or_leaves_its_root_is_refused() {
    let server = FileServer::new();
    let whole = archive("--owner=7", "-z");
    server.file("cut.tgz", &whole[..whole.len() - 20]);
    at(server.url("cut.tgz")).run().failure(3, &["cut.tgz"]);
    let outside = archive("--transform=s,^./file,../file,", "-P");
    server.file("outside.tar", &outside);
    at(server.url("outside.tar")).run().failure(3, &["leaves the context"]);
    at("-").stdin(&outside).run().failure(3, &["leaves the context"]);
}

#[test]
fn named_contexts_are_repositories_and_files() {
    let server = git();
    server.file("data.tar", archive("--owner=7", ""));
    let named = |name: &str, file: &str| format!("{name}={}", server.url(file));
    let text = "FROM code AS base\nFROM scratch\nCOPY --from=code here /here\nCOPY --from=base /link /link\n\
                COPY --from=data . /data/\nCOPY --from=none . /none/\n";
    let outcome = Build::new(text)
        .args(["--build-context", &named("code", "r.git#v1:sub")])
        .args(["--build-context", &named("data", "data.tar")])
        .args(["--build-context", "none=docker-image://scratch"])
        .args(["--build-context", &named("unused", "gone.tar")])
        .run()
        .success();
    let tree = outcome.tree();
    assert_eq!(outcome.text_of("here"), "one\n");
    assert_eq!(outcome.text_of("link"), "one\n");
    // As BuildKit has it: a named context by URL is one file, as it came.
    assert_eq!(tree.names("data"), ["context"]);
    assert_eq!(tree.names("none"), [""; 0]);
    assert!(!server.requests().iter().any(|path| path.contains("gone")), "fetched only if used");
}

#[test]
fn a_named_context_is_mounted() {
    let server = git();
    let outcome = Build::new(
        "FROM {busybox}\nRUN --mount=from=code,target=/code cat /code/here > /got && ls -A /code > /names\n",
    )
    .args(["--build-context", &format!("code={}", server.url("r.git#v1:sub"))])
    .run()
    .success();
    assert_eq!(outcome.text_of("got"), "one\n");
    assert_eq!(outcome.text_of("names"), "Dockerfile\nOther\nhere\nlink\n");
}

#[test]
fn a_private_context_is_fetched_with_a_secret() {
    let server = git();
    server.file("c.tar", archive("--owner=7", ""));
    let host = server.address.clone();
    let outcome = at(server.url("c.tar"))
        .env("TOKEN", "hunter2")
        .args(["--secret", "id=HTTP_AUTH_TOKEN_127.0.0.1,env=TOKEN"])
        .run()
        .success();
    assert_eq!(server.authorizations(), ["Bearer hunter2"]);
    assert!(!outcome.stderr.contains("hunter2"));
    let login = format!("http://user:hunter2@{host}/r.git");
    let outcome = at(&login).run().success();
    assert!(!outcome.stderr.contains("hunter2"), "{}", outcome.stderr);
    assert!(server.authorizations().iter().any(|value| value.starts_with("Basic ")));
}

#[test]
fn a_signal_ends_a_fetch_and_leaves_nothing() {
    // Nobody accepts: the connection is made and stays without an answer.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    for source in [format!("http://{address}/c.tar"), format!("git://{address}/r.git")] {
        let build = at(&source);
        let running = build.spawn();
        let work = build.state_directory().join("work");
        let waits = || match source.starts_with("git") {
            true => !process::descendants(running.pid()).is_empty(),
            false => fs::read_dir(&work).is_ok_and(|mut entries| entries.next().is_some()),
        };
        process::wait_until(30, "the fetch waits", waits);
        let below = process::descendants(running.pid());
        running.signal(Signal::TERM);
        running.wait().failure(143, &["stopped by a signal"]);
        process::wait_until(10, "git ended", || !below.iter().any(|pid| process::is_alive(*pid)));
        assert_eq!(fs::read_dir(work).unwrap().count(), 0, "{source}");
    }
}
