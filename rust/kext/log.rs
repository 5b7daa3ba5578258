// SPDX-License-Identifier: GPL-2.0
//! The kernel's log, for what is rare.

use core::cell::Cell;

use kernel::prelude::*;

use super::{
    bindings,
    sched::clock, //
};

/// Lines of one queue in [`PERIOD_NS`].
const BURST: u32 = 3;
const PERIOD_NS: u64 = 60_000_000_000;

/// Lets a few lines through in a time. Belongs to whoever writes them.
#[derive(Default)]
pub(crate) struct Limit {
    since: Cell<u64>,
    told: Cell<u32>,
    untold: Cell<u64>,
}

impl Limit {
    /// Whether to write a line at `now`: if so, how many were not written before.
    pub(crate) fn pass(&self, now: u64) -> Option<u64> {
        if now.wrapping_sub(self.since.get()) >= PERIOD_NS {
            self.since.set(now);
            self.told.set(0);
        }
        if self.told.get() >= BURST {
            self.untold.set(self.untold.get().wrapping_add(1));
            return None;
        }
        self.told.set(self.told.get() + 1);
        Some(self.untold.replace(0))
    }
}

/// A queue, as log lines name it.
#[derive(Clone, Copy)]
pub(crate) struct Queue {
    /// The process that owns its device.
    pub(crate) owner: i32,
    pub(crate) dev: u32,
    pub(crate) queue: u32,
}

impl Queue {
    /// Warns of a problem, unless there were too many.
    #[cold]
    pub(crate) fn warn(&self, limit: &Limit, reason: &str) {
        let Some(untold) = limit.pass(clock()) else {
            return;
        };
        // SAFETY: The reason has so many bytes; the rest are numbers.
        unsafe {
            bindings::rvh_warn_problem(
                self.owner,
                self.dev,
                self.queue,
                reason.as_ptr().cast(),
                // CAST: reasons are short.
                reason.len() as c_int,
                untold,
            )
        };
    }

    /// Tells those who debug.
    pub(crate) fn debug(&self, what: &CStr, value: u32) {
        // SAFETY: `what` is a string; the rest are numbers.
        unsafe {
            bindings::rvh_debug_queue(self.owner, self.dev, self.queue, what.as_char_ptr(), value)
        };
    }
}

/// Tells those who debug of a device.
pub(crate) fn debug(owner: i32, dev: u32, what: &CStr) {
    // SAFETY: `what` is a string; the rest are numbers.
    unsafe { bindings::rvh_debug_device(owner, dev, what.as_char_ptr()) };
}
