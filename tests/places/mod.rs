//! Builds where CI systems run them. table.rs says which rung each place is expected to give; every place that has one
//! builds the same Dockerfiles to the same digests, and leaves the container's own root as it was.

mod builds;
mod crash;
mod faithful;
mod hostile;
mod suites;
mod table;

use self::{
    builds::{Job, context, host_digest},
    table::{Row, Rung},
};
use crate::support::{
    http,
    places::{Image, OrdinaryUser, Place},
    process,
};

/// A build without RUN works whatever the place allows; the small steps run where there is a rung, else the error says
/// what is missing. Nothing of the container's root changes.
#[track_caller]
fn assert_row(row: &Row) {
    let job = Job::start(row);
    let copied = job.build("copy", &[]).success();
    assert_eq!(copied.sandbox(), None, "no rung is needed without a RUN");
    assert_eq!(copied.digest(), host_digest("copy"));
    assert_steps(&job, row.allows.expected(), &["everyday", "again"]);
}

/// Runs these Dockerfiles one after another in one container; the root is as before after each.
#[track_caller]
fn assert_steps(job: &Job, rung: Rung, names: &[&'static str]) {
    let before = job.root_files();
    let volumes = job.volume_files();
    let mut settled = None;
    for name in names {
        let outcome = job.build(name, &[]);
        if rung == Rung::Nothing {
            outcome.failure(7, &["hint:"]);
        } else {
            let outcome = outcome.success();
            assert_eq!(outcome.sandbox().as_deref(), rung.name());
            assert_eq!(outcome.digest(), host_digest(name), "{name}: the same on every rung");
        }
        assert_eq!(job.volume_files(), volumes, "the volumes are as before");
        let after = job.root_files();
        // Directories of the job image's layers are copied out once: after that no inode changes any more.
        if settled.is_none() {
            after.clone().without_inodes().assert_as(&before.clone().without_inodes());
        } else {
            after.assert_as(settled.as_ref().unwrap_or(&before));
        }
        settled = Some(after);
    }
}

macro_rules! places {
    ($($name:ident: $row:ident;)*) => {
        $(#[test] fn $name() { assert_row(&table::$row); })*
    };
}

places! {
    default_container: DEFAULT;
    containerd_default_container: CONTAINERD;
    debian_job_image: DEBIAN;
    debian_job_image_with_everything_mounted: DEBIAN_MOUNTS;
    default_container_with_everything_mounted: MOUNTS;
    no_user_namespaces: NO_USER_NAMESPACES;
    read_only_root: READ_ONLY;
    pod_with_a_volume: POD_VOLUME;
    pod_without_a_volume: POD_BARE;
    pod_with_own_users_confined: OWN_USERS_CONFINED;
    pod_with_own_users_unconfined: OWN_USERS_UNCONFINED;
    pod_with_own_users_not_nested: OWN_USERS_NOT_NESTED;
    pod_with_own_users_and_sys_admin_confined: OWN_USERS_ADMIN_CONFINED;
    pod_with_own_users_and_sys_admin: OWN_USERS_ADMIN;
    restricted_pod: RESTRICTED;
    privileged_container: PRIVILEGED;
    privileged_container_without_a_volume: PRIVILEGED_BARE;
}

/// The packages with maintainer scripts: once on each rung, for they take long.
#[track_caller]
fn assert_packages(row: &Row) {
    let job = Job::start(row);
    let outcome = job.build("apt", &[]);
    if row.allows.expected() == Rung::Nothing {
        outcome.failure(7, &["hint:"]);
        return;
    }
    let outcome = outcome.success();
    let layout = outcome.layout();
    let text = |name| String::from_utf8(layout.content(name)).unwrap();
    assert_eq!(text("answer"), "SELECT 1\n42\n");
    assert!(text("python").starts_with("/usr/bin/python3"), "{}", text("python"));
    assert!(text("java").contains("Operating System Metrics"), "{}", text("java"));
}

#[test]
fn packages_in_a_privileged_container() {
    assert_packages(&table::PRIVILEGED);
}

#[test]
fn packages_in_the_default_container() {
    assert_packages(&table::DEFAULT);
}

/// What one of them writes by path must not come to be in the other one's layers.
#[test]
fn builds_beside_each_other_take_turns() {
    let job = Job::start(&table::DEFAULT);
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| job.build_beside("copy"));
        process::wait_until(60, "the other build is ready", || job.has_one_beside());
        let outcome = job.build("slow", &[]).success();
        assert_eq!(outcome.sandbox().as_deref(), Rung::Swap.name());
        assert_eq!(outcome.digest(), host_digest("slow"));
        let (done, reference) = beside.join().unwrap();
        assert_eq!(done.success().stdout.trim(), host_digest("copy"));
        assert_eq!(http::manifest(&reference).0, host_digest("copy"));
    });
}

/// As `docker run IMAGE build …`: no shell, no second command.
#[test]
fn the_image_with_the_program_alone_builds() {
    let reference = crate::support::Peers::get().fresh_reference("executor");
    let place = Place { image: Image::Executor, ..Place::DEFAULT };
    let epoch = ("SOURCE_DATE_EPOCH", builds::EPOCH);
    let done =
        place.run_once(&[epoch], &["build", "-t", &reference, "--push", "-"], &context("copy"));
    assert_eq!(done.success().stdout.trim(), host_digest("copy"));
    let version = place.run_once(&[], &["--version"], &[]).success().stdout;
    assert_eq!(version.trim(), concat!("bareboat ", env!("CARGO_PKG_VERSION")));
}

/// Directories of an image cannot be renamed, so ours has none at a path of another's.
#[test]
fn our_images_have_directories_of_their_own_only() {
    for (image, expected) in
        [(Image::Executor, &["bareboat"][..]), (Image::Shell, &["bareboat", "busybox"])]
    {
        let layout = crate::support::Layout::open(&image.layout());
        assert_eq!(layout.tree().names(""), expected);
        assert_eq!(layout.tree().get("bareboat/home").mode, 0o1777);
    }
}

fn assert_user(subordinate_ids: bool, allows: Rung) {
    let rung = allows.expected();
    let user = OrdinaryUser::new(subordinate_ids);
    let copied = builds::as_user(&user, "copy").success();
    assert_eq!(copied.digest(), host_digest("copy"));
    for name in ["everyday", "again"] {
        let outcome = builds::as_user(&user, name);
        if rung == Rung::Nothing {
            outcome.failure(7, &["hint:", "usermod --add-subuids"]);
        } else {
            let outcome = outcome.success();
            assert_eq!(outcome.sandbox().as_deref(), rung.name());
            assert_eq!(outcome.digest(), host_digest(name));
        }
    }
}

#[test]
fn ordinary_user_with_subordinate_ids() {
    assert_user(true, table::USER_WITH_IDS);
}

#[test]
fn ordinary_user_without_subordinate_ids() {
    assert_user(false, table::USER_WITHOUT_IDS);
}
