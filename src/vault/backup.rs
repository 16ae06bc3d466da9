//! A backup: every record of a vault in one file, under a passphrase of its own.
//!
//! Layout: the line `strongroom backup 1`, a line of JSON (Argon2id parameters, vault id, revision,
//! count), then one sealed message with all records. Invariant: a file that verifies is whole; one
//! that was cut, altered or mixed does not verify.
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::secret::SecretBytes;

use super::crypto::{self, NoRandomness};
use super::record::{Batch, RecordId, RecordKind};
use super::unlock::{self, passphrase};
use super::{Error as VaultError, Vault};

const FIRST_LINE: &str = "strongroom backup 1\n";
/// A backup of 100,000 secrets has about 50 MB.
const MOST_BYTES: usize = 4 << 30;
/// All but the signing keys: a copy of them would let its owner sign what came after.
const KINDS: [RecordKind; 10] = [
    RecordKind::Secret,
    RecordKind::Value,
    RecordKind::Group,
    RecordKind::Project,
    RecordKind::Chain,
    RecordKind::Policy,
    RecordKind::Exposure,
    RecordKind::Setting,
    RecordKind::Buried,
    RecordKind::FingerprintKey,
];
/// What a restore adds to: revoked values stay known.
const KEPT: [RecordKind; 2] = [RecordKind::Buried, RecordKind::FingerprintKey];

/// Why a backup is not written or taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not whole, or the passphrase is wrong; deliberately not told apart.
    #[error("the backup does not verify: wrong passphrase, or an altered or cut file")]
    Forged,
    /// Not a backup.
    #[error("this is no strongroom backup")]
    Foreign,
    /// Reading or writing failed.
    #[error("the backup cannot be read or written")]
    Io(#[from] io::Error),
    /// Randomness failed.
    #[error(transparent)]
    Random(#[from] NoRandomness),
    /// The passphrase cannot be one.
    #[error(transparent)]
    Unlock(#[from] unlock::Error),
    /// The vault failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// The line of JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Header {
    /// Whose backup, in hex.
    pub vault_id: String,
    /// The vault's revision then.
    pub revision: u64,
    /// How many records.
    pub count: u64,
    stretch: passphrase::Parameters,
}

/// The records of a verified backup.
pub struct Content {
    /// What it says of itself.
    pub header: Header,
    records: Vec<(RecordKind, RecordId, SecretBytes)>,
}

/// Writes a backup of `vault`.
///
/// # Errors
/// See [`Error`].
pub fn create(
    vault: &Vault,
    passphrase_text: &SecretBytes,
    cost: passphrase::Cost,
    mut out: impl Write,
) -> Result<Header, Error> {
    passphrase::check(passphrase_text)?;
    let mut salt = [0; 16];
    crypto::random(&mut salt)?;
    let stretch = passphrase::Parameters::new(cost, crypto::hex(&salt));
    let key = passphrase::master(passphrase_text, &stretch)?;
    let (revision, mut all) = vault.snapshot()?;
    all.retain(|((kind, _), _)| KINDS.contains(kind));
    let size = all.iter().map(|(_, bytes)| 25 + bytes.len()).sum();
    // Allocated once at full size: a growing buffer would leave copies behind.
    let mut plain = Zeroizing::new(Vec::with_capacity(size));
    for ((kind, id), bytes) in &all {
        plain.push(*kind as u8);
        plain.extend_from_slice(&id.0);
        plain.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        plain.extend_from_slice(bytes.expose());
    }
    let header = Header {
        vault_id: crypto::hex(&vault.vault_id()),
        revision,
        count: all.len() as u64,
        stretch,
    };
    let mut line = serde_json::to_vec(&header).map_err(io::Error::other)?;
    line.push(b'\n');
    let sealed = key.seal(&[FIRST_LINE.as_bytes(), &line].concat(), &plain)?;
    out.write_all(FIRST_LINE.as_bytes())?;
    out.write_all(&line)?;
    out.write_all(&sealed)?;
    out.flush()?;
    Ok(header)
}

/// Reads and verifies a whole backup.
///
/// # Errors
/// See [`Error`].
pub fn open(passphrase_text: &SecretBytes, source: impl Read) -> Result<Content, Error> {
    let mut bytes = Vec::new();
    source.take(MOST_BYTES as u64).read_to_end(&mut bytes)?;
    let rest = bytes.strip_prefix(FIRST_LINE.as_bytes()).ok_or(Error::Foreign)?;
    let end = rest.iter().position(|b| *b == b'\n').ok_or(Error::Foreign)?;
    let (line, sealed) = rest.split_at(end + 1);
    let header: Header = serde_json::from_slice(line).map_err(|_| Error::Foreign)?;
    let key = passphrase::master(passphrase_text, &header.stretch).map_err(|_| Error::Forged)?;
    let plain =
        key.open(&[FIRST_LINE.as_bytes(), line].concat(), sealed).map_err(|_| Error::Forged)?;
    let records = parse(plain.expose()).ok_or(Error::Forged)?;
    if records.len() as u64 != header.count {
        return Err(Error::Forged);
    }
    Ok(Content { header, records })
}

fn parse(mut plain: &[u8]) -> Option<Vec<(RecordKind, RecordId, SecretBytes)>> {
    let mut records = Vec::new();
    while !plain.is_empty() {
        let (kind, rest) = plain.split_first()?;
        let (id, rest) = rest.split_first_chunk::<16>()?;
        let (len, rest) = rest.split_first_chunk::<8>()?;
        let len = usize::try_from(u64::from_be_bytes(*len)).ok()?;
        let bytes = rest.get(..len)?;
        records.push((RecordKind::from_byte(*kind)?, RecordId(*id), SecretBytes::copy_of(bytes)));
        plain = &rest[len..];
    }
    Some(records)
}

impl Content {
    /// Records of one kind.
    pub fn of(&self, kind: RecordKind) -> impl Iterator<Item = (RecordId, &SecretBytes)> {
        self.records.iter().filter(move |(k, _, _)| *k == kind).map(|(_, id, bytes)| (*id, bytes))
    }

    /// Puts every record into `vault`, in one change with `batch`, in place of all that is there but
    /// for what revoked values are known again by.
    ///
    /// # Errors
    /// [`Error::Vault`].
    pub fn restore(self, vault: &Vault, mut batch: Batch) -> Result<u64, Error> {
        for kind in KINDS.into_iter().filter(|kind| !KEPT.contains(kind)) {
            for (id, _) in vault.all(kind)? {
                batch.delete(kind, id);
            }
        }
        for (kind, id, bytes) in self.records {
            if !KINDS.contains(&kind) {
                continue;
            }
            batch.put(kind, id, bytes);
        }
        Ok(vault.commit(&batch)?)
    }
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Content").field("header", &self.header).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::vault::store::memory::MemoryStore;
    use crate::vault::unlock::Credential;
    use std::sync::Arc;

    const CHEAP: passphrase::Cost = passphrase::Cost { memory_kib: 64, passes: 1, lanes: 1 };

    fn vault() -> Vault {
        let key = Credential::KeyFile(SecretBytes::copy_of(&[1; 32]));
        let store = Arc::new(MemoryStore::new());
        Vault::create(Box::new(store), &[("k", key)], Timestamp::UNIX_EPOCH, CHEAP).unwrap()
    }

    #[test]
    fn a_backup_restores_into_another_vault_and_a_cut_one_does_not_verify() {
        let vault_one = vault();
        let mut batch = Batch::new();
        let id = RecordId([7; 16]);
        batch.put(RecordKind::Value, id, SecretBytes::copy_of(b"kept value"));
        vault_one.commit(&batch).unwrap();
        let phrase = SecretBytes::copy_of(b"a long passphrase");
        let mut file = Vec::new();
        create(&vault_one, &phrase, CHEAP, &mut file).unwrap();
        assert!(!file.windows(10).any(|w| w == b"kept value"));

        let other = vault();
        let content = open(&phrase, &file[..]).unwrap();
        content.restore(&other, Batch::new()).unwrap();
        let restored = other.get(RecordKind::Value, id).unwrap().unwrap();
        assert_eq!(restored.expose(), b"kept value");

        let wrong = SecretBytes::copy_of(b"another passphrase");
        assert!(matches!(open(&wrong, &file[..]), Err(Error::Forged)));
        assert!(matches!(open(&phrase, &file[..file.len() - 1]), Err(Error::Forged)));
        let mut altered = file.clone();
        altered[FIRST_LINE.len() + 15] ^= 1;
        assert!(open(&phrase, &altered[..]).is_err());
        assert!(matches!(open(&phrase, &b"nonsense"[..]), Err(Error::Foreign)));
    }
}
