//! A value, a newline, a word: expanded within the cap, the same twice.

#![no_main]

use bareboat_core::dockerfile::{ast::Escape, words::Expander};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (value, word) = text.split_once('\n').unwrap_or(("", text));
    let lookup = |name: &str| match name {
        "A" => Some(value.to_owned()),
        "B" => Some(String::new()),
        _ => None,
    };
    for expander in [
        Expander::new(Escape::Backslash, &lookup),
        Expander::new(Escape::Backtick, &lookup),
        Expander::new(Escape::Backslash, &lookup).raw_quotes().keep_unset(),
        Expander::heredoc(&lookup),
    ] {
        let first = expander.expand(word);
        assert_eq!(first, expander.expand(word));
        let _ = expander.expand_words(word);
    }
});
