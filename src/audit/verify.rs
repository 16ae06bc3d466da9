//! Checks the chain of links over all files, and reads records back.
//!
//! Invariant: an altered, reordered or dropped line breaks the chain at that line. A tail that was
//! cut off cleanly leaves a valid chain: `audit head`, stored elsewhere, shows that.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::log::{FIRST_LINK, files, link};

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// A line is not what was written there.
    Broken {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// Every line follows from the one before.
    Whole {
        /// How many records.
        records: u64,
        /// The last one's number.
        seq: u64,
        /// Its link.
        link: String,
        /// The highest revision of the vault that a record tells.
        revision: Option<u64>,
    },
}

/// Checks all files in `dir`.
///
/// # Errors
/// When they cannot be read.
pub fn verify(dir: &Path) -> io::Result<Verdict> {
    let mut previous = FIRST_LINK.to_owned();
    let mut seq = 0;
    let mut records = 0;
    let mut revision = None;
    for file in files(dir)? {
        let broken = |line, what| Verdict::Broken { file: file.clone(), line, what };
        let mut reader = BufReader::new(File::open(&file)?);
        let mut text = Vec::new();
        let mut number = 0;
        loop {
            text.clear();
            if reader.read_until(b'\n', &mut text)? == 0 {
                break;
            }
            number += 1;
            if text.pop() != Some(b'\n') {
                return Ok(broken(number, "the line was cut"));
            }
            let Ok(value) = serde_json::from_slice::<Value>(&text) else {
                return Ok(broken(number, "the line does not parse"));
            };
            let Some(told) = value["link"].as_str() else {
                return Ok(broken(number, "the line has no link"));
            };
            let suffix = format!(",\"link\":\"{told}\"}}");
            let Some(unlinked) = text.strip_suffix(suffix.as_bytes()) else {
                return Ok(broken(number, "the link is not the last field"));
            };
            if value["seq"].as_u64() != Some(seq + 1) {
                return Ok(broken(number, "a record before this line is missing or out of order"));
            }
            if link(&previous, unlinked) != told {
                return Ok(broken(number, "the line or one before it was altered"));
            }
            previous = told.to_owned();
            seq += 1;
            records += 1;
            revision = revision.max(value["revision"].as_u64());
        }
    }
    Ok(Verdict::Whole { records, seq, link: previous, revision })
}

/// Passes each record after number `after`, oldest first, to `each` until it returns false.
///
/// # Errors
/// When the files cannot be read.
pub fn read(dir: &Path, after: u64, mut each: impl FnMut(&str, &Value) -> bool) -> io::Result<()> {
    for file in files(dir)? {
        for line in BufReader::new(File::open(&file)?).lines() {
            let line = line?;
            // A line that is just being written comes with the next reading.
            let Ok(value) = serde_json::from_str::<Value>(&line) else { continue };
            if value["seq"].as_u64().is_some_and(|seq| seq > after) && !each(&line, &value) {
                return Ok(());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::log::{Log, Options};
    use crate::audit::record::{Event, Record};
    use crate::clock::{FakeClock, Timestamp};
    use crate::config::Sync;
    use crate::sys::shm::Region;
    use std::sync::Arc;
    use std::time::Duration;

    fn written() -> (tempfile::TempDir, PathBuf, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let region = Arc::new(Region::create(c"ring", 64 << 10).unwrap());
        let options = Options { sync: Sync::Os, patience: Duration::from_secs(1) };
        let clock = Arc::new(FakeClock::at(Timestamp::UNIX_EPOCH));
        let log = Log::open(dir.path(), region, (0, 64 << 10), options, clock).unwrap();
        for version in 1..=5 {
            let mut record = Record::new(Event::SecretAccessed, Timestamp::UNIX_EPOCH);
            record.version = Some(version);
            log.append(&record, 0).unwrap();
        }
        log.stop(Duration::from_secs(5));
        let path = files(dir.path()).unwrap().pop().unwrap();
        let lines = std::fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
        (dir, path, lines)
    }

    #[test]
    fn every_kind_of_tampering_is_found_at_its_line() {
        let (dir, path, lines) = written();
        let check = |lines: &[String]| {
            std::fs::write(&path, lines.iter().map(|l| format!("{l}\n")).collect::<String>())
                .unwrap();
            match verify(dir.path()).unwrap() {
                Verdict::Broken { line, .. } => line,
                Verdict::Whole { .. } => 0,
            }
        };
        assert_eq!(check(&lines), 0);
        let mut altered = lines.clone();
        altered[2] = altered[2].replace("\"version\":3", "\"version\":4");
        assert_eq!(check(&altered), 3);
        let mut dropped = lines.clone();
        dropped.remove(1);
        assert_eq!(check(&dropped), 2);
        let mut swapped = lines.clone();
        swapped.swap(0, 1);
        assert_eq!(check(&swapped), 1);
        let mut first = lines.clone();
        first.remove(0);
        assert_eq!(check(&first), 1);
        let mut doubled = lines.clone();
        doubled.insert(1, lines[0].clone());
        assert_eq!(check(&doubled), 2);
        let mut garbage = lines.clone();
        garbage[4] = "x".into();
        assert_eq!(check(&garbage), 5);
    }

    #[test]
    fn records_are_read_after_a_number() {
        let (dir, _, _) = written();
        let mut seen = Vec::new();
        read(dir.path(), 3, |_, value| {
            seen.push(value["version"].as_u64().unwrap());
            true
        })
        .unwrap();
        assert_eq!(seen, [4, 5]);
    }
}
