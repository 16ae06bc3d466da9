//! Memory that outlives the process that writes it: a memfd mapped by keeper and worker alike.
//!
//! Invariant: every access is bounds-checked and goes through atomics or plain byte copies; no
//! reference into the mapping ever leaves this module, so another process that writes the same
//! bytes is a data race of bytes, never of Rust objects. Danger: a worker may be killed between any
//! two stores, so writers publish with a release store of a commit word, last.
//! See memfd_create(2), mmap(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// A shared mapping of a whole memory file.
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    fd: OwnedFd,
}

// SAFETY: the mapping is plain memory; all access is by atomics or bounded byte copies.
unsafe impl Send for Region {}
// SAFETY: as above; concurrent byte copies race on bytes whose meaning a commit word guards.
unsafe impl Sync for Region {}

impl Region {
    /// Makes a memory file of `len` bytes, all zero, and maps it. Pages cost memory once touched.
    ///
    /// # Errors
    /// What memfd_create(2), ftruncate(2) or mmap(2) report.
    pub fn create(name: &std::ffi::CStr, len: usize) -> io::Result<Self> {
        let fd = nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
        nix::unistd::ftruncate(&fd, i64::try_from(len).map_err(io::Error::other)?)?;
        Self::map(fd)
    }

    /// Maps the whole of an existing memory file, shared.
    ///
    /// # Errors
    /// What fstat(2) or mmap(2) report; `InvalidData` for an empty file.
    pub fn map(fd: OwnedFd) -> io::Result<Self> {
        let len = usize::try_from(nix::sys::stat::fstat(&fd)?.st_size).map_err(io::Error::other)?;
        if len == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "memory file is empty"));
        }
        // SAFETY: a new shared mapping of a file that we own; nothing else is replaced.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { base, len, fd })
    }

    /// Locks the pages in memory and keeps them out of core dumps, for keys.
    ///
    /// # Errors
    /// What mlock(2) reports, for one `RLIMIT_MEMLOCK`.
    pub fn lock(&self) -> io::Result<()> {
        // SAFETY: the range is exactly our mapping.
        unsafe {
            libc::madvise(self.base.as_ptr().cast(), self.len, libc::MADV_DONTDUMP);
            if libc::mlock(self.base.as_ptr().cast(), self.len) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true: an empty file cannot be mapped.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The atomic word at `offset`, a multiple of 8.
    ///
    /// # Panics
    /// When the word is outside or not aligned: an error of the layout, not of input.
    fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.len, "word outside the region");
        // SAFETY: in bounds, aligned (a mapping starts at a page), valid for the life of `self`;
        // AtomicU64 allows concurrent access from any process.
        unsafe { &*self.base.as_ptr().add(offset).cast::<AtomicU64>() }
    }

    /// Loads the word at byte `offset` (a multiple of 8).
    ///
    /// # Panics
    /// When `offset` is outside or not aligned.
    pub fn load(&self, offset: usize, order: Ordering) -> u64 {
        self.word(offset).load(order)
    }

    /// Stores the word at byte `offset` (a multiple of 8).
    ///
    /// # Panics
    /// When `offset` is outside or not aligned.
    pub fn store(&self, offset: usize, value: u64, order: Ordering) {
        self.word(offset).store(value, order);
    }

    /// Adds to the word at byte `offset` and returns what was there.
    ///
    /// # Panics
    /// When `offset` is outside or not aligned.
    pub fn fetch_add(&self, offset: usize, value: u64, order: Ordering) -> u64 {
        self.word(offset).fetch_add(value, order)
    }

    /// Replaces `current` by `new` in the word at byte `offset`; `Err` with what was there.
    ///
    /// # Errors
    /// The word's value when it was not `current`.
    ///
    /// # Panics
    /// When `offset` is outside or not aligned.
    pub fn compare_exchange(&self, offset: usize, current: u64, new: u64) -> Result<u64, u64> {
        self.word(offset).compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Panics
    /// When they do not fit.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(
            offset.checked_add(bytes.len()).is_some_and(|end| end <= self.len),
            "write outside the region"
        );
        // SAFETY: in bounds; source and mapping cannot overlap (no reference into it exists).
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.base.as_ptr().add(offset),
                bytes.len(),
            );
        }
    }

    /// Copies `into.len()` bytes from `offset`.
    ///
    /// # Panics
    /// When they are not all inside.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        assert!(
            offset.checked_add(into.len()).is_some_and(|end| end <= self.len),
            "read outside the region"
        );
        // SAFETY: in bounds; `into` is exclusive and cannot overlap the mapping.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.base.as_ptr().add(offset),
                into.as_mut_ptr(),
                into.len(),
            );
        }
    }
}

impl AsFd for Region {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: our own mapping, not used afterwards.
        unsafe {
            libc::munmap(self.base.as_ptr().cast(), self.len);
        }
    }
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Region").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_mapping_sees_what_the_first_wrote() {
        let first = Region::create(c"test", 4096).unwrap();
        let second = Region::map(first.as_fd().try_clone_to_owned().unwrap()).unwrap();
        first.write(8, b"abc");
        first.store(0, 7, Ordering::Release);
        let mut seen = [0; 3];
        assert_eq!(second.load(0, Ordering::Acquire), 7);
        second.read(8, &mut seen);
        assert_eq!(&seen, b"abc");
    }

    #[test]
    #[should_panic(expected = "outside")]
    fn a_write_past_the_end_is_refused() {
        Region::create(c"test", 4096).unwrap().write(4095, b"ab");
    }
}
