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
                // SAFETY: The tracepoint's static key may be read at any time.
                let on = unsafe {
                    kernel::jump_label::static_branch_unlikely!(
                        bindings::[< __tracepoint_rvhost_ $name >],
                        kernel::bindings::tracepoint,
                        key
                    )
                };
                if on {
                    // SAFETY: These tracepoints take plain numbers.
                    unsafe { bindings::[< rust_do_trace_rvhost_ $name >]($($arg),*) };
                }
            }
            #[cfg(not(CONFIG_TRACEPOINTS))]
            { $( let _ = $arg; )* }
        }
    )*};
}

events! {
    /// A device was opened.
    open(dev: u32);
    /// A device was closed.
    release(dev: u32);
    /// A queue got a backend and runs.
    queue_start(dev: u32, queue: u32, num: u32, base: u32);
    /// A queue lost its backend.
    queue_stop(dev: u32, queue: u32, num: u32, base: u32);
    /// The driver's kick was seen.
    kick(dev: u32, queue: u32);
    /// The driver was interrupted.
    call(dev: u32, queue: u32);
    /// A batch of packets went through.
    batch(dev: u32, queue: u32, packets: u32, bytes: u64);
    /// The ring is broken at its next entry.
    error(dev: u32, queue: u32, problem: u32);
    /// One packet or chain was dropped.
    drop(dev: u32, queue: u32, problem: u32);
}
