use std::time::Instant;

use proptest::prelude::*;

use super::{
    ast::*,
    command::{run_text, step_name},
    limits, parse, parse_onbuild,
    words::Expander,
    *,
};

fn parsed(text: &str) -> Parsed {
    parse("Dockerfile", text.as_bytes()).unwrap_or_else(|errors| panic!("{errors:?}\n{text}"))
}

fn errors(text: impl AsRef<[u8]>) -> Vec<(u32, String)> {
    let Err(errors) = parse("Dockerfile", text.as_ref()) else { panic!("is not refused") };
    errors.iter().map(|error| (error.span.first_line, error.message.clone())).collect()
}

fn first_error(text: impl AsRef<[u8]>) -> (u32, String) {
    errors(text).remove(0)
}

/// The instructions behind a `FROM x`, whose lines count from 2.
fn instructions(body: &str) -> Vec<Instruction> {
    parsed(&format!("FROM x\n{body}")).dockerfile.stages.remove(0).instructions
}

fn instruction(body: &str) -> Instruction {
    let mut all = instructions(body);
    assert_eq!(all.len(), 1, "{body}");
    all.remove(0)
}

fn kind(body: &str) -> InstructionKind {
    instruction(body).kind
}

fn run(body: &str) -> Run {
    match kind(body) {
        InstructionKind::Run(run) => run,
        other => panic!("{other:?}"),
    }
}

fn copy(body: &str) -> Copy {
    match kind(body) {
        InstructionKind::Copy(copy) => copy,
        other => panic!("{other:?}"),
    }
}

fn shell(text: &str) -> Command {
    Command::Shell(text.to_owned())
}

fn exec(words: &[&str]) -> Command {
    Command::Exec(words.iter().map(|word| word.to_string()).collect())
}

mod lines {
    use super::*;

    #[test]
    fn continuations_join_without_their_comments() {
        let all = instructions("RUN a \\\n  # no \\\n  b\\ \t\n\n c \\\\\nRUN d\\\r\n\te\r\n");
        assert_eq!(all[0].original, "RUN a   b c \\\\");
        assert_eq!((all[0].span.first_line, all[0].span.last_line), (2, 6));
        assert_eq!(all[1].original, "RUN d\te");
        assert_eq!((all[1].span.first_line, all[1].span.last_line), (7, 8));
    }

    #[test]
    fn a_blank_line_in_a_continuation_is_warned_of_at_the_last_line() {
        let warnings = parsed("FROM x\nRUN a \\\n \n\n  b\n").warnings;
        assert_eq!(warnings.len(), 1);
        assert_eq!(
            (warnings[0].kind, warnings[0].span.first_line),
            (WarningKind::EmptyContinuation, 5)
        );
    }

    #[test]
    fn ends_of_files() {
        for text in [
            "FROM x",
            "FROM x\n",
            "FROM x \\",
            "FROM x \\\n",
            "FROM x \\\n# c",
            "\u{feff}FROM x\r\n",
            "\n\n \t\nFROM x",
        ] {
            assert_eq!(parsed(text).dockerfile.stages[0].from.image, "x", "{text}");
        }
        assert_eq!(first_error(""), (1, "the Dockerfile cannot be empty".to_owned()));
        assert_eq!(first_error("# a\n\n"), (2, "file with no instructions".to_owned()));
        assert_eq!(
            first_error("ARG a\n"),
            (2, "dockerfile contains no stages to build".to_owned())
        );
    }

    #[test]
    fn keywords_and_blanks() {
        let node = instruction(" \t\u{a0}rUn\t\x0b x  y ");
        assert_eq!((node.keyword.as_str(), node.original.as_str()), ("rUn", "rUn\t\x0b x  y"));
        assert_eq!(node.span.column, Some(4));
        assert_eq!(
            node.kind,
            InstructionKind::Run(Run {
                command: shell("x  y"),
                heredocs: vec![],
                mounts: vec![],
                network: None,
                security: None,
            })
        );
    }

    #[test]
    fn comments_above_stay_with_the_instruction() {
        let all = instructions(
            "# one\n  # two\nRUN a\n# gone\n#\n# kept\n\nRUN b \\\n# inside\n c\nRUN d",
        );
        assert_eq!(all[0].comments, ["one", "# two"]);
        assert_eq!(all[1].comments, ["kept"]);
        assert!(all[2].comments.is_empty());
        assert_eq!(
            parsed("# escape=`\n# base\nFROM x").dockerfile.stages[0].from.comments,
            ["base"]
        );
    }

    #[test]
    fn the_longest_line() {
        let line = |length: usize| format!("FROM x\nRUN {}\n", "a".repeat(length - 4));
        assert!(parse("Dockerfile", line(limits::LINE_BYTES_MAX).as_bytes()).is_ok());
        let too_long = line(limits::LINE_BYTES_MAX + 1);
        assert_eq!(
            first_error(&too_long),
            (2, "dockerfile line greater than max allowed size of 65535".to_owned())
        );
        assert_eq!(
            errors(too_long.replace("RUN ", "RUN <<E\n").replace("\na", "\n    a")).len(),
            1
        );
    }

    #[test]
    fn bytes_that_are_no_text() {
        assert!(parse("Dockerfile", b"# caf\xe9\nFROM x\nRUN a # \xc3\xa9\n").is_ok());
        assert_eq!(
            first_error(b"FROM x\nRUN a \\\n \xe9\n"),
            (2, "the instruction is not valid UTF-8".to_owned())
        );
        assert_eq!(first_error(b"FROM x\nCOPY <<E /\n\xe9\nE\n").0, 2);
        assert_eq!(first_error(b"FROM x\nRUN a\0b\n").0, 2);
        let utf16: Vec<u8> = "FROM x\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(first_error(&utf16).0, 1);
        let body = parsed("FROM x\nCOPY <<E /\na\0b\nE\n").dockerfile.stages[0].instructions[0]
            .kind
            .clone();
        assert!(matches!(body, InstructionKind::Copy(_)));
    }
}

mod directives {
    use super::*;

    #[test]
    fn they_stand_in_front() {
        let directives =
            parsed("# syntax=docker/dockerfile:1\n#Escape = `\n# check=skip=all\nFROM x")
                .dockerfile
                .directives;
        assert_eq!(directives.syntax.as_deref(), Some("docker/dockerfile:1"));
        assert_eq!(directives.escape, Escape::Backtick);
        assert_eq!(directives.check.as_deref(), Some("skip=all"));
        for front in ["# words\n", "\n", "#\n", "# a=b\n", "ARG a\n", "\\\n"] {
            let text = format!("{front}# escape=`\n# syntax=other\nFROM x\nRUN a \\\n b");
            assert_eq!(
                parse("Dockerfile", text.as_bytes())
                    .map(|p| p.dockerfile.directives.escape)
                    .unwrap_or_default(),
                Escape::Backslash,
                "{front}"
            );
        }
    }

    #[test]
    fn a_backtick_continues_and_escapes() {
        let file = parsed("# escape=`\nFROM x\nENV A=C:\\d` e `\n  B=`\"").dockerfile;
        let InstructionKind::Env(pairs) = &file.stages[0].instructions[0].kind else { panic!() };
        assert_eq!((pairs[0].value.as_str(), pairs[1].value.as_str()), ("C:\\d` e", "`\""));
    }

    #[test]
    fn refusals() {
        assert_eq!(first_error("# check=skip=a\n# escape=^\nFROM x").0, 2);
        assert_eq!(
            first_error("# escape=`\n# ESCAPE=`\nFROM x"),
            (2, "only one escape parser directive can be used".to_owned())
        );
        assert_eq!(first_error("# check=fail=true\nFRM x").0, 1);
        let unknown = parse("Dockerfile", b"# syntax=example/other:1\nFROM x").unwrap_err();
        assert!(unknown.first().hint.as_deref().is_some_and(|hint| hint.contains("built in")));
    }

    #[test]
    fn labs_are_warned_of() {
        let warnings = parsed("# syntax=docker/dockerfile:1-labs\nFROM x").warnings;
        assert_eq!(warnings[0].kind, WarningKind::LabsSyntax);
    }
}

mod heredocs {
    use super::*;

    fn names(heredocs: &[Heredoc]) -> Vec<(&str, &str, bool)> {
        heredocs.iter().map(|h| (h.name.as_str(), h.content.as_str(), h.expand)).collect()
    }

    #[test]
    fn several_on_a_line() {
        let all = instructions("RUN cat <<A 3<<-'B'\na\nB\nA\n\t\tb\n\tB\nRUN c");
        let InstructionKind::Run(run) = &all[0].kind else { panic!() };
        assert_eq!(names(&run.heredocs), [("A", "a\nB\n", true), ("B", "b\n", false)]);
        assert_eq!(run.heredocs[1].raw, "\t\tb\n");
        assert_eq!((run.heredocs[1].file_descriptor, run.heredocs[1].chomp), (3, true));
        assert_eq!((all[0].span.first_line, all[0].span.last_line), (2, 7));
        assert_eq!(all[1].span.first_line, 8);
    }

    #[test]
    fn bodies_are_data() {
        let run = run("RUN <<E\n# a \\\n\n\tb\r\nFROM y\nE\r\n");
        assert_eq!(names(&run.heredocs), [("E", "# a \\\n\n\tb\r\nFROM y\n", true)]);
    }

    #[test]
    fn where_there_are_none() {
        assert!(run("RUN echo '<<E'").heredocs.is_empty());
        assert!(run("RUN echo it's <<E").heredocs.is_empty());
        assert!(run("RUN [\"cat\", \"<<E\"]").heredocs.is_empty());
        assert!(run("RUN cat<<E").heredocs.is_empty());
        assert!(run("RUN echo \"$((1 << 2))\"").heredocs.is_empty());
        // So it is in BuildKit.
        assert_eq!(
            first_error("FROM x\nRUN echo $((1 << 2))"),
            (2, "unterminated heredoc".to_owned())
        );
        assert_eq!(kind("CMD cat <<E"), InstructionKind::Cmd(shell("cat <<E")));
    }

    #[test]
    fn unterminated() {
        let file = parse("Dockerfile", b"FROM x\nRUN cat <<EOF; ls\na\nEOF\n").unwrap_err();
        let error = file.first();
        assert_eq!(
            (error.span.first_line, error.span.last_line, error.span.column),
            (2, 4, Some(10))
        );
        assert_eq!(error.message, "unterminated heredoc");
        assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("`EOF;`")));
    }

    #[test]
    fn copy_takes_them_after_paths() {
        let copy = copy("COPY <<-A f <<'B' /d/\n\ta\nA\n\tb\nB\n");
        assert_eq!(copy.destination, "/d/");
        let [Source::Path(path), Source::Heredoc(a), Source::Heredoc(b)] = &copy.sources[..] else {
            panic!()
        };
        assert_eq!(path, "f");
        assert_eq!((a.content.as_str(), a.expand), ("a\n", true));
        assert_eq!((b.content.as_str(), b.expand), ("\tb\n", false));
    }

    #[test]
    fn copy_in_odd_forms() {
        let sources = |body: &str| copy(body).sources;
        let Source::Heredoc(twice) = &sources("COPY <<A <<A /d/\n1\nA\n2\nA\n")[0] else {
            panic!()
        };
        assert_eq!(twice.content, "2\n");
        let Source::Heredoc(json) = &sources("COPY [\"<<A\", \"/d/\"]")[0] else { panic!() };
        assert_eq!((json.name.as_str(), json.content.as_str()), ("A", ""));
        assert_eq!(
            first_error("FROM x\nCOPY a <<A\nA\n"),
            (2, "COPY cannot accept a heredoc as a destination".to_owned())
        );
    }
}

mod forms {
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
        assert_eq!(
            (run.network.as_deref(), run.security.as_deref()),
            (Some("none"), Some("insecure"))
        );
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
}

mod onbuild {
    use super::*;

    #[test]
    fn the_trigger_is_kept_as_text() {
        assert_eq!(
            kind("oNBuild \t COPY  a \\\n  b "),
            InstructionKind::Onbuild("COPY  a   b ".into())
        );
        assert_eq!(
            kind("ONBUILD RUN cat <<-A\n\tx\n\tA\n"),
            InstructionKind::Onbuild("RUN cat <<-A\n\tx\nA".into())
        );
        assert_eq!(kind("ONBUILD BOGUS x"), InstructionKind::Onbuild("BOGUS x".into()));
        for text in [
            "ONBUILD FROM a",
            "ONBUILD maintainer a",
            "ONBUILD ONBUILD RUN a",
            "ONBUILD --x RUN a",
            "ONBUILD ENV A",
            "ONBUILD RUN [1]",
        ] {
            assert_eq!(first_error(format!("FROM x\n{text}")).0, 2, "{text}");
        }
    }

    #[test]
    fn triggers_are_instructions() {
        let stored = parse_onbuild("RUN cat <<-A\n\tx\nA").unwrap();
        let InstructionKind::Run(run) = stored.kind else { panic!() };
        assert_eq!(run.heredocs[0].content, "x\n");
        assert!(matches!(parse_onbuild("ARG a=b").unwrap().kind, InstructionKind::Arg(_)));
        let unknown = parse_onbuild("FRUN a").unwrap_err();
        assert_eq!(
            (unknown.message.as_str(), unknown.hint.as_deref()),
            ("unknown instruction: FRUN", Some("did you mean RUN?"))
        );
        for text in ["", "# a", "FROM a", "RUN a\nRUN b", "COPY a", "ENV A"] {
            assert!(parse_onbuild(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_chain_is_not_followed() {
        assert_eq!(first_error(format!("FROM x\n{}", "ONBUILD ".repeat(8000))).0, 2);
    }
}

mod diagnostics {
    use super::*;

    #[test]
    fn all_of_a_file_in_one_run() {
        let text = "FROM x\nRUM a\nUSER\nRUN [1]\nCOPY --chwon=a b c\n";
        let all = errors(text);
        let lines: Vec<u32> = all.iter().map(|(line, _)| *line).collect();
        // BuildKit names line 4 first: its lexer comes before any instruction is looked at.
        assert_eq!(lines, [4, 2, 3, 5]);
    }

    #[test]
    fn suggestions_and_columns() {
        let refused =
            |text: &str| parse("Dockerfile", text.as_bytes()).unwrap_err().first().clone();
        let error = refused("FROM x\n  cpoy a b");
        assert_eq!(
            (error.hint.as_deref(), error.span.column),
            (Some("did you mean copy?"), Some(2))
        );
        let error = refused("FROM x\nCOPY --chwon=a b c");
        assert_eq!(
            (error.hint.as_deref(), error.span.column),
            (Some("did you mean chown?"), Some(5))
        );
        assert_eq!(
            refused("FROM x\nRUN --user=a b").hint.as_deref(),
            Some("RUN takes --device, --mount, --network, --security")
        );
        assert_eq!(refused("FROM x\nCMD --user=a b").hint.as_deref(), Some("CMD takes no flags"));
        assert!(
            refused("FROM x\nRUN a\n  && b").hint.is_some_and(|hint| hint.contains("continuation"))
        );
    }

    #[test]
    fn bodies_behind_a_wrong_instruction_are_no_errors() {
        assert_eq!(
            errors(
                "FROM x\nRUM <<E\na\nE\nRUN --mount=a,from=$X <<E\nb\nE\nCOPY --x <<E y\nc\nE\n"
            )
            .len(),
            3
        );
        assert_eq!(errors("FROM x\nRUN [1] <<E\nRUN a\n"), errors("FROM x\nRUN [1] <<E\n"));
    }

    #[test]
    fn only_arg_before_from() {
        assert_eq!(
            errors("ARG a\nENV a=b\nRUN c\nFROM x"),
            [(2, "no build stage in current context".to_owned())]
        );
        assert_eq!(errors("FROM a b c d\nRUN x\n").len(), 1);
    }
}

mod texts {
    use super::*;

    #[test]
    fn what_a_run_executes() {
        let text = |body: &str| run_text(&run(body));
        assert_eq!(text("RUN a  b").command, shell("a  b"));
        assert_eq!(text("RUN [\"a\"]").command, exec(&["a"]));
        let sole = text("RUN <<-E\n\t a\n\tb\n\tE\n");
        assert_eq!(
            (sole.command, sole.script, sole.summary.as_deref()),
            (shell(" a\nb\n"), None, Some("a..."))
        );
        let script = text("RUN <<'E'\n#!/bin/awk\nx\nE\n");
        assert_eq!(script.command, shell("/dev/pipes/E"));
        assert_eq!(script.script.unwrap().content, "#!/bin/awk\nx\n");
        let mixed = text("RUN cat <<-A <<B && c\n\ta\nA\nb\nB\n");
        assert_eq!(mixed.command, shell("cat <<-A <<B && c\n\ta\nA\nb\nB"));
        assert_eq!(text("RUN <<E cat\na\nE\n").command, shell("<<E cat\na\nE"));
    }

    #[test]
    fn names_of_steps() {
        let lookup = |name: &str| (name == "A").then(|| "x y".to_owned());
        let plain = Expander::new(Escape::Backslash, &lookup);
        assert_eq!(step_name("copy \"$A\" $B c", None, &plain), "COPY x y  c");
        assert_eq!(step_name("run it's", None, &plain), "RUN it's");
        let run = plain.raw_quotes().keep_unset();
        assert_eq!(step_name("RUN <<E", Some("a..."), &run), "RUN <<E (a...)");
        assert_eq!(step_name("Run \"$A\" $B", None, &run), "RUN \"x y\" $B");
    }
}

mod hostile {
    use super::*;

    fn in_time<T>(work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        assert!(start.elapsed().as_secs() < 60, "took {:?}", start.elapsed());
        result
    }

    #[test]
    fn sizes_have_limits() {
        let huge = vec![b'\n'; limits::DOCKERFILE_BYTES_MAX + 1];
        assert!(first_error(&huge).1.contains("bytes"));
        assert!(
            in_time(|| first_error("FROM x\n".repeat(limits::STAGES_MAX + 1))).1.contains("stages")
        );
        assert!(in_time(|| first_error("FROM x\n".repeat(1_000_000))).1.contains("instructions"));
        assert!(
            in_time(|| first_error(format!("FROM x\nRUN a{}", " \\\nb".repeat(1_000_000))))
                .1
                .contains("one instruction")
        );
        assert!(
            in_time(|| first_error(format!(
                "FROM x\n{}",
                format!("EXPOSE{}\n", " 1".repeat(30_000)).repeat(50)
            )))
            .1
            .contains("arguments")
        );
    }

    #[test]
    fn time_is_linear() {
        let line = "RUN a \\\n".repeat(100_000);
        assert!(in_time(|| parse("Dockerfile", format!("FROM x\n{line}").as_bytes())).is_ok());
        let bodies = format!("FROM x\nRUN{}\n", " <<E".repeat(10_000)) + &"E\n".repeat(10_000);
        assert!(in_time(|| parse("Dockerfile", bodies.as_bytes())).is_ok());
        let unterminated = format!("FROM x\n{}", "RUN a\0 <<E\n".repeat(200_000));
        assert_eq!(in_time(|| errors(unterminated)).len(), limits::ERRORS_MAX);
        let unknown = format!("FROM x\n{}", "X <<E\n".repeat(50_000));
        assert_eq!(in_time(|| errors(unknown)).len(), limits::ERRORS_MAX);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse("Dockerfile", &bytes);
    }

    #[test]
    fn soups_of_lines_never_panic(lines in proptest::collection::vec(soup(), 0..12), end in "\n|\r\n") {
        let text = lines.join(&end);
        match parse("Dockerfile", text.as_bytes()) {
            Err(errors) => for error in errors.iter() {
                prop_assert!(error.span.first_line >= 1 && error.span.first_line <= error.span.last_line.max(1));
                prop_assert!(error.span.last_line as usize <= lines.len() + 1);
            },
            Ok(parsed) => for stage in &parsed.dockerfile.stages {
                for instruction in &stage.instructions {
                    if let InstructionKind::Run(run) = &instruction.kind {
                        let _ = run_text(run);
                    }
                }
            },
        }
        let _ = parse_onbuild(&text);
    }

    #[test]
    fn an_instruction_reparsed_is_itself(line in soup()) {
        if let Ok(first) = parse("Dockerfile", format!("FROM x\n{line}\n").as_bytes())
            && let Some(instruction) = first.dockerfile.stages[0].instructions.first()
            && !instruction.original.contains("<<")
            && !instruction.original.ends_with('\\')
        {
            let again = parse("Dockerfile", format!("FROM x\n{}\n", instruction.original).as_bytes()).unwrap();
            let kind = match &instruction.kind {
                InstructionKind::Onbuild(text) => InstructionKind::Onbuild(text.trim_end().to_owned()),
                kind => kind.clone(),
            };
            prop_assert_eq!(&again.dockerfile.stages[0].instructions[0].kind, &kind);
        }
    }
}

/// A line as a Dockerfile might have it, more or less.
fn soup() -> impl Strategy<Value = String> {
    let keyword = "(FROM|ARG|ENV|RUN|COPY|ADD|LABEL|ONBUILD|ONBUILD RUN|SHELL|CMD|HEALTHCHECK|HEALTHCHECK CMD|EXPOSE|VOLUME|USER|E|#|# escape=|# check=|)";
    let rest = r#"( --(from|mount|network|link|interval|x)(=[a-z",$'=\\/]{0,6})?| <<-?['"]?E['"]?| \[("a",? ?){0,3}\]| [a-zé"'\\`$\{\}=\[\]:/ 	]{0,8}){0,4}"#;
    (keyword, rest, r"( \\)?").prop_map(|(keyword, rest, end)| format!("{keyword}{rest}{end}"))
}
