//! What the events directories and the output of agents need of everything else: views of what is looked
//! for, the key that seals what is held back, records of what was taken out.
//!
//! Invariant: a locked vault gives no view, whatever was looked for before. Danger: somebody who writes
//! guesses; see `probes`.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::audit::record::Event;
use crate::broker::{Place, Refusal};
use crate::events::{Outside, Telling};
use crate::execution::registry::Registry;
use crate::redact::View;
use crate::vault::crypto::Key;

use super::core::{Core, record_tag};
use super::needles::{Named, Seen};
use super::probes::Probes;

/// What the events directories need of everything else.
pub struct Around {
    core: Arc<Core>,
    registry: Arc<Registry>,
    probes: Probes,
}

impl Around {
    /// Puts the parts together.
    pub fn new(core: Arc<Core>, registry: Arc<Registry>) -> Self {
        Self { core, registry, probes: Probes::default() }
    }

    /// Those who try to find out values of others.
    pub fn probes(&self) -> &Probes {
        &self.probes
    }

    /// What is looked for in an agent's output; see [`super::needles::Needles`].
    pub(super) fn seen(&self, before: &Arc<Named>, place: &Place) -> Result<Seen, Refusal> {
        if self.core.seal().is_none() {
            return Err(Refusal::Locked);
        }
        self.core.needles.seen_keeping(before, place, &self.core, &self.registry)
    }

    /// Known formats alone.
    pub(super) fn formats(&self) -> Arc<View> {
        Arc::new(View::empty().with_detector(self.core.needles.detector()))
    }

    /// What is looked for by those who may see all names.
    pub(super) fn full(&self) -> Result<Arc<View>, Refusal> {
        if self.core.seal().is_none() {
            return Err(Refusal::Locked);
        }
        self.core.needles.full(&self.core)
    }

    /// The same, and `more`, which no vault knows yet.
    pub(super) fn full_and(&self, more: &[&[u8]]) -> Result<Arc<View>, Refusal> {
        if self.core.seal().is_none() {
            return Err(Refusal::Locked);
        }
        self.core.needles.full_and(&self.core, more)
    }

    /// Counts values of others in what an execution writes.
    pub(super) fn count_foreign(&self, place: &Place, count: u64) {
        self.probes.count_values(place, count, self.core.clock.now());
    }

    fn record(
        &self,
        event: Event,
        place: &Place,
        file: Option<&str>,
        name: &str,
        count: u64,
    ) -> bool {
        self.record_once(event, place, file, (name, count), 0)
    }

    fn record_once(
        &self,
        event: Event,
        place: &Place,
        file: Option<&str>,
        (name, count): (&str, u64),
        tag: u64,
    ) -> bool {
        let mut record = self.core.new_record(event);
        record.secret_key = Some(name).filter(|name| !name.is_empty());
        record.chain = Some(&place.chain);
        record.environment = place.environment.as_deref();
        record.execution = Some(&place.execution);
        record.via = Some("events");
        record.reason = file;
        record.count = Some(count);
        let recorded = self.core.record_once(&record, tag);
        if let Err(problem) = &recorded {
            tracing::error!(%problem, "a redaction could not be recorded");
        }
        recorded.is_ok()
    }
}

fn tag(once: &[u8]) -> u64 {
    record_tag(&[b"event file", once])
}

impl Outside for Around {
    fn view(&self, place: &Place) -> Result<Arc<View>, Refusal> {
        // Locked means closed, whatever was looked for before.
        if self.core.seal().is_none() {
            return Err(Refusal::Locked);
        }
        Ok(self.core.needles.seen(place, &self.core, &self.registry)?.view)
    }

    fn key(&self) -> Result<Arc<Key>, Refusal> {
        self.core.seal().ok_or(Refusal::Locked)
    }

    fn redacted(&self, place: &Place, file: &str, telling: &Telling) -> bool {
        // Who wrote it when nobody looked for it has not guessed.
        if telling.name.is_empty() && !telling.later {
            self.count_foreign(place, telling.count);
        }
        let (what, tag) = ((telling.name.as_str(), telling.count), tag(&telling.once));
        self.record_once(Event::EventRedacted, place, Some(file), what, tag)
    }

    fn unchecked(&self, place: &Place, file: &str, kind: &str, once: &[u8]) {
        let what = format!("{kind}: {file}");
        self.record_once(Event::EventUnchecked, place, Some(&what), ("", 1), tag(once));
    }

    fn noted(&self, once: &[u8]) {
        self.core.forget_tag(tag(once));
    }

    fn name_refused(&self, place: &Place) {
        // The name itself holds a secret.
        self.record(Event::EventNameRefused, place, None, "", 1);
    }

    fn guessed(&self, place: &Place, count: u64) {
        self.probes.count_guesses(place, count, self.core.clock.now());
    }

    fn is_guesser(&self, place: &Place) -> bool {
        self.probes.is_guesser(place)
    }
}

impl std::fmt::Debug for Around {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Around").finish_non_exhaustive()
    }
}
