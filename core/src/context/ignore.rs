//! `.dockerignore` (Dockerfile reference, .dockerignore file).

use crate::tree::EntryPath;

use super::{
    ContextError, PatternError, Patterns, SourceTree,
    patterns::{Matched, clean, trim_space},
    read_file,
};

/// A line of this many bytes or more is refused, as Docker's reader does.
const LINE_BYTES_MAX: usize = 64 * 1024;
const FILE_BYTES_MAX: u64 = 16 << 20;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IgnoreError {
    #[error("line {0} of the ignore file is longer than 65535 bytes")]
    LongLine(usize),
    #[error("the ignore file: {0}")]
    Pattern(#[from] PatternError),
}

/// What a context leaves out.
#[derive(Clone, Debug, Default)]
pub struct Ignore {
    patterns: Patterns,
}

impl Ignore {
    /// Leaves out nothing.
    pub fn none() -> Self {
        Ignore::default()
    }

    /// Reads an ignore file: `#` in the first column begins a comment, blanks around a pattern and slashes at its ends do
    /// not count.
    pub fn parse(bytes: &[u8]) -> Result<Self, IgnoreError> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let mut patterns: Vec<Vec<u8>> = Vec::new();
        for (at, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            if line.len() >= LINE_BYTES_MAX {
                return Err(IgnoreError::LongLine(at + 1));
            }
            patterns.extend(pattern_of_line(line));
        }
        Ok(Ignore { patterns: Patterns::parse(patterns.iter().map(Vec::as_slice))? })
    }

    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether a source of COPY is left out by its name alone, be it there or not: it or a directory above it matches.
    /// Nothing is certain where a pattern takes something back (`!`), so the answer is no then. `source` is cleaned; the
    /// root (`.` or `/`) is left out where any name in it is.
    pub fn leaves_out(&self, source: &str) -> bool {
        if self.patterns.has_exceptions() {
            return false;
        }
        // A name that nobody writes into an ignore file, so only what matches all names matches it.
        let source = if matches!(source, "." | "/") { "\u{1}any\u{1}" } else { source };
        let ends = source.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0);
        let matches = |end: usize| self.patterns.matches(&source.as_bytes()[..end], None).0;
        ends.chain([source.len()]).any(matches)
    }

    /// Whether a path is left out, given what its directory's look-up gave.
    pub(super) fn excludes(&self, path: &EntryPath, parent: Option<&Matched>) -> (bool, Matched) {
        self.patterns.matches(path.as_bytes(), parent)
    }

    /// Whether something below an excluded directory may be taken back.
    pub(super) fn may_keep_below(&self, directory: &EntryPath) -> bool {
        self.patterns.may_except_below(directory.as_bytes())
    }
}

fn pattern_of_line(line: &[u8]) -> Option<Vec<u8>> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.starts_with(b"#") {
        return None;
    }
    let line = trim_space(line);
    if line.is_empty() {
        return None;
    }
    let (exception, pattern) = match line.strip_prefix(b"!") {
        Some(rest) => (&b"!"[..], trim_space(rest)),
        None => (&b""[..], line),
    };
    let cleaned = if pattern.is_empty() { Vec::new() } else { clean(pattern) };
    let relative = match cleaned.strip_prefix(b"/") {
        Some(rest) if !rest.is_empty() => rest,
        _ => &cleaned,
    };
    Some([exception, relative].concat())
}

/// The ignore file that counts: `<Dockerfile>.dockerignore` beside the Dockerfile, else `.dockerignore` at the context's
/// root, else nothing. The first one that is there counts alone, even if it is empty.
///
/// `dockerfile` is a tree without an ignore file of its own and the Dockerfile's path in it.
pub fn find_ignore(
    dockerfile: Option<(&dyn SourceTree, &EntryPath)>,
    context: &dyn SourceTree,
) -> Result<Ignore, ContextError> {
    if let Some((tree, path)) = dockerfile {
        let name = [path.file_name(), b".dockerignore"].concat();
        let beside = path.parent().unwrap_or_default().join_clean(&name);
        let beside = beside.map_err(crate::tree::ResolveError::from)?;
        if let Some(bytes) = read_file(tree, &beside, FILE_BYTES_MAX)? {
            return Ok(Ignore::parse(&bytes)?);
        }
    }
    let general = EntryPath::root().child(b".dockerignore");
    let bytes = read_file(context, &general, FILE_BYTES_MAX)?;
    Ok(bytes.map(|bytes| Ignore::parse(&bytes)).transpose()?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{context::MemoryTree, tree::Timestamp};

    fn patterns(text: &str) -> Vec<String> {
        let lines = text.split('\n').filter_map(|line| pattern_of_line(line.as_bytes()));
        lines.map(|line| String::from_utf8(line).unwrap()).collect()
    }

    #[test]
    fn lines_become_patterns() {
        assert_eq!(
            patterns("# c\n #p\n\n  a b \t\r\n/x/\n! /y/../z\n/\n.\n../q\n!"),
            ["#p", "a b", "x", "!z", "/", ".", "../q", "!"]
        );
    }

    #[test]
    fn sources_are_left_out_by_name() {
        let ignore = Ignore::parse(b"dir\n*.txt\n.*\n").unwrap();
        for (source, left_out) in [
            ("dir", true),
            ("dir/a/b", true),
            ("a.txt", true),
            ("sub/a.txt", false),
            ("/a.txt", false),
            ("directory", false),
            (".", false),
        ] {
            assert_eq!(ignore.leaves_out(source), left_out, "{source}");
        }
        for pattern in ["*", "**", "**/*"] {
            assert!(Ignore::parse(pattern.as_bytes()).unwrap().leaves_out("."), "{pattern}");
        }
        assert!(!Ignore::parse(b"*\n!a\n").unwrap().leaves_out("b"));
        assert!(!Ignore::none().leaves_out("b"));
    }

    #[test]
    fn faults_are_told() {
        assert!(matches!(Ignore::parse(b"a\n!\n"), Err(IgnoreError::Pattern(_))));
        assert!(matches!(Ignore::parse(b"[a"), Err(IgnoreError::Pattern(_))));
        let long = [b"a\n".as_slice(), &vec![b'x'; LINE_BYTES_MAX]].concat();
        assert_eq!(Ignore::parse(&long).unwrap_err(), IgnoreError::LongLine(2));
        assert!(Ignore::parse(b"\xef\xbb\xbf# only a comment\n").unwrap().is_empty());
    }

    #[test]
    fn the_specific_file_wins_even_if_empty() {
        let file = |name: &str, body: &str| {
            MemoryTree::heredoc(name.as_bytes(), body.as_bytes(), Timestamp::default()).unwrap()
        };
        let (specific, general) = (file("D.dockerignore", ""), file(".dockerignore", "*"));
        let dockerfile = EntryPath::clean(b"D").unwrap();
        let other = EntryPath::clean(b"E").unwrap();
        assert!(find_ignore(Some((&specific, &dockerfile)), &general).unwrap().is_empty());
        assert!(!find_ignore(Some((&specific, &other)), &general).unwrap().is_empty());
        assert!(!find_ignore(None, &general).unwrap().is_empty());
        assert!(find_ignore(None, &specific).unwrap().is_empty());
    }
}
