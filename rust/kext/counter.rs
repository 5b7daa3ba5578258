// SPDX-License-Identifier: GPL-2.0
//! Numbers that one thread writes and any other reads.
//!
//! C headers: `include/asm-generic/rwonce.h`.

use core::cell::UnsafeCell;

/// A number that whoever owns what it counts adds to, with a plain load and a plain store: no
/// access is a locked one, and no reader can hold up the writer.
///
/// Two that write at once lose some of what they add, and nothing else.
#[derive(Default)]
pub(crate) struct Counter(UnsafeCell<u64>);

// SAFETY: All accesses are aligned volatile ones of 64 bits, which on the 64-bit machines this runs
// on are not torn: the kernel's `READ_ONCE` and `WRITE_ONCE`.
unsafe impl Sync for Counter {}

#[cfg(not(target_pointer_width = "64"))]
compile_error!("a counter of 64 bits could be torn");

impl Counter {
    /// Its value.
    #[inline]
    pub(crate) fn get(&self) -> u64 {
        // SAFETY: The cell is valid; see `Sync` for others that access it now.
        unsafe { self.0.get().read_volatile() }
    }

    /// Sets it.
    #[inline]
    pub(crate) fn set(&self, value: u64) {
        // What counting costs: scripts/bench/counters.
        if cfg!(rv_uncounted) {
            return;
        }
        // SAFETY: As above.
        unsafe { self.0.get().write_volatile(value) };
    }

    /// Adds to it. For its one writer. It wraps, as counters do.
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        if !cfg!(rv_uncounted) {
            self.set(self.get().wrapping_add(n));
        }
    }
}
