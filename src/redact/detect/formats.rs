//! Tokens of known formats: from left to right, never two that overlap.
//!
//! Whether a token begins at a place depends on at most [`class::BACK_BYTES`] bytes before it and on a bounded
//! number after its beginning, so the outcome is the same however the text was cut. What begins a
//! token and may still become one is undecided; a token that is known to be one is swallowed.
#![forbid(unsafe_code)]

use std::ops::ControlFlow;

use memchr::memmem;

use super::class::{
    self, ESCAPE_BYTES_MAX, OF_ALNUM, OF_BODY, OF_PERCENT, Run, Text, is_alnum, is_token,
    is_url_safe,
};
use super::jwt::jwt;
use super::pattern::{DECIDING_BYTES, Match};
use super::pem::{self, Begin, Place, Reach};
use super::quick::Quick;
use super::random::{is_placeholder, is_varied, is_wordy};
use super::rules::Coded;
use super::value::Scheming;
use super::{Compiled, Detector, Look};
use crate::redact::masks::bits;

/// How a token goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Going {
    /// An armoured key.
    Armour(Place),
    /// So many bytes more.
    Count(usize),
    /// So many bytes, and then as long as bytes of the class of its last piece follow.
    Rest(usize, Class),
}

/// Bytes that a token goes on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Of the last piece of the pattern with this number.
    Pattern(usize),
    /// Token bytes.
    Token,
    /// The URL alphabet of base64, padding and dots.
    Jwt,
}

/// A token that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    pub start: usize,
    pub end: usize,
    /// The rule's number; none for what is public and hides nothing.
    pub rule: Option<usize>,
    pub continues: bool,
    /// How it goes on after its end.
    pub going: Going,
}

impl Token {
    /// How it goes on after a cut at `at`, inside it.
    pub(super) fn cut(&self, at: usize) -> Going {
        match self.going {
            Going::Armour(place) => Going::Armour(place),
            Going::Count(_) => Going::Count(self.end - at),
            Going::Rest(_, class) => Going::Rest(self.end - at, class),
        }
    }
}

/// What was found, and how it goes on.
pub(super) struct Formats {
    pub tokens: Vec<Token>,
    pub undecided: usize,
    /// The last token goes on at the end.
    pub open: Option<(Option<usize>, Going)>,
}

/// What became of a place.
enum Taken {
    Nothing,
    /// It is undecided, or goes on.
    Open,
    Token,
}

impl Formats {
    /// Takes what a place is; a token ends at `at`.
    fn take(
        &mut self,
        start: usize,
        rule: Option<usize>,
        outcome: Outcome,
        at: &mut usize,
    ) -> Taken {
        match outcome {
            Outcome::Maybe => {
                self.undecided = start;
                Taken::Open
            }
            Outcome::No => Taken::Nothing,
            Outcome::Yes { end, going, open } => {
                self.tokens.push(Token { start, end, rule, continues: false, going });
                *at = end;
                if !open {
                    return Taken::Token;
                }
                self.undecided = end;
                self.open = Some((rule, going));
                Taken::Open
            }
        }
    }
}

/// What a place is.
pub(super) enum Outcome {
    Maybe,
    No,
    Yes { end: usize, going: Going, open: bool },
}

/// What can begin at a place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begins {
    /// What begins with what a pattern does.
    pub head: bool,
    /// The value of a parameter or a header.
    pub value: bool,
}

/// Calls `each` with the places `from..to` of a run where something can begin: behind what is no letter
/// or digit, or is an escape.
#[inline]
pub(super) fn each_place(
    look: Look<'_>,
    run: &Run,
    from: usize,
    to: usize,
    mut each: impl FnMut(usize, Begins) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let Look { text, marks, firsts, .. } = look;
    let may_open = run.may_open(text);
    for (block, before, masks, inside) in marks.blocks(from, to) {
        let before = |set: usize| before.map_or(0, |masks| masks[set]);
        let follows = |set: usize| masks[set] << 1 | before(set) >> 63;
        let (mut after_alnum, mut after_body) = (follows(OF_ALNUM), follows(OF_BODY));
        if block == 0 {
            let last = text.back(0, 1);
            after_alnum |= u64::from(last.is_some_and(is_alnum));
            after_body |= u64::from(last.is_some_and(class::is_body));
        }
        let mut places = inside & !after_alnum;
        let plain = places;
        // An escape stands at the start of the run, or is one of a URL.
        places |= inside & (masks[OF_PERCENT] << 3 | before(OF_PERCENT) >> 61);
        if block == 0 {
            places |= inside & 0b111;
        }
        if may_open {
            let near = (run.start + ESCAPE_BYTES_MAX + 1).saturating_sub(block);
            places |= if near < 64 { inside & ((1 << near) - 1) } else { inside };
        }
        let values = !(plain & after_body);
        for bit in bits(places) {
            let place = block + bit;
            let (head, value) = (firsts.may_begin(text.bytes, place), values >> bit & 1 == 1);
            if !(head || value) {
                continue;
            }
            let is_plain = plain >> bit & 1 == 1;
            if !is_plain {
                let near = may_open && place - run.start <= ESCAPE_BYTES_MAX
                    || text.back(place, 3) == Some(b'%');
                if !near || !text.is_after_escape(place) {
                    continue;
                }
            }
            each(place, Begins { head, value })?;
        }
    }
    ControlFlow::Continue(())
}

impl Detector {
    fn class_has(&self, class: Class, byte: u8) -> bool {
        match class {
            Class::Pattern(number) => {
                self.patterns.get(number).is_some_and(|c| c.pattern.last_set().has(byte))
            }
            Class::Token => is_token(byte),
            Class::Jwt => is_url_safe(byte) || matches!(byte, b'.' | b'='),
        }
    }

    /// Goes through all of the text.
    pub(super) fn formats(
        &self,
        look: Look<'_>,
        quick: &[Option<Quick>],
        open: Option<(Option<usize>, Going)>,
    ) -> Formats {
        let bytes = look.text.bytes;
        let mut found = Formats { tokens: Vec::new(), undecided: bytes.len(), open: None };
        let armoured = self.go_through(look, quick, open, &mut found);
        if !look.text.end {
            // The beginning of an armour at the very end, whatever it may be a part of as well.
            let cut = (1..pem::BEGIN.len())
                .rev()
                .find(|len| bytes.len() >= armoured + len && bytes.ends_with(&pem::BEGIN[..*len]));
            if let Some(len) = cut {
                found.undecided = found.undecided.min(bytes.len() - len);
            }
        }
        found
    }

    /// Up to the first place that is undecided; returns where the last armour ends.
    fn go_through(
        &self,
        look: Look<'_>,
        quick: &[Option<Quick>],
        open: Option<(Option<usize>, Going)>,
        found: &mut Formats,
    ) -> usize {
        let Look { text, runs, .. } = look;
        let bytes = text.bytes;
        // Tokens do not overlap, nor do armours; a token may run into an armour.
        let (mut at, mut armoured) = (0, 0);
        if let Some((rule, going)) = open {
            let (end, next) = self.go_on(text, going);
            if end > 0 {
                let token = Token { start: 0, end, rule, continues: true, going };
                found.tokens.push(token);
            }
            if let Some(going) = next {
                found.undecided = end;
                found.open = Some((rule, going));
                return if matches!(going, Going::Armour(_)) { end } else { 0 };
            }
            at = end;
            if matches!(going, Going::Armour(_)) {
                armoured = end;
            }
        }
        let mut begins = memmem::find_iter(bytes, pem::BEGIN).peekable();
        for (run, quick) in runs.iter().zip(quick) {
            // Armours before the run, and inside it.
            let mut here = run.start.max(at);
            if here == run.start
                && begins.peek().is_none_or(|begin| *begin >= run.end)
                && let Some(quick) = quick
            {
                if !self.in_quick(look, run, *quick, &mut at, found) {
                    return armoured;
                }
                continue;
            }
            while let Some(begin) = begins.next_if(|b| *b < run.end) {
                if begin < armoured {
                    continue;
                }
                if !self.in_run(look, run, here.max(at).min(begin), begin, &mut at, found)
                    || !Self::armour(text, begin, &mut armoured, found, self.private_key)
                {
                    return armoured;
                }
                at = at.max(armoured);
                here = run.start.max(begin + 1);
            }
            if !self.in_run(look, run, here.max(at), run.end, &mut at, found) {
                return armoured;
            }
        }
        for begin in begins {
            if begin >= armoured
                && !Self::armour(text, begin, &mut armoured, found, self.private_key)
            {
                return armoured;
            }
        }
        armoured
    }

    /// Where a token ends that goes on at the start, and how it goes on after the end of the text.
    fn go_on(&self, text: &Text<'_>, going: Going) -> (usize, Option<Going>) {
        let len = text.bytes.len();
        match going {
            Going::Armour(place) => match pem::go_on(text, 0, place) {
                Reach::Done(end) => (end, None),
                Reach::Open(end, place) => (end, Some(Going::Armour(place))),
            },
            Going::Count(count) if count > len => {
                (len, Some(Going::Count(count - len)).filter(|_| !text.end))
            }
            Going::Count(count) => (count, None),
            Going::Rest(count, class) if count > len => {
                (len, Some(Going::Rest(count - len, class)).filter(|_| !text.end))
            }
            Going::Rest(count, class) => {
                let rest = text.bytes[count..].iter();
                let end = count + rest.take_while(|b| self.class_has(class, **b)).count();
                (end, Some(Going::Rest(0, class)).filter(|_| text.is_cut(end)))
            }
        }
    }

    /// What an armour is, and where it ends; false when it is undecided.
    fn armour(
        text: &Text<'_>,
        start: usize,
        armoured: &mut usize,
        found: &mut Formats,
        rule: Option<usize>,
    ) -> bool {
        match pem::begin(text, start) {
            Begin::No => {}
            Begin::Maybe => {
                found.undecided = start;
                return false;
            }
            Begin::Yes { private, reach } => {
                let rule = rule.filter(|_| private);
                let (end, open) = match reach {
                    Reach::Done(end) => (end, None),
                    Reach::Open(end, place) => (end, Some(Going::Armour(place))),
                };
                let going = Going::Armour(Place::Inside);
                found.tokens.push(Token { start, end, rule, continues: false, going });
                *armoured = end;
                if let Some(going) = open {
                    found.undecided = end;
                    found.open = Some((rule, going));
                    return false;
                }
            }
        }
        true
    }

    /// Looks at the places of a run that masks leave; false when one is undecided.
    fn in_quick(
        &self,
        look: Look<'_>,
        run: &Run,
        quick: Quick,
        at: &mut usize,
        found: &mut Formats,
    ) -> bool {
        for bit in bits(quick.heads | quick.values) {
            let place = run.start + bit;
            let has = |mask: u64| mask >> bit & 1 == 1;
            let begins = Begins { head: has(quick.heads), value: has(quick.values) };
            let (rule, outcome) = self.at(look, run, place, begins, &mut Scheming::Unseen);
            match found.take(place, rule, outcome, at) {
                Taken::Nothing => {}
                Taken::Open => return false,
                // What is left of the run is another one.
                Taken::Token => return self.in_run(look, run, *at, run.end, at, found),
            }
        }
        true
    }

    /// Looks at the places `from..to` of a run; false when one is undecided.
    fn in_run(
        &self,
        look: Look<'_>,
        run: &Run,
        from: usize,
        to: usize,
        at: &mut usize,
        found: &mut Formats,
    ) -> bool {
        let mut here = from;
        let mut scheme = Scheming::Unseen;
        if run.start == 0 || from > run.start {
            scheme = Scheming::Perhaps;
        }
        let whole = each_place(look, run, from, to, |place, begins| {
            if place < here {
                return ControlFlow::Continue(());
            }
            let (rule, outcome) = self.at(look, run, place, begins, &mut scheme);
            match found.take(place, rule, outcome, at) {
                Taken::Nothing => {}
                Taken::Open => return ControlFlow::Break(()),
                Taken::Token => {
                    here = *at;
                    scheme = Scheming::Perhaps;
                }
            }
            ControlFlow::Continue(())
        });
        whole.is_continue()
    }

    /// What begins at a place.
    #[inline]
    pub(super) fn at(
        &self,
        look: Look<'_>,
        run: &Run,
        at: usize,
        begins: Begins,
        scheme: &mut Scheming,
    ) -> (Option<usize>, Outcome) {
        if begins.head {
            match self.headed(look.text, at) {
                (_, Outcome::No) => {}
                found => return found,
            }
        }
        if begins.value { self.value(look, run, at, scheme) } else { (None, Outcome::No) }
    }

    /// What begins at a place as patterns do.
    #[inline(never)]
    fn headed(&self, text: &Text<'_>, at: usize) -> (Option<usize>, Outcome) {
        let (first, second) = (text.bytes[at], text.bytes.get(at + 1).copied());
        let four = text.bytes[at..].first_chunk().map(|four| u32::from_le_bytes(*four));
        for head in &self.heads[usize::from(first)] {
            let fits = match four {
                Some(four) => head.fits(four),
                None => second.is_none_or(|second| second == head.second()),
            };
            if !fits {
                continue;
            }
            let compiled = &self.patterns[head.pattern];
            match self.check(text, at, head.pattern, compiled) {
                Outcome::No => {}
                outcome => return (Some(compiled.rule), outcome),
            }
        }
        if first == b'e'
            && let Some(rule) = self.coded(Coded::Jwt)
        {
            return (Some(rule), jwt(text, at));
        }
        (None, Outcome::No)
    }

    pub(super) fn check(
        &self,
        text: &Text<'_>,
        at: usize,
        number: usize,
        compiled: &Compiled,
    ) -> Outcome {
        match compiled.pattern.matches(text, at) {
            Match::Maybe => Outcome::Maybe,
            Match::No => Outcome::No,
            Match::Yes { end, goes_on } => {
                let body = at + compiled.pattern.head().len();
                let body = &text.bytes[body..end.min(body + DECIDING_BYTES)];
                // A name may begin as a token does.
                let may_be_name =
                    !compiled.labels.is_empty() || compiled.pattern.last_set().has(b'_');
                if is_placeholder(body) || !is_varied(body) || (may_be_name && is_wordy(body)) {
                    return Outcome::No;
                }
                let going = if goes_on {
                    Going::Rest(0, Class::Pattern(number))
                } else {
                    Going::Count(end - at)
                };
                Outcome::Yes { end, going, open: goes_on && text.is_cut(end) }
            }
        }
    }
}
