//! Directories of the container's own image, on real overlays.

use std::{fs, os::unix::net::UnixListener};

use super::{super::*, tools::*};
use crate::rootfs::testing::shell;

const NO_LIMIT: u64 = u64::MAX;

/// The layer of a job image: what Docker's init layer brings, and a system.
const LAYER: &str = "mkdir -p usr/bin usr/lib/deep/er etc/ssl var/lib/pkg var/run proc opt
    echo tool > usr/bin/tool; ln usr/bin/tool usr/bin/linked; chmod 4755 usr/bin/tool; ln -s usr/bin bin; echo lib > usr/lib/deep/er/lib
    touch -d '2001-01-01 01:01:01.111111111' usr/lib/deep/er/lib usr/lib/deep usr/bin usr; chown 5:6 usr/lib/deep
    echo c > etc/ssl/certs; > etc/hosts; ln -s /proc/mounts etc/mtab; echo own > etc/passwd; mkfifo var/fifo
    truncate -s 40M var/sparse; echo pkg > var/lib/pkg/list; mkdir -m 1777 tmp";

/// A container of that image, as it runs under Docker.
fn job() -> World {
    let world = World::layered(LAYER);
    world.at_root("mkdir -p var/run/secrets/token var/made/by/job; echo j > var/made/by/job/file; echo more > usr/lib/added");
    world.mount_file("etc/hosts", "runtime");
    let usr = world.root.join("usr");
    set(&usr, "bin/tool", "security.capability", CAP_NET_RAW);
    set(&usr, "bin/tool", "user.x", b"y");
    set(&usr, "lib/deep", "system.posix_acl_default", &acl(6));
    set(&usr, "lib/deep", "trusted.t", b"t");
    world.at_stage("mkdir -p usr etc/ssl; echo s > usr/s; echo t > etc/ssl/t; echo p > etc/passwd");
    world
}

fn layered(world: &World) -> Vec<String> {
    survey(world, &world.exchange())
}

fn survey(world: &World, exchange: &Exchange) -> Vec<String> {
    let survey = exchange.survey(&path(STAGE), &world.options).unwrap();
    let mut paths: Vec<_> = survey.layered.iter().map(|path| path.to_string()).collect();
    paths.sort();
    paths
}

#[test]
fn a_job_image_is_copied_once_and_swaps_afterwards() {
    isolated(|| {
        let world = job();
        assert_eq!(layered(&world), ["/etc/ssl", "/opt", "/proc", "/tmp", "/usr", "/var"]);
        let root = world.root_facts();
        let exchange = world.exchange();
        let error = world.plan(&exchange).err().unwrap();
        assert!(matches!(error, SwapError::Layered { .. }), "{error}");
        let done = exchange.delayer(&path(STAGE), &world.options, NO_LIMIT).unwrap();
        assert_eq!(done.directories, 6);
        assert!(done.entries > 10 && done.bytes < 1 << 20 && done.seconds > 0.0, "{done:?}");
        assert_same("root", &without_inodes(root), &without_inodes(world.root_facts()));
        world.assert_side_is_tidy();
        let again = exchange.delayer(&path(STAGE), &world.options, NO_LIMIT).unwrap();
        assert_eq!(again, Delayered::default());
        drop(exchange);
        let (root, stage) = (world.root_facts(), world.stage_facts());
        world.run("[ $(cat usr/s) = s ]; [ ! -e usr/bin ]; [ $(cat etc/ssl/t) = t ]; [ $(cat etc/hosts) = runtime ]; [ ! -e var ]");
        assert_same("root", &root, &world.root_facts());
        assert_same("stage", &stage, &world.stage_facts());
    });
}

#[test]
fn a_layers_directory_with_a_mount_is_a_level() {
    isolated(|| {
        let world = job();
        world.mount_volume("var/run/secrets/token");
        assert_eq!(layered(&world), ["/etc/ssl", "/opt", "/proc", "/tmp", "/usr", "/var/lib"]);
        let exchange = world.exchange();
        exchange.delayer(&path(STAGE), &world.options, NO_LIMIT).unwrap();
        drop(exchange);
        let root = world.root_facts();
        let out = world.run("[ -z \"$(ls var/run)\" ]; [ ! -e var/made ]; echo x > var/x");
        world.at_stage("[ $(cat var/x) = x ]; [ ! -e var/run ]");
        assert_eq!(out.levels.len(), 3);
        assert_same("root", &root, &world.root_facts());
    });
}

#[test]
fn what_programs_of_the_job_do_meanwhile_is_kept() {
    isolated(|| {
        let world = World::layered(
            "mkdir -p var/lib/pkg var/run; echo pkg > var/lib/pkg/list; mkfifo var/fifo; truncate -s 40M var/sparse",
        );
        world.at_root("mkdir -p var/made/by/job; echo j > var/made/by/job/file");
        let socket = world.root.join("var/run/socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let made = fs::metadata(world.root.join("var/made/by")).unwrap();
        let exchange = world.exchange();
        assert_eq!(survey(&world, &exchange), ["/var"]);
        // Dies when the copy has just become complete.
        for left in 0..200 {
            exchange.ops.set_left(left);
            exchange.delayer(&path(STAGE), &world.options, NO_LIMIT).unwrap_err();
            exchange.ops.set_left(u64::MAX);
            let journal = fs::read_to_string(world.side().join("swap.journal")).unwrap();
            if journal.contains("\"Y\"") {
                break;
            }
            exchange.repair().unwrap();
        }
        world.at_root(
            "echo changed >> var/lib/pkg/list; echo new > var/lib/new; mkdir var/lib/newdir; > var/lib/newdir/file; chmod 600 var/fifo; rm var/sparse; > var/sparse",
        );
        exchange.repair().unwrap();
        world.at_root(
            "[ $(tail -1 var/lib/pkg/list) = changed ]; [ $(cat var/lib/new) = new ]; [ -e var/lib/newdir/file ]; [ $(stat -c %a var/fifo) = 600 ]; [ ! -s var/sparse ]
             [ $(cat var/made/by/job/file) = j ]",
        );
        use std::os::unix::fs::MetadataExt;
        assert_eq!(fs::metadata(world.root.join("var/made/by")).unwrap().ino(), made.ino());
        std::os::unix::net::UnixStream::connect(&socket).unwrap();
        assert!(survey(&world, &exchange).is_empty());
    });
}

#[test]
fn an_image_beyond_the_limit_is_refused_and_nothing_is_copied() {
    isolated(|| {
        let world = World::layered(
            "mkdir -p usr/lib opt; head -c 300000 /dev/urandom > usr/lib/big; truncate -s 2G opt/sparse",
        );
        let exchange = world.exchange();
        let error = exchange.delayer(&path(STAGE), &world.options, 200_000).unwrap_err();
        assert_eq!(survey(&world, &exchange), ["/opt", "/usr"]);
        let SwapError::FatImage { bytes, bytes_max: 200_000 } = error else { panic!("{error}") };
        assert!((300_000..400_000).contains(&bytes), "{bytes}");
        assert!(error.hint().unwrap().contains("image"));
        exchange.delayer(&path(STAGE), &world.options, 400_000).unwrap();
    });
}

#[test]
fn links_that_lead_out_are_copied_and_not_followed() {
    isolated(|| {
        let world = World::layered(
            "mkdir -p usr/d; ln -s / usr/root; ln -s ../../.. usr/d/up; ln -s /etc/passwd usr/passwd",
        );
        world.at_root("echo canary > canary");
        let root = world.root_facts();
        world.exchange().delayer(&path(STAGE), &world.options, NO_LIMIT).unwrap();
        assert_same("root", &without_inodes(root), &without_inodes(world.root_facts()));
    });
}

/// The same as [`super::crash`], but a copied directory's inodes are new.
#[test]
fn it_may_die_before_every_operation() {
    isolated(|| {
        for count in 0.. {
            let world = job();
            let root = without_inodes(world.root_facts());
            let exchange = world.exchange();
            exchange.ops.set_left(count);
            let _ = exchange.delayer(&path(STAGE), &world.options, NO_LIMIT);
            let died = exchange.ops.left() == 0;
            for left in [count * 7 % 23, count * 13 % 31, u64::MAX] {
                exchange.ops.set_left(left);
                let repaired = exchange.repair();
                assert!(repaired.is_ok() || left < u64::MAX, "{repaired:?}");
            }
            let now = without_inodes(world.root_facts());
            assert_same(&format!("died at {count}"), &root, &now);
            world.assert_side_is_tidy();
            if !died {
                assert!(count > 120, "{count}");
                break;
            }
        }
    });
}

#[test]
fn an_exchange_on_an_overlay_may_die_before_every_operation() {
    isolated(|| {
        for count in (0..).step_by(3) {
            let world = job();
            let exchange = world.exchange();
            exchange.delayer(&path(STAGE), &world.options, NO_LIMIT).unwrap();
            let (root, stage) = (world.root_facts(), world.stage_facts());
            exchange.ops.set_left(count);
            if let Ok(swapped) = world.plan(&exchange).and_then(|plan| plan.swap_in()) {
                let _ = swapped.swap_out();
            }
            let died = exchange.ops.left() == 0;
            exchange.ops.set_left(count * 11 % 37);
            let _ = exchange.repair();
            exchange.ops.set_left(u64::MAX);
            exchange.repair().unwrap();
            assert_same(&format!("root, died at {count}"), &root, &world.root_facts());
            assert_same(&format!("stage, died at {count}"), &stage, &world.stage_facts());
            if !died {
                break;
            }
        }
    });
}

#[test]
fn a_file_of_a_layer_moves() {
    isolated(|| {
        let world = World::layered(
            "echo layer > file; ln -s file link; mkdir etc; > etc/hosts; echo p > etc/passwd",
        );
        world.mount_file("etc/hosts", "runtime");
        world.at_stage("echo stage > file");
        world.run("[ $(cat file) = stage ]; [ ! -e link ]; [ ! -e etc/passwd ]");
        shell(
            &world.root,
            "[ $(cat file) = layer ]; [ $(cat link) = layer ]; [ $(cat etc/passwd) = p ]",
        );
    });
}
