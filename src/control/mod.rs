//! The control interface: HTTP/1.1 and JSON over a unix socket, for people, orchestrators, agents.
//!
//! Invariant: one table ([`verbs`]) names every verb with the permission it needs; the server, the
//! `OpenAPI` document and the manual's table of verbs by role come from it. Translates, never
//! decides: what a verb does stands behind [`Api`]. Danger: an agent with the operator's uid; a
//! process of any execution has no role, judged anew at each request.
#![forbid(unsafe_code)]

mod api;
mod body;

pub mod client;
mod lines;
mod once;
pub mod openapi;
mod patient;
mod places;
pub mod redacting;
mod role;
pub mod route;
pub mod server;
mod text;
pub mod verbs;

pub use api::{Api, Claim, Claimed, Gone, Lines, Outcome, Texts};

pub use once::UNANSWERED;
pub use role::{Caller, Roles};
pub use route::{Needs, Route};
pub use server::{Limits, Server};
