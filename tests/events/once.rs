//! Workers that die at a step of telling what a file held: the next one tells it once.
//!
//! The directories are opened as a worker does, on a runtime state that outlives it; what stands for
//! the audit log keeps what it was told, and dies there when it is to.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex};

use strongroom::broker::{Place, Refusal, Request, Writer};
use strongroom::events::{At, Events, Limits, Look, Outside, Telling};
use strongroom::execution::handles::Handles;
use strongroom::execution::journal::Journal;
use strongroom::execution::state::State;
use strongroom::redact::{Index, Level, Others, Value, View};
use strongroom::vault::crypto::Key;

const VALUE: &str = "Zk8Wq2LmN5rT7yU0-of-the-agent";

/// Where the worker dies.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Death {
    BeforeTheRecord,
    AfterTheRecord,
}

struct Killed;

/// What is on record by its name, as the log keeps it over the death of a worker.
struct Log {
    view: Arc<View>,
    key: Arc<Key>,
    recorded: Mutex<BTreeMap<Vec<u8>, (String, u64)>>,
    /// Of the next record.
    death: Mutex<Option<Death>>,
}

impl Log {
    fn record(&self, what: &str, count: u64, once: &[u8]) -> bool {
        let death = self.death.lock().unwrap().take();
        if death != Some(Death::BeforeTheRecord) {
            self.recorded.lock().unwrap().insert(once.to_vec(), (what.to_owned(), count));
        }
        if death.is_some() {
            resume_unwind(Box::new(Killed));
        }
        true
    }

    /// Counts by what was told.
    fn told(&self) -> BTreeMap<String, u64> {
        let mut told = BTreeMap::new();
        for (what, count) in self.recorded.lock().unwrap().values() {
            *told.entry(what.clone()).or_default() += count;
        }
        told
    }
}

impl Outside for Log {
    fn view(&self, _: &Place) -> Result<Arc<View>, Refusal> {
        Ok(self.view.clone())
    }

    fn key(&self) -> Result<Arc<Key>, Refusal> {
        Ok(self.key.clone())
    }

    fn redacted(&self, _: &Place, file: &str, telling: &Telling) -> bool {
        self.record(&format!("{} in {file}", telling.name), telling.count, &telling.once)
    }

    fn unchecked(&self, _: &Place, file: &str, kind: &str, once: &[u8]) {
        self.record(&format!("{kind}: {file}"), 1, once);
    }

    fn noted(&self, _: &[u8]) {}

    fn name_refused(&self, _: &Place) {}
    fn guessed(&self, _: &Place, _: u64) {}
    fn is_guesser(&self, _: &Place) -> bool {
        false
    }
}

/// What outlives a worker.
struct Ground {
    store: tempfile::TempDir,
    state: State,
    log: Arc<Log>,
    writer: Writer,
}

impl Ground {
    fn new() -> Self {
        let index = Index::build([Value { id: 0, bytes: VALUE.as_bytes() }]);
        let view = View::new(&Arc::new(index), [(0, "KEY".into())].into(), Others::Unnamed);
        let log = Log {
            view: Arc::new(view),
            key: Arc::new(Key::random().unwrap()),
            recorded: Mutex::default(),
            death: Mutex::default(),
        };
        let place = Place {
            folder: "c/-/one".to_owned(),
            chain: "c".to_owned(),
            environment: None,
            execution: "one".to_owned(),
        };
        let writer = Writer {
            principal: 1,
            place: Arc::new(place),
            token: "one".to_owned(),
            uid: 0,
            gid: 0,
            level: Level::All,
        };
        Self {
            store: tempfile::tempdir().unwrap(),
            state: State::create().unwrap(),
            log: Arc::new(log),
            writer,
        }
    }

    /// As the next worker finds it.
    fn worker(&self) -> Events {
        let limits = Limits { max_file: 1 << 30, max_total: 1 << 30, max_held: 1 << 20 };
        let look = Look { uid: None, gid: None, mode: 0o600 };
        let journal = Arc::new(Journal::open(&self.state));
        let handles = Arc::new(Handles::open(&self.state));
        Events::open(self.store.path(), look, limits, journal, handles, self.log.clone()).unwrap()
    }

    /// Does something in a worker that dies over the next record.
    fn dies(&self, death: Death, work: impl FnOnce()) {
        *self.log.death.lock().unwrap() = Some(death);
        let killed = catch_unwind(AssertUnwindSafe(work)).unwrap_err();
        assert!(killed.is::<Killed>(), "{death:?}: it died of something else");
    }

    fn create(&self, events: &Events, name: &str, id: u64) -> u64 {
        let root = events.root(&self.writer).unwrap().inode;
        let request = Request { id, resent: false };
        events.create(&self.writer, root, OsStr::new(name), true, true, request).unwrap().1
    }

    fn append(&self, events: &Events, fh: u64, offset: &mut u64, text: &str, id: u64) {
        let at = At { offset: *offset, append: false };
        let request = Request { id, resent: false };
        events.write(&self.writer, fh, at, text.as_bytes(), request).unwrap();
        *offset += text.len() as u64;
    }

    fn stored(&self, name: &str) -> Vec<u8> {
        fs::read(self.store.path().join(Path::new("c/-/one")).join(name)).unwrap()
    }
}

const BOTH: [Death; 2] = [Death::BeforeTheRecord, Death::AfterTheRecord];

#[test]
fn what_a_file_held_is_on_record_once_when_its_worker_dies_over_the_record() {
    for death in BOTH {
        let ground = Ground::new();
        let events = ground.worker();
        let fh = ground.create(&events, "f", 1);
        let mut at = 0;
        ground.append(&events, fh, &mut at, &format!("a {VALUE}\nb {VALUE}\n"), 2);
        // One of several descriptors is closed; the others write on.
        ground.dies(death, || events.flush(&ground.writer, fh).unwrap());
        let events = ground.worker();
        ground.append(&events, fh, &mut at, &format!("c {VALUE}\n"), 3);
        events.flush(&ground.writer, fh).unwrap();
        assert_eq!(ground.log.told(), [("KEY in f".to_owned(), 3)].into(), "{death:?}");
        // What a worker was told, and the next one goes on with.
        drop(events);
        let events = ground.worker();
        ground.append(&events, fh, &mut at, &format!("d {VALUE}\n"), 4);
        ground.dies(death, || events.release(fh));
        let events = ground.worker();
        // The kernel asks again for what was not answered.
        events.release(fh);
        assert_eq!(ground.log.told(), [("KEY in f".to_owned(), 4)].into(), "{death:?}");
        let marked = "a [REDACTED:KEY]\nb [REDACTED:KEY]\nc [REDACTED:KEY]\nd [REDACTED:KEY]\n";
        assert_eq!(String::from_utf8(ground.stored("f")).unwrap(), marked);
    }
}

#[test]
fn the_end_of_a_file_that_is_decided_by_its_completion_is_on_record_once() {
    for death in BOTH {
        let ground = Ground::new();
        let events = ground.worker();
        let fh = ground.create(&events, "f", 1);
        // It could go on, so that the completion decides.
        ground.append(&events, fh, &mut 0, &format!("{VALUE} and {VALUE}"), 2);
        ground.dies(death, || events.release(fh));
        for _ in 0..2 {
            let events = ground.worker();
            events.release(fh);
            events.tidy();
            assert_eq!(ground.log.told(), [("KEY in f".to_owned(), 2)].into(), "{death:?}");
        }
    }
}

#[test]
fn what_cannot_be_looked_into_is_on_record_once_for_each_time_that_it_is_complete() {
    for death in BOTH {
        let ground = Ground::new();
        let events = ground.worker();
        let fh = ground.create(&events, "f.gz", 1);
        let mut at = 0;
        ground.append(&events, fh, &mut at, "PK\x03\x04 and so on\n", 2);
        ground.dies(death, || events.release(fh));
        let events = ground.worker();
        events.release(fh);
        let once = ground.log.told();
        assert_eq!(once.values().sum::<u64>(), 1, "{death:?}: {once:?}");
        // Written again it is complete again.
        let root = events.root(&ground.writer).unwrap().inode;
        let name = OsStr::new("f.gz");
        let inode = events.lookup(&ground.writer, root, name).unwrap().inode;
        let request = Request { id: 3, resent: false };
        let fh = events.open_file(&ground.writer, inode, true, request).unwrap();
        ground.append(&events, fh, &mut at, "more\n", 4);
        events.release(fh);
        let twice = ground.log.told();
        assert_eq!(twice.values().sum::<u64>(), 2, "{death:?}: {twice:?}");
    }
}
