// SPDX-License-Identifier: GPL-2.0
//! The module's tracepoints, as functions that cost a patched jump while nobody listens.
//!
//! `kernel::declare_trace!` looks its symbols up among the kernel's bindings, where those of a
//! module outside the tree cannot be; otherwise this is the same.
//!
//! C header: `include/trace/events/rvhost.h`.

#[cfg(CONFIG_TRACEPOINTS)]
use super::bindings;

macro_rules! events {
    ($($(#[$attr:meta])* $name:ident($($arg:ident : $ty:ty),*);)*) => {$(
        $(#[$attr])*
        #[inline(always)]
        pub(crate) fn $name($($arg: $ty),*) {
            #[cfg(CONFIG_TRACEPOINTS)]
            kernel::macros::paste! {
                if is_on!($name) {
                    // SAFETY: These tracepoints take plain numbers.
                    unsafe { bindings::[< rust_do_trace_rvhost_ $name >]($($arg),*) };
                }
            }
            #[cfg(not(CONFIG_TRACEPOINTS))]
            { $( let _ = $arg; )* }
        }
    )*};
}

/// Whether somebody listens to a tracepoint.
#[cfg(CONFIG_TRACEPOINTS)]
macro_rules! is_on {
    ($name:ident) => {
        kernel::macros::paste! {
            // SAFETY: The tracepoint's static key may be read at any time.
            unsafe {
                kernel::jump_label::static_branch_unlikely!(
                    bindings::[< __tracepoint_rvhost_ $name >],
                    kernel::bindings::tracepoint,
                    key
                )
            }
        }
    };
}

/// The time at which a pass begins, if somebody wants to know how long it takes.
#[inline(always)]
pub(crate) fn batch_begins() -> Option<u64> {
    #[cfg(CONFIG_TRACEPOINTS)]
    if is_on!(batch) {
        return Some(super::sched::clock());
    }
    None
}

events! {
    /// A device was opened.
    open(dev: u32);
    /// A device was closed.
    release(dev: u32);
    /// A process owns the device; 0: nobody any more.
    owner(dev: u32, pid: u32);
    /// A queue got a backend and runs.
    queue_start(dev: u32, queue: u32, num: u32, base: u32);
    /// A queue lost its backend.
    queue_stop(dev: u32, queue: u32, num: u32, base: u32);
    /// The driver's kick was seen.
    kick(dev: u32, queue: u32);
    /// The driver was interrupted.
    call(dev: u32, queue: u32);
    /// A control call has the queue, for which it waited so long.
    park(dev: u32, queue: u32, ns: u64);
    /// The thread of a parked queue has it back.
    resume(dev: u32, queue: u32);
    /// A batch of packets went through, in so long.
    batch(dev: u32, queue: u32, packets: u32, bytes: u64, ns: u64);
    /// The ring is broken at its next entry.
    error(dev: u32, queue: u32, problem: u32);
    /// One packet or chain was dropped.
    drop(dev: u32, queue: u32, problem: u32);
    /// A queue needs a mapping that the IOTLB lacks.
    iotlb_miss(dev: u32, queue: u32, iova: u64, perm: u32);
    /// User space added a mapping.
    iotlb_update(dev: u32, first: u64, last: u64);
    /// User space removed the mappings that touch a range.
    iotlb_invalidate(dev: u32, first: u64, last: u64);
    /// How a port chooses queues has changed.
    steering(ifindex: u32, types: u32, entries: u32, even: u32);
}
