//! Shows why a build failed: title, source frame, causes, the last output, and what to do next.

use bareboat_core::{Class, Error};

use super::{
    frame::frame,
    style::Style,
    text::{message, shortened},
};

/// Lines of a step's last output that are shown.
const OUTPUT_LINES_MAX: usize = 40;
const LINE_CHARACTERS_MAX: usize = 2000;

/// The whole message, ending in a line break.
pub fn render(error: &anyhow::Error, style: Style) -> String {
    match error.downcast_ref::<Error>() {
        Some(error) => render_core(error, style),
        None => {
            let mut text = title(&error.to_string(), style);
            text += &causes(error.chain().skip(1).map(ToString::to_string), style);
            text
        }
    }
}

fn render_core(error: &Error, style: Style) -> String {
    let mut text = title(error.title(), style);
    if let Some(location) = error.location() {
        text += &frame(location, style);
    }
    text += &causes(error.causes().into_iter(), style);
    if let Some(output) = error.output() {
        text += &last_output(output, style);
    }
    for note in error.notes() {
        text += &labeled(&style.bold("also:"), "also: ".len(), note);
    }
    let hint = match (error.hint_text(), error.class()) {
        (None, Class::Bug) => {
            Some("this is a bug in bareboat: please report it with the Dockerfile")
        }
        (hint, _) => hint,
    };
    if let Some(hint) = hint {
        text += &labeled(&style.good("hint:"), "hint: ".len(), hint);
    }
    for other in error.others() {
        text += &render_core(other, style);
    }
    text
}

fn title(text: &str, style: Style) -> String {
    labeled(&style.error("error:"), "error: ".len(), text)
}

fn causes(causes: impl Iterator<Item = String>, style: Style) -> String {
    let label = style.bold("caused by:");
    causes.map(|cause| labeled(&label, "caused by: ".len(), &cause)).collect()
}

/// `label text`, further lines of the text below its first.
fn labeled(label: &str, indent: usize, text: &str) -> String {
    let mut labeled = String::new();
    for (at, line) in text.trim_end().split('\n').enumerate() {
        let line = shortened(message(line.trim_end_matches('\r')), LINE_CHARACTERS_MAX);
        match at {
            0 => labeled += &format!("{label} {line}\n"),
            _ => labeled += &format!("{}{line}\n", " ".repeat(indent)),
        }
    }
    labeled
}

fn last_output(output: &str, style: Style) -> String {
    let lines: Vec<_> = output.trim_end().lines().collect();
    let skipped = lines.len().saturating_sub(OUTPUT_LINES_MAX);
    let mut text = format!("{}\n", style.bold("last output:"));
    for line in &lines[skipped..] {
        // What stands after the last carriage return is what a terminal would show.
        let line = line.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
        let line = shortened(message(line), LINE_CHARACTERS_MAX);
        text += &format!("{} {line}\n", style.frame("  |"));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{fmt, io};

    use anyhow::Context;
    use bareboat_core::{dockerfile::ast::Span, error::Location};

    use super::*;

    #[derive(Debug)]
    struct Wrapped(io::Error);

    impl fmt::Display for Wrapped {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("cannot read the base")
        }
    }

    impl std::error::Error for Wrapped {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }

    fn shown(error: impl Into<anyhow::Error>) -> String {
        render(&error.into(), Style { colored: false })
    }

    #[test]
    fn everything_that_is_known_is_shown_in_order() {
        let span = Span { first_line: 2, last_line: 2, column: None };
        let location =
            Location { file: "Dockerfile".into(), source: "FROM a\nRUN make\n".into(), span };
        let error = Error::from_cause(Class::Step, Wrapped(io::Error::other("reset")))
            .at_location(location)
            .with_output("cc x\r\n10%\r20%\nfatal: \u{1b}[31mno\n".into())
            .hint("try\nagain");
        assert_eq!(
            shown(error),
            "\
error: cannot read the base
 --> Dockerfile:2
  |
1 | FROM a
2 | RUN make
  | ^^^^^^^^
  |
caused by: reset
last output:
  | cc x
  | 20%
  | fatal: no
hint: try
      again
"
        );
    }

    #[test]
    fn faults_that_were_found_together_are_shown_in_order() {
        let faults = vec![
            Error::new(Class::Input, "a is missing").hint("add a"),
            Error::new(Class::Push, "b is not allowed"),
        ];
        let shown = shown(Error::first_of(faults).unwrap());
        assert_eq!(shown, "error: a is missing\nhint: add a\nerror: b is not allowed\n");
    }

    #[test]
    fn the_last_output_is_bounded() {
        let output: String = (0..1000).map(|n| format!("line {n}\n")).collect();
        let text = shown(Error::new(Class::Step, "x").with_output(output));
        assert!(text.contains("line 999") && !text.contains("line 959"), "{text}");
        let text = shown(Error::new(Class::Step, "x").with_output("y".repeat(1 << 20)));
        assert!(text.len() < 10_000);
    }

    #[test]
    fn no_line_speaks_to_the_runner() {
        let hostile = "a\n::add-mask::x\n##[group]y\n\u{1b}]0;z\u{7}";
        let text =
            shown(Error::new(Class::Source, hostile).hint(hostile).with_output(hostile.into()));
        for line in text.lines() {
            assert!(!line.trim_start().starts_with("::") || line.starts_with(' '), "{line}");
            assert!(!line.contains("##[") && !line.contains('\u{1b}'), "{line}");
        }
    }

    #[test]
    fn other_errors_show_their_chain() {
        let error = Err::<(), _>(io::Error::other("disk full")).context("write x").unwrap_err();
        assert_eq!(shown(error), "error: write x\ncaused by: disk full\n");
    }

    #[test]
    fn a_bug_says_so() {
        assert!(shown(Error::new(Class::Bug, "x")).contains("hint: this is a bug"));
    }
}
