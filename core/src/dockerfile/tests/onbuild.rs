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
