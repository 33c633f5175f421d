use crate::fetch::git_reference::{GitMtime, GitReference, GitReferenceError, GitScheme, parse};

fn read(text: &str) -> GitReference {
    parse(text)
        .unwrap_or_else(|error| panic!("{text}: {error}"))
        .unwrap_or_else(|| panic!("{text}"))
}

/// `remote ref subdirectory`, with `-` for nothing.
fn shown(text: &str) -> String {
    let reference = read(text);
    let name = reference.reference.as_deref().unwrap_or("-");
    let folder = String::from_utf8(reference.subdirectory.as_bytes().to_vec()).unwrap();
    let folder = if folder.is_empty() { "-" } else { &folder };
    format!("{} {name} {folder}", reference.remote)
}

#[test]
fn what_is_a_repository() {
    for (text, expected) in [
        ("https://example.com/foo.git", "https://example.com/foo.git - -"),
        ("https://example.com/foo.git#deadbeef", "https://example.com/foo.git deadbeef -"),
        ("https://example.com/foo.git#release/1.2", "https://example.com/foo.git release/1.2 -"),
        ("HTTPS://example.com/foo.git", "https://example.com/foo.git - -"),
        ("git://example.com/foo", "git://example.com/foo - -"),
        ("ssh://git@host.example:22/a/b", "ssh://git@host.example:22/a/b - -"),
        ("ssh://someone@192.168.0.123:456/~/x.git", "ssh://someone@192.168.0.123:456/~/x.git - -"),
        ("github.com/moby/buildkit#master", "https://github.com/moby/buildkit master -"),
        ("git@github.com:moby/buildkit", "git@github.com:moby/buildkit - -"),
        ("some-one@example.com:/srv/x.git#v1:hack", "some-one@example.com:/srv/x.git v1 hack"),
        ("https://h/b.git#baz/qux:quux/quuz", "https://h/b.git baz/qux quux/quuz"),
        ("https://h/b.git#:myfolder", "https://h/b.git - myfolder"),
        ("https://h/b.git#v1:/a/../../b/./c/", "https://h/b.git v1 b/c"),
        ("https://h/b.git?ref=v1.0.0&subdir=/subdir", "https://h/b.git v1.0.0 subdir"),
        ("https://h/b.git?subdir=/subdir#v1.0.0", "https://h/b.git v1.0.0 subdir"),
        ("https://h/b.git?subdir=../../etc#v1", "https://h/b.git v1 etc"),
        ("https://h/b.git?tag=v1", "https://h/b.git refs/tags/v1 -"),
        ("https://h/b.git?tag=refs/tags/v1", "https://h/b.git refs/tags/v1 -"),
        ("https://h/b.git?branch=v1.0", "https://h/b.git refs/heads/v1.0 -"),
        ("https://h/b.git?ref=v1#v1", "https://h/b.git v1 -"),
        ("https://h/b.git?ref=a%2Fb", "https://h/b.git a/b -"),
        ("git@h:b.git?subdir=/s#v1", "git@h:b.git v1 s"),
        ("git@h:b.git#v1?x", "git@h:b.git v1?x -"),
        ("https://[::1]:8/b.git", "https://[::1]:8/b.git - -"),
        ("https://h/b.git?a;b=1&ref=%zz", "https://h/b.git - -"),
    ] {
        assert_eq!(shown(text), expected, "{text}");
    }
}

#[test]
fn what_is_none() {
    for text in [
        "https://example.com/",
        "https://example.com/foo",
        "https://example.com/foo.git/",
        "https://example.com/foo.git.bar",
        "https://example.com/foo?x=.git",
        "https://example.com",
        "custom.example/moby/buildkit.git",
        "http://github.com/docker/docker.git:#branch",
        "./.git",
        "../x.git",
        ".git",
        "x",
        "",
        "file:///srv/x.git",
        "httpx://h/x.git",
        "git+ssh://h/x.git",
        "ext::sh -c touch% /x",
        "a:b@h:x.git",
        "git@h_h:x",
        "git@h",
        "https://h/%zz.git",
        "https://h/x.git#%zz",
        "https://h:x/x.git",
        "https:///x.git",
        "https://h\n/x.git",
        "git@h:a\nb",
        "git@h:b.git?ref=%zz",
    ] {
        assert_eq!(parse(text), Ok(None), "{text}");
    }
}

#[test]
fn queries_that_are_refused() {
    let conflict = |what, first: &str, second: &str| GitReferenceError::Conflict {
        what,
        first: first.into(),
        second: second.into(),
    };
    for (query, error) in [
        ("ref=v1#v2", conflict("the ref", "v2", "v1")),
        ("ref=v1&tag=v2", conflict("the ref", "v1", "refs/tags/v2")),
        ("subdir=a#v1:b", conflict("the folder", "b", "a")),
        ("checksum=aa&commit=bb", conflict("the checksum", "aa", "bb")),
        ("tag=v1&branch=v1", GitReferenceError::BranchAndTag),
        ("invalid=123", GitReferenceError::UnknownKey("invalid".into())),
        ("ref=", GitReferenceError::NoValue("ref".into())),
        ("ref=a&ref=a", GitReferenceError::ManyValues("ref".into())),
        ("mtime=now", GitReferenceError::Value { key: "mtime", value: "now".into() }),
        ("submodules=2", GitReferenceError::Value { key: "submodules", value: "2".into() }),
        ("ref=--upload-pack=x", GitReferenceError::Ref("--upload-pack=x".into())),
        ("submodules#-x", GitReferenceError::Ref("-x".into())),
        ("ref=a%0ab", GitReferenceError::Ref("a\nb".into())),
    ] {
        assert_eq!(parse(&format!("https://h/b.git?{query}")), Err(error), "{query}");
    }
    assert!(parse("https://h/b.git?checksum=sha256:00").is_err());
    assert!(parse("https://h/b.git?subdir=a%00b").is_err());
}

#[test]
fn options_of_the_query() {
    let reference = read("https://h/b.git?keep-git-dir&submodules=false&mtime=commit");
    assert_eq!((reference.keep_git_dir, reference.submodules), (Some(true), Some(false)));
    assert_eq!(reference.mtime, GitMtime::Commit);
    let reference = read("https://h/b.git?fetch-by-commit=true&checksum=dead#refs/heads/x");
    assert!(reference.fetch_by_commit);
    assert_eq!(reference.checksum.unwrap().as_str(), "dead");
    assert!(!read("https://h/b.git?fetch-by-commit=false").fetch_by_commit);
    assert!(read("http://h/b.git").unencrypted() && read("git://h/b").unencrypted());
    assert!(!read("git@h:b").unencrypted() && read("github.com/a/b").like_local_path);
}

#[test]
fn flags_and_url_must_agree() {
    let read = |query: &str| read(&format!("https://h/b.git{query}"));
    let with = |query: &str, keep, sum| read(query).with_flags(keep, sum);
    assert_eq!(with("", Some(true), None).unwrap().keep_git_dir, Some(true));
    assert_eq!(with("?keep-git-dir", None, Some("")).unwrap().keep_git_dir, Some(true));
    assert_eq!(with("?keep-git-dir", Some(false), None), Err(GitReferenceError::KeepGitDir));
    assert_eq!(with("", None, Some("ab")).unwrap().checksum.unwrap().as_str(), "ab");
    assert!(with("?commit=ab", None, Some("ab")).is_ok());
    assert!(with("?commit=ab", None, Some("abc")).is_err());
    assert!(with("", None, Some("sha256:00")).is_err());
}

#[test]
fn hostile_remotes() {
    for text in [
        "ssh://-oProxyCommand=x/b",
        "ssh://-oProxyCommand=x@h/b",
        "-oProxyCommand@h:b",
        "git@-oProxyCommand:b",
        "git@h:-oProxyCommand=x",
        "git@h:",
        "git@h:?ref=x",
        "ssh://h",
        "git://h/",
    ] {
        assert!(matches!(parse(text), Ok(None) | Err(GitReferenceError::Remote(_))), "{text}");
    }
}

#[test]
fn passwords_are_kept_apart() {
    let reference = read("https://user:p%40ss@h:8/b.git");
    assert_eq!(reference.remote.url, "https://h:8/b.git");
    assert_eq!(reference.remote.host, "h:8");
    let (user, password) = reference.remote.login.clone().unwrap();
    assert_eq!((&*user, &**password.expose()), ("user", "p@ss"));
    assert!(!format!("{reference:?}{}", reference.remote).contains("ss@"), "{reference:?}");
    assert_eq!(read("https://user@h/b.git").remote.login, None);
    let ssh = read("ssh://git:hunter2@h/b.git").remote;
    assert_eq!((ssh.scheme, &*ssh.url), (GitScheme::Ssh, "ssh://git@h/b.git"));
}
