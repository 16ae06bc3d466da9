//! Names of files: secrets in them are found, and hidden where the names are shown.
#![forbid(unsafe_code)]

use std::path::Path;

use super::{Engine, Part};

/// A file's path as it may be shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Name {
    /// Secrets are hidden, and what would move a cursor is escaped.
    pub shown: String,
    /// What was hidden: rules' ids or secrets' names.
    pub rules: Vec<String>,
}

/// Searches paths, all in one text.
///
/// # Errors
/// The engine's.
pub fn names<E: Engine>(paths: &[&Path], engine: &mut E) -> Result<Vec<Name>, E::Error> {
    let mut found: Vec<(Vec<u8>, Vec<String>)> = vec![(Vec::new(), Vec::new())];
    let mut take = |part: Part<'_>| {
        let Some(last) = found.last_mut() else { return };
        match part {
            Part::Clear(bytes) => {
                let mut pieces = bytes.split(|b| *b == b'\n');
                last.0.extend_from_slice(pieces.next().unwrap_or_default());
                found.extend(pieces.map(|piece| (piece.to_vec(), Vec::new())));
            }
            // A hit over several names: the marker comes at its end, the others need their own.
            Part::Hidden(raw) => {
                for _ in raw.iter().filter(|b| **b == b'\n') {
                    if let Some(last) = found.last_mut() {
                        last.0.extend_from_slice(b"[REDACTED]");
                    }
                    found.push((Vec::new(), Vec::new()));
                }
            }
            Part::Marker(text) => {
                last.0.extend_from_slice(text.as_bytes());
                last.1.push(super::place::rule_of(text));
            }
        }
    };
    for (number, path) in paths.iter().enumerate() {
        if number > 0 {
            engine.push(b"\n", &mut take)?;
        }
        let mut bytes = path.as_os_str().as_encoded_bytes().to_vec();
        bytes.iter_mut().filter(|b| **b == b'\n').for_each(|b| *b = b'?');
        engine.push(&bytes, &mut take)?;
    }
    engine.finish(&mut take)?;
    found.resize(paths.len(), Default::default());
    let name = |(bytes, rules): (Vec<u8>, Vec<String>)| Name { shown: plain(&bytes), rules };
    Ok(found.into_iter().map(name).collect())
}

/// Text for a terminal or a report.
fn plain(bytes: &[u8]) -> String {
    let mut text = String::new();
    for c in String::from_utf8_lossy(bytes).chars() {
        // Marks of direction would show another name than the file's.
        let turns = matches!(c,
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || turns {
            text.extend(c.escape_unicode());
        } else {
            text.push(c);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::tests::engine;

    #[test]
    fn a_path_is_shown_without_secrets_and_without_control_characters() {
        let paths = ["a\u{1b}[31m/hunter2-hunter2-7Q/\u{202e}x", "b\nc", "", "d"].map(Path::new);
        let names = names(&paths, &mut engine()).unwrap();
        let shown: Vec<_> = names.iter().map(|n| n.shown.as_str()).collect();
        assert_eq!(shown, ["a\\u{1b}[31m/[REDACTED:DB]/\\u{202e}x", "b?c", "", "d"]);
        assert_eq!(names[0].rules, ["DB"]);
        assert!(names[1].rules.is_empty());
    }
}
