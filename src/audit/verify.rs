//! Checks the chain of links over all files, and reads records back.
//!
//! Invariant: an altered, reordered or dropped line breaks the chain at that line; a chain that was
//! made anew breaks at the next checkpoint, whose key is wiped. A tail that was cut off cleanly leaves
//! a valid chain: `audit head`, stored elsewhere, and the vault's own count of checkpoints show that.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::checkpoint::{Anchor, Checkpoint};
use super::files::files;
use super::link::{FIRST_LINK, link};

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
        /// In a word: `altered`, `missing`, `cut`, `truncated`, `forged_checkpoint`.
        kind: &'static str,
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
        /// The last checkpoint's number; 0 for none.
        checkpoints: u64,
        /// Records after the last checkpoint.
        unsealed: u64,
        /// The key that the first checkpoint was signed with.
        first_key: Option<String>,
    },
}

/// What is known from elsewhere.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// The first public key, in hex; none: the one beside the log.
    pub public_key: Option<String>,
    /// A record's number and link, as `audit head` printed them.
    pub head: Option<(u64, String)>,
}

/// The file with the first public key, beside the log.
pub const FIRST_KEY_FILE: &str = "first.pub";
/// The file with the signed start of a log whose first files were removed.
pub const ANCHOR_FILE: &str = "anchor.json";

/// Follows the checkpoints through the log.
struct Seals {
    /// The key that must sign the next checkpoint, where it is known.
    expects: Option<String>,
    first_key: Option<String>,
    announced: Vec<String>,
    /// Links of records since the last sealed one.
    recent: VecDeque<(u64, String)>,
    number: u64,
    at_seq: u64,
}

impl Seals {
    fn follow(&mut self, seq: u64, value: &Value, link: &str) -> Result<(), &'static str> {
        if value["event"] == "checkpoint" {
            let checkpoint: Checkpoint = serde_json::from_value(value.clone())
                .map_err(|_| "the checkpoint does not parse")?;
            if !checkpoint.is_signed() {
                return Err("the checkpoint's signature is not its key's");
            }
            if self.expects.as_ref().is_some_and(|key| *key != checkpoint.public_key) {
                return Err("the checkpoint is signed by a key that was not announced");
            }
            if checkpoint.number != self.number + 1 {
                return Err("a checkpoint before this one is missing");
            }
            let sealed = self.recent.iter().find(|(seq, _)| *seq == checkpoint.sealed_seq);
            if sealed.is_none_or(|(_, link)| *link != checkpoint.sealed_link) {
                return Err("the checkpoint seals other records than those before it");
            }
            self.recent.retain(|(seq, _)| *seq > checkpoint.sealed_seq);
            self.number = checkpoint.number;
            self.at_seq = seq;
            self.first_key.get_or_insert(checkpoint.public_key);
            self.announced.push(checkpoint.next_key.clone());
            self.expects = Some(checkpoint.next_key);
        }
        self.recent.push_back((seq, link.to_owned()));
        Ok(())
    }
}

fn read_if_there(path: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The signed start of a pruned log.
///
/// # Errors
/// When it cannot be read; one that does not parse is `InvalidData`.
pub fn anchor(dir: &Path) -> io::Result<Option<Anchor>> {
    let text = read_if_there(&dir.join(ANCHOR_FILE))?;
    text.map(|t| {
        serde_json::from_str(&t).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    })
    .transpose()
}

/// Checks all files in `dir`, and what is known from elsewhere.
///
/// # Errors
/// When they cannot be read.
pub fn verify(dir: &Path, known: &Known) -> io::Result<Verdict> {
    let anchor_file = dir.join(ANCHOR_FILE);
    let not_whole =
        |file: &Path, line, what, kind| Verdict::Broken { file: file.to_owned(), line, what, kind };
    let anchor = match anchor(dir) {
        Err(e) if e.kind() == io::ErrorKind::InvalidData => {
            return Ok(not_whole(&anchor_file, 1, "the anchor does not parse", "altered"));
        }
        other => other?,
    };
    if anchor.as_ref().is_some_and(|a| !a.is_signed()) {
        let what = "the anchor's signature is not its key's";
        return Ok(not_whole(&anchor_file, 1, what, "forged_checkpoint"));
    }
    let first_key = match &known.public_key {
        Some(key) => Some(key.trim().to_owned()),
        None => read_if_there(&dir.join(FIRST_KEY_FILE))?.map(|key| key.trim().to_owned()),
    };
    let mut previous = FIRST_LINK.to_owned();
    let mut seq = 0;
    let mut seals = Seals {
        expects: first_key.clone(),
        first_key: None,
        announced: Vec::new(),
        recent: VecDeque::from([(0, FIRST_LINK.to_owned())]),
        number: 0,
        at_seq: 0,
    };
    if let Some(anchor) = &anchor {
        previous.clone_from(&anchor.link);
        seq = anchor.seq;
        seals.recent.push_back((seq, previous.clone()));
        seals.number = anchor.checkpoints;
        seals.at_seq = seq;
        if anchor.expects.is_some() {
            seals.expects.clone_from(&anchor.expects);
            seals.first_key.clone_from(&first_key);
        }
    }
    let anchored = seq;
    let mut records = 0;
    let mut revision = None;
    let mut head_found = known.head.as_ref().is_none_or(|(at, _)| *at == 0);
    let mut last_file = dir.to_owned();
    for file in files(dir)? {
        last_file.clone_from(&file);
        let broken = |line, what, kind| not_whole(&file, line, what, kind);
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
                return Ok(broken(number, "the line was cut", "cut"));
            }
            let Ok(value) = serde_json::from_slice::<Value>(&text) else {
                return Ok(broken(number, "the line does not parse", "altered"));
            };
            let Some(told) = value["link"].as_str() else {
                return Ok(broken(number, "the line has no link", "altered"));
            };
            let suffix = format!(",\"link\":\"{told}\"}}");
            let Some(unlinked) = text.strip_suffix(suffix.as_bytes()) else {
                return Ok(broken(number, "the link is not the last field", "altered"));
            };
            let own = value["seq"].as_u64();
            // Killed between the anchor and the removal: the anchor stands for this record.
            if records == 0 && own.is_some_and(|own| own <= anchored) {
                continue;
            }
            if own != Some(seq + 1) {
                let what = "a record before this line is missing or out of order";
                return Ok(broken(number, what, "missing"));
            }
            if link(&previous, unlinked) != told {
                return Ok(broken(number, "the line or one before it was altered", "altered"));
            }
            previous = told.to_owned();
            seq += 1;
            records += 1;
            revision = revision.max(value["revision"].as_u64());
            if let Err(what) = seals.follow(seq, &value, &previous) {
                return Ok(broken(number, what, "forged_checkpoint"));
            }
            if let Some((at, link)) = &known.head
                && *at == seq
            {
                if *link != previous {
                    let what = "the record is another than the one that was noted elsewhere";
                    return Ok(broken(number, what, "altered"));
                }
                head_found = true;
            }
        }
    }
    if !head_found && known.head.as_ref().is_some_and(|(at, _)| *at > seq) {
        let what = "the log ends before the record that was noted elsewhere";
        return Ok(not_whole(&last_file, records, what, "truncated"));
    }
    if let Some(anchor) = &anchor
        && !seals.announced.contains(&anchor.public_key)
        && anchor.expects.as_ref() != Some(&anchor.public_key)
    {
        let what = "the anchor is signed by a key that the log does not announce";
        return Ok(not_whole(&anchor_file, 1, what, "forged_checkpoint"));
    }
    Ok(Verdict::Whole {
        records,
        seq,
        link: previous,
        revision,
        checkpoints: seals.number,
        unsealed: seq - seals.at_seq,
        first_key: seals.first_key,
    })
}

/// Passes each record after number `after`, oldest first, to `each` until it returns false.
///
/// # Errors
/// When the files cannot be read.
pub fn read(dir: &Path, after: u64, mut each: impl FnMut(&str, &Value) -> bool) -> io::Result<()> {
    for file in files(dir)? {
        let mut go_on = true;
        each_line(&file, |line, value| {
            if value["seq"].as_u64().is_some_and(|seq| seq > after) {
                go_on = each(line, value);
            }
            go_on
        })?;
        if !go_on {
            break;
        }
    }
    Ok(())
}

/// Passes each record of one file to `each` until it returns false.
///
/// # Errors
/// When the file cannot be read.
pub fn each_line(file: &Path, mut each: impl FnMut(&str, &Value) -> bool) -> io::Result<()> {
    for line in BufReader::new(File::open(file)?).lines() {
        let line = line?;
        // A line that is just being written comes with the next reading.
        let Ok(value) = serde_json::from_str::<Value>(&line) else { continue };
        if !each(&line, &value) {
            break;
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
        let options = Options { sync: Sync::Os, patience: Duration::from_secs(60) };
        let clock = Arc::new(FakeClock::at(Timestamp::UNIX_EPOCH));
        let log = Log::open(dir.path(), region, (0, 64 << 10), options, clock).unwrap();
        for version in 1..=5 {
            let mut record = Record::new(Event::SecretAccessed, Timestamp::UNIX_EPOCH);
            record.version = Some(version);
            log.append(&record, 0).unwrap();
        }
        log.stop(Duration::from_secs(60));
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
            match verify(dir.path(), &Known::default()).unwrap() {
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
