//! Any bytes as an archive: members and their bodies, or an error.

#![no_main]

use std::io::Read;

use bareboat_core::layer::{ReadLimits, tar::TarReader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut reader = TarReader::new(bytes, ReadLimits::default());
    while let Ok(Some(_)) = reader.next_member() {
        let mut body = Vec::new();
        if reader.body().take(1 << 20).read_to_end(&mut body).is_err() {
            return;
        }
        assert!(body.len() <= bytes.len());
    }
});
