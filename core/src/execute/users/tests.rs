use proptest::prelude::*;

use super::*;
use crate::{
    execute::testing::{NoContents, snapshot, with_small_file},
    tree::Kind,
};

const PASSWD_TEXT: &str = "root:x:0:0:root:/root:/bin/sh\n\n  app:x:1000:1000::/home/app:/bin/sh\n\
    alice:x:1001:100:Alice:/home/alice:/bin/sh\nalice:x:7:7::/:\nnum:x:2000:2222::/home/num:\nnohome:x:3000:3000:::\nbad:x:abc:1::/:\nbig:x:4294967295:1::/:\nshort:x\n";
const GROUP_TEXT: &str = "# comment:x:9:app\nroot:x:0:\nstaff:x:50:app,alice\nusers:x:100:\nwheel:x:10:alice,num\nnum:x:2222:\ncrew:x:4000:\n";

fn owner(spec: &str) -> Result<(u32, u32), UserError> {
    let mut snapshot = snapshot(&[]);
    with_small_file(&mut snapshot, "etc/passwd", PASSWD_TEXT);
    with_small_file(&mut snapshot, "etc/group", GROUP_TEXT);
    let parent = Parent { snapshot: &snapshot, contents: &NoContents };
    let owner = OwnerSpec::parse(spec)?.look_up(&parent)?;
    Ok((owner.uid, owner.gid))
}

#[test]
fn owners_are_looked_up_as_the_rule_says() {
    for (spec, expected) in [
        ("33", (33, 33)),
        ("2000", (2000, 2000)),
        ("33:44", (33, 44)),
        (":44", (0, 44)),
        ("5:", (5, 0)),
        ("app:", (1000, 0)),
        ("app", (1000, 1000)),
        ("alice", (1001, 100)),
        ("alice:staff", (1001, 50)),
        (":users", (0, 100)),
        ("0:crew", (0, 4000)),
        ("root", (0, 0)),
        ("root:root", (0, 0)),
        ("", (0, 0)),
        ("nosuch", (0, 0)),
        ("app:nosuch", (1000, 1000)),
        ("nosuch:users", (0, 100)),
        ("33:nosuch", (33, 33)),
        ("1e3", (0, 0)),
        ("+5", (5, 5)),
        ("a:b:c", (0, 0)),
        ("2147483647", (2_147_483_647, 2_147_483_647)),
    ] {
        assert_eq!(owner(spec).unwrap(), expected, "{spec:?}");
    }
}

#[test]
fn impossible_ids_and_lines_are_refused() {
    for spec in ["-1", "-1:0", "0:-2", "4294967295", "2147483648", "99999999999999999999"] {
        assert!(matches!(owner(spec), Err(UserError::Id(_))), "{spec}");
    }
    for spec in ["bad", "big", "short"] {
        assert!(matches!(owner(spec), Err(UserError::MalformedLine { .. })), "{spec}");
    }
}

#[test]
fn a_missing_file_is_as_an_unknown_name() {
    let snapshot = snapshot(&[]);
    let parent = Parent { snapshot: &snapshot, contents: &NoContents };
    let look_up = |spec: &str| OwnerSpec::parse(spec).unwrap().look_up(&parent).unwrap();
    assert_eq!(look_up("app:staff"), Owner::default());
    assert_eq!(look_up("5:staff"), Owner { uid: 5, gid: 5 });
}

#[test]
fn anything_but_a_regular_file_is_an_error() {
    let directory = snapshot(&[("etc/passwd", Kind::DIRECTORY)]);
    let elsewhere = snapshot(&[("etc/passwd", Kind::File { size: 5 })]);
    let link = Kind::Symlink { target: b"/etc/passwd"[..].into() };
    let looping = snapshot(&[("etc/passwd", link)]);
    let below_file = snapshot(&[("etc", Kind::File { size: 0 })]);
    let read = |snapshot| Parent { snapshot, contents: &NoContents }.passwd();
    assert!(matches!(read(&directory), Err(UserError::NotAFile(_))));
    assert!(matches!(read(&elsewhere), Err(UserError::Contents(..))));
    assert!(matches!(read(&looping), Err(UserError::Resolve(_))));
    assert!(read(&below_file).unwrap().is_none());
}

#[test]
fn a_line_without_end_is_refused() {
    let long = vec![b'x'; PASSWD_LINE_BYTES_MAX];
    assert!(matches!(owner_of_user(&long, "app"), Err(UserError::LongLine("/etc/passwd"))));
    assert!(gid_of_group(&long, "app").unwrap().is_none(), "groups may have longer ones");
}

fn process(spec: &str) -> Result<RunUser, UserError> {
    run_user(spec, Some(PASSWD_TEXT.as_bytes()), Some(GROUP_TEXT.as_bytes()))
}

#[test]
fn a_process_gets_its_groups_and_home() {
    for (spec, uid, gid, groups, home) in [
        ("", 0, 0, &[0][..], "/root"),
        ("root", 0, 0, &[0], "/root"),
        ("app", 1000, 1000, &[1000, 50], "/home/app"),
        ("alice", 1001, 100, &[100, 50, 10], "/home/alice"),
        ("2000", 2000, 2222, &[2222, 10], "/home/num"),
        ("4242", 4242, 0, &[0], "/"),
        ("app:users", 1000, 100, &[100], "/home/app"),
        ("alice:4000", 1001, 4000, &[4000], "/home/alice"),
        ("1234:crew", 1234, 4000, &[4000], "/"),
        ("1234:5678", 1234, 5678, &[5678], "/"),
        ("2000:0", 2000, 0, &[0], "/home/num"),
        (":users", 0, 100, &[100], "/root"),
        ("root:staff", 0, 50, &[50], "/root"),
        ("nohome", 3000, 3000, &[3000], ""),
    ] {
        let user = process(spec).unwrap();
        assert_eq!((user.uid, user.gid), (uid, gid), "{spec:?}");
        assert_eq!(user.groups, groups, "{spec:?}");
        assert_eq!(user.home, home.as_bytes(), "{spec:?}");
    }
}

#[test]
fn a_process_needs_names_that_exist() {
    assert!(matches!(process("ghost"), Err(UserError::UnknownUser(_))));
    assert!(matches!(process("app:nosuch"), Err(UserError::UnknownGroup(_))));
    assert!(matches!(process("ghost:users"), Err(UserError::UnknownUser(_))));
    assert!(matches!(process("-1"), Err(UserError::Id(_))));
    assert!(matches!(process("bad"), Err(UserError::MalformedLine { .. })));
    assert!(matches!(run_user("app", None, None), Err(UserError::UnknownUser(_))));
    assert_eq!(run_user("77", None, None).unwrap().gid, 0);
    assert_eq!(run_user("root:root", None, None).unwrap().groups, [0]);
    assert_eq!(run_user("", None, None).unwrap().home, b"/");
}

proptest! {
    #[test]
    fn any_bytes_are_read(spec: String, passwd: Vec<u8>, group: Vec<u8>) {
        let _ = run_user(&spec, Some(&passwd), Some(&group));
        let _ = owner_of_user(&passwd, &spec);
        let _ = OwnerSpec::parse(&spec);
    }
}
