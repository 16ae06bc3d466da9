//! Lines and columns of what was found, counted as the bytes go by.
#![forbid(unsafe_code)]

use super::Part;

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
#[derive(Debug)]
pub(super) struct Places {
    at: Position,
    /// Where what is hidden now began.
    start: Option<Position>,
    binary: bool,
}

impl Default for Places {
    fn default() -> Self {
        let at = Position { line: 1, column: 1, offset: 0 };
        Self { at, start: None, binary: false }
    }
}

/// Characters of UTF-8: all bytes but those that continue one.
fn characters(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|b| **b & 0xc0 != 0x80).count() as u64
}

impl Places {
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

    /// Goes on; a finding when one is complete.
    pub(super) fn take(&mut self, part: Part<'_>) -> Option<Finding> {
        match part {
            Part::Clear(bytes) => {
                self.pass(bytes);
                None
            }
            Part::Hidden(raw) => {
                self.start.get_or_insert(self.at);
                self.pass(raw);
                None
            }
            Part::Marker(text) => {
                let start = self.start.take().unwrap_or(self.at);
                let in_text = |number: u64| (!self.binary).then_some(number);
                Some(Finding {
                    rule: rule_of(text),
                    line: in_text(start.line),
                    column: in_text(start.column),
                    offset: start.offset,
                })
            }
        }
    }
}
