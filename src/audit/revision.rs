//! The highest revision of the vault that the records tell, found without checking the chain.
//!
//! A start must not take longer the longer the log is, so files are searched from the newest on, as
//! bytes, and only until two of them told of a revision: records of changes that were made at the
//! same time may stand in any order, at most on either side of midnight. Invariant: a log that does
//! not verify tells its revision all the same, so that altering one line does not let an older
//! vault in. `audit verify` checks the chain.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::files::files;

/// A field of a record. Inside a text its quotes would be escaped.
const FIELD: &[u8] = b"\"revision\":";
const CHUNK_BYTES: usize = 256 << 10;
/// Digits of the longest number, and the byte behind it.
const NUMBER_BYTES: usize = 21;

/// The highest revision in `dir`; `None` where no record tells one.
///
/// # Errors
/// When a file cannot be read.
pub fn highest(dir: &Path) -> io::Result<Option<u64>> {
    let mut found = None;
    let mut told = 0;
    for path in files(dir)?.iter().rev() {
        if let Some(revision) = highest_in(File::open(path)?)? {
            found = found.max(Some(revision));
            told += 1;
            if told == 2 {
                break;
            }
        }
    }
    Ok(found)
}

fn highest_in(mut source: impl Read) -> io::Result<Option<u64>> {
    let mut highest = None;
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut kept = 0;
    loop {
        let read = match source.read(&mut buffer[kept..]) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        let filled = kept + read;
        let mut from = 0;
        while let Some(at) = find(&buffer[from..filled]) {
            let digits = from + at + FIELD.len();
            let len = buffer[digits..filled].iter().take_while(|b| b.is_ascii_digit()).count();
            let text = std::str::from_utf8(&buffer[digits..digits + len]).unwrap_or_default();
            // A number that is cut by the chunk's end is read again, whole, with the next one.
            if digits + len < filled || read == 0 {
                highest = highest.max(text.parse::<u64>().ok());
            }
            from = digits;
        }
        if read == 0 {
            return Ok(highest);
        }
        // What may be the beginning of a field, and its number, stays.
        kept = filled.min(FIELD.len() + NUMBER_BYTES);
        buffer.copy_within(filled - kept..filled, 0);
    }
}

/// Where the field's name begins.
fn find(bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    // A byte that is rare in a record is looked for first.
    const RARE: usize = 3;
    loop {
        let at = bytes.get(from + RARE..)?.iter().position(|b| *b == FIELD[RARE])? + from;
        if bytes[at..].starts_with(FIELD) {
            return Some(at);
        }
        from = at + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives at most `step` bytes at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let n = self.1.min(self.0.len()).min(into.len());
            into[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    #[test]
    fn the_highest_is_found_however_the_file_is_read() {
        let text = b"{\"event\":\"a\",\"revision\":7,\"link\":\"x\"}\n{\"reason\":\"\\\"revision\\\":99\"}\n\
            {\"revision\":18446744073709551615,\"link\":\"y\"}\n{\"revision\":3,\"link\":\"z\"}\n";
        for step in [1, 2, 7, 30, 1000] {
            assert_eq!(highest_in(Slow(text, step)).unwrap(), Some(u64::MAX), "{step}");
            let first = &text[..38];
            assert_eq!(highest_in(Slow(first, step)).unwrap(), Some(7), "{step}");
        }
        assert_eq!(highest_in(Slow(b"{\"rev\":1}\n", 4)).unwrap(), None);
        assert_eq!(highest_in(Slow(b"\"revision\":12", 4)).unwrap(), Some(12));
    }

    #[test]
    fn a_field_over_the_end_of_a_chunk_is_found() {
        for place in CHUNK_BYTES - 40..CHUNK_BYTES + 2 {
            let mut text = vec![b' '; place];
            text.extend_from_slice(b"\"revision\":123456789,");
            text.extend_from_slice(&[b' '; 50]);
            assert_eq!(highest_in(&text[..]).unwrap(), Some(123_456_789), "{place}");
        }
    }

    #[test]
    fn an_altered_log_still_tells_and_older_files_are_not_read_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let write = |day: &str, text: &str| {
            std::fs::write(dir.path().join(format!("{day}.jsonl")), text).unwrap();
        };
        assert_eq!(highest(dir.path()).unwrap(), None);
        write("2026-01-01", "{\"revision\":900,}\n");
        write("2026-01-02", "{\"revision\":50,}\n");
        assert_eq!(highest(dir.path()).unwrap(), Some(900));
        write("2026-01-03", "garbage {\"revision\":51,\n");
        write("2026-01-04", "{\"event\":\"none\"}\n");
        // Only the newest two that tell are asked: numbers only grow.
        assert_eq!(highest(dir.path()).unwrap(), Some(51));
    }
}
