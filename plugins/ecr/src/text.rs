//! Foreign text for messages.

/// `text` on one line: control characters and characters that hide or reorder text made visible, cut after `max` characters.
pub(crate) fn printable(text: &str, max: usize) -> String {
    let mut shown = String::new();
    for c in text.trim().chars().take(max) {
        match c {
            '\n' | '\r' | '\t' => shown.push(' '),
            '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{2069}'
            | '\u{feff}' => {
                shown.extend(c.escape_unicode());
            }
            c if c.is_control() => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    shown
}
