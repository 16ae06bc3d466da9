//! Starting an agent somewhere, so that it is registered before its first instruction.
#![forbid(unsafe_code)]

pub mod host;
pub mod isolate;
mod leader;
pub mod output;
mod terminal;
