//! The `events` directories.
#![forbid(unsafe_code)]
#![allow(dead_code)]

mod codec;
mod draft;
mod overlay;
