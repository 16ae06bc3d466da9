//! Any bytes for any parser: the first byte picks it.
#![no_main]

mod parsers;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let [which, data @ ..] = data {
        let (_name, target) = parsers::TARGETS[usize::from(*which) % parsers::TARGETS.len()];
        target(data);
    }
});
