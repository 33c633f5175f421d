use super::*;

#[test]
fn they_stand_in_front() {
    let directives = parsed("# syntax=docker/dockerfile:1\n#Escape = `\n# check=skip=all\nFROM x")
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
