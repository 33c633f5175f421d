//! Family T: what an archive's headers, extensions and blocks hold.

use std::os::unix::fs::MetadataExt;

use super::*;
use crate::support::tar_forge::pax_record;

fn good() -> Member {
    Member::file("good", "good")
}

/// T12
#[test]
fn malformed_pax_records_are_refused() {
    let doubled = [pax_record("path", b"one"), pax_record("path", b"two")].concat();
    let cases: [(&str, Vec<u8>); 9] = [
        ("a length that is too long", b"30 path=x\n".to_vec()),
        ("a length that is too short", b"8 path=abcdef\n".to_vec()),
        ("a length that is no number", b"xx path=abc\n".to_vec()),
        ("a negative length", b"-9 path=abc\n".to_vec()),
        ("an enormous length", b"99999999999999999999 path=abc\n".to_vec()),
        ("a record without newline", b"12 path=abcd".to_vec()),
        ("a record without =", b"10 pathabc\n".to_vec()),
        ("two paths", doubled),
        ("a NUL in a path", pax_record("path", b"evil\0name")),
    ];
    for (what, body) in cases {
        assert_refused_both_ways(what, &TarForge::new().pax_raw(&body).add(good()).finish());
    }
}

/// T12: the same for a link's target
#[test]
fn a_nul_in_a_link_is_refused() {
    let tar = TarForge::new()
        .pax_raw(&pax_record("linkpath", b"etc\0/x"))
        .add(Member::symlink("l", "y"))
        .finish();
    assert_refused_both_ways("a NUL in a linkpath", &tar);
}

/// T13
#[test]
fn ambiguous_names_are_refused() {
    let both =
        TarForge::new().gnu_long_name(b"by-gnu").pax(&[("path", b"by-pax")]).add(good()).finish();
    assert_refused_both_ways("a GNU long name and a PAX path", &both);
    let orphan = TarForge::new().add(good()).gnu_long_name(b"for-nobody").finish();
    assert_refused_both_ways("a GNU long name at the end", &orphan);
    let two = TarForge::new().gnu_long_name(b"one").gnu_long_name(b"two").add(good()).finish();
    assert_refused_both_ways("two GNU long names", &two);
    let orphan = TarForge::new().add(good()).pax(&[("path", b"for-nobody")]).finish();
    assert_refused_both_ways("a PAX header at the end", &orphan);
}

/// T14
#[test]
fn global_headers_do_not_name_things() {
    for (key, value) in [("path", "everywhere"), ("linkpath", "/etc/passwd"), ("size", "1")] {
        let tar = TarForge::new().global_pax(&[(key, value.as_bytes())]).add(good()).finish();
        assert_refused_both_ways(&format!("a global {key}"), &tar);
    }
    let comment = TarForge::new()
        .global_pax(&[("comment", b"made by git archive")])
        .add(Member::file("f", "ok\n"))
        .finish();
    assert_layer_file(&comment, "/f", "ok\n");
}

/// T16
#[test]
fn numbers_at_the_edges_are_clamped_or_refused() {
    let canary = Canary::new();
    let pax = |key: &str, value: &str| {
        TarForge::new().pax(&[(key, value.as_bytes())]).add(good()).finish()
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("uid -1", TarForge::of([good().base256(108, 8, -1)])),
        ("uid 2^32", TarForge::of([good().base256(108, 8, 1 << 32)])),
        ("uid 2^56", TarForge::of([good().base256(108, 8, 1 << 54)])),
        ("gid 2^32-1", TarForge::of([good().base256(116, 8, 0xffff_ffff)])),
        ("size -1", TarForge::of([good().base256(124, 12, -1)])),
        ("size 2^63", TarForge::of([good().base256(124, 12, 1 << 63)])),
        ("mtime in the year 40000", TarForge::of([good().base256(136, 12, 1_200_000_000_000)])),
        ("mtime before 1970", TarForge::of([good().base256(136, 12, -1_000_000)])),
        ("mtime 2^80", TarForge::of([good().base256(136, 12, 1 << 80)])),
        ("PAX uid -1", pax("uid", "-1")),
        ("PAX uid with a plus", pax("uid", "+5")),
        ("PAX uid 4294967295", pax("uid", "4294967295")),
        ("PAX mtime with nanoseconds", pax("mtime", "1000000000.999999999")),
        ("PAX mtime negative", pax("mtime", "-1.5")),
        ("PAX mtime of nothing", pax("mtime", "")),
        ("PAX mtime 1e9", pax("mtime", "1e9")),
        ("PAX size beyond the archive", pax("size", "99999999999")),
        ("PAX size negative", pax("size", "-4")),
        ("octal with a nine", TarForge::of([good().raw(108, b"0000099\0")])),
        ("a mode with more than 12 bits", TarForge::of([good().mode(0o177777)])),
        (
            "a device number that is too large",
            TarForge::of([Member::new(b'3', "dev").base256(329, 8, 1 << 40)]),
        ),
    ];
    for (what, tar) in cases {
        assert_deterministic(what, &tar, &canary);
    }
}

/// T16: what was accepted is written back as plain ustar or PAX that GNU tar reads
#[test]
fn large_numbers_are_written_back() {
    let tar =
        TarForge::of([good().base256(108, 8, 3_000_000_000).base256(136, 12, 20_000_000_000)]);
    let outcome = on_image(&layer_image(&tar), "FROM scratch\nCOPY --from=base /good /good\n")
        .run()
        .success();
    assert_eq!(outcome.tree().get("good").uid, 3_000_000_000);
    let layer = outcome.layout.with_extension("layer.tar");
    std::fs::write(&layer, &outcome.layout().layers()[0]).unwrap();
    let listing =
        crate::support::peers::run("tar", ["--numeric-owner", "-tvf", layer.to_str().unwrap()]);
    assert!(listing.contains("3000000000/0"), "{listing}");
}

/// T17
#[test]
fn broken_blocks_are_refused() {
    assert_layer_refused("a wrong checksum", &TarForge::of([good().wrong_checksum()]));
    assert_archive_refused("a wrong checksum", &TarForge::of([good().wrong_checksum()]));
    let tail =
        TarForge::new().add(good()).zero_blocks(2).add(Member::file("smuggled", "x")).finish();
    assert_refused_both_ways("entries after the end", &tail);
    let garbage = TarForge::new().add(good()).zero_blocks(2).raw(&[0x41; 512]).unfinished();
    assert_refused_both_ways("garbage after the end", &garbage);
    assert_layer_refused("no tar at all", &[0x41; 2048]);
}

/// T17
#[test]
fn missing_end_blocks_are_accepted() {
    let tar = TarForge::new().add(Member::file("f", "whole\n")).unfinished();
    assert_layer_file(&tar, "/f", "whole\n");
    assert_added_file(&tar, "/dst/f", "whole\n");
    let padded = TarForge::new().add(Member::file("f", "whole\n")).zero_blocks(40).unfinished();
    assert_layer_file(&padded, "/f", "whole\n");
}

/// T18
#[test]
fn truncated_archives_are_refused() {
    let whole =
        TarForge::new().add(good()).add(Member::file("long", vec![b'x'; 3000])).unfinished();
    for (what, length) in [
        ("in a header", 1024 + 100),
        ("after a header", 1536),
        ("in a body", 1536 + 700),
        ("in the padding", whole.len() - 10),
    ] {
        assert_refused_both_ways(&format!("truncated {what}"), &whole[..length]);
    }
}

/// T20
#[test]
fn setuid_bits_stay_in_the_layer_and_out_of_reach() {
    let tar = TarForge::of([Member::file("su", "x").mode(0o6755)]);
    let build = on_image(
        &layer_image(&tar),
        "FROM base\nRUN chown 0:0 /su && chmod 6711 /su\nCOPY --from=base /su /copied\n",
    );
    let outcome = build.run().success();
    assert_eq!(outcome.tree().get("su").mode, 0o6711);
    assert_eq!(outcome.tree().get("copied").mode, 0o6755);
    let state = std::fs::metadata(build.state_directory()).unwrap();
    assert_eq!(state.mode() & 0o7777, 0o700, "others cannot reach what is in the state directory");
}

/// T21
#[test]
fn only_capabilities_go_into_new_layers() {
    let capability = [1u8, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let tar = TarForge::new()
        .pax(&[
            ("SCHILY.xattr.security.capability", &capability[..]),
            ("SCHILY.xattr.user.note", b"mine"),
            ("SCHILY.xattr.security.selinux", b"label\0"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.redirect", b"/etc"),
        ])
        .add(Member::file("f", "content").mode(0o755))
        .finish();
    let outcome =
        on_image(&layer_image(&tar), "FROM base\nCOPY --from=base /f /copied\nRUN chmod 0700 /f\n")
            .run()
            .success();
    let tree = outcome.tree();
    for path in ["f", "copied"] {
        assert_eq!(tree.get(path).capability.as_deref(), Some(&capability[..]), "{path}");
        assert!(tree.get(path).xattrs.is_empty(), "{path}: {:?}", tree.get(path).xattrs);
    }
    let outcome = adding(&tar, "").run().success();
    assert!(outcome.tree().get("dst/f").xattrs.is_empty());
}

/// T21: an image cannot make a directory opaque or redirected by naming overlayfs's own attributes
#[test]
fn overlay_attributes_of_an_image_have_no_effect() {
    let lower = TarForge::of([
        Member::directory("d"),
        Member::file("d/kept", "kept\n"),
        Member::directory("e"),
        Member::file("e/other", "x"),
    ]);
    for name in ["trusted.overlay", "user.overlay"] {
        let (opaque, redirect) =
            (format!("SCHILY.xattr.{name}.opaque"), format!("SCHILY.xattr.{name}.redirect"));
        let upper = TarForge::new()
            .pax(&[(&opaque, b"y"), (&redirect, b"/e")])
            .add(Member::directory("d"))
            .finish();
        let image = ImageForge::busybox().layer(&lower).layer(&upper).forge();
        let outcome = on_image(&image, "FROM base\nRUN cat /d/kept > /seen && ls /d >> /seen\n")
            .run()
            .success();
        assert_eq!(outcome.text_of("seen"), "kept\nkept\n", "{name}");
    }
}

/// T21
#[test]
fn enormous_attributes_are_bounded() {
    let canary = Canary::new();
    let large = vec![b'v'; 64 << 10];
    let tar = TarForge::new().pax(&[("SCHILY.xattr.user.large", &large[..])]).add(good()).finish();
    assert_deterministic("an attribute of 64 KiB", &tar, &canary);
    let body: Vec<u8> =
        (0..10_000).flat_map(|n| pax_record(&format!("SCHILY.xattr.user.n{n}"), b"v")).collect();
    let tar = TarForge::new().pax_raw(&body).add(good()).finish();
    assert_deterministic("10,000 attributes", &tar, &canary);
    let endless = TarForge::new()
        .add(Member::new(b'x', "PaxHeaders/x").declared_size(0o77777777777))
        .unfinished();
    assert_refused_both_ways("a PAX header of 8 GiB", &endless);
    let endless = TarForge::new()
        .add(Member::new(b'L', "././@LongLink").declared_size(0o77777777777))
        .unfinished();
    assert_refused_both_ways("a long name of 8 GiB", &endless);
    let huge = vec![b'n'; 64 << 20];
    assert_refused_both_ways(
        "a long name of 64 MiB",
        &TarForge::new().gnu_long_name(&huge).add(good()).finish(),
    );
}

/// T21: a version-3 capability belongs to a user namespace
#[test]
fn a_capability_of_version_3_is_not_passed_on_as_it_is() {
    let mut value = vec![1u8, 0, 0, 3, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    value.extend(1000u32.to_le_bytes());
    let tar =
        TarForge::new().pax(&[("SCHILY.xattr.security.capability", &value)]).add(good()).finish();
    let outcome =
        on_image(&layer_image(&tar), "FROM scratch\nCOPY --from=base /good /good\n").run();
    assert!(matches!(outcome.code(), Some(1 | 3 | 4)), "{:?} {}", outcome.code(), outcome.stderr);
    assert!(outcome.stderr.contains("capability"), "{}", outcome.stderr);
}

/// T22
#[test]
fn access_lists_are_told_of_once() {
    let mut forge = TarForge::new();
    for n in 0..2000 {
        forge = forge
            .pax(&[("SCHILY.acl.access", b"user::rwx,user:1:r--,group::r--,mask::r--,other::---")])
            .add(Member::file(format!("f{n}"), ""));
    }
    let tar = forge.finish();
    let outcome = on_image(&layer_image(&tar), "FROM base\nRUN true\n").run().success();
    let told = outcome.stderr.lines().filter(|line| line.to_lowercase().contains("acl")).count();
    assert!(told <= 1, "{told} lines");
}

/// T24
#[test]
fn unknown_types_are_refused() {
    for kind in [b'7', b'M', b'V', b'D', b'N', b'S', b'Z', 0xff] {
        assert_refused_both_ways(
            &format!("type {kind:#x}"),
            &TarForge::of([good(), Member::new(kind, "odd").body("x")]),
        );
    }
}
