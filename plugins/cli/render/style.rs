//! Colours and units of what people read.

use std::time::Duration;

/// Colours, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    pub colored: bool,
}

impl Style {
    fn sgr(self, code: &str, text: &str) -> String {
        if self.colored && !text.is_empty() {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    pub fn bold(self, text: &str) -> String {
        self.sgr("1", text)
    }

    pub fn dim(self, text: &str) -> String {
        self.sgr("2", text)
    }

    pub fn error(self, text: &str) -> String {
        self.sgr("1;31", text)
    }

    pub fn warning(self, text: &str) -> String {
        self.sgr("1;33", text)
    }

    pub fn good(self, text: &str) -> String {
        self.sgr("32", text)
    }

    pub fn frame(self, text: &str) -> String {
        self.sgr("1;34", text)
    }
}

/// `0.3s`, `62.0s`, `5m02s`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 100 {
        return format!("{:.1}s", time.as_secs_f64());
    }
    format!("{}m{:02}s", seconds / 60, seconds % 60)
}

/// Bytes in decimal units, as registries and Docker count: `12.3 MB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1000), "1.0 kB");
        assert_eq!(bytes(999_999), "1.0 MB");
        assert_eq!(bytes(12_345_678), "12.3 MB");
        assert_eq!(bytes(u64::MAX), "18446744.1 TB");
        assert_eq!(duration(Duration::from_millis(340)), "0.3s");
        assert_eq!(duration(Duration::from_secs(302)), "5m02s");
    }

    #[test]
    fn no_color_is_no_escape() {
        assert_eq!(Style { colored: false }.error("x"), "x");
        assert_eq!(Style { colored: true }.error("x"), "\u{1b}[1;31mx\u{1b}[0m");
    }
}
