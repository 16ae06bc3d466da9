//! The mount as the kernel sees it: fuser's trait, and the session that survives its worker.
#![forbid(unsafe_code)]

pub mod adapter;
pub mod gate;
mod listings;
pub mod requests;
pub mod session;
mod translate;
