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
    assert_eq!(first_error("FROM x\nRUN echo $((1 << 2))"), (2, "unterminated heredoc".to_owned()));
    assert_eq!(kind("CMD cat <<E"), InstructionKind::Cmd(shell("cat <<E")));
}

#[test]
fn unterminated() {
    let file = parse("Dockerfile", b"FROM x\nRUN cat <<EOF; ls\na\nEOF\n").unwrap_err();
    let error = file.first();
    assert_eq!((error.span.first_line, error.span.last_line, error.span.column), (2, 4, Some(10)));
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
    let Source::Heredoc(twice) = &sources("COPY <<A <<A /d/\n1\nA\n2\nA\n")[0] else { panic!() };
    assert_eq!(twice.content, "2\n");
    let Source::Heredoc(json) = &sources("COPY [\"<<A\", \"/d/\"]")[0] else { panic!() };
    assert_eq!((json.name.as_str(), json.content.as_str()), ("A", ""));
    assert_eq!(
        first_error("FROM x\nCOPY a <<A\nA\n"),
        (2, "COPY cannot accept a heredoc as a destination".to_owned())
    );
}
