//! The environment that words are expanded in: ARG and ENV in order of appearance.
//!
//! Stages inherit it and every RUN keeps the one of its time, so it shares what did not change: thousands of stages on
//! one big environment cost no more than what each adds.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::dockerfile::{
    ast::Escape,
    words::{Expander, WordError},
};

#[derive(Clone, Debug)]
struct Variable {
    /// When it was set, among all of its environment.
    order: u64,
    value: Arc<str>,
}

/// A map whose clones share what they have in common: tables of sizes that fall by half at least, the newest last.
#[derive(Clone, Debug, Default)]
struct Table(Vec<Arc<HashMap<Arc<str>, Variable>>>);

impl Table {
    fn get(&self, name: &str) -> Option<&Variable> {
        self.0.iter().rev().find_map(|table| table.get(name))
    }

    fn insert(&mut self, name: Arc<str>, variable: Variable) {
        match self.0.last_mut().and_then(Arc::get_mut) {
            Some(top) => drop(top.insert(name, variable)),
            None => self.0.push(Arc::new(HashMap::from([(name, variable)]))),
        }
        while let [.., below, top] = self.0.as_slice()
            && top.len() * 2 > below.len()
        {
            self.merge_top();
        }
    }

    fn merge_top(&mut self) {
        let Some(top) = self.0.pop() else { return };
        match self.0.last_mut() {
            Some(below) => {
                let entries = top.iter().map(|(name, variable)| (name.clone(), variable.clone()));
                Arc::make_mut(below).extend(entries);
            }
            None => self.0.push(top),
        }
    }

    /// Every name once with its newest value, in no order.
    fn entries(&self) -> Vec<(&Arc<str>, &Variable)> {
        let mut seen: HashSet<&str> = HashSet::new();
        let mut entries = Vec::new();
        for (name, variable) in self.0.iter().rev().flat_map(|table| table.iter()) {
            if seen.insert(name) {
                entries.push((name, variable));
            }
        }
        entries
    }

    fn in_order(&self) -> Vec<(&str, &str)> {
        let mut entries = self.entries();
        entries.sort_unstable_by_key(|(_, variable)| variable.order);
        entries
            .into_iter()
            .map(|(name, variable)| (name.as_ref(), variable.value.as_ref()))
            .collect()
    }
}

/// An ordered environment in which each name stands once, where it was set last.
///
/// What a stage sets wins over the ENV that it started with, and that over what else its parents left: BuildKit puts
/// the image's ENV on top again at each FROM.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    inherited: Table,
    image: Table,
    own: Table,
    /// ENV as the image's configuration will have it: a name stays where it was set first.
    result: Table,
    clock: u64,
}

impl Environment {
    /// The environment after FROM of an image with these variables, `NAME=VALUE` each.
    pub fn of_image(variables: &[String]) -> Self {
        let mut environment = Environment::default();
        for pair in variables {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            environment.set_result(name, value);
        }
        environment.image = environment.result.clone();
        environment
    }

    /// The environment of a stage on this one.
    pub fn child(&self) -> Self {
        let mut child = self.clone();
        for (name, variable) in self.own.entries() {
            // ENV shadows what is left of an ARG in every child.
            if self.result.get(name).is_none() {
                child.inherited.insert(name.clone(), variable.clone());
            }
        }
        child.own = Table::default();
        child.image = child.result.clone();
        child
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        let tables = [&self.own, &self.image, &self.inherited];
        tables.into_iter().find_map(|table| table.get(name)).map(|found| found.value.as_ref())
    }

    /// ARG: a variable of the build.
    pub fn set(&mut self, name: &str, value: &str) {
        let variable = self.variable(value);
        self.own.insert(name.into(), variable);
    }

    /// ENV: a variable of the build and of the image.
    pub fn set_image(&mut self, name: &str, value: &str) {
        self.set(name, value);
        self.set_result(name, value);
    }

    fn set_result(&mut self, name: &str, value: &str) {
        let mut variable = self.variable(value);
        if let Some(before) = self.result.get(name) {
            variable.order = before.order;
        }
        self.result.insert(name.into(), variable);
    }

    fn variable(&mut self, value: &str) -> Variable {
        self.clock += 1;
        Variable { order: self.clock, value: value.into() }
    }

    /// All variables, those of parents' ARGs first, then the image's, then what the stage set.
    pub fn pairs(&self) -> Vec<(&str, &str)> {
        let mut pairs = self.inherited.in_order();
        pairs.retain(|(name, _)| self.image.get(name).is_none() && self.own.get(name).is_none());
        let image = self.image.in_order().into_iter();
        pairs.extend(image.filter(|(name, _)| self.own.get(name).is_none()));
        pairs.extend(self.own.in_order());
        pairs
    }

    /// ENV for the image's configuration.
    pub fn image_variables(&self) -> Vec<String> {
        let pairs = self.result.in_order().into_iter();
        pairs.map(|(name, value)| format!("{name}={value}")).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_setting_and_env_keeps_its_place_in_the_image() {
        let mut stage = Environment::of_image(&["A=1".into(), "B=2".into()]);
        stage.set_image("A", "3");
        stage.set("C", "4");
        assert_eq!(stage.pairs(), [("B", "2"), ("A", "3"), ("C", "4")]);
        assert_eq!(stage.image_variables(), ["A=3", "B=2"]);
    }

    #[test]
    fn env_wins_again_in_a_child() {
        let mut parent = Environment::of_image(&["A=image".into()]);
        parent.set_image("B", "env");
        parent.set("B", "arg");
        parent.set("C", "arg");
        assert_eq!(parent.get("B"), Some("arg"));
        let mut child = parent.child();
        assert_eq!(child.pairs(), [("C", "arg"), ("A", "image"), ("B", "env")]);
        child.set("A", "mine");
        assert_eq!(child.child().pairs(), [("C", "arg"), ("A", "image"), ("B", "env")]);
        assert_eq!((parent.get("A"), child.get("A")), (Some("image"), Some("mine")));
    }

    #[test]
    fn clones_keep_their_time_and_share_the_rest() {
        let mut environment = Environment::default();
        let mut snapshots = Vec::new();
        for n in 0..20_000 {
            environment.set_image(&format!("N{n}"), "x");
            environment = environment.child();
            snapshots.push(environment.clone());
        }
        assert_eq!(snapshots[100].pairs().len(), 101);
        assert_eq!(snapshots[100].get("N101"), None);
        assert_eq!(environment.pairs().len(), 20_000);
        assert!(environment.image.0.len() < 20, "{} tables", environment.image.0.len());
    }
}
