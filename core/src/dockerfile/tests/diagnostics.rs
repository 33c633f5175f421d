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
    let refused = |text: &str| parse("Dockerfile", text.as_bytes()).unwrap_err().first().clone();
    let error = refused("FROM x\n  cpoy a b");
    assert_eq!((error.hint.as_deref(), error.span.column), (Some("did you mean copy?"), Some(2)));
    let error = refused("FROM x\nCOPY --chwon=a b c");
    assert_eq!(
        (error.hint.as_deref(), error.span.column),
        (Some("did you mean --chown?"), Some(5))
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
        errors("FROM x\nRUM <<E\na\nE\nRUN --mount=a,from=$X <<E\nb\nE\nCOPY --x <<E y\nc\nE\n")
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

#[test]
fn as_the_error_of_core() {
    let text = "FROM x\nRUM a";
    let errors = parse("app.Dockerfile", text.as_bytes()).unwrap_err();
    let error = errors.first().to_error("app.Dockerfile", text.into());
    assert_eq!(error.to_string(), "app.Dockerfile:2: unknown instruction: RUM");
    assert_eq!(
        (error.class(), error.hint_text()),
        (crate::Class::Input, Some("did you mean RUN?"))
    );
}
