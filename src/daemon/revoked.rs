//! What was revoked stays so: when its value is given again, and after a restore.
//!
//! Invariant: a value that a version of any secret was revoked with is taken for no other version,
//! also when its bytes are destroyed or the secret is removed. It is known again by a keyed
//! fingerprint in a sealed record; the key goes along in backups, so that another vault knows it too.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::audit::record::Event;
use crate::catalog::Catalog;
use crate::catalog::secret::{Buried, Secret, Stage};
use crate::proto::{Code, Problem};
use crate::secret::SecretBytes;
use crate::vault::crypto::{self, Key};
use crate::vault::record::{Batch, RecordId, RecordKind};

use super::Daemon;
use super::core::{new_id, put, vault_problem};
use super::intent::Intent;
use super::secrets::parse;

fn fingerprint_by(key: &Key, value: &SecretBytes) -> String {
    crypto::hex(key.derive(value.expose(), &[b"value"]).expose())
}

/// Removes a secret with all its values; what is known of revoked ones stays.
pub(super) fn delete_secret(batch: &mut Batch, secret: &Secret) -> Result<Vec<Buried>, Problem> {
    for value in secret.versions.iter().filter_map(|v| v.value.as_deref()) {
        batch.delete(RecordKind::Value, parse(value)?);
    }
    batch.delete(RecordKind::Secret, parse(&secret.id)?);
    let buried = secret.buried();
    for one in &buried {
        put(batch, RecordKind::Buried, &new_id()?.to_string(), one)?;
    }
    Ok(buried)
}

impl Daemon {
    /// What a value is known again by, without its bytes.
    pub(super) fn fingerprint(&self, value: &SecretBytes) -> Result<String, Problem> {
        Ok(fingerprint_by(&self.core.unlocked()?.derive_key("revoked"), value))
    }

    /// Refuses a value that was revoked.
    pub(super) fn refuse_revoked(
        &self,
        catalog: &Catalog,
        value: &SecretBytes,
    ) -> Result<(), Problem> {
        let mut fingerprints = vec![self.fingerprint(value)?];
        fingerprints.extend(self.core.foreign_keys().iter().map(|key| fingerprint_by(key, value)));
        match fingerprints.iter().find_map(|fingerprint| catalog.revoked(fingerprint)) {
            None => Ok(()),
            Some((key, number)) => {
                let what =
                    format!("this is the value of version {number} of {key}, which was revoked");
                Err(Problem::new(Code::Conflict, what).with_hint(
                    "a revoked value does not come back: have a new one made by its provider",
                ))
            }
        }
    }

    /// Has the key of the fingerprints in the vault, so that a backup takes it along.
    pub(super) fn keep_fingerprint_key(&self) -> Result<(), Problem> {
        let vault = self.core.unlocked()?;
        let id = RecordId(vault.vault_id());
        if vault.contains(RecordKind::FingerprintKey, id) {
            return Ok(());
        }
        let mut batch = Batch::new();
        let key = vault.derive_key("revoked");
        batch.put(RecordKind::FingerprintKey, id, SecretBytes::copy_of(key.expose()));
        vault.commit(&batch).map(|_| ()).map_err(|e| vault_problem(&e))
    }

    /// What a restore must keep: revoked values of secrets that it replaces.
    pub(super) fn burials(&self) -> Result<Batch, Problem> {
        let catalog = self.core.catalog();
        let known: BTreeSet<_> = catalog.buried().map(|b| b.fingerprint.as_str()).collect();
        let mut batch = Batch::new();
        for secret in catalog.each_secret() {
            for buried in secret.buried() {
                if !known.contains(buried.fingerprint.as_str()) {
                    put(&mut batch, RecordKind::Buried, &new_id()?.to_string(), &buried)?;
                }
            }
        }
        Ok(batch)
    }

    /// Refuses a replacement that is what it is to replace.
    pub(super) fn refuse_old(&self, intent: &Intent, value: &SecretBytes) -> Result<(), Problem> {
        let vault = self.core.unlocked()?;
        for id in intent.targets.iter().flat_map(|t| &t.values) {
            let old = vault.get(RecordKind::Value, parse(id)?).map_err(|e| vault_problem(&e))?;
            if old.is_some_and(|old| old.ct_eq(value)) {
                let what = format!("the replacement is a value of {} that is revoked", intent.name);
                return Err(Problem::new(Code::Conflict, what)
                    .with_hint("have a new one made by its provider, or add --no-replacement"));
            }
        }
        Ok(())
    }

    /// After a restore: what the log says was revoked or destroyed stays so.
    pub(super) fn reapply_revocations(&self) -> Result<Vec<String>, Problem> {
        let _flushed = self.core.log.flush(Duration::from_secs(2));
        let mut gone: BTreeMap<(String, String), BTreeSet<(u32, bool)>> = BTreeMap::new();
        crate::audit::verify::read(self.core.log.dir(), 0, |_, value| {
            let destroyed = value["event"] == Event::SecretDestroyed.name();
            if (destroyed || value["event"] == Event::SecretRevoked.name())
                && let (Some(key), Some(scope), Some(number)) = (
                    value["secret_key"].as_str(),
                    value["scope"].as_str(),
                    value["version"].as_u64(),
                )
            {
                let number = u32::try_from(number).unwrap_or(0);
                gone.entry((key.to_owned(), scope.to_owned()))
                    .or_default()
                    .insert((number, destroyed));
            }
            true
        })
        .map_err(|e| Problem::new(Code::Internal, format!("the log cannot be read: {e}")))?;
        let now = self.core.clock.now();
        let vault = self.core.unlocked()?;
        let fingerprint = |secret: &mut Secret, number: u32| -> Result<(), Problem> {
            let value = secret.version(number).and_then(|v| v.value.clone());
            let value = value.map(|id| Ok::<_, Problem>(vault.get(RecordKind::Value, parse(&id)?)));
            if let Some(Ok(Some(value))) = value.transpose()? {
                secret.set_fingerprint(number, self.fingerprint(&value)?);
            }
            Ok(())
        };
        let mut reapplied = Vec::new();
        let (values, _) = self.core.change(|catalog, batch| {
            let mut stored = Vec::new();
            let mut values = Vec::new();
            for ((key, scope), versions) in &gone {
                let (Ok(key), Ok(scope)) = (key.parse(), scope.parse()) else { continue };
                let Ok(found) = catalog.find(&key, Some(&scope)) else { continue };
                let mut secret = Secret::clone(&found);
                let mut changed = false;
                for (number, destroyed) in versions {
                    let Some(version) = secret.version(*number).cloned() else { continue };
                    fingerprint(&mut secret, *number)?;
                    if *destroyed {
                        if let Some(value) = secret.destroy(*number) {
                            batch.delete(RecordKind::Value, parse(&value)?);
                            secret.revoke(&[*number], now);
                            reapplied.push(format!("{key} version {number}: destroyed"));
                            changed = true;
                        }
                    } else if version.stage != Stage::Revoked {
                        values.extend(version.value.clone());
                        secret.revoke(&[*number], now);
                        reapplied.push(format!("{key} version {number}: revoked"));
                        changed = true;
                    }
                }
                if changed {
                    put(batch, RecordKind::Secret, &secret.id, &secret)?;
                    stored.push(secret);
                }
            }
            let apply = move |c: &mut Catalog| {
                for secret in stored {
                    c.put_secret(secret);
                }
            };
            Ok((values, Box::new(apply) as _))
        })?;
        self.core.deny(values);
        Ok(reapplied)
    }
}
