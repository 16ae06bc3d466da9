//! Where the vault's sealed bytes lie: one transaction a change, durable before it is acknowledged.
//!
//! A store knows nothing of keys. Invariant: after a crash it holds what some `commit` acknowledged,
//! or what the interrupted one would have, never a mixture.
#![forbid(unsafe_code)]

pub mod memory;
pub mod redb;

/// A whole vault as stored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Image {
    /// Version of the format.
    pub format: u32,
    /// 16 random bytes that name the vault.
    pub vault_id: [u8; 16],
    /// The key slots, as JSON.
    pub slots: Vec<u8>,
    /// The sealed seal over everything else.
    pub seal: Vec<u8>,
    /// Counts the changes.
    pub revision: u64,
    /// Sealed records: kind, id, bytes.
    pub records: Vec<(u8, [u8; 16], Vec<u8>)>,
}

/// One transaction.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// Version of the format after it.
    pub format: u32,
    /// The revision after it.
    pub revision: u64,
    /// The seal after it.
    pub seal: Vec<u8>,
    /// New key slots, where they change.
    pub slots: Option<Vec<u8>>,
    /// Records to store, or to remove where there are no bytes.
    pub records: Vec<(u8, [u8; 16], Option<Vec<u8>>)>,
}

/// Why a store cannot do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else changed it.
    #[error("the vault is at revision {found}, not {expected}")]
    Conflict {
        /// What the caller knew.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// There is a vault already.
    #[error("there is a vault already")]
    Exists,
    /// Not a vault, or damaged.
    #[error("the vault file is damaged: {what}")]
    Damaged {
        /// In what way.
        what: String,
    },
    /// In use by another process.
    #[error("the vault file is in use by another process")]
    InUse,
    /// The file cannot be read or written.
    #[error("the vault file cannot be read or written: {what}")]
    Io {
        /// What the system said.
        what: String,
    },
    /// No vault there.
    #[error("there is no vault")]
    Missing,
    /// Made by a newer program.
    #[error("the vault has format {found}, this program reads up to {known}")]
    Newer {
        /// In the file.
        found: u32,
        /// Ours.
        known: u32,
    },
}

/// A place for sealed bytes.
pub trait Store: Send + Sync {
    /// Makes an empty vault.
    ///
    /// # Errors
    /// [`Error::Exists`]; else see [`Error`].
    fn create(&self, image: &Image) -> Result<(), Error>;

    /// Reads everything.
    ///
    /// # Errors
    /// See [`Error`].
    fn load(&self) -> Result<Image, Error>;

    /// Makes one change, durable on return, if the revision is still `expected`.
    ///
    /// # Errors
    /// See [`Error`]; nothing has changed then.
    fn commit(&self, expected: u64, change: &Change) -> Result<(), Error>;
}
