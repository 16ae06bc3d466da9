//! strongroom: a secrets vault for chains of agents, mounted at `/run/secrets`.
//!
//! The prose manual is `manual`; `SECURITY.md` says what is promised and what is not.

pub mod audit;
pub mod broker;
pub mod catalog;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod daemon;
pub mod events;
pub mod execution;
pub mod fs;
pub mod fuse;
pub mod identity;
pub mod keeper;
pub mod manual;
pub mod proto;
pub mod redact;
pub mod rotation;
pub mod scan;
pub mod secret;
pub mod sys;
pub mod vault;
pub mod worker;
pub mod workspace;

#[global_allocator]
static ALLOCATOR: sys::alloc::Populating = sys::alloc::Populating;
