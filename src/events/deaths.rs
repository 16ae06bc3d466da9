//! A worker that dies at any point between two things that outlive it: before each request to the
//! file system, after a removal, before a draft is sealed, before and after a record. The next one
//! is asked again for what was not answered, and all ends as if nobody had died.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::asked::{Killed, die_after, step};
use super::tests::writer;
use super::*;
use crate::broker::Request;
use crate::execution::state::State;
use crate::redact::{Index, Others, Value};

const VALUE: &str = "Zk8Wq2LmN5rT7yU0-of-the-agent";
/// Of the other file.
const OTHER_NAME: &str = "other";
const NAME: &str = "f";
/// So many points at the beginning, and at the end, are all tried.
const MOST: u64 = 40;

/// What is on record by its name, and what is looked for.
struct Log {
    view: Arc<View>,
    key: Arc<Key>,
    recorded: Mutex<BTreeMap<Vec<u8>, (String, u64)>>,
}

impl Log {
    fn record(&self, what: String, count: u64, once: &[u8]) {
        step();
        lock(&self.recorded).insert(once.to_vec(), (what, count));
        step();
    }
}

impl Outside for Log {
    fn view(&self, _: &Place) -> Result<Arc<View>, Refusal> {
        Ok(self.view.clone())
    }
    fn key(&self) -> Result<Arc<Key>, Refusal> {
        step();
        Ok(self.key.clone())
    }
    fn redacted(&self, _: &Place, file: &str, telling: &Telling) -> bool {
        self.record(format!("{} in {file}", telling.name), telling.count, &telling.once);
        true
    }
    fn unchecked(&self, _: &Place, file: &str, kind: &str, once: &[u8]) {
        self.record(format!("{kind}: {file}"), 1, once);
    }
    fn noted(&self, _: &[u8]) {}
    fn name_refused(&self, _: &Place) {}
    fn guessed(&self, _: &Place, _: u64) {}
    fn is_guesser(&self, _: &Place) -> bool {
        false
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Create,
    /// For reading, which goes on when the file is complete.
    Open,
    /// So many lines with a value in each.
    Lines(usize),
    /// At the file's beginning.
    Over(&'static str),
    Truncate(u64),
    /// What is seen of the first line by those who write, or who opened it before.
    Read(&'static str),
    ReadOn(&'static str),
    Flush,
    Sync,
    /// The name goes; who has it open writes on.
    Remove,
    Release,
    ReleaseReader,
    /// Of another file, which then takes the name of the first.
    CreateOther,
    LineOther,
    ReleaseOther,
    Replace,
}
use Step::{
    Create, CreateOther, Flush, LineOther, Lines, Open, Over, Read, ReadOn, Release, ReleaseOther,
    ReleaseReader, Remove, Replace, Sync, Truncate,
};

/// What came of it: the stored file, and what is on record.
type Outcome = (Option<String>, BTreeMap<String, u64>);

struct Ground {
    dir: tempfile::TempDir,
    state: State,
    log: Arc<Log>,
    writer: Writer,
}

impl Ground {
    fn new() -> Self {
        let index = Index::build([Value { id: 0, bytes: VALUE.as_bytes() }]);
        let view = View::new(&Arc::new(index), [(0, "KEY".into())].into(), Others::Unnamed);
        let (view, key) = (Arc::new(view), Arc::new(Key::random().unwrap()));
        let log = Arc::new(Log { view, key, recorded: Mutex::default() });
        let writer = writer();
        let (dir, state) = (tempfile::tempdir().unwrap(), State::create().unwrap());
        Self { dir, state, log, writer }
    }

    /// As a worker that was just started finds it.
    fn worker(&self) -> Events {
        let look = Look { uid: None, gid: None, mode: 0o600 };
        let limits = Limits { max_file: 1 << 30, max_total: 1 << 30, max_held: 1 << 20 };
        let (journal, handles) = (Journal::open(&self.state), Handles::open(&self.state));
        let (journal, handles) = (Arc::new(journal), Arc::new(handles));
        let path = self.dir.path().join("events");
        Events::open(&path, look, limits, journal, handles, self.log.clone()).unwrap()
    }

    /// One request of the kernel.
    fn ask(&self, events: &Events, step: Step, request: Request, file: &mut File) {
        let writer = &self.writer;
        let root = events.root(writer).unwrap().inode;
        match step {
            Create => {
                let name = OsStr::new(NAME);
                let made = events.create(writer, root, name, false, true, request).unwrap();
                (file.inode, file.fh) = (made.0.inode, made.1);
            }
            Lines(count) => {
                let text = format!("a line with {VALUE}\n").repeat(count);
                let at = At { offset: file.len, append: false };
                events.write(writer, file.fh, at, text.as_bytes(), request).unwrap();
                file.len += text.len() as u64;
            }
            Over(text) => {
                let at = At { offset: 0, append: false };
                events.write(writer, file.fh, at, text.as_bytes(), request).unwrap();
            }
            Truncate(size) => {
                let change = Change { size: Some(size), ..Change::default() };
                events.change(writer, file.inode, change).unwrap();
                file.len = size;
            }
            Open => {
                file.reader = events.open_file(writer, file.inode, false, request).unwrap();
            }
            Read(seen) => {
                let read = events.read(writer, file.fh, 0, seen.len()).unwrap();
                assert_eq!(String::from_utf8_lossy(&read), seen);
            }
            ReadOn(seen) => match events.read(writer, file.reader, 0, seen.len()) {
                Ok(read) => assert_eq!(String::from_utf8_lossy(&read), seen),
                // What writers saw of a complete file dies with the worker that completed it.
                refused => assert_eq!(refused, Err(stale())),
            },
            Flush => events.flush(writer, file.fh).unwrap(),
            Sync => events.sync(writer, file.fh).unwrap(),
            Remove => events.unlink(writer, root, OsStr::new(NAME), request).unwrap(),
            Release => events.release(file.fh),
            CreateOther => {
                let name = OsStr::new(OTHER_NAME);
                file.other = events.create(writer, root, name, false, true, request).unwrap().1;
            }
            LineOther => {
                let at = At { offset: 0, append: false };
                events.write(writer, file.other, at, b"the other file\n", request).unwrap();
            }
            ReleaseOther => events.release(file.other),
            Replace => {
                let [from, to] = [OTHER_NAME, NAME].map(|name| (root, OsStr::new(name)));
                events.rename(writer, from, to, false, request).unwrap();
            }
            ReleaseReader => events.release(file.reader),
        }
    }

    /// Plays with a worker that dies at this point; how many points there were up to the end or death.
    fn play(&self, steps: &[Step], point: u64) -> u64 {
        self.play_on(File::default(), steps, point)
    }

    /// The same, of a file that is open.
    fn play_on(&self, mut file: File, steps: &[Step], point: u64) -> u64 {
        let mut events = self.worker();
        let mut passed = None;
        die_after(Some(point));
        for (step, id) in steps.iter().zip(file.asked + 1..) {
            let (before, request) = (file, Request { id, resent: false });
            let asked = || self.ask(&events, *step, request, &mut file);
            let Err(panic) = catch_unwind(AssertUnwindSafe(asked)) else { continue };
            if !panic.is::<Killed>() {
                std::panic::resume_unwind(panic);
            }
            (passed, file) = (Some(point), before);
            events = self.worker();
            self.ask(&events, *step, Request { id, resent: true }, &mut file);
        }
        passed.unwrap_or_else(|| point - die_after(None).expect("nobody has died"))
    }

    /// Plays up to the death of the worker and of who asked, so that nobody asks again. None if it
    /// does not come to that.
    fn play_until(&self, steps: &[Step], point: u64) -> Option<File> {
        let (events, mut file) = (self.worker(), File::default());
        die_after(Some(point));
        for (step, id) in steps.iter().zip(1..) {
            let (before, request) = (file, Request { id, resent: false });
            let asked = || self.ask(&events, *step, request, &mut file);
            if let Err(panic) = catch_unwind(AssertUnwindSafe(asked)) {
                assert!(panic.is::<Killed>());
                return Some(File { asked: id, ..before });
            }
        }
        die_after(None);
        None
    }

    fn outcome(&self) -> Outcome {
        let events = self.worker();
        events.tidy();
        assert_eq!(events.journal.heads(Kind::EventDraft), [0; 0], "a draft is left");
        let mut told = BTreeMap::new();
        for (what, count) in lock(&self.log.recorded).values() {
            // A name of its own that nobody else sees.
            let what = if what.ends_with(".unlinked") { "unlinked" } else { what };
            *told.entry(what.to_owned()).or_default() += count;
        }
        let store = self.dir.path().join("events");
        let beside: Vec<_> = std::fs::read_dir(store.join(STAGING)).unwrap().collect();
        assert!(beside.is_empty(), "something is left beside the store: {beside:?}");
        (std::fs::read_to_string(store.join("c/-/x").join(NAME)).ok(), told)
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct File {
    inode: u64,
    fh: u64,
    reader: u64,
    other: u64,
    len: u64,
    /// The last request.
    asked: u64,
}

fn all_ends_as_if_nobody_had_died(steps: &[Step]) {
    let ground = Ground::new();
    let points = ground.play(steps, u64::MAX);
    let expected = ground.outcome();
    // Of very many, in one long pass over the file, some of those in the middle.
    let apart = usize::try_from(points / 60).unwrap().max(1);
    let middle = (MOST..points.saturating_sub(MOST)).step_by(apart);
    let all =
        (0..MOST.min(points)).chain(middle).chain(points.saturating_sub(MOST).max(MOST)..points);
    for point in all {
        let ground = Ground::new();
        assert_eq!(ground.play(steps, point), point);
        let (stored, told) = ground.outcome();
        assert!(stored == expected.0, "point {point} of {points}: {stored:?}");
        assert_eq!(told, expected.1, "point {point} of {points}");
    }
    println!("{points} points");
}

/// More hidden ranges than are kept in memory.
const MANY: [Step; 2] = [Lines(300), Lines(300)];

#[test]
fn a_file_is_completed_and_what_was_kept_beside_it_goes_wherever_a_worker_dies() {
    let masked = "a line with *****";
    let steps = [&[Create], &MANY[..], &[Read(masked), Lines(3), Flush, Lines(1), Release]];
    all_ends_as_if_nobody_had_died(&steps.concat());
}

#[test]
fn a_file_that_others_read_is_completed_wherever_a_worker_dies() {
    let masked = "a line with *****";
    let steps =
        [&[Create, Open], &MANY[..], &[ReadOn(masked), Release, ReadOn(masked), ReleaseReader]];
    all_ends_as_if_nobody_had_died(&steps.concat());
}

#[test]
fn a_file_is_made_anew_wherever_a_worker_dies() {
    let masked = "A line with *****";
    let steps = [
        &[Create],
        &MANY[..],
        &[Over("A"), Flush, Sync, Read(masked), Lines(2), Read(masked), Release],
    ];
    all_ends_as_if_nobody_had_died(&steps.concat());
}

#[test]
fn a_file_is_cut_wherever_a_worker_dies() {
    let steps = [
        &[Create],
        &MANY[..],
        &[Truncate(0), Lines(520), Truncate(20), Read("a line with ********"), Sync, Release],
    ];
    all_ends_as_if_nobody_had_died(&steps.concat());
}

#[test]
fn a_file_that_was_removed_is_written_on_and_goes_wherever_a_worker_dies() {
    let masked = "a line with *****";
    let steps = [&[Create], &MANY[..], &[Remove, Lines(3), Read(masked), Flush, Release]];
    all_ends_as_if_nobody_had_died(&steps.concat());
}

#[test]
fn what_a_pass_left_that_was_never_finished_is_not_taken_for_the_file_after_another_death() {
    let begun = [Create, Lines(2), Over("A"), Sync];
    let anew = [Truncate(0), Lines(1), Release];
    let line = "a line with [REDACTED:KEY]\n";
    let mut deaths = 0;
    for first in 0.. {
        let ground = Ground::new();
        let Some(file) = ground.play_until(&begun, first) else { break };
        if file.fh == 0 {
            continue;
        }
        for second in 0.. {
            let ground = Ground::new();
            let file = ground.play_until(&begun, first).unwrap();
            let passed = ground.play_on(file, &anew, second);
            let (stored, _) = ground.outcome();
            assert_eq!(stored.as_deref(), Some(line), "after {first} and {second} points");
            if passed < second {
                break;
            }
            deaths += 1;
        }
    }
    assert!(deaths > 100, "{deaths}");
}

#[test]
fn a_file_that_another_replaces_is_written_on_and_neither_gets_what_is_the_others() {
    let masked = "a line with *****";
    let replaced = |more: &[Step]| [&[Create], &MANY[..], more].concat();
    let other = [CreateOther, LineOther, ReleaseOther];
    for more in [
        [&other[..], &[Replace, Lines(3), Read(masked), Flush, Release]].concat(),
        [&other[..], &[Lines(1), Replace, Release]].concat(),
        [&[Flush, Release], &other[..], &[Replace]].concat(),
        [&[CreateOther, LineOther, Replace, Lines(3), Release][..], &[ReleaseOther]].concat(),
        [&[Remove], &other[..], &[Replace, Lines(2), Read(masked), Release]].concat(),
    ] {
        all_ends_as_if_nobody_had_died(&replaced(&more));
    }
}

/// What another process writes.
const ANOTHER: &str = "of another\n";

/// Processes that use files by their names, as the kernel asks for it; a worker dies at some point.
struct Processes {
    ground: Ground,
    events: Arc<Events>,
    asked: u64,
    /// Files are released by other threads, as the kernel does: nobody waits for it.
    is_late: bool,
    /// What is written has values in it, and is not read as it was written.
    has_values: bool,
    releases: Vec<std::thread::JoinHandle<()>>,
}

#[derive(Debug, Clone)]
enum Deed {
    Append(usize, &'static str),
    Over(usize, u64, &'static str),
    Remove(usize),
    Rename(usize, usize),
    Save(usize, &'static str),
    Truncate(usize, u64),
}

impl Processes {
    fn new() -> Self {
        let ground = Ground::new();
        let events = Arc::new(ground.worker());
        Self { ground, events, asked: 0, is_late: false, has_values: false, releases: Vec::new() }
    }

    /// The same, of what cannot fail.
    fn tell(&mut self, tell: impl Fn(&Events)) {
        let told = self.ask(|events, _| {
            tell(events);
            Ok(())
        });
        told.unwrap();
    }

    fn release(&mut self, fh: u64) {
        if !self.is_late {
            return self.tell(|events| events.release(fh));
        }
        let events = self.events.clone();
        self.releases.push(std::thread::spawn(move || events.release(fh)));
    }

    /// One request; asked again when the worker dies over it.
    fn ask<T>(
        &mut self,
        ask: impl Fn(&Events, Request) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        self.asked += 2;
        let mut request = Request { id: self.asked, resent: false };
        match catch_unwind(AssertUnwindSafe(|| ask(&self.events, request))) {
            Ok(outcome) => outcome,
            Err(panic) => {
                assert!(panic.is::<Killed>(), "a panic");
                self.events = Arc::new(self.ground.worker());
                request.resent = true;
                ask(&self.events, request)
            }
        }
    }

    /// The same of a request that takes a file's name away; when the worker dies over it and the name is
    /// free, another process makes a file of that name before it is asked again. Whether one did.
    fn ask_beside_another(
        &mut self,
        file: usize,
        ask: impl Fn(&Events, Request) -> Result<(), Refusal>,
    ) -> bool {
        self.asked += 2;
        let mut request = Request { id: self.asked, resent: false };
        match catch_unwind(AssertUnwindSafe(|| ask(&self.events, request))) {
            Ok(outcome) => {
                outcome.unwrap();
                false
            }
            Err(panic) => {
                assert!(panic.is::<Killed>(), "a panic");
                self.events = Arc::new(self.ground.worker());
                let is_free = !self.has_values && self.look(file).is_err();
                if is_free {
                    let mut other = BTreeMap::new();
                    self.run(&Deed::Save(file, ANOTHER), &mut other);
                }
                request.resent = true;
                ask(&self.events, request).unwrap();
                is_free
            }
        }
    }

    fn name(file: usize) -> String {
        format!("f{file}")
    }

    fn root(&mut self) -> u64 {
        let writer = self.ground.writer.clone();
        self.ask(|events, _| events.root(&writer)).unwrap().inode
    }

    fn look(&mut self, file: usize) -> Result<Attributes, Refusal> {
        let (writer, root, name) = (self.ground.writer.clone(), self.root(), Self::name(file));
        self.ask(|events, _| events.lookup(&writer, root, OsStr::new(&name)))
    }

    fn open(&mut self, file: usize, writing: bool) -> Result<(Attributes, u64), Refusal> {
        let writer = self.ground.writer.clone();
        loop {
            let found = self.look(file)?;
            match self
                .ask(|events, request| events.open_file(&writer, found.inode, writing, request))
            {
                Err(refused) if refused == stale() => {}
                opened => return opened.map(|fh| (found, fh)),
            }
        }
    }

    fn write(&mut self, fh: u64, at: At, text: &str) {
        let writer = self.ground.writer.clone();
        self.ask(|events, request| events.write(&writer, fh, at, text.as_bytes(), request))
            .unwrap();
    }

    fn close(&mut self, fh: u64) {
        let writer = self.ground.writer.clone();
        self.ask(|events, _| events.flush(&writer, fh)).unwrap();
        self.release(fh);
    }

    fn truncate(&mut self, inode: u64, size: u64) {
        let writer = self.ground.writer.clone();
        let change = Change { size: Some(size), ..Change::default() };
        self.ask(|events, _| events.change(&writer, inode, change)).unwrap();
        self.tell(|events| events.changed(inode));
    }

    fn run(&mut self, deed: &Deed, files: &mut BTreeMap<usize, String>) {
        let writer = self.ground.writer.clone();
        let root = self.root();
        match *deed {
            Deed::Save(file, text) => {
                let name = Self::name(file);
                let fh = match files.contains_key(&file) {
                    true => {
                        let (found, fh) = self.open(file, true).unwrap();
                        self.truncate(found.inode, 0);
                        fh
                    }
                    false => {
                        let create = |events: &Events, request| {
                            events.create(&writer, root, OsStr::new(&name), false, true, request)
                        };
                        self.ask(create).unwrap().1
                    }
                };
                self.write(fh, At { offset: 0, append: false }, text);
                self.close(fh);
                files.insert(file, text.to_owned());
            }
            Deed::Append(file, text) => {
                let Some(before) = files.get_mut(&file) else { return };
                let (found, fh) = self.open(file, true).unwrap();
                if !self.has_values {
                    assert_eq!(found.size_bytes, before.len() as u64, "of {deed:?}");
                }
                self.write(fh, At { offset: found.size_bytes, append: true }, text);
                self.close(fh);
                before.push_str(text);
            }
            Deed::Over(file, at, text) => {
                let Some(before) = files.get_mut(&file) else { return };
                let at = at.min(before.len() as u64);
                let (_, fh) = self.open(file, true).unwrap();
                self.write(fh, At { offset: at, append: false }, text);
                self.close(fh);
                let at = usize::try_from(at).unwrap();
                let end = before.len().min(at + text.len());
                before.replace_range(at..end, text);
            }
            Deed::Truncate(file, size) => {
                let Some(before) = files.get_mut(&file) else { return };
                let inode = self.look(file).unwrap().inode;
                self.truncate(inode, size);
                let size = usize::try_from(size).unwrap();
                before.truncate(size);
                before.extend(std::iter::repeat_n('\0', size - before.len()));
            }
            Deed::Rename(from, to) => {
                if from == to || !files.contains_key(&from) {
                    return;
                }
                self.look(from).unwrap();
                let names = [from, to].map(Self::name);
                let is_made = self.ask_beside_another(from, |events, request| {
                    let [from, to] = [0, 1].map(|n| (root, OsStr::new(&names[n])));
                    events.rename(&writer, from, to, false, request)
                });
                let moved = files.remove(&from).unwrap();
                files.insert(to, moved);
                if is_made {
                    files.insert(from, ANOTHER.to_owned());
                }
            }
            Deed::Remove(file) => {
                if files.remove(&file).is_none() {
                    return;
                }
                let name = Self::name(file);
                let is_made = self.ask_beside_another(file, |events, request| {
                    events.unlink(&writer, root, OsStr::new(&name), request)
                });
                if is_made {
                    files.insert(file, ANOTHER.to_owned());
                }
            }
        }
    }

    fn read(&mut self, file: usize) -> String {
        let writer = self.ground.writer.clone();
        let (found, fh) = self.open(file, false).unwrap();
        let read = self.ask(|events, _| events.read(&writer, fh, 0, 4096)).unwrap();
        assert_eq!(found.size_bytes, read.len() as u64, "of file {file}");
        self.release(fh);
        String::from_utf8(read).unwrap()
    }

    fn check(&mut self, files: &BTreeMap<usize, String>) {
        for (file, text) in files {
            assert_eq!(self.read(*file), *text, "of file {file}");
        }
    }
}

fn deed() -> impl proptest::strategy::Strategy<Value = Deed> {
    use proptest::prelude::*;
    let text = || {
        proptest::sample::select(vec![
            "a line\n",
            "build-2024-",
            "x",
            "08-15",
            "\n",
            "done: 100% ",
            "/usr/lib/x86",
            "== ",
            "\"q\": 1,\n",
            "\\",
            "",
        ])
    };
    let file = || 0_usize..3;
    prop_oneof![
        3 => (file(), text()).prop_map(|(file, text)| Deed::Save(file, text)),
        4 => (file(), text()).prop_map(|(file, text)| Deed::Append(file, text)),
        2 => (file(), 0_u64..20, text()).prop_map(|(file, at, text)| Deed::Over(file, at, text)),
        1 => file().prop_map(Deed::Remove),
        2 => (file(), file()).prop_map(|(from, to)| Deed::Rename(from, to)),
        2 => (file(), 0_u64..20).prop_map(|(file, size)| Deed::Truncate(file, size)),
    ]
}

/// The pieces make the value.
fn adding() -> impl proptest::strategy::Strategy<Value = Deed> {
    use proptest::prelude::*;
    let text = || {
        let (first, second) = VALUE.split_at(13);
        proptest::sample::select(vec![
            "a line\n",
            "x",
            first,
            second,
            VALUE,
            "sk-ant-api03-",
            "AbCdEfGh1JkLmN0pQrStUv",
            "\n",
        ])
    };
    let file = || 0_usize..2;
    prop_oneof![
        2 => (file(), text()).prop_map(|(file, text)| Deed::Save(file, text)),
        6 => (file(), text()).prop_map(|(file, text)| Deed::Append(file, text)),
        1 => (file(), file()).prop_map(|(from, to)| Deed::Rename(from, to)),
    ]
}

use proptest::prelude::prop_assert_eq;

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(
        std::env::var("STRONGROOM_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(200)
    ))]

    #[test]
    fn files_have_by_their_names_what_was_written_wherever_a_worker_dies(
        deeds in proptest::collection::vec(deed(), 1..12), share in 0_u64..1000, tidy: bool,
    ) {
        let play = |point: u64| {
            let (mut processes, mut files) = (Processes::new(), BTreeMap::new());
            die_after(Some(point));
            for deed in &deeds {
                processes.run(deed, &mut files);
                if tidy {
                    processes.tell(Events::tidy);
                }
                processes.check(&files);
            }
            die_after(None)
        };
        let points = u64::MAX - play(u64::MAX).unwrap();
        play(points * share / 1000);
    }

    #[test]
    fn what_was_begun_in_a_file_goes_on_wherever_a_worker_dies(
        deeds in proptest::collection::vec(adding(), 1..10), share in 0_u64..1000, tidy: bool,
    ) {
        let play = |point: u64| {
            let (mut processes, mut files) = (Processes::new(), BTreeMap::new());
            processes.has_values = true;
            die_after(Some(point));
            for deed in &deeds {
                processes.run(deed, &mut files);
                if tidy {
                    processes.tell(Events::tidy);
                }
            }
            let read: Vec<_> = files.keys().map(|file| processes.read(*file)).collect();
            (die_after(None), read)
        };
        let (left, expected) = play(u64::MAX);
        let points = u64::MAX - left.unwrap();
        let (_, read) = play(points * share / 1000);
        prop_assert_eq!(read, expected);
    }

    #[test]
    fn files_have_by_their_names_what_was_written_however_late_they_are_released_and_whoever_looks(
        deeds in proptest::collection::vec(deed(), 1..40),
    ) {
        let (mut processes, mut files) = (Processes::new(), BTreeMap::new());
        processes.is_late = true;
        let is_over = Arc::new(AtomicBool::new(false));
        let looker = {
            let (events, is_over) = (processes.events.clone(), is_over.clone());
            std::thread::spawn(move || {
                let writer = writer();
                let root = events.root(&writer).unwrap().inode;
                while !is_over.load(Ordering::Relaxed) {
                    for file in 0..3 {
                        let _found = events.lookup(&writer, root, OsStr::new(&Processes::name(file)));
                    }
                }
            })
        };
        for deed in &deeds {
            processes.run(deed, &mut files);
        }
        processes.check(&files);
        is_over.store(true, Ordering::Relaxed);
        looker.join().unwrap();
        for release in std::mem::take(&mut processes.releases) {
            release.join().unwrap();
        }
        processes.check(&files);
    }
}
