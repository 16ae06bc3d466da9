//! System calls behind owned, typed values: the only unsafe code of the crate.
//!
//! Invariant: functions take and return owned descriptors; a bare pid leaves only as part of a fact.
#![allow(unsafe_code)]

pub mod alloc;
pub mod base64;
pub mod bloom;
pub mod cgroup;
pub mod descriptor;
pub mod device;
pub mod durable;
pub mod isolate;
pub mod mount;
pub mod notify;
pub mod peer;
pub mod pidfd;
pub mod proc;
pub mod process;
pub mod scope;
pub mod shm;
pub mod simd;
pub mod terminal;
