use super::*;

#[test]
fn exec_form_is_a_whole_json_array() {
    assert_eq!(run(r#"RUN [ "a", "b\u0020c" ] "#).command, exec(&["a", "b c"]));
    assert_eq!(run("RUN []").command, exec(&[]));
    assert_eq!(run("RUN").command, shell(""));
    for text in ["['a']", r#"["a"] x"#, r#"["a""#, "[ -f x ]"] {
        assert_eq!(run(&format!("RUN {text}")).command, shell(text));
    }
    assert_eq!(first_error("FROM x\nRUN [\"a\", 1]").0, 2);
    assert_eq!(
        kind("VOLUME /a [\"/b\"]"),
        InstructionKind::Volume(vec!["/a".into(), "[\"/b\"]".into()])
    );
    assert_eq!(kind("VOLUME [\" /a \"]"), InstructionKind::Volume(vec!["/a".into()]));
}

#[test]
fn env_and_label() {
    let pair = |key: &str, value: &str, delimited| Pair {
        key: key.into(),
        value: value.into(),
        delimited,
    };
    assert_eq!(
        kind(r#"ENV A="b c" B= 'C'=d\ e"#),
        InstructionKind::Env(vec![
            pair("A", "\"b c\"", true),
            pair("B", "", true),
            pair("'C'", "d\\ e", true),
        ])
    );
    assert_eq!(
        kind("LABEL a \t b=c  \"d\" "),
        InstructionKind::Label(vec![pair("a", "b=c  \"d\"", false)])
    );
    for (text, expected) in [
        ("ENV A", "ENV must have two arguments"),
        ("ENV A=1 B", "Syntax error - can't find = in \"B\". Must be of the form: name=value"),
        ("ENV =b", "ENV names can not be blank"),
        ("LABEL", "LABEL requires at least one argument"),
    ] {
        assert_eq!(first_error(format!("FROM x\n{text}")), (2, expected.to_owned()));
    }
}

#[test]
fn arg() {
    let pair = |key: &str, value: Option<&str>| ArgPair {
        key: key.into(),
        value: value.map(str::to_owned),
    };
    assert_eq!(
        kind("ARG A B= C=\"d e\" D=a=b"),
        InstructionKind::Arg(vec![
            pair("A", None),
            pair("B", Some("")),
            pair("C", Some("\"d e\"")),
            pair("D", Some("a=b")),
        ])
    );
    assert_eq!(first_error("FROM x\nARG =a").1, "ARG names can not be blank");
    let file = parsed("ARG A=1\nFROM x\nARG A\nFROM y\nARG --x A");
    assert_eq!((file.dockerfile.global_args.len(), file.dockerfile.stages.len()), (1, 2));
    assert_eq!(file.warnings[0].kind, WarningKind::IgnoredFlags);
}

#[test]
fn from() {
    let from = parsed("from --platform=$P x:1 As Build-1.x_y").dockerfile.stages.remove(0).from;
    assert_eq!((from.image.as_str(), from.platform.as_deref()), ("x:1", Some("$P")));
    assert_eq!(
        (from.name.as_deref(), from.written_name.as_deref()),
        (Some("build-1.x_y"), Some("Build-1.x_y"))
    );
    assert_eq!((from.keyword.as_str(), from.as_keyword.as_deref()), ("from", Some("As")));
    for text in [
        "FROM",
        "FROM a b",
        "FROM a AS",
        "FROM a AS b c",
        "FROM a OF b",
        "FROM a AS 9",
        "FROM a AS a/b",
        "FROM a AS ü",
    ] {
        assert_eq!(first_error(text).0, 1, "{text}");
    }
}

#[test]
fn copy_and_add() {
    let all = copy(
        "COPY --from=a --chown=$U --chmod=755 --link --parents=true --exclude=*.o --exclude=b s1 s2 d",
    );
    assert_eq!(all.sources, [Source::Path("s1".into()), Source::Path("s2".into())]);
    assert_eq!(
        (all.from.as_deref(), all.chown.as_deref(), all.chmod.as_deref()),
        (Some("a"), Some("$U"), Some("755"))
    );
    assert!(all.link && all.parents);
    assert_eq!(all.exclude, ["*.o", "b"]);
    let InstructionKind::Add(add) =
        kind("ADD --unpack=false --keep-git-dir --checksum=sha256:0 [\"a b\", \"c\"]")
    else {
        panic!()
    };
    assert_eq!(
        (add.unpack, add.keep_git_dir, add.checksum.as_deref()),
        (Some(false), Some(true), Some("sha256:0"))
    );
    assert_eq!(add.copy.sources, [Source::Path("a b".into())]);
    assert_eq!(first_error("FROM x\nCOPY --from=a b").0, 2);
}

#[test]
fn run_flags() {
    let run = run(
        "RUN --mount=type=cache,target=/a --network=none --mount=target=/b --security=insecure -- --x",
    );
    assert_eq!(run.mounts, ["type=cache,target=/a", "target=/b"]);
    assert_eq!((run.network.as_deref(), run.security.as_deref()), (Some("none"), Some("insecure")));
    assert_eq!(run.command, shell("--x"));
    for text in [
        "--network=mine",
        "--network=",
        "--security=no",
        "--mount=from=$X",
        "--mount=",
        "--device=a",
        "--mount",
    ] {
        assert_eq!(first_error(format!("FROM x\nRUN {text} a")).0, 2, "{text}");
    }
}

#[test]
fn healthcheck() {
    let InstructionKind::Healthcheck(check) =
        kind("HEALTHCHECK --interval=1m30s --retries=3 cmd  curl x")
    else {
        panic!()
    };
    assert_eq!(check.test, ["CMD-SHELL", "curl x"]);
    assert_eq!((check.interval, check.retries, check.timeout), (90_000_000_000, 3, 0));
    let InstructionKind::Healthcheck(check) = kind("HEALTHCHECK CMD [\"a\"]") else { panic!() };
    assert_eq!(check.test, ["CMD", "a"]);
    let InstructionKind::Healthcheck(check) = kind("HEALTHCHECK --interval=x none") else {
        panic!()
    };
    assert_eq!(check.test, ["NONE"]);
    for text in [
        "",
        "CMD",
        "CMD []",
        "NONE x",
        "CURL x",
        "--interval=5 CMD x",
        "--timeout=999us CMD x",
        "--timeout=-5s CMD x",
        "--retries=-1 CMD x",
        "--retries=3000000000 CMD x",
    ] {
        assert_eq!(first_error(format!("FROM x\nHEALTHCHECK {text}")).0, 2, "{text}");
    }
}

#[test]
fn the_other_instructions() {
    assert_eq!(
        kind("EXPOSE 90 80/tcp 8$X"),
        InstructionKind::Expose(vec!["8$X".into(), "80/tcp".into(), "90".into()])
    );
    assert_eq!(kind("USER a b"), InstructionKind::User("a b".into()));
    assert_eq!(kind("WORKDIR \"/a b\""), InstructionKind::Workdir("\"/a b\"".into()));
    assert_eq!(kind("STOPSIGNAL 1 2"), InstructionKind::Stopsignal("1 2".into()));
    assert_eq!(kind("MAINTAINER A <a@b>"), InstructionKind::Maintainer("A <a@b>".into()));
    assert_eq!(
        kind("SHELL [\"/bin/bash\", \"-c\"]"),
        InstructionKind::Shell(vec!["/bin/bash".into(), "-c".into()])
    );
    assert_eq!(kind("ENTRYPOINT [\"a\"]"), InstructionKind::Entrypoint(exec(&["a"])));
    for text in [
        "EXPOSE",
        "USER",
        "WORKDIR",
        "STOPSIGNAL",
        "MAINTAINER",
        "SHELL",
        "SHELL []",
        "SHELL sh",
        "VOLUME",
        "VOLUME [\" \"]",
        "ONBUILD",
        "ARG",
        "USER --x a",
        "CMD --x a",
    ] {
        assert_eq!(first_error(format!("FROM x\n{text}")).0, 2, "{text}");
    }
}
