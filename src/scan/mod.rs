//! Looks through files and trees for secrets, and tells where they are, never what they are.
//!
//! Invariant: the same tree gives the same findings in the same order, on however many cores; what
//! could not be read is told, never passed over. Danger: a report that is itself a leak, so a
//! finding holds a place and the name of a rule or secret, neither the bytes nor a digest of them.
#![forbid(unsafe_code)]

pub mod allow;
mod index;
mod name;
mod place;
mod tree;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use nix::fcntl::OFlag;
use zeroize::Zeroizing;

use crate::redact::{Level, Redactor, Sink, View};
use crate::secret::SecretBytes;

pub use name::{Name, names};
pub use place::Finding;
pub use tree::{Found, Item, Options, find};

use place::Places;

/// What is read at once.
const CHUNK_BYTES: usize = 256 << 10;
/// A zero byte in the beginning of this length makes a file binary, as git has it.
const BINARY_BYTES: usize = 8000;
/// More findings of one file are only counted.
const MAX_FINDINGS: usize = 10_000;

/// A part of what was searched, as it is decided.
#[derive(Debug, Clone, Copy)]
pub enum Part<'a> {
    /// Bytes that are no secret.
    Clear(&'a [u8]),
    /// Bytes of a secret, in order, perhaps in pieces.
    Hidden(&'a [u8]),
    /// The secret that was hidden since the last marker is complete: its marker.
    Marker(&'a str),
}

/// Takes parts.
pub type Each<'a> = &'a mut dyn FnMut(Part<'_>);

/// Searches one text after the other.
pub trait Engine {
    /// Why it cannot go on at all.
    type Error;

    /// Takes the next bytes of a text.
    ///
    /// # Errors
    /// When the engine is of no more use.
    fn push(&mut self, input: &[u8], each: Each<'_>) -> Result<(), Self::Error>;

    /// Gives what is decided by what was pushed.
    ///
    /// # Errors
    /// As [`Engine::push`].
    fn flush(&mut self, each: Each<'_>) -> Result<(), Self::Error>;

    /// The text has ended.
    ///
    /// # Errors
    /// As [`Engine::push`].
    fn finish(&mut self, each: Each<'_>) -> Result<(), Self::Error>;
}

/// Known formats, without any vault.
pub struct Local {
    view: Arc<View>,
    level: Level,
    redactor: Redactor,
}

impl Local {
    /// With a view's rules.
    pub fn new(view: Arc<View>, level: Level) -> Self {
        let redactor = Redactor::new(view.clone(), level);
        Self { view, level, redactor }
    }
}

struct Parts<'a>(Each<'a>);

impl Sink for Parts<'_> {
    fn clear(&mut self, bytes: &[u8]) {
        (self.0)(Part::Clear(bytes));
    }
    fn hidden(&mut self, raw: &[u8]) {
        (self.0)(Part::Hidden(raw));
    }
    fn marker(&mut self, text: &str, _raw_len: u64) {
        (self.0)(Part::Marker(text));
    }
}

impl Engine for Local {
    type Error = std::convert::Infallible;

    fn push(&mut self, input: &[u8], each: Each<'_>) -> Result<(), Self::Error> {
        self.redactor.push(input, &mut Parts(each));
        Ok(())
    }

    fn flush(&mut self, _each: Each<'_>) -> Result<(), Self::Error> {
        Ok(())
    }

    fn finish(&mut self, each: Each<'_>) -> Result<(), Self::Error> {
        self.redactor.finish(&mut Parts(each));
        self.redactor = Redactor::new(self.view.clone(), self.level);
        Ok(())
    }
}

/// What came of one file.
#[derive(Debug, Default)]
pub struct Outcome {
    /// In the order of the file.
    pub findings: Vec<Finding>,
    /// The bytes of those that were asked for, by their place among the findings.
    pub tokens: BTreeMap<usize, SecretBytes>,
    /// Findings beyond those.
    pub more: u64,
    /// Bytes that were searched.
    pub bytes: u64,
    /// Larger than asked for, so not searched.
    pub too_large: bool,
    /// Why it could not be read, or not to its end.
    pub unreadable: Option<String>,
}

/// Of which lengths the bytes of findings are wanted, if of any.
pub type Wanted<'a> = Option<&'a (dyn Fn(usize) -> bool + Sync)>;

/// Searches what a reader gives.
///
/// # Errors
/// The engine's.
pub fn text<E: Engine>(
    source: &mut dyn Read,
    wanted: Wanted<'_>,
    engine: &mut E,
) -> Result<Outcome, E::Error> {
    let mut outcome = Outcome::default();
    let mut buffer = Zeroizing::new(vec![0; CHUNK_BYTES]);
    let mut places = Places::new(wanted);
    let mut begun = false;
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => {
                outcome.unreadable = Some(e.to_string());
                break;
            }
        };
        let input = &buffer[..count];
        if !begun {
            begun = true;
            places.set_binary(input[..count.min(BINARY_BYTES)].contains(&0));
        }
        outcome.bytes += count as u64;
        engine.push(input, &mut |part| take(&mut places, &mut outcome, part))?;
    }
    engine.finish(&mut |part| take(&mut places, &mut outcome, part))?;
    Ok(outcome)
}

fn take(places: &mut Places<'_>, outcome: &mut Outcome, part: Part<'_>) {
    if let Some((finding, token)) = places.take(part) {
        if outcome.findings.len() < MAX_FINDINGS {
            outcome.tokens.extend(token.map(|token| (outcome.findings.len(), token)));
            outcome.findings.push(finding);
        } else {
            outcome.more += 1;
        }
    }
}

fn open(item: &Item) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    options.read(true);
    if !item.named {
        // A name that the tree gave: it may have become a link or a pipe meanwhile.
        options.custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits());
    }
    options.open(&item.path)
}

fn file<E: Engine>(
    item: &Item,
    max_bytes: Option<u64>,
    wanted: Wanted<'_>,
    engine: &mut E,
) -> Result<Outcome, E::Error> {
    let unreadable =
        |e: &io::Error| Outcome { unreadable: Some(e.to_string()), ..Outcome::default() };
    let mut source = match open(item) {
        Ok(file) => file,
        Err(error) => return Ok(unreadable(&error)),
    };
    match source.metadata() {
        Err(error) => return Ok(unreadable(&error)),
        Ok(metadata) if !item.named && !metadata.is_file() => return Ok(Outcome::default()),
        Ok(metadata) if max_bytes.is_some_and(|max| metadata.len() > max) => {
            return Ok(Outcome { too_large: true, ..Outcome::default() });
        }
        Ok(_) => {}
    }
    text(&mut source, wanted, engine)
}

/// Searches files on several cores; outcomes come in the order of the files, with their number.
///
/// # Errors
/// The first error of an engine; the rest is not searched then.
pub fn files<E, M>(
    items: &[Item],
    max_bytes: Option<u64>,
    wanted: Wanted<'_>,
    threads: usize,
    make: M,
    each: &mut dyn FnMut(usize, Outcome),
) -> Result<(), E::Error>
where
    E: Engine,
    E::Error: Send,
    M: Fn() -> Result<E, E::Error> + Sync,
{
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (sender, outcomes) = mpsc::sync_channel(1024);
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, items.len().max(1)) {
            let sender = sender.clone();
            let (next, stop, make) = (&next, &stop, &make);
            scope.spawn(move || {
                let mut engine = match make() {
                    Ok(engine) => engine,
                    Err(error) => return drop(sender.send(Err(error))),
                };
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(number) else { return };
                    let outcome = file(item, max_bytes, wanted, &mut engine);
                    let failed = outcome.is_err();
                    // Nobody listens any more after another's error.
                    if sender.send(outcome.map(|o| (number, o))).is_err() || failed {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut early = BTreeMap::new();
        let mut due = 0;
        for outcome in outcomes {
            match outcome {
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    return Err(error);
                }
                Ok((number, outcome)) => {
                    early.insert(number, outcome);
                }
            }
            while let Some(outcome) = early.remove(&due) {
                each(due, outcome);
                due += 1;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redact::{Index, Others, Value};

    const SECRET: &[u8] = b"hunter2-hunter2-7Q";

    pub(super) fn engine() -> Local {
        let index = Index::build([Value { id: 1, bytes: SECRET }]);
        let view = View::new(&Arc::new(index), [(1, "DB".into())].into(), Others::Unseen);
        Local::new(Arc::new(view), Level::Values)
    }

    /// Gives a few bytes at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(into.len());
            into[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    #[test]
    fn a_place_is_the_same_however_the_file_is_read() {
        let text =
            [b"first\nl\xc3\xa4nger: ".as_slice(), SECRET, b" and ", SECRET, b"\n\n", SECRET]
                .concat();
        for step in [1, 2, 7, 1000] {
            let outcome = super::text(&mut Slow(&text, step), None, &mut engine()).unwrap();
            let places: Vec<_> = outcome
                .findings
                .iter()
                .map(|f| (f.rule.as_str(), f.line.unwrap(), f.column.unwrap()))
                .collect();
            assert_eq!(places, [("DB", 2, 9), ("DB", 2, 32), ("DB", 4, 1)], "{step}");
            assert_eq!(outcome.bytes, text.len() as u64);
        }
    }

    #[test]
    fn the_bytes_of_a_finding_are_kept_where_their_length_is_wanted_and_whole() {
        let text = [b"a ".as_slice(), SECRET, b" b ", &SECRET[..9], b"\n", SECRET].concat();
        for step in [1, 5, 1000] {
            let whole = |len| len == SECRET.len();
            let outcome = super::text(&mut Slow(&text, step), Some(&whole), &mut engine()).unwrap();
            let tokens: Vec<_> = outcome.tokens.iter().map(|(n, t)| (*n, t.expose())).collect();
            assert_eq!(tokens, [(0, SECRET), (1, SECRET)], "{step}");
            let none = super::text(&mut Slow(&text, step), Some(&|_| false), &mut engine());
            assert!(none.unwrap().tokens.is_empty());
        }
    }

    #[test]
    fn a_binary_file_has_offsets_and_no_lines() {
        let text = [b"\0\n\0".as_slice(), SECRET, b"\0"].concat();
        let outcome = super::text(&mut &text[..], None, &mut engine()).unwrap();
        assert_eq!(outcome.findings[0].offset, 3);
        assert_eq!(outcome.findings[0].line, None);
    }

    #[test]
    fn an_engine_begins_each_text_anew() {
        let mut engine = engine();
        let (start, end) = SECRET.split_at(9);
        for part in [start, end] {
            assert!(super::text(&mut &part[..], None, &mut engine).unwrap().findings.len() <= 1);
        }
        let clean = super::text(&mut &b"nothing"[..], None, &mut engine).unwrap();
        assert!(clean.findings.is_empty());
    }
}
