//! What an error may say of a text that was not understood: places, keys that are words, and what was
//! expected; never what stood there, since it may be a value.
#![forbid(unsafe_code)]

use std::path::Path;

use super::Error;

/// Turns the parser's error into ours: place and kind, without the offending value.
pub(super) fn describe(error: &toml::de::Error, text: &str, path: &Path) -> Error {
    let (line, column) = error.span().map_or((1, 1), |span| place_of(text, span.start));
    let message = error.message();
    if let Some((key, known)) = unknown_field(message) {
        let near = near_miss(&key, known.iter().map(String::as_str)).map(str::to_owned);
        return Error::UnknownKey { path: path.to_owned(), line, column, key, near, known };
    }
    // serde quotes the value in front of ", expected ..".
    let quotes_value = message.starts_with("invalid ") || message.starts_with("unknown variant");
    let problem = match expected(message) {
        // The types of the source are nobody's words.
        Some("expected usize" | "expected u64" | "expected u32" | "expected u16") => {
            "expected a number".to_owned()
        }
        Some(expected) if quotes_value => expected.to_owned(),
        _ if quotes_value => "wrong kind of value".to_owned(),
        _ => message.lines().next().unwrap_or("not TOML").to_owned(),
    };
    Error::Syntax { path: path.to_owned(), line, column, problem }
}

/// What serde wanted to see, from "invalid type: string "...", expected a number": the last such
/// words, since the value in front of them may hold the same.
pub(crate) fn expected(message: &str) -> Option<&str> {
    message.rfind(", expected ").map(|at| &message[at + 2..])
}

/// Line and column, from 1, of a byte offset.
fn place_of(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
    (line, column)
}

/// Reads key and known keys from serde's "unknown field `k`, expected one of `a`, `b`".
pub(crate) fn unknown_field(message: &str) -> Option<(String, Vec<String>)> {
    let rest = message.strip_prefix("unknown field `")?;
    let mut quoted = rest.split('`').step_by(2);
    let key = shown_key(quoted.next()?).to_owned();
    Some((key, quoted.filter(|k| !k.is_empty()).map(str::to_owned).collect()))
}

/// A key as an error may show it: a word. What looks like no word may be a value in the wrong place.
pub(crate) fn shown_key(key: &str) -> &str {
    let one_case =
        |is: fn(&u8) -> bool| key.bytes().skip(1).filter(u8::is_ascii_alphabetic).all(|b| is(&b));
    let is_word = key.len() <= 40
        && key.bytes().all(|b| b.is_ascii_alphabetic() || b"_-.".contains(&b))
        && (one_case(u8::is_ascii_lowercase) || one_case(u8::is_ascii_uppercase));
    if is_word { key } else { "..." }
}

/// The candidate that a person who typed `word` probably meant: at most a third of it differs.
pub fn near_miss<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let length = word.chars().count();
    let allowed = (length / 3).clamp(1, 3);
    candidates
        // A word of any length costs nothing.
        .filter(|c| c.chars().count().abs_diff(length) <= allowed)
        .map(|c| (distance(word, c), c))
        .filter(|(d, _)| *d <= allowed)
        .min_by_key(|(d, _)| *d)
        .map(|(_, c)| c)
}

/// Edits between two words: insert, delete, replace, swap neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(rows[i - 2][j - 2] + 1);
            }
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_miss_is_near() {
        let known = ["secrets", "agents", "chain"];
        assert_eq!(near_miss("secrts", known.into_iter()), Some("secrets"));
        assert_eq!(near_miss("cahin", known.into_iter()), Some("chain"));
        assert_eq!(near_miss("steps", known.into_iter()), None);
        assert_eq!(near_miss(&"s".repeat(1 << 20), known.into_iter()), None);
    }

    #[test]
    fn a_key_is_shown_if_it_is_a_word() {
        for word in ["snyc", "rotate_evry", "Webhook", "OPENAI_API_KEY", "a-b.c"] {
            assert_eq!(shown_key(word), word);
        }
        for value in ["sk-proj-0123456789abcdef", "hunter2", "wJalrXUtnFEMI", "two words"] {
            assert_eq!(shown_key(value), "...");
        }
    }
}
