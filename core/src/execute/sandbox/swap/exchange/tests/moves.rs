//! What moves, what stays, what is refused.

use std::{os::fd::AsFd, time::Instant};

use super::{
    super::{attributes::Attributes, journal::Record, *},
    tools::*,
};
use crate::rootfs::testing::shell;

#[test]
fn a_stage_and_the_container_change_places_and_back() {
    isolated(|| {
        let world = World::ordinary();
        let (root, stage) = (world.root_facts(), world.stage_facts());
        let exchange = world.exchange();
        assert_eq!(exchange.repair().unwrap(), Repaired::Nothing);
        let swapped = world.plan(&exchange).unwrap().swap_in().unwrap();
        world.at_root(
            "[ $(cat etc/passwd) = stage ]; [ $(cat bin/tool) = x ]; [ $(cat etc/hosts) = runtime ]
             [ ! -e etc/ssl ]; [ ! -e home ]; [ ! -e sh ]; [ $(stat -c %a etc) = 740 ]",
        );
        assert_eq!(attribute(&world.root.join("etc"), "user.who").as_deref(), Some("stage"));
        assert_eq!(attribute(&world.root.join("etc"), "system.posix_acl_default"), None);
        assert_eq!(attribute(&world.root, "user.top").as_deref(), Some("t"));
        assert_eq!(attribute(&world.root, "user.root"), None);
        let names: Vec<_> = swapped.renamed().iter().map(|entry| entry.path.to_string()).collect();
        let top = ["/bin", "/new", "/proc", "/usr", "/var"];
        assert_eq!(names, [&top[..], &["/etc/apt", "/etc/passwd", "/etc/passwd-"]].concat());
        let before = swapped.renamed().to_vec();
        let out = swapped.swap_out().unwrap();
        assert_eq!(out.renamed, before);
        assert!(out.levels.iter().all(|level| !level.changed) && out.levels.len() == 2);
        assert!(out.rewritten.is_empty() && out.lost.is_empty());
        assert_same("root", &root, &world.root_facts());
        assert_same("stage", &stage, &world.stage_facts());
        world.assert_side_is_tidy();
    });
}

#[test]
fn a_steps_changes_are_the_stages() {
    isolated(|| {
        let world = World::ordinary();
        let root = world.root_facts();
        let exchange = world.exchange();
        let swapped = world.plan(&exchange).unwrap().swap_in().unwrap();
        let before = swapped.renamed().to_vec();
        world.at_root(
            "echo n > added; mkdir -p more/deep; rm -r new; rm etc/passwd-; echo e > etc/made; mv bin sbin
             chmod 700 .; touch -d @77.5 etc; rm -f etc/hosts 2>/dev/null && exit 1; mv etc/made etc/hosts 2>/dev/null && exit 1; true",
        );
        let out = swapped.swap_out().unwrap();
        world.at_stage(
            "[ $(cat added) = n ]; [ -d more/deep ]; [ ! -e new ]; [ ! -e etc/passwd- ]; [ $(cat etc/made) = e ]; [ -h sbin ]; [ ! -e bin ]
             [ $(stat -c %a .) = 700 ]; [ $(cat etc/hosts) = theirs ]; [ $(stat -c %y etc | cut -d. -f2 | cut -c1-9) = 500000000 ]",
        );
        let changed: Vec<_> = out.levels.iter().map(|level| level.changed).collect();
        assert_eq!(changed, [true, true]);
        let paths: Vec<_> = out.renamed.iter().map(|entry| entry.path.to_string()).collect();
        assert!(paths.contains(&"/added".to_owned()) && !paths.contains(&"/new".to_owned()));
        let bin = |entries: &[RenamedEntry], name| {
            entries.iter().find(|entry| entry.path == path(name)).unwrap().stat
        };
        assert_eq!(bin(&before, "bin").inode, bin(&out.renamed, "sbin").inode);
        assert_same("root", &root, &world.root_facts());
    });
}

#[test]
fn the_statistics_are_those_of_the_step_and_not_of_the_way_out() {
    isolated(|| {
        let world = World::ordinary();
        let exchange = world.exchange();
        let swapped = world.plan(&exchange).unwrap().swap_in().unwrap();
        let seen = std::fs::symlink_metadata(world.root.join("usr")).unwrap();
        use std::os::unix::fs::MetadataExt;
        let usr = swapped.renamed().iter().find(|entry| entry.path == path("usr")).unwrap().clone();
        assert_eq!(
            (usr.stat.ctime_seconds, usr.stat.ctime_nanoseconds as i64),
            (seen.ctime(), seen.ctime_nsec())
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
        let out = swapped.swap_out().unwrap();
        assert!(out.renamed.contains(&usr));
        let after = std::fs::symlink_metadata(world.stage().join("usr")).unwrap();
        assert!((after.ctime(), after.ctime_nsec()) > (seen.ctime(), seen.ctime_nsec()));
    });
}

#[test]
fn a_mount_that_nobody_wants_goes_along_with_its_ancestor() {
    isolated(|| {
        let world = World::new();
        world.at_root("mkdir -p var/run/secrets/token var/lib; ln -s var/lib lib");
        world.mount_volume("var/run/secrets/token");
        world.at_root("echo secret > var/run/secrets/token/token");
        world.at_stage("mkdir -p var run; ln -s /run var/run");
        let root = world.root_facts();
        world.run(
            "[ -h var/run ]; [ ! -e var/run/secrets ]; [ ! -e var/lib ]; [ -z \"$(ls run)\" ]",
        );
        assert_same("root", &root, &world.root_facts());
    });
}

#[test]
fn system_mounts_stay_and_hide_what_the_stage_has_there() {
    isolated(|| {
        let world = World::new();
        world.at_root("mkdir proc dev sys");
        shell(
            &world.root,
            "mount -t proc proc proc; mount -t tmpfs tmpfs dev; > dev/null-like; mkdir dev/shm; mount -t tmpfs tmpfs dev/shm",
        );
        world.at_stage("mkdir proc dev sys; echo own > dev/console; > proc/file");
        let stage = world.stage_facts();
        world.run("[ -d proc/self ]; [ -e dev/null-like ]; [ ! -e dev/console ]; > dev/made");
        assert_same("stage", &stage, &world.stage_facts());
        world.at_root("[ -e dev/made ]");
    });
}

#[test]
fn what_other_processes_own_stays_where_the_stage_has_nothing() {
    isolated(|| {
        let mut world = World::new();
        world.at_root("mkdir -p tools/results opt/runner/bin plain; echo r > opt/runner/own; echo t > tools/entry");
        world.mount_volume("tools/results");
        world.mount_volume("opt/runner/bin");
        world.options.owned = vec![path("tools"), path("opt/runner"), path("plain"), path("none")];
        let root = world.root_facts();
        let exchange = world.exchange();
        let staying = world.plan(&exchange).unwrap().staying();
        assert_eq!(staying, [path(".bareboat"), path("tools"), path("opt/runner")]);
        drop(exchange);
        world.run("[ $(cat tools/entry) = t ]; [ $(cat opt/runner/own) = r ]; [ ! -e plain ]; echo x > opt/x");
        world.at_stage("[ $(cat opt/x) = x ]; [ ! -e opt/runner ]; [ $(stat -c %a opt) = 755 ]");
        assert_same("root", &root, &world.root_facts());
        world.at_stage("mkdir tools; > tools/theirs");
        world.run("[ -e tools/theirs ]; [ ! -e tools/entry ]");
        assert_same("root", &root, &world.root_facts());
    });
}

#[test]
fn a_level_that_the_stage_lacks_stays_away_unless_something_is_in_it() {
    isolated(|| {
        let world = World::new();
        world.at_root("mkdir -m 700 etc; > etc/hosts; echo p > etc/passwd; chown 9:9 etc");
        world.mount_file("etc/hosts", "runtime");
        let root = world.root_facts();
        let out = world.run("[ $(stat -c %a:%u etc) = 755:0 ]; [ ! -e etc/passwd ]");
        assert_eq!(out.levels.iter().map(|level| &level.path).collect::<Vec<_>>(), [&path("")]);
        world.at_stage("[ ! -e etc ]");
        world.run("echo new > etc/passwd; chmod 750 etc");
        world.at_stage(
            "[ $(cat etc/passwd) = new ]; [ $(stat -c %a:%u etc) = 750:0 ]; [ ! -e etc/hosts ]",
        );
        assert_same("root", &root, &world.root_facts());
    });
}

#[test]
fn names_of_any_bytes_move_and_mounts_with_such_names_stay() {
    isolated(|| {
        let world = World::new();
        world.at_root("mkdir $'a\\n\\xff b' 'm\t\\040 x' etc; > $'etc/x\\ny'; > etc/hosts");
        world.mount_volume("m\t\\040 x");
        world.at_root("> 'm\t\\040 x/inner'");
        world.mount_file("etc/hosts", "runtime");
        world.at_stage("mkdir $'a\\n\\xff b'; > $'a\\n\\xff b/file'; > $'%00'");
        let (root, stage) = (world.root_facts(), world.stage_facts());
        world.run("[ -e $'a\\n\\xff b/file' ]; [ -e 'm\t\\040 x/inner' ]; [ -e %00 ]");
        assert_same("root", &root, &world.root_facts());
        assert_same("stage", &stage, &world.stage_facts());
    });
}

#[test]
fn a_level_that_a_step_moved_comes_home_and_spoils_the_stage() {
    for script in [
        "mv etc gone; mkdir etc; echo x > etc/hosts",
        "mv etc gone; ln -s gone etc",
        "mv etc gone; mkdir etc; mv gone etc/inner",
        "mkdir -p a/b; mv etc a/b/c",
        "mv etc .bareboat/etc",
        "mv etc gone; echo file > etc",
    ] {
        isolated(move || {
            let world = World::ordinary();
            let root = world.root_facts();
            let exchange = world.exchange();
            let swapped = world.plan(&exchange).unwrap().swap_in().unwrap();
            shell(&world.root, script);
            let error = swapped.swap_out().unwrap_err();
            assert_eq!(error, SwapError::LevelMoved { path: "/etc".to_owned() }, "{script}");
            assert_same(script, &root, &world.root_facts());
        });
    }
}

#[test]
fn a_moved_level_comes_home_by_a_repair_too() {
    isolated(|| {
        let world = World::ordinary();
        let root = world.root_facts();
        for left in 0..40 {
            let exchange = world.exchange();
            let swapped = world.plan(&exchange).unwrap().swap_in().unwrap();
            shell(&world.root, "mv etc gone; mkdir etc; mv gone etc/inner");
            exchange.ops.set_left(left);
            swapped.swap_out().unwrap_err();
            drop(exchange);
            let repaired = world.exchange().repair().unwrap();
            assert!(!matches!(repaired, Repaired::Restored { spoilt: false, .. }), "{repaired:?}");
            assert_same(&format!("died at {left}"), &root, &world.root_facts());
            // Spoilt: as the caller does.
            shell(
                &world.side(),
                "rm -r work strays 2>/dev/null; mkdir -p work/build-1/step-1/tree/etc",
            );
        }
    });
}

#[test]
fn what_a_step_removes_of_the_containers_own_is_named() {
    isolated(|| {
        let world = World::ordinary();
        let exchange = world.exchange();
        let swapped = world.plan(&exchange).unwrap().swap_in().unwrap();
        shell(&world.root, "rm -r .bareboat/host/bin .bareboat/host/etc/ssl");
        let out = swapped.swap_out().unwrap();
        assert_eq!(out.lost, [path("bin"), path("etc/ssl")]);
    });
}

#[test]
fn a_step_that_removes_the_side_directorys_contents_leaves_a_clear_result() {
    isolated(|| {
        let world = World::ordinary();
        let exchange = world.exchange();
        let swapped = world.plan(&exchange).unwrap().swap_in().unwrap();
        shell(&world.root, "rm -rf .bareboat/* bin usr");
        let out = swapped.swap_out().unwrap();
        assert!(out.lost.contains(&path("bin")) && out.lost.contains(&path("home")));
        world.at_root("[ $(cat etc/hosts) = runtime ]; [ ! -e new ]");
    });
}

#[test]
fn what_is_in_the_way_of_the_containers_own_gives_way() {
    isolated(|| {
        let world = World::ordinary();
        let root = world.root_facts();
        let exchange = world.exchange();
        let _swapped = world.plan(&exchange).unwrap().swap_in().unwrap();
        // A stage that has grown the same names again meanwhile, and a host that another process has filled.
        world.at_stage("mkdir usr; > new; mkdir etc/apt");
        exchange.repair().unwrap();
        assert_same("root", &root, &world.root_facts());
    });
}

#[test]
fn an_image_with_the_side_directorys_name_is_refused() {
    isolated(|| {
        let world = World::ordinary();
        world.at_stage("ln -s / .bareboat");
        let error = world.plan(&world.exchange()).err().unwrap();
        assert_eq!(error, SwapError::ReservedName { path: "/.bareboat".to_owned() });
    });
}

#[test]
fn a_stage_without_a_directory_for_a_level_is_refused() {
    isolated(|| {
        let world = World::ordinary();
        world.at_stage("rm -r etc; ln -s usr etc");
        let error = world.plan(&world.exchange()).err().unwrap();
        assert_eq!(error, SwapError::LevelInTheWay { path: "/etc".to_owned() });
    });
}

#[test]
fn a_read_only_root_is_refused() {
    isolated(|| {
        let world = World::new();
        rustix::mount::mount_bind(&world.root, &world.root).unwrap();
        world.make_read_only("");
        let error = world.try_exchange(Ops::unlimited()).err().unwrap();
        assert_eq!(error, SwapError::ReadOnlyRoot);
    });
}

#[test]
fn a_side_directory_on_another_mount_is_refused() {
    isolated(|| {
        let world = World::new();
        world.mount_volume(".bareboat");
        shell(&world.side(), &format!("mkdir -p {STAGE}"));
        let error = world.plan(&world.exchange()).err().unwrap();
        assert_eq!(error, SwapError::SideElsewhere { side: "/.bareboat".to_owned() });
    });
}

#[test]
fn nothing_is_planned_before_a_repair() {
    isolated(|| {
        let world = World::ordinary();
        let exchange = world.exchange();
        drop(world.plan(&exchange).unwrap().swap_in().unwrap());
        assert_eq!(world.plan(&exchange).err().unwrap(), SwapError::Unrepaired);
        let spoilt = Repaired::Restored { stage: path(STAGE), spoilt: true, lost: Vec::new() };
        assert_eq!(exchange.repair().unwrap(), spoilt);
        assert!(world.plan(&exchange).is_ok());
    });
}

/// A kill between a rename that is tried on overlayfs and the time's return leaves this.
#[test]
fn a_directory_in_which_a_rename_was_tried_gets_its_time_back() {
    isolated(|| {
        let world = World::ordinary();
        let exchange = world.exchange();
        let root = world.root_facts();
        let attributes = Attributes::of(exchange.place.root.as_fd());
        let trying = Record::Trying { path: EntryPath::root(), attributes: attributes.unwrap() };
        exchange.journal.begin(&exchange.ops, &[trying]).unwrap();
        world.at_root("touch -d @77.5 .");
        assert_eq!(world.plan(&exchange).err().unwrap(), SwapError::Unrepaired);
        assert_eq!(exchange.repair().unwrap(), Repaired::Nothing);
        assert_same("root", &root, &world.root_facts());
        assert!(world.plan(&exchange).is_ok());
    });
}

#[test]
fn two_builds_take_turns() {
    isolated(|| {
        let world = World::ordinary();
        let exchange = world.exchange();
        let place = || {
            let open = |path| OwnedFd::from(std::fs::File::open(path).unwrap());
            let mounts = Box::new(|| Ok(MountTable::default()));
            let (root, side) = (open(world.root.clone()), open(world.side()));
            Place { root, side, side_name: b".bareboat".to_vec(), mounts }
        };
        let (send, receive) = std::sync::mpsc::channel();
        let second = place();
        let thread = std::thread::spawn(move || {
            let waiting = send.clone();
            let waits = move || {
                waiting.send("waiting").unwrap();
                std::thread::sleep(std::time::Duration::from_millis(1));
            };
            Exchange::lock(second, waits).unwrap();
            send.send("locked").unwrap();
        });
        assert_eq!(receive.recv().unwrap(), "waiting");
        // The lock's file is not the lock any more when it is released.
        std::fs::remove_file(world.side().join("swap.lock")).unwrap();
        drop(exchange);
        let last = receive.iter().find(|said| *said != "waiting");
        assert_eq!(last, Some("locked"));
        thread.join().unwrap();
        assert!(world.side().join("swap.lock").exists());
    });
}

#[test]
fn about_160_renames_are_a_matter_of_milliseconds() {
    isolated(|| {
        let world = World::new();
        world.at_root("mkdir etc; > etc/hosts; for i in $(seq 20); do mkdir r$i; done; for i in $(seq 60); do > etc/f$i; done");
        world.mount_file("etc/hosts", "runtime");
        world.at_stage("mkdir etc; for i in $(seq 20); do mkdir s$i; done; for i in $(seq 60); do > etc/g$i; done");
        let exchange = world.exchange();
        let mut best = [f64::MAX; 3];
        for _ in 0..20 {
            let started = Instant::now();
            let plan = world.plan(&exchange).unwrap();
            let planned = started.elapsed().as_secs_f64();
            let swapped = plan.swap_in().unwrap();
            let entered = started.elapsed().as_secs_f64();
            swapped.swap_out().unwrap();
            let left = started.elapsed().as_secs_f64();
            let round = [planned, entered - planned, left - entered];
            best.iter_mut().zip(round).for_each(|(best, seconds)| *best = best.min(seconds));
        }
        eprintln!("plan, in, out (ms): {:?}", best.map(|seconds| seconds * 1e3));
        // Twenty times what a quiet machine needs, without optimisation.
        assert!(best.iter().all(|seconds| *seconds < 0.1), "{best:?}");
    });
}
