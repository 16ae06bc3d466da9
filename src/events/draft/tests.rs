//! A draft against a plain file: the oracle of the design, in memory.
#![forbid(unsafe_code)]

use super::seen::HIDDEN;
use super::*;
use crate::redact::{Index, Others, Value, redact};
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeMap;

#[derive(Default)]
struct Memory(RefCell<Vec<u8>>, RefCell<Vec<Vec<u8>>>);

impl Store for Memory {
    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.0.borrow();
        let from = (at as usize).min(bytes.len());
        let n = buffer.len().min(bytes.len() - from);
        buffer[..n].copy_from_slice(&bytes[from..from + n]);
        Ok(n)
    }
    fn write_at(&self, at: u64, new: &[u8]) -> io::Result<()> {
        let mut bytes = self.0.borrow_mut();
        let end = at as usize + new.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[at as usize..end].copy_from_slice(new);
        Ok(())
    }
    fn pretend_read(&self, _: usize) {}
    fn pretend_write(&self, _: u64, _: usize) {}
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.borrow_mut().resize(len as usize, 0);
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.borrow().len() as u64)
    }
    fn put_pack(&self, number: u64, plain: &[u8]) -> io::Result<()> {
        let mut packs = self.1.borrow_mut();
        packs.truncate(number as usize);
        packs.push(plain.to_vec());
        Ok(())
    }
    fn pack(&self, number: u64) -> io::Result<Zeroizing<Vec<u8>>> {
        Ok(Zeroizing::new(self.1.borrow()[number as usize].clone()))
    }
    fn keep_packs(&self, count: u64) -> io::Result<()> {
        self.1.borrow_mut().truncate(count as usize);
        Ok(())
    }
}

const VALUES: [&str; 3] = ["Zk8Wq2LmN5rT7yU0", "abcdabcd-abcdabcd", "N5rT7yU0-more-of-it"];

fn view() -> Arc<View> {
    let index =
        Index::build(VALUES.iter().zip(0..).map(|(v, id)| Value { id, bytes: v.as_bytes() }));
    let names = (0..).zip(VALUES).map(|(id, _)| (id, format!("N{id}").into())).collect();
    Arc::new(View::new(&Arc::new(index), names, Others::Unseen))
}

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<u8>),
    Write(u64, Vec<u8>),
    Truncate(u64),
    Rebuild,
    /// Another worker takes over.
    Crash,
    Settle,
    /// Hidden ranges are put beside the store.
    Pack,
    Read(u64, usize),
}

fn piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        "[ -~\n]{0,12}".prop_map(String::into_bytes),
        (0..VALUES.len(), 0..20_usize, 0..20_usize).prop_map(|(n, a, b)| {
            let value = VALUES[n].as_bytes();
            let (a, b) = (a.min(value.len()), b.min(value.len()));
            value[a.min(b)..a.max(b)].to_vec()
        }),
        (0..VALUES.len()).prop_map(|n| VALUES[n].as_bytes().to_vec()),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => piece().prop_map(Step::Append),
        2 => (0_u64..120, piece()).prop_map(|(at, bytes)| Step::Write(at, bytes)),
        1 => (0_u64..120).prop_map(Step::Truncate),
        1 => Just(Step::Rebuild),
        2 => Just(Step::Crash),
        1 => Just(Step::Settle),
        2 => Just(Step::Pack),
        1 => (0_u64..120, 0_usize..60).prop_map(|(at, n)| Step::Read(at, n)),
    ]
}

/// A draft with all that the runtime state has of it.
struct Desk {
    draft: Draft,
    store: Memory,
    head: Zeroizing<Vec<u8>>,
    segments: BTreeMap<u64, Zeroizing<Vec<u8>>>,
    operations: Vec<Step>,
}

impl Desk {
    fn new() -> Self {
        let draft = Draft::new(view(), Level::Values);
        let head = draft.head();
        let (store, segments) = (Memory::default(), BTreeMap::new());
        Self { draft, store, head, segments, operations: Vec::new() }
    }

    fn save(&mut self) {
        self.segments.extend(self.draft.unsaved());
        self.head = self.draft.head();
    }

    fn rebuild(&mut self) {
        let target = Memory::default();
        self.draft = self.draft.rebuild(&self.store, &target, view()).unwrap();
        self.store = target;
        self.segments.clear();
        self.operations.clear();
        self.save();
    }

    fn pack(&mut self) {
        let packed = self.draft.pack(&self.store).unwrap();
        self.save();
        packed.for_each(|number| drop(self.segments.remove(&number)));
    }

    fn crash(&mut self) {
        let (mut draft, parts) = Draft::load(&self.head, view()).unwrap();
        for number in parts.segments.clone() {
            draft.add_segment(&self.segments[&number]).unwrap();
        }
        draft.add_packs(&self.store, &parts).unwrap();
        assert_eq!(parts.operations, self.operations.len() as u64);
        for operation in &self.operations {
            match operation {
                Step::Write(at, bytes) => draft.collect(&Operation::Write(*at, bytes)),
                Step::Truncate(len) => draft.collect(&Operation::Truncate(*len)),
                _ => unreachable!(),
            }
        }
        draft.complete(&parts);
        self.draft = draft;
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.draft.is_next(at) {
            self.draft.stream(&self.store, bytes).unwrap();
        } else {
            self.draft.collect(&Operation::Write(at, bytes));
            self.operations.push(Step::Write(at, bytes.to_vec()));
        }
        self.save();
    }

    fn finish(&mut self) {
        if self.draft.is_dirty() {
            self.rebuild();
        }
        self.draft.settle(&self.store, true).unwrap();
    }
}

#[test]
fn what_is_left_of_a_secret_that_was_written_over_stays_hidden() {
    for value in VALUES {
        for (at, new) in [(0, "x"), (3, "y"), (value.len() as u64 - 1, "z")] {
            let mut desk = Desk::new();
            desk.write(0, format!("{value}{}", &value[..4]).as_bytes());
            desk.write(at, new.as_bytes());
            for _ in 0..3 {
                desk.rebuild();
                desk.crash();
            }
            desk.write(desk.draft.len(), b" and more");
            desk.finish();
            let stored = text(&desk.store.0.borrow());
            for part in value.as_bytes().windows(5) {
                assert!(!stored.contains(&text(part)), "{stored}");
            }
            assert!(stored.contains(new) && stored.ends_with(" and more"), "{stored}");
            // Cut off, it does not come back either.
            desk.draft.collect(&Operation::Truncate(5));
            desk.operations.push(Step::Truncate(5));
            desk.save();
            desk.rebuild();
            desk.finish();
            let stored = text(&desk.store.0.borrow());
            assert!(!stored.contains(&value[..4]), "{stored}");
        }
    }
}

/// A log with a secret in each line.
#[test]
fn a_million_redactions_of_one_file_take_no_memory() {
    let lines: u64 = 1_000_000;
    let mut desk = Desk::new();
    let mut most = 0;
    let chunk: String = (0..1000).map(|n| format!("{n} {} x\n", VALUES[0])).collect();
    for _ in 0..lines / 1000 {
        desk.draft.stream(&desk.store, chunk.as_bytes()).unwrap();
        let held = desk.draft.segments();
        most = most.max(held.end - held.start);
        if desk.draft.has_many() {
            desk.draft.pack(&desk.store).unwrap();
        }
    }
    desk.save();
    assert!(most <= 2000, "{most} ranges in memory");
    let kept: usize = desk.store.1.borrow().iter().map(Vec::len).sum();
    assert!(kept as u64 <= 16 * lines, "{kept} bytes beside the store");
    desk.crash();
    // Writers' places are their own, wherever they look.
    let len = chunk.len() as u64;
    let hidden = chunk.replace(VALUES[0], &"*".repeat(VALUES[0].len()));
    for turn in [0, 1, 500, 998, 999] {
        let seen = desk.draft.read(&desk.store, turn * len, chunk.len()).unwrap();
        assert!(seen == hidden.as_bytes(), "{turn}");
    }
    // A pass over all of it, with something changed.
    desk.draft.collect(&Operation::Write(len, b"7"));
    desk.operations.push(Step::Write(len, b"7".to_vec()));
    let again = desk.draft.rebuild(&desk.store, &Memory::default(), view()).unwrap();
    let held = again.segments();
    assert_eq!(held.end, lines);
    assert!(held.end - held.start <= 20_000, "{held:?}");
    assert_eq!(again.len(), desk.draft.len());
    let marked = chunk.replace(VALUES[0], "[REDACTED:N0]");
    assert_eq!(desk.store.0.borrow().len() as u64, 1000 * marked.len() as u64);
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("STRONGROOM_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(3_000)
    ))]

    /// The oracle of the design, for one session of writing.
    #[test]
    fn what_is_stored_is_what_redaction_makes_of_a_plain_file(
        steps in proptest::collection::vec(step(), 1..25)
    ) {
        let mut desk = Desk::new();
        let mut plain: Vec<u8> = Vec::new();
        // Once a hidden range was changed, what is left of it stays hidden.
        let mut cut = false;
        for step in steps {
            match step {
                Step::Append(bytes) => {
                    desk.write(plain.len() as u64, &bytes);
                    plain.extend_from_slice(&bytes);
                }
                Step::Write(at, bytes) => {
                    desk.write(at, &bytes);
                    if !bytes.is_empty() {
                        let end = at as usize + bytes.len();
                        if plain.len() < end {
                            plain.resize(end, 0);
                        }
                        plain[at as usize..end].copy_from_slice(&bytes);
                    }
                }
                Step::Truncate(len) => {
                    if len != desk.draft.len() {
                        desk.draft.collect(&Operation::Truncate(len));
                        desk.operations.push(Step::Truncate(len));
                        desk.save();
                        plain.resize(len as usize, 0);
                    }
                }
                Step::Rebuild => {
                    cut |= !desk.draft.forced(&desk.store).unwrap().is_empty();
                    desk.rebuild();
                }
                Step::Crash => desk.crash(),
                Step::Pack => desk.pack(),
                Step::Settle => {
                    if !desk.draft.is_dirty() {
                        desk.draft.settle(&desk.store, true).unwrap();
                        desk.save();
                    }
                }
                Step::Read(at, n) => {
                    let seen = desk.draft.read(&desk.store, at, n).unwrap();
                    let from = (at as usize).min(plain.len());
                    let real = &plain[from..(from + n).min(plain.len())];
                    prop_assert_eq!(seen.len(), real.len());
                    for value in VALUES {
                        prop_assert!(!text(&seen).contains(value));
                    }
                    for (s, r) in seen.iter().zip(real) {
                        prop_assert!(s == r || *s == HIDDEN, "{} {}", text(&seen), text(real));
                    }
                }
            }
            prop_assert_eq!(desk.draft.len(), plain.len() as u64);
            for value in VALUES {
                prop_assert!(!text(&desk.store.0.borrow()).contains(value));
            }
        }
        cut |= !desk.draft.forced(&desk.store).unwrap().is_empty();
        desk.finish();
        let stored = text(&desk.store.0.borrow());
        prop_assert_eq!(stored.len() as u64, desk.draft.stored_len());
        for value in VALUES {
            prop_assert!(!stored.contains(value));
        }
        if !cut {
            prop_assert_eq!(&stored, &text(&redact(&view(), Level::Values, &plain)));
        }
        // Whoever still reads it sees the same length.
        let frozen = desk.draft.freeze();
        let seen = frozen.read(&desk.store, 0, plain.len() + 9).unwrap();
        prop_assert_eq!(seen.len(), plain.len());
    }

    /// A file that is closed and opened again between appends.
    #[test]
    fn a_secret_completed_by_a_later_append_is_caught(
        parts in proptest::collection::vec(piece(), 1..8), known in any::<bool>()
    ) {
        let store = Memory::default();
        let mut plain = Vec::new();
        let mut kept: Option<Kept> = None;
        // An end that was taken for a secret's and then was none stays as it was stored.
        let mut taken_back = false;
        for part in parts {
            let mut draft = Draft::reopen(
                view(), Level::Values, &store, kept.take().filter(|_| known),
            ).unwrap();
            let size = store.len().unwrap();
            prop_assert_eq!(draft.len(), size);
            prop_assert_eq!(draft.read(&store, 0, 1000).unwrap().len() as u64, size);
            prop_assert!(draft.is_next(size));
            draft.stream(&store, &part).unwrap();
            plain.extend_from_slice(&part);
            prop_assert_eq!(draft.len(), size + part.len() as u64);
            let seen = draft.read(&store, 0, 1000).unwrap();
            prop_assert_eq!(seen.len() as u64, draft.len());
            draft.settle(&store, true).unwrap();
            kept = Some(draft.kept());
            let frozen = draft.freeze();
            prop_assert_eq!(frozen.read(&store, 0, 1000).unwrap().len(), seen.len());
            let now = text(&store.0.borrow());
            let expected = text(&redact(&view(), Level::Values, &plain));
            taken_back |= now != expected;
            for value in VALUES {
                prop_assert!(!now.contains(value) , "{}", now);
            }
            if taken_back && known {
                // Only ever more is hidden, never less.
                prop_assert!(
                    now.matches("[REDACTED").count() >= expected.matches("[REDACTED").count(),
                    "{} {}", now, expected
                );
            }
        }
    }
}
