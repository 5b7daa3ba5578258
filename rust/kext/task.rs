// SPDX-License-Identifier: GPL-2.0
//! Threads of a process that never leave the kernel.
//!
//! Such a thread has its process's address space, limits, name spaces and control groups; it
//! stops, freezes and dies with it.
//!
//! C header: `include/linux/sched/vhost_task.h`.

use core::ptr::NonNull;

use kernel::{
    current,
    error::from_err_ptr,
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    },
    task::Task, //
};

use super::{
    bindings,
    wait::Bell, //
};

/// What the thread does.
pub(crate) trait Body: Send + 'static {
    /// Works until it has ended, or until [`sched::interrupted`](super::sched::interrupted): then
    /// it must return soon, to be called again when that has been seen to.
    fn turn(&mut self) -> Turn;

    /// The thread was killed. There are no more turns.
    fn killed(&mut self);
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// There is to be another.
    Again,
    /// This was the last.
    Ended,
}

/// A thread of the process that made it. Dropping it waits until the body has ended or the thread
/// was killed.
///
/// # Invariants
///
/// `raw` is a thread that was started and not stopped; it alone uses `state`, a box of our own.
pub(crate) struct ProcessThread<B: Body> {
    raw: NonNull<bindings::vhost_task>,
    state: NonNull<State<B>>,
}

struct State<B> {
    body: B,
    bell: Arc<Bell>,
    introduced: bool,
    ended: bool,
}

// SAFETY: Any thread may stop it, and the body may be dropped anywhere.
unsafe impl<B: Body> Send for ProcessThread<B> {}

impl<B: Body> ProcessThread<B> {
    /// Starts a thread of the calling process. `bell` becomes its bell.
    ///
    /// # Errors
    ///
    /// `EAGAIN` at the limit of processes, `ERESTARTNOINTR` if a signal came between, `EOPNOTSUPP`
    /// on a kernel without such threads.
    pub(crate) fn spawn(name: &CStr, bell: Arc<Bell>, body: B) -> Result<Self> {
        let state = KBox::new(
            State {
                body,
                bell,
                introduced: false,
                ended: false,
            },
            GFP_KERNEL,
        )?;
        let state = NonNull::from(KBox::leak(state));
        // SAFETY: The functions get the pointer they want, until the thread is stopped; the name
        // is copied.
        let raw = from_err_ptr(unsafe {
            bindings::rvh_task_create(
                Some(turn::<B>),
                Some(killed::<B>),
                state.as_ptr().cast(),
                name.as_char_ptr(),
            )
        });
        match raw.and_then(|raw| NonNull::new(raw).ok_or(ENOMEM)) {
            Ok(raw) => {
                // SAFETY: Just made, and not started yet.
                unsafe { bindings::rvh_task_start(raw.as_ptr()) };
                // INVARIANT: Started just now.
                Ok(Self { raw, state })
            }
            Err(e) => {
                // SAFETY: No thread was made: the box is still ours.
                drop(unsafe { KBox::from_raw(state.as_ptr()) });
                Err(e)
            }
        }
    }
}

impl<B: Body> Drop for ProcessThread<B> {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant it was not stopped; afterwards it does not run.
        unsafe { bindings::rvh_task_stop(self.raw.as_ptr()) };
        // SAFETY: By the type's invariant the box is ours, and nobody uses it any more.
        drop(unsafe { KBox::from_raw(self.state.as_ptr()) });
    }
}

/// # Safety
///
/// Called by the thread, with the state it was made with.
unsafe extern "C" fn turn<B: Body>(state: *mut c_void) -> bool {
    // SAFETY: By the function's contract; the thread alone uses the state.
    let state = unsafe { &mut *state.cast::<State<B>>() };
    if state.ended {
        // The caller has this thread sleep until it is stopped.
        return false;
    }
    // SAFETY: This thread runs.
    unsafe { bindings::rvh_set_current_state(bindings::TASK_RUNNING) };
    if !state.introduced {
        state.bell.belongs_to(ARef::<Task>::from(&**current!()));
        state.introduced = true;
    }
    state.ended = state.body.turn() == Turn::Ended;
    true
}

/// # Safety
///
/// Called by the thread, with the state it was made with, after its last turn.
unsafe extern "C" fn killed<B: Body>(state: *mut c_void) {
    // SAFETY: By the function's contract; the thread alone uses the state.
    let state = unsafe { &mut *state.cast::<State<B>>() };
    state.ended = true;
    state.body.killed();
}
