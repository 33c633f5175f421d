//! What we write, we read as it was.

use std::{collections::BTreeSet, os::unix::fs::FileExt};

use super::*;

const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\n";

/// One of everything.
pub(super) fn everything() -> Vec<Change> {
    let long = format!("deep/{}/{}", "d".repeat(120), "f".repeat(200));
    let (parent, _) = long.rsplit_once('/').unwrap();
    let linked = |name: &str| Change { link_group: 9, ..file(name, *b"shared") };
    let mut program = file("bin/ping", text(70_000));
    program.metadata = Metadata {
        mode: 0o4755,
        uid: 3_000_000,
        gid: 4_294_967_294,
        mtime: Timestamp { seconds: -5, nanoseconds: 999 },
        capability: Some(CAPABILITY.into()),
    };
    let bytes_name = EntryPath::clean(b"bin/\xff\xfe\n").unwrap();
    let null = Kind::CharacterDevice { major: 1, minor: 3 };
    let disk = Kind::BlockDevice { major: 259, minor: 1_048_575 };
    vec![
        directory("bin"),
        program,
        linked("bin/a"),
        linked("bin/b"),
        symlink("bin/long", &"t/".repeat(100)),
        symlink("bin/sh", "../usr//bin/./sh"),
        Change { path: bytes_name, ..file("x", *b"1") },
        directory("deep"),
        directory(parent),
        file(&long, Vec::new()),
        directory("dev"),
        Change::new(path("dev/disk"), disk, metadata(0o660)),
        Change::new(path("dev/null"), null, metadata(0o666)),
        Change::new(path("dev/pipe"), Kind::Fifo, metadata(0o600)),
        directory("etc"),
        file("etc/group", *b"root:x:0:\n"),
        file("etc/passwd", *b"root:x:0:0::/:/bin/sh\n"),
        Change::whiteout(path("etc/shadow")),
        file("noise", noise(3 << 20)),
        file("text", text((2 << 20) + 12_345)),
        file("ünï", *b"utf-8"),
    ]
}

pub(super) const ALL: [(Compression, &str); 6] = [
    (Compression::Gzip { level: 6, members: false }, "+gzip"),
    (Compression::Gzip { level: 1, members: true }, "+gzip"),
    (Compression::Gzip { level: 0, members: false }, "+gzip"),
    (Compression::Gzip { level: 0, members: true }, "+gzip"),
    (Compression::Zstd { level: 3 }, "+zstd"),
    (Compression::Uncompressed, ""),
];

#[test]
fn everything_is_read_back_as_it_was_written() {
    for (compression, suffix) in ALL {
        let (blob, written) = write(everything(), options(compression, 2));
        assert_eq!(written.descriptor.media_type, format!("{PLAIN}{suffix}"));
        assert_eq!(written.descriptor.digest, Digest::of(&blob));
        assert_eq!(written.descriptor.size, blob.len() as u64);
        let mut model = Model::default();
        let media_type = &written.descriptor.media_type;
        let limits = ReadLimits::default();
        let layer = read_layer(&mut &blob[..], media_type, limits, Some(&mut model)).unwrap();
        assert_eq!(layer.diff_id, written.diff_id);
        assert_eq!(layer.uncompressed_bytes, written.uncompressed_bytes);
        assert_eq!(layer.index.rows(), without_digests(&written.index));
        assert_eq!(layer.index.small_files(), written.index.small_files());
        assert!(layer.warnings.is_empty(), "{:?}", layer.warnings);
        for row in written.index.rows() {
            if let Some(digest) = row.digest {
                assert_eq!(Digest::of(&model.bodies[&row.path]), digest, "{}", row.path);
            }
        }
    }
}

#[test]
fn the_index_tells_where_contents_stand() {
    let (blob, written) = write(everything(), options(Compression::Uncompressed, 1));
    assert_eq!(Digest::of(&blob), written.diff_id);
    let index = &written.index;
    assert_eq!(index.small_files().len(), 2);
    for row in index.rows() {
        let Kind::File { size } = row.kind else { continue };
        let content = &blob[row.tar_offset as usize..][..size as usize];
        assert_eq!(Digest::of(content), row.digest.unwrap(), "{}", row.path);
    }
    let group = |name: &str| index.get(&path(name)).unwrap().link_group;
    assert!(group("bin/a") > 0 && group("bin/a") == group("bin/b"));
    let ping = &index.get(&path("bin/ping")).unwrap().metadata;
    assert_eq!(ping.mtime, Timestamp::from_seconds(-5));
}

#[test]
fn bytes_do_not_depend_on_the_workers() {
    for (compression, _) in ALL {
        let blobs: Vec<Vec<u8>> =
            [1, 2, 4].map(|workers| write(everything(), options(compression, workers)).0).into();
        assert!(blobs[0] == blobs[1] && blobs[1] == blobs[2], "{compression:?}");
    }
}

#[test]
fn what_does_not_compress_is_stored() {
    let length = 20 << 20;
    for (compression, _) in ALL {
        let (blob, written) = write(vec![file("noise", noise(length))], options(compression, 2));
        let overhead = blob.len() as u64 - length as u64;
        assert!(overhead < 4096 + written.uncompressed_bytes / 2000, "{compression:?}: {overhead}");
    }
    for level in [1, 6, 9] {
        let mut mixed = noise(1 << 19);
        mixed.extend(text(1 << 19));
        let compression = Compression::Gzip { level, members: false };
        let (blob, _) = write(vec![file("mixed", mixed)], options(compression, 2));
        assert!(blob.len() < 800 << 10, "half of it compresses: {}", blob.len());
    }
}

#[test]
fn an_empty_changeset_is_an_empty_archive() {
    let (blob, written) = write(Vec::new(), options(Compression::Uncompressed, 1));
    assert_eq!(blob, [0; 1024]);
    assert!(written.index.rows().is_empty());
    let (blob, written) = write(Vec::new(), options(Compression::default(), 1));
    assert!(read(&blob, &written.descriptor.media_type).unwrap().warnings.is_empty());
}

#[test]
fn numbers_beyond_the_header_fields_survive() {
    use crate::layer::tar::{MemberKind, TarReader, writer::MemberHeader};
    for size in [8_589_934_591, 8_589_934_592, 1 << 39] {
        let metadata = Metadata { uid: 2_097_151, gid: 2_097_152, ..metadata(0o7777) };
        let name = format!("{}/{}", "d".repeat(99), "f");
        let header = MemberHeader {
            name: name.as_bytes(),
            typeflag: ::tar::EntryType::Regular,
            metadata: &metadata,
            size,
            target: b"",
            device: None,
        };
        let mut bytes = Vec::new();
        header.encode(&mut bytes);
        let mut reader = TarReader::new(&bytes[..], ReadLimits::default());
        let member = reader.next_member().unwrap().unwrap();
        assert_eq!(
            (member.size, &member.metadata, member.kind),
            (size, &metadata, MemberKind::File)
        );
        assert_eq!(member.name, name.as_bytes());
    }
}

#[test]
fn times_are_cut_to_seconds_and_capped() {
    let mut options = options(Compression::Uncompressed, 1);
    options.mtime_seconds_max = Some(1000);
    let mut early = file("early", *b"");
    early.metadata.mtime = Timestamp { seconds: 7, nanoseconds: 5 };
    let (_, written) = write(vec![early, file("late", *b"")], options);
    let mtime = |name: &str| written.index.get(&path(name)).unwrap().metadata.mtime;
    assert_eq!(mtime("early"), Timestamp::from_seconds(7));
    assert_eq!(mtime("late"), Timestamp::from_seconds(1000));
}

#[test]
fn a_content_that_changed_ends_the_build() {
    let changed = |change: Change| {
        let options = options(Compression::default(), 2);
        write_layer(&Changeset::new(vec![change]), &options, &mut Vec::new()).unwrap_err()
    };
    let sized = |size: u64| Change { kind: Kind::File { size }, ..file("f", *b"12345") };
    let digest = Some(Digest::of(b"12344"));
    let spool = tempfile::tempfile().unwrap();
    spool.write_all_at(b"123", 0).unwrap();
    let slice = Content::Slice { file: spool.into(), offset: 1, length: 5 };
    let cut = Change { content: Some(slice), ..sized(5) };
    for change in [sized(4), sized(6), sized(0), Change { digest, ..file("f", *b"12345") }, cut] {
        let error = changed(change);
        assert_eq!(error.to_string(), "/f changed during the build");
    }
    let missing = changed(Change { content: None, ..sized(5) });
    assert!(matches!(missing, LayerError::MissingContent { size: 5, .. }), "{missing}");
    let same = Change { digest: Some(Digest::of(b"12345")), ..file("f", *b"12345") };
    write(vec![same], options(Compression::default(), 1));
}

#[test]
fn content_beneath_a_directory_is_read_without_following_links() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("f"), b"content").unwrap();
    std::os::unix::fs::symlink("f", directory.path().join("l")).unwrap();
    let handle: Arc<std::os::fd::OwnedFd> =
        Arc::new(std::fs::File::open(directory.path()).unwrap().into());
    let change = |name: &str| {
        let content = Content::Beneath { directory: handle.clone(), path: path(name) };
        Change { content: Some(content), ..file(name, *b"content") }
    };
    let (_, written) = write(vec![change("f")], options(Compression::default(), 1));
    assert_eq!(written.index.rows()[0].digest, Some(Digest::of(b"content")));
    let options = options(Compression::default(), 1);
    let write = |name| write_layer(&Changeset::new(vec![change(name)]), &options, &mut Vec::new());
    assert!(matches!(write("gone"), Err(LayerError::Changed { .. })));
    assert!(matches!(write("l"), Err(LayerError::Content { .. })));
}

#[test]
fn a_blob_that_cannot_be_written_is_an_error() {
    struct Full(usize);
    impl std::io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    for (compression, _) in ALL {
        for room in [0, 5, 1 << 20] {
            let changes = Changeset::new(everything());
            let error = write_layer(&changes, &options(compression, 2), &mut Full(room));
            assert!(matches!(error, Err(LayerError::Write(_))), "{compression:?} {room}");
        }
    }
}

#[test]
fn impossible_levels_and_devices_are_refused() {
    for compression in [
        Compression::Gzip { level: 10, members: false },
        Compression::Zstd { level: 0 },
        Compression::Zstd { level: 23 },
    ] {
        let options = options(compression, 1);
        let error = write_layer(&Changeset::default(), &options, &mut Vec::new()).unwrap_err();
        assert!(matches!(error, LayerError::Level { .. }), "{error}");
    }
    let kind = Kind::BlockDevice { major: 1, minor: 1 << 21 };
    let change = Change::new(path("dev/x"), kind, metadata(0o600));
    let options = options(Compression::default(), 1);
    let error = write_layer(&Changeset::new(vec![change]), &options, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, LayerError::Device { .. }), "{error}");
}

#[test]
fn names_like_whiteouts_are_what_readers_make_of_them() {
    let changes = vec![
        directory("d"),
        file("d/.wh..wh..opq", *b"content"),
        file("d/.wh.hidden", *b"content"),
        Change { link_group: 1, ..file(".wh.linked", *b"same") },
        Change { link_group: 1, ..file("other", *b"same") },
    ];
    let (blob, written) = write(changes, options(Compression::default(), 1));
    let layer = read(&blob, &written.descriptor.media_type).unwrap();
    assert_eq!(layer.index.rows(), without_digests(&written.index));
    let kind = |name: &str| written.index.get(&path(name)).unwrap().kind.clone();
    assert_eq!(kind("d"), Kind::Directory { opaque: true });
    assert_eq!(kind("d/hidden"), Kind::Whiteout);
    assert_eq!(kind("linked"), Kind::Whiteout);
    assert_eq!(kind("other"), Kind::File { size: 4 });
    let bad = Changeset::new(vec![file(".wh.", *b"")]);
    let options = options(Compression::default(), 1);
    assert!(matches!(write_layer(&bad, &options, &mut Vec::new()), Err(LayerError::Whiteout(_))));
}

#[test]
fn single_files_are_extracted() {
    let wanted: BTreeSet<EntryPath> =
        ["bin/b", "etc/group", "text", "bin/ping"].iter().map(|name| path(name)).collect();
    for (compression, _) in ALL {
        let (blob, written) = write(everything(), options(compression, 2));
        let media_type = &written.descriptor.media_type;
        let spool = tempfile::tempfile().unwrap();
        spool.write_all_at(b"before", 0).unwrap();
        let extract = |index: &LayerIndex, wanted: &BTreeSet<EntryPath>| {
            extract_files(&mut &blob[..], media_type, index, wanted, &spool)
        };
        let found = extract(&written.index, &wanted).unwrap();
        assert_eq!(found.len(), wanted.len());
        for (name, (offset, length)) in &found {
            let mut bytes = vec![0; *length as usize];
            spool.read_exact_at(&mut bytes, *offset).unwrap();
            let row = written.index.get(name).unwrap();
            assert_eq!(Some(Digest::of(&bytes)), row.digest, "{name}");
        }
        let hash = |wanted| hash_files(&mut &blob[..], media_type, &written.index, wanted);
        for (name, digest) in hash(&wanted).unwrap() {
            assert_eq!(Some(digest), written.index.get(&name).unwrap().digest, "{name}");
        }
        assert_eq!(hash(&wanted).unwrap().len(), wanted.len());
        for odd in ["bin", "nowhere", "dev/null"] {
            assert!(extract(&written.index, &BTreeSet::from([path(odd)])).is_err(), "{odd}");
        }
        let mut builder = IndexBuilder::default();
        let text = written.index.get(&path("text")).unwrap();
        builder.insert(Row { tar_offset: text.tar_offset + 1, ..text.clone() });
        let wrong = extract(&builder.build(), &BTreeSet::from([path("text")]));
        assert!(matches!(wrong, Err(LayerError::IndexMismatch(_))), "{wrong:?}");
    }
}

#[test]
fn a_compressor_has_a_name_of_its_own() {
    let names: BTreeSet<String> = ALL.iter().map(|(c, _)| compressor_name(*c)).collect();
    assert_eq!(names.len(), ALL.len());
    assert!(names.contains("uncompressed"), "{names:?}");
}
