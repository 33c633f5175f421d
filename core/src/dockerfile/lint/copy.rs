//! Sources of COPY and ADD that the ignore file leaves out.

use super::{
    super::ast::Span,
    Rule,
    linter::{Linter, Local},
};

pub(super) static COPY_IGNORED_FILE: Rule = Rule::new(
    "CopyIgnoredFile",
    "copy-ignored-file",
    "Attempting to Copy file that is excluded by .dockerignore",
);

/// Which instruction a source belongs to, as the finding calls it.
#[derive(Clone, Copy)]
pub(super) enum Verb {
    Copy,
    Add,
}

/// `source` is expanded, and of the build context unless it is fetched.
pub(super) fn check(
    verb: Verb,
    source: &str,
    ignored: &dyn Fn(&str) -> bool,
    span: Span,
    local: &Local,
    linter: &mut Linter,
) {
    if is_remote(source) {
        return;
    }
    let path = clean(source);
    if ignored(&path) {
        let verb = match verb {
            Verb::Copy => "Copy",
            Verb::Add => "Add",
        };
        let detail =
            format!("Attempting to {verb} file {path:?} that is excluded by .dockerignore");
        linter.add_at(&COPY_IGNORED_FILE, span, local, detail);
    }
}

/// Whether a source is a URL or a Git reference that can't be taken for a path.
fn is_remote(source: &str) -> bool {
    let schemes = ["http://", "https://", "git://", "ssh://"];
    let is_scp = source.split_once('@').is_some_and(|(user, rest)| {
        !user.is_empty()
            && !user.contains('/')
            && rest.split('/').next().unwrap_or_default().contains(':')
    });
    is_scp || schemes.iter().any(|scheme| source.starts_with(scheme))
}

/// Go's `filepath.Clean`.
fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned() {
        for (path, cleaned) in
            [("", "."), ("./a//b/", "a/b"), ("a/../..", ".."), ("/../a", "/a"), ("/", "/")]
        {
            assert_eq!(clean(path), cleaned, "{path}");
        }
    }

    #[test]
    fn what_is_fetched_is_no_path() {
        for source in ["http://x/a", "https://x/a.git", "git://x/a", "git@github.com:a/b.git"] {
            assert!(is_remote(source), "{source}");
        }
        for source in ["a", "github.com/a/b", "dir/a@b:c", "a@b", "@scope/x:y"] {
            assert!(!is_remote(source), "{source}");
        }
    }
}
