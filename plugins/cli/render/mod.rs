//! Shows a build on standard error: a live list, plain lines, JSON objects or only errors.

mod error;
mod frame;
mod json;
mod lines;
mod plain;
mod quiet;
mod style;
mod text;
mod tty;
mod vertices;

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bareboat_core::{Class, Error, event::Reporter};

pub use frame::frame as source_frame;
pub use style::{Style, bytes};
pub use text::message;

use crate::flags::{Environment, Progress};

/// A reporter that also shows what is not an event.
pub trait Display: Reporter {
    /// The build is over: puts the last lines and the summary.
    fn close(&self);
    /// Shows why it failed.
    fn error(&self, error: &anyhow::Error);
    /// A diagnostic of bareboat itself, one line with its line break.
    fn log(&self, line: &[u8]);
}

/// The display of standard error.
pub fn display(progress: Progress, environment: &Environment) -> Arc<dyn Display> {
    let out = Box::new(io::stderr());
    let style = stderr_style(environment);
    match progress {
        Progress::Tty => Arc::new(tty::Tty::new(tty::standard_error(), out, style)),
        Progress::Plain => Arc::new(plain::Plain::new(out, vertices::Clock::start(), style)),
        Progress::Json => Arc::new(json::Json::new(out, vertices::Clock::start())),
        Progress::Quiet => Arc::new(quiet::Quiet::new(out, style)),
    }
}

/// Colours only on terminals, and not where NO_COLOR or a dumb terminal says otherwise.
pub fn stderr_style(environment: &Environment) -> Style {
    let dumb = environment.text("TERM").is_none_or(|term| term == "dumb");
    let refused = environment.get("NO_COLOR").is_some() || dumb;
    Style { colored: environment.stderr_is_terminal && !refused }
}

/// The same for results on standard output.
pub fn stdout_style(environment: &Environment) -> Style {
    let stderr_is_terminal = environment.stdout_is_terminal;
    stderr_style(&Environment { stderr_is_terminal, ..environment.clone() })
}

/// The process's exit code for an error: that of its class; what the shell itself could not do is this host's fault.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    error.downcast_ref::<Error>().map_or(Class::Host, Error::class).exit_code()
}

/// Shows an error before there is a display.
pub fn early_error(error: &anyhow::Error, environment: &Environment) {
    quiet::Quiet::new(Box::new(io::stderr()), stderr_style(environment)).error(error);
}

/// Shows a panic and ends the process with the exit code of a bug.
pub fn bug(panic: &str) {
    let error = Error::new(Class::Bug, panic).into();
    put(&mut io::stderr(), &error::render(&error, Style { colored: false }));
    std::process::exit(i32::from(Class::Bug.exit_code()));
}

type Sink = Box<dyn Write + Send>;

/// Writes and forgets: a log that nobody can read ends no build.
fn put(out: &mut dyn Write, text: &str) {
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// A lock whose holder panicked still guards a usable state: it only shows things.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod testing;
