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

mod diagnostics;
mod directives;
mod forms;
mod heredocs;
mod hostile;
mod lines;
mod onbuild;
mod print;
mod tables;
mod texts;
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
