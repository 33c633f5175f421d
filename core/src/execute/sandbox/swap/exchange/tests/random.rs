//! Random roots and stages, and random steps between the ways in and out.

use std::{collections::BTreeSet, fs, os::unix::fs::symlink, path::Path};

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use super::{super::*, tools::*};

const NAMES: [&str; 6] = ["etc", "usr", "a", "b", "hosts", "c"];

/// One thing that is done to a tree. Those that can't be done are not.
#[derive(Clone, Debug)]
enum Edit {
    File(String, u8),
    Directory(String),
    Link(String, String),
    HardLink(String, String),
    Remove(String),
    Rename(String, String),
    Mode(String, u32),
    Attribute(String, u8),
}

fn place() -> impl Strategy<Value = String> {
    let name = || (0..NAMES.len()).prop_map(|at| NAMES[at].to_owned());
    proptest::collection::vec(name(), 1..4).prop_map(|names| names.join("/"))
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        (place(), any::<u8>()).prop_map(|(at, byte)| Edit::File(at, byte)),
        place().prop_map(Edit::Directory),
        (place(), place()).prop_map(|(at, to)| Edit::Link(at, to)),
        (place(), place()).prop_map(|(at, to)| Edit::HardLink(at, to)),
        place().prop_map(Edit::Remove),
        (place(), place()).prop_map(|(at, to)| Edit::Rename(at, to)),
        (place(), 0..0o1777_u32).prop_map(|(at, mode)| Edit::Mode(at, mode)),
        (place(), any::<u8>()).prop_map(|(at, byte)| Edit::Attribute(at, byte)),
    ]
}

/// Does edits, but none to `but`, nor to what would move it.
fn apply(root: &Path, edits: &[Edit], but: &BTreeSet<&str>) {
    let free = |path: &str| !but.contains(path) && fs::symlink_metadata(root.join(path)).is_ok();
    for edit in edits {
        // Errors are part of it: a parent may be missing, or a link.
        let _ = match edit {
            Edit::File(at, byte) if !but.contains(at.as_str()) => fs::write(root.join(at), [*byte]),
            Edit::Directory(at) => fs::create_dir_all(root.join(at)),
            Edit::Link(at, to) => symlink(to, root.join(at)),
            Edit::HardLink(at, to) if !but.contains(at.as_str()) => {
                fs::hard_link(root.join(at), root.join(to))
            }
            Edit::Remove(at) if free(at) => {
                fs::remove_dir_all(root.join(at)).or_else(|_| fs::remove_file(root.join(at)))
            }
            Edit::Rename(at, to) if free(at) => fs::rename(root.join(at), root.join(to)),
            Edit::Mode(at, mode) if free(at) => {
                use std::os::unix::fs::PermissionsExt;
                let is_link = fs::symlink_metadata(root.join(at)).unwrap().is_symlink();
                let mode = fs::Permissions::from_mode(mode | 0o700);
                if is_link { Ok(()) } else { fs::set_permissions(root.join(at), mode) }
            }
            Edit::Attribute(at, byte) if free(at) => {
                let path = root.join(at);
                if path.is_dir() && !path.is_symlink() {
                    set(&path, ".", "user.random", &[*byte]);
                }
                Ok(())
            }
            _ => Ok(()),
        };
    }
}

/// Where the process dies: how many operations it may do on the way in and out, if it dies at all.
type Death = Option<u64>;

fn check(root: &[Edit], stage: &[Edit], step: &[Edit], death: Death) {
    let world = World::new();
    world.at_root("mkdir etc; > etc/hosts");
    apply(&world.root, root, &BTreeSet::from(["etc", "etc/hosts"]));
    world.mount_file("etc/hosts", "runtime");
    world.at_stage("mkdir etc");
    apply(&world.stage(), stage, &BTreeSet::from(["etc"]));
    let (before, stage_before) = (world.root_facts(), world.stage_facts());
    let exchange = world.exchange();
    let plan = world.plan(&exchange).unwrap();
    exchange.ops.set_left(death.unwrap_or(u64::MAX));
    if let Ok(swapped) = plan.swap_in() {
        let mounted = BTreeSet::from(["etc", "etc/hosts"]);
        apply(&world.root, step, &mounted);
        let hosts = path("etc/hosts");
        let mut seen = facts(&world.root, Some(&world.side()));
        seen.remove(Path::new("etc/hosts"));
        if let Ok(out) = swapped.swap_out() {
            let mut after = world.stage_facts();
            // The stage's own, unseen.
            after.retain(|path, _| !path.starts_with("etc/hosts"));
            // The directories of the levels are others.
            for level in ["", "etc"] {
                let (mut a, mut b) = (
                    seen.remove(Path::new(level)).unwrap(),
                    after.remove(Path::new(level)).unwrap(),
                );
                (a.inode, b.inode) = (0, 0);
                assert_eq!(a, b, "{level}");
            }
            assert_same("what the step left", &seen, &after);
            assert!(out.renamed.iter().all(|entry| entry.path != hosts));
        }
    }
    exchange.ops.set_left(u64::MAX);
    let repaired = exchange.repair().unwrap();
    assert_same("root", &before, &world.root_facts());
    if let (Some(_), Repaired::Restored { spoilt: false, .. }, true) =
        (death, &repaired, step.is_empty())
    {
        assert_same("stage", &stage_before, &world.stage_facts());
    }
    world.assert_side_is_tidy();
}

#[test]
fn random_trees_and_steps() {
    isolated(|| {
        let edits = |count| proptest::collection::vec(edit(), 0..count);
        let death = proptest::option::of(0_u64..120);
        let mut runner =
            TestRunner::new(Config { cases: 150, failure_persistence: None, ..Config::default() });
        let strategy = (edits(25), edits(25), edits(15), death);
        let test = |(root, stage, step, death): (Vec<Edit>, Vec<Edit>, Vec<Edit>, Death)| {
            check(&root, &stage, &step, death);
            Ok(())
        };
        runner.run(&strategy, test).unwrap();
    });
}
