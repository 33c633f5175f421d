//! Random layers.

use proptest::prelude::*;

use super::{forge::Forge, *};

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        5 => "[a-c]",
        1 => "[a-z]{1,12}",
        1 => "[a-z]{90,110}",
        1 => "[à-ü]{1,4}",
        1 => Just(".wh.a".to_owned()),
        1 => Just("\u{1}\n".to_owned()),
    ]
}

fn entry_path() -> impl Strategy<Value = String> {
    prop::collection::vec(name(), 1..4).prop_map(|parts| parts.join("/"))
}

fn any_metadata() -> impl Strategy<Value = Metadata> {
    let id = prop_oneof![0u32..3000, 0x1f_fff0u32..0x20_0010, 0u32..u32::MAX];
    let seconds = prop_oneof![0i64..2_000_000_000, -100i64..100, 8_589_934_580i64..8_589_934_600];
    let capability = prop::option::weighted(0.1, prop::collection::vec(any::<u8>(), 16));
    (0u32..0o10000, id.clone(), id, seconds, capability).prop_map(
        |(mode, uid, gid, seconds, sets)| Metadata {
            mode,
            uid,
            gid,
            mtime: Timestamp::from_seconds(seconds),
            capability: sets.map(|sets| [&[1, 0, 0, 2], &sets[..]].concat().into()),
        },
    )
}

fn change() -> impl Strategy<Value = Change> {
    let content = prop::collection::vec(any::<u8>(), 0..2000);
    let kind = prop_oneof![
        4 => (content, 0u32..3).prop_map(|(content, group)| {
            let kind = Kind::File { size: content.len() as u64 };
            (kind, Some(Content::Bytes(content.into())), group)
        }),
        1 => Just((Kind::DIRECTORY, None, 0)),
        1 => "[a-z./]{1,120}".prop_map(|target| {
            (Kind::Symlink { target: target.into_bytes().into() }, None, 0)
        }),
        1 => (0u32..4096, 0u32..1_048_576)
            .prop_map(|(major, minor)| (Kind::CharacterDevice { major, minor }, None, 0)),
        1 => Just((Kind::Fifo, None, 0)),
        1 => Just((Kind::Whiteout, None, 0)),
    ];
    (entry_path(), kind, any_metadata()).prop_map(
        |(name, (kind, content, link_group), metadata)| Change {
            content,
            link_group,
            ..Change::new(path(&name), kind, metadata)
        },
    )
}

/// Complete in its parents, and equal contents for the names of one hard-link group.
fn changeset() -> impl Strategy<Value = Changeset> {
    prop::collection::vec(change(), 0..40).prop_map(|changes| {
        let mut whole: BTreeMap<EntryPath, Change> = BTreeMap::new();
        let mut groups: BTreeMap<u32, Change> = BTreeMap::new();
        for mut change in changes {
            if change.link_group > 0 {
                let first = groups.entry(change.link_group).or_insert_with(|| change.clone());
                change = Change { path: change.path, ..first.clone() };
            }
            whole.insert(change.path.clone(), change);
        }
        let paths: Vec<EntryPath> = whole.keys().cloned().collect();
        for ancestor in paths.iter().flat_map(EntryPath::ancestors) {
            let ancestor = EntryPath::clean(ancestor).unwrap();
            let made = Change::new(ancestor.clone(), Kind::DIRECTORY, metadata(0o755));
            let there = whole.entry(ancestor).or_insert_with(|| made.clone());
            if !there.kind.is_directory() {
                *there = made;
            }
        }
        Changeset::new(whole.into_values().collect())
    })
}

/// One member of a foreign archive.
fn member() -> impl Strategy<Value = (u8, String, String)> {
    let part = prop_oneof![6 => "[a-c]", 1 => Just("..".to_owned()), 1 => Just(".wh.a".to_owned()),
        1 => Just(".wh..wh..opq".to_owned())];
    let name = prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"));
    let target =
        prop_oneof![3 => name.clone(), 1 => name.clone().prop_map(|name| format!("/{name}"))];
    (prop_oneof![Just(b'0'), Just(b'5'), Just(b'2'), Just(b'1'), Just(b'6')], name, target)
}

fn archive(members: &[(u8, String, String)]) -> Vec<u8> {
    let forge =
        members.iter().fold(Forge::default(), |forge, (typeflag, name, target)| match typeflag {
            b'0' => forge.file(name, target.as_bytes()),
            b'1' => forge.link(name, target),
            b'2' => forge.symlink(name, target),
            _ => forge.header(*typeflag, name.as_bytes(), 0, |_| {}),
        });
    forge.end()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_written_layer_reads_back_as_its_index(changeset in changeset(), workers in 1usize..4) {
        let mut blob = Vec::new();
        let options = options(Compression::Gzip { level: 1, members: false }, workers);
        let written = write_layer(&changeset, &options, &mut blob).unwrap();
        let mut model = Model::default();
        let media_type = &written.descriptor.media_type;
        let limits = ReadLimits::default();
        let layer = read_layer(&mut &blob[..], media_type, limits, Some(&mut model)).unwrap();
        prop_assert_eq!(layer.index.rows(), without_digests(&written.index));
        prop_assert_eq!(layer.diff_id, written.diff_id);
        let mut again = Vec::new();
        write_layer(&changeset, &options, &mut again).unwrap();
        prop_assert!(blob == again);
    }

    #[test]
    fn the_sink_is_told_what_the_index_holds(members in prop::collection::vec(member(), 0..30)) {
        let archive = archive(&members);
        let mut model = Model::default();
        let limits = ReadLimits::default();
        let Ok(layer) = read_layer(&mut &archive[..], PLAIN, limits, Some(&mut model)) else {
            return Ok(());
        };
        let told = std::mem::take(&mut model.index).build();
        let kinds = |index: &LayerIndex| -> Vec<(EntryPath, Kind)> {
            index.rows().iter().map(|row| (row.path.clone(), row.kind.clone())).collect()
        };
        prop_assert_eq!(kinds(&told), kinds(&layer.index));
        for row in layer.index.rows() {
            if let Kind::File { size } = row.kind {
                let begin = row.tar_offset as usize;
                let body = &archive[begin..begin + size as usize];
                prop_assert_eq!(body, &model.bodies[&row.path][..]);
            }
        }
    }

    #[test]
    fn mutated_archives_never_panic(
        members in prop::collection::vec(member(), 1..8),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        cut in any::<prop::sample::Index>(),
        repair in any::<bool>(),
    ) {
        let mut archive = archive(&members);
        for (at, value) in edits {
            let at = at.index(archive.len());
            archive[at] = value;
            if repair {
                let start = at / 512 * 512;
                let block: &mut [u8; 512] = (&mut archive[start..start + 512]).try_into().unwrap();
                super::forge::sum(block);
            }
        }
        let whole = archive.len();
        for length in [whole, cut.index(whole)] {
            let mut model = Model::default();
            let limits = ReadLimits::default();
            let _ = read_layer(&mut &archive[..length], PLAIN, limits, Some(&mut model));
        }
    }
}
