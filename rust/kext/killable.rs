// SPDX-License-Identifier: GPL-2.0
//! A mutex for which nobody waits beyond their own death.
//!
//! C header: `include/linux/mutex.h`.

use core::{
    cell::UnsafeCell,
    ops::{
        Deref,
        DerefMut, //
    },
};

use kernel::{
    error::to_result,
    prelude::*,
    sync::LockClassKey,
    types::{
        NotThreadSafe,
        Opaque, //
    },
};

use super::bindings;

/// Initialises a [`KillableMutex`] with a name, and a lock class per place where this is written:
/// locks that are held together are to be of different classes.
macro_rules! new_killable {
    ($data:expr, $name:literal) => {
        $crate::kext::killable::KillableMutex::new($data, $name, ::kernel::static_lock_class!())
    };
}
pub(crate) use new_killable;

/// A mutex whose waiters give up when they are killed. For locks that are held over something
/// user space can delay.
#[pin_data]
pub(crate) struct KillableMutex<T> {
    #[pin]
    raw: Opaque<bindings::mutex>,
    data: UnsafeCell<T>,
}

// SAFETY: As for the kernel crate's `Mutex`: the data moves with the lock.
unsafe impl<T: Send> Send for KillableMutex<T> {}
// SAFETY: The data is reached only by the one thread that holds the lock.
unsafe impl<T: Send> Sync for KillableMutex<T> {}

impl<T> KillableMutex<T> {
    /// A mutex of its own lock class; see [`new_killable`].
    pub(crate) fn new(
        data: T,
        name: &'static CStr,
        class: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self> {
        pin_init!(Self {
            raw <- Opaque::ffi_init(move |slot: *mut bindings::mutex| {
                // SAFETY: `slot` is valid, uninitialised and pinned; the others are static.
                unsafe { bindings::__mutex_init(slot, name.as_char_ptr(), class.as_ptr()) }
            }),
            data: UnsafeCell::new(data),
        })
    }

    /// Takes the lock; `EINTR` if the caller was killed first.
    pub(crate) fn lock(&self) -> Result<Guard<'_, T>> {
        // SAFETY: The mutex is initialised and pinned.
        to_result(unsafe { bindings::rvh_mutex_lock_killable(self.raw.get()) })?;
        // INVARIANT: The lock was just taken.
        Ok(Guard(self, NotThreadSafe))
    }
}

/// Proof that the lock is held.
///
/// # Invariants
///
/// The calling thread holds the mutex.
#[must_use = "the lock is released at once"]
pub(crate) struct Guard<'a, T>(&'a KillableMutex<T>, NotThreadSafe);

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: By the type's invariant the lock is held.
        unsafe { &*self.0.data.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: By the type's invariant the lock is held, and `self` is borrowed exclusively.
        unsafe { &mut *self.0.data.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant this thread holds the lock.
        unsafe { bindings::rvh_mutex_unlock(self.0.raw.get()) };
    }
}
