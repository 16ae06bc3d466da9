//! The control interface, for clients in any language.
//!
#![doc = include_str!("control.md")]
#![forbid(unsafe_code)]
