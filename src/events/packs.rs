//! A stored file with what is kept beside it of its hidden ranges: packs, sealed, in a file of their
//! own among those without a name.
//!
//! Invariant: no byte of a pack is on the disk in clear, and the file goes when the draft does. The
//! file is a sequence of lengths (4 bytes) and sealed packs; what is behind the last pack that a head
//! counts was not acknowledged and is written over.
#![forbid(unsafe_code)]

use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use zeroize::Zeroizing;

use crate::vault::crypto::Key;

use super::Outside;
use super::decoy::Decoy;
use super::desk::key_of;
use super::draft::Store;
use super::folder::{Folder, STAGING, Stored};

/// In keys that packs are sealed for, after the inode number.
const PACK: u8 = 3;
/// The longest sealed pack: some ranges of the longest text that is kept.
const MAX_SEALED_BYTES: u32 = 64 << 20;

struct State {
    generation: u64,
    /// None: not needed yet.
    file: Option<Stored>,
    /// Where each sealed pack lies.
    places: Vec<(u64, u32)>,
}

/// See the module.
pub(super) struct Filed {
    stored: Stored,
    folder: Arc<Folder>,
    decoy: Arc<Decoy>,
    outside: Arc<dyn Outside>,
    inode: u64,
    state: Mutex<State>,
}

/// Where packs of a draft's generation lie.
fn path_of(inode: u64, generation: u64) -> PathBuf {
    Path::new(STAGING).join(format!("{inode:016x}.{generation}.hidden"))
}

impl Filed {
    pub(super) fn new(
        stored: Stored,
        folder: Arc<Folder>,
        decoy: Arc<Decoy>,
        outside: Arc<dyn Outside>,
        (inode, generation): (u64, u64),
    ) -> Self {
        let state = State { generation, file: None, places: Vec::new() };
        Self { stored, folder, decoy, outside, inode, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self) -> io::Result<Arc<Key>> {
        // Locked: nothing is kept and nothing is shown.
        self.outside.key().map_err(|_| io::Error::from_raw_os_error(Errno::ENOKEY as i32))
    }

    /// The name that packs have, if there are any.
    pub(super) fn packs(&self) -> PathBuf {
        path_of(self.inode, self.state().generation)
    }

    /// Removes the packs' name; who holds this can still read them. Only when no draft in the runtime
    /// state counts them any more.
    pub(super) fn unlink_packs(&self) {
        // Most files never had any.
        let _removed = self.folder.unlink(&self.packs());
    }

    /// The packs are of no use any more; those of the next generation begin.
    pub(super) fn renew(&self, generation: u64) {
        self.unlink_packs();
        *self.state() = State { generation, file: None, places: Vec::new() };
    }

    /// Makes its content durable, which takes as long when all of it was held back.
    pub(super) fn sync(&self) -> io::Result<()> {
        // First, since it makes the store's other changes durable as well: one of the two has nothing
        // to do.
        self.decoy.sync();
        self.stored.sync()
    }

    /// The same packs with another open file.
    pub(super) fn with(self, stored: Stored) -> Self {
        Self { stored, ..self }
    }
}

impl State {
    /// What a pack is sealed for.
    fn sealed_for(&self, inode: u64, number: u64) -> Vec<u8> {
        key_of(inode, PACK, self.generation, number)
    }

    fn end(&self) -> u64 {
        self.places.last().map_or(0, |(at, len)| at + u64::from(*len))
    }
}

impl Deref for Filed {
    type Target = Stored;

    fn deref(&self) -> &Stored {
        &self.stored
    }
}

impl Store for Filed {
    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.stored.read_at(at, buffer)
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.stored.write_at(at, bytes)
    }

    fn pretend_read(&self, len: usize) {
        self.decoy.read(len);
    }

    fn pretend_write(&self, at: u64, len: usize) {
        self.decoy.write(at, len);
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.stored.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        self.stored.len()
    }

    fn put_pack(&self, number: u64, plain: &[u8]) -> io::Result<()> {
        let key = self.key()?;
        let mut state = self.state();
        state.places.truncate(usize::try_from(number).unwrap_or(usize::MAX));
        if state.file.is_none() {
            let path = path_of(self.inode, state.generation);
            // Of a pass that failed.
            let _removed = self.folder.unlink(&path);
            state.file = Some(self.folder.create_private(&path)?);
        }
        let at = state.sealed_for(self.inode, number);
        let sealed = key.seal(&at, plain).map_err(|e| io::Error::other(e.to_string()))?;
        let len = u32::try_from(sealed.len()).map_err(io::Error::other)?;
        let mut entry = len.to_le_bytes().to_vec();
        entry.extend_from_slice(&sealed);
        let end = state.end();
        let file = state.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        file.write_at(end, &entry)?;
        state.places.push((end + 4, len));
        Ok(())
    }

    fn pack(&self, number: u64) -> io::Result<Zeroizing<Vec<u8>>> {
        let key = self.key()?;
        let state = self.state();
        let place = usize::try_from(number).ok().and_then(|index| state.places.get(index));
        let (Some((at, len)), Some(file)) = (place, &state.file) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let mut sealed = vec![0; *len as usize];
        file.read_exactly(*at, &mut sealed)?;
        let at = state.sealed_for(self.inode, number);
        let plain = key.open(&at, &sealed).map_err(|e| io::Error::other(e.to_string()))?;
        Ok(Zeroizing::new(plain.expose().to_vec()))
    }

    fn keep_packs(&self, count: u64) -> io::Result<()> {
        let mut state = self.state();
        state.places.clear();
        if count == 0 {
            return Ok(());
        }
        let file = self.folder.file(&path_of(self.inode, state.generation))?;
        for _ in 0..count {
            let end = state.end();
            let mut len = [0; 4];
            file.read_exactly(end, &mut len)?;
            let len = u32::from_le_bytes(len);
            if len > MAX_SEALED_BYTES {
                return Err(io::ErrorKind::InvalidData.into());
            }
            state.places.push((end + 4, len));
        }
        state.file = Some(file);
        Ok(())
    }
}
