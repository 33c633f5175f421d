use super::*;
use crate::dockerfile::{ast::Escape, words::Expander};

fn as_is(word: &str) -> Result<String, WordError> {
    Ok(word.to_owned())
}

fn read(value: &str) -> Result<Mount, MountError> {
    parse(value, &as_is)
}

fn text(value: &str) -> Option<String> {
    Some(value.to_owned())
}

#[test]
fn every_type_and_key() {
    let bind = Mount {
        read_only: true,
        target: text("/x"),
        source: text("s"),
        from: text("f"),
        ..Mount::default()
    };
    assert_eq!(read("Target=/x,SRC=s,from=f"), Ok(bind));
    let cache = Mount {
        kind: MountType::Cache,
        id: text("i"),
        target: text("/c"),
        sharing: Some(Sharing::Locked),
        mode: Some(0o750),
        uid: Some(7),
        gid: Some(4_294_967_295),
        ..Mount::default()
    };
    assert_eq!(
        read("type=CACHE,id=i,dst=/c,sharing=Locked,mode=0750,uid=7,gid=4294967295"),
        Ok(cache)
    );
    let tmpfs = Mount {
        kind: MountType::Tmpfs,
        target: text("/t"),
        size_bytes: 65_536,
        ..Mount::default()
    };
    assert_eq!(read("type=tmpfs,destination=/t,size=64k"), Ok(tmpfs));
    let secret = Mount {
        kind: MountType::Secret,
        read_only: true,
        id: text("k"),
        env: text("KEY"),
        required: true,
        ..Mount::default()
    };
    assert_eq!(read("type=secret,id=k,env=KEY,required"), Ok(secret.clone()));
    assert_eq!(read("type=secret,id=k,env=KEY,required=1"), Ok(secret));
    let ssh = Mount { kind: MountType::Ssh, read_only: true, ..Mount::default() };
    assert_eq!(read("type=ssh,required=false"), Ok(ssh));
}

#[test]
fn read_only_follows_the_last_word_said() {
    let read_only = |value: &str| read(value).unwrap().read_only;
    assert!(read_only("target=/x"));
    assert!(!read_only("rw,target=/x"));
    assert!(!read_only("ro,readwrite,target=/x"));
    assert!(read_only("type=cache,readonly,target=/x"));
    assert!(read_only("type=cache,rw=false,target=/x"));
    assert!(!read_only("ro=F,target=/x"));
}

#[test]
fn csv_quotes() {
    assert_eq!(read(r#""target=/a,b","source=c""d""#).unwrap().target, text("/a,b"));
    assert_eq!(read(r#""target=/a,b","source=c""d""#).unwrap().source, text("c\"d"));
    for value in ["", "target=\"/a\"", "\"target=/a", "\"target=/a\"x", "\n"] {
        assert!(matches!(read(value), Err(MountError::Csv(_))), "{value}");
    }
}

#[test]
fn values_are_expanded_after_the_split() {
    let lookup = |name: &str| (name == "T").then(|| "/a,b".to_owned());
    let expander = Expander::new(Escape::Backslash, &lookup);
    let expand = |word: &str| expander.expand(word).map(|expanded| expanded.value);
    let mount = parse("type=${K:-cache},target=$T,id='x y'", &expand).unwrap();
    assert_eq!((mount.kind, mount.target, mount.id), (MountType::Cache, text("/a,b"), text("x y")));
    assert!(matches!(parse("target=${T", &expand), Err(MountError::Word(_))));
}

#[test]
fn refusals() {
    let refused = |value: &str| read(value).unwrap_err().to_string();
    for (value, expected) in [
        ("target", "invalid field 'target' must be a key=value pair"),
        ("target=/x,", "invalid field '' must be a key=value pair"),
        ("where=/x", "unexpected key 'where' in 'where=/x'"),
        ("type=volume", "unsupported mount type \"volume\""),
        ("required,type=secret,id=x", "unexpected key 'required' for mount type 'bind'"),
        ("size=1,type=tmpfs", "unexpected key 'size' for mount type 'bind'"),
        ("type=tmpfs,size=big", "invalid value for size: big"),
        ("ro=perhaps", "invalid value for ro: perhaps"),
        ("type=cache,sharing=mine", "unsupported sharing value \"mine\""),
        ("type=cache,mode=9z", "invalid value 9z for mode"),
        ("type=cache,uid=+1", "invalid value +1 for uid"),
        ("type=cache,uid=", "invalid value  for uid"),
        ("type=cache,gid=4294967296", "invalid value 4294967296 for gid"),
        ("target=/x,mode=0755", "mode not allowed for \"bind\" type mounts"),
        ("type=secret", "invalid secret mount. one of source, target required"),
        ("type=secret,id=a,source=b", "both source and id can't be set"),
        ("type=secret,id=a,from=b", "secret mount should not have a from"),
        ("type=secret,id=a,sharing=shared", "secret mount should not define sharing"),
        ("sharing=shared", "invalid cache sharing set for bind mount"),
    ] {
        assert_eq!(refused(value), expected);
    }
    assert_eq!(read("taget=/x").unwrap_err().hint().as_deref(), Some("did you mean target?"));
}

#[test]
fn what_is_known_before_expansion() {
    assert_eq!(check("type=$T,target=${X,from=a$"), Ok(()));
    assert_eq!(check("anything,from"), Ok(()));
    assert_eq!(check("From=$X"), Err(MountError::FromVariable));
    assert!(matches!(check(""), Err(MountError::Csv("EOF"))));
}

#[test]
fn sizes() {
    for (size, expected) in [
        ("0", 0),
        ("4096", 4096),
        ("1k", 1024),
        ("1KB", 1024),
        ("1.5MiB", 1_572_864),
        ("2 g", 2 << 30),
        ("7b", 7),
        (".5k", 512),
        ("1p", 1 << 50),
    ] {
        assert_eq!(bytes(size), Some(expected), "{size}");
    }
    for size in ["", "k", "-1", "1x", "1kk", "1bb", "1 kib b", "1e40", "1ké", "big"] {
        assert_eq!(bytes(size), None, "{size}");
    }
}
