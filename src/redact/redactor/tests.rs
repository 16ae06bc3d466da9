//! Streams that are cut, saved, watched and given other values.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use proptest::prelude::*;

use super::super::{Collect, Index, Others, Value, redact};
use super::*;

thread_local! {
    /// In how many bytes values were looked for.
    pub(crate) static LOOKED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

pub(super) fn view(values: &[&[u8]]) -> Arc<View> {
    let index = Index::build(values.iter().zip(0..).map(|(bytes, id)| Value { id, bytes }));
    let names = (0..).zip(values).map(|(id, _)| (id, format!("N{id}").into())).collect();
    Arc::new(View::new(&Arc::new(index), names, Others::Unseen))
}

pub(super) fn in_pieces(
    view: &Arc<View>,
    level: Level,
    text: &[u8],
    pieces: &[usize],
    save: bool,
) -> Vec<u8> {
    // One that may be allowed is held whole, besides.
    let longest = view.longest();
    let most = longest.max(600) + 1 + view.allowed().map_or(0, |_| longest.min(600));
    let mut redactor = Redactor::new(view.clone(), level);
    let mut out = Collect(Vec::new());
    let (mut at, mut turn) = (0, 0);
    while at < text.len() {
        let len = pieces[turn % pieces.len()].min(text.len() - at);
        redactor.push(&text[at..at + len], &mut out);
        assert!(redactor.held() <= most, "{}", redactor.held());
        if save {
            let state = redactor.save();
            redactor = Redactor::resume(view.clone(), level, &state).unwrap();
        }
        at += len;
        turn += 1;
    }
    redactor.finish(&mut out);
    assert_eq!(redactor.held(), 0);
    out.0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("STRONGROOM_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(5_000)
    ))]

    #[test]
    fn output_does_not_depend_on_cuts_at_any_level(
        text in "[ -~\n]{0,200}(sk-proj-[A-Za-z0-9]{40}|password=[A-Za-z0-9+/]{30}|ghp_[A-Za-z0-9]{36}|[A-Za-z0-9+/]{70})?[ -~\n]{0,60}",
        pieces in proptest::collection::vec(1..30_usize, 1..6),
        save in any::<bool>(),
    ) {
        let view = view(&[b"Zk8Wq2LmN5rT7yU0pX3c"]);
        for level in [Level::All, Level::Formats] {
            let whole = redact(&view, level, text.as_bytes());
            let cut = in_pieces(&view, level, text.as_bytes(), &pieces, save);
            prop_assert_eq!(
                String::from_utf8_lossy(&cut).into_owned(),
                String::from_utf8_lossy(&whole).into_owned()
            );
            let again = redact(&view, level, &whole);
            prop_assert_eq!(
                String::from_utf8_lossy(&again).into_owned(),
                String::from_utf8_lossy(&whole).into_owned()
            );
        }
    }
}

#[test]
fn large_writes_give_what_small_ones_give() {
    let value = b"Zk8Wq2LmN5rT7yU0pX3c".as_slice();
    let view = view(&[value, b"4711081500", b"Zk8Wq2LmN5-and-one-that-is-longer"]);
    let base64 = b"WWs4V3EyTG1ONXJUN3lVMHBYM2M".as_slice();
    let parts: [&[u8]; 9] = [
        b"plain words of a log line, and more of them\n",
        value,
        b"{\"number\":4711081500,\"text\":\"\\\\\\\"",
        &value[..9],
        &[b"AAAABBBBCCCCDDDD".as_slice(), &value[..11], b"\n  > ", &value[11..], b"\n"].concat(),
        base64,
        b"Zk8Wq2LmN5-and-one-that-is-",
        b"password=k7Hq2ZpX9vLm4TnB8sRd3WfY ghp_abcdefghij0123456789ABCDEFGHIJ456789\n",
        &[b'\\'; 300],
    ];
    let (mut text, mut state) = (Vec::new(), 1_u64);
    while text.len() < 60_000 {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Mostly the first.
        let number = (state >> 33) as usize % 24;
        text.extend_from_slice(parts.get(number).copied().unwrap_or(parts[0]));
    }
    for level in [Level::Values, Level::Formats, Level::All] {
        let small = in_pieces(&view, level, &text, &[97, 400, 1], false);
        assert!(small.len() < text.len());
        for pieces in [&[60_000][..], &[4_096], &[4_097, 100, 20_000], &[5_000, 1], &[17_000, 3]] {
            for save in [false, true] {
                let large = in_pieces(&view, level, &text, pieces, save);
                assert!(large == small, "{level:?} {pieces:?} {save}");
            }
        }
    }
}

#[test]
fn a_guess_after_an_escape_does_not_depend_on_cuts() {
    let random = "+0A0a0a0AA+cAeb1BB+Bda+PbC0afa+b+gHCEh+iIDc++1+1jR+/++F+Jk2cKLG+M3lSm";
    let view = Arc::new(View::empty());
    for lead in ["x[%A0", "x;%A0", "x\\u003d", "x\\x3d", "x\\n", "x\u{1b}[31m", "[31", "%A0", ";"] {
        let text = format!("some text {lead}{random} and on");
        let whole = redact(&view, Level::All, text.as_bytes());
        for first in 1..text.len() {
            for save in [false, true] {
                let cut = in_pieces(&view, Level::All, text.as_bytes(), &[first, 1, 300], save);
                assert_eq!(
                    String::from_utf8_lossy(&cut),
                    String::from_utf8_lossy(&whole),
                    "{first} {text}"
                );
            }
        }
    }
}

#[test]
fn a_finished_line_is_out_at_once_and_nothing_more_than_needed_is_held() {
    let view = view(&[b"Zk8Wq2LmN5rT7yU0pX3c"]);
    let mut redactor = Redactor::new(view, Level::All);
    let mut out = Collect(Vec::new());
    redactor.push(b"an ordinary line of a log\n", &mut out);
    assert_eq!((redactor.held(), out.0.len()), (0, 26));
    redactor.push(b"key: Zk8W", &mut out);
    assert_eq!(redactor.held(), 4);
    redactor.push(b"x and on\n", &mut out);
    assert_eq!(redactor.held(), 0);
    assert!(out.0.ends_with(b"key: Zk8Wx and on\n"));
}

#[test]
fn what_is_not_seen_changes_neither_output_nor_what_is_held() {
    let foreign = b"4711-0815-0042".as_slice();
    let own = b"Zk8Wq2LmN5rT7yU0pX3c".as_slice();
    let index =
        Arc::new(Index::build([(0, own), (1, foreign)].map(|(id, bytes)| Value { id, bytes })));
    let names: HashMap<_, Arc<str>> = [(0, "OWN".into())].into();
    let unseen = Arc::new(View::new(&index, names.clone(), Others::Unseen));
    let unnamed = Arc::new(View::new(&index, names, Others::Unnamed));
    let text = [b"x ", foreign, b" y ", own].concat();
    assert_eq!(redact(&unseen, Level::Values, &text), b"x 4711-0815-0042 y [REDACTED:OWN]");
    assert_eq!(redact(&unnamed, Level::Values, &text), b"x [REDACTED] y [REDACTED:OWN]");
    let alone = view(&[own]);
    for cut in 1..foreign.len() {
        let held = |view: &Arc<View>| {
            let mut redactor = Redactor::new(view.clone(), Level::Values);
            redactor.push(&foreign[..cut], &mut Collect(Vec::new()));
            redactor.held()
        };
        assert_eq!(held(&unseen), held(&alone), "{cut}");
        // The rule for an end that was cut off tells of one's own values alone.
        let end = redact(&unnamed, Level::Values, &foreign[..cut]);
        assert_eq!(end, &foreign[..cut]);
    }
}

#[test]
fn a_value_that_comes_later_is_found_in_what_is_held() {
    let first = Arc::new(Index::build([Value { id: 0, bytes: b"Zk8Wq2LmN5rT7yU0pX3c" }]));
    let names: HashMap<u32, Arc<str>> = [(0, "A".into()), (1, "B".into())].into();
    let mut redactor =
        Redactor::new(Arc::new(View::new(&first, names.clone(), Others::Unseen)), Level::Values);
    let mut out = Collect(Vec::new());
    redactor.push(b"Zk8Wq2LmN5", &mut out);
    let both = first.with([Value { id: 1, bytes: b"Wq2LmN5-other" }]);
    redactor.set_view(Arc::new(View::new(&Arc::new(both), names.clone(), Others::Unseen)));
    redactor.push(b"-other", &mut out);
    redactor.finish(&mut out);
    assert_eq!(String::from_utf8_lossy(&out.0), "Zk8[REDACTED:B]");
    let without = first.with([Value { id: 1, bytes: b"Wq2LmN5-other" }]).without(&[0]);
    let view = Arc::new(View::new(&Arc::new(without), names, Others::Unseen));
    let text = b"Zk8Wq2LmN5rT7yU0pX3c Wq2LmN5-other";
    assert_eq!(redact(&view, Level::Values, text), b"Zk8Wq2LmN5rT7yU0pX3c [REDACTED:B]");
}

#[test]
fn where_somebody_watches_only_what_is_named_is_held_and_the_rest_of_others_is_hidden() {
    let foreign = b"Vq7Jx3Lm9Tz2Rw5Yb8Nc".as_slice();
    let longer = [foreign, b"-and-its-tail"].concat();
    let own = b"Zk8Wq2LmN5rT7yU0pX3c".as_slice();
    let values = [(0, own), (1, foreign), (2, &longer[..])];
    let index = Arc::new(Index::build(values.map(|(id, bytes)| Value { id, bytes })));
    let names: HashMap<_, Arc<str>> = [(0, "OWN".into())].into();
    let full = Arc::new(View::new(&index, names.clone(), Others::Unnamed));
    let named = Arc::new(View::new(&index, names, Others::Unseen));
    let watch = |few: usize, pieces: &[&[u8]]| {
        let mut redactor = Redactor::new(full.clone(), Level::Values);
        let mut out = Collect(Vec::new());
        let mut held = Vec::new();
        for piece in pieces {
            redactor.set_watched(named.clone(), few);
            redactor.push(piece, &mut out);
            held.push(redactor.held());
            let state = redactor.save();
            redactor = Redactor::resume(full.clone(), Level::Values, &state).unwrap();
        }
        redactor.finish(&mut out);
        (held, String::from_utf8(out.0).unwrap())
    };
    for cut in 1..foreign.len() {
        let (held, text) = watch(0, &[&foreign[..cut], &foreign[cut..], b" x"]);
        let mut alone = Redactor::new(named.clone(), Level::Values);
        alone.push(&foreign[..cut], &mut Collect(Vec::new()));
        assert_eq!(held[0], alone.held(), "nothing tells that {cut} bytes were right");
        let shown = String::from_utf8_lossy(&foreign[..cut - held[0]]).into_owned();
        assert_eq!(text, format!("{shown}[REDACTED] x"));
    }
    // A whole one does not pass because a longer one could follow.
    assert_eq!(watch(0, &[foreign, b" x"]), (vec![0, 0], "[REDACTED] x".to_owned()));
    let (_, text) = watch(0, &[foreign, b"-and-its-", b"tail x"]);
    assert_eq!(text, "[REDACTED]-and-its-[REDACTED] x");
    let (held, text) = watch(0, &[&own[..1], &own[1..9], &own[9..]]);
    assert_eq!((held, text.as_str()), (vec![1, 9, 0], "[REDACTED:OWN]"));
    // Each key that is typed is seen at once, until too much of a value has come.
    let keys: Vec<&[u8]> = own.chunks(1).collect();
    let (held, text) = watch(4, &keys);
    assert_eq!(held[..5], [0, 0, 0, 1, 2]);
    assert_eq!(text, "Zk8[REDACTED:OWN]");
}

#[test]
fn states_that_are_none_are_refused() {
    let view = view(&[b"Zk8Wq2LmN5rT7yU0pX3c"]);
    let mut redactor = Redactor::new(view.clone(), Level::All);
    redactor.push(b"x Zk8Wq2", &mut Collect(Vec::new()));
    let state = redactor.save();
    for len in 0..state.len() {
        assert!(Redactor::resume(view.clone(), Level::All, &state[..len]).is_err(), "{len}");
    }
    assert!(Redactor::resume(view, Level::All, &state).is_ok());
}
