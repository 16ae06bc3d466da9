//! Finds secrets in a stream of bytes and puts markers in their place.
//!
//! Every occurrence of every needle counts, also overlapping ones; ranges that share a byte become
//! one marker, touching ones stay apart. Invariant: the output is a function of the whole input and
//! the view, however the input is cut; what is held back is exactly what a later byte could still
//! make a secret. Danger: a clock or a flush that lets held bytes go; there is none.
//!
//! ```
//! use std::sync::Arc;
//! use strongroom::redact::{Index, Level, Others, Value, View, redact};
//! let index = Index::build([Value { id: 1, bytes: b"hunter2-hunter2-7Q" }]);
//! let view = View::new(&Arc::new(index), [(1, "DB_PASSWORD".into())].into(), Others::Unseen);
//! let text = redact(&Arc::new(view), Level::Values, b"login with hunter2-hunter2-7Q now");
//! assert_eq!(text, b"login with [REDACTED:DB_PASSWORD] now");
//! ```
#![forbid(unsafe_code)]

pub mod allow;
mod chain;
pub mod detect;
mod found;
mod index;
mod lens;
mod masks;
mod needle;
mod nested;
mod opaque;
mod part;
mod prefixed;
mod redactor;
mod strength;
mod variant;
mod windows;

use std::sync::Arc;

pub use index::{Index, Others, Value, View};
use lens::Search;
pub use opaque::{HEAD_BYTES, opaque};
use part::Text;
#[cfg(test)]
pub(crate) use redactor::tests::LOOKED;
pub use redactor::{BadState, Redactor, Sink};
use zeroize::Zeroizing;

pub use strength::{Weakness, unguessable, weakness};

/// What is looked for.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Values, known formats, and what looks random.
    #[default]
    All,
    /// Values and known formats.
    Formats,
    /// Nothing.
    Off,
    /// Values alone.
    Values,
}

impl Level {
    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Formats => "formats",
            Self::Off => "off",
            Self::Values => "values",
        }
    }
}

/// Overwrites bytes that stay allocated.
fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    // Whatever looks like a read keeps the writes; byte by byte they would cost as much as the search.
    std::hint::black_box(bytes);
}

struct Collect(Vec<u8>);

impl Sink for Collect {
    fn clear(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
    fn hidden(&mut self, _raw: &[u8]) {}
    fn marker(&mut self, text: &str, _raw_len: u64) {
        self.0.extend_from_slice(text.as_bytes());
    }
}

/// A whole text at once.
pub fn redact(view: &Arc<View>, level: Level, input: &[u8]) -> Vec<u8> {
    let mut out = Collect(Vec::with_capacity(input.len()));
    let mut redactor = Redactor::new(view.clone(), level);
    redactor.push(input, &mut out);
    redactor.finish(&mut out);
    out.0
}

/// The byte strings that stand for `value`: itself, and all forms in which it is looked for.
pub fn needles(value: &[u8]) -> Vec<Zeroizing<Vec<u8>>> {
    let mut all = Vec::new();
    needle::Maker::default().each(value, &mut |bytes, _| all.push(Zeroizing::new(bytes.to_vec())));
    all
}

/// Whether `text`, such as a file's name, contains a value that has a name in `view`.
pub fn contains(view: &View, text: &[u8]) -> bool {
    let mut found = Vec::new();
    let text = Text { bytes: text, from: 0, at: 0, end: true };
    view.plain().find(text, &mut |hit| found.push(hit));
    found.iter().any(|hit| view.name(hit.id).is_some())
}
