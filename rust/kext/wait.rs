// SPDX-License-Identifier: GPL-2.0
//! Waiting for a condition, and waking one thread for events.
//!
//! C headers: `include/linux/wait.h`, `include/linux/sched.h`.

use core::mem::MaybeUninit;

use kernel::{
    new_poll_condvar,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        barrier::smp_mb,
        poll::PollCondVar,
        Arc,
        SetOnce, //
    },
    task::Task,
    types::Opaque, //
};

use super::{
    affinity,
    bindings,
    sched::interrupted, //
};

/// A queue of threads that wait for something to become true.
#[pin_data]
pub(crate) struct WaitQueue {
    #[pin]
    raw: Opaque<bindings::wait_queue_head>,
}

// SAFETY: A wait queue has its own lock.
unsafe impl Send for WaitQueue {}
// SAFETY: As above.
unsafe impl Sync for WaitQueue {}

impl WaitQueue {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            raw <- Opaque::ffi_init(|slot: *mut bindings::wait_queue_head| {
                // SAFETY: `slot` is valid, uninitialised and pinned.
                unsafe { bindings::rvh_waitqueue_init(slot) }
            }),
        })
    }

    /// Wakes all that wait, to look at their conditions.
    pub(crate) fn wake_all(&self) {
        // SAFETY: The queue is initialised; 0 is for all exclusive waiters.
        unsafe {
            bindings::__wake_up(
                self.raw.get(),
                bindings::TASK_NORMAL,
                0,
                core::ptr::null_mut(),
            )
        };
    }

    /// Waits until `done` returns a value; `EINTR` if the caller is killed.
    ///
    /// `done` must not sleep.
    pub(crate) fn wait_killable<T>(&self, done: impl FnMut() -> Option<T>) -> Result<T> {
        self.wait(bindings::RVH_TASK_KILLABLE, MAX_WAIT, done)
            .ok_or(EINTR)
    }

    /// Waits until `done` returns a value, for ever, signals or not, as threads do that have
    /// nothing else to do.
    ///
    /// `done` must not sleep.
    pub(crate) fn wait_idle<T>(&self, mut done: impl FnMut() -> Option<T>) -> T {
        loop {
            if let Some(value) = self.wait(bindings::RVH_TASK_IDLE, MAX_WAIT, &mut done) {
                return value;
            }
        }
    }

    /// Waits until `done` returns a value, for `jiffies` at the most, or until the caller is killed.
    ///
    /// `done` must not sleep.
    pub(crate) fn wait_timeout<T>(
        &self,
        jiffies: c_long,
        done: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        self.wait(bindings::RVH_TASK_KILLABLE, jiffies, done)
    }

    /// Waits until `done` returns a value; `ERESTARTSYS` if a signal comes first.
    ///
    /// `done` must not sleep.
    pub(crate) fn wait_interruptible<T>(&self, done: impl FnMut() -> Option<T>) -> Result<T> {
        self.wait(bindings::TASK_INTERRUPTIBLE, MAX_WAIT, done)
            .ok_or(ERESTARTSYS)
    }

    fn wait<T>(
        &self,
        state: u32,
        mut jiffies: c_long,
        mut done: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        let mut entry = MaybeUninit::<bindings::wait_queue_entry>::uninit();
        let entry = entry.as_mut_ptr();
        // SAFETY: `entry` is valid for writing; it belongs to this thread.
        unsafe { bindings::init_wait_entry(entry, 0) };
        let result = loop {
            // SAFETY: Queue and entry are initialised; the entry is taken off before it goes.
            // CAST: task states are small.
            unsafe { bindings::prepare_to_wait(self.raw.get(), entry, state as c_int) };
            if let Some(value) = done() {
                break Some(value);
            }
            let killed = match state {
                // SAFETY: May be called anywhere.
                bindings::RVH_TASK_KILLABLE => unsafe { bindings::rvh_fatal_signal_pending() },
                bindings::TASK_INTERRUPTIBLE => interrupted(),
                _ => false,
            };
            if killed || jiffies == 0 {
                break None;
            }
            // SAFETY: This is a thread that may sleep: it called a function that waits.
            jiffies = unsafe { bindings::schedule_timeout(jiffies) };
        };
        // SAFETY: The entry was prepared on this queue by this thread.
        unsafe { bindings::finish_wait(self.raw.get(), entry) };
        result
    }
}

/// Those who wait for a file to be ready: in a call on it, or by polling it.
#[pin_data]
pub(crate) struct Waiters {
    #[pin]
    inside: WaitQueue,
    #[pin]
    polling: PollCondVar,
}

impl Waiters {
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                inside <- WaitQueue::new(),
                polling <- new_poll_condvar!(),
            }),
            GFP_KERNEL,
        )
    }

    /// What is waited on by who polls.
    pub(crate) fn polling(&self) -> &PollCondVar {
        &self.polling
    }

    /// Waits until `done` returns a value; `ERESTARTSYS` if a signal comes first.
    ///
    /// `done` must not sleep.
    pub(crate) fn wait<T>(&self, done: impl FnMut() -> Option<T>) -> Result<T> {
        self.inside.wait_interruptible(done)
    }

    /// Wakes all of them. Never sleeps.
    pub(crate) fn wake(&self) {
        self.inside.wake_all();
        self.polling.notify_all();
    }
}

/// `MAX_SCHEDULE_TIMEOUT`: until woken.
const MAX_WAIT: c_long = c_long::MAX;

/// The bell of one thread: events that others ring, as bits, and the thread that sleeps on them.
pub(crate) struct Bell {
    rung: Atomic<u32>,
    sleeper: SetOnce<ARef<Task>>,
}

impl Bell {
    pub(crate) fn new() -> Self {
        Self {
            rung: Atomic::new(0),
            sleeper: SetOnce::new(),
        }
    }

    /// Says whose bell it is, once.
    pub(super) fn belongs_to(&self, task: ARef<Task>) {
        self.sleeper.populate(task);
    }

    /// The number of its thread, as the calling process sees it, and for how long that has run.
    /// `None` if it does not see it, or if there is none.
    pub(crate) fn thread(&self) -> Option<(i32, u64)> {
        let task = self.sleeper.as_ref()?;
        // SAFETY: The task is referenced.
        let (id, cpu_ns) = unsafe {
            (
                bindings::rvh_task_id(task.as_ptr()),
                bindings::rvh_task_cpu_ns(task.as_ptr()),
            )
        };
        (id != 0).then_some((id, cpu_ns))
    }

    /// Keeps its thread to CPUs; see [`affinity::set`]. `ESRCH` if there is none yet.
    pub(crate) fn set_cpus(&self, words: &[u64]) -> Result {
        affinity::set(self.sleeper.as_ref().ok_or(ESRCH)?, words)
    }

    /// Rings: the thread wakes, or finds the events when it next looks. Never sleeps.
    pub(crate) fn ring(&self, events: u32) {
        // What was done before ringing is seen by who answers, even if somebody else rang.
        smp_mb();
        let mut old = self.rung.load(Relaxed);
        if old & events == events {
            // Whoever rang first wakes the thread.
            return;
        }
        // Full order on success: what was done before ringing is seen by who hears it.
        while let Err(now) = self.rung.cmpxchg(old, old | events, Full) {
            old = now;
        }
        if let Some(task) = self.sleeper.as_ref() {
            task.wake_up();
        }
    }

    /// The events that were rung and not yet answered.
    #[inline]
    pub(crate) fn rung(&self) -> u32 {
        self.rung.load(Relaxed)
    }

    /// Takes back `events`; returns those of them that had been rung.
    pub(crate) fn answer(&self, events: u32) -> u32 {
        let mut old = self.rung.load(Relaxed);
        while let Err(now) = self.rung.cmpxchg(old, old & !events, Full) {
            old = now;
        }
        old & events
    }

    /// Sleeps until one of `events` has been rung, or the thread is
    /// [interrupted]. To be called by the bell's own thread, which costs
    /// nothing while it sleeps.
    pub(crate) fn sleep_until(&self, events: u32) {
        self.sleep_for(events, MAX_WAIT);
    }

    /// The same, for `jiffies` at the most.
    pub(crate) fn sleep_for(&self, events: u32, mut jiffies: c_long) {
        while jiffies > 0 {
            // SAFETY: Says of this thread that it is about to sleep; undone below.
            unsafe { bindings::rvh_set_current_state(bindings::TASK_INTERRUPTIBLE) };
            if self.rung() & events != 0 || interrupted() {
                break;
            }
            // SAFETY: This thread may sleep: it called a function that does.
            jiffies = unsafe { bindings::schedule_timeout(jiffies) };
        }
        // SAFETY: This thread runs.
        unsafe { bindings::rvh_set_current_state(bindings::TASK_RUNNING) };
    }
}
