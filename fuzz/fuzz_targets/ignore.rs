//! A path, a newline, an ignore file: patterns that match or are refused.

#![no_main]

use bareboat_core::context::{Ignore, Patterns};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    let (path, file) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let ignored = Ignore::parse(file);
    if let (Ok(ignore), Ok(source)) = (&ignored, std::str::from_utf8(path)) {
        ignore.leaves_out(source);
    }
    if let Ok(patterns) = Patterns::parse(file.split(|byte| *byte == b'\n')) {
        let (_, above) = patterns.matches(path, None);
        patterns.matches(path, Some(&above));
        patterns.may_include_below(path);
        patterns.may_except_below(path);
    }
});
