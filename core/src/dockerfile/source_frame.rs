//! The lines of a Dockerfile that an error is about, with a caret, as text for people.
//!
//! Control characters are shown as spaces, so that a Dockerfile can't send escape sequences to a terminal; long lines
//! are cut around the point of interest.

use std::fmt;

use super::ast::Span;

/// Lines shown of one span; of a longer one the first are, and its last.
const LINES_MAX: usize = 8;
/// Columns shown of one line.
const COLUMNS_MAX: usize = 160;
/// Columns kept in front of the caret where a line is cut.
const COLUMNS_BEFORE: usize = 60;

/// A frame; its `Display` is the plain form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub file: String,
    pub first_line: u32,
    pub lines: Vec<FrameLine>,
}

/// One line of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameLine {
    pub number: u32,
    pub text: String,
    /// The 0-based column, on screen, of the point of interest.
    pub caret: Option<usize>,
    /// Lines of the span between this one and the one before are not shown.
    pub after_gap: bool,
}

/// The frame of `span` in `source`; no lines where the span lies outside of it.
pub fn frame(file: &str, source: &str, span: Span) -> Frame {
    let first = span.first_line.max(1);
    let last = span.last_line.max(first);
    let spanned =
        source.lines().zip(1u32..).skip(first as usize - 1).take((last - first) as usize + 1);
    let mut lines = Vec::new();
    let mut tail = None;
    for (text, number) in spanned {
        let column = span.column.filter(|_| number == first);
        if lines.len() + 1 < LINES_MAX {
            lines.push(frame_line(text, number, column));
        } else {
            tail = Some((text, number));
        }
    }
    if let Some((text, number)) = tail {
        let after_gap = number as usize >= first as usize + LINES_MAX;
        lines.push(FrameLine { after_gap, ..frame_line(text, number, None) });
    }
    Frame { file: file.to_owned(), first_line: first, lines }
}

/// `column` is in bytes.
fn frame_line(line: &str, number: u32, column: Option<u32>) -> FrameLine {
    let line =
        line.strip_prefix('\u{feff}').map_or((line, 0), |rest| (rest, '\u{feff}'.len_utf8()));
    let column = column.map(|column| (column as usize).saturating_sub(line.1));
    let mut text = String::new();
    let mut caret = None;
    let mut skip = column.map_or(0, |column| cut_before(line.0, column));
    let mut width = 0;
    if skip > 0 {
        text.push('…');
        width = 1;
    }
    for (at, c) in line.0.char_indices() {
        if column == Some(at) {
            caret = Some(width);
        }
        if skip > 0 {
            skip -= 1;
            continue;
        }
        if width >= COLUMNS_MAX {
            text.push('…');
            break;
        }
        text.push(if is_unsafe(c) { ' ' } else { c });
        width += columns(c);
    }
    FrameLine { number, text, caret, after_gap: false }
}

/// How many characters to drop in front so that the byte `column` is shown.
fn cut_before(line: &str, column: usize) -> usize {
    let before = line.char_indices().take_while(|(at, _)| *at < column).count();
    if before < COLUMNS_MAX - COLUMNS_BEFORE { 0 } else { before - COLUMNS_BEFORE }
}

/// What a terminal might obey, or show in another order.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Columns that a character takes: two in the blocks of East Asian scripts and emoji.
fn columns(c: char) -> usize {
    let wide = matches!(c as u32,
        0x1100..=0x115f | 0x2e80..=0xa4cf | 0xac00..=0xd7a3 | 0xf900..=0xfaff | 0xfe30..=0xfe6f | 0xff00..=0xff60
        | 0xffe0..=0xffe6 | 0x1f300..=0x1faff | 0x20000..=0x3fffd);
    1 + usize::from(wide)
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gutter = self.lines.last().map_or(1, |line| line.number.to_string().len());
        write!(f, "{:gutter$}--> {}:{}", "", self.file, self.first_line)?;
        for line in &self.lines {
            if line.after_gap {
                write!(f, "\n{:>gutter$}", "…")?;
            }
            write!(f, "\n{:>gutter$} | {}", line.number, line.text)?;
            if let Some(caret) = line.caret {
                write!(f, "\n{:gutter$} | {:caret$}^", "", "")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(source: &str, first_line: u32, last_line: u32, column: Option<u32>) -> String {
        frame("Dockerfile", source, Span { first_line, last_line, column }).to_string()
    }

    #[test]
    fn one_line_with_a_caret() {
        let expected = " --> Dockerfile:2\n2 | RUN --x a\n  |     ^";
        assert_eq!(shown("FROM x\nRUN --x a\r\nRUN b\n", 2, 2, Some(4)), expected);
        assert_eq!(shown("\u{feff}FRM x", 1, 1, Some(3)), " --> Dockerfile:1\n1 | FRM x\n  | ^");
        assert_eq!(shown("한 x", 1, 1, Some(4)), " --> Dockerfile:1\n1 | 한 x\n  |    ^");
    }

    #[test]
    fn long_spans_lose_their_middle() {
        let source = (1..=20).map(|n| format!("l{n}\n")).collect::<String>();
        let shown = shown(&source, 3, 20, None);
        assert!(shown.contains("\n 9 | l9\n …\n20 | l20"), "{shown}");
        assert!(!self::shown(&source, 3, 10, None).contains('…'));
    }

    #[test]
    fn long_lines_are_cut_around_the_caret() {
        let line = "a".repeat(1000) + "X" + &"b".repeat(1000);
        let frame = frame("f", &line, Span { first_line: 1, last_line: 1, column: Some(1000) });
        let shown = &frame.lines[0];
        assert_eq!(shown.text.chars().nth(shown.caret.unwrap()), Some('X'));
        assert!(shown.text.chars().count() <= COLUMNS_MAX + 1);
        assert!(shown.text.starts_with('…') && shown.text.ends_with('…'));
    }

    #[test]
    fn nothing_is_sent_to_the_terminal() {
        assert_eq!(
            shown("RUN \u{1b}[2J\u{202e}\ta", 1, 1, None),
            " --> Dockerfile:1\n1 | RUN  [2J  a"
        );
    }

    #[test]
    fn spans_outside_the_source_show_nothing() {
        assert_eq!(shown("a", 7, 9, Some(3)), " --> Dockerfile:7");
        assert_eq!(shown("", 0, 0, None), " --> Dockerfile:1");
        assert_eq!(shown("é", 1, 1, Some(1)), " --> Dockerfile:1\n1 | é");
    }
}
