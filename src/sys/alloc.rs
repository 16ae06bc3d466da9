//! The allocator: the system's, but large zeroed buffers are touched before they are used.
//!
//! Invariant: the part of fuser's request buffers that a request can fill is populated and, where
//! the limit allows, locked when the allocation returns. Danger: a worker that is killed while the
//! kernel copies a request into an untouched page turns that request into `EIO` (measured: 371 of
//! 6,000 kills with 128 KiB writers, none when populated). See madvise(2), `MADV_POPULATE_WRITE`.

use std::alloc::{GlobalAlloc, Layout, System};

/// Buffers of at least this size are fuser's (16 MiB + 4 KiB in 0.18); nothing else of ours is.
const LARGE_BYTES: usize = 16 << 20;
/// What a request can fill: `max_write` of 256 KiB and its header, rounded up.
const POPULATED_BYTES: usize = 320 << 10;
const PAGE_BYTES: usize = 4096;

/// See the module.
pub struct Populating;

// SAFETY: all memory comes from and goes back to `System`; populating changes no content.
unsafe impl GlobalAlloc for Populating {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        if layout.size() >= LARGE_BYTES {
            let (start, len) = populated_range(ptr);
            // SAFETY: within the allocation, which is still ours; unlocking changes no content.
            unsafe { libc::munlock(start.cast(), len) };
        }
        // SAFETY: the caller's contract is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is passed on.
        let ptr = unsafe { System.alloc_zeroed(layout) };
        if layout.size() >= LARGE_BYTES && !ptr.is_null() {
            let (start, len) = populated_range(ptr);
            // SAFETY: whole pages within a fresh allocation; failure leaves it as it was.
            unsafe {
                libc::madvise(start.cast(), len, libc::MADV_POPULATE_WRITE);
                libc::madvise(start.cast(), len, libc::MADV_DONTDUMP);
                // Without the limit for it the buffer stays populated, only not locked.
                libc::mlock(start.cast(), len);
            }
        }
        ptr
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's contract is passed on.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

/// Gives memory that was freed back to the system, after much of it was used for a moment. Without
/// glibc it does nothing.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes a number and touches only what is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The pages of the allocation at `ptr` that are populated.
fn populated_range(ptr: *mut u8) -> (*mut u8, usize) {
    // Down to the page's start: glibc keeps its chunk header there, in the same mapping.
    let lead = ptr.addr() % PAGE_BYTES;
    (ptr.wrapping_sub(lead), POPULATED_BYTES)
}
