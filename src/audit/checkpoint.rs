//! Checkpoints: signatures that seal the log up to a record (Ed25519, RFC 8032).
//!
//! Each checkpoint is signed by the key that the one before announced, and announces the next; a key
//! is forgotten once it has signed. Invariant: who has the first public key can verify every
//! checkpoint, and who takes the present key cannot make one of before. The keys' place is the
//! vault: a daemon that was killed goes on with the announced one. Danger: a key that was announced
//! and lost would end the chain, so it is stored before it is announced.
#![forbid(unsafe_code)]

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::link::Head;

/// What a checkpoint's record says beside the usual fields. Keys, link and signature are hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// From 1.
    pub number: u64,
    /// The last record that it seals.
    pub sealed_seq: u64,
    /// That record's link.
    pub sealed_link: String,
    /// The key that signs this.
    pub public_key: String,
    /// The key that will sign the next.
    pub next_key: String,
    /// Over all of the above.
    pub signature: String,
}

/// The start of a log whose first files were removed, signed by the key of that moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// The last record that was removed.
    pub seq: u64,
    /// Its link.
    pub link: String,
    /// The key that the last removed checkpoint announced, if there was one.
    pub expects: Option<String>,
    /// How many checkpoints were removed.
    pub checkpoints: u64,
    /// The key that signs this: one that the log announces further on.
    pub public_key: String,
    /// Over all of the above.
    pub signature: String,
}

/// The signing keys, as the vault keeps them.
#[derive(Serialize, Deserialize)]
pub struct Keys {
    /// Checkpoints made so far.
    pub number: u64,
    /// The last record that one of them sealed.
    pub sealed_seq: u64,
    /// The first public key of all, in hex.
    pub first: String,
    current: Zeroizing<[u8; 32]>,
    /// Made, and perhaps announced already.
    next: Option<Zeroizing<[u8; 32]>>,
}

fn hex(bytes: &[u8]) -> String {
    crate::vault::crypto::hex(bytes)
}

fn public(seed: &[u8; 32]) -> String {
    hex(SigningKey::from_bytes(seed).verifying_key().as_bytes())
}

fn seed() -> Result<Zeroizing<[u8; 32]>, crate::vault::crypto::NoRandomness> {
    let mut seed = Zeroizing::new([0; 32]);
    crate::vault::crypto::random(&mut *seed)?;
    Ok(seed)
}

fn verifies(public_key: &str, statement: &[u8], signature: &str) -> bool {
    let bytes = |text: &str| crate::vault::crypto::unhex(text);
    let key = bytes(public_key).and_then(|b| <[u8; 32]>::try_from(b).ok());
    let signature = bytes(signature).and_then(|b| <[u8; 64]>::try_from(b).ok());
    let (Some(key), Some(signature)) = (key, signature) else { return false };
    VerifyingKey::from_bytes(&key)
        .is_ok_and(|key| key.verify_strict(statement, &Signature::from_bytes(&signature)).is_ok())
}

impl Checkpoint {
    fn statement(&self) -> Vec<u8> {
        format!(
            "strongroom checkpoint\n{}\n{}\n{}\n{}\n{}\n",
            self.number, self.sealed_seq, self.sealed_link, self.public_key, self.next_key
        )
        .into_bytes()
    }

    /// Whether its signature is its key's.
    pub fn is_signed(&self) -> bool {
        verifies(&self.public_key, &self.statement(), &self.signature)
    }
}

impl Anchor {
    fn statement(&self) -> Vec<u8> {
        format!(
            "strongroom anchor\n{}\n{}\n{}\n{}\n{}\n",
            self.seq,
            self.link,
            self.expects.as_deref().unwrap_or("-"),
            self.checkpoints,
            self.public_key
        )
        .into_bytes()
    }

    /// Whether its signature is its key's.
    pub fn is_signed(&self) -> bool {
        verifies(&self.public_key, &self.statement(), &self.signature)
    }
}

impl Keys {
    /// The first keys of a log.
    ///
    /// # Errors
    /// Without randomness.
    pub fn new() -> Result<Self, crate::vault::crypto::NoRandomness> {
        let current = seed()?;
        let first = public(&current);
        Ok(Self { number: 0, sealed_seq: 0, first, current, next: None })
    }

    /// The key that signs next.
    pub fn public_key(&self) -> String {
        public(&self.current)
    }

    /// Makes the key to be announced; it is to be stored before [`Keys::sign`].
    ///
    /// # Errors
    /// Without randomness.
    pub fn prepare(&mut self) -> Result<(), crate::vault::crypto::NoRandomness> {
        self.next = Some(seed()?);
        Ok(())
    }

    /// The checkpoint that seals the log up to `head`, after [`Keys::prepare`].
    pub fn sign(&self, head: &Head) -> Option<Checkpoint> {
        let mut checkpoint = Checkpoint {
            number: self.number + 1,
            sealed_seq: head.seq,
            sealed_link: head.link.clone(),
            public_key: self.public_key(),
            next_key: public(self.next.as_ref()?),
            signature: String::new(),
        };
        let key = SigningKey::from_bytes(&self.current);
        checkpoint.signature = hex(&key.sign(&checkpoint.statement()).to_bytes());
        Some(checkpoint)
    }

    /// Signs the start of a log whose first files go.
    pub fn anchor(
        &self,
        seq: u64,
        link: &str,
        expects: Option<String>,
        checkpoints: u64,
    ) -> Anchor {
        let mut anchor = Anchor {
            seq,
            link: link.to_owned(),
            expects,
            checkpoints,
            public_key: self.public_key(),
            signature: String::new(),
        };
        let key = SigningKey::from_bytes(&self.current);
        anchor.signature = hex(&key.sign(&anchor.statement()).to_bytes());
        anchor
    }

    /// `checkpoint` is in the log: its key is forgotten, the announced one signs from now on. False
    /// when it does not announce the key that was made for it.
    pub fn advance(&mut self, checkpoint: &Checkpoint) -> bool {
        let announced = self.next.as_ref().is_some_and(|next| public(next) == checkpoint.next_key);
        if announced && let Some(next) = self.next.take() {
            self.current = next;
            self.number = checkpoint.number;
            self.sealed_seq = checkpoint.sealed_seq;
        }
        announced
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("number", &self.number).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(seq: u64) -> Head {
        Head { seq, link: format!("{seq:064x}") }
    }

    #[test]
    fn each_checkpoint_is_signed_by_the_key_that_the_one_before_announced() {
        let mut keys = Keys::new().unwrap();
        let first = keys.first.clone();
        let mut expected = first.clone();
        for seq in 1..4 {
            keys.prepare().unwrap();
            let checkpoint = keys.sign(&head(seq)).unwrap();
            assert!(checkpoint.is_signed());
            assert_eq!(checkpoint.public_key, expected);
            expected.clone_from(&checkpoint.next_key);
            // As a daemon that was killed after the record was written finds them.
            let stored = serde_json::to_vec(&keys).unwrap();
            keys = serde_json::from_slice(&stored).unwrap();
            assert!(keys.advance(&checkpoint));
            assert!(!keys.advance(&checkpoint));
        }
        assert_eq!((keys.number, keys.sealed_seq), (3, 3));
        assert_eq!(keys.first, first);
    }

    #[test]
    fn a_change_of_any_field_and_a_foreign_key_are_found() {
        let mut keys = Keys::new().unwrap();
        keys.prepare().unwrap();
        let good = keys.sign(&head(7)).unwrap();
        for change in [
            |c: &mut Checkpoint| c.number += 1,
            |c: &mut Checkpoint| c.sealed_seq += 1,
            |c: &mut Checkpoint| c.sealed_link.replace_range(0..1, "f"),
            |c: &mut Checkpoint| c.public_key = Keys::new().unwrap().public_key(),
            |c: &mut Checkpoint| c.next_key = Keys::new().unwrap().public_key(),
            |c: &mut Checkpoint| c.signature.replace_range(0..2, "00"),
            |c: &mut Checkpoint| c.signature = "x".into(),
        ] {
            let mut bad = good.clone();
            change(&mut bad);
            assert!(!bad.is_signed() || bad == good);
        }
        let anchor = keys.anchor(3, "aa", None, 0);
        assert!(anchor.is_signed());
        assert!(!Anchor { seq: 4, ..anchor }.is_signed());
    }
}
