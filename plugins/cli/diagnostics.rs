//! `-v`: bareboat's own diagnostics (tracing), through the display so that they do not tear a live list.

use std::{
    io::{self, Write},
    sync::Arc,
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::render::Display;

/// Shows diagnostics of bareboat's own crates: from info with one `-v`, debug with two, trace with three. Other crates'
/// stay at warnings, because they may print requests with their credentials.
pub fn install(verbosity: u8, display: Arc<dyn Display>) {
    let level = match verbosity {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::new(format!("warn,bareboat={level},bareboat_core={level}"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .with_writer(Lines(display))
        .finish();
    // Fails only if one is installed already.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

struct Lines(Arc<dyn Display>);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = OneLine<'a>;

    fn make_writer(&'a self) -> OneLine<'a> {
        OneLine { display: self.0.as_ref(), bytes: Vec::new() }
    }
}

/// Collects one diagnostic and hands it over whole.
struct OneLine<'a> {
    display: &'a dyn Display,
    bytes: Vec<u8>,
}

impl Write for OneLine<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for OneLine<'_> {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.display.log(&self.bytes);
        }
    }
}
