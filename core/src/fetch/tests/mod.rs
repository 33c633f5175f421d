use super::*;

mod git;
mod git_reference;
mod http;
mod repositories;

/// Secrets by id.
fn secrets<'a>(known: &'a [(&'a str, &'a str)]) -> Box<SecretLookup<'a>> {
    Box::new(|id| {
        let value = known.iter().find(|(known, _)| *known == id)?.1;
        Some(Secret::new(value.as_bytes().to_vec()))
    })
}

#[test]
fn sources_of_add() {
    assert_eq!(AddSource::of("http://h/x.tar"), Ok(AddSource::Url));
    assert!(matches!(AddSource::of("http://h/x.git"), Ok(AddSource::Git(_))));
    assert!(matches!(AddSource::of("git@h:x"), Ok(AddSource::Git(_))));
    for path in
        ["x", "./x.git", "github.com/a/b", "HTTP://h/x", "ftp://h/x", "ext::sh -c x", ".git"]
    {
        assert_eq!(AddSource::of(path), Ok(AddSource::Local), "{path}");
    }
    assert!(AddSource::of("http://h/x.git?nope=1").is_err());
}

#[test]
fn passwords_are_left_out() {
    for (source, shown) in [
        ("https://u:p@h/x.git#v1", "https://h/x.git#v1"),
        ("https://u:p@ss@h:1/x@y", "https://h:1/x@y"),
        ("https://token@h", "https://h"),
        ("ssh://git:p@h/x", "ssh://git@h/x"),
        ("git@h:x@y", "git@h:x@y"),
        ("https://h/a@b", "https://h/a@b"),
        ("https://h?a@b", "https://h?a@b"),
        ("dir/a@b", "dir/a@b"),
    ] {
        assert_eq!(without_password(source), shown, "{source}");
    }
}
