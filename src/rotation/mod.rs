//! When versions change their stage, and when a rotation is due: pure, by facts that are passed in.
//!
//! Invariant: promotion waits for nobody beyond the drain and fails nobody: what an execution holds
//! stays readable until it ends.
#![forbid(unsafe_code)]

pub mod plan;
pub mod schedule;
