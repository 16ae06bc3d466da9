//! Texts that are dense with values, their forms, tokens and base64 of all that, at every level: what
//! stands in the output depends on the bytes alone and not on how they came.
#![forbid(unsafe_code)]

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::super::detect::tests::example;
use super::super::{Level, View, redact};
use super::tests::{in_pieces, view};

/// What a text, or what is encoded in one, is made of.
#[derive(Debug, Clone)]
enum Part {
    Value(Index),
    /// A value's first bytes, or its last.
    Begin(Index, Index),
    End(Index, Index),
    Hex(Index),
    /// A token of a known format, and what looks like one.
    Example(u64),
    Run(String),
    Sign(&'static str),
    Bytes(Vec<u8>),
    /// Base64 of more, in lines or not.
    Base64(Vec<Self>, Form),
}

#[derive(Debug, Clone)]
struct Form {
    is_url: bool,
    /// Characters at its beginning that are missing.
    missing: usize,
    lines: Option<(usize, &'static str)>,
}

const SIGNS: [&str; 24] = [
    "\n",
    "\\n",
    "\\\"",
    "\"",
    " ",
    ": ",
    "=",
    "://",
    "@",
    "%3D",
    "\u{1b}[31m",
    "\\u003d",
    ";",
    "[",
    ".",
    "/",
    "-",
    "==",
    "password=",
    "token: ",
    "eyJ",
    "-----BEGIN ",
    "\r\n",
    "sha256:",
];

fn base64(bytes: &[u8], is_url: bool) -> Vec<u8> {
    use base64ct::{Base64Unpadded, Base64UrlUnpadded, Encoding};
    let text = if is_url {
        Base64UrlUnpadded::encode_string(bytes)
    } else {
        Base64Unpadded::encode_string(bytes)
    };
    text.into_bytes()
}

fn write(parts: &[Part], values: &[Vec<u8>], out: &mut Vec<u8>) {
    for part in parts {
        match part {
            Part::Value(value) => out.extend_from_slice(value.get::<Vec<u8>>(values)),
            Part::Begin(value, len) => {
                let value = value.get(values);
                out.extend_from_slice(&value[..len.index(value.len())]);
            }
            Part::End(value, len) => {
                let value = value.get(values);
                out.extend_from_slice(&value[len.index(value.len())..]);
            }
            Part::Hex(value) => value
                .get(values)
                .iter()
                .for_each(|byte| out.extend_from_slice(format!("{byte:02x}").as_bytes())),
            Part::Example(number) => out.extend_from_slice(example(*number).as_bytes()),
            Part::Run(text) => out.extend_from_slice(text.as_bytes()),
            Part::Sign(text) => out.extend_from_slice(text.as_bytes()),
            Part::Bytes(bytes) => out.extend_from_slice(bytes),
            Part::Base64(parts, form) => {
                let mut inner = Vec::new();
                write(parts, values, &mut inner);
                let text = base64(&inner, form.is_url);
                let text = text.get(form.missing..).unwrap_or_default();
                match form.lines {
                    None => out.extend_from_slice(text),
                    Some((width, end)) => text.chunks(width).for_each(|line| {
                        out.extend_from_slice(line);
                        out.extend_from_slice(end.as_bytes());
                    }),
                }
            }
        }
    }
}

fn values() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let value = prop_oneof![
        "[A-Za-z0-9]{8,30}",
        "[A-Za-z0-9]{5,12}",
        "[0-9a-f]{8,40}",
        "[0-9]{5,12}",
        "[ -~\n]{10,80}"
    ];
    vec(value.prop_map(String::into_bytes), 1..5)
}

fn parts() -> impl Strategy<Value = Vec<Part>> {
    let leaf = || {
        prop_oneof![
            4 => any::<Index>().prop_map(Part::Value),
            1 => any::<(Index, Index)>().prop_map(|(value, len)| Part::Begin(value, len)),
            1 => any::<(Index, Index)>().prop_map(|(value, len)| Part::End(value, len)),
            1 => any::<Index>().prop_map(Part::Hex),
            2 => any::<u64>().prop_map(Part::Example),
            1 => "([A-Za-z0-9+/]{0,70}|[0-9a-f]{0,40}|[ab]{0,60}|[A-Za-z0-9_-]{0,50})"
                .prop_map(Part::Run),
            3 => select(SIGNS.to_vec()).prop_map(Part::Sign),
            1 => vec(any::<u8>(), 0..12).prop_map(Part::Bytes),
        ]
    };
    let form = || {
        let line = (select(vec![30_usize, 48, 64, 76]), select(vec!["\n", "\\n", "\r\n", "\n> "]));
        (any::<bool>(), 0..4_usize, proptest::option::weighted(0.3, line))
            .prop_map(|(is_url, missing, lines)| Form { is_url, missing, lines })
    };
    let part = leaf().prop_recursive(3, 12, 4, move |inner| {
        (vec(inner, 1..4), form()).prop_map(|(parts, form)| Part::Base64(parts, form))
    });
    vec(part, 1..14)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("STRONGROOM_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(150)
    ))]

    #[test]
    fn dense_text_comes_out_the_same_at_any_cut(
        values in values(), parts in parts(),
        pieces in prop_oneof![vec(1..4_usize, 1..3), vec(1..30_usize, 1..6), vec(1..400_usize, 1..6)],
        save in any::<bool>(),
    ) {
        let mut text = Vec::new();
        write(&parts, &values, &mut text);
        let view = view(&values.iter().map(Vec::as_slice).collect::<Vec<_>>());
        for level in [Level::All, Level::Formats, Level::Values] {
            let whole = redact(&view, level, &text);
            for pieces in [&pieces[..], &[1]] {
                let cut = in_pieces(&view, level, &text, pieces, save);
                prop_assert_eq!(
                    String::from_utf8_lossy(&cut),
                    String::from_utf8_lossy(&whole),
                    "{:?} {:?}", level, String::from_utf8_lossy(&text)
                );
            }
        }
    }
}

/// A run that is too short to be decoded is not while it may still go on.
#[test]
fn base64_in_base64_that_is_too_short_to_be_decoded_stays_at_every_cut() {
    for (value, text) in [
        ("UysdOcOaNva", "Yj9zdGF0ZT0xJmFjY2Vzc190b2tlbj08YTMyPlhselpFOWpUMkZPZG1F\nIH"),
        ("DmdPCPEj", "\\Ukcxa1VFTlFSV29R12"),
        ("6479499", "baaababbaabaaaaaabaaaaabaaabaVG1wUk0wOVVVVFZQVVE\nM"),
        ("68534f43", "ODc1NjU2ZjYwN2YyZTJKQk15MVFRVkJGVWc9PU5qZzFNelJtTkRN\n9b"),
        ("tJmpAeGODAO", "MzUzOTM0NjEzNDM2MzMzOTM3NjIzMzM3DQpkRXB0Y0VGbFIw\nOUVRVTn\n"),
    ] {
        let view: Arc<View> = view(&[value.as_bytes()]);
        let whole = redact(&view, Level::All, text.as_bytes());
        for first in 1..text.len() {
            for rest in [1, text.len()] {
                let cut = in_pieces(&view, Level::All, text.as_bytes(), &[first, rest], false);
                assert_eq!(
                    String::from_utf8_lossy(&cut),
                    String::from_utf8_lossy(&whole),
                    "{first} of {text:?}"
                );
            }
        }
    }
}
