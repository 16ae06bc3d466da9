//! What a step of a rotation chain says on its stderr, for whoever has to mend it.
//!
//! Invariant: no part of it leaves before the step is over and all of it was redacted: against every
//! value of the vault, known formats, random text, and against what the step itself printed on its
//! stdout, which no vault knows yet. What cannot be redacted for certain is withheld. Danger: a cut
//! before the redaction, which would leave the rest of a value that nothing matches.
#![forbid(unsafe_code)]

use std::io::Read;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::redact::{self, Level};
use crate::secret::SecretBytes;

use super::around::Around;

/// A step that says more is told of, not shown: only the whole can be redacted.
const MOST_RAW_BYTES: usize = 1 << 20;
/// The end that is shown to a person.
const MOST_SHOWN_BYTES: usize = 4096;
/// The end that goes into log, record and alert.
const MOST_TOLD_BYTES: usize = 320;

/// The redacted end of what a step said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// For the person who runs the rotation; empty when the step said nothing.
    pub(super) shown: String,
    /// One line for log, record and alert; empty when there is nothing to be told.
    pub(super) told: String,
}

/// Takes in a pipe to its end, in a thread of its own; what does not fit is read and dropped, so that
/// the writer is not ended by a closed pipe. One byte more than `most` tells of too much.
pub(super) fn drain(
    pipe: impl Read + Send + 'static,
    most: usize,
) -> Receiver<std::io::Result<SecretBytes>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut pipe = pipe;
        let text = SecretBytes::read_from((&mut pipe).take(most as u64 + 1), most + 1);
        let _rest = std::io::copy(&mut pipe, &mut std::io::sink());
        // Whoever waited may have given up.
        let _late = sender.send(text);
    });
    receiver
}

/// The same for a step's stderr.
pub(super) fn listen(pipe: impl Read + Send + 'static) -> Receiver<std::io::Result<SecretBytes>> {
    drain(pipe, MOST_RAW_BYTES)
}

impl Said {
    /// What a step said, as far as it can be passed on. `printed` is its stdout, if that is known to
    /// its end; `makes` tells whether it may be a value.
    pub(super) fn of(
        raw: &Receiver<std::io::Result<SecretBytes>>,
        patience: Duration,
        printed: Option<&SecretBytes>,
        makes: bool,
        around: &Around,
    ) -> Self {
        let raw = match raw.recv_timeout(patience) {
            Ok(Ok(raw)) => raw,
            // A process that the step left behind holds the pipe: it may say more.
            Ok(Err(_)) | Err(_) => return Self::withheld("it did not end"),
        };
        if raw.is_empty() {
            return Self::default();
        }
        if raw.len() > MOST_RAW_BYTES {
            return Self::withheld("it is longer than 1 MiB");
        }
        let printed = match (printed, makes) {
            (Some(printed), _) => printed,
            (None, true) => return Self::withheld("the value that was made is not known"),
            (None, false) => &SecretBytes::from_vec(Vec::new()),
        };
        let values = values_in(printed);
        // Not found everywhere, it might be anywhere in there.
        if makes && values.iter().any(|v| redact::weakness(v.expose()).is_some()) {
            return Self::withheld("the value that was made is too weak to be found in it");
        }
        let values: Vec<&[u8]> = values.iter().map(SecretBytes::expose).collect();
        let Ok(view) = around.full_and(&values) else {
            return Self::withheld("the vault is locked");
        };
        let text = redact::redact(&view, Level::All, raw.expose());
        let text = harmless(&String::from_utf8_lossy(&text));
        let shown = end_of(text.trim_end(), MOST_SHOWN_BYTES);
        if makes && printed.is_empty() {
            // It may have said what it did not get to print: that is for its author, and kept nowhere.
            let told = "what it said on stderr is shown by: strongroom rotation run".to_owned();
            return Self { shown, told };
        }
        let line = text.split('\n').map(str::trim).filter(|l| !l.is_empty());
        let line = line.collect::<Vec<_>>().join(" | ");
        Self { shown, told: end_of(&line, MOST_TOLD_BYTES) }
    }

    fn withheld(why: &str) -> Self {
        let text = format!("(what it said on stderr is withheld: {why})");
        Self { shown: text.clone(), told: text }
    }

    /// A message with what the step said.
    pub(super) fn added_to(&self, what: String) -> String {
        if self.told.is_empty() { what } else { format!("{what}; stderr: {}", self.told) }
    }
}

/// What of a step's stdout is a value, or may become one: all of it, and the texts of the JSON object
/// that it may be. Lines of it are looked for with the whole.
fn values_in(printed: &SecretBytes) -> Vec<SecretBytes> {
    fn texts(value: &serde_json::Value, all: &mut Vec<SecretBytes>) {
        match value {
            serde_json::Value::String(text) if !text.is_empty() => {
                all.push(SecretBytes::copy_of(text.as_bytes()));
            }
            serde_json::Value::Array(items) => items.iter().for_each(|item| texts(item, all)),
            serde_json::Value::Object(map) => map.values().for_each(|item| texts(item, all)),
            _ => {}
        }
    }
    let bytes = printed.expose().trim_ascii();
    let mut all = Vec::new();
    if let Ok(object @ serde_json::Value::Object(_)) = serde_json::from_slice(bytes) {
        texts(&object, &mut all);
    }
    if !bytes.is_empty() {
        all.push(SecretBytes::copy_of(bytes));
    }
    all
}

/// Without what a terminal would obey, or a reader be misled by.
fn harmless(text: &str) -> String {
    let is_turn = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let bad = |c: char| (c.is_control() && c != '\n' && c != '\t') || is_turn(c);
    text.replace("\r\n", "\n").chars().map(|c| if bad(c) { '?' } else { c }).collect()
}

/// The last bytes of a text, from the beginning of a character on.
fn end_of(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let mut from = text.len() - most;
    while !text.is_char_boundary(from) {
        from += 1;
    }
    format!("(the first {from} bytes are left out) {}", &text[from..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_the_whole_and_the_texts_of_an_object() {
        let of = |text: &[u8]| -> Vec<String> {
            let found = values_in(&SecretBytes::copy_of(text));
            found.iter().map(|v| String::from_utf8(v.expose().to_vec()).unwrap()).collect()
        };
        assert_eq!(of(b"one-value\n"), ["one-value"]);
        assert_eq!(of(b"first\nsecond\n"), ["first\nsecond"]);
        let object = br#"{"A": "value-a", "B": {"c": ["value-b"]}}"#;
        assert_eq!(of(object)[..2], ["value-a", "value-b"]);
        assert!(of(b"").is_empty());
        assert!(of(b"\n").is_empty());
    }

    #[test]
    fn a_terminal_obeys_nothing_of_it_and_the_end_is_what_stays() {
        assert_eq!(harmless("a\x1b[2Jb\r\nc\u{202e}d\te"), "a?[2Jb\nc?d\te");
        assert_eq!(end_of("short", 10), "short");
        assert_eq!(end_of("aaaa\u{e4}bbb", 4), "(the first 6 bytes are left out) bbb");
    }
}
