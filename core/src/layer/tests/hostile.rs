//! Families T, W and B: what comes out of archives that are against us.

use super::{forge::Forge, *};
use crate::layer::tar::{MemberKind, TarReader};

/// `path` with a letter for the kind, in order; `o` is an opaque directory, `i` an implied one.
fn list(archive: &[u8]) -> Result<Vec<String>, String> {
    let mut model = Model::default();
    let layer = read_layer(&mut { archive }, PLAIN, ReadLimits::default(), Some(&mut model))
        .map_err(|error| chain(&error))?;
    let told = std::mem::take(&mut model.index).build();
    assert_eq!(kinds(&told), kinds(&layer.index), "the sink was told something else");
    assert_eq!(layer.diff_id, Digest::of(archive));
    Ok(kinds(&layer.index))
}

fn kinds(index: &LayerIndex) -> Vec<String> {
    let letter = |row: &Row| match &row.kind {
        Kind::Directory { opaque: true } => "o".to_owned(),
        Kind::Directory { .. } if row.implied => "i".to_owned(),
        Kind::Directory { .. } => "d".to_owned(),
        Kind::File { size } => format!("f{size}"),
        Kind::Symlink { .. } => "l".to_owned(),
        Kind::CharacterDevice { .. } | Kind::BlockDevice { .. } => "n".to_owned(),
        Kind::Fifo => "p".to_owned(),
        Kind::Whiteout => "w".to_owned(),
    };
    index.rows().iter().map(|row| format!("{} {}", row.path, letter(row))).collect()
}

fn chain(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(chain).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

#[track_caller]
fn refused(archive: Vec<u8>, why: &str) {
    let error = list(&archive).expect_err("must be refused");
    assert!(error.contains(why), "{error:?} does not say {why:?}");
}

fn forge() -> Forge {
    Forge::default()
}

#[test]
fn names_stay_in_the_root() {
    let archive = forge()
        .file("../evil", b"1")
        .file("a/../../up", b"12")
        .file("/etc/absolute", b"123")
        .file("./dotted", b"")
        .end();
    let expected = ["/dotted f0", "/etc i", "/etc/absolute f3", "/evil f1", "/up f2"];
    assert_eq!(list(&archive).unwrap(), expected);
}

#[test]
fn links_of_the_same_layer_are_followed_inside_the_root() {
    let archive = forge()
        .symlink("a", "/")
        .file("a/etc/canary", b"1")
        .symlink("up", "../../..")
        .file("up/x", b"")
        .symlink("dangling", "nowhere/at/all")
        .file("dangling/y", b"")
        .symlink("d/rel", "../e")
        .file("d/rel/z", b"")
        .end();
    let listed = list(&archive).unwrap();
    for name in ["/etc/canary f1", "/x f0", "/nowhere/at/all/y f0", "/e/z f0", "/a l", "/d/rel l"] {
        assert!(listed.contains(&name.to_owned()), "{name} of {listed:?}");
    }
}

#[test]
fn a_link_is_not_followed_before_it_is_there() {
    let archive = forge().file("a/x", b"").symlink("b", "a").file("b/y", b"").end();
    assert_eq!(list(&archive).unwrap(), ["/a i", "/a/x f0", "/a/y f0", "/b l"]);
}

#[test]
fn chains_and_loops_of_links_end() {
    let chain = |length: usize| {
        let mut archive = forge().directory("d0");
        for at in 1..=length {
            archive = archive.symlink(&format!("d{at}"), &format!("d{}", at - 1));
        }
        archive.file(&format!("d{length}/x"), b"").end()
    };
    assert!(list(&chain(40)).unwrap().contains(&"/d0/x f0".to_owned()));
    refused(chain(41), "too many levels of symbolic links");
    let looped = forge().symlink("a", "b").symlink("b", "a").file("a/x", b"").end();
    refused(looped, "too many levels of symbolic links");
}

#[test]
fn hard_links_lead_to_earlier_names_of_the_layer() {
    let archive = forge()
        .file("f", b"12")
        .symlink("s", "f")
        .symlink("dir", "real")
        .file("real/g", b"1")
        .link("l1", "/f")
        .link("l2", "../../f")
        .link("l3", "s")
        .link("dir/l4", "dir/g")
        .end();
    let layer = read(&archive, PLAIN).unwrap();
    let group = |name: &str| layer.index.get(&path(name)).unwrap().link_group;
    assert!(group("f") > 0 && group("f") == group("l1") && group("l1") == group("l2"));
    assert_eq!(group("s"), group("l3"));
    assert_eq!(group("real/g"), group("real/l4"));
    assert_ne!(group("real/g"), group("f"));
    let row = |name: &str| layer.index.get(&path(name)).unwrap();
    assert_eq!(row("l1").kind, Kind::File { size: 2 });
    assert_eq!(row("l1").tar_offset, row("f").tar_offset);
    assert_eq!(row("l3").kind, row("s").kind);
}

#[test]
fn hard_links_to_anything_else_are_refused_by_name() {
    let why = "hard link /l leads to";
    refused(forge().link("l", "later").file("later", b"").end(), why);
    refused(forge().link("l", "lower/layer").end(), why);
    refused(forge().link("l", "/etc/shadow").end(), why);
    refused(forge().directory("d").link("l", "d").end(), why);
    refused(forge().file(".wh.gone", b"").link("l", "gone").end(), why);
    refused(forge().file("l", b"").link("l", "l").end(), why);
    refused(forge().file("l/f", b"").link("l", "l/f").end(), why);
    refused(forge().file("f", b"").link("l", "").end(), why);
    refused(forge().file("f", b"").link("f/l", "f").end(), "hard link /f/l leads to");
}

#[test]
fn a_hard_link_sets_the_metadata_of_all_its_names() {
    let archive = forge()
        .file("f", b"1")
        .header(b'1', b"l", 0, |block| {
            block[100..108].copy_from_slice(b"0004755\0");
            block[157] = b'f';
        })
        .end();
    let layer = read(&archive, PLAIN).unwrap();
    for name in ["f", "l"] {
        assert_eq!(layer.index.get(&path(name)).unwrap().metadata.mode, 0o4755);
    }
}

#[test]
fn the_last_entry_of_a_name_counts() {
    let archive = forge()
        .file("x", b"1")
        .directory("x")
        .file("x/in", b"")
        .directory("y")
        .file("y/in", b"")
        .symlink("y", "x")
        .file("z", b"1")
        .file("z", b"123")
        .file("m/a", b"")
        .directory("m")
        .end();
    let expected = ["/m d", "/m/a f0", "/x d", "/x/in f0", "/y l", "/z f3"];
    assert_eq!(list(&archive).unwrap(), expected);
}

#[test]
fn a_file_in_the_way_of_a_parent_is_replaced() {
    let archive = forge().file("f", b"1").file("f/below", b"").end();
    assert_eq!(list(&archive).unwrap(), ["/f i", "/f/below f0"]);
}

#[test]
fn odd_names_are_kept_or_refused() {
    let long = "n".repeat(255);
    let archive = forge()
        .pax(&[("path", b"line\nbreak")])
        .file("x", b"")
        .pax(&[("path", b"\xff\xfe")])
        .file("x", b"")
        .pax(&[("path", long.as_bytes())])
        .file("x", b"")
        .file("A", b"")
        .file("a", b"")
        .pax(&[("path", "e\u{301}".as_bytes())])
        .file("x", b"")
        .pax(&[("path", "\u{e9}".as_bytes())])
        .file("x", b"")
        .end();
    assert_eq!(list(&archive).unwrap().len(), 7);
    let path = |name: &[u8]| forge().pax(&[("path", name)]).file("x", b"").end();
    refused(path(&[b'n'; 256]), "longer than 255");
    refused(path(&[b'n'; 4096]), "longer than 255");
    refused(path(&[&b"dir/".repeat(1100)[..], b"f"].concat()), "longer than 4095");
    refused(path(b"a\0b"), "NUL");
    refused(forge().file("slash/", b"1").end(), "ends in a slash");
    refused(forge().extension(b'L', b"a\0b\0").file("x", b"").end(), "NUL");
    refused(forge().symlink("s", "").end(), "target of 0 bytes");
    let target = [b't'; 4096];
    refused(forge().pax(&[("linkpath", &target)]).symlink("s", "x").end(), "4096 bytes");
    let old = forge().header(0, b"old/", 0, |block| block[257..265].fill(0)).end();
    assert_eq!(list(&old).unwrap(), ["/old d"]);
}

#[test]
fn a_name_that_fills_its_fields_is_whole() {
    let archive = forge()
        .header(b'0', &[b'n'; 100], 0, |block| block[345..500].fill(b'p'))
        .header(b'5', &[b'n'; 100], 0, |block| {
            block[257..265].copy_from_slice(b"ustar  \0");
            block[345..357].copy_from_slice(b"12345670123\0");
        })
        .end();
    let names = list(&archive).unwrap();
    let expected = format!("/{}/{} f0", "p".repeat(155), "n".repeat(100));
    assert!(names.contains(&expected), "{names:?}");
    assert!(names.contains(&format!("/{} d", "n".repeat(100))), "GNU has no prefix: {names:?}");
}

#[test]
fn pax_headers_are_strict() {
    let x = |bytes: &[u8]| forge().extension(b'x', bytes).file("x", b"").end();
    for bad in [
        &b"12 path=evil\n"[..],
        b"11 path=evil\n",
        b"12 path=evil ",
        b"9 path=a\n9 path=b\n",
        b"11 size=-1\n",
        b"99999999999999999999999 path=a\n",
        b"12 =no key\n",
    ] {
        refused(x(bad), "PAX");
    }
    let smuggled = forge()
        .pax(&[("SCHILY.xattr.security.capability", b"\x01\n12 path=evil\n"), ("comment", b"c")])
        .file("good", b"")
        .end();
    assert_eq!(list(&smuggled).unwrap(), ["/good f0"]);
}

#[test]
fn ambiguous_extensions_are_refused() {
    let why = "ambiguous";
    let long = |name: &[u8]| forge().extension(b'L', name);
    refused(long(b"a\0").pax(&[("path", b"b")]).file("x", b"").end(), why);
    refused(forge().pax(&[("path", b"b")]).extension(b'L', b"a\0").file("x", b"").end(), why);
    refused(long(b"a\0").extension(b'L', b"b\0").file("x", b"").end(), why);
    refused(forge().pax(&[("uid", b"1")]).pax(&[("uid", b"2")]).file("x", b"").end(), why);
    refused(long(b"a\0").end(), why);
    refused(long(b"a\0").bytes(), why);
    refused(forge().extension(b'K', b"a\0").end(), why);
    refused(forge().pax(&[("mtime", b"1")]).bytes(), why);
    refused(long(b"a\0").extension(b'g', b"").file("x", b"").end(), why);
    let fine = long(b"long\0").pax(&[("mtime", b"1.5")]).file("x", b"").end();
    assert_eq!(list(&fine).unwrap(), ["/long f0"]);
}

#[test]
fn global_headers_do_not_name_members() {
    for (key, value) in [("path", "evil"), ("linkpath", "evil"), ("size", "5")] {
        let bytes = forge::record(key, value.as_bytes());
        refused(forge().extension(b'g', &bytes).file("x", b"").end(), "global");
    }
    let git = forge().extension(b'g', &forge::record("comment", b"0123abc")).file("x", b"").end();
    assert_eq!(list(&git).unwrap(), ["/x f0"]);
}

#[test]
fn numbers_at_the_edges() {
    let with = |at: usize, field: &'static [u8]| {
        forge().header(b'0', b"x", 0, |block| block[at..at + field.len()].copy_from_slice(field))
    };
    refused(with(108, b"\xff\xff\xff\xff\xff\xff\xff\xff").end(), "out of range");
    refused(with(108, b"\x80\0\0\0\xff\xff\xff\xff").end(), "out of range");
    refused(with(108, b"\x80\0\0\x01\0\0\0\0").end(), "out of range");
    refused(with(124, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff").end(), "negative");
    refused(with(124, b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff").end(), "no number");
    refused(with(124, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff").bytes(), "cut short");
    refused(with(124, b"000000000+1\0").end(), "no number");
    let time = |archive: Vec<u8>| {
        let layer = read(&archive, PLAIN).unwrap();
        layer.index.get(&path("x")).unwrap().metadata.mtime
    };
    let pax = |text: &[u8]| forge().pax(&[("mtime", text)]).file("x", b"").end();
    assert_eq!(time(pax(b"-1.25")), Timestamp { seconds: -2, nanoseconds: 750_000_000 });
    assert_eq!(time(pax(b"1200000000000")).seconds, 9_223_372_036, "year 40000");
    assert_eq!(time(pax(b"-99999999999")).seconds, -(1 << 31));
    let negative = with(136, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfb").end();
    assert_eq!(time(negative).seconds, -5);
    let owned = with(108, b"\x80\0\0\0\xff\xff\xff\xfe").end();
    let layer = read(&owned, PLAIN).unwrap();
    assert_eq!(layer.index.get(&path("x")).unwrap().metadata.uid, u32::MAX - 1);
}

#[test]
fn damaged_and_cut_archives_are_refused() {
    let good = forge().file("x", &[7; 700]).end();
    let mut wrong = good.clone();
    wrong[0] = b'y';
    refused(wrong, "checksum");
    for (length, what) in [(100, "header"), (512 + 300, "body"), (512 + 701, "padding")] {
        let error = list(&good[..length]).expect_err(what);
        assert!(error.contains("cut short"), "{what}: {error}");
    }
    refused(forge().file("x", b"").raw(b"garbage").bytes(), "cut short");
}

#[test]
fn what_follows_the_end_is_refused() {
    let tail = forge().file("evil", b"").bytes();
    refused(forge().file("x", b"").raw(&[0; 1024]).raw(&tail).end(), "follows the end");
    refused(forge().file("x", b"").raw(&[0; 512]).raw(&tail).end(), "follows the end");
    refused(forge().file("x", b"").raw(&[0; 10_240]).raw(b"!").bytes(), "follows the end");
    let padded = forge().file("x", b"").raw(&[0; 10_240 + 7]).bytes();
    assert_eq!(list(&padded).unwrap(), ["/x f0"]);
}

#[test]
fn a_missing_end_is_a_warning() {
    for archive in
        [forge().file("x", b"").bytes(), forge().file("x", b"").raw(&[0; 512]).bytes(), Vec::new()]
    {
        assert_eq!(read(&archive, PLAIN).unwrap().warnings.len(), 1);
    }
    assert!(read(&forge().end(), PLAIN).unwrap().warnings.is_empty());
}

#[test]
fn types_that_mean_nothing_here_are_refused() {
    for typeflag in [b'7', b'M', b'V', b'N', b'D', b'A', b'X', b'8', b'z', 0xff] {
        refused(forge().header(typeflag, b"x", 0, |_| {}).end(), "is of type");
    }
    refused(forge().header(b'S', b"x", 0, |_| {}).end(), "sparse");
    refused(forge().pax(&[("GNU.sparse.major", b"1")]).file("x", b"").end(), "sparse");
    for typeflag in [b'2', b'3', b'4', b'5', b'6'] {
        refused(forge().header(typeflag, b"x", 5, |_| {}).body(b"12345").end(), "has a size");
    }
    let sized = forge().file("f", b"12").header(b'1', b"l", 2, |b| b[157] = b'f').end();
    assert_eq!(list(&sized).unwrap(), ["/f f2", "/l f2"], "a hard link's size says nothing");
}

#[test]
fn the_root_is_a_directory_and_no_row() {
    let archive = forge().directory("./").directory("/").directory("").file("x", b"").end();
    assert_eq!(list(&archive).unwrap(), ["/x f0"]);
    refused(forge().symlink("/", "etc").end(), "root is no directory");
    refused(forge().file("..", b"").end(), "root is no directory");
}

#[test]
fn attributes_other_than_the_capability_are_counted_and_dropped() {
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let big = vec![b'v'; 64 << 10];
    let names: Vec<String> = (0..10_000).map(|at| format!("SCHILY.xattr.user.{at}")).collect();
    let mut records: Vec<(&str, &[u8])> = names.iter().map(|name| (&name[..], &b"v"[..])).collect();
    records.push(("SCHILY.xattr.security.capability", capability));
    records.push(("SCHILY.xattr.trusted.overlay.opaque", b"y"));
    records.push(("SCHILY.xattr.security.selinux", b"label"));
    records.push(("SCHILY.acl.access", &big));
    let layer = read(&forge().pax(&records).file("x", b"").end(), PLAIN).unwrap();
    let row = layer.index.get(&path("x")).unwrap();
    assert_eq!(row.metadata.capability.as_deref(), Some(&capability[..]));
    assert_eq!(layer.warnings.len(), 1);
    assert!(layer.warnings[0].starts_with("10003 "), "{:?}", layer.warnings);
}

#[test]
fn limits_hold() {
    let limits = ReadLimits {
        uncompressed_bytes_max: 100_000,
        members_max: 10,
        extension_bytes_max: 1000,
        ..ReadLimits::default()
    };
    let read = |archive: Vec<u8>| {
        let error = read_layer(&mut &archive[..], PLAIN, limits, None).map(|layer| layer.diff_id);
        error.map_err(|error| chain(&error))
    };
    let members =
        |count| (0..count).fold(forge(), |forge, at| forge.file(&at.to_string(), b"")).end();
    assert!(read(members(10)).is_ok());
    assert!(read(members(11)).unwrap_err().contains("10 members"));
    assert!(read(forge().file("x", &[0; 100_000]).end()).unwrap_err().contains("100000"));
    let pax = forge().pax(&[("comment", &[b'c'; 1000])]).file("x", b"").end();
    assert!(read(pax).unwrap_err().contains("1000 bytes"));
    let claimed = forge().header(b'x', b"x", 1 << 40, |_| {}).bytes();
    assert!(read(claimed).unwrap_err().contains("1000 bytes"));
}

#[test]
fn deep_names_are_paid_for() {
    let deep = |at: u32| format!("{}{at}", "d/".repeat(2040));
    let forge = |count| {
        (0..count).fold(Forge::default(), |forge, at| {
            forge.pax(&[("path", format!("{at}/{}", &deep(at)[4..]).as_bytes())]).file("x", b"")
        })
    };
    let limits = ReadLimits { index_bytes_max: 10 << 20, ..ReadLimits::default() };
    let read = |archive: Vec<u8>| read_layer(&mut &archive[..], PLAIN, limits, None);
    assert_eq!(read(forge(1).end()).unwrap().index.rows().len(), 2040);
    let error = chain(&read(forge(10).end()).unwrap_err());
    assert!(error.contains("bytes of names"), "{error}");
    let target = [b't'; 4000];
    let links = (0..3000).fold(Forge::default(), |forge, at| {
        forge.pax(&[("linkpath", &target)]).symlink(&at.to_string(), "x")
    });
    assert!(read(links.end()).is_err());
    let capability = [0; 25];
    let long = Forge::default().pax(&[("SCHILY.xattr.security.capability", &capability)]);
    refused(long.file("x", b"").end(), "capability is too long");
}

#[test]
fn a_bomb_is_refused_by_its_ratio() {
    let zeros = forge().file("zeros", &vec![0; 64 << 20]).end();
    let blob = zstd::bulk::compress(&zeros, 1).unwrap();
    let media_type = "application/vnd.oci.image.layer.v1.tar+zstd";
    let limits = ReadLimits { ratio_free_bytes: 1 << 20, ratio_max: 1000, ..ReadLimits::default() };
    let error = read_layer(&mut &blob[..], media_type, limits, None).unwrap_err();
    assert!(matches!(error, LayerError::Ratio { ratio: 1000 }), "{error}");
    assert!(read(&blob, media_type).is_ok());
}

#[test]
fn whiteouts_and_opaque_markers() {
    let archive = forge()
        .file("d/.wh.gone", b"")
        .file("o/before", b"")
        .file("o/.wh..wh..opq", b"")
        .file("o/after", b"")
        .directory("o")
        .end();
    let expected = ["/d i", "/d/gone w", "/o o", "/o/after f0", "/o/before f0"];
    assert_eq!(list(&archive).unwrap(), expected);
    let root = forge().file(".wh..wh..opq", b"").file("x", b"").end();
    assert_eq!(list(&root).unwrap(), ["/ o", "/x f0"]);
}

#[test]
fn a_whiteout_acts_on_lower_layers_only() {
    let after = forge().file("f", b"1").file(".wh.f", b"").end();
    assert_eq!(list(&after).unwrap(), ["/f f1"]);
    let before = forge().file(".wh.f", b"").file("f", b"1").end();
    assert_eq!(list(&before).unwrap(), ["/f f1"]);
    for archive in [
        forge().file(".wh.d", b"").directory("d").file("d/x", b""),
        forge().directory("d").file("d/x", b"").file(".wh.d", b""),
        forge().file(".wh.d", b"").file("d/x", b""),
    ] {
        assert_eq!(list(&archive.end()).unwrap(), ["/d o", "/d/x f0"]);
    }
    let deep = forge().file(".wh.d", b"").file("d/e/.wh..wh..opq", b"").end();
    assert_eq!(list(&deep).unwrap(), ["/d o", "/d/e o"]);
    let linked = forge().file("f", b"").file(".wh.d", b"").link("d/l", "f").end();
    assert_eq!(list(&linked).unwrap(), ["/d o", "/d/l f0", "/f f0"]);
}

#[test]
fn malformed_whiteouts_are_refused() {
    for name in [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh..", "d/.wh.../", "d/.wh./."] {
        refused(forge().header(b'5', name.as_bytes(), 0, |_| {}).end(), "invalid whiteout");
    }
    let directory = forge().directory(".wh.d/").end();
    assert_eq!(list(&directory).unwrap(), ["/d w"], "whatever type it has");
    let long = format!(".wh.{}", "n".repeat(255));
    let archive = forge().pax(&[("path", long.as_bytes())]).file("x", b"").end();
    assert_eq!(list(&archive).unwrap(), [format!("/{} w", "n".repeat(255))]);
}

#[test]
fn a_whiteout_through_a_link_stays_in_the_root() {
    let archive = forge().symlink("out", "/../../etc").file("out/.wh.passwd", b"").end();
    assert_eq!(list(&archive).unwrap(), ["/etc i", "/etc/passwd w", "/out l"]);
}

#[test]
fn names_of_aufs_are_skipped() {
    let archive = forge()
        .directory(".wh..wh.plnk")
        .file(".wh..wh.plnk/123.456", b"1")
        .file(".wh..wh.plnk/.wh.x", b"1")
        .file(".wh..wh.aufs", b"")
        .directory(".wh..wh.orph/")
        .file("x", b"")
        .end();
    assert_eq!(list(&archive).unwrap(), ["/x f0"]);
}

#[test]
fn media_type_and_bytes_must_agree() {
    let tar = forge().file("x", b"1").end();
    let gzip = {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        encoder.write_all(&tar).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = zstd::bulk::compress(&tar, 3).unwrap();
    let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    let oci = |suffix: &str| format!("{PLAIN}{suffix}");
    assert!(read(&gzip, docker).is_ok() && read(&gzip, &oci("+gzip")).is_ok());
    assert!(read(&zstd, &oci("+zstd")).is_ok() && read(&tar, PLAIN).is_ok());
    for (blob, media_type) in
        [(&zstd, docker), (&tar, docker), (&gzip, PLAIN), (&gzip, &oci("+zstd")[..])]
    {
        let error = read(blob, media_type).unwrap_err();
        assert!(matches!(error, LayerError::FormatMismatch { .. }), "{error}");
    }
    let other = read(&tar, "application/vnd.oci.image.layer.v1.tar+encrypted").unwrap_err();
    assert!(matches!(other, LayerError::MediaType(_)), "{other}");

    assert!(read(&[&gzip[..], b"garbage"].concat(), docker).is_err(), "trailing garbage");
    for at in [gzip.len() - 1, gzip.len() - 8] {
        let mut wrong = gzip.clone();
        wrong[at] ^= 1;
        assert!(read(&wrong, docker).is_err(), "checksum or length of byte {at}");
        assert!(read(&gzip[..at], docker).is_err(), "cut at {at}");
    }
}

#[test]
fn an_error_of_the_input_or_the_sink_is_told() {
    struct Full;
    impl LayerSink for Full {
        fn entry(&mut self, _: &Row, _: &mut dyn Read) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn hard_link(&mut self, _: &Row, _: &EntryPath) -> io::Result<()> {
            Ok(())
        }
        fn opaque(&mut self, _: &EntryPath) -> io::Result<()> {
            Ok(())
        }
    }
    let archive = forge().file("x", &vec![1; 9 << 20]).end();
    let limits = ReadLimits::default();
    let error = read_layer(&mut &archive[..], PLAIN, limits, Some(&mut Full)).unwrap_err();
    assert!(
        matches!(&error, LayerError::Sink { path, .. } if *path == super::path("x")),
        "{error}"
    );

    struct Broken(usize);
    impl Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::ConnectionReset)?;
            buffer.fill(0);
            Ok(buffer.len())
        }
    }
    let error = read_layer(&mut Broken(3), PLAIN, limits, None).unwrap_err();
    assert!(matches!(error, LayerError::Read(_)), "{error}");
}

#[test]
fn members_are_handed_out_as_written() {
    let archive = forge()
        .header(b'3', b"../dev/null", 0, |block| {
            block[329..337].copy_from_slice(b"0000001\0");
            block[337..345].copy_from_slice(b"0000003\0");
        })
        .file("/abs//x", b"body")
        .link("l", "./abs/x")
        .end();
    let mut reader = TarReader::new(&archive[..], ReadLimits::default());
    let device = reader.next_member().unwrap().unwrap();
    assert_eq!(device.name, b"../dev/null");
    assert_eq!(device.kind, MemberKind::CharacterDevice { major: 1, minor: 3 });
    let file = reader.next_member().unwrap().unwrap();
    assert_eq!((&file.name[..], file.size, file.body_offset), (&b"/abs//x"[..], 4, 1024));
    let mut body = String::new();
    reader.body().read_to_string(&mut body).unwrap();
    assert_eq!(body, "body");
    let link = reader.next_member().unwrap().unwrap();
    assert_eq!(link.kind, MemberKind::HardLink { target: b"./abs/x".to_vec() });
    assert!(reader.next_member().unwrap().is_none());
    assert!(reader.next_member().unwrap().is_none());
}
