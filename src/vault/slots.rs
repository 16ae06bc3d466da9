//! Key slots of a vault: several ways to the one root key, each changed in a transaction of its own.
//!
//! Invariant: a vault has at least one slot, and the seal covers all of them, so that one that was
//! removed cannot be put back.
#![forbid(unsafe_code)]

use super::crypto::Key;
use super::store::Change;
use super::store::redb::FORMAT;
use super::unlock::passphrase::Cost;
use super::unlock::{self, Credential, NewSlot, Slot};
use super::{Error, Head, Vault};

/// The root key by whichever slot the credential opens.
pub(super) fn open_slots(
    slots: &[Slot],
    vault_id: &[u8; 16],
    credential: &Credential,
) -> Result<Key, Error> {
    let mut last = unlock::Error::Refused;
    for slot in slots.iter().filter(|s| s.method.name() == credential.method()) {
        match slot.open(vault_id, credential) {
            Ok(root) => return Ok(root),
            Err(unlock::Error::Refused) => {}
            Err(error) => last = error,
        }
    }
    Err(last.into())
}

impl Vault {
    fn commit_slots(&self, head: &mut Head, slots: Vec<Slot>) -> Result<(), Error> {
        let revision = head.next();
        let encoded = encode_slots(&slots);
        let seal = self.seal(revision, self.len() as u64, &head.set, &encoded)?;
        let change =
            Change { format: FORMAT, revision, seal, slots: Some(encoded), records: Vec::new() };
        self.store_change(head.revision, &change)?;
        head.revision = revision;
        head.slots = slots;
        Ok(())
    }

    /// Adds a slot; returns it.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn add_slot(
        &self,
        label: &str,
        credential: &Credential,
        now: crate::clock::Timestamp,
        cost: Cost,
    ) -> Result<Slot, Error> {
        let mut head = self.head();
        let id = head.slots.iter().map(|s| s.id).max().unwrap_or(0) + 1;
        let new = NewSlot { id, label, created_at: now, cost };
        let slot = unlock::enroll(&self.vault_id, &self.root, credential, new)?;
        let mut slots = head.slots.clone();
        slots.push(slot.clone());
        self.commit_slots(&mut head, slots)?;
        Ok(slot)
    }

    /// Removes a slot, unless it is the last.
    ///
    /// # Errors
    /// [`Error::NoSlot`], [`Error::LastSlot`]; else see [`Error`].
    pub fn remove_slot(&self, id: u32) -> Result<(), Error> {
        let mut head = self.head();
        let slots: Vec<_> = head.slots.iter().filter(|s| s.id != id).cloned().collect();
        if slots.len() == head.slots.len() {
            return Err(Error::NoSlot { id });
        }
        if slots.is_empty() {
            return Err(Error::LastSlot { id });
        }
        self.commit_slots(&mut head, slots)
    }

    /// Gives a slot a new master key: 32 bytes are wrapped anew.
    ///
    /// # Errors
    /// [`Error::NoSlot`]; else see [`Error`].
    pub fn rekey_slot(
        &self,
        id: u32,
        credential: &Credential,
        now: crate::clock::Timestamp,
        cost: Cost,
    ) -> Result<Slot, Error> {
        let mut head = self.head();
        let mut slots = head.slots.clone();
        let slot = slots.iter_mut().find(|s| s.id == id).ok_or(Error::NoSlot { id })?;
        let new = NewSlot { id, label: &slot.label.clone(), created_at: now, cost };
        *slot = unlock::enroll(&self.vault_id, &self.root, credential, new)?;
        let rekeyed = slot.clone();
        self.commit_slots(&mut head, slots)?;
        Ok(rekeyed)
    }
}

pub(super) fn encode_slots(slots: &[Slot]) -> Vec<u8> {
    serde_json::to_vec(slots).expect("slots are plain JSON")
}
