// SPDX-License-Identifier: GPL-2.0
//! Event counters that user space and KVM wait for.
//!
//! C header: `include/linux/eventfd.h`.

use core::ptr::NonNull;

use kernel::{
    error::from_err_ptr,
    prelude::*, //
};

use super::{
    bindings,
    file::FileRef, //
};

/// An eventfd to signal.
///
/// # Invariants
///
/// Points at a context on which this value holds one reference.
pub(crate) struct EventFd(NonNull<bindings::eventfd_ctx>);

// SAFETY: A context may be signalled and released on any thread.
unsafe impl Send for EventFd {}
// SAFETY: `eventfd_signal_mask` takes the context's own lock.
unsafe impl Sync for EventFd {}

impl EventFd {
    /// The eventfd with number `fd` in the calling process.
    ///
    /// # Errors
    ///
    /// `EBADF` if there is no such file, `EINVAL` if it is not an eventfd.
    pub(crate) fn get(fd: i32) -> Result<Self> {
        Self::of(&FileRef::get(fd)?)
    }

    /// The eventfd that `file` is; `EINVAL` if it is none.
    pub(crate) fn of(file: &FileRef) -> Result<Self> {
        // SAFETY: `file` is a referenced file.
        let ctx = from_err_ptr(unsafe { bindings::eventfd_ctx_fileget(file.as_ptr()) })?;
        // INVARIANT: The function returned a new reference.
        NonNull::new(ctx).map(Self).ok_or(EINVAL)
    }

    /// Adds one to the counter, which saturates. Never sleeps.
    #[inline]
    pub(crate) fn signal(&self) {
        // SAFETY: By the type's invariant the context is valid.
        unsafe { bindings::eventfd_signal_mask(self.0.as_ptr(), 0) };
    }
}

impl Drop for EventFd {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant the reference is ours to give up.
        unsafe { bindings::eventfd_ctx_put(self.0.as_ptr()) };
    }
}
