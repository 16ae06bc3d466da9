//! The mount's semantics without fuser types: which names are where, and what each operation means.
#![forbid(unsafe_code)]

pub mod errno;
pub mod events;
pub mod tree;
