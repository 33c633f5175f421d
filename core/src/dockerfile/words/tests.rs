use std::{cell::Cell, time::Instant};

use proptest::prelude::*;

use super::*;

fn environment(name: &str) -> Option<String> {
    let value = match name {
        "HOME" => "/root",
        "NAME" => "app",
        "EMPTY" => "",
        "BLANKS" => "  one  two ",
        "DOLLAR" => "$NAME",
        "FILE" => "lib/core/mod.rs.bak",
        "STARS" => "a*b*c",
        "LINES" => "ab\ncd",
        "MARK" => "()[]{}^$.*?|\\x",
        "GRÜN" => "色",
        "PORTS" => "80 90-92/udp",
        _ => return None,
    };
    Some(value.to_owned())
}

fn value(word: &str) -> Result<String, Reason> {
    let expander = Expander::new(Escape::Backslash, &environment);
    expander.expand(word).map(|expanded| expanded.value).map_err(|error| error.reason)
}

fn check(rows: &[(&str, &str)]) {
    for (word, expected) in rows {
        assert_eq!(value(word).as_deref(), Ok(*expected), "{word}");
    }
}

#[test]
fn variables() {
    check(&[
        ("", ""),
        ("plain", "plain"),
        ("$NAME", "app"),
        ("${NAME}", "app"),
        ("x$NAME.y", "xapp.y"),
        ("${NAME}s", "apps"),
        ("$NAMEs", ""),
        ("$UNSET|${UNSET}|", "||"),
        ("$DOLLAR", "$NAME"),
        ("$GRÜN-", "色-"),
        ("$", "$"),
        ("$.$/", "$.$/"),
        ("$1x $12x $@x $$x", "x x x x"),
        ("안녕$NAME", "안녕app"),
        ("\u{feff}a", "a"),
    ]);
}

#[test]
fn quotes_and_escapes() {
    check(&[
        (r"'$NAME\'", r"$NAME\"),
        (r#""$NAME 'x'""#, "app 'x'"),
        (r#""a\"b\$c\\d\e""#, r#"a"b$c\d\e"#),
        (r"\$NAME \a\\", r"$NAME a\"),
        ("end\\", "end"),
        (r#"a"b"'c'd"#, "abcd"),
        ("two  words", "two  words"),
        ("a<b<<c<< d", "a<b<<c<< d"),
    ]);
    assert_eq!(value("it's"), Err(Reason::SingleQuote));
    assert_eq!(value(r#"say "x"#), Err(Reason::DoubleQuote));
}

#[test]
fn a_backtick_may_be_the_escape() {
    let expander = Expander::new(Escape::Backtick, &environment);
    let value = |word: &str| expander.expand(word).unwrap().value;
    assert_eq!(value(r#"C:\d\$NAME `$NAME `" "`"\n" end`"#), r#"C:\d\app $NAME " "\n end"#);
}

#[test]
fn defaults_and_requirements() {
    check(&[
        ("${UNSET-d}|${EMPTY-d}|${NAME-d}", "d||app"),
        ("${UNSET:-d}|${EMPTY:-d}|${NAME:-d}", "d|d|app"),
        ("${UNSET+a}|${EMPTY+a}|${NAME+a}", "|a|a"),
        ("${UNSET:+a}|${EMPTY:+a}|${NAME:+a}", "||a"),
        ("${EMPTY?m}${NAME?m}${NAME:?m}", "appapp"),
        ("${UNSET:-${EMPTY:-$HOME}/x}", "/root/x"),
        (r"${UNSET:-\}}", "}"),
        (r#"${UNSET:-"a}b"}"#, "a}b"),
        ("${UNSET:-a b {c}", "a b {c"),
        ("${1:-one}${@-at}", "oneat"),
    ]);
    let required = |name: &str, message: &str| {
        Err(Reason::Required { name: name.to_owned(), message: message.to_owned() })
    };
    assert_eq!(value("${UNSET?give $NAME}"), required("UNSET", "give app"));
    assert_eq!(value("${UNSET?}"), required("UNSET", "is not allowed to be unset"));
    assert_eq!(value("${EMPTY:?}"), required("EMPTY", "is not allowed to be empty"));
}

#[test]
fn patterns() {
    check(&[
        ("${FILE#*/}", "core/mod.rs.bak"),
        ("${FILE##*/}", "mod.rs.bak"),
        ("${FILE%.*}", "lib/core/mod.rs"),
        ("${FILE%%.*}", "lib/core/mod"),
        ("${FILE#???/}", "core/mod.rs.bak"),
        ("${FILE#nope}${FILE#}", "lib/core/mod.rs.baklib/core/mod.rs.bak"),
        ("${STARS#a\\*}", "b*c"),
        ("${STARS%%\\**}", "a"),
        ("${MARK#()[]{\\}^$.\\*\\?|\\\\}", "x"),
        ("${LINES#*}|${LINES##*}", "ab\ncd|\ncd"),
        ("${FILE/r*s/X}", "lib/coX.bak"),
        ("${FILE//o/0}", "lib/c0re/m0d.rs.bak"),
        (r"${FILE//\//_}", "lib_core_mod.rs.bak"),
        (r"${FILE/\//\/}", r"lib\/core/mod.rs.bak"),
        ("${NAME//p/$DOLLAR}", "a$NAME$NAME"),
        ("${NAME//x}y/z}", "app"),
        ("${UNSET//a/b}", ""),
        ("${FILE##*$UNSET/}", "mod.rs.bak"),
    ]);
    assert!(matches!(value("${NAME#\\a}"), Err(Reason::Pattern { .. })));
    assert_eq!(value("${NAME/x}"), Err(Reason::MissingSlash));
    assert_eq!(value("${NAME/x/y"), Err(Reason::MissingBrace));
}

#[test]
fn refused_forms() {
    for word in ["${}", "${{x}", "${:-x}", "${:}"] {
        assert_eq!(value(word), Err(Reason::BadSubstitution), "{word}");
    }
    for (word, modifier) in [
        ("${A=x}", "="),
        ("${A:=x}", ":="),
        ("${A:#x}", ":#"),
        ("${A:0:1}", ":0"),
        ("${#A}", "A"),
        ("${!A}", "A"),
        ("${.}", "."),
        ("${A", "\u{fffd}"),
    ] {
        assert_eq!(value(word), Err(Reason::Modifier(modifier.to_owned())), "{word}");
    }
    for word in ["${", "${A:-b", "${A:", "${A:-${B}"] {
        assert_eq!(value(word), Err(Reason::MissingBrace), "{word}");
    }
}

#[test]
fn names_used_are_told_apart() {
    let expander = Expander::new(Escape::Backslash, &environment);
    let expanded = expander.expand("$NAME ${NOPE:-$HOME} '$QUIET' $NAME $NOPE").unwrap();
    assert_eq!(expanded.matched, ["HOME", "NAME"]);
    assert_eq!(expanded.unmatched, ["NOPE"]);
}

#[test]
fn words_split_after_expansion() {
    let expander = Expander::new(Escape::Backslash, &environment);
    let rows: &[(&str, &[&str])] = &[
        ("$PORTS", &["80", "90-92/udp"]),
        ("x$BLANKS", &["x", "one", "two"]),
        ("\"$BLANKS\"y", &["  one  two y"]),
        (r"a\ b c", &["a b", "c"]),
        ("' '", &[" "]),
        ("''", &[]),
        ("80${UNSET:-80}", &["8080"]),
        ("cat << EOF", &["cat", "<< EOF"]),
        ("", &[]),
    ];
    for (word, expected) in rows {
        assert_eq!(expander.expand_words(word).unwrap(), *expected, "{word}");
    }
}

#[test]
fn raw_modes() {
    let expander = Expander::new(Escape::Backslash, &environment).raw_quotes().keep_unset();
    let word = r#"echo "$NAME" '$X' $X ${X} ${X:-$NAME} ${X#a} ${X//a/b} \n"#;
    let expected = r#"echo "app" '$X' $X ${X} ${X:-app} ${X#a} ${X/a/b} n"#;
    assert_eq!(expander.expand(word).unwrap().value, expected);
    let expander = expander.raw_escapes();
    assert_eq!(expander.expand(r#"\n "\"""#).unwrap().value, r#"\n "\"""#);
}

#[test]
fn heredoc_bodies_keep_quotes() {
    let expander = Expander::heredoc(&environment);
    let body = "it's \"$NAME\"\n\\$NAME ${HOME}\n";
    assert_eq!(expander.expand(body).unwrap().value, "it's \"app\"\n$NAME /root\n");
}

#[test]
fn bombs_end_in_an_error() {
    let deep = "${A:-".repeat(10_000) + &"}".repeat(10_000);
    assert_eq!(value(&deep), Err(Reason::TooDeep));

    let big = "x".repeat(limits::WORD_BYTES_MAX);
    let lookup = |_: &str| Some(big.clone());
    let expander = Expander::new(Escape::Backslash, &lookup);
    let reason = |word: &str| expander.expand(word).map(|e| e.value.len()).map_err(|e| e.reason);
    assert_eq!(reason("$A"), Ok(limits::WORD_BYTES_MAX));
    assert_eq!(reason("$A$A"), Err(Reason::TooLong(limits::WORD_BYTES_MAX)));
    assert_eq!(reason(&"${A##*}".repeat(5000)), Err(Reason::TooMuchWork));
    assert_eq!(reason("${A//x/yy}"), Err(Reason::TooLong(limits::WORD_BYTES_MAX)));
    assert_eq!(reason(&format!("${{A#{}}}", "?".repeat(5000))), Err(Reason::TooMuchWork));
    assert_eq!(reason("${A##*x*x*x*x*x*x*x*xy}"), Ok(limits::WORD_BYTES_MAX));
}

#[test]
fn time_is_linear_in_the_word() {
    let calls = Cell::new(0usize);
    let lookup = |_: &str| {
        calls.set(calls.get() + 1);
        None
    };
    let expander = Expander::new(Escape::Backslash, &lookup);
    let start = Instant::now();
    expander.expand(&"${A:-b}'c'\"d\"".repeat(70_000)).unwrap();
    assert_eq!(calls.get(), 70_000);
    assert!(start.elapsed().as_secs() < 20);
}

#[test]
fn constants() {
    assert!(is_constant("base:1.2", Escape::Backslash));
    for word in ["$X", "a${X}", "'a'", "a\\b", "a'"] {
        assert!(!is_constant(word, Escape::Backslash), "{word}");
    }
}

#[test]
fn messages_name_the_word() {
    let expander = Expander::new(Escape::Backslash, &environment);
    let error = expander.expand("${A:=b}").unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"failed to process "${A:=b}": unsupported modifier (:=) in substitution"#
    );
    let error = expander.expand(&("é".repeat(1000) + "'")).unwrap_err();
    assert!(error.to_string().len() < 600);
}

proptest! {
    /// Whatever the word and the values: no more than the cap comes out.
    #[test]
    fn expansion_is_bounded(word in r#"([$\{\}]|\$\{A(//?[a*]?/)?|\$[AB]|[a*/}]){0,60}"#, size in 0usize..200_000) {
        let lookup = |name: &str| match name {
            "A" => Some("a".repeat(size)),
            "B" => Some("$A$A".to_owned()),
            _ => None,
        };
        if let Ok(expanded) = Expander::new(Escape::Backslash, &lookup).expand(&word) {
            prop_assert!(expanded.value.len() <= limits::WORD_BYTES_MAX);
        }
    }
    #[test]
    fn never_panics(word in r#"[$\{\}:/#%*?'"\\`<a-c é\n+=-]{0,40}"#) {
        for escape in [Escape::Backslash, Escape::Backtick] {
            let expander = Expander::new(escape, &environment);
            let _ = expander.expand(&word);
            let _ = expander.expand_words(&word);
            let _ = expander.raw_quotes().raw_escapes().keep_unset().expand(&word);
        }
        let _ = Expander::heredoc(&environment).expand(&word);
    }

    #[test]
    fn words_without_special_characters_are_themselves(word in "[a-zA-Z0-9_./:= -]{0,40}") {
        prop_assert_eq!(value(&word), Ok(word));
    }

    #[test]
    fn single_quoted_text_is_data(text in "[^']{0,40}") {
        prop_assert_eq!(value(&format!("'{text}'")), Ok(text));
    }
}
