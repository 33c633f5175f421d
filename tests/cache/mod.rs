//! What a second build executes, reads and fetches.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    time::{Duration, SystemTime},
};

use crate::support::{Build, FakeRegistry, ImageForge, Member, Outcome, TarForge, store};

const DOCKERFILE: &str = "FROM {busybox}
ARG FIRST=1
RUN cat /proc/sys/kernel/random/uuid > /first
COPY one /one
ARG SECOND=1
RUN cat /one > /second && echo $SECOND >> /second
COPY two /two
RUN cat /two > /third
";

fn build() -> Build {
    Build::new(DOCKERFILE).file("one", "one\n").file("two", "two\n")
}

/// The lines of the RUN, COPY, ADD and WORKDIR steps that were executed.
fn executed(outcome: &Outcome) -> Vec<u64> {
    let makes_files = |name: &str| {
        ["RUN", "COPY", "ADD", "WORKDIR"].iter().any(|kind| name.trim_start().starts_with(kind))
    };
    let steps = outcome.steps();
    let lines = steps.iter().filter(|step| !step.cached && makes_files(&step.instruction));
    let mut lines: Vec<u64> = lines.map(|step| step.line).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn an_identical_build_executes_nothing() {
    let build = build();
    let first = build.run().success();
    assert_eq!(executed(&first), [3, 4, 6, 7, 8]);
    let second = build.run().success();
    assert_eq!(second.executed(), [0u64; 0]);
    assert_eq!(second.digest(), first.digest());
    assert_eq!(second.text_of("first"), first.text_of("first"));
}

#[test]
fn a_changed_line_executes_what_follows() {
    let build = build();
    let first = build.run().success();
    let build = build
        .dockerfile(DOCKERFILE.replace("RUN cat /one > /second", "RUN cat /one /one > /second"));
    let second = build.run().success();
    assert_eq!(executed(&second), [6, 7, 8]);
    assert_eq!(second.text_of("second"), "one\none\n1\n");
    assert_eq!(second.text_of("first"), first.text_of("first"));
}

/// The keys of stages that copy from the context are known only once these were built, and so are their readers'.
#[test]
fn what_reads_another_stage_is_cached_from_the_first_build_on() {
    let build = Build::new(
        "FROM {busybox} AS one
COPY one /one
RUN cp /one /made
FROM one AS child
RUN cat /made
FROM {busybox}
COPY --from=one /made /made
RUN --mount=type=bind,from=child,target=/child cat /child/made > /seen
",
    )
    .file("one", "one\n");
    let first = build.run().success();
    assert_eq!(executed(&first), [2, 3, 5, 7, 8]);
    let second = build.run().success();
    assert_eq!(executed(&second), [0u64; 0]);
    assert_eq!(second.digest(), first.digest());
    let again = build.arg("--no-cache").run().success();
    assert_eq!(executed(&again), [2, 3, 5, 7, 8], "no record counts");
}

#[test]
fn comments_blanks_and_case_change_nothing() {
    let build = build();
    let first = build.run().success();
    let dressed = DOCKERFILE
        .replace("COPY one", "\n# a comment\n  copy  one")
        .replace("RUN cat /two", "run \\\n# inside\n cat /two");
    let second = build.dockerfile(dressed).run().success();
    assert_eq!(executed(&second), [0u64; 0]);
    assert_eq!(second.layout().diff_ids(), first.layout().diff_ids());
}

#[test]
fn a_changed_file_executes_what_follows_its_copy() {
    let build = build();
    build.run().success();
    let build = build.file("two", "TWO\n");
    let second = build.run().success();
    assert_eq!(executed(&second), [7, 8]);
    assert_eq!(second.text_of("third"), "TWO\n");
    assert_eq!(executed(&build.file("unrelated", "new").run().success()), [0u64; 0]);
}

#[test]
fn a_changed_argument_executes_what_can_see_it() {
    let build = build();
    build.run().success();
    let second = Build::new(DOCKERFILE)
        .file("one", "one\n")
        .file("two", "two\n")
        .state(build.state_directory());
    let second = second.build_arg("SECOND=2").run().success();
    assert_eq!(executed(&second), [6, 7, 8], "a COPY follows from the tree that it is laid over");
    assert_eq!(second.text_of("second"), "one\n2\n");
    let third = Build::new(DOCKERFILE)
        .file("one", "one\n")
        .file("two", "two\n")
        .state(build.state_directory());
    assert_eq!(executed(&third.build_arg("FIRST=2").run().success()), [3, 4, 6, 7, 8]);
}

#[test]
fn an_argument_that_nothing_can_see_executes_nothing() {
    let dockerfile =
        "FROM {busybox}\nRUN echo before > /before\nARG UNSEEN=1\nCOPY one /one\nWORKDIR /w\n";
    let build = Build::new(dockerfile).file("one", "one\n");
    build.run().success();
    let second = Build::new(dockerfile).file("one", "one\n").state(build.state_directory());
    assert_eq!(executed(&second.build_arg("UNSEEN=2").run().success()), [0u64; 0]);
}

#[test]
fn times_and_owners_of_context_files_do_not_break_it() {
    let build = build();
    let first = build.run().success();
    let file = build.context().join("one");
    let tomorrow = SystemTime::now() + Duration::from_secs(86_400);
    fs::File::options().write(true).open(&file).unwrap().set_modified(tomorrow).unwrap();
    chown(&file, Some(1234), Some(1234)).unwrap();
    let second = build.run().success();
    assert_eq!(second.executed(), [0u64; 0]);
    assert_eq!(second.digest(), first.digest());
}

#[test]
fn modes_of_context_files_break_it() {
    let build = build();
    build.run().success();
    fs::set_permissions(build.context().join("two"), fs::Permissions::from_mode(0o755)).unwrap();
    let second = build.run().success();
    assert_eq!(executed(&second), [7, 8]);
    assert_eq!(second.tree().get("two").mode, 0o755);
}

#[test]
fn the_context_files_that_are_ignored_do_not_count() {
    let build = Build::new("FROM {busybox}\nCOPY . /all/\n")
        .file(".dockerignore", "log\n")
        .file("log", "1")
        .file("kept", "1");
    build.run().success();
    let build = build.file("log", "2");
    assert_eq!(executed(&build.run().success()), [0u64; 0]);
    let build = build.file("kept", "2");
    assert_eq!(executed(&build.run().success()), [2]);
}

#[test]
fn a_changed_base_executes_everything() {
    let layer = |text: &str| TarForge::of([Member::file("etc/version", text)]);
    let (old, new) = (
        ImageForge::busybox().layer(&layer("1")).forge(),
        ImageForge::busybox().layer(&layer("2")).forge(),
    );
    let build = Build::new("FROM base\nRUN cat /etc/version > /seen\nCOPY Dockerfile /\n");
    let paths = [build.scratch().join("old"), build.scratch().join("new")];
    old.write(&paths[0]);
    new.write(&paths[1]);
    let state = build.state_directory().to_owned();
    let run = |path: &Path, digest: &str| {
        let build = Build::new("FROM base\nRUN cat /etc/version > /seen\nCOPY Dockerfile /\n")
            .state(&state);
        build.layout_context("base", path, digest).run().success()
    };
    assert_eq!(executed(&run(&paths[0], &old.digest)), [2, 3]);
    assert_eq!(executed(&run(&paths[0], &old.digest)), [0u64; 0]);
    let changed = run(&paths[1], &new.digest);
    assert!(executed(&changed).contains(&2));
    assert_eq!(changed.text_of("seen"), "2");
}

#[test]
fn no_cache_executes_everything() {
    let build = build();
    build.run().success();
    let second = Build::new(DOCKERFILE)
        .file("one", "one\n")
        .file("two", "two\n")
        .state(build.state_directory());
    assert_eq!(executed(&second.arg("--no-cache").run().success()), [3, 4, 6, 7, 8]);
}

/// A registry that counts, and a context file whose bytes would show in the builder's count of bytes read.
#[test]
fn nothing_is_fetched_unpacked_or_read_again() {
    let registry = FakeRegistry::of("base", ImageForge::busybox().forge());
    let dockerfile = format!(
        "FROM {}\nRUN echo made > /made\nCOPY big /big\nRUN ls -l /big > /listing\n",
        registry.reference("base")
    );
    let build =
        Build::new(dockerfile).file("big", vec![3; 48 << 20]).arg("--pull").without_output();
    let first = build.run().success();
    assert!(registry.blob_requests() > 0);
    registry.forget_requests();
    let trees_before = listing(&build.state_directory().join("trees"));
    let second = build.run().success();
    assert_eq!(second.executed(), [0u64; 0]);
    assert_eq!(registry.blob_requests(), 0, "{:?}", registry.requests());
    assert!(registry.requests().len() <= 2, "{:?}", registry.requests());
    assert!(first.io.read_bytes > 48 << 20, "the first build reads the file: {:?}", first.io);
    assert!(second.io.read_bytes < 8 << 20, "the second one does not: {:?}", second.io);
    assert!(second.io.written_bytes < 1 << 20, "{:?}", second.io);
    assert_eq!(listing(&build.state_directory().join("trees")), trees_before);
}

fn listing(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// COPY needs no bytes of a base whose index is known: layers are the currency.
#[test]
fn a_copy_on_a_known_base_fetches_nothing() {
    let registry = FakeRegistry::of("base", ImageForge::busybox().forge());
    let dockerfile = format!("FROM {}\nCOPY one /one\n", registry.reference("base"));
    let build = Build::new(&dockerfile).file("one", "1").without_output();
    build.run().success();
    registry.forget_requests();
    build.file("one", "2").run().success();
    assert_eq!(registry.blob_requests(), 0, "{:?}", registry.requests());
}

#[test]
fn prune_empties_the_state() {
    let build = build();
    build.run().success();
    let mut prune = crate::support::build::bareboat();
    prune.args(["cache", "prune", "--state-dir"]).arg(build.state_directory());
    crate::support::peers::run_command(&mut prune);
    let left = crate::support::peers::run(
        "du",
        ["-s", "--apparent-size", "-k", build.state_directory().to_str().unwrap()],
    );
    let kilobytes: u64 = left.split_whitespace().next().unwrap().parse().unwrap();
    assert!(kilobytes < 100, "{left}");
    let mut names: Vec<_> = fs::read_dir(build.state_directory())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["lock", "version", "work.lock"], "nothing else is left");
    store::assert_clean(build.state_directory());
    assert_eq!(executed(&build.run().success()), [3, 4, 6, 7, 8]);
}

#[test]
fn a_broken_record_is_a_miss() {
    let build = build();
    let first = build.run().success();
    let records = crate::support::peers::run(
        "find",
        [build.state_directory().join("records").to_str().unwrap(), "-type", "f"],
    );
    assert!(records.lines().count() > 0, "there are cache records");
    for path in records.lines() {
        fs::write(path, b"{ not a record").unwrap();
    }
    let second = build.run().success();
    assert_eq!(executed(&second), [3, 4, 6, 7, 8]);
    assert_ne!(second.text_of("first"), first.text_of("first"));
}
