//! PARSE: bytes -> Dockerfile and diagnostics with spans. Pure: no I/O here (invariant 1).
//!
//! Two passes, as in BuildKit, because they decide which error is the first: `lexer` cuts the file into nodes (lines
//! joined, flags and arguments apart, here-documents attached), `instruction` gives each node its meaning. Words stay
//! raw; [`words`] expands them once the planner knows the environment.

pub mod ast;
pub mod check;
pub mod command;
mod directive;
mod duration;
mod error;
pub mod expose;
mod flags;
mod heredoc;
mod instruction;
mod lexer;
mod limits;
mod lines;
pub mod lint;
pub mod mount;
mod node;
mod parse;
pub mod signal;
pub mod source_frame;
mod split;
mod suggest;
pub mod words;

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod tests;

pub use error::{ParseError, ParseErrors, ParseWarning, WarningKind};
pub use parse::{Parsed, parse, parse_onbuild};
