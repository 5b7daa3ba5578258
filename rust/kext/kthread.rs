// SPDX-License-Identifier: GPL-2.0
//! Kernel threads that keep their module in memory and end by themselves.
//!
//! C header: `include/linux/kthread.h`.

use kernel::{
    error::from_err_ptr,
    prelude::*,
    sync::aref::ARef,
    task::Task, //
};

use super::{
    bindings,
    wait::Bell, //
};

/// Starts a thread that runs `body` with the caller's nice value. `bell` becomes its bell.
///
/// The thread holds a reference to the module until its last instruction, so that nobody has to
/// join it for safety's sake.
pub(crate) fn spawn<F>(name: &CStr, bell: &Bell, body: F) -> Result
where
    F: FnOnce() + Send + 'static,
{
    let body = KBox::into_raw(KBox::new(body, GFP_KERNEL)?);
    // SAFETY: `run::<F>` gets the pointer it wants; the format takes one string. NUMA node -1:
    // any.
    let task = from_err_ptr(unsafe {
        bindings::kthread_create_on_node(
            Some(run::<F>),
            body.cast(),
            -1,
            c"%s".as_char_ptr(),
            name.as_char_ptr(),
        )
    });
    let task = match task {
        Ok(task) => task,
        Err(e) => {
            // SAFETY: No thread was made: the box is still ours.
            drop(unsafe { KBox::from_raw(body) });
            return Err(e);
        }
    };
    // SAFETY: The thread exists: it has not been woken for the first time, so it cannot end.
    let task = ARef::<Task>::from(unsafe { &*task.cast::<Task>() });
    bell.belongs_to(task.clone());
    // SAFETY: The caller runs code of this module, which therefore is alive.
    unsafe { bindings::rvh_module_get() };
    // SAFETY: `task` is referenced.
    unsafe { bindings::rvh_inherit_nice(task.as_ptr()) };
    task.wake_up();
    Ok(())
}

/// # Safety
///
/// `body` must come from `KBox::<F>::into_raw`, and be passed once.
unsafe extern "C" fn run<F: FnOnce()>(body: *mut c_void) -> c_int {
    // SAFETY: By the function's contract.
    let body = KBox::into_inner(unsafe { KBox::from_raw(body.cast::<F>()) });
    body();
    // SAFETY: `spawn` took the reference that is given up here; nothing on this stack needs
    // dropping any more.
    unsafe { bindings::rvh_module_put_and_exit() }
}
