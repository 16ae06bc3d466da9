//! The security record: what was read, refused and changed, and by whom; it shows tampering.
//!
//! No record, no secret: [`log::Log::append`] returns before the bytes leave.
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod files;
pub mod link;
pub mod log;
pub mod record;
pub mod revision;
pub mod ring;
pub mod verify;
