//! The value of `# check=` (and of the build argument BUILDKIT_DOCKERFILE_CHECK): which checks run, and whether a
//! finding fails the build.

use thiserror::Error;

use super::directive;

/// What `# check=` asks for. Names of checks are compared with their letter case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    pub skip: Checks,
    pub experimental: Checks,
    /// Findings fail the build.
    pub error: bool,
}

/// A choice of checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checks {
    All,
    Named(Vec<String>),
}

impl Default for Checks {
    fn default() -> Self {
        Checks::Named(Vec::new())
    }
}

impl Checks {
    fn parse(names: &str) -> Self {
        match names.trim() {
            "all" => Checks::All,
            names => Checks::Named(names.split(',').map(|name| name.trim().to_owned()).collect()),
        }
    }

    pub fn has(&self, name: &str) -> bool {
        match self {
            Checks::All => true,
            Checks::Named(names) => names.iter().any(|known| known == name),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CheckError {
    #[error("failed to parse check options: invalid check option {0:?}")]
    Option(String),
    #[error("failed to parse check options: failed to parse check option {0:?}: not a boolean")]
    NotBoolean(String),
}

/// Options separated by `;`: `skip=`, `experimental=` (names, or `all`) and `error=` (a boolean).
pub fn parse(text: &str) -> Result<CheckOptions, CheckError> {
    let mut options = CheckOptions::default();
    if text.trim().is_empty() {
        return Ok(options);
    }
    for option in text.trim().splitn(3, ';') {
        let (key, value) =
            option.split_once('=').ok_or_else(|| CheckError::Option(option.to_owned()))?;
        match key.trim() {
            "skip" => options.skip = Checks::parse(value),
            "experimental" => options.experimental = Checks::parse(value),
            "error" => {
                options.error = boolean(value.trim())
                    .ok_or_else(|| CheckError::NotBoolean(option.to_owned()))?
            }
            key => return Err(CheckError::Option(key.to_owned())),
        }
    }
    Ok(options)
}

/// The options of the first `check=` among the comments directly above an instruction, which hold for it alone. A bad
/// option there is no error, as in BuildKit: nothing is asked for then.
pub fn of_comments(comments: &[String]) -> Option<CheckOptions> {
    let directive = comments.iter().find_map(|comment| directive::of_comment(comment, "check"))?;
    parse(directive::first_word(&directive)).ok()
}

/// Go's `strconv.ParseBool`.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options() {
        let options = parse("skip=A, B;experimental=all;error=true").unwrap();
        assert!(options.skip.has("A") && options.skip.has("B") && !options.skip.has("a"));
        assert!(options.experimental.has("anything"));
        assert!(options.error);
        assert_eq!(parse("  "), Ok(CheckOptions::default()));
    }

    #[test]
    fn refusals() {
        for text in ["fail=true", "error=perhaps", "skip", "skip=a;", "skip=a;error=1;error=0;x=1"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn comments_above_an_instruction() {
        let comments =
            ["words".to_owned(), "check=skip=A more".to_owned(), "check=skip=B".to_owned()];
        assert!(of_comments(&comments).unwrap().skip.has("A"));
        assert_eq!(of_comments(&["check=nonsense".to_owned()]), None);
        assert_eq!(of_comments(&["escape=`".to_owned()]), None);
    }
}
