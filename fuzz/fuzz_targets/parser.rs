//! Any bytes as a Dockerfile, and as a trigger: an answer, never a panic, and places that exist.

#![no_main]

use bareboat_core::dockerfile::{parse, parse_onbuild};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let lines = bytes.iter().filter(|byte| **byte == b'\n').count() as u32 + 1;
    match parse("Dockerfile", bytes) {
        Ok(parsed) => assert!(!parsed.dockerfile.stages.is_empty()),
        Err(errors) => errors.iter().for_each(|error| {
            assert!(error.span.first_line <= lines && error.span.last_line <= lines);
        }),
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = parse_onbuild(text);
    }
});
