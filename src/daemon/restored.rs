//! After a restore: what the log says was revoked or destroyed stays so.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::audit::record::Event;
use crate::catalog::Catalog;
use crate::catalog::secret::{Secret, Stage};
use crate::proto::{Code, Problem};
use crate::vault::record::RecordKind;

use super::Daemon;
use super::core::put;
use super::secrets::parse;

impl Daemon {
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
