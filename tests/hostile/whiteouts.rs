//! Family W: whiteouts in bases, archives and steps.

use super::*;

fn stacked(lower: Vec<Member>, upper: Vec<Member>) -> Forged {
    ImageForge::busybox().layer(&TarForge::of(lower)).layer(&TarForge::of(upper)).forge()
}

/// The names in /d: as a RUN sees them, and as a COPY does.
#[track_caller]
fn assert_names(image: &Forged, expected: &[&str]) {
    let outcome = on_image(image, "FROM base AS run\nRUN ls /d > /seen\nFROM scratch\nCOPY --from=run /seen /\nCOPY --from=base /d /d\n").run().success();
    assert_eq!(outcome.text_of("seen").lines().collect::<Vec<_>>(), expected, "as a RUN sees it");
    let tree = outcome.tree();
    let mut names = tree.names("d");
    names.sort_unstable();
    assert_eq!(names, expected, "as a COPY sees it");
}

fn lower() -> Vec<Member> {
    vec![
        Member::directory("d"),
        Member::file("d/old", "1"),
        Member::directory("d/sub"),
        Member::file("d/sub/deep", "1"),
    ]
}

/// W28
#[test]
fn an_opaque_mark_hides_lower_content_only() {
    let (mark, new) = (Member::whiteout("d/.wh..wh..opq"), Member::file("d/new", "2"));
    assert_names(
        &stacked(lower(), vec![Member::directory("d"), mark.clone(), new.clone()]),
        &["new"],
    );
    assert_names(
        &stacked(lower(), vec![Member::directory("d"), new.clone(), mark.clone()]),
        &["new"],
    );
    assert_names(&stacked(lower(), vec![new, mark]), &["new"]);
}

/// W28: the same of a single name, and of one that the layer itself brings
#[test]
fn a_whiteout_hides_lower_content_only() {
    assert_names(&stacked(lower(), vec![Member::whiteout("d/.wh.old")]), &["sub"]);
    assert_names(
        &stacked(lower(), vec![Member::file("d/old", "2"), Member::whiteout("d/.wh.old")]),
        &["old", "sub"],
    );
    assert_names(&stacked(lower(), vec![Member::whiteout("d/.wh.never")]), &["old", "sub"]);
    let remade = vec![
        Member::whiteout("d/.wh.sub"),
        Member::directory("d/sub"),
        Member::file("d/sub/new", "2"),
    ];
    let outcome = on_image(&stacked(lower(), remade), "FROM scratch\nCOPY --from=base /d/sub /d\n")
        .run()
        .success();
    assert_eq!(outcome.tree().names("d"), ["new"]);
}

/// W29
#[test]
fn whiteouts_of_nothing_sensible_are_refused() {
    for name in ["d/.wh.", "d/.wh..", "d/.wh...", ".wh.", ".wh..", "d/.wh.../", "d/.wh../"] {
        let what = format!("a whiteout called {name}");
        assert_image_refused(&what, &stacked(lower(), vec![Member::whiteout(name)]));
    }
}

/// W30
#[test]
fn a_whiteout_through_a_link_leaves_the_outside_alone() {
    let canary = Canary::new();
    for target in [canary.path().to_owned(), canary.climbing("")] {
        let link = TarForge::new().add_named(Member::symlink("out", ""), "out", &target);
        let same = link
            .clone()
            .add(Member::whiteout("out/.wh.file"))
            .add(Member::whiteout("out/.wh..wh..opq"))
            .finish();
        let image = ImageForge::busybox().layer(&same).forge();
        outcome_of(
            "a whiteout through a link",
            on_image(&image, "FROM base\nRUN true\nCOPY --from=base / /all\n"),
        );
        canary.assert_untouched();
        let upper =
            TarForge::of([Member::whiteout("out/.wh.file"), Member::whiteout("out/.wh.folder")]);
        let image = ImageForge::busybox().layer(&link.finish()).layer(&upper).forge();
        outcome_of(
            "a whiteout through a lower layer's link",
            on_image(&image, "FROM base\nRUN true\nCOPY --from=base / /all\n"),
        );
        canary.assert_untouched();
    }
}

/// W30: by names that climb
#[test]
fn a_whiteout_that_climbs_leaves_the_outside_alone() {
    let canary = Canary::new();
    let name = canary.climbing(".wh.file");
    let tar = TarForge::new().add_named(Member::whiteout("x"), &name, "").finish();
    outcome_of("a whiteout that climbs", on_image(&layer_image(&tar), "FROM base\nRUN true\n"));
    canary.assert_untouched();
}

/// W32, as rules.md section 1 decided it: the name is written as it is, and so hides its namesake in every reader and in our next step
#[test]
fn a_file_with_a_whiteouts_name_hides_its_namesake() {
    let outcome = Build::new("FROM {busybox}\nRUN mkdir /d && touch /d/a /d/b\nRUN touch /d/.wh.a\nRUN ls -a /d > /seen\n").run().success();
    assert_eq!(outcome.text_of("seen").lines().collect::<Vec<_>>(), [".", "..", "b"]);
    assert_eq!(outcome.tree().names("d"), ["b"]);
    assert!(outcome.layout().layer_names(2).iter().any(|name| name.ends_with("d/.wh.a")));
}

/// W33
#[test]
fn whiteouts_of_a_stage_are_not_copied_as_files() {
    let dockerfile = "FROM {busybox} AS one\nRUN mkdir /d && touch /d/a /d/b\nRUN rm /d/a\nFROM scratch\nCOPY --from=one /d /d\n";
    let build = Build::new(dockerfile);
    for outcome in [build.run().success(), build.run().success()] {
        let names = outcome.layout().layer_names(0);
        assert!(!names.iter().any(|name| name.contains(".wh.")), "{names:?}");
        assert_eq!(outcome.tree().names("d"), ["b"]);
    }
}

/// W33: from a base image
#[test]
fn whiteouts_of_a_base_are_not_copied_as_files() {
    let image = stacked(
        lower(),
        vec![Member::whiteout("d/.wh.old"), Member::whiteout("d/sub/.wh..wh..opq")],
    );
    let outcome = on_image(&image, "FROM scratch\nCOPY --from=base /d /d\n").run().success();
    let names = outcome.layout().layer_names(0);
    assert!(!names.iter().any(|name| name.contains(".wh.")), "{names:?}");
}

/// Whiteouts in an archive that ADD unpacks are files like others: BuildKit writes them as they are
#[test]
fn whiteout_names_in_an_added_archive_do_no_harm() {
    let canary = Canary::new();
    let tar = TarForge::of([
        Member::whiteout(".wh.bin"),
        Member::whiteout(".wh..wh..opq"),
        Member::whiteout("../.wh.etc"),
    ]);
    assert_deterministic("whiteouts in an archive", &tar, &canary);
}
