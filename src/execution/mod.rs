//! Executions and what must outlive a worker: members, pins, inodes, open handles.
#![forbid(unsafe_code)]

pub mod handles;
pub mod journal;
pub mod state;
