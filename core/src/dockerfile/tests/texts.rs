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
