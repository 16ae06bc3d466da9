//! The control interface: HTTP/1.1 and JSON over a unix socket.
#![forbid(unsafe_code)]

mod api;
mod role;

pub use api::{Api, Gone, Lines};
pub use role::{Caller, Roles};
