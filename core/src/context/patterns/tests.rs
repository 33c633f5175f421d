use proptest::prelude::*;

use super::*;

/// Looks a path up as a walk does: from the outermost directory down.
fn excluded(patterns: &[&str], path: &str) -> bool {
    let patterns = Patterns::parse(patterns.iter().map(|line| line.as_bytes())).unwrap();
    let (mut info, mut matched) = (None, false);
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    for end in ends {
        let (now, each) = patterns.matches(&path.as_bytes()[..end], info.as_ref());
        (info, matched) = (Some(each), now);
    }
    matched
}

#[test]
fn what_matches() {
    for (patterns, path) in [
        (&["a"][..], "a"),
        (&["a"], "a/b/c"),
        (&["a/"], "a/b"),
        (&["./a/../b"], "b"),
        (&["*"], ".hidden"),
        (&["*.go"], "x.go"),
        (&["**"], "a/b"),
        (&["**/x"], "x"),
        (&["**/x"], "a/b/x"),
        (&["**x"], "a/bx"),
        (&["**.md"], "d/deep/r.md"),
        (&["**/*.go"], "a/b/c.go"),
        (&["**/*.go"], "c.go"),
        (&["a/**/z"], "a/z"),
        (&["a/**/z"], "a/b/c/z"),
        (&["a/**"], "a/b"),
        (&["a**"], "abc/d"),
        (&["a/*/c"], "a/b/c/d"),
        (&["f?o"], "foo"),
        (&["f?o"], "f\u{e9}o"),
        (&["[a-c]x"], "bx"),
        (&["[^a]x"], "bx"),
        (&["\\#x"], "#x"),
        (&["\\!x"], "!x"),
        (&["x+y"], "x+y"),
        (&["(z)"], "(z)"),
        (&["a.txt$"], "a.txt$"),
        (&["^b"], "^b"),
        (&["a|b"], "a|b"),
        (&["a", "!a/b", "a/b/c"], "a/b/c"),
        (&["*", "!a", "a"], "a"),
        (&["  a\t"], "a"),
        (&["!a/../b"], "b"),
        (&["\\d"], "7"),
        (&["[[:digit:]]"], "7"),
    ] {
        assert!(excluded(patterns, path), "{patterns:?} {path}");
    }
}

#[test]
fn what_does_not_match() {
    for (patterns, path) in [
        (&["a"][..], "b/a"),
        (&["*.go"], "d/x.go"),
        (&["*/*"], "a"),
        (&["a/**"], "a"),
        (&["A"], "a"),
        (&["a.b"], "axb"),
        (&["x+y"], "xxy"),
        (&["/a"], "a"),
        (&["."], "a"),
        (&["/"], "a"),
        (&["../a"], "a"),
        (&["f?o"], "f/o"),
        (&["a", "!a"], "a"),
        (&["a", "!a/b"], "a/b"),
        (&["a", "!a/b"], "a/b/c"),
        (&["**/z", "!a/**/z"], "a/b/z"),
        (&["*", "!**/*.go"], "a/b.go"),
        (&["\\d"], "d"),
        (&[""], "a"),
        (&["a*^b"], "axb"),
        (&["**/x"], "ax"),
        (&["d*"], "a/d"),
    ] {
        assert!(!excluded(patterns, path), "{patterns:?} {path}");
    }
}

#[test]
fn a_pattern_skipped_at_the_directory_is_not_remembered_below() {
    // `a/b` is skipped where `a` matched already, so it does not bring a/b/c back under the exclusion.
    assert!(!excluded(&["a", "!a/b/c", "a/b"], "a/b/c"));
}

#[test]
fn malformed_patterns_are_refused() {
    let parse = |text: &str| Patterns::parse([text.as_bytes()]);
    assert_eq!(parse("!").unwrap_err(), PatternError::LoneException);
    for text in ["[", "a[b", "[]a]", "\\", "![", "[b-a]", "\\q"] {
        assert!(matches!(parse(text), Err(PatternError::Malformed(_))), "{text}");
    }
}

#[test]
fn what_may_lie_below() {
    let patterns = Patterns::parse([&b"*"[..], b"!src/main", b"!doc/*"]).unwrap();
    assert!(patterns.may_except_below(b"src") && patterns.has_exceptions());
    assert!(!patterns.may_except_below(b"doc") && !patterns.may_except_below(b"sr"));
    assert!(patterns.may_include_below(b"any"));
    assert!(!Patterns::parse([&b"a/b"[..]]).unwrap().may_include_below(b"b"));
}

#[test]
fn paths_are_cleaned_as_go_cleans_them() {
    for (path, cleaned) in [
        ("a//b/./c/..", "a/b"),
        ("", "."),
        ("/..", "/"),
        ("../a", "../a"),
        ("a/..", "."),
        ("/a/", "/a"),
    ] {
        assert_eq!(clean(path.as_bytes()), cleaned.as_bytes(), "{path}");
    }
}

#[test]
fn bytes_that_are_no_utf8_are_one_character_each() {
    let patterns = Patterns::parse([&b"a?b"[..]]).unwrap();
    assert!(patterns.matches(b"a\xffb", None).0);
    assert!(!patterns.matches(b"a\xff\xffb", None).0);
    assert!(Patterns::parse([&b"\xff"[..]]).unwrap().matches(b"\xff", None).0);
}

#[test]
fn many_double_stars_take_linear_time() {
    let pattern = format!("{}b", "**/a*/".repeat(200));
    let patterns = Patterns::parse([pattern.as_bytes(), "**/".repeat(20_000).as_bytes()]).unwrap();
    let path = "a/".repeat(2000);
    let started = std::time::Instant::now();
    assert!(patterns.matches(path.as_bytes(), None).0);
    assert!(started.elapsed().as_secs() < 20);
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(lines: Vec<Vec<u8>>, path: Vec<u8>) {
        if let Ok(patterns) = Patterns::parse(lines.iter().map(Vec::as_slice)) {
            let (_, each) = patterns.matches(&path, None);
            prop_assert_eq!(patterns.matches(&path, Some(&each)).1.len(), each.len());
        }
    }

    #[test]
    fn any_pattern_of_special_characters_is_parsed_or_refused(line in "[]\\[*?/\\\\^!a:-]{0,12}", path in "[a/^-]{0,8}") {
        if let Ok(patterns) = Patterns::parse([line.as_bytes()]) {
            patterns.matches(path.as_bytes(), None);
        }
    }

    #[test]
    fn plain_names_match_themselves_and_what_is_below(name in "[a-z]{1,5}(/[a-z]{1,5}){0,3}", below in "[a-z]{1,5}") {
        prop_assert!(excluded(&[&name], &name));
        let below = format!("{name}/{below}");
        prop_assert!(excluded(&[&name], &below));
        prop_assert!(!excluded(&[&below], &name));
    }
}
