//! What is done for a right guess of a foreign value and for a wrong one is the same: every request to
//! the file system, in order, the length of everything that the runtime state gets, and in how many
//! bytes values are looked for.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::asked::take;
use super::*;
use crate::broker::Request;
use crate::execution::state::State;
use crate::redact::{Index, LOOKED, Level, Others, Value};

/// Nothing else than the value itself has a reason to wait for what follows.
const SIGNS: &str = "Zk8!Wq2 %mN5,rT7 (U0;X3c =b9?Q1d )4g";
const STRONG: &str = "Zk8Wq2LmN5rT7yU0pX3cVb9sQ1dF4gH6";
const LINES: &str = "vP3!tG6 %hJ9,wE2 (R5;\nY1u =o4?I8p )7a !s0 -_+";
const OWN: &str = "postgres://app:canary-hunter2@db.internal/prod";

struct Vault {
    view: Arc<View>,
    key: Arc<Key>,
    guesses: AtomicU64,
}

impl Outside for Vault {
    fn view(&self, _: &Place) -> Result<Arc<View>, Refusal> {
        Ok(self.view.clone())
    }
    fn key(&self) -> Result<Arc<Key>, Refusal> {
        Ok(self.key.clone())
    }
    fn redacted(&self, _: &Place, _: &str, _: &Telling) -> bool {
        true
    }
    fn unchecked(&self, _: &Place, _: &str, _: &str, _: &[u8]) {}
    fn noted(&self, _: &[u8]) {}
    fn name_refused(&self, _: &Place) {}
    fn guessed(&self, _: &Place, count: u64) {
        self.guesses.fetch_add(count, Ordering::Relaxed);
    }
    fn is_guesser(&self, _: &Place) -> bool {
        self.guesses.load(Ordering::Relaxed) > 0
    }
}

/// An agent of an execution of its own.
pub(super) fn writer() -> Writer {
    let place = Arc::new(Place {
        folder: "c/-/x".to_owned(),
        chain: "c".to_owned(),
        environment: None,
        execution: "x".to_owned(),
    });
    let (token, level) = (String::new(), Level::All);
    Writer { principal: 1, place, token, uid: 0, gid: 0, level }
}

#[derive(Debug, Clone)]
enum Step<'a> {
    Write(&'a str),
    /// Elsewhere than at the end.
    Over(u64, &'a str),
    Read,
    Stat,
    Sync,
    Close,
    Reopen,
    /// Another worker takes over.
    Crash,
}
use Step::{Close, Crash, Over, Read, Reopen, Stat, Sync, Write};

/// What was done in a step.
#[derive(Debug, PartialEq, Eq)]
struct Done {
    step: String,
    asked: Vec<&'static str>,
    looked: usize,
    /// Kinds of entries of the runtime state, and their lengths.
    noted: Vec<(Kind, usize)>,
    told: String,
}

struct Bench {
    _dir: tempfile::TempDir,
    path: PathBuf,
    state: State,
    outside: Arc<Vault>,
    journal: Arc<Journal>,
    writer: Writer,
}

impl Bench {
    fn new() -> Self {
        let foreign = [SIGNS, STRONG, LINES].iter().zip(2..);
        let values = foreign.map(|(value, id)| Value { id, bytes: value.as_bytes() });
        let own = Value { id: 1, bytes: OWN.as_bytes() };
        let index = Arc::new(Index::build(values.chain([own])));
        let names = [(1, Arc::from("DATABASE_URL"))].into();
        let view = Arc::new(View::new(&index, names, Others::Unnamed));
        let (key, guesses) = (Arc::new(Key::random().unwrap()), AtomicU64::new(0));
        let outside = Arc::new(Vault { view, key, guesses });
        let dir = tempfile::tempdir().unwrap();
        let (path, state) = (dir.path().join("events"), State::create().unwrap());
        let journal = Arc::new(Journal::open(&state));
        let writer = writer();
        Self { _dir: dir, path, state, outside, journal, writer }
    }

    fn events(&self) -> Events {
        let look = Look { uid: None, gid: None, mode: 0o600 };
        let limits = Limits { max_file: 1 << 30, max_total: 1 << 30, max_held: 1 << 20 };
        let handles = Arc::new(Handles::open(&self.state));
        let (journal, outside) = (self.journal.clone(), self.outside.clone());
        Events::open(&self.path, look, limits, journal, handles, outside).unwrap()
    }

    fn noted(&self) -> Vec<(Kind, usize)> {
        let of = |kind| self.journal.all(kind).into_iter().map(move |(_, v)| (kind, v.len()));
        let mut noted: Vec<_> = of(Kind::EventDraft).chain(of(Kind::EventNode)).collect();
        noted.sort_unstable();
        noted
    }

    fn play(&self, steps: &[Step<'_>]) -> Vec<Done> {
        let (mut events, writer, name) = (self.events(), &self.writer, OsStr::new("probe"));
        let root = events.root(writer).unwrap().inode;
        let mut request = Request { id: 0, resent: false };
        let (_, mut fh) = events.create(writer, root, name, false, true, request).unwrap();
        let mut len = 0;
        (_, _) = (take(), LOOKED.take());
        let mut all = Vec::new();
        for step in steps {
            request.id += 2;
            let mut told = String::new();
            match *step {
                Write(text) => {
                    let at = At { offset: len, append: true };
                    events.write(writer, fh, at, text.as_bytes(), request).unwrap();
                    len += text.len() as u64;
                }
                Over(offset, text) => {
                    let at = At { offset, append: false };
                    events.write(writer, fh, at, text.as_bytes(), request).unwrap();
                    len = len.max(offset + text.len() as u64);
                }
                Read => told = format!("{} bytes", events.read(writer, fh, 0, 4096).unwrap().len()),
                Stat => {
                    told = events.lookup(writer, root, name).unwrap().size_bytes.to_string();
                }
                Sync => events.sync(writer, fh).unwrap(),
                Close => {
                    events.flush(writer, fh).unwrap();
                    events.release(fh);
                }
                Reopen => {
                    let found = events.lookup(writer, root, name).unwrap();
                    len = found.size_bytes;
                    fh = events.open_file(writer, found.inode, true, request).unwrap();
                }
                Crash => events = self.events(),
            }
            let is_new = |text: &str| text.len().to_string();
            let step = match step {
                Write(text) => format!("Write {}", is_new(text)),
                Over(at, text) => format!("Over {at} {}", is_new(text)),
                other => format!("{other:?}"),
            };
            let (asked, looked, noted) = (take(), LOOKED.take(), self.noted());
            all.push(Done { step, asked, looked, noted, told });
        }
        all
    }
}

/// The first bytes of a value, and the same with another last one of the same kind.
fn guesses_of(value: &str, len: usize) -> [String; 2] {
    let last = match value.as_bytes()[len - 1] {
        b'0'..=b'9' => '4',
        byte if byte.is_ascii_alphabetic() => 'q',
        b';' => ',',
        _ => ';',
    };
    [value[..len].to_owned(), format!("{}{last}", &value[..len - 1])]
}

#[test]
fn a_right_guess_asks_the_same_of_the_file_system_as_a_wrong_one() {
    let mut compared = 0;
    let lens = [4, 9, 13, 21];
    let all = lens.iter().flat_map(|len| [(SIGNS, *len), (STRONG, *len)]);
    for (value, len) in all.chain([(LINES, 13)]) {
        let plays = guesses_of(value, len).map(|guess| {
            let (begin, rest) = guess.split_at(len / 2);
            let single = guess.split("").filter(|part| !part.is_empty());
            let all: [Vec<Step<'_>>; 12] = [
                vec![
                    Write(&guess),
                    Read,
                    Stat,
                    Sync,
                    Close,
                    Stat,
                    Reopen,
                    Write("\n"),
                    Read,
                    Close,
                ],
                vec![Write(&guess), Write("\n"), Sync, Write("more"), Read, Close],
                vec![Write(&guess), Write(" "), Write(" x"), Read, Close, Reopen, Close],
                vec![Write(begin), Read, Write(rest), Read, Sync, Write("!\n"), Sync, Close],
                vec![Write("a line\n"), Write(&guess), Sync, Read, Write(" ends\n"), Sync, Close],
                vec![Write("a part "), Write(&guess), Sync, Read, Write(" ends\n"), Read, Close],
                vec![Write(&guess), Close, Reopen, Close, Reopen, Write(" x"), Sync, Read, Close],
                vec![Write(begin), Close, Reopen, Write(rest), Close, Reopen, Write(" "), Close],
                vec![Write(&guess), Over(0, "x"), Read, Sync, Read, Write("\n"), Close],
                vec![Write("line\n"), Over(2, &guess), Read, Sync, Write("\n"), Sync, Read, Close],
                vec![Write(&guess), Crash, Read, Write(" "), Sync, Close, Reopen, Read, Close],
                single.map(Write).chain([Sync, Read, Write("\n"), Sync, Close]).collect(),
            ];
            all.map(|steps| (format!("{steps:?}"), Bench::new().play(&steps)))
        });
        let [rights, wrongs] = plays;
        for ((steps, right), (_, wrong)) in rights.into_iter().zip(wrongs) {
            for (right, wrong) in right.iter().zip(&wrong) {
                assert_eq!(right, wrong, "of {steps}");
                compared += 1;
            }
        }
    }
    println!("{compared} steps compared");
}

#[test]
fn long_beginnings_of_foreign_values_that_are_tried_are_counted_and_nothing_else() {
    let guesses = |steps: &[Step<'_>]| {
        let bench = Bench::new();
        bench.play(steps);
        bench.outside.guesses.load(Ordering::Relaxed)
    };
    for (value, len) in [(SIGNS, 16), (LINES, 16)] {
        let [right, wrong] = guesses_of(value, len);
        let (begin, rest) = (&value[..len], &value[len..]);
        for (steps, expected) in [
            // A right guess each time that it is given up, or made to take its time.
            (vec![Write(&right), Close], 1),
            (vec![Write(&right), Write(" no\n"), Close], 1),
            (vec![Write(&right), Sync, Read, Read, Close], 4),
            (vec![Write(&right), Close, Reopen, Close, Reopen, Write(" no"), Close], 5),
            (vec![Write(&right), Over(0, "x"), Close], 2),
            (vec![Write("a line\nand "), Write(&right), Stat, Sync, Crash, Sync, Close], 3),
            (vec![Write("x\n"), Over(1, &right), Sync, Close], 2),
            // Wrong ones, short ones, and whole values, in whatever pieces.
            (vec![Write(&wrong), Sync, Read, Close, Reopen, Write("\n"), Close], 0),
            (vec![Write(&value[..6]), Sync, Read, Close, Reopen, Close], 0),
            (vec![Write(value), Sync, Read, Write("\n"), Sync, Close], 0),
            (vec![Write(begin), Write(rest), Write("\n"), Sync, Close], 0),
            (vec![Write(&begin[..8]), Write(&begin[8..]), Write(rest), Close], 0),
            // What is its own is not guessed.
            (vec![Write(&OWN[..30]), Sync, Read, Close, Reopen, Write(" no\n"), Close], 0),
            (vec![Write("an ordinary line"), Sync, Read, Write(" goes on\n"), Close], 0),
        ] {
            assert_eq!(guesses(&steps), expected, "of {steps:?}");
        }
    }
}
