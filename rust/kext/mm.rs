// SPDX-License-Identifier: GPL-2.0
//! The owner's address space, lent to threads that have none.
//!
//! C headers: `include/linux/sched/mm.h`, `include/linux/kthread.h`.

use kernel::{
    current,
    mm::MmWithUser,
    sync::aref::ARef, //
};

use super::{
    bindings,
    usermem::UserMem, //
};

/// The address space of a process, kept alive with its mappings.
#[derive(Clone)]
pub(crate) struct OwnerMm(ARef<MmWithUser>);

impl OwnerMm {
    /// That of the calling process; `None` for a thread without one.
    pub(crate) fn of_current() -> Option<Self> {
        current!().mm().map(|mm| Self(mm.into()))
    }

    /// Whether the calling process has this address space.
    pub(crate) fn is_current(&self) -> bool {
        current!()
            .mm()
            .is_some_and(|mm| core::ptr::eq(mm.as_raw(), self.0.as_raw()))
    }

    /// A number that no other address space has while this one is kept.
    pub(crate) fn number(&self) -> usize {
        self.0.as_raw().addr()
    }

    /// Access to this address space, for a thread of its process.
    pub(crate) fn as_current(&self) -> Option<UserMem<'_>> {
        // SAFETY: It is the current one, and stays so: a user thread does not change its address
        // space inside one of our system calls, and the token does not leave the thread. Nor does it
        // leave [`Self::scope`], where a kernel thread may get one.
        self.is_current().then(|| unsafe { UserMem::new() })
    }

    /// Runs `body` in this address space. For kernel threads, which have none of their own;
    /// `None` from any other. By its bounds the body lets out no token: those are neither `Send` nor,
    /// as they borrow this value, `'static`.
    pub(crate) fn scope<R: 'static>(
        &self,
        body: impl FnOnce(UserMem<'_>) -> R + Send,
    ) -> Option<R> {
        // SAFETY: May be called anywhere.
        if current!().mm().is_some() || !unsafe { bindings::rvh_current_is_kthread() } {
            return None;
        }
        let mm = self.0.as_raw();
        // SAFETY: This is a kernel thread, and `self` holds a user reference to `mm`.
        unsafe { bindings::kthread_use_mm(mm) };
        // SAFETY: `mm` is the current address space until after `body`, which cannot keep the
        // token: its lifetime is that of the call.
        let result = body(unsafe { UserMem::new() });
        // SAFETY: Undoes the above on the same thread.
        unsafe { bindings::kthread_unuse_mm(mm) };
        Some(result)
    }
}
