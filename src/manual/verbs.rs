//! Which role may do what.
//!
//! `[[role]] name, uids, gids, may = [...], chains, environments` in the configuration; without any,
//! root (system mode) or the own uid (user mode) may do everything. A role that is limited to chains
//! or environments has these rights there alone, and none over what is about the whole daemon. A
//! process of an execution has no role, whatever its uid. Each cell is tested on the real server by
//! `tests/roles.rs`; the table is made from the one that the server routes by.
//!
#![doc = include_str!("verbs.md")]
#![forbid(unsafe_code)]
