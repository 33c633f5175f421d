//! What the layers make together must be the tree that buildah makes of the same Dockerfile on the same base: types, modes, owners,
//! capabilities, contents, link targets, hard links, devices.

use crate::support::{Build, Layout, Outcome, peers::Storage};

/// Mount points and files that a runtime lays over an image while a step runs; builders leave different stubs of them.
fn is_stub(path: &str) -> bool {
    let stubs = [
        "etc/hosts",
        "etc/hostname",
        "etc/resolv.conf",
        "etc/mtab",
        ".dockerenv",
        "run/.containerenv",
        "run/secrets",
    ];
    let below = ["dev", "proc", "sys", "run"];
    stubs.contains(&path)
        || below.iter().any(|top| path == *top || path.starts_with(&format!("{top}/")))
}

/// Builds with bareboat and with buildah, and compares the trees.
#[track_caller]
fn assert_equals_buildah(build: Build) -> Outcome {
    let outcome = build.run().success();
    let oracle = build.scratch().join("oracle");
    Storage::new().buildah(&build.context().join("Dockerfile"), &build.context(), &oracle);
    let differences = outcome.tree().differences(&Layout::open(&oracle).tree(), is_stub);
    assert!(
        differences.is_empty(),
        "{} differences (< bareboat, > buildah):\n{}",
        differences.len(),
        differences.join("\n")
    );
    outcome
}

#[test]
fn removed_files_and_directories_are_gone() {
    let outcome = assert_equals_buildah(Build::new(
        "FROM {busybox}
RUN mkdir -p /a/b/c /d && echo 1 > /a/b/c/f && echo 2 > /a/g && echo 3 > /d/h
RUN rm /a/b/c/f /bin/wget && rm -r /d
RUN rm -r /a/b && rm /a/g
",
    ));
    assert!(outcome.tree().has("a") && !outcome.tree().has("a/b") && !outcome.tree().has("d"));
    assert!(!outcome.tree().has("bin/wget"));
}

#[test]
fn a_directory_becomes_a_file_and_a_link() {
    let outcome = assert_equals_buildah(Build::new(
        "FROM {busybox}
RUN mkdir -p /x/deep /y/deep /z && touch /x/deep/1 /y/deep/2 /z/3
RUN rm -r /x && echo file > /x && rm -r /y && ln -s z /y
RUN rm /x && ln -s /etc /x && rm /y && mkdir /y && echo back > /y/4
",
    ));
    assert_eq!(outcome.tree().get("x").link, "/etc");
    assert_eq!(outcome.tree().names("y"), ["4"]);
}

/// HOSTILE.md W34.
#[test]
fn a_name_takes_every_type_layer_by_layer() {
    assert_equals_buildah(Build::new(
        "FROM {busybox}
RUN mkdir -p /n/s && touch /n/s/a
RUN rm -r /n && mkdir /n && touch /n/b
RUN rm -r /n && mkfifo /n
RUN rm /n && ln -s /nowhere /n
RUN rm /n && mkdir -m 1777 /n && chown 5:6 /n
RUN rmdir /n && echo last > /n && chmod 4711 /n
",
    ));
}

#[test]
fn a_directory_made_again_hides_what_was_in_it() {
    let outcome = assert_equals_buildah(Build::new(
        "FROM {busybox}
RUN mkdir -p /o/keep /o/sub/deeper && touch /o/1 /o/keep/2 /o/sub/deeper/3
RUN rm -r /o && mkdir -p /o/sub && touch /o/sub/4
RUN rm -r /o/sub && mkdir -m 0711 /o/sub
RUN mv /o/sub /o/moved && mkdir /o/sub && touch /o/sub/5
",
    ));
    let tree = outcome.tree();
    let mut names = tree.names("o");
    names.sort_unstable();
    assert_eq!(names, ["moved", "sub"]);
    assert_eq!(tree.names("o/sub"), ["5"]);
}

#[test]
fn hard_links_join_across_directories() {
    let outcome = assert_equals_buildah(Build::new(
        "FROM {busybox}
RUN mkdir /p /q && echo linked > /p/one && ln /p/one /q/two && ln /q/two /three && ln -s one /p/soft && ln /p/soft /q/soft
RUN rm /p/one && mv /q/two /q/moved
",
    ));
    let tree = outcome.tree();
    assert_eq!(tree.get("q/moved").sha256, tree.get("three").sha256);
}

/// buildah joins a new name to the base's file; for us a new name of an unchanged inherited file is a file of its own.
#[test]
fn a_new_name_of_a_bases_file_is_a_file() {
    let outcome = Build::new("FROM {busybox}\nRUN mkdir /r && ln /bin/busybox /r/busybox\n").run();
    let tree = outcome.success().tree();
    assert_eq!(tree.get("r/busybox").sha256, tree.get("bin/busybox").sha256);
    assert_eq!(tree.get("r/busybox").mode, 0o755);
}

#[test]
fn capabilities_setuid_and_odd_modes_are_kept() {
    let outcome = assert_equals_buildah(Build::new(
        "FROM {debian}
RUN cp /bin/true /usr/local/bin/ping && setcap cap_net_raw,cap_net_admin+eip /usr/local/bin/ping
RUN cp /bin/true /usr/local/bin/su && chmod 4755 /usr/local/bin/su && cp /bin/true /usr/local/bin/wall && chmod 2755 /usr/local/bin/wall
RUN mkdir -m 2775 /srv/shared && chown 0:50 /srv/shared && mkdir -m 3777 /srv/tmp && touch /srv/none && chmod 0 /srv/none
RUN chown 7:8 /usr/local/bin/ping && chmod 0700 /etc/cron.daily
",
    ));
    let tree = outcome.tree();
    assert_eq!(tree.get("usr/local/bin/su").mode, 0o4755);
    assert_eq!(tree.get("usr/local/bin/ping").capability, None, "chown drops a capability");
    assert_eq!(tree.get("srv/shared").mode, 0o2775);
}

#[test]
fn a_capability_reaches_the_layer() {
    let outcome =
        assert_equals_buildah(Build::new("FROM {debian}\nRUN setcap cap_net_raw+ep /bin/true\n"));
    assert!(outcome.tree().get("usr/bin/true").capability.is_some());
}

#[test]
fn devices_and_pipes_are_kept() {
    let outcome = assert_equals_buildah(Build::new(
        "FROM {busybox}
RUN mknod /null c 1 3 && chmod 0666 /null && mkfifo -m 0640 /pipe && mkdir /devices && mknod /devices/other c 5 1
",
    ));
    assert_eq!(outcome.tree().get("null").device, (1, 3));
}

#[test]
fn odd_names_are_kept() {
    let outcome = assert_equals_buildah(Build::new(
        r#"FROM {busybox}
RUN mkdir '/odd names' && cd '/odd names' && touch 'a b' "$(printf 'new\nline')" "$(printf 'bytes\377\376')" './-dash' 'quo"te' 'back\slash' .hidden
RUN long=$(printf '%0200d' 7) && mkdir -p /$long/$long/$long && echo deep > /$long/$long/$long/$long && ln -s $long /link-to-long
RUN rm '/odd names/a b'
"#,
    ));
    let tree = outcome.tree();
    assert_eq!(tree.names("odd names").len(), 6);
    assert!(tree.has("odd names/bytes\\xff\\xfe"));
}

#[test]
fn twenty_thousand_small_files() {
    let outcome = assert_equals_buildah(
        Build::new(
            "FROM {busybox}
RUN mkdir /many && cd /many && for d in $(seq 200); do mkdir $d && for f in $(seq 100); do echo $d-$f > $d/$f; done; done
RUN rm -r /many/7 && rm /many/8/1* && chmod 0600 /many/9/9
",
        )
        .timeout(600),
    );
    let files = outcome.tree().entries.keys().filter(|path| path.starts_with("many/")).count();
    assert_eq!(files, 200 - 1 + 20_000 - 100 - 12);
    assert_eq!(outcome.text_of("many/200/100"), "200-100\n");
}

/// Copies of every kind, whose mode and owner rules are easy to get wrong.
#[test]
fn copies_make_the_same_tree() {
    let build = Build::new(
        "FROM {busybox} AS source
RUN mkdir -p /s/d && echo x > /s/d/x && ln -s d/x /s/l && ln /s/d/x /s/h && chmod 0700 /s/d && chown -R 9:9 /s/d
FROM {busybox}
COPY a.txt /t/
COPY folder /t/folder
COPY folder/ /bin/
COPY --chown=1000:1000 a.txt /t/owned
COPY --from=source /s /copied
COPY --from=source /s/l /one
WORKDIR /w/x
COPY a.txt rel/
",
    );
    assert_equals_buildah(
        build.file("a.txt", "a\n").file("folder/b.txt", "b\n").file("folder/in/c", "c\n"),
    );
}
