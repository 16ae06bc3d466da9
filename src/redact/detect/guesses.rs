//! What looks random: alone if it is long base64, and shorter after a word that tells.
//!
//! Base64 is judged in blocks of [`BLOCK_BYTES`]; once a block is random all that follows without a
//! break goes with it, and is swallowed. Invariant: as for formats, the outcome is a function of the
//! text alone. Nothing is looked for inside armour, where keys are found and certificates stand.
#![forbid(unsafe_code)]

use super::class::{
    self, BACK_BYTES, OF_ANY_BASE64, OF_BODY, OF_DIGIT, OF_PERCENT, Run, Text, is_any_base64,
    is_token,
};
use super::label::{self, Label};
use super::quick::{self, Quick};
use super::random::{self, ENTROPY_BYTES_MIN, KEYWORD_BYTES_MIN};
use super::{Detector, Look};
use crate::redact::masks::bits;

/// So many bytes of a run are judged as one, and held back for it at most.
pub(super) const BLOCK_BYTES: usize = 256;
/// So many bytes of a value after a word decide.
const VALUE_BYTES: usize = 128;

/// How a run goes on after a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Going {
    /// A guess ends after so many bytes.
    Count(usize, Kind),
    /// Nothing goes on.
    #[default]
    None,
    /// A guess goes on to the end of its class.
    Rest(Kind),
    /// So many bytes were judged already.
    Skip(usize),
    /// The rest of the run is public.
    SkipRun,
}

/// Why something is a guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Entropy,
    Keyword,
}

/// A judged part of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub start: usize,
    pub end: usize,
    /// None: it is no secret.
    pub kind: Option<Kind>,
    pub continues: bool,
    going: Going,
}

impl Part {
    /// How it goes on after a cut at `at`, inside it.
    pub(super) fn cut(&self, at: usize) -> Going {
        match self.going {
            Going::Count(_, kind) => Going::Count(self.end - at, kind),
            Going::Skip(_) => Going::Skip(self.end - at),
            going => going,
        }
    }
}

/// What was judged, and how it goes on.
pub(super) struct Guesses {
    pub parts: Vec<Part>,
    pub undecided: usize,
    pub open: Going,
}

/// What may be in a run.
#[derive(Clone, Copy)]
struct Ways {
    /// An escape.
    may_escape: bool,
    /// Base64 that is long enough to be judged.
    may_be_long: bool,
    /// What begins there is judged another time.
    limit: usize,
}

fn in_rest(kind: Kind, byte: u8) -> bool {
    match kind {
        Kind::Entropy => is_any_base64(byte) || byte == b'=',
        Kind::Keyword => is_token(byte),
    }
}

impl Guesses {
    fn put(&mut self, start: usize, end: usize, kind: Option<Kind>, going: Going) {
        if end > start {
            self.parts.push(Part { start, end, kind, continues: false, going });
        }
    }

    /// Takes up what went on at the start; where to go on, or nothing more is known.
    fn take_up(&mut self, text: &Text<'_>, going: Going) -> Option<usize> {
        let bytes = text.bytes;
        let rest = |kind| bytes.iter().take_while(|b| in_rest(kind, **b)).count();
        let (end, kind, open) = match going {
            Going::None => return Some(0),
            Going::Count(count, kind) if count > bytes.len() => {
                (bytes.len(), Some(kind), Some(Going::Count(count - bytes.len(), kind)))
            }
            Going::Count(count, kind) => (count, Some(kind), None),
            Going::Rest(kind) => {
                let end = rest(kind);
                (end, Some(kind), Some(going).filter(|_| end == bytes.len()))
            }
            Going::Skip(count) => {
                let end = bytes.iter().take(count).take_while(|b| is_any_base64(**b)).count();
                let left = count - end;
                (end, None, Some(Going::Skip(left)).filter(|_| end == bytes.len() && left > 0))
            }
            Going::SkipRun => {
                let end = rest(Kind::Entropy);
                (end, None, Some(going).filter(|_| end == bytes.len()))
            }
        };
        if end > 0 {
            self.parts.push(Part { start: 0, end, kind, continues: true, going });
        }
        match open {
            Some(open) if !text.end => {
                self.open = open;
                self.undecided = end;
                None
            }
            _ => Some(end),
        }
    }
}

impl Detector {
    /// Goes through all of the text up to `limit`, but for the `quiet` ranges.
    pub(super) fn guesses(
        &self,
        look: Look<'_>,
        quick: &[Option<Quick>],
        quiet: &[(usize, usize)],
        limit: usize,
        going: Going,
    ) -> Guesses {
        let Look { text, runs, marks, .. } = look;
        let mut found =
            Guesses { parts: Vec::new(), undecided: text.bytes.len(), open: Going::None };
        let Some(mut at) = found.take_up(text, going) else { return found };
        let mut quiet = quiet.iter().peekable();
        for (run, quick) in runs.iter().zip(quick) {
            while quiet.next_if(|(_, end)| *end <= run.start.max(at)).is_some() {}
            if let Some(quick) = quick
                && at <= run.start
                && run.end <= limit
                && quick::is_short(run)
                && quiet.peek().is_none_or(|(start, _)| *start >= run.end)
            {
                // No escape stands at its start.
                if quick.keywords != 0 && !self.guess_quick(look, run, *quick, &mut found) {
                    return found;
                }
                continue;
            }
            let may_open = run.may_open(text);
            let start = if may_open { text.token_start(run.start, run.end) } else { run.start };
            let mut here = start.max(at);
            let ways = Ways {
                may_escape: may_open || class::has(marks, OF_PERCENT, run.start, run.end),
                may_be_long: run.is_open || run.end - run.start >= ENTROPY_BYTES_MIN,
                limit,
            };
            while here < run.end && here < limit {
                while quiet.next_if(|(_, end)| *end <= here).is_some() {}
                if let Some((start, end)) = quiet.peek()
                    && *start <= here
                {
                    here = *end;
                    continue;
                }
                match self.guess(look, run, here, ways, &mut found) {
                    Some(next) => here = next,
                    None => return found,
                }
            }
            at = at.max(here);
        }
        found
    }

    /// Judges what begins in a run at the places that masks leave; false if one is undecided.
    fn guess_quick(&self, look: Look<'_>, run: &Run, quick: Quick, found: &mut Guesses) -> bool {
        let mut places = quick.keywords;
        // In running text, or after a name, which does not tell.
        if places & 1 == 1 && !quick.may_strike && look.names.borrow_mut().is_none_at(run.start) {
            places &= !1;
        }
        let ways = Ways { may_escape: false, may_be_long: false, limit: run.end };
        for bit in bits(places) {
            match self.guess(look, run, run.start + bit, ways, found) {
                Some(next) if next < run.end => {}
                Some(_) => break,
                None => return false,
            }
        }
        true
    }

    /// Judges what begins at a place; where to go on, or none if it is undecided or goes on.
    fn guess(
        &self,
        look: Look<'_>,
        run: &Run,
        here: usize,
        ways: Ways,
        found: &mut Guesses,
    ) -> Option<usize> {
        let Look { text, marks, .. } = look;
        let bytes = text.bytes;
        let room_for_value = run.is_open || run.end - here >= KEYWORD_BYTES_MIN;
        if self.keyword.is_some() && room_for_value {
            let previous = text.back(here, 1);
            // Not in a path of names, like `Token::Number1`.
            let after_sign = matches!(previous, Some(b'=' | b':'))
                && !(previous == Some(b':') && text.back(here, 2) == Some(b':'));
            let at_start = previous.is_none_or(|b| !is_token(b))
                || ways.may_escape && text.is_after_escape(here);
            let stop = run.end.min(here + VALUE_BYTES);
            let undecided = run.is_open && stop - here < VALUE_BYTES;
            if (after_sign || at_start)
                && (undecided || class::has(marks, OF_DIGIT, here, stop))
                && is_told(look, here, at_start, stop, undecided)
            {
                if undecided {
                    found.undecided = here;
                    return None;
                }
                found.put(here, run.end, Some(Kind::Keyword), Going::Rest(Kind::Keyword));
                if run.is_open {
                    found.undecided = run.end;
                    found.open = Going::Rest(Kind::Keyword);
                    return None;
                }
                return Some(run.end);
            }
        }
        if !ways.may_escape && !ways.may_be_long {
            // To the next place where a value may begin.
            return Some(marks.run_end(OF_BODY, here) + 1);
        }
        if !is_any_base64(bytes[here]) {
            return Some(here + 1);
        }
        let end = marks.run_end(OF_ANY_BASE64, here).min(run.end);
        if self.entropy.is_none() {
            return Some(end);
        }
        self.judge(look, run, here, end, ways.limit, found)
    }

    /// Judges a run of base64.
    fn judge(
        &self,
        look: Look<'_>,
        run: &Run,
        start: usize,
        end: usize,
        limit: usize,
        found: &mut Guesses,
    ) -> Option<usize> {
        let Look { text, marks, .. } = look;
        let bytes = text.bytes;
        let padding = bytes[end..run.end].iter().take(3).take_while(|b| **b == b'=').count();
        let is_open = run.is_open && end + padding == run.end && padding < 3;
        let mut here = start;
        // Padding belongs to what it pads: no other value begins in it.
        let mut padded = end;
        loop {
            let block = &bytes[here..end.min(here + BLOCK_BYTES)];
            if block.len() < BLOCK_BYTES && is_open {
                found.undecided = here;
                return None;
            }
            if block.len() < ENTROPY_BYTES_MIN {
                return Some(end);
            }
            let to = here + block.len();
            let random = random::find_random(bytes, marks, here, to);
            let is_long = block.len() == BLOCK_BYTES;
            if random.is_none() && !is_long && end <= limit && bytes.get(end) != Some(&b'=') {
                // Whether it is public, too, makes no difference.
                return Some(end);
            }
            let mut room = [0; BACK_BYTES];
            if random::is_public_head(block)
                || random::is_declared_public(text.before(here, &mut room))
            {
                let stop =
                    here + bytes[here..].iter().take_while(|b| in_rest(Kind::Entropy, **b)).count();
                found.put(here, stop, None, Going::SkipRun);
                if text.is_cut(stop) {
                    found.undecided = stop;
                    found.open = Going::SkipRun;
                    return None;
                }
                return Some(stop);
            }
            // Of a block in several parts one alone does not tell what the others are.
            let is_parted = random.is_some_and(|(first, last)| first > 0 || last < block.len());
            if is_parted && (here + 1..to).contains(&limit) {
                found.undecided = here;
                return None;
            }
            match random {
                Some((first, last)) if is_long && last == block.len() => {
                    // The rest goes with it.
                    let first = here + first;
                    let more =
                        bytes[here..].iter().take_while(|b| in_rest(Kind::Entropy, **b)).count();
                    found.put(here, first, None, Going::Skip(0));
                    found.put(first, here + more, Some(Kind::Entropy), Going::Rest(Kind::Entropy));
                    if text.is_cut(here + more) {
                        found.undecided = here + more;
                        found.open = Going::Rest(Kind::Entropy);
                        return None;
                    }
                    return Some(here + more);
                }
                Some((first, last)) => {
                    let pads = last == block.len() && !is_long;
                    let last = here + last + if pads { padding.min(2) } else { 0 };
                    padded = padded.max(last);
                    let kind = Kind::Entropy;
                    found.put(here, here + first, None, Going::Skip(0));
                    found.put(here + first, last, Some(kind), Going::Count(0, kind));
                    found.put(last, here + block.len(), None, Going::Skip(0));
                }
                None => found.put(here, here + block.len(), None, Going::Skip(0)),
            }
            here += block.len();
            if here >= end {
                return Some(padded);
            }
        }
    }
}

/// Whether a word tells that a value begins at `at`, of which that up to `stop` decides, and the value
/// may be a secret.
fn is_told(look: Look<'_>, at: usize, at_start: bool, stop: usize, undecided: bool) -> bool {
    let Look { text, marks, names, .. } = look;
    let value = &text.bytes[at..stop];
    let mut room = [0; BACK_BYTES];
    let back = text.before(at, &mut room);
    let is_none = names.borrow_mut().is_none_at(at);
    let tells = |label: Label<'_>| !names.borrow().is_dull(label) && label.name().tells();
    if !is_none && Label::read(back).is_some_and(tells) {
        return undecided || random::is_secret_value(value);
    }
    // What costs least first.
    at_start
        && (undecided || random::is_striking(text.bytes, marks, at, stop))
        && label::is_told(back)
        && (undecided || random::is_secret_value(value))
}
