//! Only errors and diagnostics that were asked for.

use std::sync::Mutex;

use bareboat_core::event::{Event, Reporter};

use super::{Display, Sink, error, lock, put, style::Style};

pub struct Quiet {
    out: Mutex<Sink>,
    style: Style,
}

impl Quiet {
    pub fn new(out: Sink, style: Style) -> Self {
        Quiet { out: Mutex::new(out), style }
    }
}

impl Reporter for Quiet {
    fn report(&self, _: Event) {}
}

impl Display for Quiet {
    fn close(&self) {}

    fn error(&self, error: &anyhow::Error) {
        put(&mut *lock(&self.out), &error::render(error, self.style));
    }

    fn log(&self, line: &[u8]) {
        put(&mut *lock(&self.out), &String::from_utf8_lossy(line));
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::*, *};

    #[test]
    fn only_errors_are_shown() {
        let (sink, written) = sink();
        let quiet = Quiet::new(sink, Style { colored: false });
        tell_a_build(&quiet, &TestClock::default());
        assert_eq!(written.text(), "");
        quiet.error(&anyhow::anyhow!("no"));
        assert_eq!(written.text(), "error: no\n");
    }
}
