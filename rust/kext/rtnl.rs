// SPDX-License-Identifier: GPL-2.0
//! The lock of all network configuration, and data that it protects.
//!
//! C header: `include/linux/rtnetlink.h`.

use core::{
    cell::UnsafeCell,
    mem::ManuallyDrop, //
};

use kernel::types::NotThreadSafe;

use super::bindings;

/// The lock, held.
///
/// # Invariants
///
/// The lock is held by this thread while this exists, and there is no other such value.
pub(super) struct Rtnl(NotThreadSafe);

impl Rtnl {
    /// Takes the lock. Not to be called by who has it, nor under a lock that is taken under it.
    pub(super) fn lock() -> Self {
        // SAFETY: This may sleep, as what calls it may.
        unsafe { bindings::rvh_rtnl_lock() };
        // INVARIANT: Taken just now.
        Self(NotThreadSafe)
    }

    /// The lock, which somebody took before calling us.
    ///
    /// # Safety
    ///
    /// It must be held by this thread until after the last use of the value, and there must be no
    /// other such value meanwhile.
    pub(super) unsafe fn held() -> ManuallyDrop<Self> {
        // INVARIANT: By the function's contract. It is not given back.
        ManuallyDrop::new(Self(NotThreadSafe))
    }

    /// Waits until all packets have been received that were being received.
    pub(super) fn wait_for_receivers(&self) {
        // SAFETY: This may sleep, as what takes the lock may.
        unsafe { bindings::rvh_synchronize_net() };
    }
}

impl Drop for Rtnl {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant it is held by this thread.
        unsafe { bindings::rvh_rtnl_unlock() };
    }
}

/// What is reached under the lock only.
pub(super) struct RtnlCell<T>(UnsafeCell<T>);

// SAFETY: One thread at a time has the lock, and the data goes with it.
unsafe impl<T: Send> Send for RtnlCell<T> {}
// SAFETY: As above.
unsafe impl<T: Send> Sync for RtnlCell<T> {}

impl<T> RtnlCell<T> {
    pub(super) const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// The data. One cell's at a time.
    pub(super) fn get<'a>(&'a self, _rtnl: &'a mut Rtnl) -> &'a mut T {
        // SAFETY: There is one `Rtnl`, which is borrowed exclusively as long as this is in use.
        unsafe { &mut *self.0.get() }
    }
}
