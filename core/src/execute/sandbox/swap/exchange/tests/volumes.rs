//! Volumes in a stage's way.

use super::{super::*, tools::*};
use crate::rootfs::testing::shell;

/// A container with a volume of a few files at /workspace.
fn with_volume() -> World {
    let world = World::new();
    world.at_root("mkdir workspace");
    world.mount_volume("workspace");
    world.at_root("mkdir workspace/repo; echo own > workspace/repo/file; touch -d @1000 workspace");
    world
}

#[test]
fn the_stage_has_its_own_contents_in_the_volume_and_gets_them_back() {
    isolated(|| {
        let world = with_volume();
        world.at_stage(
            "mkdir -p workspace/src; echo 1 > workspace/src/main; ln workspace/src/main workspace/linked; ln -s src workspace/l
             mkfifo workspace/p; mknod workspace/n c 1 3; chown 5:6 workspace/src; chmod 6755 workspace/src/main
             truncate -s 9M workspace/hole; echo end >> workspace/hole; chmod 1775 workspace",
        );
        let file = world.stage().join("workspace/src");
        set(&file, "main", "security.capability", CAP_NET_RAW);
        set(&file, "main", "user.x", b"y");
        set(&file, "main", "system.posix_acl_access", &acl(5));
        set(&file, ".", "system.posix_acl_default", &acl(4));
        set(&file, ".", "trusted.t", b"t");
        world.at_stage(
            "touch -d '2005-05-05 05:05:05.123456789' workspace/src/main workspace/src workspace",
        );
        let (root, stage) = (world.root_facts(), world.stage_facts());
        let exchange = world.exchange();
        let plan = world.plan(&exchange).unwrap();
        assert_eq!(plan.volumes(), [path("workspace")]);
        let swapped = plan.swap_in().unwrap();
        let seen = facts(&world.root.join("workspace"), None);
        let expected = facts(&world.stage().join("workspace"), None);
        let hidden = seen.keys().find(|name| name.to_string_lossy().starts_with(".bareboat-"));
        let hidden = hidden.unwrap().clone();
        let seen: Facts = seen.into_iter().filter(|(name, _)| !name.starts_with(&hidden)).collect();
        assert_same("in the volume", &without_inodes(expected), &without_inodes(seen));
        let out = swapped.swap_out().unwrap();
        assert_eq!(out.rewritten, [path("workspace")]);
        assert_same("root", &root, &world.root_facts());
        assert_same("stage", &without_inodes(stage), &without_inodes(world.stage_facts()));
        assert!(world.stage().join("workspace/hole").metadata().unwrap().len() > 9 << 20);
        world.assert_side_is_tidy();
    });
}

#[test]
fn what_a_step_does_in_the_volume_is_the_stages() {
    isolated(|| {
        let world = with_volume();
        world.at_stage("mkdir -p workspace/old/deep; echo 1 > workspace/a; echo 2 > workspace/b");
        let root = world.root_facts();
        world.run("rm -r workspace/old workspace/b; echo 3 > workspace/a; mkdir -p workspace/new/n; [ ! -e workspace/repo ]; chmod 711 workspace");
        world.at_stage("[ $(ls workspace | tr '\\n' ' ') = 'a' ] || [ \"$(ls -A workspace | tr '\\n' ' ')\" = 'a new ' ]; [ $(cat workspace/a) = 3 ]; [ -d workspace/new/n ]; [ $(stat -c %a workspace) = 711 ]");
        assert_same("root", &root, &world.root_facts());
    });
}

#[test]
fn a_volume_where_the_step_works_is_emptied_for_it() {
    isolated(|| {
        let mut world = with_volume();
        world.options.working_directory = path("workspace/project");
        let root = world.root_facts();
        world.run("[ -z \"$(ls workspace)\" ]; mkdir workspace/made");
        world.at_stage("[ -d workspace/made ]");
        assert_same("root", &root, &world.root_facts());
    });
}

#[test]
fn a_volume_where_the_stage_has_nothing_stays() {
    isolated(|| {
        let world = with_volume();
        let exchange = world.exchange();
        let plan = world.plan(&exchange).unwrap();
        assert!(plan.volumes().is_empty());
        assert_eq!(plan.staying(), [path(".bareboat"), path("workspace")]);
        let swapped = plan.swap_in().unwrap();
        shell(&world.root, "[ $(cat workspace/repo/file) = own ]; echo kept > workspace/new");
        let out = swapped.swap_out().unwrap();
        assert!(out.rewritten.is_empty());
        world.at_root("[ $(cat workspace/new) = kept ]");
        world.at_stage("[ ! -e workspace ]");
    });
}

#[test]
fn an_empty_directory_of_the_stage_has_its_place_in_a_volume_unless_others_use_that() {
    isolated(|| {
        let mut world = with_volume();
        world.at_stage("mkdir workspace");
        let exchange = world.exchange();
        assert_eq!(world.plan(&exchange).unwrap().volumes(), [path("workspace")]);
        drop(exchange);
        world.options.owned.push(path("workspace"));
        let exchange = world.exchange();
        assert!(world.plan(&exchange).unwrap().volumes().is_empty());
    });
}

#[test]
fn a_mount_inside_of_a_volume_stays_and_hides_the_stages_own() {
    isolated(|| {
        let mut world = with_volume();
        world.at_root("echo > workspace/settings");
        world.mount_file("workspace/settings", "runtime");
        world.options.wanted.push(path("workspace/settings"));
        world.at_stage("mkdir workspace; echo theirs > workspace/settings; echo 1 > workspace/a");
        let root = world.root_facts();
        world.run("[ $(cat workspace/settings) = runtime ]; echo 2 > workspace/a");
        world.at_stage("[ $(cat workspace/settings) = theirs ]; [ $(cat workspace/a) = 2 ]");
        assert_same("root", &root, &world.root_facts());
    });
}

/// The error of a plan.
fn refusal(world: &World) -> SwapError {
    match world.plan(&world.exchange()) {
        Ok(_) => panic!("not refused"),
        Err(error) => {
            assert!(error.hint().is_some(), "{error}");
            error
        }
    }
}

#[test]
fn a_read_only_volume_in_the_way_is_refused_by_name() {
    isolated(|| {
        let mut world = with_volume();
        world.make_read_only("workspace");
        world.options.working_directory = path("workspace");
        let expected =
            SwapError::ReadOnlyVolume { path: "/workspace".into(), file_system: "tmpfs".into() };
        assert_eq!(refusal(&world), expected);
        world.options.working_directory = path("work");
        world.at_stage("mkdir workspace; > workspace/file");
        assert_eq!(refusal(&world), expected);
        world.at_stage("rm workspace/file");
        assert!(world.plan(&world.exchange()).is_ok());
    });
}

#[test]
fn what_can_not_be_exchanged_is_refused_by_name() {
    isolated(|| {
        let world = with_volume();
        world.at_stage("ln -s elsewhere workspace");
        assert!(
            matches!(refusal(&world), SwapError::MountInTheWay { path, .. } if path == "/workspace")
        );
        world.at_stage("rm workspace; mkdir -p workspace/inner; > workspace/inner/file");
        world.at_root("mkdir workspace/inner");
        world.mount_volume("workspace/inner");
        assert!(
            matches!(refusal(&world), SwapError::MountInTheWay { path, .. } if path == "/workspace/inner")
        );
        world.at_stage("rm -r workspace; echo own > config");
        world.at_root("> config");
        world.mount_file("config", "runtime");
        assert!(
            matches!(refusal(&world), SwapError::MountInTheWay { path, .. } if path == "/config")
        );
    });
}

#[test]
fn a_volume_that_another_build_uses_is_refused() {
    isolated(|| {
        let world = with_volume();
        world.at_root("mkdir workspace/.bareboat-0123456789abcdef");
        world.at_stage("mkdir workspace; > workspace/file");
        assert!(
            matches!(refusal(&world), SwapError::VolumeBusy { path, .. } if path == "/workspace")
        );
    });
}

#[test]
fn a_full_volume_leaves_root_and_stage_whole() {
    isolated(|| {
        let world = World::new();
        world.at_root("mkdir small; echo o > own");
        shell(&world.root, "mount -t tmpfs -o size=64k tmpfs small; echo x > small/x");
        world.at_stage("mkdir small; head -c 1000000 /dev/zero > small/large; > other");
        let (root, stage) = (world.root_facts(), world.stage_facts());
        let exchange = world.exchange();
        let error = world.plan(&exchange).unwrap().swap_in().err().unwrap();
        assert!(
            matches!(&error, SwapError::Call { errno, .. } if errno.0 == libc::ENOSPC),
            "{error}"
        );
        assert_same("root", &root, &world.root_facts());
        assert_same("stage", &stage, &world.stage_facts());
        world.assert_side_is_tidy();
    });
}
