//! The places themselves: each allows and refuses what the real one does. What judges bareboat must be right itself.

use super::table::{self, Row};
use crate::support::places::{Container, Done, Image};

/// What a shell says: `applet` is one of busybox, or the program of a Debian image.
fn shell(container: &Container, script: &str) -> Done {
    container.run(&["sh", "-c", script])
}

/// What is allowed, or the kernel's reason: `-` where nobody was asked.
#[derive(Debug, PartialEq)]
struct Allows {
    user_namespace: &'static str,
    mount: &'static str,
    capabilities: &'static str,
    seccomp: bool,
    top_level_directory: bool,
}

const REASONS: [&str; 3] = ["not permitted", "denied", "No space left"];

/// "yes", or the reason that the command gave.
fn verdict(done: &Done) -> &'static str {
    if done.code == Some(0) {
        return "yes";
    }
    let known = REASONS.into_iter().find(|reason| done.stderr.contains(reason));
    known.unwrap_or_else(|| panic!("{:?}: {}", done.code, done.stderr))
}

fn status(container: &Container, field: &str) -> String {
    let script = format!("sed -n 's/^{field}:[[:space:]]*0*//p' /proc/self/status");
    shell(container, &script).success().stdout.trim().to_owned()
}

#[track_caller]
fn assert_allows(row: &Row, expected: Allows) {
    let container = row.place.start();
    assert_eq!(verdict(&shell(&container, "unshare -U true")), expected.user_namespace);
    assert_eq!(verdict(&shell(&container, "mount -t tmpfs none /dev/mqueue")), expected.mount);
    assert_eq!(status(&container, "CapBnd"), expected.capabilities);
    assert_eq!(status(&container, "Seccomp") == "2", expected.seccomp);
    let made = shell(&container, "mkdir /made && mv /made /moved && rmdir /moved").code;
    assert_eq!(made == Some(0), expected.top_level_directory);
    let masked = shell(&container, "echo 1 > /proc/sys/kernel/domainname").code;
    assert_eq!(masked == Some(0), row.place.privileged, "/proc/sys is read-only");
}

/// Docker's 14 default capabilities as /proc says them.
const DEFAULT: &str = "a80425fb";

#[test]
fn the_default_container_has_14_capabilities_and_a_filter() {
    for row in [&table::DEFAULT, &table::CONTAINERD, &table::DEBIAN, &table::MOUNTS] {
        let expected = Allows {
            user_namespace: "not permitted",
            // Debian's mount and busybox's have words of their own.
            mount: "denied",
            capabilities: DEFAULT,
            seccomp: true,
            top_level_directory: true,
        };
        assert_allows(row, expected);
    }
}

#[test]
fn a_pod_without_a_filter_makes_user_namespaces() {
    let expected = Allows {
        user_namespace: "yes",
        mount: "denied",
        capabilities: DEFAULT,
        seccomp: false,
        top_level_directory: true,
    };
    assert_allows(&table::POD_VOLUME, expected);
}

#[test]
fn forbidden_user_namespaces_say_that_there_is_no_space() {
    for (row, seccomp) in
        [(&table::NO_USER_NAMESPACES, true), (&table::OWN_USERS_NOT_NESTED, false)]
    {
        let expected = Allows {
            user_namespace: "No space left",
            mount: "denied",
            capabilities: DEFAULT,
            seccomp,
            top_level_directory: true,
        };
        assert_allows(row, expected);
    }
}

#[test]
fn a_pod_with_its_own_users_and_sys_admin_mounts_under_the_default_filter() {
    for (row, mount, capabilities) in [
        (&table::OWN_USERS_CONFINED, "denied", DEFAULT),
        (&table::OWN_USERS_ADMIN_CONFINED, "yes", "a82425fb"),
    ] {
        let user_namespace = if mount == "yes" { "yes" } else { "not permitted" };
        let expected = Allows {
            user_namespace,
            mount,
            capabilities,
            seccomp: true,
            top_level_directory: true,
        };
        assert_allows(row, expected);
    }
    let map = shell(&table::OWN_USERS_CONFINED.place.start(), "cat /proc/self/uid_map");
    assert_eq!(map.stdout.split_whitespace().collect::<Vec<_>>(), ["0", "500000", "65536"]);
}

#[test]
fn a_restricted_pod_has_nothing() {
    let expected = Allows {
        user_namespace: "not permitted",
        mount: "denied",
        capabilities: "",
        seccomp: true,
        top_level_directory: false,
    };
    assert_allows(&table::RESTRICTED, expected);
    let container = table::RESTRICTED.place.start();
    assert_eq!(shell(&container, "id -u").stdout.trim(), "10001");
    assert_eq!(status(&container, "NoNewPrivs"), "1");
}

#[test]
fn a_read_only_root_takes_nothing() {
    let container = table::READ_ONLY.place.start();
    let done = shell(&container, "touch /made");
    assert!(done.stderr.contains("Read-only file system"), "{}", done.stderr);
    shell(&container, "touch /builds/made").success();
}

#[test]
fn docker_has_etc_in_a_lower_directory_and_containerd_has_not() {
    let rename = "mkdir /aside; mv /etc /aside/etc 2>&1 | grep -c busy";
    for row in [&table::DEFAULT, &table::CONTAINERD] {
        let container = row.place.start();
        // Its mount points go along with a rename of containerd's; mv can only copy what comes out of Docker's.
        let copied = shell(&container, rename).stdout.trim() != "0";
        assert_eq!(copied, row.place.image == Image::ShellOnDocker);
    }
}

#[test]
fn a_look_at_the_root_sees_every_change() {
    let container = table::DEBIAN.place.start();
    let before = container.root_files(&["/state"]);
    for change in [
        "touch /new",
        "chmod 700 /srv",
        "chown 1 /opt",
        "echo more >> /etc/passwd",
        "rm /etc/debian_version",
        "ln -sfn elsewhere /bin",
        "mv /var/log /var/logs",
    ] {
        let earlier = container.root_files(&["/state"]);
        earlier.assert_as(&earlier.clone());
        shell(&container, change).success();
        assert!(!container.root_files(&["/state"]).differences(&earlier).is_empty(), "{change}");
    }
    assert!(!container.root_files(&[]).differences(&before).is_empty());
}
