//! The table's own examples, and what holds for every text.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::rules;
use super::*;
use crate::config::RedactionRule;
use crate::redact::{Redactor, Sink, View, redact};

/// Characters that stand for `<a36>` and its like; the second is what was made up, which must go.
fn make(template: &str, seed: u64) -> (String, Vec<String>) {
    let mut state = seed | 1;
    let mut next = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize % below
    };
    let (mut text, mut parts) = (String::new(), Vec::new());
    let mut rest = template;
    while let Some(at) = rest.find('<') {
        let (before, after) = rest.split_at(at);
        text.push_str(before);
        let inside = after.find('>').map(|end| &after[1..end]);
        let spec =
            inside.and_then(|s| Some((s.chars().next()?, s.get(1..)?.parse::<usize>().ok()?)));
        let Some((class, count)) = spec else {
            text.push('<');
            rest = &after[1..];
            continue;
        };
        let alphabet: Vec<char> = match class {
            'a' => ('a'..='z').chain('A'..='Z').chain('0'..='9').collect(),
            'b' => ('a'..='z').chain('A'..='Z').chain('0'..='9').chain(['+', '/']).collect(),
            'c' => ('A'..='Z').chain('2'..='7').collect(),
            'd' => ('0'..='9').collect(),
            'h' => ('0'..='9').chain('a'..='f').collect(),
            'l' => ('a'..='z').chain('2'..='7').collect(),
            's' => ('a'..='z').collect(),
            'u' => ('a'..='z').chain('A'..='Z').chain('0'..='9').chain(['-', '_']).collect(),
            _ => panic!("no such class: {template}"),
        };
        let part: String = (0..count).map(|_| alphabet[next(alphabet.len())]).collect();
        text.push_str(&part);
        parts.push(part);
        rest = &after[inside.map_or(0, str::len) + 2..];
    }
    text.push_str(rest);
    (text, parts)
}

/// One of the table's examples, made up anew for each number.
pub(in crate::redact) fn example(number: u64) -> String {
    let all: Vec<_> = rules::all().flat_map(|rule| rule.yes.iter().chain(rule.no)).collect();
    make(all[number as usize % all.len()], number).0
}

fn view() -> Arc<View> {
    Arc::new(View::empty())
}

struct Collect(Vec<u8>);

impl Sink for Collect {
    fn clear(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
    fn hidden(&mut self, _raw: &[u8]) {}
    fn marker(&mut self, text: &str, _raw_len: u64) {
        self.0.extend_from_slice(text.as_bytes());
    }
}

fn in_two(text: &[u8], cut: usize, level: Level) -> String {
    let mut redactor = Redactor::new(view(), level);
    let mut out = Collect(Vec::new());
    redactor.push(&text[..cut], &mut out);
    redactor.push(&text[cut..], &mut out);
    redactor.finish(&mut out);
    String::from_utf8_lossy(&out.0).into_owned()
}

fn by_bytes(text: &[u8], level: Level) -> String {
    let mut redactor = Redactor::new(view(), level);
    let mut out = Collect(Vec::new());
    for byte in text {
        redactor.push(std::slice::from_ref(byte), &mut out);
        assert!(redactor.held() <= 600, "{} bytes are held", redactor.held());
    }
    redactor.finish(&mut out);
    String::from_utf8_lossy(&out.0).into_owned()
}

fn one(text: &[u8], level: Level) -> String {
    String::from_utf8_lossy(&redact(&view(), level, text)).into_owned()
}

fn seed(text: &str, round: u64) -> u64 {
    text.bytes()
        .fold(round.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xcbf2_9ce4_8422_2325, |hash, b| {
            (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
        })
}

#[test]
fn every_rule_finds_its_examples_and_nothing_in_its_counterexamples() {
    let mut wrong = Vec::new();
    for rule in rules::all() {
        assert!(
            !rule.yes.is_empty() && !rule.no.is_empty() && !rule.what.is_empty(),
            "{}",
            rule.id
        );
        for (template, round) in rule.yes.iter().flat_map(|t| [0, 1, 2].map(|r| (t, r))) {
            let (text, parts) = make(template, seed(template, round));
            let out = one(text.as_bytes(), Level::Formats);
            let marker = format!("[REDACTED:{}]", rule.id);
            let left: Vec<_> = parts.iter().filter(|p| p.len() > 9 && out.contains(*p)).collect();
            let public = rule.id == "discord-token"
                || rule.id == "telegram-bot-token"
                || rule.id == "terraform-token"
                || rule.id == "teams-webhook";
            if !out.contains(&marker) || (!left.is_empty() && !public) {
                wrong.push(format!("{}: {text:?} -> {out:?}", rule.id));
            }
        }
        for template in rule.no {
            let (text, _) = make(template, seed(template, 0));
            let out = one(text.as_bytes(), Level::Formats);
            if out != text {
                wrong.push(format!("{}: not to be found {text:?} -> {out:?}", rule.id));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_example_comes_out_the_same_at_every_cut() {
    for rule in rules::all() {
        for template in rule.yes.iter().chain(rule.no) {
            let (text, _) = make(template, seed(template, 3));
            let text = format!("a b: {text} and\n");
            for level in [Level::All, Level::Formats] {
                let whole = one(text.as_bytes(), level);
                assert_eq!(by_bytes(text.as_bytes(), level), whole, "{text:?}");
                for cut in 0..=text.len() {
                    assert_eq!(in_two(text.as_bytes(), cut, level), whole, "{cut} of {text:?}");
                }
                assert_eq!(one(whole.as_bytes(), level), whole, "{text:?}");
            }
        }
    }
}

#[test]
fn a_key_that_a_token_runs_into_is_found_at_every_cut() {
    const KEY: &str =
        "-----BEGIN RSA PRIVATE KEY-----\n<b64>\n<b64>\n<b30>==\n-----END RSA PRIVATE KEY-----";
    for before in [
        "sk-ant-<u150>",
        "sl.<u90>",
        "glpat-<a20>",
        "BSA<a20>",
        "password=<a150>",
        "pa-<u30>",
        "x<b64>",
    ] {
        let (text, parts) = make(&format!("a {before}{KEY} and\n"), 3);
        for level in [Level::All, Level::Formats] {
            let whole = one(text.as_bytes(), level);
            assert!(parts[1..].iter().all(|part| !whole.contains(part)), "{whole}");
            assert_eq!(by_bytes(text.as_bytes(), level), whole, "{text:?}");
            for cut in 0..=text.len() {
                assert_eq!(in_two(text.as_bytes(), cut, level), whole, "{cut} of {text:?}");
            }
        }
    }
}

#[test]
fn padding_is_part_of_what_it_pads_at_every_cut() {
    // A value may begin after any sign, and what is padded is named like one.
    let (text, _) = make("x <a60>a7Xpassword===<a20>9x<a20> y\n<a41>1b token==<a40>\n", 7);
    let whole = one(text.as_bytes(), Level::All);
    assert!(whole.contains("high-entropy") && whole.contains("keyword-secret"), "{whole}");
    assert_eq!(by_bytes(text.as_bytes(), Level::All), whole);
    for cut in 1..text.len() {
        assert_eq!(in_two(text.as_bytes(), cut, Level::All), whole, "{cut}");
    }
}

#[test]
fn what_is_random_beside_an_undecided_token_comes_out_the_same_at_every_cut() {
    // Both alphabets of base64 in one block of 256 bytes, in which a token may begin.
    for template in ["<a61>-<a66>+eyJhIjoi<a118>-<a90> y\n", "<a40>_<a87>/eyJhIjoi<a118>-<a90> y\n"]
    {
        let (text, _) = make(template, 7);
        let whole = one(text.as_bytes(), Level::All);
        assert!(whole.contains("high-entropy") && whole.len() > 60, "{whole}");
        assert_eq!(by_bytes(text.as_bytes(), Level::All), whole);
        for cut in 1..text.len() {
            assert_eq!(in_two(text.as_bytes(), cut, Level::All), whole, "{cut}");
        }
    }
}

#[test]
fn there_are_many_rules_and_each_has_an_id_of_its_own() {
    let mut ids: Vec<_> = Detector::rules().map(|(id, _)| id).collect();
    assert!(ids.len() >= 90, "{}", ids.len());
    ids.sort_unstable();
    assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "{ids:?}");
    let fits = |id: &&str| {
        id.len() <= 64
            && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    assert!(ids.iter().all(fits), "{ids:?}");
}

#[test]
fn states_survive_being_stored() {
    use formats::{Class, Going};
    let goings = [
        Going::Armour(pem::Place::Between),
        Going::Armour(pem::Place::Inside),
        Going::Count(399),
        Going::Rest(3, Class::Token),
        Going::Rest(0, Class::Jwt),
        Going::Rest(255, Class::Pattern(301)),
    ];
    let guesses = [
        guesses::Going::None,
        guesses::Going::Count(255, guesses::Kind::Entropy),
        guesses::Going::Count(1, guesses::Kind::Keyword),
        guesses::Going::Rest(guesses::Kind::Keyword),
        guesses::Going::Rest(guesses::Kind::Entropy),
        guesses::Going::Skip(17),
        guesses::Going::SkipRun,
    ];
    let formats = goings.into_iter().flat_map(|g| [Some((None, g)), Some((Some(7), g))]);
    for format in formats.chain([None]) {
        for guess in guesses {
            let open = Open { format, guess };
            assert_eq!(Open::from_bits(open.to_bits()), Some(open));
        }
    }
    assert_eq!(Open::from_bits(7), None);
}

#[test]
fn rules_of_ones_own_are_found_and_rules_are_switched_off() {
    let rule = |id: &str, pattern: &str| RedactionRule { id: id.into(), pattern: pattern.into() };
    let config = Redaction {
        off: vec!["github-token".into(), "high-entropy".into()],
        rules: vec![rule("acme-key", "acme_[a-z0-9]{16}")],
        ..Redaction::default()
    };
    let text = r#"
        [redaction]
        off = ["github-token", "high-entropy"]
        [[redaction.rule]]
        id = "acme-key"
        pattern = "acme_[a-z0-9]{16}"
    "#;
    let path = std::path::Path::new("/c/strongroom.toml");
    assert_eq!(config::Config::parse(text, path).unwrap().redaction, config);
    let detector = Arc::new(Detector::of_config(&config).unwrap());
    let view = Arc::new(View::empty().with_detector(detector));
    let (text, _) = make("acme_<l16> ghp_<a36> glpat-<u20>", 5);
    let out = String::from_utf8(redact(&view, Level::All, text.as_bytes())).unwrap();
    let expected = format!("[REDACTED:acme-key] {} [REDACTED:gitlab-token]", &text[22..62]);
    assert_eq!(out, expected);
    let refused = |off: &[&str], rules: Vec<RedactionRule>| {
        let off = off.iter().map(|s| (*s).to_owned()).collect();
        Detector::of_config(&Redaction { off, rules, ..Redaction::default() }).unwrap_err()
    };
    assert_eq!(refused(&["github-tokn"], vec![]).hint(), "did you mean `github-token`?");
    assert!(matches!(refused(&["nothing-like-it"], vec![]), BadRules::Unknown { near: None, .. }));
    for (id, pattern) in [
        ("Acme", "acme_[a-z0-9]{16}"),
        ("github-token", "acme_[a-z0-9]{16}"),
        ("acme", "[a-z0-9]{16}"),
        ("acme", "acme_.*"),
        ("acme", "acme_[a-z]{4000}"),
    ] {
        let error = refused(&[], vec![rule(id, pattern)]);
        assert!(!error.hint().is_empty() && error.to_string().contains(id), "{error}");
    }
}
