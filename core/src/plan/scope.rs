//! The environment that words are expanded in: ARG and ENV in order of appearance.

use crate::dockerfile::{
    ast::{ArgPair, Escape},
    words::{Expander, WordError},
};

/// Proxy variables: usable without a declaration, in no history and no cache key unless declared.
const PROXIES: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

/// An ordered environment in which each name stands once, where it was set last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment(Vec<(String, String)>);

impl Environment {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.0.retain(|(key, _)| key != name);
        self.0.push((name.to_owned(), value.to_owned()));
    }

    pub fn pairs(&self) -> &[(String, String)] {
        &self.0
    }

    /// Expands one word, blanks kept.
    pub fn expand(&self, word: &str, escape: Escape) -> Result<String, WordError> {
        let lookup = |name: &str| self.get(name).map(str::to_owned);
        Ok(Expander::new(escape, &lookup).expand(word)?.value)
    }

    /// Expands a word and splits it at blanks.
    pub fn expand_words(&self, word: &str, escape: Escape) -> Result<Vec<String>, WordError> {
        let lookup = |name: &str| self.get(name).map(str::to_owned);
        Expander::new(escape, &lookup).expand_words(word)
    }

    /// Expands the body of a here-document of COPY or ADD.
    pub fn expand_heredoc(&self, body: &str) -> Result<String, WordError> {
        let lookup = |name: &str| self.get(name).map(str::to_owned);
        Ok(Expander::heredoc(&lookup).expand(body)?.value)
    }
}

/// The declared ARGs of a stage, its parents' first.
pub type BuildArgs = Vec<ArgPair>;

/// The words of a RUN as its history has them: the declared ARGs with their values of now, then the command.
pub fn run_history(argv: &[String], args: &[ArgPair], environment: &Environment) -> String {
    let mut pairs: Vec<(&str, String)> = Vec::new();
    for arg in args {
        let value = environment.get(&arg.key).or(arg.value.as_deref()).unwrap_or_default();
        let pair = (arg.key.as_str(), format!("{}={value}", arg.key));
        match pairs.iter_mut().find(|(key, _)| *key == arg.key) {
            Some(place) => *place = pair,
            None => pairs.push(pair),
        }
    }
    let mut words: Vec<String> = Vec::new();
    if !pairs.is_empty() {
        words.push(format!("|{}", pairs.len()));
        words.extend(pairs.into_iter().map(|(_, pair)| pair));
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
