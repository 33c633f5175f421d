//! Family T: where an archive's names and links lead.

use super::*;
use crate::support::Kind;

/// T1
#[test]
fn names_that_climb_stay_inside() {
    let canary = Canary::new();
    let absolute = canary.absolute("folder/new");
    for name in [
        canary.climbing("folder/new"),
        absolute.clone(),
        format!("a/../../../{absolute}"),
        format!("./..{absolute}"),
    ] {
        let tar = TarForge::new().add_named(Member::file("short", "evil\n"), &name, "").finish();
        assert_layer_file(&tar, &absolute, "evil\n");
        assert_added_file(&tar, &format!("/dst{absolute}"), "evil\n");
        canary.assert_untouched();
    }
}

/// T1, as a build context
#[test]
fn a_context_tar_that_climbs_stays_inside() {
    let canary = Canary::new();
    let tar = TarForge::new()
        .add(Member::file("Dockerfile", "FROM scratch\nCOPY . /all\n"))
        .add_named(Member::file("short", "evil\n"), &canary.climbing("folder/new"), "")
        .add_named(Member::symlink("short", ""), "out", &canary.absolute("folder"))
        .add(Member::file("out/new", "evil\n"))
        .finish();
    let build = Build::new("");
    let path = build.scratch().join("context.tar");
    std::fs::write(&path, tar).unwrap();
    let mut command = crate::support::build::bareboat();
    command.args(["build", "--state-dir"]).arg(build.state_directory()).arg(&path);
    let output = command.output().unwrap();
    assert!(
        matches!(output.status.code(), Some(0 | 3)),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    canary.assert_untouched();
}

/// T2
#[test]
fn a_file_through_a_link_to_the_root_lands_inside() {
    let canary = Canary::new();
    let absolute = canary.absolute("folder/new");
    let tar = TarForge::new()
        .add(Member::symlink("a", "/"))
        .add_named(Member::file("x", "evil\n"), &format!("a{absolute}"), "")
        .finish();
    assert_layer_file(&tar, &absolute, "evil\n");
    assert_added_file(&tar, &format!("/dst{absolute}"), "evil\n");
    canary.assert_untouched();
}

/// T2: the link straight to the canary, absolute and climbing
#[test]
fn a_file_through_a_link_to_the_canary_lands_inside() {
    let canary = Canary::new();
    let folder = canary.absolute("folder");
    for target in [folder.clone(), canary.climbing("folder")] {
        let tar = TarForge::new()
            .add_named(Member::symlink("out", ""), "out", &target)
            .add(Member::file("out/new", "evil\n"))
            .finish();
        assert_deterministic("a link to the canary", &tar, &canary);
        let tar = TarForge::new()
            .add_named(Member::symlink("out", ""), "out", &target)
            .add_named(Member::directory("x"), folder.trim_start_matches('/'), "")
            .add(Member::file("out/new", "evil\n"))
            .finish();
        assert_layer_file(&tar, &format!("{folder}/new"), "evil\n");
        canary.assert_untouched();
    }
}

/// T2: the link stands in a lower layer; rules.md section 2, rule 2
#[test]
fn a_link_of_a_lower_layer_is_replaced_not_followed() {
    let canary = Canary::new();
    let folder = canary.absolute("folder");
    let lower = TarForge::new().add_named(Member::symlink("out", ""), "out", &folder).finish();
    let upper = TarForge::of([Member::file("out/new", "inside\n")]);
    let image = ImageForge::busybox().layer(&lower).layer(&upper).forge();
    let outcome = on_image(
        &image,
        "FROM base AS run\nRUN cat /out/new > /seen && test ! -L /out\nFROM scratch\nCOPY --from=run /seen /\nCOPY --from=base /out/new /index\n",
    );
    let outcome = outcome.run().success();
    assert_eq!(
        (outcome.text_of("seen"), outcome.text_of("index")),
        ("inside\n".into(), "inside\n".into())
    );
    canary.assert_untouched();
}

/// T2, of a destination: a COPY or ADD to a link that leads out
#[test]
fn a_copy_to_a_link_that_leads_out_lands_inside() {
    let canary = Canary::new();
    let folder = canary.absolute("folder");
    let tar = TarForge::new()
        .add_named(Member::symlink("out", ""), "out", &canary.climbing("folder"))
        .finish();
    let outcome = on_image(
        &layer_image(&tar),
        "FROM base\nCOPY new /out/\nRUN cat /out/new > /seen\nWORKDIR /out/deeper\n",
    )
    .file("new", "copied\n")
    .run()
    .success();
    assert_eq!(outcome.text_of("seen"), "copied\n");
    assert!(
        outcome.tree().has(&format!("{folder}/new")),
        "it lies where the link leads inside the image"
    );
    canary.assert_untouched();
}

/// T2, of a source: a COPY --from through a link that leads out
#[test]
fn a_copy_from_a_link_that_leads_out_reads_inside() {
    let canary = Canary::new();
    let tar = TarForge::new()
        .add_named(Member::symlink("out", ""), "out", &canary.absolute("file"))
        .finish();
    let outcome =
        on_image(&layer_image(&tar), "FROM scratch\nCOPY --from=base /out /stolen\n").run();
    assert!(matches!(outcome.code(), Some(1 | 3)), "{:?} {}", outcome.code(), outcome.stderr);
    assert_bounded(&outcome);
}

/// T4
#[test]
fn chains_and_loops_of_links_are_refused() {
    let chain = (0..42).map(|n| Member::symlink(format!("l{n}"), format!("l{}", n + 1)));
    let chain = TarForge::of(chain.chain([Member::directory("l42"), Member::file("l0/x", "deep")]));
    assert_refused_both_ways("a chain of 42 links", &chain);
    let looping = TarForge::of([
        Member::symlink("a", "b"),
        Member::symlink("b", "a"),
        Member::file("a/x", "never"),
    ]);
    assert_refused_both_ways("a loop of links", &looping);
    let own = TarForge::of([Member::symlink("self", "self/self"), Member::file("self/x", "never")]);
    assert_refused_both_ways("a link to itself", &own);
}

/// T4: the loop is in the image, the COPY leads through it
#[test]
fn a_copy_through_a_loop_ends() {
    let tar = TarForge::of([Member::symlink("a", "b"), Member::symlink("b", "a")]);
    for dockerfile in [
        "FROM base\nCOPY Dockerfile /a/x/\n",
        "FROM base\nWORKDIR /a/x\n",
        "FROM scratch\nCOPY --from=base /a/x /y\n",
    ] {
        let outcome = on_image(&layer_image(&tar), dockerfile).run();
        assert!(
            matches!(outcome.code(), Some(1 | 3)),
            "{dockerfile:?}: {:?} {}",
            outcome.code(),
            outcome.stderr
        );
    }
}

/// T5
#[test]
fn hard_links_do_not_reach_outside() {
    let canary = Canary::new();
    let file = canary.absolute("file");
    let link = |target: &str| {
        TarForge::new().add_named(Member::hard_link("stolen", ""), "stolen", target).finish()
    };
    assert_refused_both_ways("a hard link to an absolute path outside", &link(&file));
    assert_refused_both_ways("a hard link that climbs out", &link(&canary.climbing("file")));
    let parent = TarForge::new()
        .add_named(Member::symlink("out", ""), "out", canary.path())
        .add(Member::hard_link("stolen", "out/file"))
        .finish();
    assert_refused_both_ways("a hard link through a linked parent", &parent);
    canary.assert_untouched();
}

/// T5
#[test]
fn a_hard_link_to_a_link_is_that_link() {
    let canary = Canary::new();
    let tar = TarForge::new()
        .add_named(Member::symlink("soft", ""), "soft", &canary.absolute("file"))
        .add(Member::hard_link("hard", "soft"))
        .finish();
    let outcome = on_image(
        &layer_image(&tar),
        "FROM base\nRUN readlink /hard > /seen && chown -h 5:5 /hard\n",
    )
    .run()
    .success();
    assert_eq!(outcome.text_of("seen").trim(), canary.absolute("file"));
    assert_eq!(outcome.tree().get("hard").kind, Kind::Symlink);
    canary.assert_untouched();
}

/// T6
#[test]
fn hard_links_to_what_is_not_there_are_decided_once() {
    let canary = Canary::new();
    let later = TarForge::of([Member::hard_link("early", "late"), Member::file("late", "here")]);
    assert_deterministic("a hard link to a later entry", &later, &canary);
    let hidden =
        TarForge::of([Member::whiteout("bin/.wh.wget"), Member::hard_link("link", "bin/wget")]);
    assert_deterministic("a hard link to a file that its layer hides", &hidden, &canary);
    assert_refused_both_ways(
        "a hard link to nothing",
        &TarForge::of([Member::hard_link("link", "nothing")]),
    );
}

/// T6: readers that unpack each layer alone refuse it; nobody may make anything else of it
#[test]
fn a_hard_link_to_a_lower_layers_file_is_that_file_or_refused() {
    let lower = TarForge::of([Member::file("lower", "from below\n")]);
    let upper = TarForge::of([Member::hard_link("upper", "lower")]);
    let image = ImageForge::busybox().layer(&lower).layer(&upper).forge();
    let run = on_image(&image, "FROM base\nRUN cat /upper > /seen\n").run();
    let copy = on_image(&image, "FROM scratch\nCOPY --from=base /upper /seen\n").run();
    assert_eq!(run.code(), copy.code(), "{}\n{}", run.stderr, copy.stderr);
    assert!(matches!(run.code(), Some(0 | 4)), "{}", run.stderr);
    if run.code() == Some(0) {
        assert_eq!(copy.text_of("seen"), "from below\n");
        assert_eq!(run.text_of("seen"), "from below\n");
    }
}

/// T8
#[test]
fn the_last_of_two_entries_wins() {
    let probe = "FROM base\nRUN stat -c %F /n > /seen; ls /n/ >> /seen 2>/dev/null; ls /bin/leak 2>/dev/null >> /seen; true\n";
    let seen = |members: Vec<Member>| {
        on_image(&layer_image(&TarForge::of(members)), probe).run().success().text_of("seen")
    };
    let file_then_directory =
        vec![Member::file("n", "old"), Member::directory("n"), Member::file("n/in", "new")];
    assert_eq!(seen(file_then_directory), "directory\nin\n");
    let directory_then_link =
        vec![Member::directory("n"), Member::file("n/leak", "old"), Member::symlink("n", "bin")];
    assert!(seen(directory_then_link).starts_with("symbolic link\n"));
    let twice = vec![Member::file("n", "old"), Member::file("n", "new and longer")];
    assert_eq!(seen(twice), "regular file\n");
    let leak =
        vec![Member::directory("n"), Member::file("n/leak", "old"), Member::symlink("n", "bin")];
    assert!(
        !seen(leak).contains("/bin/leak"),
        "nothing of the old directory leaks through the link"
    );
}

/// T9
#[test]
fn a_parent_that_is_a_file_is_replaced_or_refused() {
    let canary = Canary::new();
    let tar = TarForge::of([Member::file("p", "a file"), Member::file("p/child", "below it")]);
    assert_deterministic("a file below a file", &tar, &canary);
}

/// T10
#[test]
fn odd_names_are_kept_or_refused_never_cut() {
    let kept: [&[u8]; 5] =
        [b"new\nline", b"bytes\xff\xfe", b"back\\slash", b" blank ", b"\x1b[31mred"];
    for name in kept {
        let tar = TarForge::of([Member::file(name, "odd\n")]);
        let outcome =
            on_image(&layer_image(&tar), "FROM scratch\nCOPY --from=base / /all\n").run().success();
        let names = outcome.layout().layers();
        let found =
            names.iter().any(|layer| layer.windows(name.len()).any(|window| window == name));
        assert!(found, "{:?} is gone", String::from_utf8_lossy(name));
        assert!(!outcome.stderr.contains('\x1b'));
    }
    let component = "x".repeat(4096);
    let long = TarForge::new().add_named(Member::file("x", "1"), &component, "").finish();
    assert_refused_both_ways("a component of 4096 bytes", &long);
}

/// T10
#[test]
fn a_slash_after_a_files_name_is_no_reason_to_lose_it() {
    let canary = Canary::new();
    assert_deterministic(
        "a file with a trailing slash",
        &TarForge::of([Member::file("f/", "content")]),
        &canary,
    );
    assert_deterministic("a file called .", &TarForge::of([Member::file(".", "content")]), &canary);
    assert_deterministic(
        "a file with an empty name",
        &TarForge::of([Member::file("", "content")]),
        &canary,
    );
    assert_deterministic(
        "the root as a link",
        &TarForge::of([Member::symlink("./", "/etc")]),
        &canary,
    );
}

/// T25
#[test]
fn twins_in_case_and_normal_form_are_both_kept() {
    let names = ["A", "a", "caf\u{e9}", "cafe\u{301}"];
    let tar = TarForge::of(names.map(|name| Member::file(format!("t/{name}"), name)));
    let outcome =
        on_image(&layer_image(&tar), "FROM scratch\nCOPY --from=base /t /t\n").run().success();
    assert_eq!(outcome.tree().names("t").len(), names.len());
    let outcome = adding(&tar, "").run().success();
    for name in names {
        assert_eq!(outcome.text_of(&format!("dst/t/{name}")), name);
    }
}

/// T26
#[test]
fn our_listing_is_gnu_tars() {
    let long = "deep/".repeat(50) + "leaf";
    let tar = TarForge::new()
        .add(Member::directory("d/"))
        .add(Member::file("d/plain", "1"))
        .gnu_long_name(format!("gnu/{long}").as_bytes())
        .add(Member::file("cut", "2"))
        .add_named(Member::file("cut", "3"), &format!("pax/{long}"), "")
        .add(Member::symlink("d/soft", "plain"))
        .add(Member::hard_link("d/hard", "d/plain"))
        .add(Member::new(b'6', "d/pipe"))
        .add(Member::new(0, "old-style").body("4"))
        .finish();
    let outcome = adding(&tar, "").run().success();
    let path = outcome.layout.with_extension("fixture.tar");
    std::fs::write(&path, &tar).unwrap();
    let listing = crate::support::peers::run("tar", ["-tf", path.to_str().unwrap()]);
    for name in listing.lines() {
        assert!(outcome.tree().has(&format!("dst/{name}")), "{name} is in GNU tar's listing only");
    }
    let ours = outcome
        .tree()
        .entries
        .iter()
        .filter(|(path, entry)| path.starts_with("dst/") && entry.kind != Kind::Directory)
        .count();
    assert_eq!(ours, listing.lines().count() - 1);
}
