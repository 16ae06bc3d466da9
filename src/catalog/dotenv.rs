//! Reads `.env` files: `NAME=value`, `export`, quotes, comments, values over several lines.
//!
//! Invariant: nothing is expanded or executed; `$VAR` stays as it is written. Errors tell the line
//! and never quote it.
#![forbid(unsafe_code)]

use zeroize::Zeroizing;

use crate::secret::SecretBytes;

/// One assignment.
pub struct Line {
    /// The line it starts on, from 1.
    pub line: usize,
    /// What stands before the `=`, not yet checked as a name.
    pub key: String,
    /// The value without its quotes.
    pub value: SecretBytes,
}

/// Why a file is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Neither an assignment, a comment nor empty.
    #[error("line {line} is no assignment NAME=value")]
    NoAssignment {
        /// Which, from 1.
        line: usize,
    },
    /// The text is not UTF-8.
    #[error("the file is not UTF-8")]
    NotText,
    /// Something stands behind a closing quote.
    #[error("line {line} has text after its closing quote")]
    Trailing {
        /// Which, from 1.
        line: usize,
    },
    /// A quote is not closed.
    #[error("the quote that opens on line {line} is not closed")]
    Unclosed {
        /// Which, from 1.
        line: usize,
    },
}

/// Reads all assignments in their order; one name may come twice.
///
/// # Errors
/// The first line that is no assignment.
pub fn parse(bytes: &[u8]) -> Result<Vec<Line>, Error> {
    let text = std::str::from_utf8(bytes).map_err(|_| Error::NotText)?;
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut line = 1;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (first, _) = rest.split_once('\n').unwrap_or((rest, ""));
        let trimmed = first.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            rest = after_line(rest);
            line += 1;
            continue;
        }
        let (key, _) = first.split_once('=').ok_or(Error::NoAssignment { line })?;
        let value_at = &rest[key.len() + 1..];
        let key = key.trim();
        let key = key.strip_prefix("export").filter(|k| k.starts_with([' ', '\t'])).unwrap_or(key);
        let key = key.trim();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err(Error::NoAssignment { line });
        }
        let (value, used) = value(value_at, line)?;
        found.push(Line { line, key: key.to_owned(), value });
        line += value_at[..used].matches('\n').count() + 1;
        rest = after_line(&value_at[used..]);
    }
    Ok(found)
}

fn after_line(text: &str) -> &str {
    text.split_once('\n').map_or("", |(_, rest)| rest)
}

/// The value at the start of `text`, and how many bytes of it were read, up to the line's end.
fn value(text: &str, line: usize) -> Result<(SecretBytes, usize), Error> {
    let lead = text.len() - text.trim_start_matches([' ', '\t']).len();
    let body = &text[lead..];
    let Some(quote @ ('"' | '\'' | '`')) = body.chars().next() else {
        let end = body.find('\n').unwrap_or(body.len());
        let whole = &body[..end];
        // A comment needs a space before it: `pa#ss` is a value.
        let comment = [" #", "\t#"].iter().filter_map(|c| whole.find(c)).min();
        let comment = if whole.starts_with('#') && lead > 0 { Some(0) } else { comment };
        let plain = whole[..comment.unwrap_or(end)].trim_end();
        return Ok((SecretBytes::copy_of(plain.as_bytes()), lead + end));
    };
    // Never longer than the source, so the buffer does not grow and leave copies behind.
    let mut buffer = Zeroizing::new(String::with_capacity(body.len()));
    let mut chars = body.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c == quote {
            let tail = &body[at + 1..];
            let end = tail.find('\n').unwrap_or(tail.len());
            let after = tail[..end].trim();
            if !after.is_empty() && !after.starts_with('#') {
                return Err(Error::Trailing { line });
            }
            return Ok((SecretBytes::copy_of(buffer.as_bytes()), lead + at + 1 + end));
        }
        if c != '\\' || quote != '"' {
            buffer.push(c);
            continue;
        }
        match chars.next() {
            Some((_, 'n')) => buffer.push('\n'),
            Some((_, 'r')) => buffer.push('\r'),
            Some((_, 't')) => buffer.push('\t'),
            Some((_, c @ ('"' | '\\' | '$' | '`'))) => buffer.push(c),
            Some((_, other)) => {
                buffer.push('\\');
                buffer.push(other);
            }
            None => break,
        }
    }
    Err(Error::Unclosed { line })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(text: &str) -> (String, String) {
        let mut lines = parse(text.as_bytes()).unwrap();
        assert_eq!(lines.len(), 1, "{text}");
        let line = lines.remove(0);
        (line.key, String::from_utf8(line.value.expose().to_vec()).unwrap())
    }

    #[test]
    fn assignments_are_read_as_people_write_them() {
        for (text, value) in [
            ("K=v", "v"),
            ("export K=v\r\n", "v"),
            ("  K = v w  # note", "v w"),
            ("K=pa#ss", "pa#ss"),
            ("K=#x", "#x"),
            ("K=", ""),
            ("K=a=b", "a=b"),
            ("K=\"a\\nb\" # note", "a\nb"),
            ("K='a\\nb $X'", "a\\nb $X"),
            ("K=\"-----BEGIN\nline\n-----END\"\n", "-----BEGIN\nline\n-----END"),
            ("K=\"q\\\"q\"", "q\"q"),
            ("\u{feff}# head\n\nK=\u{e9}", "\u{e9}"),
        ] {
            assert_eq!(one(text), ("K".to_owned(), value.to_owned()), "{text:?}");
        }
    }

    #[test]
    fn lines_are_counted_over_a_value_of_several_lines() {
        let lines = parse(b"A=\"1\n2\"\n# x\nB=3\n").unwrap();
        assert_eq!(lines.iter().map(|l| l.line).collect::<Vec<_>>(), [1, 4]);
    }

    #[test]
    fn what_is_no_assignment_is_refused_with_its_line_and_unquoted() {
        for (text, error) in [
            ("A=1\nhunter2\n", Error::NoAssignment { line: 2 }),
            ("A=1\nB=\"hunter2\nC=3", Error::Unclosed { line: 2 }),
            ("A=\"1\" hunter2", Error::Trailing { line: 1 }),
            ("two words=hunter2", Error::NoAssignment { line: 1 }),
            ("=hunter2", Error::NoAssignment { line: 1 }),
        ] {
            let found = parse(text.as_bytes()).err().unwrap();
            assert_eq!(found, error);
            assert!(!found.to_string().contains("hunter2"));
        }
        assert_eq!(parse(b"A=\xff").err(), Some(Error::NotText));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[AB= \"'`#\\\\\n\r$e\u{e9}]{0,60}") {
            if let Ok(lines) = parse(text.as_bytes()) {
                let read: usize = lines.iter().map(|l| l.value.len()).sum();
                prop_assert!(read <= text.len());
            }
        }
    }
}
