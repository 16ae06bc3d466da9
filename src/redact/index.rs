//! All values together, and what one writer may learn of them.
//!
//! An [`Index`] is shared by everybody and holds what nobody can guess, or what the caller puts into
//! it; a [`View`] adds the values of one writer's own and says which of all have a name for him.
//! Invariant: a value that a view does not see changes neither the output nor what is held back.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::detect::Detector;
use super::part::{Hit, Part, Text};
use crate::secret::SecretBytes;

/// The longest name in a marker, in bytes.
const MAX_NAME_BYTES: usize = 64;

/// One value to hide.
#[derive(Clone, Copy)]
pub struct Value<'a> {
    /// The caller's number of it.
    pub id: u32,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// A set of values. Cheap to share, and to extend by a few.
pub struct Index {
    main: Arc<Part>,
    delta: Arc<Part>,
    /// What the delta was made of.
    added: Arc<Vec<(u32, SecretBytes)>>,
    gone: Arc<HashSet<u32>>,
}

fn part<'a>(values: impl IntoIterator<Item = Value<'a>>) -> Arc<Part> {
    Arc::new(Part::build(values.into_iter().map(|value| (value.id, value.bytes))))
}

impl Index {
    /// With these values.
    pub fn build<'a>(values: impl IntoIterator<Item = Value<'a>>) -> Self {
        Self { main: part(values), delta: part([]), added: Arc::default(), gone: Arc::default() }
    }

    /// This and a few more. An id that was there before is replaced.
    #[must_use]
    pub fn with<'a>(&self, added: impl IntoIterator<Item = Value<'a>>) -> Self {
        let new: Vec<_> = added.into_iter().collect();
        let mut gone = (*self.gone).clone();
        let mut all: Vec<(u32, SecretBytes)> = Vec::new();
        for (id, bytes) in self.added.iter() {
            if !new.iter().any(|v| v.id == *id) {
                all.push((*id, SecretBytes::copy_of(bytes.expose())));
            }
        }
        for value in &new {
            // What the main part still has of it is covered by the same id.
            gone.remove(&value.id);
            all.push((value.id, SecretBytes::copy_of(value.bytes)));
        }
        let delta = part(all.iter().map(|(id, b)| Value { id: *id, bytes: b.expose() }));
        Self { main: self.main.clone(), delta, added: Arc::new(all), gone: Arc::new(gone) }
    }

    /// This without some.
    #[must_use]
    pub fn without(&self, ids: &[u32]) -> Self {
        let mut gone = (*self.gone).clone();
        gone.extend(ids);
        Self {
            main: self.main.clone(),
            delta: self.delta.clone(),
            added: self.added.clone(),
            gone: Arc::new(gone),
        }
    }

    /// How many values were added or removed since it was built: many make it worth building anew.
    pub fn changes(&self) -> usize {
        self.added.len() + self.gone.len()
    }

    /// How many needles there are.
    pub fn needles(&self) -> usize {
        self.main.len() + self.delta.len()
    }

    /// Bytes of the needles themselves.
    pub fn own_bytes(&self) -> usize {
        self.main.own_bytes() + self.delta.own_bytes()
    }

    /// Bytes of memory beside those.
    pub fn overhead(&self) -> usize {
        self.main.overhead() + self.delta.overhead()
    }
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index").field("needles", &self.needles()).finish_non_exhaustive()
    }
}

/// What becomes of values that have no name for a writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// They are hidden by `[REDACTED]`.
    Unnamed,
    /// They are not looked for.
    Unseen,
}

/// An index as one writer meets it.
pub struct View {
    parts: Vec<Arc<Part>>,
    gone: Vec<Arc<HashSet<u32>>>,
    names: HashMap<u32, Arc<str>>,
    others: Others,
    longest: usize,
    numbers: bool,
    detector: Arc<Detector>,
}

/// What may stand in a marker.
fn marker_name(name: &str) -> Arc<str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_.:+-".contains(c);
    let clean = |c: char| if allowed(c) { c } else { '_' };
    name.chars().map(clean).take(MAX_NAME_BYTES).collect::<String>().into()
}

impl View {
    /// Of one index.
    pub fn new(index: &Arc<Index>, names: HashMap<u32, Arc<str>>, others: Others) -> Self {
        Self::of([index.as_ref()], names, others)
    }

    /// Of several indexes, such as everybody's and one's own.
    pub fn of<'a>(
        indexes: impl IntoIterator<Item = &'a Index>,
        names: HashMap<u32, Arc<str>>,
        others: Others,
    ) -> Self {
        let (mut parts, mut gone) = (Vec::new(), Vec::new());
        for index in indexes {
            for part in [&index.main, &index.delta] {
                if part.len() > 0 {
                    parts.push(part.clone());
                    gone.push(index.gone.clone());
                }
            }
        }
        let names = names.into_iter().map(|(id, name)| (id, marker_name(&name))).collect();
        let longest = parts.iter().map(|p| p.longest()).max().unwrap_or(0);
        let numbers = parts.iter().any(|p| p.has_numbers());
        let detector = Detector::usual();
        Self { parts, gone, names, others, longest, numbers, detector }
    }

    /// Without any value: formats alone.
    pub fn empty() -> Self {
        Self::of([], HashMap::new(), Others::Unseen)
    }

    /// With other rules than the usual ones.
    #[must_use]
    pub fn with_detector(mut self, detector: Arc<Detector>) -> Self {
        self.detector = detector;
        self
    }

    pub(super) fn detector(&self) -> &Detector {
        &self.detector
    }

    pub(super) fn has_numbers(&self) -> bool {
        self.numbers
    }

    /// Bytes of the longest needle.
    pub fn longest(&self) -> usize {
        self.longest
    }

    pub(super) fn name(&self, id: u32) -> Option<&Arc<str>> {
        self.names.get(&id)
    }

    fn sees(&self, gone: &HashSet<u32>, id: u32) -> bool {
        !gone.contains(&id) && (self.others == Others::Unnamed || self.names.contains_key(&id))
    }

    pub(super) fn find(&self, text: Text<'_>, each: &mut dyn FnMut(Hit)) {
        for (part, gone) in self.parts.iter().zip(&self.gone) {
            part.find(text, &mut |hit| {
                if self.sees(gone, hit.id) {
                    each(hit);
                }
            });
        }
    }

    /// The first byte of `text`, but for those before `from`, from which on it could become a value.
    pub(super) fn open_from(&self, text: &[u8], from: usize) -> usize {
        let open = |(part, gone): (&Arc<Part>, &Arc<HashSet<u32>>)| {
            part.open_from(text, from, &|id| self.sees(gone, id))
        };
        self.parts.iter().zip(&self.gone).filter_map(open).min().unwrap_or(text.len())
    }

    /// The earliest end of `text` that is the larger part of a named value, once for each of them.
    pub(super) fn cut_off(&self, text: &[u8], from: usize) -> Vec<Hit> {
        let mut all = Vec::new();
        for (part, gone) in self.parts.iter().zip(&self.gone) {
            let counts = |id: u32| self.names.contains_key(&id) && !gone.contains(&id);
            all.extend(part.cut_off(text, from, &beyond_public, &counts));
        }
        if let Some(first) = all.iter().map(|hit| hit.start).min() {
            all.retain(|hit| hit.start == first);
        }
        all
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("named", &self.names.len()).finish_non_exhaustive()
    }
}

/// A part of this length says something of a value: 8 bytes beyond what all of its kind begin with.
fn beyond_public(needle: &[u8]) -> usize {
    const PUBLIC: &[&[u8]] = &[
        b"-----BEGIN ",
        b"AKIA",
        b"SG.",
        b"eyJhbGciOi",
        b"ghp_",
        b"github_pat_",
        b"glpat-",
        b"https://",
        b"mongodb+srv://",
        b"mysql://",
        b"npm_",
        b"postgres://",
        b"postgresql://",
        b"pypi-AgEIcHlwaS5vcmc",
        b"redis://",
        b"sk-ant-api03-",
        b"sk-proj-",
        b"sk_live_",
        b"sk_test_",
        b"xoxb-",
    ];
    if needle.starts_with(b"-----BEGIN ") {
        // The whole first line.
        return needle.iter().position(|b| *b == b'\n').unwrap_or(0) + 8;
    }
    let public = PUBLIC.iter().filter(|p| needle.starts_with(p)).map(|p| p.len()).max();
    public.unwrap_or(0) + 8
}
