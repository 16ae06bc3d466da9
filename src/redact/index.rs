//! All values together, and what one writer may learn of them.
//!
//! An [`Index`] is shared by everybody and holds what nobody can guess, or what the caller puts into
//! it; a [`View`] adds the values of one writer's own and says which of all have a name for him.
//! Invariant: a value that a view does not see changes neither the output nor what is held back; one
//! that was added is looked for by the index that [`Index::with`] returns. Danger: an add that pays for
//! all that were added before; what many of them become is made behind.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, OnceLock};

use super::allow::Allowed;
use super::detect::{self, Detector};
use super::lens::{self, Search};
use super::part::{Hit, Part, Text};
use super::prefixed::Prefixed;
use super::strength;
use crate::secret::SecretBytes;
use crate::sys::base64::{Bytes, STRETCH_BYTES};

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

/// So many values are added before they are put together with those that were added earlier, behind.
const MAX_RECENT: usize = 32;
/// So many, and whoever adds does it himself: his adds would cost more and more where it is late.
const MAX_WAITING: usize = 128;
/// Of the thread that does it; it has no deep calls, and memory that is locked is all used.
const STACK_BYTES: usize = 512 << 10;

/// A set of values. Cheap to share, and to extend by a few.
#[derive(Clone)]
pub struct Index {
    main: Arc<Parts>,
    /// What was added since: most of it, and the last few, which are quick to make anew.
    older: Arc<Parts>,
    recent: Arc<Parts>,
    /// What those two were made of, and how much of it is in the first.
    added: Added,
    merged: usize,
    /// What the first is to become.
    coming: Option<Arc<Coming>>,
    gone: Arc<HashSet<u32>>,
}

type Added = Arc<Vec<Arc<(u32, SecretBytes)>>>;

/// What a thread makes of the first so many values that were added.
struct Coming {
    len: usize,
    made: OnceLock<Arc<Parts>>,
}

impl Coming {
    /// Begins it; none where there is no thread for it.
    fn begin(added: &Added) -> Option<Arc<Self>> {
        let coming = Arc::new(Self { len: added.len(), made: OnceLock::new() });
        let (filled, added) = (coming.clone(), added.clone());
        let thread = std::thread::Builder::new().name("needles".into()).stack_size(STACK_BYTES);
        let started = thread.spawn(move || {
            // Nobody else fills it.
            let _filled = filled.made.set(Parts::of(&added[..filled.len]));
        });
        started.is_ok().then_some(coming)
    }
}

/// Needles of the same values: in what is written, in what a lens shows of several lines, and behind
/// prefixes of lines.
struct Parts {
    plain: Part,
    lines: Part,
    prefixed: Prefixed,
}

impl Parts {
    fn build<'a>(values: impl IntoIterator<Item = Value<'a>>) -> Arc<Self> {
        let values: Vec<_> = values.into_iter().map(|value| (value.id, value.bytes)).collect();
        let several = |(_, bytes): &(u32, &[u8])| bytes.iter().any(|b| matches!(b, b'\n' | b'\\'));
        let lines = Part::of_lines(values.iter().copied().filter(several));
        let prefixed = Prefixed::build(values.iter().copied().filter(several));
        Arc::new(Self { plain: Part::build(values), lines, prefixed })
    }

    fn of(added: &[Arc<(u32, SecretBytes)>]) -> Arc<Self> {
        Self::build(added.iter().map(|one| Value { id: one.0, bytes: one.1.expose() }))
    }

    fn both(&self) -> [&Part; 2] {
        [&self.plain, &self.lines]
    }
}

impl Index {
    /// With these values.
    pub fn build<'a>(values: impl IntoIterator<Item = Value<'a>>) -> Self {
        let none = Parts::build([]);
        Self {
            main: Parts::build(values),
            older: none.clone(),
            recent: none,
            added: Arc::default(),
            merged: 0,
            coming: None,
            gone: Arc::default(),
        }
    }

    /// This and a few more. What an id stood for before it still does.
    #[must_use]
    pub fn with<'a>(&self, more: impl IntoIterator<Item = Value<'a>>) -> Self {
        let mut next = self.clone();
        let added = Arc::make_mut(&mut next.added);
        for value in more {
            if next.gone.contains(&value.id) {
                Arc::make_mut(&mut next.gone).remove(&value.id);
            }
            added.push(Arc::new((value.id, SecretBytes::copy_of(value.bytes))));
        }
        if let Some(coming) = &self.coming
            && let Some(made) = coming.made.get()
        {
            (next.older, next.merged, next.coming) = (made.clone(), coming.len, None);
        }
        let waiting = next.added.len() - next.merged;
        if waiting > MAX_RECENT && waiting <= MAX_WAITING && next.coming.is_none() {
            next.coming = Coming::begin(&next.added);
        }
        if waiting > MAX_WAITING || waiting > MAX_RECENT && next.coming.is_none() {
            next.older = Parts::of(&next.added);
            (next.merged, next.coming) = (next.added.len(), None);
        }
        next.recent = Parts::of(&next.added[next.merged..]);
        next
    }

    /// This without some.
    #[must_use]
    pub fn without(&self, ids: &[u32]) -> Self {
        let mut next = self.clone();
        Arc::make_mut(&mut next.gone).extend(ids);
        next
    }

    /// How many values were added or removed since it was built: many make it worth building anew.
    pub fn changes(&self) -> usize {
        self.added.len() + self.gone.len()
    }

    fn each_part(&self) -> impl Iterator<Item = &Part> {
        [&self.main, &self.older, &self.recent].into_iter().flat_map(|parts| parts.both())
    }

    /// How many needles there are.
    pub fn needles(&self) -> usize {
        self.each_part().map(Part::len).sum()
    }

    /// Bytes of the needles themselves.
    pub fn own_bytes(&self) -> usize {
        self.each_part().map(Part::own_bytes).sum()
    }

    /// Bytes of memory beside those.
    pub fn overhead(&self) -> usize {
        let prefixed = [&self.main, &self.older, &self.recent].map(|parts| parts.prefixed.size());
        self.each_part().map(Part::overhead).sum::<usize>() + prefixed.iter().sum::<usize>()
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

/// Spreads ids, which are numbers of the caller's own: nobody makes them collide.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }
    fn write_u32(&mut self, number: u32) {
        // The fractional part of the golden ratio.
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

/// An index as one writer meets it.
pub struct View {
    layers: Vec<Layer>,
    names: HashMap<u32, Arc<str>, BuildHasherDefault<Spread>>,
    others: Others,
    longest: usize,
    numbers: bool,
    /// What values and tokens are made of, if all are long enough to hold a stretch of it.
    made_of: Option<Bytes>,
    detector: Arc<Detector>,
    allowed: Option<Arc<Allowed>>,
}

struct Layer {
    parts: Arc<Parts>,
    gone: Arc<HashSet<u32>>,
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
        let mut layers = Vec::new();
        for index in indexes {
            for parts in [&index.main, &index.older, &index.recent] {
                if parts.plain.len() > 0 {
                    layers.push(Layer { parts: parts.clone(), gone: index.gone.clone() });
                }
            }
        }
        let names = names.into_iter().map(|(id, name)| (id, marker_name(&name))).collect();
        let all = || layers.iter().flat_map(|layer| layer.parts.both());
        let longest = all().map(Part::longest).max().map_or(0, lens::span);
        let prefixed = layers.iter().map(|layer| layer.parts.prefixed.longest()).max();
        let longest = longest.max(prefixed.unwrap_or(0));
        let numbers = all().any(Part::has_numbers);
        let plain = || layers.iter().map(|layer| &layer.parts.plain);
        let is_long = plain().all(|part| part.shortest_anywhere() >= STRETCH_BYTES);
        let made_of =
            is_long.then(|| Bytes::of(|b| detect::is_token(b) || plain().any(|part| part.uses(b))));
        let detector = Detector::usual();
        Self { layers, names, others, longest, numbers, made_of, detector, allowed: None }
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

    /// With tokens that may be shown; values are hidden all the same.
    #[must_use]
    pub fn with_allowed(mut self, allowed: Option<Arc<Allowed>>) -> Self {
        self.longest = self.longest.max(allowed.as_ref().map_or(0, |list| list.longest()));
        self.allowed = allowed;
        self
    }

    /// The same, of which only what has a name is seen.
    pub(super) fn named(&self) -> Self {
        let layer = |layer: &Layer| Layer { parts: layer.parts.clone(), gone: layer.gone.clone() };
        Self {
            layers: self.layers.iter().map(layer).collect(),
            names: self.names.clone(),
            others: Others::Unseen,
            longest: self.longest,
            numbers: self.numbers,
            made_of: self.made_of,
            detector: self.detector.clone(),
            allowed: self.allowed.clone(),
        }
    }

    pub(super) fn allowed(&self) -> Option<&Arc<Allowed>> {
        self.allowed.as_ref()
    }

    /// The rules by which formats are found.
    pub fn detector(&self) -> &Detector {
        &self.detector
    }

    pub(super) fn has_numbers(&self) -> bool {
        self.numbers
    }

    /// The bytes that every value that is found anywhere, and every token, has a stretch of, if there
    /// are such.
    pub(super) fn made_of(&self) -> Option<&Bytes> {
        self.made_of.as_ref()
    }

    /// The longest range that one needle may take, with line breaks in it, or an allowed token.
    pub fn longest(&self) -> usize {
        self.longest
    }

    pub(super) fn name(&self, id: u32) -> Option<&Arc<str>> {
        self.names.get(&id)
    }

    fn sees(&self, gone: &HashSet<u32>, id: u32) -> bool {
        !gone.contains(&id) && (self.others == Others::Unnamed || self.names.contains_key(&id))
    }

    /// What is looked for in the text as it is.
    pub(super) fn plain(&self) -> impl Search {
        Needles { view: self, of: |parts| &parts.plain }
    }

    /// What is looked for in what a lens shows of several lines, if anything is.
    pub(super) fn lines(&self) -> Option<impl Search> {
        let some = self.layers.iter().any(|layer| layer.parts.lines.len() > 0);
        some.then_some(Needles { view: self, of: |parts| &parts.lines })
    }

    /// Looks for values of several lines behind prefixes; where undecided ones begin.
    pub(super) fn find_prefixed(&self, text: Text<'_>, each: &mut dyn FnMut(Hit)) -> usize {
        let some = self.layers.iter().filter(|layer| !layer.parts.prefixed.is_empty());
        let limits = some.map(|Layer { parts, gone }| {
            let counts = |id: u32| self.sees(gone, id);
            let named = |id: u32| counts(id) && self.names.contains_key(&id);
            parts.prefixed.find(text, &counts, &named, each)
        });
        limits.min().unwrap_or(text.bytes.len())
    }

    /// Whether there is nothing to look for.
    pub(super) fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }
}

/// Needles of one kind, as far as a view sees them.
struct Needles<'a> {
    view: &'a View,
    of: fn(&Parts) -> &Part,
}

impl Search for Needles<'_> {
    fn find(&self, text: Text<'_>, each: &mut dyn FnMut(Hit)) {
        for Layer { parts, gone } in &self.view.layers {
            (self.of)(parts).find(&text, &mut |hit| {
                if self.view.sees(gone, hit.id) {
                    each(hit);
                }
            });
        }
    }

    fn open_from(&self, text: &[u8], from: usize) -> usize {
        let open = |Layer { parts, gone }: &Layer| {
            (self.of)(parts).open_from(text, from, &|id| self.view.sees(gone, id))
        };
        self.view.layers.iter().filter_map(open).min().unwrap_or(text.len())
    }

    /// Of named values alone; the earliest, once for each of them.
    fn cut_off(&self, text: &[u8], from: usize) -> Vec<Hit> {
        let mut all = Vec::new();
        for Layer { parts, gone } in &self.view.layers {
            let counts = |id: u32| self.view.names.contains_key(&id) && !gone.contains(&id);
            all.extend((self.of)(parts).cut_off(text, from, &strength::beyond_public, &counts));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redact::{self, Level};

    fn bytes(number: u32) -> Vec<u8> {
        format!("Zk8Wq2LmN5{number:04}rT7yU0pX3c").into_bytes()
    }

    fn with(index: &Index, numbers: std::ops::Range<u32>) -> Index {
        let values: Vec<_> = numbers.map(|number| (number, bytes(number))).collect();
        index.with(values.iter().map(|(id, bytes)| Value { id: *id, bytes }))
    }

    /// Those that are not looked for.
    fn missed(index: &Index, of: impl IntoIterator<Item = u32>) -> Vec<u32> {
        let view = Arc::new(View::of([index], HashMap::new(), Others::Unnamed));
        let text = |number| redact::redact(&view, Level::Values, &bytes(number));
        of.into_iter().filter(|number| text(*number) != b"[REDACTED]").collect()
    }

    #[test]
    fn what_was_added_is_put_together_behind_and_each_is_looked_for_meanwhile() {
        let mut index = Index::build([]);
        for number in 0..300 {
            index = with(&index, number..number + 1);
            assert_eq!(missed(&index, [0, number / 2, number]), [0; 0]);
            assert!(index.added.len() - index.merged <= MAX_WAITING);
        }
        assert!(index.merged > 0);
        assert_eq!(missed(&index.without(&[7, 299]), 0..300), [7, 299]);
    }

    #[test]
    fn whoever_adds_makes_only_the_last_few_anew_once_the_rest_was_put_together() {
        let mut index = Index::build([]);
        for number in 0..33 {
            assert!(index.coming.is_none());
            index = with(&index, number..number + 1);
        }
        let coming = index.coming.clone().expect("a thread is at it");
        // Whoever still has an index from before finds what it has.
        let before = index.clone();
        coming.made.wait();
        index = with(&index, 33..34);
        assert_eq!((index.merged, index.added.len()), (33, 34));
        assert!(Arc::ptr_eq(&index.older, coming.made.get().unwrap()));
        assert_eq!(missed(&index, 0..34), [0; 0]);
        assert_eq!(missed(&before, 0..34), [33]);
    }

    #[test]
    fn many_at_once_are_put_together_at_once() {
        let index = with(&with(&Index::build([]), 0..5), 5..400);
        assert_eq!((index.merged, index.recent.plain.len()), (400, 0));
        assert!(index.coming.is_none());
        assert_eq!(missed(&index, 0..400), [0; 0]);
    }
}
