//! The source frame of a Dockerfile error: ` --> FILE:LINE`, the lines, and carets under the point of interest.

use std::fmt::Write as _;

use bareboat_core::error::Location;

use super::{
    style::Style,
    text::{message, shortened},
};

/// Lines of one instruction that are shown; of a longer one the middle is left out.
const LINES_MAX: usize = 6;
/// Characters that are shown before and from the point of interest on.
const BEFORE_MAX: usize = 60;
const AFTER_MAX: usize = 100;

/// Draws the frame, ending in a line break. A place that the source does not have gives its first line only.
pub fn frame(location: &Location, style: Style) -> String {
    let first = location.span.first_line as usize;
    let last = (location.span.last_line as usize).max(first);
    let width = (last + 1).to_string().len();
    let mut drawing = Drawing { text: String::new(), width, style };
    drawing.heading(&format!("{}:{first}", message(&location.file)));
    let lines = lines_around(&location.source, first, last);
    if !lines.iter().any(|(number, _)| *number == first) {
        return drawing.text;
    }
    drawing.line("", "");
    let mut previous = None;
    for (number, line) in lines {
        if previous.is_some_and(|previous| previous + 1 != number) {
            drawing.line("", "…");
        }
        previous = Some(number);
        if number == first {
            drawing.pointed(number, line, location.span.column.map(|column| column as usize));
        } else {
            drawing.line(&number.to_string(), &shortened(spaced(line), BEFORE_MAX + AFTER_MAX));
        }
    }
    drawing.line("", "");
    drawing.text
}

/// The instruction's lines, shortened in the middle, with one line of surroundings on both sides.
fn lines_around(source: &str, first: usize, last: usize) -> Vec<(usize, &str)> {
    let span = last - first + 1;
    let shown = |number: usize| {
        let at = number - first.min(number);
        span <= LINES_MAX || number <= first || at < LINES_MAX - 2 || number >= last
    };
    source
        .lines()
        .enumerate()
        .map(|(at, line)| (at + 1, line))
        .skip(first.saturating_sub(2))
        .take_while(|(number, _)| *number <= last + 1)
        .filter(|(number, line)| {
            shown(*number) && (is_within(*number, first, last) || !line.trim().is_empty())
        })
        .collect()
}

fn is_within(number: usize, first: usize, last: usize) -> bool {
    (first..=last).contains(&number)
}

struct Drawing {
    text: String,
    width: usize,
    style: Style,
}

impl Drawing {
    fn heading(&mut self, place: &str) {
        let arrow = self.style.frame("-->");
        let _ = writeln!(self.text, "{:width$}{arrow} {place}", "", width = self.width);
    }

    fn line(&mut self, gutter: &str, content: &str) {
        let bar = self.style.frame(&format!("{gutter:>width$} |", width = self.width));
        let line = format!("{bar} {content}");
        let _ = writeln!(self.text, "{}", line.trim_end());
    }

    /// A line and carets under what begins at `column` (bytes from 0), or under all of it.
    fn pointed(&mut self, number: usize, line: &str, column: Option<usize>) {
        let (start, end) = pointed_range(line, column);
        let mut before = spaced(&line[..start]);
        let cut = before.chars().count().saturating_sub(BEFORE_MAX);
        if cut > 0 {
            before = format!("…{}", before.chars().skip(cut).collect::<String>());
        }
        let carets = spaced(&line[start..end]).chars().count().clamp(1, AFTER_MAX);
        let after = shortened(spaced(&line[start..]), AFTER_MAX);
        self.line(&number.to_string(), &format!("{before}{after}"));
        let marks = self.style.error(&"^".repeat(carets));
        self.line("", &format!("{}{marks}", " ".repeat(before.chars().count())));
    }
}

/// The word at `column`, or all of the line but the space around it.
fn pointed_range(line: &str, column: Option<usize>) -> (usize, usize) {
    let end = line.trim_end().len();
    match column.filter(|column| *column < end) {
        Some(column) => {
            let start = line.floor_char_boundary(column);
            let word = line[start..end].find(char::is_whitespace).filter(|length| *length > 0);
            (start, word.map_or(end, |length| start + length))
        }
        None => (end.min(line.len() - line.trim_start().len()), end),
    }
}

/// A printable line with tabs as spaces, so that carets stand where they should.
fn spaced(line: &str) -> String {
    message(line).replace('\t', "    ")
}

#[cfg(test)]
mod tests {
    use bareboat_core::dockerfile::ast::Span;

    use super::*;

    fn drawn(source: &str, first_line: u32, last_line: u32, column: Option<u32>) -> String {
        let span = Span { first_line, last_line, column };
        frame(
            &Location { file: "Dockerfile".into(), source: source.into(), span },
            Style { colored: false },
        )
    }

    #[test]
    fn one_line_with_a_caret() {
        let text = drawn("FROM scratch\nRUNN make all\nCMD x\n", 2, 2, Some(0));
        let expected = [
            " --> Dockerfile:2",
            "  |",
            "1 | FROM scratch",
            "2 | RUNN make all",
            "  | ^^^^",
            "3 | CMD x",
            "  |",
            "",
        ];
        assert_eq!(text, expected.join("\n"));
    }

    #[test]
    fn a_column_points_at_its_word() {
        let text = drawn("COPY\t--frm=x é ü", 1, 1, Some(5));
        assert!(text.contains("1 | COPY    --frm=x é ü\n  |         ^^^^^^^\n"), "{text}");
    }

    #[test]
    fn without_a_column_the_line_is_marked() {
        let text = drawn("  RUN a  \n", 1, 1, None);
        assert!(text.contains("1 |   RUN a\n  |   ^^^^^\n"), "{text}");
    }

    #[test]
    fn long_instructions_are_cut_in_the_middle() {
        let source: String = (1..=30).map(|n| format!("line{n} \\\n")).collect();
        let text = drawn(&source, 2, 29, None);
        assert!(text.contains(" --> Dockerfile:2\n"), "{text}");
        assert!(text.contains("| …\n29 | line29"), "{text}");
        assert!(text.contains(" 1 | line1 ") && text.contains("30 | line30"), "{text}");
        assert!(text.lines().count() < 14, "{text}");
    }

    #[test]
    fn long_lines_are_cut_around_the_caret() {
        let source = format!("RUN {}bad{}", "x".repeat(100_000), "y".repeat(100_000));
        let text = drawn(&source, 1, 1, Some(100_004));
        assert!(text.len() < 1000, "{}", text.len());
        assert!(text.contains("xbadyyy"), "{text}");
    }

    #[test]
    fn any_place_is_survived() {
        for (first, last, column) in [
            (0, 0, None),
            (9, 9, Some(3)),
            (2, 1, Some(900)),
            (1, 1, Some(5)),
            (u32::MAX, u32::MAX, Some(u32::MAX)),
        ] {
            for source in ["", "é", "FROM é\n\n", "\n\n\n"] {
                assert!(
                    drawn(source, first, last, column).contains(&format!("Dockerfile:{first}"))
                );
            }
        }
    }

    #[test]
    fn input_is_made_printable() {
        let text = drawn("RUN \u{1b}[2Jx ##[add-mask]y\r\n", 1, 1, None);
        assert!(!text.contains('\u{1b}') && !text.contains("##["), "{text}");
    }
}
