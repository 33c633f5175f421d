//! Marks of here-documents: a word `[digits]<<[-]DELIMITER`, where DELIMITER is all that follows.

use super::{
    ast::{Escape, Heredoc},
    words::{Expander, WordError},
};

/// A here-document's mark.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// The delimiter without quotes.
    pub name: String,
    pub expand: bool,
    pub chomp: bool,
    pub file_descriptor: u32,
}

impl Mark {
    pub(super) fn with_body(self, raw: String) -> Heredoc {
        Heredoc {
            content: if self.chomp { without_tabs(&raw) } else { raw.clone() },
            raw,
            name: self.name,
            expand: self.expand,
            chomp: self.chomp,
            file_descriptor: self.file_descriptor,
        }
    }
}

fn nothing(_: &str) -> Option<String> {
    None
}

/// `word` as a mark, if it is one.
pub(super) fn mark(word: &str) -> Result<Option<Mark>, WordError> {
    let after_digits = word.trim_start_matches(|c: char| c.is_ascii_digit());
    let digits = &word[..word.len() - after_digits.len()];
    let Some(rest) = after_digits.strip_prefix("<<") else { return Ok(None) };
    let (chomp, rest) = rest.strip_prefix('-').map_or((false, rest), |rest| (true, rest));
    let rest = rest.trim_start_matches(['\t', '\n', '\x0c', '\r', ' ']);
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    let lexer = Expander::new(Escape::Backslash, &nothing).keep_unset().for_lines();
    let [name] = &lexer.expand_words(rest)?[..] else { return Ok(None) };
    let quoted = lexer.raw_quotes().expand_words(rest)?.concat();
    Ok(Some(Mark {
        expand: quotes(name) == quotes(&quoted),
        name: name.clone(),
        chomp,
        file_descriptor: if digits.is_empty() { 0 } else { digits.parse().unwrap_or(u32::MAX) },
    }))
}

fn quotes(text: &str) -> usize {
    text.bytes().filter(|b| matches!(b, b'\'' | b'"')).count()
}

/// The marks of an instruction's text, in order. A text whose quotes do not match has none.
pub(super) fn marks(text: &str) -> Result<Vec<Mark>, WordError> {
    if !text.contains("<<") {
        return Ok(Vec::new());
    }
    let lexer = Expander::new(Escape::Backslash, &nothing)
        .keep_unset()
        .for_lines()
        .raw_quotes()
        .raw_escapes();
    let words = lexer.expand_words(text).unwrap_or_default();
    words.iter().filter_map(|word| mark(word).transpose()).collect()
}

/// `body` without the tabs that its lines start with.
pub(super) fn without_tabs(body: &str) -> String {
    body.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_mark() {
        let of = |word: &str| {
            mark(word).unwrap().map(|m| (m.name, m.expand, m.chomp, m.file_descriptor))
        };
        let is = |name: &str, expand, chomp, fd| Some((name.to_owned(), expand, chomp, fd));
        assert_eq!(of("<<EOF"), is("EOF", true, false, 0));
        assert_eq!(of("3<<-EOF"), is("EOF", true, true, 3));
        assert_eq!(of("<< EOF"), is("EOF", true, false, 0));
        assert_eq!(of("<<'E O'F"), is("E OF", false, false, 0));
        assert_eq!(of("<<\"E\"OF"), is("EOF", false, false, 0));
        assert_eq!(of("<<EOF;"), is("EOF;", true, false, 0));
        assert_eq!(of("<<$EOF"), is("$EOF", true, false, 0));
        assert_eq!(of("99999999999<<E"), is("E", true, false, u32::MAX));
        for word in [
            "EOF",
            "<<",
            "<<-",
            "<EOF",
            "cat<<EOF",
            "<<<EOF",
            "<<A<<B",
            "<<A B",
            "\"<<EOF\"",
            "<<''",
        ] {
            assert_eq!(of(word), None, "{word}");
        }
        assert!(mark("<<'EOF").is_err());
    }

    #[test]
    fn marks_of_a_line() {
        let names =
            |text: &str| marks(text).unwrap().into_iter().map(|m| m.name).collect::<Vec<_>>();
        assert_eq!(
            names("RUN cat <<ONE 3<< TWO && echo '<<NO' \"<<NO\" a<<NO \\<<NO"),
            ["ONE", "TWO"]
        );
        assert_eq!(names("RUN echo it's <<EOF"), [""; 0]);
        assert_eq!(names("RUN X=${Y:-z} cat <<'EOF'"), ["EOF"]);
    }

    #[test]
    fn tabs_go_from_every_line() {
        assert_eq!(without_tabs("\t\ta\n\t b\n c\t\n\n\t"), "a\n b\n c\t\n\n");
    }
}
