//! Names that speak of secrets, in ARG and ENV.

use super::{
    super::ast::Span,
    Rule,
    linter::{Linter, Local},
};

pub(super) static SECRETS_USED_IN_ARG_OR_ENV: Rule = Rule::new(
    "SecretsUsedInArgOrEnv",
    "secrets-used-in-arg-or-env",
    "Sensitive data should not be used in the ARG or ENV commands",
);

const SECRET: [&str; 10] = [
    "apikey",
    "auth",
    "credential",
    "credentials",
    "key",
    "password",
    "pword",
    "passwd",
    "secret",
    "token",
];
const HARMLESS: [&str; 3] = ["public", "file", "version"];

pub(super) fn check(keyword: &str, name: &str, span: Span, local: &Local, linter: &mut Linter) {
    if is_secret(name) {
        let detail =
            format!("Do not use ARG or ENV instructions for sensitive data ({keyword} {name:?})");
        linter.add_at(&SECRETS_USED_IN_ARG_OR_ENV, span, local, detail);
    }
}

/// Whether a word of `name`, between underscores and in any letter case, speaks of a secret, and none says otherwise.
fn is_secret(name: &str) -> bool {
    let has = |words: &[&str]| {
        name.split('_').any(|part| words.iter().any(|word| part.eq_ignore_ascii_case(word)))
    };
    has(&SECRET) && !has(&HARMLESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_between_underscores_count() {
        for name in
            ["KEY", "api_key", "DB_PASSWORD", "secret_message", "Auth", "_TOKEN_", "A__PWORD"]
        {
            assert!(is_secret(name), "{name}");
        }
        for name in ["", "KEYBOARD", "MONKEY", "PUBLIC_KEY", "TOKEN_FILE", "key_version", "API-KEY"]
        {
            assert!(!is_secret(name), "{name}");
        }
    }
}
