//! The process dies before every single operation, and so do two repairs after it.

use super::{super::*, tools::*};
use crate::rootfs::testing::shell;

/// What a process does until it dies.
type Work = fn(&World, &Exchange);

/// Lets `work` die before each of its operations in turn, in a new world each time. After two repairs that die too and
/// one that does not, the root must be as before; the stage must be as before or as after `work`, unless it is said to
/// be spoilt. Returns how many operations there are.
fn die_everywhere(make: fn() -> World, work: Work) -> u64 {
    let finished = {
        let world = make();
        work(&world, &world.exchange());
        without_inodes(world.stage_facts())
    };
    for count in 0.. {
        let world = make();
        let (root, stage) = (world.root_facts(), world.stage_facts());
        let died = dies_after(&world, count, work);
        let spoilt = repair(&world, count);
        assert_same(&format!("root, died at {count}"), &root, &world.root_facts());
        world.assert_side_is_tidy();
        let now = world.stage_facts();
        if !spoilt
            && now != stage
            && without_times(&finished) != without_times(&without_inodes(now.clone()))
        {
            assert_same(&format!("stage, died at {count}"), &stage, &now);
        }
        if !died {
            return count;
        }
    }
    unreachable!()
}

fn dies_after(world: &World, count: u64, work: Work) -> bool {
    let exchange = world.exchange();
    exchange.ops.set_left(count);
    work(world, &exchange);
    exchange.ops.left() == 0
}

/// Repairs, dying at two further points. Returns whether the stage is spoilt.
fn repair(world: &World, seed: u64) -> bool {
    let mut spoilt = false;
    for count in [seed * 7 % 41, seed * 13 % 67, u64::MAX] {
        let exchange = world.exchange();
        exchange.ops.set_left(count);
        let repaired = exchange.repair();
        assert!(repaired.is_ok() || count < u64::MAX, "{repaired:?}");
        if let Ok(Repaired::Restored { spoilt: true, .. }) = repaired {
            spoilt = true;
        }
    }
    assert_eq!(world.exchange().repair().unwrap(), Repaired::Nothing);
    spoilt
}

/// A script sets what it touches to the clock's time.
fn without_times(facts: &Facts) -> Facts {
    let mut facts = facts.clone();
    facts.values_mut().for_each(|fact| fact.mtime = (0, 0));
    facts
}

fn swap(world: &World, exchange: &Exchange, step: &str) {
    let Ok(plan) = world.plan(exchange) else { return };
    let Ok(swapped) = plan.swap_in() else { return };
    shell(&world.root, step);
    let _ = swapped.swap_out();
}

#[test]
fn an_exchange_without_changes() {
    isolated(|| {
        let operations =
            die_everywhere(World::ordinary, |world, exchange| swap(world, exchange, ""));
        assert!(operations > 60, "{operations}");
    });
}

#[test]
fn an_exchange_with_a_step() {
    isolated(|| {
        die_everywhere(World::ordinary, |world, exchange| {
            swap(
                world,
                exchange,
                "echo new > added; rm -r usr; mkdir -p usr/local; echo 1 >> etc/passwd; rm etc/passwd-; echo x > etc/new
                 chmod 711 etc .; chown 5 etc; mv bin sbin",
            );
        });
    });
}

fn with_volumes() -> World {
    let world = World::new();
    world.at_root("mkdir workspace tmp opt; echo o > opt/o");
    world.mount_volume("workspace");
    world.bind_volume("tmp");
    world.at_root(
        "mkdir -p workspace/repo/.git tmp/job; echo c > workspace/repo/c; ln workspace/repo/c workspace/d; chmod 1777 tmp
         touch -d '2003-01-01 01:01:01.5' workspace tmp; chown 6:6 workspace",
    );
    world.at_stage(
        "mkdir -p workspace/a tmp usr; echo f > workspace/a/f; ln workspace/a/f workspace/g; ln -s a workspace/l; echo t > tmp/t
         mkfifo workspace/p; chmod 4711 workspace/a/f; chmod 700 workspace; touch -d '2004-01-01 01:01:01.25' workspace/a workspace",
    );
    world
}

#[test]
fn an_exchange_with_volumes() {
    isolated(|| {
        let operations = die_everywhere(with_volumes, |world, exchange| {
            swap(
                world,
                exchange,
                "echo 2 > workspace/a/f; rm workspace/l; mkdir workspace/made; rm tmp/t",
            );
        });
        assert!(operations > 90, "{operations}");
    });
}
