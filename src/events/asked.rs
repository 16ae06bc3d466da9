//! What was asked of the file system, for tests: the order of requests tells what a clock would.
#![forbid(unsafe_code)]

use std::cell::RefCell;

thread_local! {
    static ASKED: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
}

pub(super) fn note(what: &'static str) {
    ASKED.with_borrow_mut(|asked| asked.push(what));
}

/// What was asked by this thread since the last time.
pub(super) fn take() -> Vec<&'static str> {
    ASKED.take()
}
