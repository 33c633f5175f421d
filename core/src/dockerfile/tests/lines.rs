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
    assert_eq!(first_error("ARG a\n"), (2, "dockerfile contains no stages to build".to_owned()));
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
    let all =
        instructions("# one\n  # two\nRUN a\n# gone\n#\n# kept\n\nRUN b \\\n# inside\n c\nRUN d");
    assert_eq!(all[0].comments, ["one", "# two"]);
    assert_eq!(all[1].comments, ["kept"]);
    assert!(all[2].comments.is_empty());
    assert_eq!(parsed("# escape=`\n# base\nFROM x").dockerfile.stages[0].from.comments, ["base"]);
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
    assert_eq!(errors(too_long.replace("RUN ", "RUN <<E\n").replace("\na", "\n    a")).len(), 1);
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
    let body =
        parsed("FROM x\nCOPY <<E /\na\0b\nE\n").dockerfile.stages[0].instructions[0].kind.clone();
    assert!(matches!(body, InstructionKind::Copy(_)));
}
