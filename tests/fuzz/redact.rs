//! Any values, any text, any cuts.
#![no_main]

mod redaction;

libfuzzer_sys::fuzz_target!(|data: &[u8]| redaction::redact(data));
