//! System calls behind owned, typed values: the only unsafe code of the crate.
//!
//! Invariant: functions take and return owned descriptors; a bare pid leaves only as part of a fact.
#![allow(unsafe_code)]

pub mod shm;
