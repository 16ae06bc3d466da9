//! The events directory on the real mount: what lands is what a redactor makes of a plain file.
#![forbid(unsafe_code)]

mod basic;
#[path = "../common/mod.rs"]
mod common;
mod crash;
mod foreign;
mod hand;
mod later;
mod once;
mod oracle;
mod suites;
mod swap;
mod timing;
#[path = "../tools/mod.rs"]
mod tools;
mod trouble;
mod volume;
mod watch;
