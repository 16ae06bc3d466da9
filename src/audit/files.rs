//! The log's files: one a day, whole lines alone, and a reserve for a full disk.
//!
//! Invariant: what `Files::append` could not write as a whole is not there at all, and a file that
//! was removed or renamed under us is noticed at the next append. A last line that a dying worker left
//! half written is cut off at the next start: the ring still has it.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::clock::Clock;
use crate::config::Sync;

use super::link::{FIRST_LINK, Head};

/// Far longer than the longest line.
const TAIL_BYTES: u64 = 1 << 20;
/// Room for about 2,000 vital records on a full disk.
const RESERVE_BYTES: i64 = 1 << 20;
const RESERVE_FILE: &str = "reserve";

/// The directory, and the file that is written now.
pub(super) struct Files {
    dir: PathBuf,
    open: Option<(PathBuf, File)>,
}

impl Files {
    pub(super) fn of(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), open: None }
    }

    /// Opens it anew at the next append.
    pub(super) fn close(&mut self) {
        self.open = None;
    }

    /// Appends whole lines to the file of the day, or nothing.
    pub(super) fn append(&mut self, day: &str, lines: &[u8], sync: Sync) -> io::Result<()> {
        let path = self.dir.join(format!("{day}.jsonl"));
        let gone = self.open.as_ref().is_none_or(|(opened, file)| {
            // Removed or renamed under us: what is written must be found again.
            *opened != path
                || match (file.metadata(), fs::metadata(&path)) {
                    (Ok(held), Ok(named)) => held.ino() != named.ino() || held.nlink() == 0,
                    _ => true,
                }
        });
        if gone {
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
            self.open = Some((path, file));
        }
        let Some((_, file)) = self.open.as_mut() else {
            return Err(io::Error::other("no file is open"));
        };
        let before = file.metadata()?.len();
        let written = file.write_all(lines).and_then(|()| match sync {
            Sync::Each | Sync::Batch => file.sync_data(),
            Sync::Os => Ok(()),
        });
        if written.is_err() {
            // A part of a line would be taken for an altered one.
            file.set_len(before)?;
        }
        written
    }
}

/// Takes the room of the reserve, where it is not taken yet.
pub(super) fn reserve(dir: &Path) -> io::Result<()> {
    let path = dir.join(RESERVE_FILE);
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    if i64::try_from(file.metadata()?.len()).is_ok_and(|len| len >= RESERVE_BYTES) {
        return Ok(());
    }
    let taken = nix::fcntl::posix_fallocate(&file, 0, RESERVE_BYTES).map_err(io::Error::from);
    if taken.is_err() {
        // What was taken of it is for the records that come first.
        file.set_len(0)?;
    }
    taken
}

/// Frees the room of the reserve; false when there is none.
pub(super) fn give_up_reserve(dir: &Path) -> bool {
    let file = OpenOptions::new().write(true).open(dir.join(RESERVE_FILE));
    file.is_ok_and(|file| file.metadata().is_ok_and(|m| m.len() > 0) && file.set_len(0).is_ok())
}

pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Today, in UTC, as files are named.
pub(super) fn day(clock: &dyn Clock) -> String {
    let now = clock.now().to_string();
    now.split('T').next().unwrap_or("unknown").to_owned()
}

/// The day of the newest file, empty for none.
pub(super) fn newest_day(dir: &Path) -> String {
    // A directory that cannot be read fails the write, which tells.
    let files = files(dir).unwrap_or_default();
    let days = files.iter().filter_map(|path| path.file_stem()?.to_str());
    days.filter(|stem| stem.parse::<jiff::civil::Date>().is_ok() && stem.len() == 10)
        .max()
        .unwrap_or_default()
        .to_owned()
}

/// The log's files, oldest first.
///
/// # Errors
/// When the directory cannot be read.
pub fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "jsonl"))
        .collect();
    files.sort();
    Ok(files)
}

/// Where the files end; a last line that was cut is removed, since the ring still has it.
pub(super) fn recover(dir: &Path) -> io::Result<Head> {
    for path in files(dir)?.into_iter().rev() {
        // The last lines alone: a takeover must not read a day's log.
        let mut file = File::open(&path)?;
        let len = file.metadata()?.len();
        let from = len.saturating_sub(TAIL_BYTES);
        file.seek(io::SeekFrom::Start(from))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        let whole = tail.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        if whole < tail.len() {
            let keep = from + whole as u64;
            OpenOptions::new().write(true).open(&path)?.set_len(keep)?;
        }
        let last = tail[..whole].split(|b| *b == b'\n').rev().find(|line| !line.is_empty());
        if let Some(line) = last {
            let parsed: serde_json::Value = serde_json::from_slice(line)
                .map_err(|_| io::Error::other("the last line of the audit log does not parse"))?;
            let (Some(seq), Some(link)) = (parsed["seq"].as_u64(), parsed["link"].as_str()) else {
                return Err(io::Error::other("the last line of the audit log has no link"));
            };
            return Ok(Head { seq, link: link.to_owned() });
        }
    }
    Ok(Head { seq: 0, link: FIRST_LINK.to_owned() })
}
