//! What is found of a labelled corpus, by family; see `tests/corpus/README.md`.
//!
//! `cargo test --test detection -- --nocapture` prints recall and false hits. A secret counts as found if
//! no eight bytes of it in a row are left; a line without a secret must come out as it went in.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use strongroom::redact::{Level, Redactor, Sink, View, redact};

const SHAPES: &str = include_str!("corpus/shapes.txt");
const CONTEXTS: &str = include_str!("corpus/contexts.txt");
const NEGATIVES: &str = include_str!("corpus/negatives.txt");
/// How often each negative is filled in.
const ROUNDS: usize = 12;

/// Numbers that are the same in every run (SplitMix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn of(&mut self, alphabet: &str, count: usize) -> String {
        let letters: Vec<char> = alphabet.chars().collect();
        (0..count).map(|_| letters[self.below(letters.len())]).collect()
    }
}

const LOWER: &str = "abcdefghijklmnopqrstuvwxyz";
const UPPER: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const DIGIT: &str = "0123456789";

fn base64(bytes: &[u8], url_safe: bool) -> String {
    let last = if url_safe { "-_" } else { "+/" };
    let alphabet: Vec<char> = format!("{UPPER}{LOWER}{DIGIT}{last}").chars().collect();
    let mut out = String::new();
    for three in bytes.chunks(3) {
        let word =
            three.iter().fold(0_u32, |w, b| w << 8 | u32::from(*b)) << (8 * (3 - three.len()));
        for at in 0..=three.len() {
            out.push(alphabet[(word >> (18 - 6 * at)) as usize & 63]);
        }
        if !url_safe {
            out.extend(std::iter::repeat_n('=', 3 - three.len()));
        }
    }
    out
}

fn random_bytes(dice: &mut Dice, count: usize) -> Vec<u8> {
    (0..count).map(|_| dice.next() as u8).collect()
}

fn one(dice: &mut Dice, class: &str, count: usize) -> String {
    let alphabet = match class {
        "HEX" => format!("{DIGIT}ABCDEF"),
        "alpha" => format!("{LOWER}{UPPER}"),
        "base32" => format!("{UPPER}234567"),
        "base36" => format!("{LOWER}{DIGIT}"),
        "base62" => format!("{LOWER}{UPPER}{DIGIT}"),
        "base64" => return base64(&random_bytes(dice, count), false)[..count].to_owned(),
        "base64url" => return base64(&random_bytes(dice, count), true)[..count].to_owned(),
        "bech32" => "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L".to_owned(),
        "digit" => DIGIT.to_owned(),
        "hex" => format!("{DIGIT}abcdef"),
        "password" => format!("{LOWER}{UPPER}{DIGIT}{DIGIT}!#$%*+-=?@^_~."),
        "urlpass" => format!("{LOWER}{UPPER}{DIGIT}!$*+-_.~="),
        _ => panic!("no such class: {class}"),
    };
    dice.of(&alphabet, count)
}

fn jwt(dice: &mut Dice) -> String {
    let header = match dice.below(3) {
        0 => r#"{"alg":"HS256","typ":"JWT"}"#.to_owned(),
        1 => format!(r#"{{"kid":"{}","alg":"RS256"}}"#, one(dice, "hex", 16)),
        _ => r#"{"typ":"JWT","alg":"none"}"#.to_owned(),
    };
    let payload = format!(r#"{{"sub":"{}","iat":1764000000}}"#, one(dice, "digit", 10));
    let signature = if header.contains("none") { 0 } else { [32, 64, 256][dice.below(3)] };
    let parts = [header.as_bytes(), payload.as_bytes(), &random_bytes(dice, signature)];
    parts.map(|part| base64(part, true)).join(".")
}

fn pem(dice: &mut Dice) -> String {
    let label = [
        "RSA PRIVATE KEY",
        "PRIVATE KEY",
        "EC PRIVATE KEY",
        "OPENSSH PRIVATE KEY",
        "ENCRYPTED PRIVATE KEY",
        "PGP PRIVATE KEY BLOCK",
    ][dice.below(6)];
    let len = [48, 121, 399, 1190, 2350][dice.below(5)];
    let body = base64(&random_bytes(dice, len), false);
    let width = if label.starts_with("OPENSSH") { 70 } else { 64 };
    let mut lines = vec![format!("-----BEGIN {label}-----")];
    if label.starts_with("PGP") {
        lines.push("Version: GnuPG v2".into());
        lines.push(String::new());
    }
    lines.extend(body.as_bytes().chunks(width).map(|l| String::from_utf8_lossy(l).into_owned()));
    if label.starts_with("PGP") {
        lines.push(format!("={}", one(dice, "base64", 4)));
    }
    lines.push(format!("-----END {label}-----"));
    lines.join("\n")
}

/// Fills in what stands in braces.
fn fill(dice: &mut Dice, template: &str) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        out.push_str(before);
        let inside = after.split_once('}').map(|(inside, _)| inside);
        let made = inside.and_then(|inside| match inside {
            "jwt" => Some(jwt(dice)),
            "pem" => Some(pem(dice)),
            "uuid" => Some([8, 4, 4, 4, 12].map(|n| one(dice, "hex", n)).join("-")),
            _ => {
                let (class, count) = inside.split_once('*')?;
                let count = count.parse().ok()?;
                Some(class)
                    .filter(|c| c.chars().all(char::is_alphanumeric))
                    .map(|class| one(dice, class, count))
            }
        });
        match (made, inside) {
            (Some(made), Some(inside)) => {
                out.push_str(&made);
                rest = &after[inside.len() + 1..];
            }
            _ => {
                out.push('{');
                rest = after;
            }
        }
    }
    out + rest
}

struct Sample {
    family: &'static str,
    text: String,
    /// What must go.
    secret: String,
}

fn fields(line: &'static str, count: usize) -> Option<Vec<&'static str>> {
    let fields: Vec<_> = line.splitn(count, " | ").collect();
    (fields.len() == count).then_some(fields)
}

/// Each form in each context of its family.
fn positives() -> Vec<Sample> {
    let dice = &mut Dice(0x5eed);
    let mut samples = Vec::new();
    for (family, name, shape) in
        SHAPES.lines().filter_map(|l| fields(l, 3)).map(|f| (f[0], f[1], f[2]))
    {
        for context in CONTEXTS.lines().filter_map(|l| fields(l, 2)).filter(|f| f[0] == family) {
            let rounds = if family == "self" || family == "named" { 1 } else { 6 };
            for _ in 0..rounds {
                let marked = fill(dice, shape);
                let secret = marked.replace("[[", "").replace("]]", "");
                let inside = marked.split_once("[[").and_then(|(_, rest)| rest.split_once("]]"));
                let part = inside.map_or_else(|| secret.clone(), |(inside, _)| inside.to_owned());
                let text = context[1]
                    .replace("NAME", name)
                    .replace("{ESC}", "\x1b")
                    .replace("{}", &secret)
                    .replace("{JSON}", &secret.replace('\n', "\\n"))
                    .replace("{INDENTED}", &secret.replace('\n', "\n    "))
                    .replace("{QUOTED}", &format!("> {}", secret.replace('\n', "\n> ")))
                    .replace("{ONELINE}", &secret.replace('\n', " "))
                    .replace(
                        "{LOGGED}",
                        &format!(
                            "2026-11-24 INFO k: {}",
                            secret.replace('\n', "\n2026-11-24 INFO k: ")
                        ),
                    )
                    .replace("{DIFF}", &format!("+{}", secret.replace('\n', "\n+")));
                samples.push(Sample { family, text, secret: part });
            }
        }
    }
    samples
}

fn negatives() -> Vec<String> {
    let dice = &mut Dice(0x0ff);
    let blocks: Vec<_> = NEGATIVES.split("\n\n").collect();
    let mut texts = Vec::new();
    for block in blocks {
        for _ in 0..if block.contains("*") || block.contains("{uuid}") { ROUNDS } else { 1 } {
            texts.push(fill(dice, block.trim_end_matches('\n')));
        }
    }
    texts
}

/// Whether eight bytes of what is secret are left: the public beginning of a token may be.
fn is_left(secret: &str, out: &str, family: &str) -> bool {
    let parts: Vec<&str> = match family {
        "pem" => {
            let is_body = |l: &&str| l.len() > 24 && !l.starts_with("---") && !l.contains(' ');
            secret.lines().filter(is_body).collect()
        }
        "jwt" => secret.split('.').skip(1).filter(|part| part.len() > 20).collect(),
        _ => vec![secret],
    };
    let is_there = |piece: &[u8]| out.as_bytes().windows(piece.len()).any(|w| w == piece);
    parts.iter().any(|part| part.as_bytes().windows(8.min(part.len())).any(is_there))
}

fn level_of(family: &str) -> Level {
    if matches!(family, "entropy" | "keyword") { Level::All } else { Level::Formats }
}

fn out(view: &Arc<View>, level: Level, text: &str) -> String {
    String::from_utf8_lossy(&redact(view, level, text.as_bytes())).into_owned()
}

#[test]
fn secrets_of_each_family_are_found_and_ordinary_text_is_left_alone() {
    let view = Arc::new(View::empty());
    let mut found: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut missed = String::new();
    for sample in positives() {
        let redacted = out(&view, level_of(sample.family), &sample.text);
        let hit =
            redacted.contains("[REDACTED:") && !is_left(&sample.secret, &redacted, sample.family);
        let (hits, all) = found.entry(sample.family).or_default();
        *all += 1;
        *hits += usize::from(hit);
        if !hit && *all - *hits <= 12 {
            let _written =
                writeln!(missed, "missed {}: {} -> {redacted}", sample.family, sample.text);
        }
    }
    let negatives = negatives();
    let mut wrong = 0;
    for text in &negatives {
        let redacted = out(&view, Level::All, text);
        if redacted != *text {
            wrong += 1;
            let _written = writeln!(missed, "false hit: {text} -> {redacted}");
        }
    }
    let share = |(hits, all): (usize, usize)| hits as f64 / all as f64;
    let hits: usize = found.values().map(|(hits, _)| hits).sum();
    println!("{missed}");
    for (family, counts) in &found {
        println!("{family:10} recall {:6.2} % of {}", 100.0 * share(*counts), counts.1);
    }
    let false_share = share((wrong, negatives.len()));
    println!("false hits {:6.2} % of {} texts", 100.0 * false_share, negatives.len());
    println!("precision  {:6.2} %", 100.0 * share((hits, hits + wrong)));
    for (family, least) in [
        ("entropy", 0.95),
        ("jwt", 1.0),
        ("keyword", 0.70),
        ("named", 0.95),
        ("pem", 1.0),
        ("self", 0.95),
        ("url", 1.0),
    ] {
        assert!(share(found[family]) >= least, "recall of {family}");
    }
    assert!(false_share <= 0.01, "false hits");
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

/// Everything in one text, in an order of its own.
fn whole_corpus(seed: u64) -> Vec<u8> {
    let dice = &mut Dice(seed);
    let mut texts: Vec<String> =
        positives().into_iter().map(|s| s.text).chain(negatives()).collect();
    for at in (1..texts.len()).rev() {
        texts.swap(at, dice.below(at + 1));
    }
    let glue = ["\n", "\n", "\n", " ", "", ", ", "\t", "\\n", "=", ":", "/", "."];
    let mut out = Vec::new();
    for text in texts {
        out.extend_from_slice(text.as_bytes());
        out.extend_from_slice(glue[dice.below(glue.len())].as_bytes());
    }
    out
}

#[test]
fn the_corpus_comes_out_the_same_however_it_is_cut() {
    let view = Arc::new(View::empty());
    for (seed, most) in [(1, 3), (2, 40), (3, 700), (4, 9000)] {
        let text = whole_corpus(seed);
        for level in [Level::All, Level::Formats] {
            let whole = redact(&view, level, &text);
            let dice = &mut Dice(seed);
            let mut redactor = Redactor::new(view.clone(), level);
            let mut out = Collect(Vec::new());
            let mut rest = &text[..];
            while !rest.is_empty() {
                let (piece, after) = rest.split_at((1 + dice.below(most)).min(rest.len()));
                redactor.push(piece, &mut out);
                assert!(redactor.held() <= 600, "{} bytes are held", redactor.held());
                if dice.below(50) == 0 {
                    redactor = Redactor::resume(view.clone(), level, &redactor.save()).unwrap();
                }
                rest = after;
            }
            redactor.finish(&mut out);
            if out.0 != whole {
                let at = out.0.iter().zip(&whole).take_while(|(a, b)| a == b).count();
                let near = |t: &[u8]| {
                    let piece = &t[at.saturating_sub(200)..t.len().min(at + 100)];
                    String::from_utf8_lossy(piece).into_owned()
                };
                panic!(
                    "seed {seed}, {level:?}:\n{}\nin one piece:\n{}",
                    near(&out.0),
                    near(&whole)
                );
            }
        }
    }
}

#[test]
fn json_of_the_corpus_parses_after() {
    let view = Arc::new(View::empty());
    let samples = positives();
    let texts = samples.iter().map(|s| s.text.as_str());
    let mut checked = 0;
    for text in texts.clone() {
        // As a line of its own, and inside a string, once and twice.
        let once =
            serde_json::json!({ "content": text, "n": 12_345_678_901_234_567_890_u64 }).to_string();
        let twice = serde_json::json!([{ "log": once, "ok": true }]).to_string();
        for json in [text, once.as_str(), twice.as_str()] {
            if serde_json::from_str::<serde_json::Value>(json).is_ok() {
                checked += 1;
                let redacted = out(&view, Level::All, json);
                let parsed = serde_json::from_str::<serde_json::Value>(&redacted);
                assert!(parsed.is_ok(), "{json} -> {redacted}");
            }
        }
    }
    assert!(checked > 2 * samples.len());
}

#[test]
fn markers_are_never_redacted_themselves() {
    let view = Arc::new(View::empty());
    for sample in positives() {
        for level in [Level::All, Level::Formats] {
            let once = out(&view, level, &sample.text);
            assert_eq!(out(&view, level, &once), once, "{}", sample.text);
        }
    }
}
