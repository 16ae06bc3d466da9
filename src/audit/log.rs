//! The log: ring first, file at once, linked line by line.
//!
//! A record is pushed to the ring by whoever makes it; one thread takes it from there, gives it its
//! number and its link and appends the line. `link` is SHA-256 over the previous link and the line
//! before it. Where records come faster than `PACE`, one turn of it takes what has gathered: each
//! turn stands in the way of some read. At a start the newest file tells which record was the last;
//! the ring has the rest.
//!
//! Invariant: a record whose [`Log::append`] returned is in the ring or in the file, once. A sink
//! that fails or hangs makes `append` fail within [`Options::patience`], and heals by itself. On a
//! full disk a reserve is given up for what [`Event::is_vital`](super::record::Event::is_vital) says.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::config::Sync;

use super::record::Record;
use super::ring::Ring;

/// The link before the first record.
pub const FIRST_LINK: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Far longer than the longest line.
const TAIL_BYTES: u64 = 1 << 20;
/// Between two tries of a sink that failed.
const RETRY: Duration = Duration::from_millis(100);
/// Between two turns of the writer, where no record must be on the disk before its bytes leave and
/// nobody waits for it: a loop of reads is disturbed once in some hundred (measured; at once, one in
/// 25 was), and what a machine that fails can lose stays within some ms.
const PACE: Duration = Duration::from_millis(10);
/// Room for about 2,000 vital records on a full disk.
const RESERVE_BYTES: i64 = 1 << 20;
const RESERVE_FILE: &str = "reserve";

/// No record can be written, so nothing may be revealed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the audit record cannot be written: {why}")]
pub struct Unavailable {
    /// In a few words.
    pub why: String,
}

/// How the log is to behave.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// When a record is on the disk.
    pub sync: Sync,
    /// How long an append may wait.
    pub patience: Duration,
}

/// Where the log stands.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Head {
    /// The last record's number, 0 for none.
    pub seq: u64,
    /// Its link.
    pub link: String,
}

struct Progress {
    written: Head,
    fault: Option<String>,
    /// The disk is full, and what was reserved on it is being used up.
    on_reserve: bool,
    /// Somebody waits for the file.
    hurried: bool,
    /// The writer sleeps until there is something to write.
    idle: bool,
    stopping: bool,
    stopped: bool,
}

struct Shared {
    dir: PathBuf,
    ring: Ring,
    options: Options,
    clock: Arc<dyn Clock>,
    progress: Mutex<Progress>,
    /// Told when something is written, or cannot be.
    changed: Condvar,
    /// Told when the writer is to look: it alone waits here.
    work: Condvar,
    earlier_requests: HashSet<u64>,
    /// Numbers of this worker's records that are written once, by their tags: those of revokes, so
    /// they are few. Taken before `progress`.
    tagged: Mutex<HashMap<u64, u64>>,
}

fn given_up() -> Unavailable {
    Unavailable { why: "it is not waited for any more".into() }
}

/// See the module.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
}

impl Log {
    /// Opens the log in `dir` over the ring at `offset` of the runtime state and starts its thread.
    ///
    /// # Errors
    /// When the directory or the newest file cannot be read.
    pub fn open(
        dir: &Path,
        region: Arc<crate::sys::shm::Region>,
        (offset, len): (usize, usize),
        options: Options,
        clock: Arc<dyn Clock>,
    ) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut head = recover(dir)?;
        // Files that end before what an earlier worker wrote have lost records: the chain goes on
        // from the last one that was written, so that `verify` tells of the gap.
        if let Some((seq, link)) = Ring::remembered(&region, offset)
            && seq > head.seq
        {
            tracing::error!(found = head.seq, written = seq, "audit records are missing");
            head = Head { seq, link: hex(&link) };
        }
        let ring = Ring::open(region, offset, len, head.seq);
        // Before the file was behind the ring, never after: what it has is done.
        ring.flushed(head.seq);
        let earlier_requests = ring.requests();
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            ring,
            options,
            clock,
            progress: Mutex::new(Progress {
                written: head,
                fault: None,
                on_reserve: false,
                hurried: false,
                idle: false,
                stopping: false,
                stopped: false,
            }),
            changed: Condvar::new(),
            work: Condvar::new(),
            earlier_requests,
            tagged: Mutex::default(),
        });
        let writer = shared.clone();
        std::thread::Builder::new().name("audit".into()).spawn(move || writer.run())?;
        Ok(Self { shared })
    }

    /// Writes a record. When this returns it survives this process, and with `sync = each` the
    /// machine.
    ///
    /// # Errors
    /// [`Unavailable`], within the patience.
    pub fn append(&self, record: &Record<'_>, request: u64) -> Result<u64, Unavailable> {
        self.append_unless(record, request, &|| false)
    }

    /// The same, for a caller that stops waiting when `give_up` says so; asked again at each
    /// [`Log::wake`].
    ///
    /// # Errors
    /// [`Unavailable`]; the record may be written all the same.
    pub fn append_unless(
        &self,
        record: &Record<'_>,
        request: u64,
        give_up: &dyn Fn() -> bool,
    ) -> Result<u64, Unavailable> {
        self.append_noting(record, request, give_up, &mut None)
    }

    /// Writes a record once for its tag, whichever worker or attempt it was that did: who has stopped
    /// waiting left its record in the ring. Tags are no request's ids.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub fn append_once(&self, record: &Record<'_>, tag: u64) -> Result<(), Unavailable> {
        if self.has_recorded(tag) {
            return Ok(());
        }
        let shared = &self.shared;
        let mut tagged = shared.tagged.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pushed = tagged.get(&tag).copied();
        let outcome = match pushed {
            Some(seq) if shared.options.sync == Sync::Each => {
                let deadline = Instant::now() + shared.options.patience;
                let vital = record.event.is_vital();
                shared.wait_for(shared.lock(), seq, deadline, vital, &|| false)
            }
            Some(_) => Ok(()),
            None => self.append_noting(record, tag, &|| false, &mut pushed).map(drop),
        };
        if let Some(seq) = pushed {
            tagged.insert(tag, seq);
        }
        outcome
    }

    /// `pushed` is the record's number as soon as it is in the ring, also where that ends in an error.
    fn append_noting(
        &self,
        record: &Record<'_>,
        request: u64,
        give_up: &dyn Fn() -> bool,
        pushed: &mut Option<u64>,
    ) -> Result<u64, Unavailable> {
        let shared = &self.shared;
        let mut text = String::with_capacity(512);
        record.encode_head(&mut text);
        text.push('\n');
        record.encode_tail(&mut text);
        let deadline = Instant::now() + shared.options.patience;
        let mut progress = shared.lock();
        loop {
            let vital = progress.on_reserve && record.event.is_vital();
            if let Some(why) = &progress.fault
                && !vital
            {
                return Err(Unavailable { why: why.clone() });
            }
            if let Ok(seq) = shared.ring.push(text.as_bytes(), request) {
                *pushed = Some(seq);
                if shared.options.sync != Sync::Each {
                    let (waiting, capacity) = shared.ring.filled();
                    if progress.idle || waiting > capacity / 4 {
                        shared.work.notify_one();
                    }
                    return Ok(seq);
                }
                return shared.wait_for(progress, seq, deadline, vital, give_up).map(|()| seq);
            }
            if give_up() {
                return Err(given_up());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Unavailable { why: "the file does not keep up".into() });
            }
            shared.hurry(&mut progress);
            progress = shared
                .changed
                .wait_timeout(progress, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Has those who wait ask again whether to give up.
    pub fn wake(&self) {
        // Under the lock: nobody is between asking and waiting.
        let _progress = self.shared.lock();
        self.shared.changed.notify_all();
    }

    /// Waits until everything that was appended is in the file.
    ///
    /// # Errors
    /// [`Unavailable`] when it is not within `limit`.
    pub fn flush(&self, limit: Duration) -> Result<(), Unavailable> {
        let seq = self.shared.ring.last_seq();
        self.shared.wait_for(self.shared.lock(), seq, Instant::now() + limit, false, &|| false)
    }

    /// Where the file stands.
    pub fn head(&self) -> Head {
        self.shared.lock().written.clone()
    }

    /// What is wrong with the sink, if anything is.
    pub fn fault(&self) -> Option<String> {
        self.shared.lock().fault.clone()
    }

    /// Whether an earlier worker recorded this request.
    pub fn has_recorded(&self, request: u64) -> bool {
        self.shared.earlier_requests.contains(&request)
    }

    /// Writes what is left and ends the thread.
    pub fn stop(&self, limit: Duration) {
        // What cannot be written in time stays in the ring.
        let _flushed = self.flush(limit);
        let deadline = Instant::now() + limit;
        let mut progress = self.shared.lock();
        progress.stopping = true;
        self.shared.work.notify_one();
        while !progress.stopped && Instant::now() < deadline {
            progress = self
                .shared
                .changed
                .wait_timeout(progress, RETRY)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// The directory of the files.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("dir", &self.shared.dir).finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the writer take its next turn now.
    fn hurry(&self, progress: &mut Progress) {
        progress.hurried = true;
        self.work.notify_one();
    }

    fn wait_for(
        &self,
        mut progress: std::sync::MutexGuard<'_, Progress>,
        seq: u64,
        deadline: Instant,
        vital: bool,
        give_up: &dyn Fn() -> bool,
    ) -> Result<(), Unavailable> {
        while progress.written.seq < seq {
            if let Some(why) = &progress.fault
                && !(vital && progress.on_reserve)
            {
                return Err(Unavailable { why: why.clone() });
            }
            if give_up() {
                return Err(given_up());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Unavailable { why: "the file does not keep up".into() });
            }
            self.hurry(&mut progress);
            progress =
                self.changed.wait_timeout(progress, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// The thread: everything in the ring goes to the file, in one write a turn.
    fn run(&self) {
        let mut file: Option<(PathBuf, File)> = None;
        let mut newest = newest_day(&self.dir);
        if let Err(error) = reserve(&self.dir) {
            tracing::warn!(%error, "no room is reserved for vital records on a full disk");
        }
        let mut last_turn = None;
        loop {
            let Some(head) = self.next_turn(last_turn) else { return };
            last_turn = Some(Instant::now());
            let entries = self.ring.unflushed();
            let mut lines = Vec::new();
            let mut next = head;
            for entry in &entries {
                next = line(&next, entry.seq, &entry.bytes, &mut lines);
            }
            // A clock that goes back must not put a record before an earlier one.
            newest = newest.max(day(&*self.clock));
            let mut outcome = self.write(&mut file, &newest, &lines);
            let mut given_up = false;
            if outcome.as_ref().is_err_and(is_full) && give_up_reserve(&self.dir) {
                given_up = true;
                outcome = self.write(&mut file, &newest, &lines);
            }
            let mut progress = self.lock();
            match outcome {
                Ok(()) if given_up || progress.on_reserve => {
                    if given_up {
                        tracing::error!("the disk is full; the reserve is used and reads stop");
                    }
                    progress.on_reserve = true;
                    progress.fault = Some("the disk is full".to_owned());
                    self.advance(&mut progress, next);
                }
                Ok(()) => {
                    self.advance(&mut progress, next);
                    if progress.fault.take().is_some() {
                        tracing::info!("the audit log is written again");
                    }
                }
                Err(error) => {
                    if progress.fault.is_none() {
                        tracing::error!(%error, "the audit log cannot be written; reads stop");
                    }
                    progress.fault = Some(error.to_string());
                    progress.on_reserve = false;
                    file = None;
                    self.changed.notify_all();
                    if progress.stopping {
                        progress.stopped = true;
                        return;
                    }
                    let _waited = self
                        .work
                        .wait_timeout(progress, RETRY)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Waits until records are to be written and tells what is there before them; none when the log
    /// stops and there are none.
    fn next_turn(&self, last: Option<Instant>) -> Option<Head> {
        let mut progress = self.lock();
        loop {
            let (waiting, capacity) = self.ring.filled();
            if waiting == 0 {
                if progress.stopping {
                    progress.stopped = true;
                    self.changed.notify_all();
                    return None;
                }
                if progress.on_reserve {
                    progress = self.heal(progress);
                    continue;
                }
                progress.idle = true;
                progress = self.work.wait(progress).unwrap_or_else(PoisonError::into_inner);
                progress.idle = false;
                continue;
            }
            let due = match self.options.sync {
                Sync::Each => None,
                Sync::Batch | Sync::Os => last.map(|last| last + PACE),
            };
            let left =
                due.map_or(Duration::ZERO, |due| due.saturating_duration_since(Instant::now()));
            let presses = progress.hurried || progress.stopping || progress.on_reserve;
            if left.is_zero() || presses || waiting > capacity / 4 {
                progress.hurried = false;
                return Some(progress.written.clone());
            }
            progress =
                self.work.wait_timeout(progress, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn advance(&self, progress: &mut Progress, head: Head) {
        if let Some(link) = unhex(&head.link) {
            self.ring.remember(head.seq, &link);
        }
        self.ring.flushed(head.seq);
        progress.written = head;
        self.changed.notify_all();
    }

    /// Waits a little on a full disk, and ends the fault when the reserve can be made again.
    fn heal<'a>(
        &self,
        progress: std::sync::MutexGuard<'a, Progress>,
    ) -> std::sync::MutexGuard<'a, Progress> {
        let (mut progress, _) =
            self.work.wait_timeout(progress, RETRY).unwrap_or_else(PoisonError::into_inner);
        if reserve(&self.dir).is_ok() {
            tracing::info!("the audit log has room again");
            progress.on_reserve = false;
            progress.fault = None;
            self.changed.notify_all();
        }
        progress
    }

    fn write(&self, open: &mut Option<(PathBuf, File)>, day: &str, lines: &[u8]) -> io::Result<()> {
        let path = self.dir.join(format!("{day}.jsonl"));
        let gone = open.as_ref().is_none_or(|(opened, file)| {
            // Removed or renamed under us: what is written must be found again.
            *opened != path
                || match (file.metadata(), fs::metadata(&path)) {
                    (Ok(held), Ok(named)) => held.ino() != named.ino() || held.nlink() == 0,
                    _ => true,
                }
        });
        if gone {
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
            *open = Some((path, file));
        }
        let Some((_, file)) = open.as_mut() else {
            return Err(io::Error::other("no file is open"));
        };
        let before = file.metadata()?.len();
        let written = file.write_all(lines).and_then(|()| match self.options.sync {
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
fn reserve(dir: &Path) -> io::Result<()> {
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
fn give_up_reserve(dir: &Path) -> bool {
    let file = OpenOptions::new().write(true).open(dir.join(RESERVE_FILE));
    file.is_ok_and(|file| file.metadata().is_ok_and(|m| m.len() > 0) && file.set_len(0).is_ok())
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Today, in UTC, as files are named.
fn day(clock: &dyn Clock) -> String {
    let now = clock.now().to_string();
    now.split('T').next().unwrap_or("unknown").to_owned()
}

/// The day of the newest file, empty for none.
fn newest_day(dir: &Path) -> String {
    // A directory that cannot be read fails the write, which tells.
    let files = files(dir).unwrap_or_default();
    let days = files.iter().filter_map(|path| path.file_stem()?.to_str());
    days.filter(|stem| stem.parse::<jiff::civil::Date>().is_ok() && stem.len() == 10)
        .max()
        .unwrap_or_default()
        .to_owned()
}

/// Appends the line of an entry to `out`; the head after it.
fn line(head: &Head, seq: u64, bytes: &[u8], out: &mut Vec<u8>) -> Head {
    let start = out.len();
    let split = bytes.iter().position(|b| *b == b'\n').unwrap_or(bytes.len());
    out.extend_from_slice(&bytes[..split]);
    out.extend_from_slice(format!(",\"seq\":{seq}").as_bytes());
    out.extend_from_slice(bytes.get(split + 1..).unwrap_or_default());
    let link = link(&head.link, &out[start..]);
    out.extend_from_slice(format!(",\"link\":\"{link}\"}}\n").as_bytes());
    Head { seq, link }
}

/// The link of a line: SHA-256 over the previous link and the line up to its own.
pub fn link(previous: &str, unlinked: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    hash.update(previous.as_bytes());
    hash.update(unlinked);
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// The bytes of a link; none when it is not one.
fn unhex(link: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if link.len() != 64 {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(link.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
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
fn recover(dir: &Path) -> io::Result<Head> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::record::Event;
    use crate::audit::verify::{Known, Verdict, verify};
    use crate::clock::{FakeClock, Timestamp};
    use crate::sys::shm::Region;

    const RING: (usize, usize) = (0, 64 << 10);
    /// Bounds a hang, and nothing else.
    const LIMIT: Duration = Duration::from_secs(60);

    fn options(sync: Sync) -> Options {
        Options { sync, patience: LIMIT }
    }

    fn impatient(sync: Sync) -> Options {
        Options { sync, patience: Duration::from_millis(200) }
    }

    /// For whoever gives up early: a disk may be slow once.
    fn append_at_last(log: &Log) {
        let deadline = Instant::now() + LIMIT;
        while log.append(&record(), 0).is_err() {
            assert!(Instant::now() < deadline, "nothing is taken");
            std::thread::yield_now();
        }
    }

    fn clock() -> Arc<FakeClock> {
        Arc::new(FakeClock::at("2026-11-23T10:00:00Z".parse().unwrap()))
    }

    fn record() -> Record<'static> {
        Record::new(Event::SecretAccessed, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn who_gives_up_does_not_wait_for_a_file_that_hangs() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let region = Arc::new(Region::create(c"ring", RING.1).unwrap());
        let patient = Options { sync: Sync::Each, patience: Duration::from_secs(600) };
        let log = Log::open(dir.path(), region, RING, patient, clock()).unwrap();
        // Nobody reads from it: whoever opens it to write waits.
        let file = dir.path().join("2026-11-23.jsonl");
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        let denied = Arc::new(AtomicBool::new(false));
        let (writer, asked) = (log.clone(), denied.clone());
        let waits = std::thread::spawn(move || {
            writer.append_unless(&record(), 1, &|| asked.load(Ordering::Acquire))
        });
        // From here on it waits for the file, or is about to.
        let deadline = Instant::now() + LIMIT;
        while log.shared.ring.last_seq() == 0 {
            assert!(Instant::now() < deadline, "nothing was appended");
            std::thread::yield_now();
        }
        log.wake();
        assert!(!waits.is_finished(), "asked in vain");
        denied.store(true, Ordering::Release);
        log.wake();
        assert!(waits.join().unwrap().is_err());
        // The log's own thread is let go.
        let _reader = std::fs::File::open(&file).unwrap();
        log.stop(LIMIT);
    }

    #[test]
    fn a_tagged_record_is_there_once_whoever_gave_up_waiting_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let region = Arc::new(Region::create(c"ring", RING.1).unwrap());
        let open = |region| Log::open(dir.path(), region, RING, options(Sync::Each), clock());
        let log = open(region.clone()).unwrap();
        let file = dir.path().join("2026-11-23.jsonl");
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        for _ in 0..3 {
            // Nobody reads, so that nothing is written.
            assert!(log.append_once(&record(), 7).is_err());
        }
        assert_eq!(log.shared.ring.last_seq(), 1);
        let writer = log.clone();
        let reader = std::fs::File::open(&file).unwrap();
        // What cannot be synced is a fault, and heals with a file.
        fs::remove_file(&file).unwrap();
        drop(reader);
        let deadline = Instant::now() + Duration::from_secs(10);
        while writer.append_once(&record(), 7).is_err() {
            assert!(Instant::now() < deadline, "it does not heal");
        }
        writer.append_once(&record(), 8).unwrap();
        writer.append_once(&record(), 8).unwrap();
        log.stop(Duration::from_secs(5));
        // Nor does a worker that comes after it.
        let next = open(region).unwrap();
        next.append_once(&record(), 7).unwrap();
        next.append_once(&record(), 9).unwrap();
        assert!(matches!(
            verify(dir.path(), &Known::default()).unwrap(),
            Verdict::Whole { records: 3, .. }
        ));
        next.stop(Duration::from_secs(5));
    }

    #[test]
    fn every_record_is_there_once_whichever_worker_wrote_it() {
        let dir = tempfile::tempdir().unwrap();
        let region = Arc::new(Region::create(c"ring", RING.1).unwrap());
        for round in 0..5_u64 {
            let log =
                Log::open(dir.path(), region.clone(), RING, options(Sync::Os), clock()).unwrap();
            for _ in 0..20 {
                log.append(&record(), round + 1).unwrap();
            }
            if round % 2 == 0 {
                log.stop(LIMIT);
            } else {
                log.flush(LIMIT).unwrap();
            }
            // A line that was being written when the worker died.
            let path = files(dir.path()).unwrap().pop().unwrap();
            log.stop(LIMIT);
            OpenOptions::new().append(true).open(path).unwrap().write_all(b"{\"ev").unwrap();
        }
        let log = Log::open(dir.path(), region, RING, options(Sync::Each), clock()).unwrap();
        assert!(log.has_recorded(3));
        assert!(!log.has_recorded(99));
        log.append(&record(), 0).unwrap();
        assert_eq!(log.head().seq, 101);
        assert!(matches!(
            verify(dir.path(), &Known::default()).unwrap(),
            Verdict::Whole { records: 101, .. }
        ));
    }

    #[test]
    fn records_that_nobody_waits_for_reach_the_file_by_themselves() {
        for sync in [Sync::Batch, Sync::Os] {
            let dir = tempfile::tempdir().unwrap();
            let region = Arc::new(Region::create(c"ring", RING.1).unwrap());
            let log = Log::open(dir.path(), region, RING, options(sync), clock()).unwrap();
            let deadline = Instant::now() + LIMIT;
            // More than the ring holds: also those that come while a turn is not due.
            for count in [1, 2, 1_000] {
                let before = log.head().seq;
                for _ in 0..count {
                    log.append(&record(), 0).unwrap();
                }
                while log.head().seq < before + count {
                    assert!(Instant::now() < deadline, "{:?} of {}", log.head(), before + count);
                    std::thread::yield_now();
                }
            }
        }
    }

    #[test]
    fn a_sink_that_fails_stops_reads_in_time_and_heals() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("audit");
        let region = Arc::new(Region::create(c"ring", RING.1).unwrap());
        let log = Log::open(&inner, region, RING, impatient(Sync::Each), clock()).unwrap();
        append_at_last(&log);
        fs::rename(&inner, dir.path().join("gone")).unwrap();
        let start = Instant::now();
        assert!(log.append(&record(), 0).is_err());
        assert!(start.elapsed() < LIMIT);
        fs::rename(dir.path().join("gone"), &inner).unwrap();
        append_at_last(&log);
        assert!(matches!(verify(&inner, &Known::default()).unwrap(), Verdict::Whole { .. }));
    }

    /// Mechanism: a file on a dead network share; here a pipe that nobody reads.
    #[test]
    fn a_sink_that_hangs_stops_reads_in_time_and_heals() {
        for sync in [Sync::Each, Sync::Batch] {
            let dir = tempfile::tempdir().unwrap();
            let region = Arc::new(Region::create(c"ring", RING.1).unwrap());
            let log = Log::open(dir.path(), region, RING, impatient(sync), clock()).unwrap();
            append_at_last(&log);
            log.flush(LIMIT).unwrap();
            let path = files(dir.path()).unwrap().pop().unwrap();
            let kept = dir.path().join("kept");
            fs::rename(&path, &kept).unwrap();
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
            let mut longest = Duration::ZERO;
            let mut accepted = 0;
            loop {
                let start = Instant::now();
                let outcome = log.append(&record(), 0);
                longest = longest.max(start.elapsed());
                if outcome.is_err() {
                    break;
                }
                accepted += 1;
                assert!(accepted < 10_000, "the ring never fills");
            }
            assert!(longest < LIMIT, "{longest:?}");
            assert_eq!(accepted > 0, sync == Sync::Batch);
            // The share is back; the pipe's other end lets the writer go on.
            let reader = OpenOptions::new()
                .read(true)
                .custom_flags(nix::libc::O_NONBLOCK)
                .open(&path)
                .unwrap();
            fs::rename(&kept, &path).unwrap();
            drop(reader);
            append_at_last(&log);
            log.flush(LIMIT).unwrap();
            let verdict = verify(dir.path(), &Known::default()).unwrap();
            assert!(matches!(verdict, Verdict::Whole { .. }), "{verdict:?}");
        }
    }

    #[test]
    fn a_removed_file_is_noticed_and_told_by_verify() {
        let dir = tempfile::tempdir().unwrap();
        let region = Arc::new(Region::create(c"ring", RING.1).unwrap());
        let log = Log::open(dir.path(), region, RING, options(Sync::Each), clock()).unwrap();
        log.append(&record(), 0).unwrap();
        fs::remove_file(files(dir.path()).unwrap().pop().unwrap()).unwrap();
        log.append(&record(), 0).unwrap();
        assert_eq!(files(dir.path()).unwrap().len(), 1);
        assert!(matches!(
            verify(dir.path(), &Known::default()).unwrap(),
            Verdict::Broken { line: 1, .. }
        ));
    }
}
