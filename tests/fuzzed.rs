//! The fuzz targets, with numbers that look random: `STRONGROOM_CASES` of them for each.

#[path = "fuzz/redaction.rs"]
mod redaction;

/// Calls `target` with texts in which small alphabets and arbitrary bytes take turns.
fn run(target: fn(&[u8])) {
    let cases = std::env::var("STRONGROOM_CASES").ok().and_then(|n| n.parse().ok());
    let mut state = 0x5eed_u64;
    let mut next = || {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    };
    for case in 0..cases.unwrap_or(1_500_u64) {
        let len = next() % 400;
        let alphabet: &[u8] = match case % 4 {
            0 => b"ab\n\\r> +\x85\x10",
            1 => b"aZ0+/-_=\n \x90\x08\x20",
            2 => b"{}[]:,\"\\01 n\n\x81\x1f",
            _ => &[],
        };
        let data: Vec<u8> = (0..len)
            .map(|_| {
                let number = next();
                match alphabet.get((number % alphabet.len().max(1) as u64) as usize) {
                    Some(byte) if number >> 32 & 15 != 0 => *byte,
                    _ => (number >> 40) as u8,
                }
            })
            .collect();
        target(&data);
    }
}

#[test]
fn any_values_in_any_text_are_hidden_however_it_is_cut() {
    run(redaction::redact);
}

#[test]
fn any_bytes_in_the_place_of_a_saved_state_are_refused_or_harmless() {
    run(redaction::resume);
}
