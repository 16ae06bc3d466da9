//! The log: ring first, file at once, linked line by line.
//!
//! A record is pushed to the ring by whoever makes it; one thread takes it from there, gives it its
//! number and its [link](super::link) and appends the line to [the files](super::files). Where records come faster than `PACE`, one turn of it takes what has gathered: each
//! turn stands in the way of some read. At a start the newest file tells which record was the last;
//! the ring has the rest.
//!
//! Invariant: a record whose [`Log::append`] returned is in the ring or in the file, once. A sink
//! that fails or hangs makes `append` fail within [`Options::patience`], and heals by itself. On a
//! full disk a reserve is given up for what [`Event::is_vital`](super::record::Event::is_vital) says.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::config::Sync;

use super::files::{Files, day, give_up_reserve, is_full, newest_day, recover, reserve};
use super::link::{Head, hex, line, unhex};
use super::record::Record;
use super::ring::Ring;

/// Between two tries of a sink that failed.
const RETRY: Duration = Duration::from_millis(100);
/// Between two turns of the writer, where no record must be on the disk before its bytes leave and
/// nobody waits for it: a loop of reads is disturbed once in some hundred (measured; at once, one in
/// 25 was), and what a machine that fails can lose stays within some ms.
const PACE: Duration = Duration::from_millis(10);
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

    /// Nobody asks for the record of this tag again in this process.
    pub fn forget(&self, tag: u64) {
        self.shared.tagged.lock().unwrap_or_else(PoisonError::into_inner).remove(&tag);
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
        let mut files = Files::of(&self.dir);
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
            let mut outcome = files.append(&newest, &lines, self.options.sync);
            let mut given_up = false;
            if outcome.as_ref().is_err_and(is_full) && give_up_reserve(&self.dir) {
                given_up = true;
                outcome = files.append(&newest, &lines, self.options.sync);
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
                    files.close();
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
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;
    use crate::audit::files::files;
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
        let open = |region, options| Log::open(dir.path(), region, RING, options, clock()).unwrap();
        let log = open(region.clone(), impatient(Sync::Each));
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
        let deadline = Instant::now() + LIMIT;
        for tag in [7, 8, 8] {
            while writer.append_once(&record(), tag).is_err() {
                assert!(Instant::now() < deadline, "it does not heal");
            }
        }
        log.stop(LIMIT);
        // Nor does a worker that comes after it.
        let next = open(region, options(Sync::Each));
        next.append_once(&record(), 7).unwrap();
        next.append_once(&record(), 9).unwrap();
        assert!(matches!(
            verify(dir.path(), &Known::default()).unwrap(),
            Verdict::Whole { records: 3, .. }
        ));
        next.stop(LIMIT);
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
