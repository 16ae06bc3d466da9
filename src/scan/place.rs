//! Lines and columns of what was found, counted as the bytes go by.
#![forbid(unsafe_code)]

use zeroize::{Zeroize, Zeroizing};

use crate::redact::allow::MAX_TOKEN_BYTES;
use crate::secret::SecretBytes;

use super::{Part, Wanted};

/// Where a secret is, and of which kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// A rule's id, or a secret's name; `unnamed` for a value whose name is not told.
    pub rule: String,
    /// From 1; none in a binary file.
    pub line: Option<u64>,
    /// In characters, from 1; none in a binary file.
    pub column: Option<u64>,
    /// In bytes, from 0.
    pub offset: u64,
}

/// What a marker names.
pub(super) fn rule_of(marker: &str) -> String {
    let name = marker.strip_prefix("[REDACTED:").and_then(|t| t.strip_suffix(']'));
    name.unwrap_or("unnamed").to_owned()
}

#[derive(Debug, Clone, Copy)]
struct Position {
    line: u64,
    column: u64,
    offset: u64,
}

/// See the module.
pub(super) struct Places<'a> {
    at: Position,
    /// Where what is hidden now began.
    start: Option<Position>,
    binary: bool,
    wanted: Wanted<'a>,
    /// What is hidden now, where it may be wanted; longer than any that is, it is not kept.
    token: Zeroizing<Vec<u8>>,
}

/// Characters of UTF-8: all bytes but those that continue one.
fn characters(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|b| **b & 0xc0 != 0x80).count() as u64
}

impl<'a> Places<'a> {
    pub(super) fn new(wanted: Wanted<'a>) -> Self {
        let at = Position { line: 1, column: 1, offset: 0 };
        // Its room never grows: old bytes would be left behind.
        let room = wanted.map_or(0, |_| MAX_TOKEN_BYTES + 1);
        let token = Zeroizing::new(Vec::with_capacity(room));
        Self { at, start: None, binary: false, wanted, token }
    }

    fn keep(&mut self, raw: &[u8]) {
        if self.wanted.is_some() {
            let room = (MAX_TOKEN_BYTES + 1).saturating_sub(self.token.len());
            self.token.extend_from_slice(&raw[..raw.len().min(room)]);
        }
    }

    fn token(&mut self) -> Option<SecretBytes> {
        let len = self.token.len();
        let is_wanted = len <= MAX_TOKEN_BYTES && self.wanted.is_some_and(|wanted| wanted(len));
        let token = is_wanted.then(|| SecretBytes::copy_of(&self.token));
        // Empties it, too.
        self.token.zeroize();
        token
    }

    pub(super) fn set_binary(&mut self, binary: bool) {
        self.binary = binary;
    }

    fn pass(&mut self, bytes: &[u8]) {
        self.at.offset += bytes.len() as u64;
        if self.binary {
            return;
        }
        match bytes.iter().rposition(|b| *b == b'\n') {
            None => self.at.column += characters(bytes),
            Some(last) => {
                self.at.line += bytes.iter().filter(|b| **b == b'\n').count() as u64;
                self.at.column = 1 + characters(&bytes[last + 1..]);
            }
        }
    }

    /// Goes on; a finding when one is complete, with its bytes where they are wanted.
    pub(super) fn take(&mut self, part: Part<'_>) -> Option<(Finding, Option<SecretBytes>)> {
        match part {
            Part::Clear(bytes) => {
                self.pass(bytes);
                None
            }
            Part::Hidden(raw) => {
                self.start.get_or_insert(self.at);
                self.keep(raw);
                self.pass(raw);
                None
            }
            Part::Marker(text) => {
                let start = self.start.take().unwrap_or(self.at);
                let in_text = |number: u64| (!self.binary).then_some(number);
                let finding = Finding {
                    rule: rule_of(text),
                    line: in_text(start.line),
                    column: in_text(start.column),
                    offset: start.offset,
                };
                Some((finding, self.token()))
            }
        }
    }
}
