//! Flags of instructions: which there are, and their values.

use super::error::Problem;

/// What a flag's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Absent value: true. An empty one after `=` is an error.
    Bool,
    Text,
    /// May be given several times.
    List,
}

pub(super) type Known = [(&'static str, Kind)];

pub(super) const NONE: &Known = &[];
pub(super) const FROM: &Known = &[("platform", Kind::Text)];
pub(super) const RUN: &Known = &[
    ("device", Kind::List),
    ("mount", Kind::List),
    ("network", Kind::Text),
    ("security", Kind::Text),
];
pub(super) const COPY: &Known = &[
    ("chown", Kind::Text),
    ("from", Kind::Text),
    ("chmod", Kind::Text),
    ("link", Kind::Bool),
    ("exclude", Kind::List),
    ("parents", Kind::Bool),
];
pub(super) const ADD: &Known = &[
    ("chown", Kind::Text),
    ("chmod", Kind::Text),
    ("link", Kind::Bool),
    ("keep-git-dir", Kind::Bool),
    ("checksum", Kind::Text),
    ("unpack", Kind::Bool),
    ("exclude", Kind::List),
];
pub(super) const HEALTHCHECK: &Known = &[
    ("interval", Kind::Text),
    ("timeout", Kind::Text),
    ("start-period", Kind::Text),
    ("start-interval", Kind::Text),
    ("retries", Kind::Text),
];

/// The flags that an instruction was given.
#[derive(Debug, Default)]
pub(super) struct Flags {
    values: Vec<(&'static str, String)>,
}

impl Flags {
    /// The value of a text flag that was given, even if it is empty.
    pub(super) fn given(&self, name: &str) -> Option<&str> {
        self.values.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// The value of a text flag; an empty one is none.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.given(name).filter(|value| !value.is_empty()).map(str::to_owned)
    }

    /// Whether a boolean flag was given, and as what.
    pub(super) fn boolean(&self, name: &str) -> Option<bool> {
        self.given(name).map(|value| value == "true")
    }

    pub(super) fn list(&self, name: &str) -> Vec<String> {
        self.values
            .iter()
            .filter(|(known, _)| *known == name)
            .map(|(_, value)| value.clone())
            .collect()
    }
}

/// Reads `words`, each of which starts with `--`, as flags of `instruction`.
pub(super) fn parse(
    instruction: &'static str,
    words: &[String],
    known: &'static Known,
) -> Result<Flags, Problem> {
    let mut flags = Flags::default();
    for word in words {
        let (flag, value) =
            word.split_once('=').map_or((word.as_str(), None), |(flag, value)| (flag, Some(value)));
        let name = flag.strip_prefix("--").unwrap_or(flag);
        let Some((name, kind)) = known.iter().find(|(known, _)| *known == name) else {
            let known = known.iter().map(|(name, _)| *name).collect();
            return Err(Problem::UnknownFlag { flag: flag.to_owned(), instruction, known });
        };
        if *kind != Kind::List && flags.given(name).is_some() {
            return Err(Problem::DuplicateFlag { flag: flag.to_owned() });
        }
        flags.values.push((name, self::value(flag, value, *kind)?));
    }
    Ok(flags)
}

fn value(flag: &str, value: Option<&str>, kind: Kind) -> Result<String, Problem> {
    let missing = || Problem::MissingValue { flag: flag.to_owned() };
    if kind != Kind::Bool {
        return value.map(str::to_owned).ok_or_else(missing);
    }
    let Some(value) = value else { return Ok("true".to_owned()) };
    match value.to_lowercase().as_str() {
        "" => Err(missing()),
        lower @ ("true" | "false") => Ok(lower.to_owned()),
        _ => Err(Problem::NotBoolean { flag: flag.to_owned(), value: value.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(words: &[&str]) -> Result<Flags, Problem> {
        parse("COPY", &words.iter().map(|word| word.to_string()).collect::<Vec<_>>(), COPY)
    }

    #[test]
    fn values() {
        let flags = copy(&["--link", "--parents=FALSE", "--exclude=a", "--exclude=b=c", "--from="])
            .unwrap();
        assert_eq!(flags.boolean("link"), Some(true));
        assert_eq!(flags.boolean("parents"), Some(false));
        assert_eq!(flags.list("exclude"), ["a", "b=c"]);
        assert_eq!(flags.given("from"), Some(""));
        assert_eq!(flags.text("from"), None);
        assert_eq!(flags.text("chown"), None);
    }

    #[test]
    fn refusals() {
        let refused = |words: &[&str]| copy(words).unwrap_err();
        assert!(
            matches!(refused(&["--owner=x"]), Problem::UnknownFlag { flag, .. } if flag == "--owner")
        );
        assert!(matches!(refused(&["--=x"]), Problem::UnknownFlag { .. }));
        assert!(matches!(refused(&["--from=a", "--from=b"]), Problem::DuplicateFlag { .. }));
        assert!(matches!(refused(&["--from"]), Problem::MissingValue { .. }));
        assert!(matches!(refused(&["--exclude"]), Problem::MissingValue { .. }));
        assert!(matches!(refused(&["--link="]), Problem::MissingValue { .. }));
        assert!(matches!(refused(&["--link=yes"]), Problem::NotBoolean { .. }));
    }
}
