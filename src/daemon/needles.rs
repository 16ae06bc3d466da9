//! What redaction looks for, kept in step with the vault.
//!
//! Values that nobody can guess are in one index for everybody; those that can be guessed are looked
//! for only in what their own chains write, or a marker would tell others that they guessed right.
//! Invariant: a value is looked for before anybody can be pinned to it, until it is destroyed.
//! Lock order: the catalog, then this, then its allow list.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::broker::{Place, Refusal};
use crate::catalog::Catalog;
use crate::catalog::name::{ChainName, EnvName};
use crate::catalog::resolve::Asker;
use crate::execution::registry::Registry;
use crate::redact::allow::{Allowed, Entry, KeyId, Keyed, Tagger};
use crate::redact::detect::Detector;
use crate::redact::{self, Index, Others, Value, View, Weakness};
use crate::secret::SecretBytes;
use crate::vault::Vault;
use crate::vault::record::{Batch, RecordKind};

use super::core::Core;

/// After so many changes the index is built anew.
const MAX_CHANGES: usize = 500;
/// The name of a value that is in no vault yet.
const NEW_VALUE: &str = "new-value";

/// Who shares a view: chain, environment and, for those without a definition, execution.
type Scope = (String, Option<String>, String);

#[derive(Default)]
struct State {
    /// None: to be built when it is asked for.
    known: Option<Known>,
    /// Views, each with the generation that it is of.
    views: HashMap<Scope, (u64, Seen)>,
    /// The view of those who may see all names, with the generation of the values.
    full: Option<(u64, Arc<View>)>,
}

/// What is looked for in a place.
#[derive(Clone)]
pub struct Seen {
    /// The view.
    pub view: Arc<View>,
    /// Of the same, what has a name.
    pub own: Arc<View>,
    /// The values that have a name there, as the vault's record of the value in hex, and the name.
    pub named: Arc<Named>,
}

/// Names by the vault's record of the value, in hex.
pub type Named = BTreeMap<String, Arc<str>>;

struct Known {
    index: Arc<Index>,
    /// Values that can be guessed, with their bytes.
    guessable: BTreeMap<u32, SecretBytes>,
    /// By the vault's record of the value, in hex.
    numbers: HashMap<String, u32>,
    next: u32,
    /// Those that are too weak to be looked for at all.
    unseen: HashSet<u32>,
}

impl Known {
    /// Without any value.
    fn new() -> Self {
        Self {
            index: Arc::new(Index::build([])),
            guessable: BTreeMap::new(),
            numbers: HashMap::new(),
            next: 0,
            unseen: HashSet::new(),
        }
    }

    /// A number for the value of this record.
    fn number(&mut self, id: String, bytes: &SecretBytes) -> u32 {
        let number = self.next;
        self.next += 1;
        self.numbers.insert(id, number);
        if redact::weakness(bytes.expose()).is_some_and(Weakness::is_unseen) {
            self.unseen.insert(number);
        }
        number
    }

    /// Takes in what was just stored, but for what is `plain`; whether it is better built anew.
    fn follow(&mut self, batch: &Batch, plain: &HashSet<String>) -> bool {
        let mut added: Vec<(u32, &SecretBytes)> = Vec::new();
        let mut gone = Vec::new();
        for (id, bytes) in batch.values() {
            let id = id.to_string();
            match bytes {
                Some(bytes) if !plain.contains(&id) => {
                    let number = self.number(id, bytes);
                    if redact::unguessable(bytes.expose()) {
                        added.push((number, bytes));
                    } else {
                        self.guessable.insert(number, SecretBytes::copy_of(bytes.expose()));
                    }
                }
                Some(_) => {}
                None => {
                    if let Some(number) = self.numbers.remove(&id) {
                        self.guessable.remove(&number);
                        self.unseen.remove(&number);
                        gone.push(number);
                    }
                }
            }
        }
        if !gone.is_empty() {
            self.index = Arc::new(self.index.without(&gone));
        }
        if !added.is_empty() {
            let values = added.iter().map(|(id, b)| Value { id: *id, bytes: b.expose() });
            self.index = Arc::new(self.index.with(values));
        }
        self.index.changes() > MAX_CHANGES
    }
}

/// What is looked for besides values, and what of that may be shown.
struct Rules {
    detector: Arc<Detector>,
    allowed: Option<Arc<Allowed>>,
}

/// See the module.
#[derive(Default)]
pub struct Needles {
    state: Mutex<State>,
    /// Grows with everything that may change a view.
    generation: AtomicU64,
    /// Grows with the values alone.
    values: AtomicU64,
    /// Rules for known formats, when not the usual ones.
    detector: OnceLock<Arc<Detector>>,
    /// Tokens that may be shown, where the configuration names some.
    entries: OnceLock<Vec<Entry>>,
    /// The same by the vault's key.
    allowed: Mutex<Option<(KeyId, Option<Arc<Allowed>>)>>,
}

/// The key of entries of the allow list, by the vault's root key: it stays when a slot's key changes.
fn tagger(vault: &Vault) -> Keyed {
    Keyed::new(vault.derive_key("allow list"))
}

impl Needles {
    /// Looks for known formats by these rules; only before anything was looked for.
    pub fn set_detector(&self, detector: Arc<Detector>) {
        if self.detector.set(detector).is_err() {
            tracing::error!("rules for known formats were set twice");
        }
    }

    pub(super) fn detector(&self) -> Arc<Detector> {
        self.detector.get().cloned().unwrap_or_else(Detector::usual)
    }

    /// Shows what these entries stand for; only before anything was looked for.
    pub fn set_entries(&self, entries: Vec<Entry>) {
        if self.entries.set(entries).is_err() {
            tracing::error!("the allow list was set twice");
        }
    }

    fn entries(&self) -> &[Entry] {
        self.entries.get().map_or(&[], Vec::as_slice)
    }

    /// How many entries there are, and how many of them were made with another key than the vault's,
    /// and allow nothing.
    pub(super) fn entry_counts(&self, vault: &Vault) -> (usize, usize) {
        let entries = self.entries();
        let key = tagger(vault).key_id();
        (entries.len(), entries.iter().filter(|entry| !entry.is_of(key)).count())
    }

    /// Makes an entry of a token.
    pub(super) fn entry_of(&self, vault: &Vault, token: &[u8]) -> Option<Entry> {
        Entry::of(token, &tagger(vault))
    }

    /// What may be shown.
    fn allowed(&self, vault: &Vault) -> Option<Arc<Allowed>> {
        if self.entries().is_empty() {
            return None;
        }
        let tagger = tagger(vault);
        let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        match &*allowed {
            Some((key, list)) if *key == tagger.key_id() => list.clone(),
            _ => {
                let key = tagger.key_id();
                let list = Allowed::new(self.entries(), Box::new(tagger)).map(Arc::new);
                allowed.insert((key, list)).1.clone()
            }
        }
    }

    /// What is looked for besides values.
    fn rules(&self, vault: &Vault) -> Rules {
        Rules { detector: self.detector(), allowed: self.allowed(vault) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody may see more than before.
    pub fn changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// The values are others now.
    pub fn forget(&self) {
        *self.lock() = State::default();
        self.values.fetch_add(1, Ordering::AcqRel);
        self.changed();
    }

    /// How many values are too weak to be looked for, as far as the values are known now.
    pub fn unseen(&self) -> usize {
        self.lock().known.as_ref().map_or(0, |known| known.unseen.len())
    }

    /// Grows with everything that may change a view.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Takes in what was just stored.
    pub fn follow(&self, batch: &Batch, catalog: &Catalog) {
        let mut state = self.lock();
        let stores = batch.values().any(|(_, bytes)| bytes.is_some());
        let plain = if stores { plain_values(catalog) } else { HashSet::new() };
        let stale = state.known.as_mut().is_some_and(|known| known.follow(batch, &plain));
        if stale {
            state.known = None;
        }
        drop(state);
        self.values.fetch_add(1, Ordering::AcqRel);
        self.changed();
    }

    /// What is looked for in what a place's agents write.
    pub(super) fn seen(
        &self,
        place: &Place,
        core: &Core,
        registry: &Registry,
    ) -> Result<Seen, Refusal> {
        let generation = self.generation();
        let mut key = (place.chain.clone(), place.environment.clone(), String::new());
        {
            let state = self.lock();
            let of_execution = (key.0.clone(), key.1.clone(), place.execution.clone());
            let known = state.views.get(&key).or_else(|| state.views.get(&of_execution));
            if let Some((of, seen)) = known
                && *of == generation
            {
                return Ok(seen.clone());
            }
        }
        let vault = core.vault().ok_or(Refusal::Locked)?;
        let catalog = core.catalog();
        if !has_definition(place, &catalog) {
            // Those who run without a definition have nothing to do with each other.
            key.2.clone_from(&place.execution);
        }
        let named: Named = visible(place, &catalog, registry).into_iter().collect();
        let mut state = self.lock();
        let rules = self.rules(&vault);
        let (view, own) = known(&mut state, &vault, &catalog)?.views_of(&named, rules);
        let seen = Seen { view, own, named: Arc::new(named) };
        state.views.retain(|_, (of, _)| *of == generation);
        state.views.insert(key, (generation, seen.clone()));
        Ok(seen)
    }

    /// What was looked for before, and what is looked for now: `before` is what stays named, also
    /// when its agent is no longer registered.
    pub(super) fn seen_keeping(
        &self,
        before: &Arc<Named>,
        place: &Place,
        core: &Core,
        registry: &Registry,
    ) -> Result<Seen, Refusal> {
        let now = self.seen(place, core, registry)?;
        if before.keys().all(|value| now.named.contains_key(value)) {
            return Ok(now);
        }
        let mut named = Named::clone(before);
        named.extend(now.named.iter().map(|(value, name)| (value.clone(), name.clone())));
        let vault = core.vault().ok_or(Refusal::Locked)?;
        let catalog = core.catalog();
        let rules = self.rules(&vault);
        let (view, own) = known(&mut self.lock(), &vault, &catalog)?.views_of(&named, rules);
        let named = if named == **before { before.clone() } else { Arc::new(named) };
        Ok(Seen { view, own, named })
    }

    /// Everything, by name: for those who may see all names.
    pub(super) fn full(&self, core: &Core) -> Result<Arc<View>, Refusal> {
        let generation = self.values.load(Ordering::Acquire);
        if let Some((of, view)) = &self.lock().full
            && *of == generation
        {
            return Ok(view.clone());
        }
        let view = self.full_and(core, &[])?;
        self.lock().full = Some((generation, view.clone()));
        Ok(view)
    }

    /// Everything by name, and `more`, which no vault knows yet.
    pub(super) fn full_and(&self, core: &Core, more: &[&[u8]]) -> Result<Arc<View>, Refusal> {
        let vault = core.vault().ok_or(Refusal::Locked)?;
        let catalog = core.catalog();
        let mut state = self.lock();
        let known = known(&mut state, &vault, &catalog)?;
        let mut names: HashMap<u32, Arc<str>> = HashMap::new();
        for secret in catalog.each_secret() {
            let values = secret.versions.iter().filter_map(|v| v.value.as_ref());
            for number in values.filter_map(|value| known.numbers.get(value)) {
                names.insert(*number, secret.key.name.as_str().into());
            }
        }
        let own = known.guessable.iter().map(|(id, b)| Value { id: *id, bytes: b.expose() });
        // Numbers that no value has.
        let more = more.iter().zip((0..).map(|n| u32::MAX - n));
        let more: Vec<_> = more.map(|(bytes, id)| Value { id, bytes }).collect();
        names.extend(more.iter().map(|value| (value.id, NEW_VALUE.into())));
        let own = Index::build(own.chain(more));
        let view = View::of([&*known.index, &own], names, Others::Unseen);
        let Rules { detector, allowed } = self.rules(&vault);
        Ok(Arc::new(view.with_detector(detector).with_allowed(allowed)))
    }
}

/// The values, read where they are not yet.
fn known<'a>(
    state: &'a mut State,
    vault: &Vault,
    catalog: &Catalog,
) -> Result<&'a mut Known, Refusal> {
    if state.known.is_none() {
        state.known = Some(read_all(vault, catalog)?);
    }
    state.known.as_mut().ok_or(Refusal::Fault)
}

impl Known {
    /// What is looked for where these have a name: all of it, and what has one.
    fn views_of(&self, named: &Named, rules: Rules) -> (Arc<View>, Arc<View>) {
        let mut names: HashMap<u32, Arc<str>> = HashMap::new();
        for (value, name) in named {
            if let Some(number) = self.numbers.get(value) {
                names.insert(*number, name.clone());
            }
        }
        let own = self.guessable.iter().filter(|(number, _)| names.contains_key(number));
        let own = Index::build(own.map(|(id, b)| Value { id: *id, bytes: b.expose() }));
        let indexes = [&*self.index, &own];
        let seen = View::of(indexes, names.clone(), Others::Unseen);
        let all = View::of(indexes, names, Others::Unnamed);
        let all = all.with_detector(rules.detector).with_allowed(rules.allowed);
        (Arc::new(all), Arc::new(seen))
    }
}

fn plain_values(catalog: &Catalog) -> HashSet<String> {
    let plain = catalog.each_secret().filter(|secret| secret.plain);
    plain.flat_map(|s| s.versions.iter().filter_map(|v| v.value.clone())).collect()
}

/// Values that files are searched for.
pub(super) struct Sought(Known);

impl Sought {
    /// What to look for in a place.
    pub(super) fn view_in(
        &self,
        place: &Place,
        core: &Core,
        registry: &Registry,
        detector: &Arc<Detector>,
    ) -> Arc<View> {
        let named: Named = visible(place, &core.catalog(), registry).into_iter().collect();
        // By rules that find nothing, so nothing of it need be allowed.
        self.0.views_of(&named, Rules { detector: detector.clone(), allowed: None }).0
    }
}

/// Some of the values, by the vault's records of them.
///
/// # Errors
/// [`Refusal::Locked`], or that one cannot be read.
pub(super) fn read(core: &Core, wanted: &dyn Fn(&str) -> bool) -> Result<Sought, Refusal> {
    let vault = core.vault().ok_or(Refusal::Locked)?;
    read_some(&vault, &core.catalog(), wanted).map(Sought)
}

/// Values of all versions that exist.
fn read_all(vault: &Vault, catalog: &Catalog) -> Result<Known, Refusal> {
    read_some(vault, catalog, &|_| true)
}

fn read_some(
    vault: &Vault,
    catalog: &Catalog,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<Known, Refusal> {
    let mut all: Vec<(u32, SecretBytes)> = Vec::new();
    let mut known = Known::new();
    for secret in catalog.each_secret().filter(|secret| !secret.plain) {
        let values = secret.versions.iter().filter_map(|v| v.value.as_ref());
        for value in values.filter(|value| wanted(value)) {
            let id = value.parse().map_err(|_| Refusal::Fault)?;
            // Destroyed versions have no bytes; every other must be readable, or nothing is written.
            let bytes = match vault.get(RecordKind::Value, id) {
                Ok(Some(bytes)) => bytes,
                Ok(None) => continue,
                Err(error) => {
                    tracing::error!(%error, "a value cannot be looked for");
                    return Err(Refusal::Fault);
                }
            };
            let number = known.number(value.clone(), &bytes);
            if redact::unguessable(bytes.expose()) {
                all.push((number, bytes));
            } else {
                known.guessable.insert(number, bytes);
            }
        }
    }
    let values = all.iter().map(|(id, bytes)| Value { id: *id, bytes: bytes.expose() });
    known.index = Arc::new(Index::build(values));
    Ok(known)
}

fn has_definition(place: &Place, catalog: &Catalog) -> bool {
    place.chain.parse::<ChainName>().is_ok_and(|chain| catalog.chain(&chain).is_some())
}

/// Values of all versions of the secrets that some agent of the place can see, by name.
fn visible(place: &Place, catalog: &Catalog, registry: &Registry) -> Vec<(String, Arc<str>)> {
    let mut secrets = BTreeMap::new();
    let chain: Option<ChainName> = place.chain.parse().ok();
    let environment: Option<EnvName> =
        place.environment.as_deref().and_then(|text| text.parse().ok());
    if let Some(chain) = &chain
        && let Some(stored) = catalog.chain(chain)
    {
        for agent in &stored.definition.agents {
            let asker = Asker { chain, agent: &agent.name, environment: environment.as_ref() };
            if let Ok(resolution) = catalog.resolve_in(&stored.definition, asker) {
                for grant in resolution.granted.values() {
                    secrets.insert(grant.secret.id.clone(), grant.secret.clone());
                }
            }
        }
    }
    let mut seen: Vec<(String, Arc<str>)> = Vec::new();
    // What agents hold by an earlier definition, or without any.
    let shares = has_definition(place, catalog);
    for principal in registry.principals() {
        let is_mate = if shares {
            principal.chain == place.chain && principal.environment == place.environment
        } else {
            principal.execution.as_str() == place.execution
        };
        if !is_mate {
            continue;
        }
        for (_, file) in principal.files.iter().chain(principal.earlier.iter().map(|(n, f)| (n, f)))
        {
            match catalog.secret(&file.secret) {
                Some(secret) => drop(secrets.insert(secret.id.clone(), secret.clone())),
                None => seen.push((file.value.clone(), file.key.as_str().into())),
            }
        }
    }
    for secret in secrets.values() {
        let name: Arc<str> = secret.key.name.as_str().into();
        for value in secret.versions.iter().filter_map(|v| v.value.clone()) {
            seen.push((value, name.clone()));
        }
    }
    seen
}

impl std::fmt::Debug for Needles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Needles").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redact::Level;
    use crate::vault::record::RecordId;

    fn view(known: &Known) -> Arc<View> {
        let names = known.numbers.values().map(|n| (*n, format!("N{n}").into())).collect();
        let own = known.guessable.iter();
        let own = Index::build(own.map(|(id, b)| Value { id: *id, bytes: b.expose() }));
        Arc::new(View::of([&*known.index, &own], names, Others::Unnamed))
    }

    fn put(known: &mut Known, id: RecordId, bytes: &[u8]) {
        let mut batch = Batch::new();
        batch.put(RecordKind::Value, id, SecretBytes::copy_of(bytes));
        known.follow(&batch, &HashSet::new());
    }

    fn redacted(known: &Known, text: &str) -> String {
        let out = redact::redact(&view(known), Level::Values, text.as_bytes());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_value_is_looked_for_from_its_commit_until_it_is_destroyed() {
        let mut known = Known::new();
        let ids: Vec<RecordId> = (0..4).map(|_| RecordId::random().unwrap()).collect();
        let (old, new) = ("k7Hq2ZpX9vLm4TnB8sRd3WfY", "Zk8Wq2LmN5rT7yU0pX3cAb9d");
        put(&mut known, ids[0], old.as_bytes());
        // A new version; the old one is retired or revoked, and its record stays.
        put(&mut known, ids[1], new.as_bytes());
        put(&mut known, ids[2], b"hunter2hunter2");
        put(&mut known, ids[3], b"abc");
        let text = format!("{old} {new} hunter2hunter2 abc");
        assert_eq!(redacted(&known, &text), "[REDACTED:N0] [REDACTED:N1] [REDACTED:N2] abc");
        assert_eq!(known.unseen.len(), 1);
        let mut batch = Batch::new();
        for id in [ids[0], ids[2], ids[3]] {
            batch.delete(RecordKind::Value, id);
        }
        known.follow(&batch, &HashSet::new());
        assert_eq!(redacted(&known, &text), format!("{old} [REDACTED:N1] hunter2hunter2 abc"));
        assert!(known.unseen.is_empty());
    }

    #[test]
    fn a_stream_that_is_open_follows_what_is_stored_and_many_changes_are_noticed() {
        let mut known = Known::new();
        let mut redactor = redact::Redactor::new(view(&known), Level::Values);
        struct Out(Vec<u8>);
        impl redact::Sink for Out {
            fn clear(&mut self, bytes: &[u8]) {
                self.0.extend_from_slice(bytes);
            }
            fn hidden(&mut self, _: &[u8]) {}
            fn marker(&mut self, text: &str, _: u64) {
                self.0.extend_from_slice(text.as_bytes());
            }
        }
        let mut out = Out(Vec::new());
        redactor.push(b"before ", &mut out);
        put(&mut known, RecordId::random().unwrap(), b"k7Hq2ZpX9vLm4TnB8sRd3WfY");
        redactor.set_view(view(&known));
        redactor.push(b"k7Hq2ZpX9vLm", &mut out);
        // What is held is still looked at when more values come.
        put(&mut known, RecordId::random().unwrap(), b"X9vLm-Zk8Wq2LmN5rT7yU0");
        redactor.set_view(view(&known));
        redactor.push(b"-Zk8Wq2LmN5rT7yU0 after", &mut out);
        redactor.finish(&mut out);
        assert_eq!(String::from_utf8(out.0).unwrap(), "before k7Hq2Zp[REDACTED:N1] after");
        let mut stale = false;
        for n in 0..=MAX_CHANGES {
            let mut batch = Batch::new();
            let bytes = SecretBytes::copy_of(format!("k7Hq2ZpX9v{n:06}Lm4TnB8sRd3WfY").as_bytes());
            batch.put(RecordKind::Value, RecordId::random().unwrap(), bytes);
            stale = known.follow(&batch, &HashSet::new());
        }
        assert!(stale);
    }
}
