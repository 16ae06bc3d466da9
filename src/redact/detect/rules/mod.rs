//! The table of known formats.
//!
//! A rule is an id (what stands in a marker), what it finds, how, and examples. In examples `<a36>` stands
//! for 36 made-up characters: `a` letters and digits, `b` base64, `c` capitals and digits, `d` digits,
//! `h` hexadecimal digits, `l` small letters and digits, `s` small letters, `u` base64 for URLs; so no
//! token stands in the source. Everything that was made up must be gone from a `yes`, and in a `no`
//! nothing may be found. Formats are from the providers' public documents; patterns are in the language
//! of [`super::pattern`]. Order decides between rules that match at one place: special before general.
#![forbid(unsafe_code)]

mod cloud;
mod code;
mod general;
mod model;
mod service;
mod tool;

/// Formats that need more than a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coded {
    /// `Basic` with base64 of `user:password`.
    Basic,
    /// `Bearer` and a token.
    Bearer,
    /// The last part of a token.
    DiscordToken,
    /// A header that carries a secret alone.
    Header,
    /// See [`super::formats`].
    Jwt,
    /// A parameter of a URL.
    Parameter,
    /// Armoured.
    PrivateKey,
    /// After a bot's number.
    TelegramToken,
    /// `scheme://user:PASSWORD@host`.
    UrlPassword,
}

/// How many those are.
pub(super) const CODED: usize = Coded::UrlPassword as usize + 1;

/// How a rule finds.
#[derive(Debug, Clone, Copy)]
pub(super) enum How {
    Coded(Coded),
    /// Only as the value of a name with one of these words in it, or that is one after `=`.
    Labelled(&'static [&'static str], &'static [&'static str]),
    Pattern(&'static [&'static str]),
}

/// See the module.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    pub id: &'static str,
    pub what: &'static str,
    pub how: How,
    #[cfg_attr(not(test), expect(dead_code, reason = "examples are for tests and readers"))]
    pub yes: &'static [&'static str],
    #[cfg_attr(not(test), expect(dead_code, reason = "examples are for tests and readers"))]
    pub no: &'static [&'static str],
}

type Texts = &'static [&'static str];

const fn pattern(
    id: &'static str,
    what: &'static str,
    patterns: Texts,
    yes: Texts,
    no: Texts,
) -> Rule {
    Rule { id, what, how: How::Pattern(patterns), yes, no }
}

const fn labelled(
    id: &'static str,
    what: &'static str,
    (labels, patterns): (Texts, Texts),
    yes: Texts,
    no: Texts,
) -> Rule {
    Rule { id, what, how: How::Labelled(labels, patterns), yes, no }
}

const fn coded(id: &'static str, what: &'static str, coded: Coded, yes: Texts, no: Texts) -> Rule {
    Rule { id, what, how: How::Coded(coded), yes, no }
}

/// All of them.
pub(super) fn all() -> impl Iterator<Item = &'static Rule> {
    [model::RULES, cloud::RULES, code::RULES, service::RULES, tool::RULES, general::RULES]
        .into_iter()
        .flatten()
}
