//! What was asked of the file system, for tests: the order of requests tells what a clock would. Each
//! is also a point where a worker may die.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};

thread_local! {
    static ASKED: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
    static DEATH: Cell<Option<u64>> = const { Cell::new(None) };
}

pub(super) fn note(what: &'static str) {
    ASKED.with_borrow_mut(|asked| asked.push(what));
    step();
}

/// What a thread unwinds with that stands for a worker.
pub(super) struct Killed;

/// Has this thread's worker die when it has passed so many points; how many were left before.
pub(super) fn die_after(points: Option<u64>) -> Option<u64> {
    DEATH.replace(points)
}

/// A point where it may die.
pub(super) fn step() {
    match DEATH.get() {
        Some(0) => {
            DEATH.set(None);
            std::panic::resume_unwind(Box::new(Killed));
        }
        left => DEATH.set(left.map(|points| points - 1)),
    }
}

/// What was asked by this thread since the last time.
pub(super) fn take() -> Vec<&'static str> {
    ASKED.take()
}
