//! Tokens in text that was decoded: each place by itself.
//!
//! The caller decodes one text in many ways and pieces, so nothing that is known of one place may
//! depend on another. Invariant: what a place is depends on at most [`super::class::BACK_BYTES`]
//! bytes before it and on what follows. Danger: two that overlap are both reported, and the caller
//! merges them.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::Arc;

use memchr::memmem;

use super::class::{self, Text};
use super::formats::{Going, Outcome, each_place};
use super::pem::{self, Begin};
use super::value::Scheming;
use super::{Detector, Look, Room};

/// A token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::redact) struct Token {
    pub start: usize,
    /// After its last byte, if that is known by its beginning.
    pub end: Option<usize>,
    pub rule: Arc<str>,
}

impl Detector {
    /// Calls `each` with all tokens that begin at `from` or later; where undecided ones begin.
    pub(in crate::redact) fn within(
        &self,
        bytes: &[u8],
        from: usize,
        end: bool,
        room: &mut Room,
        each: &mut dyn FnMut(Token),
    ) -> usize {
        let text = Text { before: &[], bytes, end };
        class::runs(&text, &mut room.marks, &mut room.runs);
        room.names.are_of(self.number);
        let names = RefCell::new(std::mem::take(&mut room.names));
        let Room { marks, runs, .. } = &*room;
        let look = Look { text: &text, runs, marks, firsts: &self.firsts, names: &names };
        let mut undecided = bytes.len();
        if let Some(rule) = self.private_key {
            for begin in memmem::find_iter(bytes, pem::BEGIN).filter(|begin| *begin >= from) {
                match pem::begin(&text, begin) {
                    Begin::Yes { private: true, .. } => {
                        each(Token { start: begin, end: None, rule: self.id(rule) });
                    }
                    Begin::Maybe => {
                        undecided = begin;
                        break;
                    }
                    Begin::No | Begin::Yes { .. } => {}
                }
            }
            let cut = (1..pem::BEGIN.len()).rev().find(|len| bytes.ends_with(&pem::BEGIN[..*len]));
            if let Some(len) = cut.filter(|_| !end) {
                undecided = undecided.min((bytes.len() - len).max(from));
            }
        }
        for run in &room.runs {
            let look = each_place(look, run, run.start.max(from), run.end, |place, begins| {
                match self.at(look, run, place, begins, &mut Scheming::Perhaps) {
                    (_, Outcome::Maybe) => {
                        undecided = undecided.min(place);
                        return ControlFlow::Break(());
                    }
                    (Some(rule), Outcome::Yes { end, going, .. }) => {
                        let end = Some(end).filter(|_| matches!(going, Going::Count(_)));
                        each(Token { start: place, end, rule: self.id(rule) });
                    }
                    (_, Outcome::No | Outcome::Yes { .. }) => {}
                }
                ControlFlow::Continue(())
            });
            if look.is_break() {
                break;
            }
        }
        room.names = names.into_inner();
        undecided
    }
}
