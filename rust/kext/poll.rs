// SPDX-License-Identifier: GPL-2.0
//! Hearing of a file's readiness without a thread that waits in it.
//!
//! C headers: `include/linux/poll.h`, `include/linux/wait.h`.

use core::{
    cell::UnsafeCell,
    marker::PhantomPinned,
    ptr, //
};

use kernel::{
    prelude::*,
    sync::Arc, //
};

use super::{
    bindings,
    file::FileRef,
    wait::Bell, //
};

/// What to hear of, and what a file is ready for: `EPOLL*` bits.
pub(crate) mod ready {
    use super::bindings;

    /// There is something to read.
    pub(crate) const IN: u32 = bindings::RVH_EPOLLIN;
    /// There is room to write.
    pub(crate) const OUT: u32 = bindings::RVH_EPOLLOUT;
    /// The file is broken; always heard of.
    pub(crate) const ERR: u32 = bindings::RVH_EPOLLERR;
}

/// Rings a bell when a file becomes ready, while hooked to it.
///
/// # Invariants
///
/// `head` is null or the wait queue that `entry` is on, which lives as long as `file`. An entry that
/// has heard what it was to hear once is linked to itself instead.
#[pin_data(PinnedDrop)]
pub(crate) struct PollHook {
    entry: UnsafeCell<bindings::wait_queue_entry>,
    table: UnsafeCell<bindings::poll_table_struct>,
    head: *mut bindings::wait_queue_head,
    file: FileRef,
    mask: u32,
    bell: Arc<Bell>,
    event: u32,
    once: bool,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: The wait queue has its own lock; everything else is reached by `&mut` only, or not
// changed while hooked.
unsafe impl Send for PollHook {}

impl PollHook {
    /// A hook that will ring `bell` with `event` whenever `file` becomes ready for any of `mask`.
    pub(crate) fn new(
        file: FileRef,
        mask: u32,
        bell: Arc<Bell>,
        event: u32,
    ) -> Result<Pin<KBox<Self>>> {
        Self::make(file, mask, bell, event, false)
    }

    /// A hook that will ring `bell` with `event` when `file` becomes ready for any of `mask` for
    /// the first time since it was hooked to it.
    pub(crate) fn once(
        file: FileRef,
        mask: u32,
        bell: Arc<Bell>,
        event: u32,
    ) -> Result<Pin<KBox<Self>>> {
        Self::make(file, mask, bell, event, true)
    }

    fn make(
        file: FileRef,
        mask: u32,
        bell: Arc<Bell>,
        event: u32,
        once: bool,
    ) -> Result<Pin<KBox<Self>>> {
        let entry = bindings::wait_queue_entry {
            func: Some(on_wake),
            ..pin_init::zeroed()
        };
        let table = bindings::poll_table_struct {
            _qproc: Some(on_queue),
            _key: !0,
        };
        KBox::pin_init(
            pin_init!(Self {
                entry: UnsafeCell::new(entry),
                table: UnsafeCell::new(table),
                // INVARIANT: Not hooked.
                head: ptr::null_mut(),
                file,
                mask,
                bell,
                event,
                once,
                _pin: PhantomPinned,
            }),
            GFP_KERNEL,
        )
    }

    /// The file.
    pub(crate) fn file(&self) -> &FileRef {
        &self.file
    }

    /// Hooks to the file, if that is not done. Returns what the file is ready for now.
    pub(crate) fn hook(self: Pin<&mut Self>) -> u32 {
        // SAFETY: Nothing is moved out of `this`.
        let this = unsafe { self.get_unchecked_mut() };
        let table = if this.head.is_null() {
            this.table.get()
        } else {
            ptr::null_mut()
        };
        // SAFETY: The file is referenced. `on_queue` finds `this`, which is borrowed exclusively
        // and pinned, from the table.
        unsafe { bindings::rvh_vfs_poll(this.file.as_ptr(), table) }
    }

    /// Hooks to the file. Returns whether it is ready already for what this hook is to hear of.
    pub(crate) fn hook_and_look(self: Pin<&mut Self>) -> bool {
        let mask = self.mask;
        self.hook() & mask != 0
    }

    /// Unhooks from the file, if it is hooked. No ring comes any more when this returns.
    pub(crate) fn unhook(self: Pin<&mut Self>) {
        // SAFETY: Nothing is moved out of `this`.
        let this = unsafe { self.get_unchecked_mut() };
        if this.head.is_null() {
            return;
        }
        // SAFETY: By the type's invariant the entry is on this queue, or linked to itself. The
        // queue's lock keeps `on_wake` out from then on.
        unsafe { bindings::remove_wait_queue(this.head, this.entry.get()) };
        // INVARIANT: Not hooked any more.
        this.head = ptr::null_mut();
    }
}

#[pinned_drop]
impl PinnedDrop for PollHook {
    fn drop(self: Pin<&mut Self>) {
        self.unhook();
    }
}

/// Called by the file's poll operation to say where to wait.
///
/// # Safety
///
/// `table` must be that of a [`PollHook`] that is pinned and borrowed exclusively.
unsafe extern "C" fn on_queue(
    _file: *mut bindings::file,
    head: *mut bindings::wait_queue_head,
    table: *mut bindings::poll_table_struct,
) {
    // SAFETY: By the function's contract; `UnsafeCell` does not move its content.
    let hook = unsafe {
        kernel::container_of!(
            table.cast::<UnsafeCell<bindings::poll_table_struct>>(),
            PollHook,
            table
        )
    };
    // SAFETY: As above. A file with a second queue is heard of on the first.
    unsafe {
        if (*hook).head.is_null() {
            bindings::add_wait_queue(head, (*hook).entry.get());
            // INVARIANT: The entry is on this queue, which belongs to the file.
            (*hook).head = head;
        }
    }
}

/// Called, under the queue's lock and possibly in interrupt context, when the file is ready.
///
/// # Safety
///
/// `entry` must be that of a [`PollHook`] that is on the queue.
unsafe extern "C" fn on_wake(
    entry: *mut bindings::wait_queue_entry,
    _mode: c_uint,
    _flags: c_int,
    key: *mut c_void,
) -> c_int {
    // SAFETY: By the function's contract, and only fields that do not change are read.
    let hook = unsafe {
        &*kernel::container_of!(
            entry.cast::<UnsafeCell<bindings::wait_queue_entry>>(),
            PollHook,
            entry
        )
    };
    // CAST: the key is a set of poll bits in a pointer's place; none means "anything".
    let key = key as usize as u32;
    if key == 0 || key & (hook.mask | ready::ERR) != 0 {
        if hook.once {
            // INVARIANT: Linked to itself.
            // SAFETY: The entry is on the queue, whose lock is held.
            unsafe { bindings::rvh_unlink_wait_entry(entry) };
        }
        hook.bell.ring(hook.event);
    }
    0
}
