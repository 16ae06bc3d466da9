//! The stream: takes input as it comes, gives output as soon as it is decided.
//!
//! What is kept of the input is what a needle or an unfinished token could still need; what is given
//! away of that already, inside a range whose end is open, is counted by `emitted`. Each push looks
//! at what is kept and what is new as one text, so that cuts leave no trace.
//!
//! A JSON text that parsed parses after: a backslash that a range would leave alone goes with it, and
//! a bare number becomes a string.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::Level;
use super::chain;
use super::detect::{self, Open};
use super::found::{self, Found, Grade, Range, Reader};
use super::index::View;
use super::lens::{self, Lens, Search};
use super::nested::{self, Nested};
use super::part::{Hit, Text};
use super::prefixed;

/// What a detector may look back.
const DETECTOR_BYTES: usize = 64;
/// What is kept of the bytes that are decided.
const CONTEXT_BYTES: usize = 288;
const _: () = assert!(CONTEXT_BYTES >= lens::REACH_BYTES && CONTEXT_BYTES >= DETECTOR_BYTES);
const _: () = assert!(CONTEXT_BYTES >= chain::REACH_BYTES);
const _: () = assert!(CONTEXT_BYTES > prefixed::PREFIX_BYTES_MAX);
/// Decided bytes beyond that are dropped when there are so many.
const SLACK_BYTES: usize = 1024;
/// Input is looked at in pieces of this size, which the processor's caches hold.
const PIECE_BYTES: usize = 16 << 10;
/// Deeper values of JSON are not looked at; within what is always at hand.
const MAX_INDENT: usize = 40;
/// The one before had no token in base64 that goes on.
const STATE_VERSION: u8 = 3;
const OLDEST_STATE_VERSION: u8 = 2;

/// Where output goes.
pub trait Sink {
    /// Bytes that pass.
    fn clear(&mut self, bytes: &[u8]);
    /// Bytes of a range that is hidden, in order, perhaps in pieces.
    fn hidden(&mut self, raw: &[u8]);
    /// What stands in the place of the `raw_len` bytes that were hidden since the last marker.
    fn marker(&mut self, text: &str, raw_len: u64);
}

/// Longer streams do not exist.
const MAX_STREAM_BYTES: u64 = 1 << 60;

/// A saved state is none, or of another version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the saved state of a redactor does not parse")]
pub struct BadState;

/// See the module.
pub struct Redactor {
    view: Arc<View>,
    level: Level,
    /// The last decided bytes, then from byte `lead` on those that are not.
    text: Zeroizing<Vec<u8>>,
    lead: usize,
    /// The stream's count of byte `lead`.
    base: u64,
    /// The run of backslashes that ends before `text` is odd.
    odd: bool,
    /// Byte `lead` is inside a string of JSON, as far as the line tells; kept while some value is a
    /// number.
    quoted: bool,
    /// Everything before this byte of the stream was given to the sink.
    emitted: u64,
    /// Given to the sink as hidden, and perhaps not at its end.
    open: Option<Range>,
    /// Where the detector goes on, and with what.
    detect_from: u64,
    detect_open: Open,
    /// What the detector found and is not given to the sink yet.
    hits: Vec<Found>,
    /// A token in base64 that has no known end goes on at this byte of the stream.
    rest: Option<(u64, Arc<str>)>,
    counts: BTreeMap<Arc<str>, u64>,
    watched: Option<Watched>,
    scratch: Scratch,
}

/// See [`Redactor::set_watched`].
struct Watched {
    view: Arc<View>,
    few: usize,
}

/// Room that is used again.
#[derive(Default)]
struct Scratch {
    hits: Vec<Hit>,
    found: Vec<Found>,
    marker: String,
    lens: Lens,
    nested: Nested,
    tokens: Vec<detect::Token>,
    detector: detect::Room,
}

impl Redactor {
    /// At the start of a stream.
    pub fn new(view: Arc<View>, level: Level) -> Self {
        Self {
            view,
            level,
            text: Zeroizing::default(),
            lead: 0,
            base: 0,
            odd: false,
            quoted: false,
            emitted: 0,
            open: None,
            detect_from: 0,
            detect_open: Open::default(),
            hits: Vec::new(),
            rest: None,
            counts: BTreeMap::new(),
            watched: None,
            scratch: Scratch::default(),
        }
    }

    /// Takes input.
    pub fn push(&mut self, input: &[u8], out: &mut dyn Sink) {
        if self.level == Level::Off {
            self.emitted += input.len() as u64;
            self.base = self.emitted;
            out.clear(input);
            return;
        }
        for piece in input.chunks(PIECE_BYTES) {
            let needed = self.text.len() + piece.len();
            if self.text.capacity() < needed {
                // A vector that grows by itself leaves its old bytes behind.
                let mut grown = Zeroizing::new(Vec::with_capacity(needed.max(512)));
                grown.extend_from_slice(&self.text);
                self.text = grown;
            }
            self.text.extend_from_slice(piece);
            self.advance(false, out);
        }
    }

    /// The stream has ended: what is held is decided.
    pub fn finish(&mut self, out: &mut dyn Sink) {
        if self.level != Level::Off {
            self.advance(true, out);
        }
    }

    /// Input bytes that were not given to the sink yet.
    pub fn held(&self) -> usize {
        usize::try_from(self.taken() - self.emitted).unwrap_or(0)
    }

    /// Those bytes.
    pub fn held_bytes(&self) -> &[u8] {
        &self.text[self.text.len() - self.held()..]
    }

    /// Bytes taken so far.
    pub fn taken(&self) -> u64 {
        self.base + (self.text.len() - self.lead) as u64
    }

    /// Whether the end that the sink has seen is inside a range whose marker is still to come.
    pub fn in_range(&self) -> bool {
        self.open.is_some()
    }

    /// What it looks for.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Looks with another view from now on, also at what is held.
    pub fn set_view(&mut self, view: Arc<View>) {
        self.view = view;
    }

    /// For output that somebody watches as it comes: what is held back then tells what is looked for.
    /// From now on only what `view` sees is held, and never fewer than `few` bytes; what was given
    /// away is still looked at, so that the rest of a value is hidden.
    pub fn set_watched(&mut self, view: Arc<View>, few: usize) {
        self.watched = Some(Watched { view, few });
    }

    /// How often each marker was written.
    pub fn counts(&self) -> impl Iterator<Item = (&str, u64)> {
        self.counts.iter().map(|(name, count)| (&**name, *count))
    }

    /// Forgets the counts, which were reported.
    pub fn clear_counts(&mut self) {
        self.counts.clear();
    }

    /// Whether a number at `at` may be a whole value of JSON, by what stands before it.
    fn is_scalar_place(&self, at: usize) -> bool {
        let mut indent = 0;
        for byte in self.text[..at].iter().rev() {
            match byte {
                b' ' if indent < MAX_INDENT => indent += 1,
                b':' | b',' | b'[' => return true,
                // An element of a list on a line of its own.
                b'\n' => return indent > 0,
                _ => return false,
            }
        }
        false
    }

    /// Whether a number at `at` is the first of all, so that it may be a document of JSON by itself.
    fn is_document_place(&self, at: usize) -> bool {
        self.base == self.lead as u64 && self.text[..at].iter().all(|b| *b == b' ')
    }

    /// Whether the byte at `at` is escaped: an odd run of backslashes ends before it.
    fn is_escaped(&self, at: usize) -> bool {
        let run = self.text[..at].iter().rev().take_while(|b| **b == b'\\').count();
        (run % 2 == 1) != (run == at && self.odd)
    }

    /// Whether the text at `to` is inside a string of JSON, known at `from`.
    fn is_quoted(&self, from: (usize, bool), to: usize) -> bool {
        let mut state = (from.1, self.is_escaped(from.0));
        for byte in &self.text[from.0..to] {
            state = follow(state, *byte);
        }
        state.0
    }

    /// Adds the values in the text to what is found; where undecided ones begin, and where whole ones
    /// that wait for the byte that follows them.
    fn values(&mut self, end: bool) -> (usize, usize) {
        let mut hits = std::mem::take(&mut self.scratch.hits);
        let at = self.base - self.lead as u64;
        let text = Text { bytes: &self.text, from: self.lead, at, end };
        let mut limit = self.text.len();
        let mut waiting = limit;
        let plain = self.view.plain();
        plain.find(text, &mut |hit| {
            if hit.end > text.bytes.len() {
                limit = limit.min(hit.start);
            } else {
                hits.push(hit);
            }
        });
        if end {
            hits.extend(plain.cut_off(&self.text, self.lead));
        } else {
            limit = limit.min(plain.open_from(&self.text, self.lead));
        }
        if !self.view.is_empty() {
            let lens = &mut self.scratch.lens;
            let wrapped = lens.wrapped(text, &plain, &mut |hit| hits.push(hit));
            limit = limit.min(wrapped);
            if let Some(lines) = self.view.lines() {
                limit = limit.min(lens.lines(text, &lines, &mut |hit| hits.push(hit)));
                limit = limit.min(self.view.find_prefixed(text, &mut |hit| hits.push(hit)));
            }
            lens.forget();
        }
        if self.level == Level::All {
            let look = nested::Look { search: &plain, detector: self.view.detector() };
            let tokens = &mut self.scratch.tokens;
            let nested = self.scratch.nested.find(text, look, &mut |found| match found {
                nested::Found::Hit(hit) => hits.push(hit),
                nested::Found::Token(token) => tokens.push(token),
            });
            limit = limit.min(nested);
        }
        if !end {
            // The byte before a range that may begin goes with it.
            if limit > self.lead && self.is_escaped(limit) {
                limit -= 1;
            }
        }
        hits.sort_unstable();
        let mut quoted = (self.lead, self.quoted);
        for hit in hits.drain(..) {
            let (mut start, mut stop, mut quote) = (hit.start, hit.end, false);
            if start > self.lead && self.is_escaped(start) {
                start -= 1;
            }
            if self.text[stop - 1] == b'\\' && self.is_escaped(stop) {
                match self.text.get(stop) {
                    Some(b'"' | b'\\') => stop += 1,
                    None if !end => waiting = waiting.min(start),
                    _ => {}
                }
            }
            if self.view.has_numbers()
                && self.text[start..stop].iter().all(u8::is_ascii_digit)
                && (self.is_scalar_place(start) || self.is_document_place(start))
            {
                quoted = (start, self.is_quoted(quoted, start));
                match self.text.get(stop) {
                    None if end => quote = self.is_document_place(start),
                    Some(b',' | b'}' | b']' | b'\n' | b'\r') => quote = !quoted.1,
                    None if !end => waiting = waiting.min(start),
                    _ => {}
                }
            }
            let found = Found {
                start: at + start as u64,
                end: at + stop as u64,
                grade: if hit.literal { Grade::Literal } else { Grade::Encoded },
                name: self.view.name(hit.id).cloned(),
                continues: false,
                quote,
            };
            self.scratch.found.push(found);
        }
        self.scratch.hits = hits;
        (limit.min(waiting), waiting)
    }

    /// Adds the tokens in base64 to what is found; where one goes on that has no known end. What goes on
    /// of those that begin here is returned with where they begin.
    fn tokens(&mut self, end: bool) -> (usize, Option<(u64, u64, Arc<str>)>) {
        let at = self.base - self.lead as u64;
        let from = self.rest.as_ref().map(|(from, _)| self.place(*from));
        let text = Text { bytes: &self.text, from: self.lead, at, end };
        let found = |start: usize, end: usize, name: &Arc<str>| Found {
            start: at + start as u64,
            end: at + end as u64,
            grade: Grade::Format,
            name: Some(name.clone()),
            continues: false,
            quote: false,
        };
        let mut limit = text.bytes.len();
        if let (Some(from), Some((place, name))) = (from, &mut self.rest) {
            let rest = chain::rest(text, from);
            if rest.end > from {
                self.hits.push(Found { continues: true, ..found(from, rest.end, name) });
            }
            *place = at + rest.end as u64;
            if rest.goes_on {
                limit = rest.end;
            } else {
                self.rest = None;
            }
        }
        let mut begun = None;
        for token in self.scratch.tokens.drain(..) {
            let end = token.end.unwrap_or_else(|| {
                let rest = chain::rest(text, token.start);
                if rest.goes_on {
                    limit = limit.min(rest.end);
                    begun.get_or_insert_with(|| {
                        (at + token.start as u64, at + rest.end as u64, token.rule.clone())
                    });
                }
                rest.end
            });
            self.scratch.found.push(found(token.start, end, &token.rule));
        }
        (limit, begun)
    }

    /// What may be shown of a text that is undecided from `from` on.
    fn shown(&mut self, from: usize, detected: usize, waiting: usize) -> usize {
        let len = self.text.len();
        let Some(watched) = self.watched.as_ref().filter(|_| from < len) else { return from };
        let (view, few) = (watched.view.clone(), watched.few);
        let mut limit = detected.min(waiting);
        let at = self.base - self.lead as u64;
        let text = Text { bytes: &self.text, from, at, end: false };
        let plain = view.plain();
        // The hits themselves are found already.
        plain.find(text, &mut |hit| {
            if hit.end > len {
                limit = limit.min(hit.start);
            }
        });
        limit = limit.min(plain.open_from(&self.text, from));
        if !view.is_empty() {
            let lens = &mut self.scratch.lens;
            limit = limit.min(lens.wrapped(text, &plain, &mut |_| {}));
            if let Some(lines) = view.lines() {
                limit = limit.min(lens.lines(text, &lines, &mut |_| {}));
                limit = limit.min(view.find_prefixed(text, &mut |_| {}));
            }
            lens.forget();
        }
        if limit > from && self.is_escaped(limit) {
            limit -= 1;
        }
        if len - limit < few { len } else { limit.max(from) }
    }

    /// Lets the detector go on; where undecided tokens begin.
    fn detect(&mut self, end: bool) -> usize {
        if self.level == Level::Values {
            self.detect_from = self.taken();
            return self.text.len();
        }
        let from = self.place(self.detect_from);
        let context = &self.text[from.saturating_sub(DETECTOR_BYTES)..from];
        let text = &self.text[from..];
        let (level, open) = (self.level, self.detect_open);
        let room = &mut self.scratch.detector;
        let scan = self.view.detector().scan(level, context, open, text, end, room);
        for hit in scan.hits {
            self.hits.push(Found {
                start: self.detect_from + hit.start as u64,
                end: self.detect_from + hit.end as u64,
                grade: match hit.grade {
                    detect::Grade::Entropy => Grade::Entropy,
                    detect::Grade::Keyword => Grade::Keyword,
                    detect::Grade::Format => Grade::Format,
                },
                name: Some(hit.rule),
                continues: hit.continues,
                quote: false,
            });
        }
        self.detect_open = scan.open;
        self.detect_from += scan.undecided as u64;
        from + scan.undecided
    }

    fn advance(&mut self, end: bool, out: &mut dyn Sink) {
        let (limit, waiting) = self.values(end);
        let (rest, begun) = self.tokens(end);
        let detected = self.detect(end).min(rest);
        let limit = limit.min(detected);
        let shown = if end { limit } else { self.shown(limit, detected, waiting) };
        let decided = self.base + (limit - self.lead) as u64;
        let limit = self.base + (shown - self.lead) as u64;
        if let Some((_, at, name)) = begun.filter(|(start, ..)| *start < limit) {
            self.rest.get_or_insert((at, name));
        }
        let mut all = std::mem::take(&mut self.scratch.found);
        // What is found in the text itself is found again while it is undecided.
        all.retain(|found| found.start < limit);
        all.append(&mut self.hits);
        let has_found = !all.is_empty();
        // What goes on with a range comes before what merely begins at its end.
        all.sort_by_key(|found| (found.start, !found.continues, found.end));
        for found in all.drain(..) {
            if found.start >= limit && !(found.continues && found.start == limit) {
                self.hits.push(found);
                continue;
            }
            match &mut self.open {
                Some(open) if open.meets(&found) => open.merge(&found),
                // Was given away before; nothing new.
                _ if found.end <= self.emitted => continue,
                _ => {
                    self.close(out);
                    self.clear_to(found.start, out);
                    let start = found.start.max(self.emitted);
                    self.open = Some(Range::new(&Found { start, ..found }));
                }
            }
            let reached = self.open.as_ref().map_or(self.emitted, |open| open.end);
            self.hide_to(reached, out);
        }
        self.scratch.found = all;
        let goes_on = |open: &Range| {
            let is_rest = self.rest.as_ref().is_some_and(|(at, _)| *at == open.end);
            let more = open.end == limit && (self.detect_open.is_hit() || is_rest);
            open.end > limit || (more && !end)
        };
        if !self.open.as_ref().is_some_and(goes_on) {
            self.close(out);
            self.clear_to(limit, out);
        }
        self.decide_to(decided, has_found);
    }

    /// Where byte `position` of the stream is in the text.
    fn place(&self, position: u64) -> usize {
        let offset = usize::try_from(position.saturating_sub(self.base)).unwrap_or(usize::MAX);
        self.lead.saturating_add(offset).min(self.text.len())
    }

    fn piece(&self, from: u64, to: u64) -> &[u8] {
        &self.text[self.place(from)..self.place(to)]
    }

    fn clear_to(&mut self, to: u64, out: &mut dyn Sink) {
        if to > self.emitted {
            out.clear(self.piece(self.emitted, to));
            self.emitted = to;
        }
    }

    fn hide_to(&mut self, to: u64, out: &mut dyn Sink) {
        if to > self.emitted {
            out.hidden(self.piece(self.emitted, to));
            self.emitted = to;
        }
    }

    fn close(&mut self, out: &mut dyn Sink) {
        if let Some(range) = self.open.take() {
            self.scratch.marker.clear();
            range.marker(&mut self.scratch.marker);
            out.marker(&self.scratch.marker, range.end - range.start);
            match self.counts.get_mut(range.name()) {
                Some(count) => *count += 1,
                None => drop(self.counts.insert(range.name().into(), 1)),
            }
        }
    }

    /// Everything before `to` is decided.
    fn decide_to(&mut self, to: u64, has_found: bool) {
        let lead = self.place(to);
        if self.view.has_numbers() {
            self.quoted = self.is_quoted((self.lead, self.quoted), lead);
        } else {
            self.quoted = false;
        }
        self.base += (lead - self.lead) as u64;
        self.lead = lead;
        let cut = lead.saturating_sub(CONTEXT_BYTES);
        // What was hidden does not stay longer than it must.
        if cut > SLACK_BYTES || has_found {
            self.odd = self.is_escaped(cut);
            let rest = self.text.len() - cut;
            self.text.copy_within(cut.., 0);
            super::wipe(&mut self.text[rest..]);
            self.text.truncate(rest);
            self.lead -= cut;
        }
    }

    /// Everything that another process needs to go on; it contains what is held, in clear.
    pub fn save(&self) -> Zeroizing<Vec<u8>> {
        let cut = self.lead.saturating_sub(CONTEXT_BYTES);
        let text = &self.text[cut..];
        let size = 160 + text.len() + 128 * (self.hits.len() + 1);
        let mut out = Zeroizing::new(Vec::with_capacity(size));
        out.push(STATE_VERSION);
        out.push(u8::from(self.is_escaped(cut)) | u8::from(self.quoted) << 1);
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
        if version == STATE_VERSION && from.byte()? != 0 {
            redactor.rest = Some((from.number()?, from.name()?));
        }
        // What no redactor saves could make this one count wrongly later.
        let taken = redactor.base.checked_add(len.checked_sub(redactor.lead)? as u64)?;
        let is_possible = redactor.lead as u64 <= redactor.base
            && taken <= MAX_STREAM_BYTES
            && (redactor.base..=taken).contains(&redactor.emitted)
            && (redactor.base..=taken).contains(&redactor.detect_from)
            && redactor.rest.iter().all(|(at, _)| (redactor.base..=taken).contains(at))
            && redactor.hits.iter().all(|hit| hit.start < hit.end && hit.end <= taken)
            && redactor
                .open
                .as_ref()
                .is_none_or(|open| open.start < open.end && open.end <= redactor.emitted);
        (is_possible && from.0.is_empty()).then_some(redactor)
    }
}

/// One byte further in a line of JSON: whether in a string, and whether the next byte is escaped.
fn follow((quoted, escaped): (bool, bool), byte: u8) -> (bool, bool) {
    match byte {
        b'\n' => (false, false),
        b'\\' => (quoted, !escaped),
        b'"' if !escaped => (!quoted, false),
        _ => (quoted, false),
    }
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redactor").field("held", &self.held()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Collect, Index, Others, Value, redact};
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn view(values: &[&[u8]]) -> Arc<View> {
        let index = Index::build(values.iter().zip(0..).map(|(bytes, id)| Value { id, bytes }));
        let names = (0..).zip(values).map(|(id, _)| (id, format!("N{id}").into())).collect();
        Arc::new(View::new(&Arc::new(index), names, Others::Unseen))
    }

    fn in_pieces(
        view: &Arc<View>,
        level: Level,
        text: &[u8],
        pieces: &[usize],
        save: bool,
    ) -> Vec<u8> {
        let mut redactor = Redactor::new(view.clone(), level);
        let mut out = Collect(Vec::new());
        let (mut at, mut turn) = (0, 0);
        while at < text.len() {
            let len = pieces[turn % pieces.len()].min(text.len() - at);
            redactor.push(&text[at..at + len], &mut out);
            assert!(redactor.held() <= view.longest().max(600) + 1);
            if save {
                let state = redactor.save();
                redactor = Redactor::resume(view.clone(), level, &state).unwrap();
            }
            at += len;
            turn += 1;
        }
        redactor.finish(&mut out);
        assert_eq!(redactor.held(), 0);
        out.0
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(
            std::env::var("STRONGROOM_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(5_000)
        ))]

        #[test]
        fn output_does_not_depend_on_cuts_at_any_level(
            text in "[ -~\n]{0,200}(sk-proj-[A-Za-z0-9]{40}|password=[A-Za-z0-9+/]{30}|ghp_[A-Za-z0-9]{36}|[A-Za-z0-9+/]{70})?[ -~\n]{0,60}",
            pieces in proptest::collection::vec(1..30_usize, 1..6),
            save in any::<bool>(),
        ) {
            let view = view(&[b"Zk8Wq2LmN5rT7yU0pX3c"]);
            for level in [Level::All, Level::Formats] {
                let whole = redact(&view, level, text.as_bytes());
                let cut = in_pieces(&view, level, text.as_bytes(), &pieces, save);
                prop_assert_eq!(
                    String::from_utf8_lossy(&cut).into_owned(),
                    String::from_utf8_lossy(&whole).into_owned()
                );
                let again = redact(&view, level, &whole);
                prop_assert_eq!(
                    String::from_utf8_lossy(&again).into_owned(),
                    String::from_utf8_lossy(&whole).into_owned()
                );
            }
        }
    }

    #[test]
    fn a_guess_after_an_escape_does_not_depend_on_cuts() {
        let random = "+0A0a0a0AA+cAeb1BB+Bda+PbC0afa+b+gHCEh+iIDc++1+1jR+/++F+Jk2cKLG+M3lSm";
        let view = Arc::new(View::empty());
        for lead in
            ["x[%A0", "x;%A0", "x\\u003d", "x\\x3d", "x\\n", "x\u{1b}[31m", "[31", "%A0", ";"]
        {
            let text = format!("some text {lead}{random} and on");
            let whole = redact(&view, Level::All, text.as_bytes());
            for first in 1..text.len() {
                for save in [false, true] {
                    let cut = in_pieces(&view, Level::All, text.as_bytes(), &[first, 1, 300], save);
                    assert_eq!(
                        String::from_utf8_lossy(&cut),
                        String::from_utf8_lossy(&whole),
                        "{first} {text}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_finished_line_is_out_at_once_and_nothing_more_than_needed_is_held() {
        let view = view(&[b"Zk8Wq2LmN5rT7yU0pX3c"]);
        let mut redactor = Redactor::new(view, Level::All);
        let mut out = Collect(Vec::new());
        redactor.push(b"an ordinary line of a log\n", &mut out);
        assert_eq!((redactor.held(), out.0.len()), (0, 26));
        redactor.push(b"key: Zk8W", &mut out);
        assert_eq!(redactor.held(), 4);
        redactor.push(b"x and on\n", &mut out);
        assert_eq!(redactor.held(), 0);
        assert!(out.0.ends_with(b"key: Zk8Wx and on\n"));
    }

    #[test]
    fn what_is_not_seen_changes_neither_output_nor_what_is_held() {
        let foreign = b"4711-0815-0042".as_slice();
        let own = b"Zk8Wq2LmN5rT7yU0pX3c".as_slice();
        let index =
            Arc::new(Index::build([(0, own), (1, foreign)].map(|(id, bytes)| Value { id, bytes })));
        let names: HashMap<_, Arc<str>> = [(0, "OWN".into())].into();
        let unseen = Arc::new(View::new(&index, names.clone(), Others::Unseen));
        let unnamed = Arc::new(View::new(&index, names, Others::Unnamed));
        let text = [b"x ", foreign, b" y ", own].concat();
        assert_eq!(redact(&unseen, Level::Values, &text), b"x 4711-0815-0042 y [REDACTED:OWN]");
        assert_eq!(redact(&unnamed, Level::Values, &text), b"x [REDACTED] y [REDACTED:OWN]");
        let alone = view(&[own]);
        for cut in 1..foreign.len() {
            let held = |view: &Arc<View>| {
                let mut redactor = Redactor::new(view.clone(), Level::Values);
                redactor.push(&foreign[..cut], &mut Collect(Vec::new()));
                redactor.held()
            };
            assert_eq!(held(&unseen), held(&alone), "{cut}");
            // The rule for an end that was cut off tells of one's own values alone.
            let end = redact(&unnamed, Level::Values, &foreign[..cut]);
            assert_eq!(end, &foreign[..cut]);
        }
    }

    #[test]
    fn a_value_that_comes_later_is_found_in_what_is_held() {
        let first = Arc::new(Index::build([Value { id: 0, bytes: b"Zk8Wq2LmN5rT7yU0pX3c" }]));
        let names: HashMap<u32, Arc<str>> = [(0, "A".into()), (1, "B".into())].into();
        let mut redactor = Redactor::new(
            Arc::new(View::new(&first, names.clone(), Others::Unseen)),
            Level::Values,
        );
        let mut out = Collect(Vec::new());
        redactor.push(b"Zk8Wq2LmN5", &mut out);
        let both = first.with([Value { id: 1, bytes: b"Wq2LmN5-other" }]);
        redactor.set_view(Arc::new(View::new(&Arc::new(both), names.clone(), Others::Unseen)));
        redactor.push(b"-other", &mut out);
        redactor.finish(&mut out);
        assert_eq!(String::from_utf8_lossy(&out.0), "Zk8[REDACTED:B]");
        let without = first.with([Value { id: 1, bytes: b"Wq2LmN5-other" }]).without(&[0]);
        let view = Arc::new(View::new(&Arc::new(without), names, Others::Unseen));
        let text = b"Zk8Wq2LmN5rT7yU0pX3c Wq2LmN5-other";
        assert_eq!(redact(&view, Level::Values, text), b"Zk8Wq2LmN5rT7yU0pX3c [REDACTED:B]");
    }

    #[test]
    fn where_somebody_watches_only_what_is_named_is_held_and_the_rest_of_others_is_hidden() {
        let foreign = b"Vq7Jx3Lm9Tz2Rw5Yb8Nc".as_slice();
        let longer = [foreign, b"-and-its-tail"].concat();
        let own = b"Zk8Wq2LmN5rT7yU0pX3c".as_slice();
        let values = [(0, own), (1, foreign), (2, &longer[..])];
        let index = Arc::new(Index::build(values.map(|(id, bytes)| Value { id, bytes })));
        let names: HashMap<_, Arc<str>> = [(0, "OWN".into())].into();
        let full = Arc::new(View::new(&index, names.clone(), Others::Unnamed));
        let named = Arc::new(View::new(&index, names, Others::Unseen));
        let watch = |few: usize, pieces: &[&[u8]]| {
            let mut redactor = Redactor::new(full.clone(), Level::Values);
            let mut out = Collect(Vec::new());
            let mut held = Vec::new();
            for piece in pieces {
                redactor.set_watched(named.clone(), few);
                redactor.push(piece, &mut out);
                held.push(redactor.held());
                let state = redactor.save();
                redactor = Redactor::resume(full.clone(), Level::Values, &state).unwrap();
            }
            redactor.finish(&mut out);
            (held, String::from_utf8(out.0).unwrap())
        };
        for cut in 1..foreign.len() {
            let (held, text) = watch(0, &[&foreign[..cut], &foreign[cut..], b" x"]);
            let mut alone = Redactor::new(named.clone(), Level::Values);
            alone.push(&foreign[..cut], &mut Collect(Vec::new()));
            assert_eq!(held[0], alone.held(), "nothing tells that {cut} bytes were right");
            let shown = String::from_utf8_lossy(&foreign[..cut - held[0]]).into_owned();
            assert_eq!(text, format!("{shown}[REDACTED] x"));
        }
        // A whole one does not pass because a longer one could follow.
        assert_eq!(watch(0, &[foreign, b" x"]), (vec![0, 0], "[REDACTED] x".to_owned()));
        let (_, text) = watch(0, &[foreign, b"-and-its-", b"tail x"]);
        assert_eq!(text, "[REDACTED]-and-its-[REDACTED] x");
        let (held, text) = watch(0, &[&own[..1], &own[1..9], &own[9..]]);
        assert_eq!((held, text.as_str()), (vec![1, 9, 0], "[REDACTED:OWN]"));
        // Each key that is typed is seen at once, until too much of a value has come.
        let keys: Vec<&[u8]> = own.chunks(1).collect();
        let (held, text) = watch(4, &keys);
        assert_eq!(held[..5], [0, 0, 0, 1, 2]);
        assert_eq!(text, "Zk8[REDACTED:OWN]");
    }

    #[test]
    fn states_that_are_none_are_refused() {
        let view = view(&[b"Zk8Wq2LmN5rT7yU0pX3c"]);
        let mut redactor = Redactor::new(view.clone(), Level::All);
        redactor.push(b"x Zk8Wq2", &mut Collect(Vec::new()));
        let state = redactor.save();
        for len in 0..state.len() {
            assert!(Redactor::resume(view.clone(), Level::All, &state[..len]).is_err(), "{len}");
        }
        assert!(Redactor::resume(view, Level::All, &state).is_ok());
    }
}
