//! Key slots: several ways to the same root key, so that one can be lost.
//!
//! A slot turns a credential into a master key, stored apart from the vault, and the master key
//! unwraps the root key; to change a master key rewraps 32 bytes. Invariant: a wrong credential and
//! an altered slot give the same answer.
#![forbid(unsafe_code)]

pub mod command;
pub mod key_file;
pub mod passphrase;
pub mod recovery;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::secret::SecretBytes;

use super::crypto::{self, Key, NoRandomness};

/// What somebody unlocks with. It has no `Debug`: it is the credential itself.
pub enum Credential {
    /// A program that keeps the master key.
    Command(Vec<String>),
    /// The content of a key file.
    KeyFile(SecretBytes),
    /// A passphrase.
    Passphrase(SecretBytes),
    /// The recovery key, as printed.
    Recovery(SecretBytes),
}

impl Credential {
    /// The method's name, as in the configuration.
    pub fn method(&self) -> &'static str {
        match self {
            Self::Command(_) => "command",
            Self::KeyFile(_) => "key-file",
            Self::Passphrase(_) => "passphrase",
            Self::Recovery(_) => "recovery",
        }
    }
}

/// How a slot turns its credential into a master key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "kebab-case")]
pub enum Method {
    /// A program wraps it.
    Command {
        /// The program and its arguments.
        argv: Vec<String>,
        /// What the program made of it.
        blob: String,
    },
    /// HKDF over a file's bytes.
    KeyFile {
        /// Salt, in hex.
        salt: String,
    },
    /// Argon2id.
    Passphrase(passphrase::Parameters),
    /// HKDF over a random key that was printed once.
    Recovery {
        /// Salt, in hex.
        salt: String,
    },
}

impl Method {
    /// Its name, as in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Command { .. } => "command",
            Self::KeyFile { .. } => "key-file",
            Self::Passphrase(_) => "passphrase",
            Self::Recovery { .. } => "recovery",
        }
    }
}

/// One way to the root key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Its number; never used again in one vault.
    pub id: u32,
    /// For people.
    pub label: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// How the master key comes about.
    #[serde(flatten)]
    pub method: Method,
    /// The root key under the master key, in hex.
    wrapped: String,
}

/// Why a slot could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program failed.
    #[error("the unlock program failed: {what}")]
    Command {
        /// In what way.
        what: String,
    },
    /// The credential cannot be one.
    #[error("{what}")]
    Credential {
        /// What is wrong with it.
        what: &'static str,
    },
    /// Randomness failed.
    #[error(transparent)]
    Random(#[from] NoRandomness),
    /// No slot opens with it: wrong credential or altered slot, deliberately not told apart.
    #[error("the vault could not be unlocked")]
    Refused,
}

/// Makes a slot for `root`. `cost` is for passphrases.
///
/// # Errors
/// See [`Error`].
pub fn enroll(
    vault_id: &[u8; 16],
    root: &Key,
    credential: &Credential,
    new: NewSlot<'_>,
) -> Result<Slot, Error> {
    let salt = || -> Result<String, Error> {
        let mut salt = [0; 16];
        crypto::random(&mut salt)?;
        Ok(crypto::hex(&salt))
    };
    let (method, master) = match credential {
        Credential::Command(argv) => {
            let master = Key::random()?;
            let blob = command::wrap(argv, &master)?;
            (Method::Command { argv: argv.clone(), blob }, master)
        }
        Credential::KeyFile(content) => {
            let method = Method::KeyFile { salt: salt()? };
            let master = key_file::master(content, &method_salt(&method)?)?;
            (method, master)
        }
        Credential::Passphrase(text) => {
            passphrase::check(text)?;
            let parameters = passphrase::Parameters::new(new.cost, salt()?);
            let master = passphrase::master(text, &parameters)?;
            (Method::Passphrase(parameters), master)
        }
        Credential::Recovery(text) => {
            let method = Method::Recovery { salt: salt()? };
            let master = recovery::master(text, &method_salt(&method)?)?;
            (method, master)
        }
    };
    let wrapping = master.derive(vault_id, &[b"wrap", &new.id.to_be_bytes()]);
    let wrapped = wrapping.seal(&context(vault_id, new.id, &method), root.expose())?;
    Ok(Slot {
        id: new.id,
        label: new.label.to_owned(),
        created_at: new.created_at,
        method,
        wrapped: crypto::hex(&wrapped),
    })
}

/// Facts of a slot to be.
#[derive(Debug, Clone, Copy)]
pub struct NewSlot<'a> {
    /// Its number.
    pub id: u32,
    /// For people.
    pub label: &'a str,
    /// Now.
    pub created_at: Timestamp,
    /// What a passphrase is to cost.
    pub cost: passphrase::Cost,
}

fn method_salt(method: &Method) -> Result<Vec<u8>, Error> {
    match method {
        Method::KeyFile { salt } | Method::Recovery { salt } => {
            crypto::unhex(salt).ok_or(Error::Refused)
        }
        Method::Passphrase(_) | Method::Command { .. } => Err(Error::Refused),
    }
}

/// Binds a wrapped key to its vault, slot and method.
fn context(vault_id: &[u8; 16], id: u32, method: &Method) -> Vec<u8> {
    let method = serde_json::to_vec(method).unwrap_or_default();
    [b"strongroom slot", vault_id.as_slice(), &id.to_be_bytes(), &method].concat()
}

impl Slot {
    /// The root key, if the credential is this slot's.
    ///
    /// # Errors
    /// [`Error::Refused`]; [`Error::Command`] when the program fails.
    pub fn open(&self, vault_id: &[u8; 16], credential: &Credential) -> Result<Key, Error> {
        let master = match (&self.method, credential) {
            (Method::Command { argv, blob }, Credential::Command(configured)) => {
                // The configured program, never the stored one: the file must not choose it.
                if argv != configured {
                    return Err(Error::Refused);
                }
                command::unwrap(configured, blob)?
            }
            (Method::KeyFile { .. }, Credential::KeyFile(content)) => {
                key_file::master(content, &method_salt(&self.method)?)?
            }
            (Method::Passphrase(parameters), Credential::Passphrase(text)) => {
                passphrase::master(text, parameters)?
            }
            (Method::Recovery { .. }, Credential::Recovery(text)) => {
                recovery::master(text, &method_salt(&self.method)?)?
            }
            _ => return Err(Error::Refused),
        };
        let wrapping = master.derive(vault_id, &[b"wrap", &self.id.to_be_bytes()]);
        let wrapped = crypto::unhex(&self.wrapped).ok_or(Error::Refused)?;
        let root = wrapping
            .open(&context(vault_id, self.id, &self.method), &wrapped)
            .map_err(|_| Error::Refused)?;
        Key::from_bytes(root.expose()).ok_or(Error::Refused)
    }
}
