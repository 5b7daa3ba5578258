// SPDX-License-Identifier: GPL-2.0
//! Control groups.
//!
//! C header: `include/linux/cgroup.h`.

use kernel::{
    bindings,
    error::to_result,
    prelude::*,
    task::Task, //
};

/// Moves the calling thread into all control groups of `of`.
pub(crate) fn join_all(of: &Task) -> Result {
    // SAFETY: Both tasks are referenced, by `of` and by running.
    to_result(unsafe { bindings::cgroup_attach_task_all(of.as_ptr(), Task::current_raw()) })
}
