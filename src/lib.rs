//! strongroom: a secrets vault for chains of agents, mounted at `/run/secrets`.
//!
//! The prose manual is `manual`; `SECURITY.md` says what is promised and what is not.

pub mod clock;
pub mod config;

pub mod proto;
pub mod secret;
pub mod sys;
