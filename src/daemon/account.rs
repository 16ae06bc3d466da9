//! The account of a revoke: whom it ended or would end, who had the value, and what nobody can vouch for.
//!
//! Invariant: everybody who obtained a revoked version is named, as ended, outside of every execution, or
//! over; a dry run says the same of what would be. Danger: an answer that passes somebody over is taken
//! for an all-clear.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::audit::record::Event;
use crate::proto::{self, Problem};
use crate::secret::SecretBytes;
use crate::vault::record::{RecordId, RecordKind};

use super::Daemon;
use super::intent::{Ended, Intent};
use super::secrets::parse;

impl Daemon {
    pub(super) fn would_revoke(
        &self,
        intent: &Intent,
        begun: Instant,
    ) -> Result<proto::Revoked, Problem> {
        let mut would = intent.clone();
        for (id, had) in self.exposed(intent) {
            let ended = self.to_end(&id, had);
            would.ended.insert(id.to_string(), ended);
        }
        let left = self.left_over(&would);
        would.ended.extend(left);
        let mut answer = self.revoked(&would, begun)?;
        let values: BTreeSet<_> = intent.targets.iter().flat_map(|t| &t.values).collect();
        let permitted = self.registry.executions().into_iter().filter(|e| {
            e.ended.is_none()
                && !would.ended.contains_key(e.id.as_str())
                && e.pins.values().any(|pin| values.contains(&pin.value))
        });
        answer.goes_on = permitted.map(|e| e.id.to_string()).collect();
        answer.dry_run = true;
        Ok(answer)
    }

    pub(super) fn revoked(
        &self,
        intent: &Intent,
        begun: Instant,
    ) -> Result<proto::Revoked, Problem> {
        let catalog_secret = |id: &str| self.core.catalog().secret(id).cloned();
        let mut versions = BTreeMap::new();
        let mut replaced_by = BTreeMap::new();
        for target in &intent.targets {
            let Some(secret) = catalog_secret(&target.secret) else { continue };
            let numbers: Vec<_> = target.numbers.iter().map(|n| u64::from(*n)).collect();
            versions.insert(secret.key.to_string(), numbers);
            if let Some(replacement) = &target.replacement
                && let Some(version) = secret
                    .versions
                    .iter()
                    .find(|v| v.value.as_deref() == Some(replacement.record.as_str()))
            {
                replaced_by.insert(secret.key.to_string(), u64::from(version.number));
            }
        }
        let (mut outside, mut over) = (Vec::new(), Vec::new());
        for target in &intent.targets {
            let Some(secret) = catalog_secret(&target.secret) else { continue };
            for exposure in self.shown_exposures(&secret) {
                let number = u32::try_from(exposure.version).unwrap_or(0);
                if !target.numbers.contains(&number) {
                    continue;
                }
                match &exposure.execution {
                    None => outside.push(exposure),
                    Some(id) if !exposure.active && !intent.ended.contains_key(id) => {
                        over.push(exposure);
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(proto::Revoked {
            versions,
            replaced_by,
            ended: intent
                .ended
                .iter()
                .map(|(id, ended)| proto::EndedExecution {
                    execution: id.clone(),
                    chain: ended.chain.clone(),
                    agents: ended.agents.iter().cloned().collect(),
                    processes: ended.processes,
                    via: ended.via.iter().map(|v| v.word().to_owned()).collect(),
                    since: ended.since,
                })
                .collect(),
            survivors: Vec::new(),
            goes_on: Vec::new(),
            notes: hidden(intent),
            outside,
            over,
            same_value: self.same_value(intent)?,
            complete: false,
            dry_run: false,
            first_denial_us: 0,
            took_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// Other secrets that have one of these values in a version that can be read.
    fn same_value(&self, intent: &Intent) -> Result<Vec<String>, Problem> {
        let vault = self.core.unlocked()?;
        let mut revoked = Vec::new();
        for value in intent.targets.iter().flat_map(|t| &t.values) {
            let id: RecordId = parse(value)?;
            if let Ok(Some(value)) = vault.get(RecordKind::Value, id) {
                revoked.push(value);
            }
        }
        let sizes: BTreeSet<_> = revoked.iter().map(SecretBytes::len).collect();
        let mut found = BTreeSet::new();
        let secrets = self.core.catalog().secrets();
        for secret in secrets.iter().filter(|s| !intent.targets.iter().any(|t| t.secret == s.id)) {
            for version in secret.versions.iter().filter(|v| v.stage.is_readable()) {
                let size = usize::try_from(version.size_bytes).unwrap_or(0);
                let Some(id) = version.value.as_deref().filter(|_| sizes.contains(&size)) else {
                    continue;
                };
                let id: RecordId = parse(id)?;
                let Ok(Some(value)) = vault.get(RecordKind::Value, id) else { continue };
                let is_same = |r: &SecretBytes| {
                    bool::from(subtle::ConstantTimeEq::ct_eq(r.expose(), value.expose()))
                };
                if revoked.iter().any(is_same) {
                    found.insert(format!("{} with scope {}", secret.key, secret.scope));
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    pub(super) fn alert_revoked(&self, intent: &Intent, answer: &proto::Revoked) {
        self.alert(super::alert::Alert {
            event: Event::SecretRevoked.name(),
            secret: Some(intent.name.clone()),
            message: format!(
                "{} was revoked by {}: {} executions ended{}",
                intent.name,
                intent.by,
                answer.ended.len(),
                if answer.complete { "" } else { ", NOT ALL of their processes" }
            ),
            reason: Some(intent.reason.clone()),
            at: self.core.clock.now(),
        });
    }
}

/// What nobody can vouch for.
fn hidden(intent: &Intent) -> Vec<String> {
    let of = |which: fn(&Ended) -> bool| {
        let ids = intent.ended.iter().filter(|(_, e)| which(e)).map(|(id, _)| id.as_str());
        ids.collect::<Vec<_>>().join(", ")
    };
    let (may_hide, left) = (of(|e| e.may_hide), of(|e| e.is_left));
    let mut notes = Vec::new();
    if !may_hide.is_empty() {
        notes.push(format!(
            "agents of {may_hide} ran as root or without a group: a process of theirs that left it \
             and cleared its environment is not found"
        ));
    }
    if !left.is_empty() {
        notes.push(format!(
            "processes of {left} lived on though the execution was over, as after the death of an \
             earlier daemon"
        ));
    }
    notes
}
