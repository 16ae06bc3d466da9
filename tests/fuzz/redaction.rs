//! What the fuzz targets of the redactor do; `tests/fuzzed.rs` does it with numbers that look random.

use std::sync::Arc;

use strongroom::redact::{Index, Level, Others, Redactor, Sink, Value, View, weakness};

/// Output, and which bytes of the input were hidden.
#[derive(Default)]
struct Seen {
    out: Vec<u8>,
    input: Vec<u8>,
    hidden: Vec<bool>,
}

impl Sink for Seen {
    fn clear(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
        self.input.extend_from_slice(bytes);
        self.hidden.resize(self.input.len(), false);
    }
    fn hidden(&mut self, raw: &[u8]) {
        self.input.extend_from_slice(raw);
        self.hidden.resize(self.input.len(), true);
    }
    fn marker(&mut self, text: &str, _raw_len: u64) {
        self.out.extend_from_slice(text.as_bytes());
    }
}

fn view(values: &[&[u8]]) -> Arc<View> {
    let index = Index::build((0..).zip(values).map(|(id, bytes)| Value { id, bytes }));
    let names = (0..).zip(values).map(|(id, _)| (id, format!("N{id}").into())).collect();
    Arc::new(View::new(&Arc::new(index), names, Others::Unseen))
}

fn level(byte: u8) -> Level {
    [Level::Values, Level::Values, Level::Formats, Level::All][usize::from(byte % 4)]
}

/// Takes up to `len` bytes.
fn take<'a>(data: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (taken, rest) = data.split_at(len.min(data.len()));
    *data = rest;
    taken
}

/// Values, then pieces of a text. Pieces above 127 stand for a value, or a part of it.
pub(crate) fn redact(mut data: &[u8]) {
    let header = take(&mut data, 2).to_vec();
    let [how, count] = header[..] else { return };
    let mut values = Vec::new();
    for _ in 0..=count % 4 {
        let len = take(&mut data, 1).first().map_or(0, |len| usize::from(len % 64));
        let value = take(&mut data, len).trim_ascii();
        if !value.is_empty() {
            values.push(value);
        }
    }
    let view = view(&values);
    let (mut text, mut cuts) = (Vec::new(), Vec::new());
    while let [kind, rest @ ..] = data {
        data = rest;
        if *kind < 128 || values.is_empty() {
            text.extend_from_slice(take(&mut data, usize::from(kind % 32)));
        } else {
            let value = values[usize::from(kind % 16) % values.len()];
            let cut = take(&mut data, 1).first().map_or(0, |cut| usize::from(*cut));
            text.extend_from_slice(&value[..value.len() - cut % 4 % value.len().max(1)]);
        }
        cuts.push(text.len());
    }
    let level = level(how);
    let mut whole = Seen::default();
    let mut redactor = Redactor::new(view.clone(), level);
    redactor.push(&text, &mut whole);
    redactor.finish(&mut whole);
    assert!(whole.input == text, "nothing is lost, doubled or moved");

    let mut pieces = Seen::default();
    let mut redactor = Redactor::new(view.clone(), level);
    let mut at = 0;
    for cut in cuts {
        redactor.push(&text[at..cut], &mut pieces);
        at = cut;
        if how & 64 != 0 {
            let state = redactor.save();
            redactor = Redactor::resume(view.clone(), level, &state).expect("it was just saved");
        }
    }
    redactor.finish(&mut pieces);
    assert!(pieces.out == whole.out, "the output depends on the cuts");

    for value in values.iter().filter(|value| weakness(value).is_none()) {
        for (start, piece) in text.windows(value.len()).enumerate() {
            let hidden = &whole.hidden[start..start + value.len()];
            assert!(piece != *value || hidden.iter().all(|hidden| *hidden), "a value is left");
        }
    }
}

/// A saved state in which bytes were changed, or any bytes in its place.
pub(crate) fn resume(mut data: &[u8]) {
    let header = take(&mut data, 2).to_vec();
    let [how, len] = header[..] else { return };
    let view = view(&[b"Zk8Wq2LmN5rT7yU0pX3c", b"48151623421", b"two\nlines-of it"]);
    let mut redactor = Redactor::new(view.clone(), level(how));
    redactor.push(take(&mut data, usize::from(len)), &mut Seen::default());
    redactor.push(b"Zk8Wq2LmN5rT7yU0pX3cZk8Wq2LmN5rT\\", &mut Seen::default());
    let mut state = redactor.save().to_vec();
    if how & 64 != 0 {
        state.truncate(1);
        state.extend_from_slice(data);
    } else {
        while let [at, low, change, rest @ ..] = data {
            let at = usize::from(*at) << 8 | usize::from(*low);
            let len = state.len();
            state[at % len] ^= change;
            data = rest;
        }
    }
    if let Ok(mut redactor) = Redactor::resume(view, level(how), &state) {
        let mut out = Seen::default();
        redactor.push(b"7yU0pX3c 48151623421, two\\nlines", &mut out);
        let state = redactor.save();
        let view = redactor.view().clone();
        let mut redactor = Redactor::resume(view, level(how), &state).expect("it was just saved");
        redactor.push(b"-of it", &mut out);
        redactor.finish(&mut out);
        assert_eq!(redactor.held(), 0);
    }
}
