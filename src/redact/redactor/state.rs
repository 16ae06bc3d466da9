//! A redactor in bytes, for another process to go on with.
//!
//! Invariant: a state that no redactor saves is refused. Danger: it holds what is held, in clear.
#![forbid(unsafe_code)]

use std::sync::Arc;

use zeroize::Zeroizing;

use super::super::Level;
use super::super::detect::Open;
use super::super::found::{self, Found, Range, Reader};
use super::super::index::View;
use super::{CONTEXT_BYTES, Redactor};

/// The ones before had no tokens that wait, and no token in base64 that goes on.
const STATE_VERSION: u8 = 4;
const WITHOUT_WAITING: u8 = 3;
const OLDEST_STATE_VERSION: u8 = 2;
/// Longer streams do not exist.
const MAX_STREAM_BYTES: u64 = 1 << 60;

/// A saved state is none, or of another version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the saved state of a redactor does not parse")]
pub struct BadState;

impl Redactor {
    /// Everything that another process needs to go on; it contains what is held, in clear.
    pub fn save(&self) -> Zeroizing<Vec<u8>> {
        let cut = self.lead.saturating_sub(CONTEXT_BYTES);
        let text = &self.text[cut..];
        let size = 160 + text.len() + 128 * (self.hits.len() + 1);
        let mut out = Zeroizing::new(Vec::with_capacity(size));
        out.push(STATE_VERSION);
        out.push(u8::from(self.stretch(&self.text).is_escaped(cut)) | u8::from(self.quoted) << 1);
        for number in [
            self.base,
            self.emitted,
            self.detect_from,
            self.detect_open.to_bits(),
            text.len() as u64,
            (self.lead - cut) as u64,
            self.hits.len() as u64,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(text);
        self.hits.iter().for_each(|hit| hit.save(&mut out));
        out.push(u8::from(self.open.is_some()));
        if let Some(open) = &self.open {
            open.save(&mut out);
        }
        out.push(u8::from(self.rest.is_some()));
        if let Some((at, name)) = &self.rest {
            out.extend_from_slice(&at.to_le_bytes());
            found::save_name(name, &mut out);
        }
        for waiting in &self.waiting {
            out.push(u8::from(waiting.is_some()));
            if let Some(waiting) = waiting {
                waiting.save(&mut out);
            }
        }
        out
    }

    /// Goes on where another process was.
    ///
    /// # Errors
    /// [`BadState`].
    pub fn resume(view: Arc<View>, level: Level, state: &[u8]) -> Result<Self, BadState> {
        Self::load(view, level, state).ok_or(BadState)
    }

    fn load(view: Arc<View>, level: Level, state: &[u8]) -> Option<Self> {
        let mut from = Reader(state);
        let version = from.byte()?;
        if !(OLDEST_STATE_VERSION..=STATE_VERSION).contains(&version) {
            return None;
        }
        let flags = from.byte()?;
        let mut redactor = Self::new(view, level);
        redactor.odd = flags & 1 != 0;
        redactor.quoted = flags & 2 != 0;
        redactor.base = from.number()?;
        redactor.emitted = from.number()?;
        redactor.detect_from = from.number()?;
        redactor.detect_open = Open::from_bits(from.number()?)?;
        let len = usize::try_from(from.number()?).ok()?;
        redactor.lead = usize::try_from(from.number()?).ok()?;
        let hits = from.number()?;
        redactor.text.extend_from_slice(from.take(len)?);
        for _ in 0..hits {
            redactor.hits.push(Found::load(&mut from)?);
        }
        if from.byte()? != 0 {
            redactor.open = Some(Range::load(&mut from)?);
        }
        if version >= WITHOUT_WAITING && from.byte()? != 0 {
            redactor.rest = Some((from.number()?, from.name()?));
        }
        if version == STATE_VERSION {
            for waiting in &mut redactor.waiting {
                if from.byte()? != 0 {
                    *waiting = Some(Found::load(&mut from)?);
                }
            }
        }
        // What no redactor saves could make this one count wrongly later.
        let taken = redactor.base.checked_add(len.checked_sub(redactor.lead)? as u64)?;
        let is_possible = redactor.lead as u64 <= redactor.base
            && taken <= MAX_STREAM_BYTES
            && (redactor.base..=taken).contains(&redactor.emitted)
            && (redactor.base..=taken).contains(&redactor.detect_from)
            && redactor.rest.iter().all(|(at, _)| (redactor.base..=taken).contains(at))
            && redactor.hits.iter().all(|hit| hit.start < hit.end && hit.end <= taken)
            && redactor.waiting.iter().flatten().all(|token| {
                redactor.base <= token.start && token.start < token.end && token.end <= taken
            })
            && redactor
                .open
                .as_ref()
                .is_none_or(|open| open.start < open.end && open.end <= redactor.emitted);
        (is_possible && from.0.is_empty()).then_some(redactor)
    }
}
