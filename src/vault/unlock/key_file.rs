//! A key file: 32 bytes or more that only the daemon's user can read.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::secret::SecretBytes;

use super::super::crypto::{Key, digest};
use super::Error;

/// Fewer bytes are no key.
const LEAST_BYTES: usize = 32;
const MOST_BYTES: usize = 64 << 10;

/// Why a key file is not used.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It lies where a thief of the vault finds it too.
    #[error("the key file {} lies in the vault's own directory", path.display())]
    BesideVault {
        /// Which.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("the key file {} cannot be read", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others can read it.
    #[error("the key file {} has mode {mode:04o}; others can read it", path.display())]
    Mode {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is somebody else's.
    #[error("the key file {} belongs to uid {uid}", path.display())]
    Owner {
        /// Which.
        path: PathBuf,
        /// Whose.
        uid: u32,
    },
    /// It is too short or too long.
    #[error("the key file {} has {found_bytes} bytes; 32 to 65,536 are needed", path.display())]
    Size {
        /// Which.
        path: PathBuf,
        /// How many.
        found_bytes: u64,
    },
}

impl ReadError {
    /// The next step.
    pub fn hint(&self) -> String {
        match self {
            Self::BesideVault { path } => {
                format!("move {} to a directory or medium of its own", path.display())
            }
            Self::Io { path, source } if source.kind() == io::ErrorKind::NotFound => {
                let path = path.display();
                format!(
                    "correct the path in [unlock] or --key-file, or make one: \
                     head -c 32 /dev/urandom > {path} && chmod 600 {path}"
                )
            }
            Self::Io { .. } => "check [unlock] path in strongroom.toml, or give --key-file".into(),
            Self::Mode { path, .. } => format!("chmod 600 {}", path.display()),
            Self::Owner { path, .. } => {
                format!("chown it to the daemon's user: chown \"$(id -u)\" {}", path.display())
            }
            Self::Size { path, .. } => {
                format!("make one: head -c 32 /dev/urandom > {}", path.display())
            }
        }
    }
}

/// Reads a key file after checking who else could. `forbidden` is a directory where it must not lie.
///
/// # Errors
/// See [`ReadError`].
pub fn read(path: &Path, forbidden: Option<&Path>) -> Result<SecretBytes, ReadError> {
    let io = |source: io::Error| ReadError::Io { path: path.to_owned(), source };
    if let Some(forbidden) = forbidden {
        let real = path.canonicalize().map_err(io)?;
        if forbidden.canonicalize().is_ok_and(|dir| real.starts_with(dir)) {
            return Err(ReadError::BesideVault { path: path.to_owned() });
        }
    }
    // Facts of the open file, so that nobody exchanges it in between.
    // Not blocking: a FIFO there must not stop the start.
    let file = File::options()
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(io)?;
    let facts = file.metadata().map_err(io)?;
    if !facts.is_file() {
        return Err(io(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")));
    }
    if facts.mode() & 0o077 != 0 {
        return Err(ReadError::Mode { path: path.to_owned(), mode: facts.mode() & 0o7777 });
    }
    let own = nix::unistd::geteuid().as_raw();
    if facts.uid() != own && facts.uid() != 0 {
        return Err(ReadError::Owner { path: path.to_owned(), uid: facts.uid() });
    }
    let size = |found_bytes| ReadError::Size { path: path.to_owned(), found_bytes };
    if facts.len() > MOST_BYTES as u64 {
        return Err(size(facts.len()));
    }
    let bytes = SecretBytes::read_from(file, MOST_BYTES).map_err(io)?;
    if bytes.len() < LEAST_BYTES {
        return Err(size(bytes.len() as u64));
    }
    Ok(bytes)
}

/// The master key of a key file's bytes.
///
/// # Errors
/// [`Error::Credential`] when there are too few.
pub fn master(content: &SecretBytes, salt: &[u8]) -> Result<Key, Error> {
    if content.len() < LEAST_BYTES {
        return Err(Error::Credential { what: "a key file has at least 32 bytes" });
    }
    let all = Key::from_bytes(&digest(&[content.expose()])).ok_or(Error::Refused)?;
    Ok(all.derive(salt, &[b"key-file"]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(dir: &Path, bytes: &[u8], mode: u32) -> PathBuf {
        let path = dir.join("key");
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_command_that_mends_it() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o640, 0o604, 0o644, 0o660] {
            let path = file(dir.path(), &[1; 32], mode);
            let error = read(&path, None).unwrap_err();
            assert!(matches!(error, ReadError::Mode { .. }), "{mode:o}");
            assert!(error.hint().starts_with("chmod 600"));
        }
        assert_eq!(read(&file(dir.path(), &[1; 32], 0o600), None).unwrap().len(), 32);
    }

    #[test]
    fn a_short_file_or_one_beside_the_vault_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), &[1; 31], 0o600);
        assert!(matches!(read(&path, None), Err(ReadError::Size { found_bytes: 31, .. })));
        let path = file(dir.path(), &[1; 32], 0o600);
        assert!(matches!(read(&path, Some(dir.path())), Err(ReadError::BesideVault { .. })));
        let missing = dir.path().join("none");
        assert!(matches!(read(&missing, None), Err(ReadError::Io { .. })));
    }
}
