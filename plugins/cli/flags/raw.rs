//! What was typed, before anything is made of it.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
};

use bareboat_core::{Class, Error};

use super::table::Command;

/// A command, its argument and its flags by name, as typed. A conversion takes every flag out of it, so that one that
/// nobody looked at cannot be ignored in silence: [`RawRequest::left`].
#[derive(Clone, Debug)]
pub struct RawRequest {
    command: Command,
    argument: Option<OsString>,
    more: Vec<OsString>,
    flags: BTreeMap<&'static str, Vec<OsString>>,
}

impl RawRequest {
    /// `flags` are named as in the flag table; a switch's value is `true` or `false`, a count's its number.
    pub fn new(
        command: Command,
        argument: Option<OsString>,
        flags: BTreeMap<&'static str, Vec<OsString>>,
    ) -> Self {
        RawRequest { command, argument, more: Vec::new(), flags }
    }

    /// With what was typed behind the argument.
    pub fn with_more(self, more: Vec<OsString>) -> Self {
        RawRequest { more, ..self }
    }

    pub fn command(&self) -> Command {
        self.command
    }

    pub fn argument(&self) -> Option<&OsStr> {
        self.argument.as_deref()
    }

    /// The command's argument as text.
    pub fn argument_text(&self) -> Result<&str, Error> {
        let argument = self.argument().unwrap_or_default();
        argument.to_str().ok_or_else(|| not_text("the argument", argument))
    }

    /// What was typed behind the argument, as text.
    pub fn more_texts(&self) -> Result<Vec<&str>, Error> {
        self.more
            .iter()
            .map(|more| more.to_str().ok_or_else(|| not_text("the argument", more)))
            .collect()
    }

    /// Takes all values of a flag.
    pub fn take_all(&mut self, name: &str) -> Vec<OsString> {
        self.flags.remove(name).unwrap_or_default()
    }

    /// Takes the value of a flag that has one; an empty value counts as not given, as Docker's own options have it.
    pub fn take_one(&mut self, name: &str) -> Option<OsString> {
        self.take_all(name).pop().filter(|value| !value.is_empty())
    }

    /// Takes all values of a flag as text.
    pub fn take_texts(&mut self, name: &str) -> Result<Vec<String>, Error> {
        self.take_all(name).into_iter().map(|value| text(name, value)).collect()
    }

    /// Takes the value of a flag that has one, as text.
    pub fn take_text(&mut self, name: &str) -> Result<Option<String>, Error> {
        self.take_one(name).map(|value| text(name, value)).transpose()
    }

    /// Takes a switch.
    pub fn take_switch(&mut self, name: &str) -> bool {
        self.take_one(name).is_some_and(|value| value == "true")
    }

    /// A flag that was typed and not taken.
    pub fn left(&self) -> Option<&'static str> {
        self.flags.keys().next().copied()
    }
}

fn text(name: &str, value: OsString) -> Result<String, Error> {
    value.into_string().map_err(|value| not_text(&format!("--{name}:"), &value))
}

fn not_text(what: &str, value: &OsStr) -> Error {
    Error::new(Class::Usage, format!("{what} {} is not UTF-8", value.display()))
}
