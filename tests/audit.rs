//! The audit log from outside: what a new worker finds after odd days.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use strongroom::audit::files::files;
use strongroom::audit::log::{Log, Options};
use strongroom::audit::record::{Event, Record};
use strongroom::audit::verify::{Known, Verdict, verify};
use strongroom::clock::{FakeClock, Timestamp};
use strongroom::config::Sync;
use strongroom::sys::shm::Region;

const RING: (usize, usize) = (0, 64 << 10);
const LIMIT: Duration = Duration::from_secs(120);

fn open(dir: &std::path::Path, region: &Arc<Region>, clock: &Arc<FakeClock>) -> Log {
    let options = Options { sync: Sync::Os, patience: LIMIT };
    Log::open(dir, region.clone(), RING, options, clock.clone()).unwrap()
}

fn append(log: &Log) {
    log.append(&Record::new(Event::SecretAccessed, Timestamp::UNIX_EPOCH), 0).unwrap();
    log.flush(LIMIT).unwrap();
}

fn at(time: &str) -> Arc<FakeClock> {
    Arc::new(FakeClock::at(time.parse().unwrap()))
}

/// Mechanism: the day named the file, and the name the order; a clock set back over midnight put
/// later records before earlier ones, and the next worker went on from the wrong one.
#[test]
fn a_clock_that_goes_back_a_day_breaks_no_chain() {
    let dir = tempfile::tempdir().unwrap();
    let region = Arc::new(Region::create(c"ring", RING.1).unwrap());
    let clock = at("2026-11-23T00:00:01Z");
    let log = open(dir.path(), &region, &clock);
    append(&log);
    clock.set("2026-11-22T23:59:59Z".parse().unwrap());
    append(&log);
    log.stop(LIMIT);
    let next = open(dir.path(), &region, &clock);
    append(&next);
    next.stop(LIMIT);
    assert!(matches!(
        verify(dir.path(), &Known::default()).unwrap(),
        Verdict::Whole { records: 3, seq: 3, .. }
    ));
    assert_eq!(files(dir.path()).unwrap().len(), 1);
    clock.set("2026-11-24T00:00:00Z".parse().unwrap());
    let last = open(dir.path(), &region, &clock);
    append(&last);
    assert_eq!(files(dir.path()).unwrap().len(), 2);
    assert!(matches!(
        verify(dir.path(), &Known::default()).unwrap(),
        Verdict::Whole { records: 4, .. }
    ));
}

/// Mechanism: a new worker believed the files alone; with the newest removed it counted from an
/// earlier record, and the chain looked whole.
#[test]
fn a_file_removed_before_a_new_worker_starts_is_told_by_verify() {
    let dir = tempfile::tempdir().unwrap();
    let region = Arc::new(Region::create(c"ring", RING.1).unwrap());
    let clock = at("2026-11-23T10:00:00Z");
    let log = open(dir.path(), &region, &clock);
    append(&log);
    append(&log);
    log.stop(LIMIT);
    std::fs::remove_file(files(dir.path()).unwrap().pop().unwrap()).unwrap();
    let next = open(dir.path(), &region, &clock);
    append(&next);
    next.stop(LIMIT);
    assert_eq!(next.head().seq, 3);
    assert!(matches!(
        verify(dir.path(), &Known::default()).unwrap(),
        Verdict::Broken { line: 1, .. }
    ));
}
