//! Any bytes in the place of a saved state.
#![no_main]

mod redaction;

libfuzzer_sys::fuzz_target!(|data: &[u8]| redaction::resume(data));
