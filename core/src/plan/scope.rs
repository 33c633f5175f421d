//! ARGs in histories, and those that are predefined.

use std::sync::Arc;

use crate::dockerfile::ast::ArgPair;

use super::environment::Environment;

/// Proxy variables: usable without a declaration, in no history and no cache key unless declared.
const PROXIES: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

/// The declared ARGs of a stage, its parents' first, each name once: where it stood first, with its last value.
pub type BuildArgs = Arc<Vec<ArgPair>>;

/// The words of a RUN as its history has them: the declared ARGs with their values of now, then the command.
pub fn run_history(argv: &[String], args: &[ArgPair], environment: &Environment) -> String {
    let pairs: Vec<String> = args
        .iter()
        .map(|arg| {
            let value = environment.get(&arg.key).or(arg.value.as_deref()).unwrap_or_default();
            format!("{}={value}", arg.key)
        })
        .collect();
    let mut words: Vec<String> = Vec::new();
    if !pairs.is_empty() {
        words.push(format!("|{}", pairs.len()));
        words.extend(pairs);
    }
    words.extend(argv.iter().cloned());
    words.join(" ")
}

/// The proxy variables that the build arguments give, in both letter cases.
pub fn proxies(build_args: &std::collections::BTreeMap<String, String>) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for name in PROXIES {
        let lower = name.to_lowercase();
        if let Some(value) = build_args.get(name).or_else(|| build_args.get(&lower)) {
            found.push((name.to_owned(), value.clone()));
            found.push((lower, value.clone()));
        }
    }
    found
}
