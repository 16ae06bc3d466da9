//! The redaction engine against rules that are written down here a second time, without any
//! cleverness: every occurrence of every value in the whole text, ranges that share a byte merged.
//!
//! `STRONGROOM_CASES=20000 cargo test --test redact` for as many cases of each property.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use strongroom::redact::{Index, Level, Others, Redactor, Sink, Value, View, needles, redact};

fn cases(usual: u32) -> ProptestConfig {
    let wanted = std::env::var("STRONGROOM_CASES").ok().and_then(|n| n.parse().ok());
    let cases = wanted.unwrap_or(usual);
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

/// A view in which the values have the names `N0`, `N1` and so on.
fn view(values: &[&[u8]]) -> Arc<View> {
    let index = Index::build((0..).zip(values).map(|(id, bytes)| Value { id, bytes }));
    let names = (0..).zip(values).map(|(id, _)| (id, format!("N{id}").into())).collect();
    Arc::new(View::new(&Arc::new(index), names, Others::Unseen))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[derive(Default)]
struct Collect(Vec<u8>, Vec<u8>);

impl Sink for Collect {
    fn clear(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        self.1.extend_from_slice(bytes);
    }
    fn hidden(&mut self, raw: &[u8]) {
        self.1.extend_from_slice(raw);
    }
    fn marker(&mut self, text: &str, _raw_len: u64) {
        self.0.extend_from_slice(text.as_bytes());
    }
}

/// Redacts pieces of these lengths in turn, after each perhaps in another process; `each` is called
/// with what was pushed so far and the redactor.
fn in_pieces(
    view: &Arc<View>,
    level: Level,
    input: &[u8],
    pieces: &[usize],
    save: bool,
    mut each: impl FnMut(&[u8], &Redactor),
) -> Vec<u8> {
    let mut redactor = Redactor::new(view.clone(), level);
    let mut out = Collect::default();
    let (mut at, mut turn) = (0, 0);
    while at < input.len() {
        let len = pieces[turn % pieces.len()].clamp(1, input.len() - at);
        redactor.push(&input[at..at + len], &mut out);
        at += len;
        turn += 1;
        if save {
            let state = redactor.save();
            redactor = Redactor::resume(view.clone(), level, &state).unwrap();
        }
        assert_eq!(redactor.taken(), at as u64);
        assert_eq!(redactor.held_bytes(), &input[at - redactor.held()..at]);
        assert_eq!(out.1, input[..at - redactor.held()], "clear and hidden bytes are the input");
        each(&input[..at], &redactor);
    }
    redactor.finish(&mut out);
    assert_eq!(redactor.held(), 0);
    assert_eq!(out.1, input);
    out.0
}

fn is_word(byte: Option<&u8>) -> bool {
    byte.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_' || *b >= 0x80)
}

/// A value is only looked for between bytes that are no part of a word.
fn is_weak(value: &[u8]) -> bool {
    value.len() < 8 || value.iter().all(|b| *b == value[0])
}

/// Where each value occurs in the whole text.
fn occurrences(values: &[&[u8]], input: &[u8]) -> Vec<(usize, usize, usize)> {
    let mut found = Vec::new();
    for (number, value) in values.iter().enumerate() {
        for start in 0..input.len() {
            let end = start + value.len();
            if value.len() < 5 || input.get(start..end) != Some(*value) {
                continue;
            }
            let previous = start.checked_sub(1).and_then(|p| input.get(p));
            if !is_weak(value) || (!is_word(previous) && !is_word(input.get(end))) {
                found.push((start, end, number));
            }
        }
    }
    found
}

/// What the text's end is part of: at least 8 bytes of a value that is longer.
fn cut_off(values: &[&[u8]], input: &[u8]) -> Vec<(usize, usize, usize)> {
    for start in 0..input.len().saturating_sub(7) {
        let rest = &input[start..];
        let in_word = is_word(start.checked_sub(1).and_then(|p| input.get(p)));
        let cut = |value: &[u8]| {
            value.len() > rest.len() && value.starts_with(rest) && !(in_word && is_weak(value))
        };
        let all: Vec<_> = (0..values.len()).filter(|n| cut(values[*n])).collect();
        if !all.is_empty() {
            return all.into_iter().map(|n| (start, input.len(), n)).collect();
        }
    }
    Vec::new()
}

fn oracle(values: &[&[u8]], input: &[u8]) -> Vec<u8> {
    let mut found = occurrences(values, input);
    found.extend(cut_off(values, input));
    found.sort_unstable();
    let (mut out, mut at, mut next) = (Vec::new(), 0, 0);
    while next < found.len() {
        let (start, mut end, _) = found[next];
        let mut members = Vec::new();
        while next < found.len() && (members.is_empty() || found[next].0 < end) {
            end = end.max(found[next].1);
            members.push(found[next]);
            next += 1;
        }
        // The longest names it, of those the leftmost.
        let longest = members.iter().map(|(s, e, _)| e - s).max().unwrap();
        let first = members.iter().filter(|(s, e, _)| e - s == longest).map(|m| m.0).min().unwrap();
        let names: BTreeSet<String> = members
            .iter()
            .filter(|(s, e, _)| (*s, e - s) == (first, longest))
            .map(|(_, _, n)| format!("N{n}"))
            .collect();
        out.extend_from_slice(&input[at..start]);
        let names: Vec<String> = names.into_iter().collect();
        let more = match names.len().saturating_sub(3) {
            0 => String::new(),
            more => format!("|+{more}"),
        };
        let shown = names[..names.len().min(3)].join("|");
        out.extend_from_slice(format!("[REDACTED:{shown}{more}]").as_bytes());
        at = end;
    }
    out.extend_from_slice(&input[at..]);
    out
}

/// Where the text's end begins that may still become a value, or a longer range with one.
fn undecided(values: &[&[u8]], forms: &[Vec<u8>], input: &[u8]) -> usize {
    let open = |start: &usize| {
        let rest = &input[*start..];
        let previous = start.checked_sub(1).and_then(|p| input.get(p));
        let value = values.iter().any(|value| {
            let weak = is_weak(value);
            value.len() >= 5
                && value.starts_with(rest)
                && (value.len() > rest.len() || weak)
                && !(weak && is_word(previous))
        });
        value || forms.iter().any(|form| form.len() > rest.len() && form.starts_with(rest))
    };
    (0..input.len()).find(open).unwrap_or(input.len())
}

/// Texts in which occurrences overlap, nest, touch and almost happen.
fn periodic() -> impl Strategy<Value = (Vec<Vec<u8>>, Vec<u8>, Vec<usize>)> {
    let letter = || select(b"ab_ -".to_vec());
    let plain = vec(letter(), 5..61);
    let repeated = (vec(letter(), 1..5), 2..12_usize)
        .prop_map(|(unit, times)| unit.repeat(times).into_iter().take(60).collect());
    let value = prop_oneof![plain, repeated]
        .prop_map(|value: Vec<u8>| value.trim_ascii().to_vec())
        .prop_filter("long enough", |value| value.len() >= 5);
    (vec(value, 1..6), vec(1..40_usize, 1..8)).prop_flat_map(move |(mut values, pieces)| {
        // One that is a part of another, and one that begins as another.
        let inner = values[0][values[0].len() / 4..].trim_ascii().to_vec();
        let longer = [&values[0][..], b"ab"].concat();
        values.extend([inner, longer].into_iter().filter(|v| v.len() >= 5));
        let chosen = values.clone();
        let piece = prop_oneof![
            1 => vec(letter(), 0..6),
            2 => (0..chosen.len(), 0..61_usize, 0..61_usize).prop_map(move |(n, a, b)| {
                let value = &chosen[n];
                let (a, b) = (a.min(value.len()), b.min(value.len()));
                value[a.min(b)..a.max(b)].to_vec()
            }),
            2 => select(values.clone()),
            1 => Just(b"[REDACTED:N0]".to_vec()),
        ];
        let input = vec(piece, 0..12).prop_map(|p| p.concat());
        (Just(values), input, Just(pieces))
    })
}

proptest! {
    #![proptest_config(cases(2_000))]

    /// The rules, and that cuts, save and resume leave no trace; what is held is what must be.
    #[test]
    fn output_is_the_union_of_all_occurrences_however_it_is_cut(
        (values, input, pieces) in periodic(), save in any::<bool>()
    ) {
        let values: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
        let view = view(&values);
        let expected = text(&oracle(&values, &input));
        prop_assert_eq!(&text(&redact(&view, Level::Values, &input)), &expected, "{:?} {:?}", values.iter().map(|v| text(v)).collect::<Vec<_>>(), text(&input));
        let forms: Vec<Vec<u8>> = values
            .iter()
            .flat_map(|value| needles(value).into_iter().map(|form| form.to_vec()))
            .filter(|form| !values.contains(&form.as_slice()))
            .collect();
        let longest = view.longest();
        let cut = in_pieces(&view, Level::Values, &input, &pieces, save, |so_far, redactor| {
            let held = redactor.held();
            assert!(held <= longest, "{held} of {longest}");
            let must = so_far.len() - undecided(&values, &forms, so_far);
            // Of a range that is open already, bytes are given away as hidden.
            assert!(held <= must && (held == must || redactor.in_range()), "{held} of {must}");
        });
        prop_assert_eq!(text(&cut), expected);
    }

    /// A weak value beside a marker stands alone now, and is hidden the second time.
    #[test]
    fn a_redacted_text_is_redacted_to_itself((values, input, _) in periodic()) {
        let values: Vec<&[u8]> =
            values.iter().map(Vec::as_slice).filter(|value| !is_weak(value)).collect();
        let view = view(&values);
        let once = redact(&view, Level::Values, &input);
        // What stood on both sides of a marker may not become a secret with it, nor the marker.
        let twice = redact(&view, Level::Values, &once);
        prop_assert_eq!(text(&twice), text(&once));
    }
}

/// Values of many shapes: each byte class, short, long, several lines.
fn shapes() -> Vec<Vec<u8>> {
    let mut shapes: Vec<Vec<u8>> = [
        "s3cr3t",
        "hunter2-7Q",
        "p4ss/W0rd+\"q'\\Z\u{e9}$7",
        "k7Hq2ZpX9vLm4TnB8sRd3WfY6cJg1A",
        "postgres://app:Xq7-pass%word9@db.internal/prod?sslmode=require",
        "<&>\"'`$!{}[]()|;*?~# \t=",
        "line one of it\nline two, longer\n  line three",
        "\u{4f60}\u{597d}-\u{1f511}-Zk8Wq2",
        "12345678901",
    ]
    .iter()
    .map(|value| value.as_bytes().to_vec())
    .collect();
    shapes.push((1..=32).chain(200..=255).collect());
    shapes
}

#[test]
fn every_cut_of_every_form_of_every_kind_of_value_is_found() {
    for value in shapes() {
        let view = view(&[&value]);
        let forms = needles(&value);
        assert!(!forms.is_empty());
        for form in forms {
            let input = [b"before: ".as_slice(), &form, b" :after\n"].concat();
            let expected = text(&redact(&view, Level::Values, &input));
            assert!(
                expected.starts_with("before: ")
                    && expected.ends_with(" :after\n")
                    && expected.contains("[REDACTED:N0]"),
                "{} -> {expected}",
                text(&form)
            );
            for cut in 1..input.len() {
                for save in [false, true] {
                    let pieces = [cut, input.len()];
                    let out =
                        in_pieces(&view, Level::Values, &input, &pieces, save, |_, redactor| {
                            assert!(redactor.held() <= view.longest());
                        });
                    assert_eq!(text(&out), expected, "cut at {cut}");
                }
            }
        }
    }
}

#[test]
fn the_longest_then_the_leftmost_names_a_range_and_all_names_of_that_in_order() {
    let name = |of: &[(&str, &str)], input: &str| {
        let values = (0..).zip(of).map(|(id, (_, value))| Value { id, bytes: value.as_bytes() });
        let names = (0..).zip(of).map(|(id, (name, _))| (id, (*name).into())).collect();
        let view = View::new(&Arc::new(Index::build(values)), names, Others::Unseen);
        text(&redact(&Arc::new(view), Level::Values, input.as_bytes()))
    };
    let (one, two) = ("Zk8Wq2LmN5rT7yU0", "N5rT7yU0pX3cAb9d");
    let both = "Zk8Wq2LmN5rT7yU0pX3cAb9d";
    assert_eq!(name(&[("B", one), ("A", two)], both), "[REDACTED:B]", "as long, more to the left");
    let longer = "5rT7yU0pX3cAb9d-7Q4x";
    assert_eq!(name(&[("B", one), ("A", longer)], &format!("{both}-7Q4x")), "[REDACTED:A]");
    // Versions of one secret have one name, whatever their stage; several secrets are all named.
    assert_eq!(name(&[("A", one), ("A", one)], one), "[REDACTED:A]");
    assert_eq!(name(&[("B", one), ("C", two), ("A", one)], both), "[REDACTED:A|B]");
    let five = ["E", "D", "C", "B", "A"].map(|name| (name, one));
    assert_eq!(name(&five, one), "[REDACTED:A|B|C|+2]");
}

#[test]
fn at_level_all_no_bit_of_a_value_stays_in_the_characters_that_its_base64_shares() {
    let value = "Zk8Wq2LmN5rT7yU0pX3c";
    let view = view(&[value.as_bytes()]);
    for lead in 0..3 {
        for tail in 0..3 {
            let encoded = base64(format!("{}{value}{}", &"ab"[..lead], &"yz"[..tail]).as_bytes());
            let (first, last) = (lead * 8 / 6, ((lead + value.len()) * 8).div_ceil(6));
            for (level, first, last) in [
                (Level::All, first, last),
                (Level::Values, (lead * 8).div_ceil(6), (lead + value.len()) * 8 / 6),
            ] {
                let input = format!("a {encoded} b");
                let out = text(&redact(&view, level, input.as_bytes()));
                let (before, after) = (&encoded[..first], &encoded[last..]);
                assert_eq!(out, format!("a {before}[REDACTED:N0]{after} b"), "{level:?}");
            }
        }
    }
}

#[test]
fn a_key_behind_the_prefix_of_a_log_is_one_marker_and_only_its_own_lines_wait() {
    let key = private_key(3);
    let view = view(&[key.as_bytes()]);
    let line = |n: usize, text: &str| format!("2026-11-25T00:00:{:02}Z app[{n}]: {text}\n", n + 7);
    let logged: Vec<String> = key.lines().enumerate().map(|(n, text)| line(n, text)).collect();
    let input = format!("{}{}{}", line(8, "start"), logged.concat(), line(9, "end"));
    let expected = format!(
        "{}2026-11-25T00:00:07Z app[0]: [REDACTED:N0]\n{}",
        line(8, "start"),
        line(9, "end")
    );
    for cut in 1..input.len() {
        let out =
            in_pieces(&view, Level::Values, input.as_bytes(), &[cut, input.len()], true, |_, _| {});
        assert_eq!(text(&out), expected, "{cut}");
    }
    // Also of many keys that begin alike, and of a value whose second line says little.
    let mut many: Vec<String> =
        (0..200).map(|n| key.replacen('\n', &format!("\n{}", drawn(9, n)), 1)).collect();
    many.push("-----BEGIN RSA PRIVATE KEY-----\nab\ncd".to_owned());
    many[77].clone_from(&key);
    let all = self::view(&many.iter().map(String::as_bytes).collect::<Vec<_>>());
    let out = text(&redact(&all, Level::Values, input.as_bytes()));
    assert_eq!(out, expected.replace("N0", "N77"));
    let short: String = many[200].lines().enumerate().map(|(n, text)| line(n, text)).collect();
    let out = text(&redact(&all, Level::Values, short.as_bytes()));
    assert_eq!(out, "2026-11-25T00:00:07Z app[0]: [REDACTED:N200]\n");
    // Where the next line is another one, nothing waits any longer.
    let mut redactor = Redactor::new(view, Level::Values);
    let mut out = Collect::default();
    let (first, rest) = logged[0].split_at(logged[0].len() - 1);
    for (piece, held) in [(first, 31), (rest, 32), ("2026-11-25T00:00:09Z app[7]: ", 61), ("x", 0)]
    {
        redactor.push(piece.as_bytes(), &mut out);
        assert_eq!(redactor.held(), held, "{piece}");
    }
}

#[test]
fn a_finished_line_is_out_at_once() {
    let view = view(&[b"Zk8Wq2LmN5rT7yU0pX3c", b"correct horse battery staple"]);
    let mut redactor = Redactor::new(view, Level::Values);
    let mut out = Collect::default();
    for line in [
        "an ordinary line of a log\n",
        "ends as a value begins: Zk8Wq2Lm\n",
        "Zk8Wq2LmN5rT7yU0pX3c\n",
        "correct horse battery\n",
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n",
        "\n",
        "{\"json\": \"with \\\\ and \\\" \\n\"}\n",
    ] {
        redactor.push(line.as_bytes(), &mut out);
        assert_eq!(redactor.held(), 0, "{line}");
        assert_eq!(out.0.last(), Some(&b'\n'));
    }
}

/// JSON with secrets anywhere: in keys, in values, as numbers, once and twice encoded.
fn json(secrets: &'static [&'static str]) -> impl Strategy<Value = serde_json::Value> {
    let digits = |s: &&str| s.bytes().all(|b| b.is_ascii_digit());
    let numbers: Vec<u64> =
        secrets.iter().filter(|s| digits(s)).map(|s| s.parse().unwrap()).collect();
    let piece = move || {
        prop_oneof![
            select(secrets.to_vec()).prop_map(str::to_owned),
            "[a-z \\\\\"/\n\u{e9}]{0,6}",
            (0..secrets.len(), 0..30_usize)
                .prop_map(move |(n, cut)| { secrets[n].chars().take(cut).collect::<String>() }),
        ]
    };
    let string = move || vec(piece(), 0..4).prop_map(|p| p.concat());
    let leaf = prop_oneof![
        3 => string().prop_map(serde_json::Value::from),
        2 => select(numbers).prop_map(serde_json::Value::from),
        1 => any::<bool>().prop_map(serde_json::Value::from),
        1 => any::<i32>().prop_map(serde_json::Value::from),
        1 => Just(serde_json::Value::Null),
    ];
    leaf.prop_recursive(4, 24, 5, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(serde_json::Value::from),
            vec((string(), inner.clone()), 0..5)
                .prop_map(|entries| serde_json::Value::Object(entries.into_iter().collect())),
            // A document in a string of a document.
            inner.prop_map(|value| serde_json::Value::from(value.to_string())),
        ]
    })
}

const IN_JSON: &[&str] =
    &["p4ss\"W0rd\\q/7Zé", "Zk8Wq2LmN5rT7yU0", "48151623", "back\\slash\\\\end\\", "two\nlines-of"];

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn json_that_parsed_parses_after_and_holds_no_secret(
        value in json(IN_JSON), pretty in any::<bool>(), line in any::<bool>(),
        pieces in vec(1..50_usize, 1..5)
    ) {
        let values: Vec<&[u8]> = IN_JSON.iter().map(|s| s.as_bytes()).collect();
        let view = view(&values);
        let input = if pretty {
            serde_json::to_string_pretty(&value).unwrap()
        } else {
            value.to_string()
        };
        let input = if line { format!("{input}\n") } else { input };
        let whole = text(&redact(&view, Level::Values, input.as_bytes()));
        let cut = in_pieces(&view, Level::Values, input.as_bytes(), &pieces, true, |_, _| {});
        prop_assert_eq!(text(&cut), whole.clone());
        let parsed = serde_json::from_str::<serde_json::Value>(&whole);
        prop_assert!(parsed.is_ok(), "{} -> {}", input, whole);
        for secret in IN_JSON {
            let mut left = false;
            strings(parsed.as_ref().unwrap(), &mut |s| left |= s.contains(secret));
            prop_assert!(!left, "{} -> {}", input, whole);
        }
    }
}

#[test]
fn a_number_that_is_a_whole_document_becomes_a_string_at_every_cut() {
    let view = view(&[b"48151623"]);
    for (input, expected) in [
        ("48151623", "\"[REDACTED:N0]\""),
        ("  48151623\n", "  \"[REDACTED:N0]\"\n"),
        ("48151623\r\n48151623 x", "\"[REDACTED:N0]\"\r\n[REDACTED:N0] x"),
        ("48151623 is it", "[REDACTED:N0] is it"),
        ("pin:48151623", "pin:[REDACTED:N0]"),
        ("\"48151623\"", "\"[REDACTED:N0]\""),
    ] {
        for cut in 1..=input.len() {
            let out = in_pieces(&view, Level::Values, input.as_bytes(), &[cut], true, |_, _| {});
            assert_eq!(text(&out), expected, "{cut}");
        }
    }
}

fn strings(value: &serde_json::Value, each: &mut impl FnMut(&str)) {
    match value {
        serde_json::Value::String(text) => each(text),
        serde_json::Value::Number(number) => each(&number.to_string()),
        serde_json::Value::Array(items) => items.iter().for_each(|item| strings(item, each)),
        serde_json::Value::Object(entries) => {
            for (key, value) in entries {
                each(key);
                strings(value, each);
            }
        }
        _ => {}
    }
}

#[test]
fn markers_in_the_text_stay_and_values_that_stand_in_markers_are_refused() {
    let own = b"Zk8Wq2LmN5rT7yU0pX3c".as_slice();
    let long = b"REDACTED:N0] and more".as_slice();
    let view = view(&[own, b"REDACTED", b"EDACTED", long]);
    let input = [b"[REDACTED:N0] [REDACTED] ".as_slice(), own, b" [REDACTED:OTHER|B|+2]"].concat();
    assert_eq!(
        text(&redact(&view, Level::Values, &input)),
        "[REDACTED:N0] [REDACTED] [REDACTED:N0] [REDACTED:OTHER|B|+2]"
    );
    // A secret may begin inside what looks like a marker.
    let input = [b"[".as_slice(), long, b"!"].concat();
    assert_eq!(text(&redact(&view, Level::Values, &input)), "[[REDACTED:N3]!");
}

/// What is looked for may change at any time, also for what is held.
#[test]
fn a_view_that_changes_is_followed_at_every_cut() {
    let (old, new) = (b"Zk8Wq2LmN5rT7yU0pX3c".as_slice(), b"Zk8Wq2-other-value".as_slice());
    let names: HashMap<u32, Arc<str>> = [(0, "OLD".into()), (1, "NEW".into())].into();
    let one = Arc::new(Index::build([Value { id: 0, bytes: old }]));
    let both = Arc::new(one.with([Value { id: 1, bytes: new }]));
    let only_new = Arc::new(both.without(&[0]));
    let again = Arc::new(only_new.with([Value { id: 0, bytes: old }]));
    let view = |index: &Arc<Index>| Arc::new(View::new(index, names.clone(), Others::Unseen));
    for (before, after, input, expected) in [
        (&one, &both, new, "[REDACTED:NEW]"),
        (&one, &both, old, "[REDACTED:OLD]"),
        (&both, &only_new, new, "[REDACTED:NEW]"),
        (&only_new, &again, old, "[REDACTED:OLD]"),
    ] {
        for cut in 0..=6 {
            let mut redactor = Redactor::new(view(before), Level::Values);
            let mut out = Collect::default();
            redactor.push(&input[..cut], &mut out);
            redactor.set_view(view(after));
            redactor.push(&input[cut..], &mut out);
            redactor.finish(&mut out);
            assert_eq!(text(&out.0), expected, "{cut}");
        }
    }
    assert_eq!(redact(&view(&only_new), Level::Values, old), old, "taken away");
}

#[test]
fn values_of_one_chain_are_not_seen_by_another() {
    let index = Arc::new(Index::build([
        Value { id: 0, bytes: b"Zk8Wq2LmN5rT7yU0pX3c" },
        Value { id: 1, bytes: b"Zk8Wq2-foreign-4711" },
    ]));
    let names: HashMap<u32, Arc<str>> = [(0, "OWN".into())].into();
    let unseen = Arc::new(View::new(&index, names.clone(), Others::Unseen));
    let alone = Arc::new(View::new(
        &Arc::new(Index::build([Value { id: 0, bytes: b"Zk8Wq2LmN5rT7yU0pX3c" }])),
        names,
        Others::Unseen,
    ));
    for input in ["Zk8Wq2-foreign-4711 x", "Zk8Wq2-foreign", "Zk8Wq2LmN5", "x Zk8Wq2-"] {
        for cut in 0..=input.len() {
            let held = |view: &Arc<View>| {
                let mut redactor = Redactor::new(view.clone(), Level::Values);
                redactor.push(&input.as_bytes()[..cut], &mut Collect::default());
                redactor.held()
            };
            assert_eq!(held(&unseen), held(&alone), "{input} {cut}");
        }
        let of = |view| text(&redact(view, Level::Values, input.as_bytes()));
        assert_eq!(of(&unseen), of(&alone));
    }
}

/// What stands between two lines.
fn line_break() -> impl Strategy<Value = String> {
    let end = select(vec!["\n", "\r\n", "\\n", "\\r\\n", "\\\\n", "\n\n", "\n \t\n"]);
    let lead = select(vec!["", "", "  ", "\t", "> ", ">> ", "> > ", "+ ", "| ", "# "]);
    (end, lead).prop_map(|(end, lead)| format!("{end}{lead}"))
}

fn base64(bytes: &[u8]) -> String {
    use base64ct::{Base64, Encoding};
    Base64::encode_string(bytes)
}

/// A text that is cut anywhere, in one process or several, gives the same.
fn same_however_cut(
    view: &Arc<View>,
    level: Level,
    input: &[u8],
    pieces: &[usize],
) -> Result<String, TestCaseError> {
    let whole = text(&redact(view, level, input));
    for save in [false, true] {
        let cut = in_pieces(view, level, input, pieces, save, |_, redactor| {
            assert!(redactor.held() <= view.longest().max(4096));
        });
        prop_assert_eq!(&text(&cut), &whole, "{} in {:?}", text(input), pieces);
    }
    Ok(whole)
}

/// Letters and digits that look random, so that no token stands in the source.
fn drawn(count: usize, seed: u64) -> String {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(alphabet[(state >> 33) as usize % alphabet.len()])
    };
    (0..count).map(|_| next()).collect()
}

/// A private key in armour, with a body of so many lines.
fn private_key(lines: usize) -> String {
    let body: Vec<String> = (0..lines).map(|n| drawn(64, n as u64 + 5)).collect();
    let kind = "RSA PRIVATE KEY";
    format!(
        "-----BEGIN {kind}-----\n{}\n{}==\n-----END {kind}-----\n",
        body.join("\n"),
        drawn(22, 3)
    )
}

fn in_lines(text: &str, width: usize, end: &str) -> String {
    let lines = text.as_bytes().chunks(width).map(|line| std::str::from_utf8(line).unwrap());
    lines.collect::<Vec<_>>().join(end)
}

#[test]
fn known_formats_in_base64_are_found_at_every_cut() {
    let view = Arc::new(View::empty());
    let github = format!("ghp_{}", drawn(36, 1));
    let url = format!("postgres://app:{}@db.internal/prod", drawn(14, 2));
    let config = base64(format!("{{\"n\":1,\"key\":\"{github}\",\"more\":\"of it\"}}").as_bytes());
    let key = base64(private_key(6).as_bytes());
    let once = base64(github.as_bytes());
    for (input, expected) in [
        (format!("token: {once}\n"), "token: [REDACTED:github-token]\n"),
        (
            format!("  url: {}\n", base64(url.as_bytes())),
            "  url: cG9zdGdyZXM6Ly9hcHA6[REDACTED:url-password]AZGIuaW50ZXJuYWwvcHJvZA==\n",
        ),
        (format!("conf={config};"), "conf=eyJuIjoxLCJrZXkiOi[REDACTED:github-token];"),
        (base64(format!("x={once}").as_bytes()), "eD[REDACTED:github-token]"),
        // A key takes all of its base64, and no more.
        (
            format!("  tls.key: {key}\n  tls.crt: eA==\n"),
            "  tls.key: [REDACTED:private-key]\n  tls.crt: eA==\n",
        ),
        (format!("k {key} {key}."), "k [REDACTED:private-key] [REDACTED:private-key]."),
        (format!("\"{}\"", in_lines(&key, 76, "\\n")), "\"[REDACTED:private-key]\""),
        (
            format!("a:\n  {}\n---\n", in_lines(&key, 64, "\n  ")),
            "a:\n  [REDACTED:private-key]\n---\n",
        ),
        (format!("{}\r\nname: x", in_lines(&key, 76, "\r\n")), "[REDACTED:private-key]\r\nname: x"),
        (
            format!("{}\n\nand", in_lines(&base64(key.as_bytes()), 76, "\n")),
            "[REDACTED:private-key]\n\nand",
        ),
    ] {
        assert_eq!(text(&redact(&view, Level::All, input.as_bytes())), expected, "{input}");
        let formats = redact(&view, Level::Formats, input.as_bytes());
        assert_eq!(text(&formats), input, "only level all decodes");
        for cut in 1..input.len() {
            for (pieces, save) in [(vec![cut, input.len()], cut % 3 == 0), (vec![cut, 1, 2], false)]
            {
                let out =
                    in_pieces(&view, Level::All, input.as_bytes(), &pieces, save, |_, redactor| {
                        assert!(redactor.held() <= 1200, "{}", redactor.held());
                    });
                assert_eq!(text(&out), expected, "{pieces:?}");
            }
        }
    }
}

/// A token without a known end takes the next line along, which has one as well, also where a cut
/// leaves that line too short to be one.
#[test]
fn a_token_in_base64_goes_on_over_a_line_with_another_one_at_every_cut() {
    let view = Arc::new(View::empty());
    let jwt = format!("{}.{}", base64(b"{\"alg\":\"HS256\"}").trim_end_matches('='), drawn(40, 9));
    let first = base64(format!("a {jwt} {jwt}!").as_bytes());
    let second = base64(format!("{} {}", drawn(2, 3), &jwt[..33]).as_bytes());
    let (first, second) = (&first[..first.len() / 4 * 4], &second[..48]);
    let input = format!(" {first}\n  {second}");
    let whole = text(&redact(&view, Level::All, input.as_bytes()));
    assert!(whole.ends_with("[REDACTED:jwt]") && !whole.contains('\n'), "{whole}");
    for cut in 1..input.len() {
        for pieces in [vec![cut, input.len()], vec![cut, 1]] {
            let out =
                in_pieces(&view, Level::All, input.as_bytes(), &pieces, cut % 2 == 0, |_, _| {});
            assert_eq!(text(&out), whole, "{pieces:?}");
        }
    }
}

proptest! {
    #![proptest_config(cases(1_000))]

    /// Base64 of a file that contains the value, in lines of any length and ended in any way.
    #[test]
    fn wrapped_base64_is_found(
        value in "[ -~]{12,60}",
        lead in vec(any::<u8>(), 0..90), tail in vec(any::<u8>(), 0..40),
        width in select(vec![16_usize, 24, 60, 64, 76]), end in line_break(),
        url in any::<bool>(), pieces in vec(1..90_usize, 1..6),
    ) {
        let value = value.trim();
        prop_assume!(value.len() >= 12 && !value.bytes().all(|b| b == value.as_bytes()[0]));
        let view = view(&[value.as_bytes()]);
        let mut encoded = base64(&[&lead[..], value.as_bytes(), &tail].concat());
        if url {
            encoded = encoded.replace('+', "-").replace('/', "_");
        }
        let lines: Vec<&str> = encoded
            .as_bytes()
            .chunks(width)
            .map(|line| std::str::from_utf8(line).unwrap())
            .collect();
        let input = format!("data:\n{end}{}\nend of it", lines.join(&end));
        let out = same_however_cut(&view, Level::Values, input.as_bytes(), &pieces)?;
        prop_assert!(out.contains("[REDACTED:N0]") && out.ends_with("\nend of it"), "{}", out);
        // At most three characters of it, before a break, and two at its end stand there still.
        let kept: String = out.split("[REDACTED:N0]").collect::<Vec<_>>().join("");
        prop_assert!(kept.len() <= input.len() - value.len() * 4 / 3 + 8, "{} -> {}", input, out);
    }

    /// Base64 of a text that contains the value in some form, once or twice.
    #[test]
    fn nested_base64_is_found(
        value in "[ -~]{12,60}", form in 0..1000_usize, deep in any::<bool>(),
        lead in vec(any::<u8>(), 0..60), tail in vec(any::<u8>(), 0..40),
        around in "[a-z:/ =]{0,20}", pieces in vec(1..90_usize, 1..6),
    ) {
        let value = value.trim();
        prop_assume!(value.len() >= 12 && !value.bytes().all(|b| b == value.as_bytes()[0]));
        let view = view(&[value.as_bytes()]);
        let forms = needles(value.as_bytes());
        let form = &forms[form % forms.len()];
        let mut encoded = base64(&[&lead[..], form, &tail].concat());
        if deep {
            encoded = base64(format!("{{\"auth\":\"{encoded}\"}}").as_bytes());
        }
        let input = format!("{around}{encoded} and on\n");
        let out = same_however_cut(&view, Level::All, input.as_bytes(), &pieces)?;
        prop_assert!(out.contains("[REDACTED:N0]"), "{} -> {}", input, out);
        prop_assert!(out.len() < input.len() - value.len() + 40, "{} -> {}", input, out);
    }

    /// The same in lines, as tools wrap it.
    #[test]
    fn nested_base64_that_is_wrapped_is_found(
        value in "[ -~]{20,60}", form in 0..1000_usize, deep in any::<bool>(),
        lead in vec(any::<u8>(), 0..90), tail in vec(any::<u8>(), 0..60),
        width in select(vec![48_usize, 60, 64, 76]),
        end in select(vec!["\n", "\r\n", "\\n", "\\r\\n", "\n    ", "\n> "]),
        pieces in vec(1..90_usize, 1..6),
    ) {
        let value = value.trim();
        prop_assume!(value.len() >= 20 && !value.bytes().all(|b| b == value.as_bytes()[0]));
        let view = view(&[value.as_bytes()]);
        let forms = needles(value.as_bytes());
        let form = &forms[form % forms.len()];
        let mut encoded = base64(&[&lead[..], form, &tail].concat());
        if deep {
            encoded = base64(format!("{{\"auth\":\"{encoded}\"}}").as_bytes());
        }
        // Letters would go on with a last line that is full, and may give a form that ends within a
        // byte of the value its last bits.
        let input = format!("data:{end}{}\n(end of it)", in_lines(&encoded, width, end));
        let out = same_however_cut(&view, Level::All, input.as_bytes(), &pieces)?;
        prop_assert!(out.contains("[REDACTED:N0]") && out.ends_with("\n(end of it)"), "{}", out);
    }

    /// Tokens in base64, whole and cut, beside each other, in lines and not.
    #[test]
    fn nearly_known_formats_in_base64_leave_no_trace_of_cuts(
        parts in vec((0..9_usize, 0..300_usize, 0..300_usize, line_break()), 1..10),
        width in select(vec![48_usize, 64]), pieces in vec(1..80_usize, 1..8), values in any::<bool>(),
    ) {
        let value = b"Zk8Wq2LmN5rT7yU0pX3cAA".as_slice();
        let view = if values { view(&[value]) } else { Arc::new(View::empty()) };
        let github = format!("ghp_{}", drawn(36, 1));
        let jwt = format!("{}.{}", base64(b"{\"alg\":\"HS256\"}").trim_end_matches('='), drawn(40, 9));
        let plain = format!("{github} {jwt} https://u:{}@h/ -----BEGIN {github}", drawn(12, 4));
        let key = base64(private_key(2).as_bytes());
        let all = base64([plain.as_bytes(), value].concat().as_slice());
        let pieces_of = [all.clone(), key.clone(), base64(all.as_bytes()), base64(key.as_bytes()),
            in_lines(&key, width, "\n"), in_lines(&base64(all.as_bytes()), width, "\\n "), plain,
            " x=".to_owned(), "==".to_owned()];
        let mut input = String::new();
        for (kind, a, b, end) in parts {
            let piece = &pieces_of[kind];
            let (a, b) = (a.min(piece.len()), b.min(piece.len()));
            input.push_str(&piece[a.min(b)..a.max(b)]);
            input.push_str(&end[..end.len().min(a % 5)]);
        }
        same_however_cut(&view, Level::All, input.as_bytes(), &pieces)?;
    }

    #[test]
    fn nearly_nested_base64_leaves_no_trace_of_cuts(
        parts in vec((0..6_usize, 0..90_usize, 0..90_usize), 1..12), pieces in vec(1..40_usize, 1..8),
    ) {
        let value = b"Zk8Wq2LmN5rT7yU0pX3cAA";
        let view = view(&[value, b"two\nlines-of it"]);
        let once = base64(&[b"x:".as_slice(), &value[..]].concat());
        let twice = base64(format!("{once}.{once}").as_bytes());
        let thrice = base64(twice.as_bytes());
        let mut input = String::new();
        for (kind, a, b) in parts {
            let piece = [once.as_str(), twice.as_str(), thrice.as_str(), " \n", "Zk8Wq2LmN5rT", "/=."][kind];
            let (a, b) = (a.min(piece.len()), b.min(piece.len()));
            input.push_str(&piece[a.min(b)..a.max(b)]);
        }
        same_however_cut(&view, Level::All, input.as_bytes(), &pieces)?;
    }

    /// A value of several lines, indented, quoted or escaped.
    #[test]
    fn a_value_of_several_lines_is_found_however_its_lines_are_ended(
        lines in vec("[a-z0-9]{1,6}( [a-z]{1,4})?", 2..6), end in line_break(), own in line_break(),
        pieces in vec(1..30_usize, 1..6),
    ) {
        prop_assume!(lines.join("\n").len() >= 8);
        let own = if own.contains('\\') { "\n".to_owned() } else { own };
        let value = lines.join(&own);
        let view = view(&[value.as_bytes()]);
        let input = format!("key:{end}{}{end}and on", lines.join(&end));
        let out = same_however_cut(&view, Level::Values, input.as_bytes(), &pieces)?;
        prop_assert_eq!(out, format!("key:{end}[REDACTED:N0]{end}and on"));
    }

    /// Percent escapes, whoever wrote them: the case of each digit is its own.
    #[test]
    fn percent_escapes_are_found_in_either_case_of_their_digits(
        value in "[ -~]{6,20}[/+?%:]\u{e9}[/+?%:=]", all in any::<bool>(), twice in any::<bool>(),
        cases in vec(any::<bool>(), 200), pieces in vec(1..30_usize, 1..6),
    ) {
        let value = value.trim();
        let view = view(&[value.as_bytes()]);
        let keep = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b) || (!all && b"!'()*".contains(&b));
        let mut turn = cases.into_iter().cycle();
        let one = |b: u8| match keep(b) {
            true => char::from(b).to_string(),
            false if turn.next() == Some(true) => format!("%{b:02X}"),
            false => format!("%{b:02x}"),
        };
        let mut encoded: String = value.bytes().map(one).collect();
        if twice && all {
            encoded = encoded.replace('%', "%25");
        }
        let input = format!("https://h/?q={encoded}&x");
        let out = same_however_cut(&view, Level::Values, input.as_bytes(), &pieces)?;
        prop_assert_eq!(out, "https://h/?q=[REDACTED:N0]&x", "{}", input);
    }

    /// A value of several lines, each behind what a logger writes.
    #[test]
    fn a_value_of_several_lines_is_found_behind_a_prefix_of_each(
        first in "[a-z]{8,12}", lines in vec("[a-z: ]{0,9}[a-z]", 1..5), tag in "[a-z]{1,9}",
        seconds in vec(10..60_u8, 6), end in select(vec!["\n", "\r\n"]), pieces in vec(1..40_usize, 1..6),
        cut in 0..200_usize,
    ) {
        let all: Vec<String> = std::iter::once(first).chain(lines).collect();
        let value = all.join("\n");
        let view = view(&[value.as_bytes()]);
        let prefix = |n: usize| format!("2026-11-25T00:00:{}Z {tag}[12]: ", seconds[n % 6]);
        let logged: Vec<String> = all.iter().enumerate().map(|(n, l)| prefix(n) + l).collect();
        let input = format!("before{end}{}{end}{}and on", logged.join(end), prefix(5));
        let out = same_however_cut(&view, Level::Values, input.as_bytes(), &pieces)?;
        prop_assert_eq!(out, format!("before{end}{}[REDACTED:N0]{end}{}and on", prefix(0), prefix(5)));
        // What is cut off, or goes on otherwise, is decided by the whole text alone.
        let part = &input.as_bytes()[..cut.min(input.len())];
        for more in ["", "2026-11-25T0", "\n", " [12]: \n", &logged.join(end), &logged[0]] {
            let near = [part, more.as_bytes()].concat();
            same_however_cut(&view, Level::Values, &near, &pieces)?;
        }
    }

    /// Texts that are nearly wrapped, nearly quoted and nearly anything.
    #[test]
    fn breaks_leave_no_trace_of_cuts(
        parts in vec((0..7_usize, 0..80_usize, 0..80_usize, line_break()), 1..14),
        pieces in vec(1..60_usize, 1..8),
    ) {
        let values: [&[u8]; 3] = [b"Zk8Wq2LmN5rT7yU0pX3cAA", b"ab\nab ab\nba", b"nab\\> +r\n+ n"];
        let view = view(&values);
        let encoded = base64(b"Zk8Wq2LmN5rT7yU0pX3cAA--ab\nab ab\nba##");
        let mut input = String::new();
        for (kind, a, b, end) in parts {
            let piece = match kind {
                0 | 1 => encoded.as_str(),
                2 => std::str::from_utf8(values[0]).unwrap(),
                3 => std::str::from_utf8(values[1]).unwrap(),
                4 => "nab\\> +r\\n> + n",
                5 => "\\\\\\n\n\r > > + |\\r \\\\\\\\\\n+ab\nab",
                _ => "                                                                 \n",
            };
            let (a, b) = (a.min(piece.len()), b.min(piece.len()));
            input.push_str(&piece[a.min(b)..a.max(b)]);
            input.push_str(&end[..end.len().min(a % 5)]);
        }
        same_however_cut(&view, Level::Values, input.as_bytes(), &pieces)?;
    }
}

#[test]
fn a_line_that_ends_in_a_digest_is_out_at_once_also_with_a_thousand_values() {
    let values: Vec<Vec<u8>> = (0..1000_u32)
        .map(|n| format!("Key{n}-Zk8Wq2Lm-{:x}", n.wrapping_mul(0x9e37_79b9)).into_bytes())
        .collect();
    let values: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
    let view = view(&values);
    let mut redactor = Redactor::new(view, Level::Values);
    for n in 0..500_u64 {
        let line = format!(
            "layer {:016x}{:016x} done {:016x}\n",
            n * 7,
            n << 40,
            n.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        );
        redactor.push(line.as_bytes(), &mut Collect::default());
        assert_eq!(redactor.held(), 0, "{line}");
    }
}
