// SPDX-License-Identifier: GPL-2.0
//! The CPUs that a queue's thread runs on.

use kernel::{
    error::to_result,
    prelude::*,
    task::Task, //
};

use super::bindings;

/// Lets the calling thread run where `of` may run, as a thread of its own would. Without effect
/// where the caller's control groups leave none of these CPUs.
pub(crate) fn inherit(of: &Task) {
    // SAFETY: Both tasks are referenced, by `of` and by running; a mask is valid as long as its task.
    unsafe { bindings::rvh_inherit_cpus(of.as_ptr()) };
}

/// Keeps the calling thread, that of queue `queue`, to what `rx_cpus` or `tx_cpus` says.
pub(crate) fn apply(queue: u32) {
    // SAFETY: Concerns the calling thread, which may sleep.
    unsafe { bindings::rvh_apply_cpus(queue) };
}

/// Keeps `task` to the CPUs whose bits are set in `words`, or to all if there are none, of those
/// that the caller may run on; `EINVAL` if that leaves none.
pub(super) fn set(task: &Task, words: &[u64]) -> Result {
    // CAST: callers have few words.
    let count = words.len() as u32;
    // SAFETY: The task is referenced, and the words as many as is said.
    to_result(unsafe { bindings::rvh_set_cpus(task.as_ptr(), words.as_ptr(), count) })
}
