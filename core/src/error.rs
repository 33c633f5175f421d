//! The one error that leaves core: a class (which fixes the exit code), what happened, where, why and what to do next.

use std::{error::Error as StdError, fmt, sync::Arc};

use crate::dockerfile::ast::{Dockerfile, Span};

/// The class of a failure; its number is the process's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A build step failed.
    Step = 1,
    /// The request itself makes no sense.
    Usage = 2,
    /// The Dockerfile or the context is invalid.
    Input = 3,
    /// A base image or another source could not be had.
    Source = 4,
    /// The result could not be pushed.
    Push = 5,
    /// A lint or policy gate said no.
    Gate = 6,
    /// This host cannot build this.
    Host = 7,
    /// A bug in bareboat.
    Bug = 70,
    /// SIGINT ended the build.
    Interrupted = 130,
    /// SIGTERM ended the build.
    Terminated = 143,
}

impl Class {
    pub fn exit_code(self) -> u8 {
        self as u8
    }
}

/// A place in a Dockerfile, with what is needed to show it.
#[derive(Clone)]
pub struct Location {
    pub file: String,
    pub source: Arc<str>,
    pub span: Span,
}

impl Location {
    pub fn new(dockerfile: &Dockerfile, span: Span) -> Self {
        Location { file: dockerfile.name.clone(), source: dockerfile.source.clone(), span }
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.span.first_line)
    }
}

/// A failure as the user sees it. Cheap to clone, because several stages may wait for the one that failed.
#[derive(Clone, Debug)]
pub struct Error(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    class: Class,
    title: String,
    location: Option<Location>,
    hint: Option<String>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
    /// The last lines that a failing step printed.
    output: Option<String>,
    /// What else is wrong.
    notes: Vec<String>,
    /// Failures of their own that were found with this one.
    others: Vec<Error>,
}

impl Error {
    pub fn new(class: Class, title: impl Into<String>) -> Self {
        Error(Arc::new(Inner {
            class,
            title: title.into(),
            location: None,
            hint: None,
            source: None,
            output: None,
            notes: Vec::new(),
            others: Vec::new(),
        }))
    }

    /// A failure whose title is `error`'s text and whose cause chain is `error`'s.
    pub fn from_cause(class: Class, error: impl StdError + Send + Sync + 'static) -> Self {
        let title = error.to_string();
        let mut this = Error::new(class, title);
        if let Some(inner) = Arc::get_mut(&mut this.0) {
            inner.source = Some(Arc::new(error));
        }
        this
    }

    fn change(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        if Arc::get_mut(&mut self.0).is_none() {
            self = Error(Arc::new(Inner {
                class: self.0.class,
                title: self.0.title.clone(),
                location: self.0.location.clone(),
                hint: self.0.hint.clone(),
                source: self.0.source.clone(),
                output: self.0.output.clone(),
                notes: self.0.notes.clone(),
                others: self.0.others.clone(),
            }));
        }
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            change(inner);
        }
        self
    }

    /// Names the place in the Dockerfile, unless one is named already.
    pub fn at(self, dockerfile: &Dockerfile, span: Span) -> Self {
        if self.0.location.is_some() {
            return self;
        }
        let location = Location::new(dockerfile, span);
        self.change(|inner| inner.location = Some(location))
    }

    pub fn at_location(self, location: Location) -> Self {
        self.change(|inner| inner.location = Some(location))
    }

    /// What to do next.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        self.change(|inner| inner.hint = Some(hint))
    }

    /// What to do next, where there is something to say.
    pub fn maybe_hint(self, hint: Option<String>) -> Self {
        match hint {
            Some(hint) => self.hint(hint),
            None => self,
        }
    }

    /// Puts `title` before what was said; the former title becomes part of it.
    pub fn context(self, title: impl fmt::Display) -> Self {
        self.change(|inner| inner.title = format!("{title}: {}", inner.title))
    }

    pub fn with_output(self, output: String) -> Self {
        self.change(|inner| inner.output = Some(output))
    }

    /// Adds what else is wrong, a line each.
    pub fn with_notes(self, notes: Vec<String>) -> Self {
        self.change(|inner| inner.notes = notes)
    }

    /// The first of several failures, with the others beside it; its class counts. `None` where there are none.
    pub fn first_of(failures: Vec<Error>) -> Option<Error> {
        let mut failures = failures.into_iter();
        let first = failures.next()?;
        let others: Vec<Error> = failures.collect();
        Some(if others.is_empty() { first } else { first.change(|inner| inner.others = others) })
    }

    /// Failures of their own that were found with this one.
    pub fn others(&self) -> &[Error] {
        &self.0.others
    }

    pub fn notes(&self) -> &[String] {
        &self.0.notes
    }

    pub fn class(&self) -> Class {
        self.0.class
    }

    pub fn title(&self) -> &str {
        &self.0.title
    }

    pub fn location(&self) -> Option<&Location> {
        self.0.location.as_ref()
    }

    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    pub fn output(&self) -> Option<&str> {
        self.0.output.as_deref()
    }

    /// The causes below the title, outermost first.
    pub fn causes(&self) -> Vec<String> {
        let mut causes = Vec::new();
        let mut next = self.0.source.as_ref().and_then(|source| source.source());
        while let Some(cause) = next {
            causes.push(cause.to_string());
            next = cause.source();
        }
        causes
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(location) = &self.0.location {
            write!(f, "{location:?}: ")?;
        }
        f.write_str(&self.0.title)
    }
}

impl StdError for Error {}
