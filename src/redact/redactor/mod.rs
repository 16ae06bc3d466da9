//! The stream: takes input as it comes, gives output as soon as it is decided.
//!
//! What is kept of the input is what a needle or an unfinished token could still need; what is given
//! away of that already, inside a range whose end is open, is counted by `emitted`. Each push looks
//! at what is kept and what is new as one text, so that cuts leave no trace.
//!
//! A JSON text that parsed parses after: a backslash that a range would leave alone goes with it, and
//! a bare number becomes a string.
#![forbid(unsafe_code)]

mod allowing;
#[cfg(test)]
mod dense;
mod foreign;
mod state;
mod stretch;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::Level;
use super::chain;
use super::detect::{self, Open};
use super::found::{Found, Grade, Range};
use super::index::View;
use super::lens::{self, Lens, Search};
use super::needle::reserve;
use super::nested::{self, Nested};
use super::part::Hit;
use super::prefixed;
pub use state::BadState;
use stretch::Stretch;

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
const PIECE_BYTES: usize = 32 << 10;
/// Input of this size is looked at where it is, but for what is next to the bytes that are kept.
const LARGE_BYTES: usize = 4 << 10;
const JOINED_BYTES: usize = 1 << 10;

/// Where output goes.
pub trait Sink {
    /// Bytes that pass.
    fn clear(&mut self, bytes: &[u8]);
    /// Bytes of a range that is hidden, in order, perhaps in pieces.
    fn hidden(&mut self, raw: &[u8]);
    /// What stands in the place of the `raw_len` bytes that were hidden since the last marker.
    fn marker(&mut self, text: &str, raw_len: u64);
}

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
    /// Tokens that may be allowed, as far as they are known.
    waiting: [Option<Found>; allowing::TRACKS],
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
            waiting: [None, None],
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
        let mut at = 0;
        while at < input.len() {
            let is_large = input.len() - at >= LARGE_BYTES;
            let kept = self.text.len() - self.lead.saturating_sub(CONTEXT_BYTES);
            if is_large && kept <= at {
                return self.look_through(input, at, kept, out);
            }
            let most = if is_large { JOINED_BYTES.max(kept) } else { PIECE_BYTES };
            let piece = &input[at..input.len().min(at + most.min(PIECE_BYTES))];
            at += piece.len();
            self.keep(piece);
            self.look_at_kept(false, out);
        }
    }

    fn look_at_kept(&mut self, end: bool, out: &mut dyn Sink) {
        // The vector alone: to wipe an empty one costs a quarter of a small write.
        let mut text = std::mem::take(&mut *self.text);
        let has_found = self.advance(self.stretch(&text), end, out);
        // What was hidden does not stay longer than it must.
        if has_found || self.lead > CONTEXT_BYTES + SLACK_BYTES {
            let cut = self.cut(&text);
            let rest = text.len() - cut;
            text.copy_within(cut.., 0);
            super::wipe(&mut text[rest..]);
            text.truncate(rest);
        }
        *self.text = text;
    }

    /// Looks at the input from `at` on where it is; the `kept` bytes before are those that are kept.
    fn look_through(&mut self, input: &[u8], mut at: usize, kept: usize, out: &mut dyn Sink) {
        let mut start = at - kept;
        let text = std::mem::take(&mut self.text);
        self.cut(&text);
        while at < input.len() {
            at = input.len().min(at + PIECE_BYTES);
            let text = &input[start..at];
            self.advance(self.stretch(text), false, out);
            start += self.cut(text);
        }
        self.text = text;
        super::wipe(&mut self.text);
        self.text.clear();
        self.keep(&input[start..]);
    }

    /// Goes on without what is not looked at again; how many of `text` that are.
    fn cut(&mut self, text: &[u8]) -> usize {
        let cut = self.lead.saturating_sub(CONTEXT_BYTES);
        self.odd = self.stretch(text).is_escaped(cut);
        self.lead -= cut;
        cut
    }

    /// Adds to what is kept.
    fn keep(&mut self, more: &[u8]) {
        reserve(&mut self.text, more.len());
        self.text.extend_from_slice(more);
    }

    /// All from the first byte on that is kept.
    fn stretch<'a>(&self, bytes: &'a [u8]) -> Stretch<'a> {
        Stretch { bytes, lead: self.lead, at: self.base - self.lead as u64, odd: self.odd }
    }

    /// The stream has ended: what is held is decided.
    pub fn finish(&mut self, out: &mut dyn Sink) {
        if self.level != Level::Off {
            self.look_at_kept(true, out);
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

    /// The last bytes that were taken, as far as they are kept.
    pub fn kept_bytes(&self) -> &[u8] {
        &self.text
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

    /// Looks for values once more in the last `len` bytes, as far as they are kept, and decides nothing:
    /// for what takes as long whether they were decided before or not.
    pub fn look_again(&mut self, len: usize) {
        if self.level == Level::Off {
            return;
        }
        let text = std::mem::take(&mut *self.text);
        let lead = text.len().saturating_sub(len);
        self.values(Stretch { lead, ..self.stretch(&text) }, false);
        self.scratch.found.clear();
        self.scratch.tokens.clear();
        *self.text = text;
    }

    /// How often each marker was written.
    pub fn counts(&self) -> impl Iterator<Item = (&str, u64)> {
        self.counts.iter().map(|(name, count)| (&**name, *count))
    }

    /// Forgets the counts, which were reported.
    pub fn clear_counts(&mut self) {
        self.counts.clear();
    }

    /// Adds the values in the text to what is found; where undecided ones begin, and where whole ones
    /// that wait for the byte that follows them.
    fn values(&mut self, stretch: Stretch<'_>, end: bool) -> (usize, usize) {
        let mut hits = std::mem::take(&mut self.scratch.hits);
        // Made anew each time: to copy what was just written stalls the processor.
        let text = || stretch.text(stretch.lead, end);
        let (bytes, lead) = (stretch.bytes, stretch.lead);
        #[cfg(test)]
        tests::LOOKED.set(tests::LOOKED.get() + bytes.len() - lead);
        let mut limit = bytes.len();
        let mut waiting = limit;
        let plain = self.view.plain();
        plain.find(text(), &mut |hit| {
            if hit.end > bytes.len() {
                limit = limit.min(hit.start);
            } else {
                hits.push(hit);
            }
        });
        if end {
            hits.extend(plain.cut_off(bytes, lead));
        } else {
            limit = limit.min(plain.open_from(bytes, lead));
        }
        if !self.view.is_empty() {
            let lens = &mut self.scratch.lens;
            let wrapped = lens.wrapped(text(), &plain, &mut |hit| hits.push(hit));
            limit = limit.min(wrapped);
            if let Some(lines) = self.view.lines() {
                limit = limit.min(lens.lines(text(), &lines, &mut |hit| hits.push(hit)));
                limit = limit.min(self.view.find_prefixed(text(), &mut |hit| hits.push(hit)));
            }
            lens.forget();
        }
        if self.level == Level::All {
            let (detector, made_of) = (self.view.detector(), self.view.made_of());
            let look = nested::Look { search: &plain, detector, made_of };
            let tokens = &mut self.scratch.tokens;
            let nested = self.scratch.nested.find(text(), look, &mut |found| match found {
                nested::Found::Hit(hit) => hits.push(hit),
                nested::Found::Token(token) => tokens.push(token),
            });
            limit = limit.min(nested);
        }
        if !end {
            // The byte before a range that may begin goes with it.
            if limit > lead && stretch.is_escaped(limit) {
                limit -= 1;
            }
        }
        hits.sort_unstable();
        let mut quoted = (lead, self.quoted);
        for hit in hits.drain(..) {
            let (mut start, mut stop, mut quote) = (hit.start, hit.end, false);
            if start > lead && stretch.is_escaped(start) {
                start -= 1;
            }
            if bytes[stop - 1] == b'\\' && stretch.is_escaped(stop) {
                match bytes.get(stop) {
                    Some(b'"' | b'\\') => stop += 1,
                    None if !end => waiting = waiting.min(start),
                    _ => {}
                }
            }
            if self.view.has_numbers()
                && bytes[start..stop].iter().all(u8::is_ascii_digit)
                && (stretch.is_scalar_place(start) || stretch.is_document_place(start))
            {
                quoted = (start, stretch.is_quoted(quoted, start));
                match bytes.get(stop) {
                    None if end => quote = stretch.is_document_place(start),
                    Some(b',' | b'}' | b']' | b'\n' | b'\r') => quote = !quoted.1,
                    None if !end => waiting = waiting.min(start),
                    _ => {}
                }
            }
            let found = Found {
                start: stretch.position(start),
                end: stretch.position(stop),
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
    fn tokens(&mut self, stretch: Stretch<'_>, end: bool) -> (usize, Option<(u64, u64, Arc<str>)>) {
        let text = stretch.text(stretch.lead, end);
        let found = |start: usize, end: usize, name: &Arc<str>| Found {
            start: stretch.position(start),
            end: stretch.position(end),
            grade: Grade::Format,
            name: Some(name.clone()),
            continues: false,
            quote: false,
        };
        let mut limit = text.bytes.len();
        if let Some((place, name)) = &mut self.rest {
            let from = stretch.place(*place);
            let rest = chain::rest(text, from);
            if rest.end > from {
                self.hits.push(Found { continues: true, ..found(from, rest.end, name) });
            }
            *place = stretch.position(rest.end);
            if rest.goes_on {
                limit = rest.end;
            } else {
                self.rest = None;
            }
        }
        // The first in the text: of those that are undecided, which are found again, the last line's
        // come first.
        let mut begun: Option<(u64, u64, Arc<str>)> = None;
        for token in self.scratch.tokens.drain(..) {
            let end = token.end.unwrap_or_else(|| {
                let rest = chain::rest(text, token.start);
                if rest.goes_on {
                    limit = limit.min(rest.end);
                    let [at, to] = [token.start, rest.end].map(|place| stretch.position(place));
                    if begun.as_ref().is_none_or(|(first, ..)| at < *first) {
                        begun = Some((at, to, token.rule.clone()));
                    }
                }
                rest.end
            });
            self.scratch.found.push(found(token.start, end, &token.rule));
        }
        (limit, begun)
    }

    /// What may be shown of a text that is undecided from `from` on.
    fn shown(
        &mut self,
        stretch: Stretch<'_>,
        from: usize,
        detected: usize,
        waiting: usize,
    ) -> usize {
        let len = stretch.bytes.len();
        let Some(watched) = self.watched.as_ref().filter(|_| from < len) else { return from };
        let (view, few) = (watched.view.clone(), watched.few);
        // The hits themselves are found already.
        let open = foreign::undecided(self, &view, stretch.text(from, false), &mut |_, _| {});
        let mut limit = detected.min(waiting).min(open);
        if limit > from && stretch.is_escaped(limit) {
            limit -= 1;
        }
        if len - limit < few { len } else { limit.max(from) }
    }

    /// Lets the detector go on; where undecided tokens begin.
    fn detect(&mut self, stretch: Stretch<'_>, end: bool) -> usize {
        if self.level == Level::Values {
            self.detect_from = stretch.position(stretch.bytes.len());
            return stretch.bytes.len();
        }
        let from = stretch.place(self.detect_from);
        let context = &stretch.bytes[from.saturating_sub(DETECTOR_BYTES)..from];
        let text = &stretch.bytes[from..];
        let (level, open) = (self.level, self.detect_open);
        let room = &mut self.scratch.detector;
        let scan = self.view.detector().scan(level, context, open, text, end, room);
        let detect_from = self.detect_from;
        let found = scan.hits.into_iter().map(|hit| Found {
            start: detect_from + hit.start as u64,
            end: detect_from + hit.end as u64,
            grade: match hit.grade {
                detect::Grade::Entropy => Grade::Entropy,
                detect::Grade::Keyword => Grade::Keyword,
                detect::Grade::Format => Grade::Format,
            },
            name: Some(hit.rule),
            continues: hit.continues,
            quote: false,
        });
        let waiting = self.sift(stretch, found, scan.open.hits());
        self.detect_open = scan.open;
        self.detect_from += scan.undecided as u64;
        waiting.min(from + scan.undecided)
    }

    /// Decides what can be; whether anything is to be hidden.
    fn advance(&mut self, stretch: Stretch<'_>, end: bool, out: &mut dyn Sink) -> bool {
        let (limit, waiting) = self.values(stretch, end);
        let (rest, begun) = self.tokens(stretch, end);
        let detected = self.detect(stretch, end).min(rest);
        let limit = limit.min(detected);
        let shown = if end { limit } else { self.shown(stretch, limit, detected, waiting) };
        let decided = limit;
        let limit = stretch.position(shown);
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
                    self.clear_to(stretch, found.start, out);
                    let start = found.start.max(self.emitted);
                    self.open = Some(Range::new(&Found { start, ..found }));
                }
            }
            let reached = self.open.as_ref().map_or(self.emitted, |open| open.end);
            self.hide_to(stretch, reached, out);
        }
        self.scratch.found = all;
        let goes_on = |open: &Range| {
            let is_rest = self.rest.as_ref().is_some_and(|(at, _)| *at == open.end);
            let more = open.end == limit && (self.detect_open.is_hit() || is_rest);
            open.end > limit || (more && !end)
        };
        if !self.open.as_ref().is_some_and(goes_on) {
            self.close(out);
            self.clear_to(stretch, limit, out);
        }
        self.quoted =
            self.view.has_numbers() && stretch.is_quoted((stretch.lead, self.quoted), decided);
        self.base = stretch.position(decided);
        self.lead = decided;
        has_found
    }

    fn clear_to(&mut self, stretch: Stretch<'_>, to: u64, out: &mut dyn Sink) {
        if to > self.emitted {
            out.clear(stretch.piece(self.emitted, to));
            self.emitted = to;
        }
    }

    fn hide_to(&mut self, stretch: Stretch<'_>, to: u64, out: &mut dyn Sink) {
        if to > self.emitted {
            out.hidden(stretch.piece(self.emitted, to));
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
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redactor").field("held", &self.held()).finish_non_exhaustive()
    }
}
