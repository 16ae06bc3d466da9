//! Executions and what must outlive a worker: members, pins, inodes, open handles.
#![forbid(unsafe_code)]

pub mod exposure;
pub mod handles;
pub mod id;
pub mod journal;
pub mod principal;
pub mod process;
pub mod registry;
pub mod roster;
pub mod state;
